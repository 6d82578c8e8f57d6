"""``rllib check``: whether an environment is fit for QWR, and what QWR will do with it.

Starts no Ray: makes the environment as a rollout worker does, runs Gymnasium's checker on it and
plays it with random actions.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import tree
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import TimeLimit
from ray.rllib.algorithms.algorithm import Algorithm
from rich.console import Console
from rich.table import Table

from qwr_rllib.algorithms.qwr import QWRConfig
from qwr_rllib.cli.errors import ConfigError
from qwr_rllib.cli.experiments import load_user_modules, make_env, read_file, resolve_algorithm
from qwr_rllib.cli.user_modules import UserModules
from qwr_rllib.envs.atari import frame_stack_of, require_observation_shape
from qwr_rllib.envs.spaces import fitted, is_flattened, one_line, spec_of
from qwr_rllib.learning.config import steps_per_result
from qwr_rllib.learning.networks import IMAGE_NETWORKS, channels_first, networks_of
from qwr_rllib.replay.layout import memory_bytes
from qwr_rllib.specs import Spec

FAILED = 1
MOST_SECONDS = 5.0  # of play
REWARDS = (0.01, 100.0)
"""Range of mean absolute rewards that the critic's initial values suit."""
OF_NO_CONCERN = (
    "different from the unwrapped version",  # training wraps it
    "symmetric and normalized space",  # QWR scales actions
    "probably too low",  # QWR normalises observations
    "probably too high",
)
"""Warnings of Gymnasium's checker that do not matter here."""


@dataclass
class Findings:
    """Errors and remarks about an environment."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Played:
    """Observations of an environment under random actions."""

    rewards: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    """Lengths of the episodes that ended."""
    returns: list[float] = field(default_factory=list)
    running: int = 0
    """Steps of the episode that has not ended."""
    seconds: float = 0.0


def check(
    env: str,
    algo: str,
    config: dict[str, Any],
    modules_file: Path | None,
    steps: int,
    seed: int,
) -> int:
    """Checks an environment and prints the findings.

    Returns:
        The exit code: 0 if QWR can train on the environment, else 1.

    Raises:
        ConfigError: The configuration is impossible, or there is no such environment.
    """
    for name in ("ray", "ray.rllib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if modules_file:
        read_file(modules_file)
    else:
        load_user_modules(UserModules((os.getcwd(),)))
    settings = resolve_algorithm(algo, "--algo").get_default_config()
    assert isinstance(settings, QWRConfig)
    try:
        settings.update_from_dict(config | {"env": env}).validate()
    except ValueError as error:
        raise ConfigError(f"--config: {error}") from error

    console = Console()
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    findings = Findings()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.closing(make_env(Algorithm, settings)) as made:
            _ask_gymnasium(made, findings)
            if isinstance(made, gym.Env):
                _describe_spaces(made, settings, findings, table)
                played = _play(made, settings, steps, seed, findings)
                _describe_play(made, settings, played, findings, table)
    console.print(f"{algo} on {env}", highlight=False)
    console.print(table, highlight=False)
    for kind, found in (("Problem", findings.problems), ("Note", findings.notes)):
        for text in dict.fromkeys(found):
            console.print(f"{kind}: {text}", highlight=False, markup=False)
    if findings.problems:
        console.print(f"{algo} cannot be trained on it as it is.", highlight=False)
        return FAILED
    console.print("No problem found.", highlight=False)
    return 0


def _ask_gymnasium(env: Any, findings: Findings) -> None:
    """Runs Gymnasium's checker: its error becomes a problem, its warnings become notes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            check_env(env, skip_render_check=True, skip_close_check=True)
        except Exception as error:
            findings.problems.append(f"Gymnasium's checker: {_text(error)}")
    for warning in caught:
        text = re.sub(r"\x1b\[\d+m|WARN: ", "", _text(warning.message))
        if not any(known in text for known in OF_NO_CONCERN):
            findings.notes.append(f"Gymnasium's checker: {text}")


