"""What a rollout worker does with what it sampled: it hands the rows to the replay itself."""

from __future__ import annotations

import traceback
from dataclasses import dataclass

import numpy as np
import ray
from ray.actor import ActorHandle
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


def collect(worker: RolloutWorker, replay: ActorHandle) -> Receipt | Failure:
    """Samples a batch, stores it in the replay and returns what became of it."""
    try:
        batch = worker.sample().policy_batches[DEFAULT_POLICY_ID]
        fragments = fragments_of(worker.policy_map[DEFAULT_POLICY_ID], batch)
        return ray.get(replay.add.remote(fragments, worker.worker_index))
    except Exception:
        return Failure(worker.worker_index, traceback.format_exc())


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
