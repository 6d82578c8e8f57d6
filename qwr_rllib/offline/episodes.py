"""Episodes of logged data, in the form that the loader takes from the readers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import gymnasium as gym
import numpy as np
from ray.rllib.policy.sample_batch import SampleBatch

MU_KEY = SampleBatch.ACTION_DIST_INPUTS
"""Key in a Minari episode's ``infos`` for the parameters of ``mu``, ``(k + 1, m)``."""


class Episode(NamedTuple):
    """A logged episode of ``k`` steps, or a part of an episode without missing steps."""

    name: str
    obs: np.ndarray
    """``(k + 1, ...)``, or ``(k, ...)`` if the state after the last step is not recorded."""
    actions: np.ndarray
    """``(k, ...)``."""
    rewards: np.ndarray
    """``(k,)``."""
    terminated: bool
    """Whether the data marks the last step as terminated; otherwise the episode is cut there."""
    mu: np.ndarray | None
    """``(k + 1, m)`` or ``(k, m)``, recorded parameters of ``mu``; ``None`` if there are none."""


class Dataset(NamedTuple):
    """A source of episodes, with its metadata; ``None`` is unknown."""

    name: str
    env_id: str | None
    observation_space: gym.Space | None
    action_space: gym.Space | None
    normalized: bool
    """Whether actions are in the policy's space, not the environment's."""
    episodes: Iterable[Episode]


def one_line(error: Exception) -> str:
    """Formats an error of a library on one line, as part of a message."""
    return " ".join(f"{type(error).__name__}: {error}".split())