def _describe_spaces(
    env: gym.Env[Any, Any], config: QWRConfig, findings: Findings, table: Table
) -> None:
    """Describes how QWR uses observations and actions."""
    table.add_row("observations", one_line(env.observation_space))
    table.add_row("actions", one_line(env.action_space))
    flattened = is_flattened(env.observation_space)
    if flattened and any(
        part.shape and len(part.shape) == 3 for part in _parts(env.observation_space)
    ):
        findings.notes.append(
            "the image in the observations is flattened with the other parts: it gets no "
            "convolutions; gymnasium.wrappers.FilterObservation keeps a part alone"
        )
    observation_space = fitted(env).observation_space
    try:
        config.check_spaces(observation_space, env.action_space)
    except ValueError as error:
        findings.problems.append(_text(error))
        return
    spec = spec_of(observation_space, env.action_space, frame_stack_of(config))
    table.add_row("QWR sees", _observation(spec, config, flattened))
    table.add_row("QWR acts", _action(spec, env.action_space, config))
    model = config.model
    layers = model["fcnet_hiddens"]
    if spec.image:
        filters, hiddens = IMAGE_NETWORKS[config.image_network]
        convolutions = [list(each) for each in model["conv_filters"] or filters]
        layers = f"convolutions {convolutions}, then {model['post_fcnet_hiddens'] or list(hiddens)}"
    count = sum(each.numel() for each in networks_of(spec, config).parameters())
    table.add_row("networks", f"{layers} for actor and critic, {count} parameters")
    table.add_row(
        "replay",
        f"{config.replay_capacity} steps, {memory_bytes(spec, config.replay_capacity) / 1e6:.1f} "
        "MB, once more beside the learner",
    )


def _parts(space: gym.Space[Any]) -> list[gym.Space[Any]]:
    if isinstance(space, gym.spaces.Dict | gym.spaces.Tuple):
        parts = space.values() if isinstance(space, gym.spaces.Dict) else space
        return [each for part in parts for each in _parts(part)]
    return [space]


def _observation(spec: Spec, config: QWRConfig, flattened: bool) -> str:
    stack = f", {spec.frame_stack} frames of which are kept once" if spec.frame_stack > 1 else ""
    if spec.image:
        channels, height, width = channels_first(spec.obs_shape)
        full = spec.image_max or 255
        scaled = f"scaled from [0, {full:g}] to [0, 1]" if full > 1 else "in [0, 1]"
        of = f"{height} x {width} with {_count(channels, 'channel')}"
        return f"images of {of}, {scaled}{stack}"
    how = "flattened, discrete parts one-hot, " if flattened else ""
    normalised = "normalised by their running mean and variance"
    if not config.normalize_observations:
        normalised = "as they are"
    of = _count(int(np.prod(spec.obs_shape)), "number")
    return f"vectors of {of}, {how}{normalised}{stack}"


def _action(spec: Spec, space: gym.Space[Any], config: QWRConfig) -> str:
    if spec.discrete:
        few = config.n_action_samples
        if few == "all" or few >= spec.action_dim:
            return f"by {spec.action_dim} discrete actions, all of them weighed at each state"
        return f"by {spec.action_dim} discrete actions, {few} of them sampled at each state"
    assert isinstance(space, gym.spaces.Box)
    how = "which the environment gets as they are sampled: they have no bounds"
    if space.is_bounded():
        how = "scaled from [-1, 1] to the bounds and clipped there"
        if not config.normalize_actions:
            how = "clipped at the bounds"
    return f"by {_count(spec.action_dim, 'number')}, {how}"


