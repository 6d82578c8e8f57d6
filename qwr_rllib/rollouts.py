"""What a rollout worker does with what it sampled: it hands the rows to the replay itself.

It has one batch in flight: the next is sampled only when the replay has taken the last, so that all
workers together never hold more than an iteration's rows beside the replay. They are kept
until the learner's view has them too, to be sent again if the replay actor dies before.
"""

from __future__ import annotations

import dataclasses
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError
from ray.rllib.evaluation.rollout_worker import RolloutWorker
from ray.rllib.policy.sample_batch import DEFAULT_POLICY_ID, SampleBatch

from qwr_rllib.qwr_torch_policy import QWRTorchPolicy
from qwr_rllib.replay.actor import Receipt
from qwr_rllib.replay.storage import Fragment


@dataclass(frozen=True)
class Failure:
    """An error inside a worker, as data: RLlib would kill the worker for an exception."""

    worker: int
    traceback: str


@dataclass(frozen=True)
class ReplayLost:
    """The replay actor did not answer; the worker has kept the rows."""

    replay: ActorHandle
    reason: str


Outcome = Receipt | ReplayLost | Failure


@dataclass
class _Outbox:
    """What a worker sent since the learner's view was last updated, that is in round ``number``."""

    number: int
    fragments: list[Fragment]


def collect(
    worker: RolloutWorker, replay: ActorHandle, round_number: int, policy_version: int
) -> Outcome:
    """Samples a batch, stores it in the replay and returns what became of it.

    Args:
        worker: where this runs.
        replay: the replay actor.
        round_number: grows with each update of the learner's view; the rows of earlier rounds
            are in it.
        policy_version: of the worker's weights, see :attr:`Fragment.policy_version`.
    """
    try:
        batch = worker.sample().policy_batches[DEFAULT_POLICY_ID]
        fragments = [
            dataclasses.replace(fragment, policy_version=policy_version)
            for fragment in fragments_of(worker.policy_map[DEFAULT_POLICY_ID], batch)
        ]
        outbox = _outbox(worker, round_number)
        outbox.fragments.extend(fragments)
        return _send(worker, replay, fragments)
    except Exception:
        return Failure(worker.worker_index, traceback.format_exc())


def resend(worker: RolloutWorker, replay: ActorHandle, round_number: int) -> Outcome:
    """Sends the rows of the round again."""
    return _send(worker, replay, _outbox(worker, round_number).fragments)


def _outbox(worker: RolloutWorker, round_number: int) -> _Outbox:
    outbox = getattr(worker, "qwr_outbox", None)
    if outbox is None or outbox.number != round_number:
        outbox = worker.qwr_outbox = _Outbox(round_number, [])
    return outbox


def _send(worker: RolloutWorker, replay: ActorHandle, fragments: Sequence[Fragment]) -> Outcome:
    started = time.perf_counter()
    try:
        receipt: Receipt = ray.get(replay.add.remote(fragments, worker.worker_index))
    except RayActorError as error:
        return ReplayLost(replay, str(error))
    return dataclasses.replace(receipt, blocked_s=time.perf_counter() - started)


def fragments_of(policy: QWRTorchPolicy, batch: SampleBatch) -> list[Fragment]:
    """Splits a batch into one fragment for each run of consecutive steps of an episode.

    ``mu`` in the state after an unfinished or cut fragment is that of the policy now.
    """
    spec = policy.spec
    episodes, times = np.asarray(batch[SampleBatch.EPS_ID]), np.asarray(batch[SampleBatch.T])
    joined = (episodes[1:] == episodes[:-1]) & (times[1:] == times[:-1] + 1)
    starts = np.append(0, np.flatnonzero(~joined) + 1)
    ends = np.append(starts[1:], len(batch))

    columns = {
        name: np.asarray(batch[name]).reshape(len(batch), *shape)
        for name, (shape, _) in spec.columns.items()
    }
    last_obs = np.asarray(batch[SampleBatch.NEXT_OBS])[ends - 1].reshape(-1, *spec.obs_shape)
    last_mu = policy.behaviour(last_obs)
    truncated = np.asarray(batch[SampleBatch.TRUNCATEDS])

    fragments = []
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        rows = slice(start, end)
        obs, mu = columns["obs"][rows], columns["action_dist_inputs"][rows]
        terminated = bool(columns["terminateds"][end - 1])
        if not terminated:
            obs = np.append(obs, last_obs[i : i + 1], axis=0)
            mu = np.append(mu, last_mu[i : i + 1], axis=0)
        fragments.append(
            Fragment(
                episode=int(episodes[start]),
                start=int(times[start]),
                obs=obs,
                action_dist_inputs=mu,
                actions=columns["actions"][rows],
                rewards=columns["rewards"][rows],
                terminated=terminated,
                done=terminated or bool(truncated[end - 1]),
            )
        )
    return fragments
