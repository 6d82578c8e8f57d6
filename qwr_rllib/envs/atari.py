"""Atari games in the Atari-100k protocol, as RLlib environment ``Atari100k``.

Select it by ``env: Atari100k`` and ``env_config: {game: pong}``. The protocol (Kaiser et al., 2020,
https://arxiv.org/abs/1903.00374, as in later work): frame skip 4 with the maximum of the last
two frames, 84 x 84 grey, 4 frames stacked, no sticky actions, up to 30 no-ops at a reset, the
minimal action set. In training, an episode has at most 2000 interactions. The loss of a life
counts as termination, although the game continues and its whole return is reported. In evaluation,
an episode has at most 27,000 interactions and lives do not count.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation, TimeLimit

from qwr_rllib.validation import (
    ANYTHING,
    BOOLEAN,
    Rule,
    check_settings,
    did_you_mean,
    from_mapping,
    integer,
    is_number,
    required,
    setting,
)

ATARI = "Atari100k"
LIFE_LOST = "life_lost"
"""Key of ``info``: true if a step ends the learner's trajectory but not the episode."""


def require_observation_shape(env: gym.Env, worker: int) -> gym.Env:
    """Makes an environment refuse observations whose shape differs from its space.

    Without this, a wrong shape would cause an unclear error later, in some tensor operation.

    Replaces the methods of ``env`` itself: behind a wrapper, callbacks would not find the
    environment's own attributes.

    Args:
        env: with a Box observation space; others are returned unchanged.
        worker: index of the rollout worker, for the message.

    Returns:
        ``env``, whose ``reset`` and ``step`` now raise a ``ValueError`` that names the environment,
        the worker, the shape and the expected one.
    """
    space = getattr(env, "observation_space", None)
    if not isinstance(env, gym.Env) or not isinstance(space, gym.spaces.Box):
        return env
    name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__

    def checked(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            # RLlib refuses results that are not tuples.
            shape = np.shape(result[0]) if isinstance(result, tuple) else space.shape
            if shape != space.shape:
                raise ValueError(
                    f"environment {name} of rollout worker {worker}: {method.__name__} returned "
                    f"an observation of shape {shape}, its observation_space has {space.shape}"
                )
            return result

        return call

    env.reset, env.step = checked(env.reset), checked(env.step)  # type: ignore[method-assign]
    return env


def _is_probability(value: Any) -> bool:
    return is_number(value) and 0 <= value < 1


@dataclass(frozen=True)
class AtariConfig:
    """The keys of ``env_config``, read by :func:`~qwr_rllib.validation.from_mapping`.

    Raises:
        ValueError: for an impossible value, naming the key, the value and what is allowed.
    """

    game: str = required(Rule("a name of ALE's", lambda value: isinstance(value, str)))
    """ALE's name of the game: ``pong``, ``ms_pacman``."""
    frame_skip: int = setting(4, integer(1))
    """Frames per interaction."""
    sticky_actions: float = setting(0.0, Rule("a number in [0, 1)", _is_probability))
    """Probability that the game repeats the last action instead of the new one."""
    noop_max: int = setting(30, integer(0))
    """No-ops at a reset are uniform in 1..noop_max; 0 makes none."""
    full_action_space: bool = setting(False, BOOLEAN)
    """Whether to use all 18 actions instead of the game's minimal set."""
    screen_size: int = setting(84, integer(1))
    """Width and height in pixels."""
    frame_stack: int = setting(4, integer(1))
    """Frames per observation."""
    terminal_on_life_loss: bool = setting(True, BOOLEAN)
    """Whether the loss of a life in training is a termination for the learner."""
    max_episode_steps: int = setting(2000, integer(1))
    """Maximum number of interactions of a training episode."""
    evaluation: bool = setting(False, BOOLEAN)
    """Whether this is an evaluation environment; the algorithm sets it."""
    evaluation_max_episode_steps: int = setting(27_000, integer(1))
    """Maximum number of interactions of an evaluation episode."""
    render_mode: str | None = setting(None, ANYTHING)  # Gymnasium checks it
    """Gymnasium's render mode."""

    def __post_init__(self) -> None:
        check_settings(self, "env_config.")


def atari_config(env_config: Mapping[str, Any]) -> AtariConfig:
    """Returns the checked ``env_config``.

    Raises:
        ValueError: naming the key, and the closest known one if the key is unknown.
    """
    return from_mapping(AtariConfig, env_config, "env_config")


def frame_stack_of(config: Any) -> int:
    """Reads the number of frames of an observation from a ``QWRConfig`` or its dict."""
    if config["frame_stack"] != "auto":
        return config["frame_stack"]
    return atari_config(config["env_config"]).frame_stack if config["env"] == ATARI else 1


class LifeLoss(gym.Wrapper):
    """A wrapper that marks the loss of a life in ``info``; the game continues."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        self._lives = info["lives"]
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        lost = info["lives"] < self._lives
        self._lives = info["lives"]
        return observation, reward, terminated, truncated, info | {LIFE_LOST: lost}


def make_atari(env_config: Mapping[str, Any]) -> gym.Env:
    """Makes an Atari game in the Atari-100k protocol.

    Args:
        env_config: the fields of :class:`AtariConfig`.

    Raises:
        ValueError: for an unknown game, naming the closest ones, or another impossible setting.
        ModuleNotFoundError: if ale-py or OpenCV is missing, with the command to install it.
    """
    config = atari_config(env_config)
    try:
        import ale_py  # registers the games
        import cv2  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"Atari games need the package {error.name}: "
            "pip install 'gymnasium[atari]' opencv-python-headless",
            name=error.name,
        ) from error
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner from every worker
    ids = {
        spec.kwargs["game"]: name
        for name, spec in gym.registry.items()
        if spec.namespace == "ALE" and spec.version == 5
    }
    if config.game not in ids:
        raise ValueError(
            f"env_config.game must be the name of an Atari game, got {config.game!r}"
            f"{did_you_mean(str(config.game), ids, 3)}"
        )
    env = gym.make(
        ids[config.game],
        frameskip=1,  # AtariPreprocessing skips frames
        repeat_action_probability=float(config.sticky_actions),
        full_action_space=config.full_action_space,
        render_mode=config.render_mode,
    )
    env = AtariPreprocessing(
        env,
        noop_max=config.noop_max,
        frame_skip=config.frame_skip,
        screen_size=config.screen_size,
    )
    if config.terminal_on_life_loss and not config.evaluation:
        env = LifeLoss(env)
    limit = config.max_episode_steps
    env = TimeLimit(env, config.evaluation_max_episode_steps if config.evaluation else limit)
    return FrameStackObservation(env, config.frame_stack)
