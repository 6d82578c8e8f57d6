"""What a rollout worker does with what it sampled: it hands the rows to the replay itself.

It has one batch in flight: the next is sampled only when the replay has taken the last. An
iteration's rows are kept until the learner's view has them too, to be sent again if the replay
actor dies before.
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

from qwr_rllib.envs import LIFE_LOST
from qwr_rllib.qwr_torch_policy import NEXT_INFOS, QWRTorchPolicy
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

    ``mu`` in the state after an unfinished or cut fragment is that of the policy now. A step
    whose ``info`` has a true ``life_lost`` counts as terminated, though the episode goes on.

    Raises:
        ValueError: if observations are not the stacks of frames that the config says they are.
    """
    spec = policy.spec

    def column(name: str, *shape: int) -> np.ndarray:
        return np.asarray(batch[name]).reshape(len(batch), *shape)

    episodes, times = column(SampleBatch.EPS_ID), column(SampleBatch.T)
    terminated = column(SampleBatch.TERMINATEDS).astype(bool)
    if NEXT_INFOS in batch:
        terminated |= [bool(info.get(LIFE_LOST)) for info in batch[NEXT_INFOS]]
    truncated = column(SampleBatch.TRUNCATEDS).astype(bool)
    consecutive = (episodes[1:] == episodes[:-1]) & (times[1:] == times[:-1] + 1)
    starts = np.append(0, np.flatnonzero(~consecutive | terminated[:-1]) + 1)
    ends = np.append(starts[1:], len(batch))

    obs = column(SampleBatch.OBS, *spec.obs_shape)
    last_obs = column(SampleBatch.NEXT_OBS, *spec.obs_shape)[ends - 1]
    last_mu = policy.behaviour(last_obs)
    mu = column(SampleBatch.ACTION_DIST_INPUTS, spec.action_dim)
    actions = column(SampleBatch.ACTIONS, *spec.action_shape)
    rewards = column(SampleBatch.REWARDS)
    if policy.config["reward_clip"] is not None:
        rewards = rewards.clip(-policy.config["reward_clip"], policy.config["reward_clip"])

    fragments = []
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        rows = slice(start, end)
        states, params = obs[rows], mu[rows]
        if not terminated[end - 1]:
            states = np.append(states, last_obs[i : i + 1], axis=0)
            params = np.append(params, last_mu[i : i + 1], axis=0)
        context = None
        if spec.frame_stack > 1:
            # A NaN in a frame is no reason: the replay refuses the rows that it spoils.
            if not np.array_equal(states[1:, :-1], states[:-1, 1:], equal_nan=True):
                raise ValueError(
                    f"frame_stack is {spec.frame_stack}, but the observations of "
                    f"{policy.config['env']} are not stacks of the last frames, newest last"
                )
            context, states = states[0, :-1], states[:, -1]
        fragments.append(
            Fragment(
                episode=int(episodes[start]) ^ policy.episode_salt,
                start=int(times[start]),
                obs=states,
                action_dist_inputs=params,
                actions=actions[rows],
                rewards=rewards[rows],
                terminated=bool(terminated[end - 1]),
                done=bool(terminated[end - 1] or truncated[end - 1]),
                context=context,
            )
        )
    return fragments
