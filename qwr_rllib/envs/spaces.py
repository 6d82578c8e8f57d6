"""Conversion of an environment's spaces into a :class:`Spec`. Does not import Ray."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import FlattenObservation

from qwr_rllib.specs import Spec

FLATTENED = (
    gym.spaces.Dict,
    gym.spaces.Tuple,
    gym.spaces.Discrete,
    gym.spaces.MultiBinary,
    gym.spaces.MultiDiscrete,
)
"""Observation spaces that are flattened to one vector: parts in order, discrete parts one-hot."""


def is_flattened(space: gym.Space) -> bool:
    """Returns whether :func:`fitted` flattens observations of a space to one vector."""
    return isinstance(space, FLATTENED) and space.is_np_flattenable


def fitted(env: Any) -> Any:
    """Returns the environment with observations that QWR accepts, see :data:`FLATTENED`.

    Every environment of an algorithm passes through here: for collection, evaluation, recording.
    """
    # RLlib's own preprocessors also flatten, but raise on a value outside the space.
    if isinstance(env, gym.Env) and is_flattened(env.observation_space):
        return FlattenObservation(env)
    return env


def one_line(space: gym.Space) -> str:
    """Returns a space as one line; by default, bounds of many dimensions take several lines."""
    return " ".join(str(space).split())


def spec_of(observation_space: gym.Space, action_space: gym.Space, frame_stack: int = 1) -> Spec:
    """Returns the :class:`Spec` of an environment's spaces.

    Raises:
        ValueError: for spaces that QWR does not support, naming them and a remedy.
    """
    if not isinstance(observation_space, gym.spaces.Box):
        hint = "wrap the environment in gymnasium.wrappers.FlattenObservation"
        if not observation_space.is_np_flattenable:
            hint = "gymnasium.wrappers.TransformObservation can make it one"
        raise ValueError(
            f"QWR needs a Box observation space, got {one_line(observation_space)}; {hint}"
        )
    dtype = observation_space.dtype
    assert dtype is not None
    obs_dtype = "uint8" if dtype == np.uint8 else "float32"
    shape = observation_space.shape
    if frame_stack > 1 and (len(shape) < 2 or shape[0] != frame_stack):
        raise ValueError(
            f"frame_stack must be the first of an observation's axes, got {frame_stack} for "
            f"observations of shape {shape}"
        )
    discrete = isinstance(action_space, gym.spaces.Discrete)
    if isinstance(action_space, gym.spaces.Discrete):
        if action_space.start != 0:
            raise ValueError(
                f"QWR needs discrete actions that start at 0, got {one_line(action_space)}; "
                "gymnasium.wrappers.TransformAction can shift them"
            )
        action_dim = int(action_space.n)
    elif isinstance(action_space, gym.spaces.Box):
        _check_box(action_space)
        action_dim = int(np.prod(action_space.shape))
    else:
        hint = ""
        if isinstance(action_space, (gym.spaces.MultiDiscrete, gym.spaces.MultiBinary)):
            hint = "; gymnasium.wrappers.TransformAction can number the combinations as a Discrete"
        elif isinstance(action_space, (gym.spaces.Dict, gym.spaces.Tuple)):
            hint = (
                "; gymnasium.wrappers.TransformAction with gymnasium.spaces.flatten_space and "
                "unflatten makes boxes one Box"
            )
        raise ValueError(
            f"QWR needs a Box or Discrete action space, got {one_line(action_space)}{hint}"
        )
    return Spec(shape, obs_dtype, action_dim, discrete, frame_stack, _image_max(observation_space))


def _image_max(space: gym.spaces.Box) -> float | None:
    """Returns the value of a full pixel if a space has images, not of bytes; else ``None``."""
    if len(space.shape) == 3 and space.dtype != np.uint8 and (space.low == 0).all():
        for full in (1.0, 255.0):
            if (space.high == full).all():
                return full
    return None


def _check_box(space: gym.spaces.Box) -> None:
    """Refuses a Box for which some of the policy's actions would lie outside.

    If all dimensions have bounds, the policy's [-1, 1] is scaled to the bounds and clipped there.
    If none has bounds, the environment gets what the policy samples.
    """

    def dimension(which: np.ndarray) -> str:
        index = tuple(map(int, np.argwhere(which)[0])) if space.shape else ()
        where = index[0] if len(index) == 1 else index
        return f"dimension {where} is in [{space.low[index]}, {space.high[index]}]"

    if space.dtype not in (np.float32, np.float64):
        kind = "integers" if np.issubdtype(space.dtype, np.integer) else space.dtype
        raise ValueError(
            f"QWR needs float32 or float64 actions, got {kind} in {one_line(space)}: "
            f"{dimension(np.ones(space.shape, bool))}; gymnasium.wrappers.TransformAction can "
            "round or convert those of a float Box"
        )
    with np.errstate(over="ignore"):
        bounded = np.isfinite(space.high - space.low)
    unbounded = np.isneginf(space.low) & np.isposinf(space.high)
    if not bounded.all() and not unbounded.all():
        raise ValueError(
            f"QWR needs actions with finite bounds in all dimensions or with none at all, got "
            f"{one_line(space)}: {dimension(~bounded)}; gymnasium.wrappers.ClipAction takes any "
            "action and clips it"
        )


def check_actions(action_space: gym.Space, config: Any) -> None:
    """Refuses settings with which actions would leave their space, or do not fit it.

    Args:
        action_space: one that :func:`spec_of` supports.
        config: a :class:`~qwr_rllib.algorithms.qwr.QWRConfig` or its dict.

    Raises:
        ValueError: naming the settings and what to set.
    """
    bounded = isinstance(action_space, gym.spaces.Box) and action_space.is_bounded()
    if bounded and not (config["normalize_actions"] or config["clip_actions"]):
        raise ValueError(
            "normalize_actions or clip_actions must be true: with neither, actions would leave the "
            f"bounds of {one_line(action_space)}"
        )
    if isinstance(action_space, gym.spaces.Box) and not (bounded and config["normalize_actions"]):
        for name, plain in (("samples_from", "mu"), ("sample_ascent", 0)):
            if (value := config.get(name, plain)) != plain:  # configs of before lack both
                raise ValueError(
                    f"{name} must be {plain!r}, got {value!r}: otherwise actions are clipped "
                    "to [-1, 1], which is the action range only if actions have bounds and "
                    "normalize_actions is true"
                )
