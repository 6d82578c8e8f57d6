"""Estimation of the noise in logged actions. Imports neither torch nor Ray."""

from __future__ import annotations

import numpy as np

from qwr_rllib.replay.storage import ReplayStorage

MAX_STATES, MAX_NEIGHBOURS = 1_000, 100_000
"""Maximum number of rows with a noise estimate, and of rows among which neighbours are sought."""
MIN_STD = 0.05
"""Smallest standard deviation of ``mu``: the samples of a state must differ."""
AT_ONCE = 50  # states; their distances to all others are in memory


def mu_std(storage: ReplayStorage, action_std: float) -> float:
    """Chooses the standard deviation of ``mu`` for logged continuous actions.

    The critic cannot evaluate actions far from the data, so the samples of ``mu`` must not spread
    more than the data's own noise.

    Args:
        storage: the logged data.
        action_std: the policy's standard deviation, the upper limit of the result.

    Returns:
        The noise of the data by :func:`action_noise`, clipped to ``[MIN_STD, action_std]``;
        ``action_std`` if there is no estimate.
    """
    noise = None if storage.spec.image else action_noise(storage)
    return action_std if noise is None else min(max(noise, MIN_STD), action_std)


def action_noise(storage: ReplayStorage) -> float | None:
    """Estimates the standard deviation of the noise in logged continuous actions.

    Two actions of a policy in nearly the same state have a mean squared difference of twice the
    noise's variance. So the variance is estimated as half of the mean squared difference between a
    state's action and that of the nearest state of another episode, over all action dimensions (a
    Gamma test with one neighbour; Evans and Jones, 2002). For the distance, each dimension of the
    states is divided by its standard deviation. If states are sparse, the policy's change between
    neighbours adds to the estimate.

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
        # The squared distances without the norms of `some`, which do not affect the order.
        distances = squared_norms - 2 * obs[some] @ obs.T
        distances[episode_of[some, None] == episode_of] = np.inf
        nearest = distances.argmin(1)
        total += np.square(actions[some] - actions[nearest]).sum() / 2
        count += actions[some].size
    return float(np.sqrt(total / count))
