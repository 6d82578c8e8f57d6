"""Makes fragments, the unit that the replay stores, of steps in the order of their collection.

Knows numpy only.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qwr_rllib.replay.storage import Fragment
from qwr_rllib.specs import Spec


def split_steps(
    spec: Spec,
    *,
    episodes: np.ndarray,
    times: np.ndarray,
    obs: np.ndarray,
    next_obs: np.ndarray,
    action_dist_inputs: np.ndarray,
    actions: np.ndarray,
    rewards: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray,
    behaviour: Callable[[np.ndarray], np.ndarray],
    reward_clip: float | None = None,
) -> list[Fragment]:
    """Splits ``k`` steps into one fragment for each run of consecutive steps of an episode.

    Args:
        spec: shapes of the columns.
        episodes: ``(k,)``, unique numbers of the episodes.
        times: ``(k,)``, each step's number in its episode.
        obs: ``(k, *obs_shape)``, raw observations, whole stacks of frames.
        next_obs: ``(k, *obs_shape)``, those after each step.
        action_dist_inputs: ``(k, m)``, parameters of ``mu``.
        actions: ``(k, ...)``
        rewards: ``(k,)``
        terminated: ``(k,)``; what follows in the same episode is a trajectory of its own.
        truncated: ``(k,)``
        behaviour: ``mu``'s parameters ``(j, m)`` in observations ``(j, *obs_shape)``, for the state
            after an unfinished or cut fragment.
        reward_clip: the largest absolute reward that is kept; ``None`` keeps all.

    Raises:
        ValueError: if observations are not the stacks of frames that ``spec`` says they are.
    """
    consecutive = (episodes[1:] == episodes[:-1]) & (times[1:] == times[:-1] + 1)
    starts = np.append(0, np.flatnonzero(~consecutive | terminated[:-1]) + 1)
    ends = np.append(starts[1:], len(episodes))
    last_obs = next_obs[ends - 1]
    last_mu = behaviour(last_obs)
    if reward_clip is not None:
        rewards = rewards.clip(-reward_clip, reward_clip)

    fragments = []
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        rows = slice(start, end)
        states, params = obs[rows], action_dist_inputs[rows]
        if not terminated[end - 1]:
            states = np.append(states, last_obs[i : i + 1], axis=0)
            params = np.append(params, last_mu[i : i + 1], axis=0)
        context = None
        if spec.frame_stack > 1:
            # A NaN in a frame is no reason: the replay refuses the rows that it spoils.
            if not np.array_equal(states[1:, :-1], states[:-1, 1:], equal_nan=True):
                raise ValueError(
                    f"frame_stack is {spec.frame_stack}, but the observations are not stacks of "
                    "the last frames, newest last"
                )
            context, states = states[0, :-1], states[:, -1]
        fragments.append(
            Fragment(
                episode=int(episodes[start]),
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
