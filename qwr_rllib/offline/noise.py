"""Estimation of the noise in logged actions. Imports neither torch nor Ray."""

from __future__ import annotations

import numpy as np

from qwr_rllib.replay.storage import ReplayStorage
from qwr_rllib.specs import LoggedMu

MAX_ROWS = 100_000
"""Rows among which neighbours are searched; of more rows a random part."""
MAX_STATES = 1_000
"""States that are compared with their neighbours."""
NEIGHBOURS = 10
"""Neighbours of a state."""
MIN_STD = 0.05
"""Smallest standard deviation of ``mu``: the samples of a state must differ."""
AT_ONCE = 50  # states; their distances to all others are in memory


def logged_mu(
    storage: ReplayStorage, action_std: float, std: float | str = "auto"
) -> LoggedMu | None:
    """Describes the policy ``mu`` of logged actions.

    The critic cannot evaluate actions far from the data. So the samples of ``mu`` must not spread
    more than the data's own noise, and those that the environment would clip are evaluated clipped,
    as the logged actions are.

    Args:
        storage: the logged data.
        action_std: the policy's standard deviation.
        std: ``offline.mu_std``. ``"auto"`` is the noise of the data by :func:`action_noise`,
            clipped to ``[MIN_STD, action_std]``, and ``action_std`` if there is no estimate.

    Returns:
        ``None`` for discrete actions.
    """
    if storage.spec.discrete:
        return None
    if isinstance(std, str):
        noise = None if storage.spec.image else action_noise(storage)
        std = action_std if noise is None else min(max(noise, MIN_STD), action_std)
    slots = np.concatenate([slots for _, slots in storage.trajectories()])
    return LoggedMu(std, clipped=bool((np.abs(storage.columns["actions"][slots]) <= 1).all()))


def action_noise(storage: ReplayStorage) -> float | None:
    """Estimates the standard deviation of the noise in logged continuous actions.

    Half of the mean squared difference between the actions of two states is the variance of the
    noise, plus what the policy itself changes between them. The second part grows with the squared
    distance of the states. A line through this value over that distance, for the nearest state,
    the second nearest and so on, therefore meets distance 0 at the variance of the noise (the Gamma
    test; Evans and Jones, 2002). Neighbours are states of other episodes. Each dimension of the
    states is divided by its standard deviation; the dimensions of the actions are averaged.

    Args:
        storage: the logged data, with rows of vector observations.

    Returns:
        The estimate in units of the policy's actions, at least 0; ``None`` if a state has fewer
        than ``NEIGHBOURS`` rows of other episodes.
    """
    episodes, parts = zip(*storage.trajectories(), strict=True)
    slots = np.concatenate(parts)
    episode_of = np.repeat(episodes, [len(part) for part in parts])
    random = np.random.default_rng(0)
    if len(slots) > MAX_ROWS:
        chosen = random.choice(len(slots), MAX_ROWS, replace=False)
        slots, episode_of = slots[chosen], episode_of[chosen]
    if len(slots) - np.unique(episode_of, return_counts=True)[1].max() < NEIGHBOURS:
        return None
    obs = storage.columns["obs"][slots].reshape(len(slots), -1).astype(np.float32)
    scale = obs.std(0)
    obs = (obs - obs.mean(0)) / np.where(scale > 0, scale, 1)
    actions = storage.columns["actions"][slots].reshape(len(slots), -1)
    squared_norms = np.square(obs).sum(1)
    states = random.permutation(len(slots))[:MAX_STATES]
    points = []
    for some in np.split(states, range(AT_ONCE, len(states), AT_ONCE)):
        distances = squared_norms[some, None] + squared_norms - 2 * obs[some] @ obs.T
        distances[episode_of[some, None] == episode_of] = np.inf
        nearest = np.argpartition(distances, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS]
        distances = np.take_along_axis(distances, nearest, 1)
        halved = np.square(actions[some, None] - actions[nearest]).mean(-1) / 2
        order = distances.argsort(1)
        points.append([np.take_along_axis(each, order, 1) for each in (distances, halved)])
    x, y = (np.concatenate(each).mean(0) for each in zip(*points, strict=True))
    variance = np.polynomial.Polynomial.fit(x, y, 1)(0.0)
    return float(np.sqrt(max(variance, 0.0)))
