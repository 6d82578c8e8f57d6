"""The part that runs inside a rollout worker: samples rows and sends them to the replay actor.

A worker samples the next batch only when the replay has taken the last one. It keeps an
iteration's rows until the learner's view has them, and sends them again if the replay actor dies
before.
"""

from __future__ import annotations

import dataclasses
import secrets
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError
from ray.rllib.evaluation.rollout_worker import RolloutWorker
from ray.rllib.policy.sample_batch import DEFAULT_POLICY_ID, SampleBatch

from qwr_rllib.envs.atari import LIFE_LOST
from qwr_rllib.replay.actor import Receipt
from qwr_rllib.replay.fragments import Fragment, split_steps
from qwr_rllib.specs import Spec

NEXT_INFOS = "next_infos"
"""The column with the ``info`` that each step returned."""
COLLECTED = (
    SampleBatch.OBS,
    SampleBatch.NEXT_OBS,
    SampleBatch.ACTIONS,
    SampleBatch.REWARDS,
    SampleBatch.TERMINATEDS,
    SampleBatch.TRUNCATEDS,
    SampleBatch.EPS_ID,  # RLlib itself needs it
    SampleBatch.T,
)
"""The other columns that RLlib collects; it drops columns that are not named."""


class ActingPolicy(Protocol):
    """The part of a policy that a worker uses."""

    spec: Spec
    config: dict[str, Any]
    episodes: dict[int, int]
    """The running episode's name in the replay, by sub-environment."""

    def dist_inputs(self, obs: np.ndarray) -> np.ndarray:
        """Returns parameters ``(k, m)`` of ``pi(.|s)`` at raw observations ``(k, ...)``."""
        ...


@dataclass(frozen=True)
class Failure:
    """An error inside a worker, as data: RLlib would kill a worker that raises."""

    worker: int
    traceback: str


@dataclass(frozen=True)
class ReplayLost:
    """A replay actor that did not answer; the worker keeps the rows."""

    replay: ActorHandle
    reason: str


Outcome = Receipt | ReplayLost | Failure


@dataclass
class _Outbox:
    """Rows that a worker sent in round ``number`` and that the learner's view may still lack."""

    number: int
    fragments: list[Fragment]


def collect(
    worker: RolloutWorker, replay: ActorHandle, round_number: int, policy_version: int
) -> Outcome:
    """Samples a batch, stores it in the replay and returns the outcome.

    Args:
        worker: the worker in which this runs.
        replay: the replay actor.
        round_number: grows with each update of the learner's view, which then has the rows of
            earlier rounds.
        policy_version: version of the worker's weights, see :attr:`Fragment.policy_version`.
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
    """Sends this round's rows again."""
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


def fragments_of(policy: ActingPolicy, batch: SampleBatch) -> list[Fragment]:
    """Splits a batch into fragments: see :func:`~qwr_rllib.replay.fragments.split_steps`.

    In the state after an unfinished or truncated fragment, ``mu`` is the current policy. A step
    whose ``info`` has a true ``life_lost`` counts as terminated, although the episode continues.

    An episode gets its name in the replay when it begins. RLlib's own ids come from Python's random
    state and repeat if that is reset: by a restore, by another algorithm with the same seed in this
    process, or by the restart of a seeded worker.

    Raises:
        ValueError: if observations are not the stacks of frames that the config describes.
    """
    spec = policy.spec

    def column(name: str, *shape: int) -> np.ndarray:
        return np.asarray(batch[name]).reshape(len(batch), *shape)

    environments, times = column(SampleBatch.ENV_ID), column(SampleBatch.T)
    breaks = (environments[1:] != environments[:-1]) | (times[1:] != times[:-1] + 1)
    episodes = np.empty(len(batch), np.int64)
    for rows in np.split(np.arange(len(batch)), np.flatnonzero(breaks) + 1):
        environment = int(environments[rows[0]])
        if times[rows[0]] == 0 or environment not in policy.episodes:
            policy.episodes[environment] = secrets.randbits(62)
        episodes[rows] = policy.episodes[environment]
    terminated = column(SampleBatch.TERMINATEDS).astype(bool)
    if NEXT_INFOS in batch:
        terminated |= [bool(info.get(LIFE_LOST)) for info in batch[NEXT_INFOS]]
    return split_steps(
        spec,
        episodes=episodes,
        times=times,
        obs=column(SampleBatch.OBS, *spec.obs_shape),
        next_obs=column(SampleBatch.NEXT_OBS, *spec.obs_shape),
        action_dist_inputs=column(SampleBatch.ACTION_DIST_INPUTS, spec.action_dim),
        actions=column(SampleBatch.ACTIONS, *spec.action_shape),
        rewards=column(SampleBatch.REWARDS),
        terminated=terminated,
        truncated=column(SampleBatch.TRUNCATEDS).astype(bool),
        dist_inputs=policy.dist_inputs,
        reward_clip=policy.config["reward_clip"],
    )
