"""Episodes of logged data, as the readers give them to the loader."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import gymnasium as gym
import numpy as np
from ray.rllib.policy.sample_batch import SampleBatch

MU_KEY = SampleBatch.ACTION_DIST_INPUTS
"""Key of a Minari episode's ``infos``: the parameters of ``mu`` in each state, ``(k + 1, m)``."""


class Episode(NamedTuple):
    """A logged episode, or a part of one without gaps; ``k`` steps."""

    name: str
    obs: np.ndarray
    """``(k + 1, ...)``, or ``(k, ...)`` where the state after the last step is not recorded."""
    actions: np.ndarray
    """``(k, ...)``."""
    rewards: np.ndarray
    """``(k,)``."""
    terminated: bool
    """True if it says so; otherwise its last step is a cut."""
    mu: np.ndarray | None
    """``(k + 1, m)`` or ``(k, m)`` recorded parameters."""


class Dataset(NamedTuple):
    """A source of episodes, and what it says about them."""

    name: str
    env_id: str | None
    observation_space: gym.Space | None
    action_space: gym.Space | None
    normalized: bool
    """True if actions are in the policy's space and not in the environment's."""
    episodes: Iterable[Episode]


def one_line(error: Exception) -> str:
    """An error of a library as a part of a message."""
    return " ".join(f"{type(error).__name__}: {error}".split())