def _play(
    env: gym.Env[Any, Any], config: QWRConfig, steps: int, seed: int, findings: Findings
) -> Played:
    """Plays with random actions for ``steps`` steps, at most :data:`MOST_SECONDS`."""
    played = Played()
    seen = require_observation_shape(fitted(env), 0)
    seen.action_space.seed(seed)
    stack = frame_stack_of(config)
    outside = 0
    before: Any = None
    where = "reset"
    started = time.perf_counter()

    def look(observation: Any, reward: Any = 0.0) -> None:
        nonlocal outside, before
        outside += not seen.observation_space.contains(observation)
        values = [np.asarray(each) for each in tree.flatten(observation)]
        if not all(each.dtype.kind in "biuf" for each in values):
            raise ValueError(f"the observation is of {values[0].dtype}, which is no number")
        if not all(np.isfinite(each).all() for each in values):
            raise ValueError("the observation has a NaN or infinite value")
        if np.ndim(reward) or np.asarray(reward).dtype.kind not in "biuf":
            raise ValueError(f"the reward must be a number, got {reward!r}")
        if not np.isfinite(reward):
            raise ValueError(f"the reward is {reward}")
        if stack > 1 and before is not None and not np.array_equal(observation[:-1], before[1:]):
            raise ValueError(f"the observation is not a stack of the last {stack} frames")
        before = observation

    try:
        look(seen.reset(seed=seed)[0])
        total = 0.0
        while len(played.rewards) < steps and time.perf_counter() - started < MOST_SECONDS:
            played.running += 1
            where = f"step {played.running} of episode {len(played.lengths) + 1}"
            observation, reward, terminated, truncated, _ = seen.step(seen.action_space.sample())
            look(observation, reward)
            played.rewards.append(float(reward))
            total += float(reward)
            if terminated or truncated:
                played.lengths.append(played.running)
                played.returns.append(total)
                where = f"reset after episode {len(played.lengths)}"
                before, played.running, total = None, 0, 0.0
                look(seen.reset()[0])
    except Exception as error:
        findings.problems.append(f"{where}: {type(error).__name__}: {_text(error)}")
    played.seconds = time.perf_counter() - started
    if outside:
        findings.notes.append(
            f"{outside} of {len(played.rewards) + len(played.lengths) + 1} observations are not in "
            "the observation space (its bounds or its dtype); QWR takes them all the same"
        )
    return played


def _describe_play(
    env: gym.Env[Any, Any], config: QWRConfig, played: Played, findings: Findings, table: Table
) -> None:
    """Describes the observed play and what the settings mean for it."""
    if not played.rewards:
        return
    steps, interactions = len(played.rewards), steps_per_result(config)
    limit = _time_limit(env)
    lengths = played.lengths
    if lengths:
        table.add_row(
            "episodes",
            f"{len(lengths)} with random actions, of {min(lengths)} to {max(lengths)} steps, "
            f"return {np.mean(played.returns):.2f} ± {np.std(played.returns):.2f}; an iteration of "
            f"{interactions} steps is {interactions / np.mean(lengths):.1f} episodes",
        )
    else:
        table.add_row("episodes", f"none ended within {steps} random steps")
    table.add_row("time limit", f"{limit} steps" if limit else "none")
    longest = max([*lengths, played.running])
    if not lengths and not limit:
        findings.notes.append(
            f"no episode ended within {steps} steps and there is no time limit: there may never be "
            "a return to report; gymnasium.wrappers.TimeLimit sets one"
        )
    elif max(longest, 0 if lengths else limit or 0) > interactions:
        findings.notes.append(
            f"an episode can be longer than an iteration ({interactions} steps): "
            "iterations will pass without a return"
        )
    if lengths and np.mean(lengths) < config.margin:
        findings.notes.append(
            f"episodes are shorter than margin {config.margin}: their returns end with them"
        )

    rewards = np.array(played.rewards)
    size = np.abs(rewards).mean()
    table.add_row(
        "rewards",
        f"{rewards.min():.4g} to {rewards.max():.4g}, mean {rewards.mean():.4g}"
        + (f"; clipped to ±{config.reward_clip:g}" if config.reward_clip else ""),
    )
    if rewards.min() == rewards.max():
        findings.notes.append(
            f"every reward was {rewards[0]:g}: random actions tell nothing about what is good"
        )
    elif not REWARDS[0] <= size <= REWARDS[1] and not config.reward_clip:
        findings.notes.append(
            f"rewards are of the order of {size:.1g}, where the critic begins with values made for "
            "the order of 1; gymnasium.wrappers.TransformReward scales them, reward_clip clips"
        )
    speed = steps / played.seconds
    table.add_row(
        "speed",
        f"{speed:.0f} steps/s alone; the {interactions} of an iteration take "
        f"{interactions / speed:.1f} s",
    )


def _time_limit(env: gym.Env[Any, Any]) -> int | None:
    """Returns the steps after which a wrapper or the registration truncates an episode."""
    wrapped: Any = env
    while isinstance(wrapped, gym.Wrapper):
        if isinstance(wrapped, TimeLimit):
            return wrapped._max_episode_steps
        wrapped = wrapped.env
    return env.spec.max_episode_steps if env.spec is not None else None


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _text(error: object) -> str:
    return " ".join(str(error).split())
