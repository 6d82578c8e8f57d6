"""The noise of logged actions, estimated from the data. Knows numpy only."""

from __future__ import annotations

import numpy as np

from qwr_rllib.replay.storage import ReplayStorage

MAX_STATES, MAX_NEIGHBOURS = 1_000, 100_000
"""Rows whose noise is estimated, and rows among which their neighbours are looked for."""
MIN_STD = 0.05
"""Smallest standard deviation of ``mu``: the samples of a state must differ."""
AT_ONCE = 50  # states, whose distances to all others are in memory


def mu_std(storage: ReplayStorage, action_std: float) -> float:
    """Chooses the standard deviation of ``mu`` for logged continuous actions.

    The critic knows nothing of actions that nobody tried, so that samples of ``mu`` must not be
    further from the data than the data's own noise.

    Args:
        storage: the logged data.
        action_std: that of the policy, the largest that is returned.

    Returns:
        The noise of the data as :func:`action_noise` estimates it, in ``[MIN_STD, action_std]``;
        ``action_std`` where there is no estimate.
    """
    noise = None if storage.spec.image else action_noise(storage)
    return action_std if noise is None else min(max(noise, MIN_STD), action_std)


def action_noise(storage: ReplayStorage) -> float | None:
    """Estimates the standard deviation of the noise in logged continuous actions.

    Two actions of a policy in nearly the same state differ by its noise: by twice its variance on
    average. The estimate is half of the mean squared difference between the action of a state and
    that of the nearest state of another episode (a Gamma test with one neighbour; Evans and
    Jones, 2002), over all dimensions of the action. States are compared with each of their
    dimensions divided by its standard deviation. Where states are sparse, the policy's change
    between neighbours adds to the estimate.

    Args:
        storage: the logged data, with rows of vector observations.

    Returns:
        The estimate in units of the policy's actions; ``None`` for fewer than two episodes.
    """
    episodes, parts = zip(*storage.trajectories(), strict=True)
    if len(set(episodes)) < 2:
        return None
    random = np.random.default_rng(0)
    slots = np.concatenate(parts)
    episode_of = np.repeat(episodes, [len(part) for part in parts])
    if len(slots) > MAX_NEIGHBOURS:
        chosen = random.choice(len(slots), MAX_NEIGHBOURS, replace=False)
        slots, episode_of = slots[chosen], episode_of[chosen]
    obs = storage.columns["obs"][slots].reshape(len(slots), -1).astype(np.float32)
    scale = obs.std(0)
    obs = (obs - obs.mean(0)) / np.where(scale > 0, scale, 1)
    actions = storage.columns["actions"][slots].reshape(len(slots), -1)
    squared_norms = np.square(obs).sum(1)
    total, count = 0.0, 0
    states = random.permutation(len(slots))[:MAX_STATES]
    for some in np.split(states, range(AT_ONCE, len(states), AT_ONCE)):
        # The squared distances, less the norms of `some`, which do not change their order.
        distances = squared_norms - 2 * obs[some] @ obs.T
        distances[episode_of[some, None] == episode_of] = np.inf
        nearest = distances.argmin(1)
        total += np.square(actions[some] - actions[nearest]).sum() / 2
        count += actions[some].size
    return float(np.sqrt(total / count))
