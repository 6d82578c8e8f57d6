"""The shapes that networks, replay and environment must agree on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class Spec:
    """Shapes and types of one environment step, as the learner sees it.

    A continuous action is a float32 vector in the policy's space: each dimension of the
    environment's range is mapped to [-1, 1], and samples may lie outside. A discrete action is its
    index.
    """

    obs_shape: tuple[int, ...]
    obs_dtype: str
    action_dim: int
    """Dimensions of a continuous action, or the number of discrete actions."""
    discrete: bool
    frame_stack: int = 1
    """Above 1, an observation is this many consecutive frames along its first axis, the newest
    last. The replay stores each frame once and rebuilds the stacks."""
    image_max: float | None = None
    """The value of a full pixel, 1 or 255, if the observation is an image of floats."""

    @property
    def image(self) -> bool:
        """Whether the observation is an image: three axes, of uint8 or with ``image_max``."""
        of_pixels = self.obs_dtype == "uint8" or self.image_max is not None
        return of_pixels and len(self.obs_shape) == 3

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Shape of the part of an observation that the replay keeps."""
        return self.obs_shape if self.frame_stack == 1 else self.obs_shape[1:]

    @property
    def action_shape(self) -> tuple[int, ...]:
        return () if self.discrete else (self.action_dim,)

    @property
    def action_dtype(self) -> str:
        return "int64" if self.discrete else "float32"

    @property
    def columns(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of each replay column, by RLlib's column names.

        ``obs`` is one frame if observations are stacks of frames.

        ``action_dist_inputs`` are the parameters of ``mu``: the Gaussian's mean, or the logits.
        """
        return {
            "obs": (self.frame_shape, np.dtype(self.obs_dtype)),
            "actions": (self.action_shape, np.dtype(self.action_dtype)),
            "rewards": ((), np.dtype("float32")),
            "terminateds": ((), np.dtype("bool")),
            "action_dist_inputs": ((self.action_dim,), np.dtype("float32")),
        }


class LoggedMu(NamedTuple):
    """The policy ``mu`` that chose logged continuous actions."""

    std: float
    """Its standard deviation."""
    clipped: bool
    """Whether the environment executed its samples clipped to [-1, 1]."""
