"""``rllib evaluate``: episodes of a checkpoint's policy, without a Ray cluster."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import logging
import math
import os
import pickle
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import rich.progress
import torch
from gymnasium.wrappers import RecordVideo
from packaging.version import Version
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.connectors.env_to_module import EnvToModulePipeline
from ray.rllib.connectors.module_to_env import ModuleToEnvPipeline
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.policy.policy import Policy
from ray.rllib.utils.checkpoints import get_checkpoint_info
from ray.rllib.utils.policy import local_policy_inference
from rich.console import Console
from rich.table import Table

from qwr_rllib import AWAC, AWR, QWR, QWRPlus
from qwr_rllib.algorithms.checkpoint import finish
from qwr_rllib.algorithms.policy import QWRTorchPolicy
from qwr_rllib.cli.errors import ConfigError, require_folder, require_folder_of
from qwr_rllib.cli.experiments import make_env, read_file
from qwr_rllib.deployment import read

NEW_STACK = Version("2.0")
"""RLlib's first checkpoint version for algorithms on the new API stack."""
DEFAULT_EPISODES = 10
FILE_HINT = "give an environment of your own by --file, the training's YAML or Python file"
RENDER_HINT = (
    "an environment of your own must take render_mode='rgb_array' (or read it from the mapping "
    "that RLlib gives to its constructor), keep it as render_mode and return pictures from render()"
)


@dataclass(frozen=True)
class EpisodeResult:
    """An episode, from its reset to its end."""

    episode: int
    seed: int
    episode_return: float
    length: int
    complete: bool = True
    """False if the limit of steps cut it."""


class OldStackAgent:
    """A ``Policy`` with its connectors, which preprocess, filter, unsquash and clip."""

    def __init__(self, checkpoint: Path) -> None:
        policies = Policy.from_checkpoint(str(checkpoint))
        self._policy: Policy = policies["default_policy"]
        space = self._policy.observation_space
        self.observation_space = getattr(space, "original_space", space)
        self.action_space = self._policy.action_space

    def reset(self, observation: Any) -> None:
        self._policy.agent_connectors.reset("env")
        self._observation = observation

    def act(self, explore: bool = False) -> Any:
        [(action, *_)] = local_policy_inference(
            self._policy, "env", "agent", self._observation, explore=explore
        )
        return action

    def dist_inputs(self, observation: Any) -> np.ndarray | None:
        """Returns the action distribution's parameters; ``None`` for other packages' policies."""
        if isinstance(self._policy, QWRTorchPolicy):
            return self._policy.dist_inputs(np.asarray(observation)[None])[0]
        return None

    def observe(self, observation: Any, reward: float, terminated: bool, truncated: bool) -> None:
        self._observation = observation


class NewStackAgent:
    """An ``RLModule`` between its connectors."""

    def __init__(self, checkpoint: Path) -> None:
        runner = checkpoint / "env_runner"
        modules = checkpoint / "learner_group" / "learner" / "rl_module"
        self._to_module = EnvToModulePipeline.from_checkpoint(runner / "env_to_module_connector")
        self._module = RLModule.from_checkpoint(modules / "default_policy")
        self._to_env = ModuleToEnvPipeline.from_checkpoint(runner / "module_to_env_connector")
        self.observation_space = self._to_module.input_observation_space
        self.action_space = self._to_module.input_action_space

    def reset(self, observation: Any) -> None:
        self._episode = SingleAgentEpisode(observations=[observation])

    def act(self, explore: bool = False) -> Any:
        shared: dict[str, Any] = {
            "episodes": [self._episode],
            "rl_module": self._module,
            "explore": explore,
            "shared_data": {},
        }
        module = self._module
        forward = module.forward_exploration if explore else module.forward_inference
        output = forward(self._to_module(batch={}, **shared))
        output = self._to_env(batch=output, **shared)
        self._action = output.pop(Columns.ACTIONS)[0]
        self._extra = {key: values[0] for key, values in output.items()}
        return self._extra.pop(Columns.ACTIONS_FOR_ENV, self._action)

    def dist_inputs(self, observation: Any) -> None:
        """Returns ``None``: another algorithm's distribution is not of this package's kind."""

    def observe(self, observation: Any, reward: float, terminated: bool, truncated: bool) -> None:
        self._episode.add_env_step(
            observation,
            self._action,
            reward,
            terminated=terminated,
            truncated=truncated,
            extra_model_outputs=self._extra,
        )


class ExportedAgent:
    """A policy that was exported as safetensors."""

    def __init__(self, path: Path) -> None:
        self._policy = read(path)
        self.about = self._policy.about
        shapes = [tuple(self.about[name]["shape"]) for name in ("observation", "action")]
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, shapes[0])
        actions = self.about["action"].get("n")
        self.action_space = (
            gym.spaces.Discrete(actions) if actions else gym.spaces.Box(-np.inf, np.inf, shapes[1])
        )

    def reset(self, observation: Any) -> None:
        self._observation = observation

    def act(self, explore: bool = False) -> Any:
        with torch.inference_mode():
            params = self._policy.params(_batch(self._observation))
            actor = self._policy.networks.actor
            actions = actor.sample(params) if explore else actor.mode(params)
            return self._policy.to_env(actions).numpy()[0]

    def dist_inputs(self, observation: Any) -> np.ndarray:
        """Returns the action distribution's parameters."""
        with torch.inference_mode():
            return self._policy.networks.dist_inputs(_batch(observation)).numpy()[0]

    def observe(self, observation: Any, reward: float, terminated: bool, truncated: bool) -> None:
        self._observation = observation


def _batch(observation: Any) -> torch.Tensor:
    return torch.as_tensor(np.asarray(observation)[np.newaxis])


Agent = OldStackAgent | NewStackAgent | ExportedAgent


def find_checkpoint(path: Path) -> Path:
    """Returns the checkpoint at ``path``, or the last one of the Tune trial or experiment there.

    Raises:
        ConfigError: There is no checkpoint.
    """
    require_folder(path, "checkpoint")
    path = path.resolve()
    finish(path)
    if (path / "rllib_checkpoint.json").exists():
        return path
    inside = [
        marker.parent
        for pattern in ("checkpoint_*", "*/checkpoint_*")
        for marker in path.glob(f"{pattern}/rllib_checkpoint.json")
    ]
    if not inside:
        raise ConfigError(f"{path} is neither an RLlib checkpoint nor has any in it")
    return max(inside, key=lambda found: (found.parent.stat().st_mtime, found.name))


def read_algorithm(checkpoint: Path) -> tuple[type[Algorithm], AlgorithmConfig, dict[str, Any]]:
    """Reads a checkpoint's algorithm, its config and its whole state.

    Raises:
        ConfigError: The checkpoint is truncated, of an unknown kind, or of several agents.
    """
    try:
        info = get_checkpoint_info(str(checkpoint))
        new_stack = info["checkpoint_version"] >= NEW_STACK
        name = "class_and_ctor_args.pkl" if new_stack else "algorithm_state.pkl"
        with open(checkpoint / name, "rb") as file:
            state = pickle.load(file)
        algorithm = state["class"] if new_stack else state["algorithm_class"]
        config = state["ctor_args_and_kwargs"][0][0] if new_stack else state["config"]
        if isinstance(config, dict):
            config = AlgorithmConfig.from_state(config)
    except Exception as error:
        raise _unreadable(checkpoint, error) from error
    if config.is_multi_agent:
        raise ConfigError(f"{checkpoint} is of several agents, which is not supported")
    return algorithm, config, state


def load_exported(path: Path) -> tuple[type[Algorithm], AlgorithmConfig, Agent]:
    """Loads the algorithm, the config of its environment, and the policy of a file.

    Raises:
        ConfigError: The file is no policy, or is incomplete.
    """
    try:
        agent = ExportedAgent(path)
    except ValueError as error:
        raise ConfigError(error) from error
    about = agent.about
    algorithm = {each.__name__: each for each in (QWR, QWRPlus, AWR, AWAC)}[about["algorithm"]]
    config = algorithm.get_default_config()
    config.environment(about["env"], env_config=about["env_config"])
    return algorithm, config.get_evaluation_config_object() or config, agent


def load_checkpoint(checkpoint: Path) -> tuple[type[Algorithm], AlgorithmConfig, Agent]:
    """Loads a checkpoint's algorithm, its evaluation config, and the policy.

    Raises:
        ConfigError: see :func:`read_algorithm`.
    """
    algorithm, config, state = read_algorithm(checkpoint)
    try:
        config = config.get_evaluation_config_object() or config.copy(copy_frozen=False)
        new_stack = "ctor_args_and_kwargs" in state
        agent = NewStackAgent(checkpoint) if new_stack else OldStackAgent(checkpoint)
    except Exception as error:
        raise _unreadable(checkpoint, error) from error
    return algorithm, config, agent


def _unreadable(checkpoint: Path, error: Exception) -> ConfigError:
    return ConfigError(f"cannot load checkpoint {checkpoint}: {type(error).__name__}: {error}")


def play(
    agent: Agent,
    env: gym.Env[Any, Any],
    seed: int,
    episodes: int | None,
    steps: int | None,
    on_step: Callable[[int, int], None] = lambda episode, step: None,
) -> Iterator[EpisodeResult]:
    """Plays until a number of episodes or steps is reached, and yields each episode's result.

    Args:
        agent: The agent that plays.
        env: The environment.
        seed: Seed of the first episode; each further episode adds 1.
        episodes: Maximum number of episodes; ``None`` for no limit.
        steps: Maximum number of steps over all episodes: the last episode is cut there. ``None``
            for no limit.
        on_step: Called after each step with the episode, from 0, and its number of steps so far.
    """
    left = math.inf if steps is None else steps
    for episode in itertools.count() if episodes is None else range(episodes):
        if not left:
            return
        observation, _ = env.reset(seed=seed + episode)
        agent.reset(observation)
        total, length, over = 0.0, 0, False
        while not over and left:
            observation, reward, terminated, truncated, _ = env.step(agent.act())
            agent.observe(observation, float(reward), terminated, truncated)
            total += float(reward)
            length += 1
            left -= 1
            over = terminated or truncated
            on_step(episode, length)
        yield EpisodeResult(episode, seed + episode, total, length, over)


def played(
    console: Console,
    agent: Agent,
    env: gym.Env[Any, Any],
    seed: int,
    episodes: int | None,
    steps: int | None,
) -> list[EpisodeResult]:
    """Returns the results of :func:`play`; shows a progress bar on a terminal."""
    results: list[EpisodeResult] = []
    bar = rich.progress.Progress(
        *rich.progress.Progress.get_default_columns(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=episodes or steps)

        def on_step(episode: int, step: int) -> None:
            bar.update(
                task,
                description=f"episode {episode + 1}, step {step}",
                completed=None if episodes else sum(each.length for each in results) + step,
            )

        for result in play(agent, env, seed, episodes, steps, on_step):
            results.append(result)
            if episodes:
                bar.advance(task)
    return results


def write(path: Path, about: dict[str, Any], results: list[EpisodeResult]) -> None:
    """Writes the episodes as CSV if the suffix is ``.csv``, else as JSON with ``about``."""
    rows = [asdict(result) for result in results]
    with open(path, "w", newline="") as file:
        if path.suffix == ".csv":
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        else:
            json.dump({**about, "episodes": rows}, file, indent=2)


def filmed(env: gym.Env[Any, Any], folder: Path) -> gym.Env[Any, Any]:
    """Wraps an environment so that every episode is written as an MP4.

    Raises:
        ConfigError: The environment cannot be rendered to pictures, or moviepy is missing.
    """
    try:
        import moviepy  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError("--video needs the package moviepy: pip install moviepy") from error
    try:
        env.reset(seed=0)
        env.render()
        return RecordVideo(env, str(folder), episode_trigger=lambda _: True, disable_logger=True)
    except Exception as error:
        raise ConfigError(f"--video: {env} cannot be rendered: {error}; {RENDER_HINT}") from error


def opened(
    console: Console,
    checkpoint: Path,
    algo: str | None,
    env: str | None,
    modules_file: Path | None,
    render: bool = False,
) -> tuple[Path, type[Algorithm], AlgorithmConfig, Agent, gym.Env[Any, Any]]:
    """Loads the checkpoint at a path; makes its environment, or ``env`` with the same spaces.

    With ``render``, the environment renders pictures.

    Raises:
        ConfigError: There is no checkpoint, it cannot be loaded, or the environment does not fit.
    """
    for name in ("ray", "ray.rllib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Else the policy would be built on a GPU.
    exported = checkpoint.suffix == ".safetensors"
    found = checkpoint if exported else find_checkpoint(checkpoint)
    if modules_file:
        read_file(modules_file)
    if exported:
        algorithm, config, agent = load_exported(found)
    else:
        if found != checkpoint.resolve():
            console.print(f"Last checkpoint: {found}", soft_wrap=True, highlight=False)
        try:
            algorithm, config, agent = load_checkpoint(found)
        except ConfigError as error:
            if modules_file or not isinstance(error.__cause__, ImportError):
                raise
            raise ConfigError(f"{error.message}; {FILE_HINT}") from error
    if algo and algo.rpartition(":")[2] != algorithm.__name__:
        raise ConfigError(f"{found} is of {algorithm.__name__}, not {algo}")
    if env:
        config.environment(env)
    if config.env is None:
        raise ConfigError(f"{found} names no environment: give --env")
    if render:
        config.env_config = config.env_config | {"render_mode": "rgb_array"}
        if "DISPLAY" not in os.environ:
            os.environ.setdefault("MUJOCO_GL", "egl")
        os.environ.setdefault("SDL_AUDIODRIVER", "dummy")  # pygame opens an audio device
    try:
        environment = make_env(algorithm, config)
    except ConfigError as error:
        hints = [] if modules_file else [FILE_HINT]
        hints += [f"--video: {RENDER_HINT}"] if render else []
        raise ConfigError("; ".join([error.message, *hints])) from error
    for kind in ("observation_space", "action_space"):
        learned, given = getattr(agent, kind), getattr(environment, kind)
        if _shape(learned) != _shape(given):
            environment.close()
            raise ConfigError(f"{found} has {kind} {learned}, {config.env} has {given}")
    return found, algorithm, config, agent, environment


def evaluate(
    checkpoint: Path,
    episodes: int | None,
    steps: int | None,
    out: Path | None,
    video: Path | None,
    algo: str | None,
    env: str | None,
    seed: int,
    modules_file: Path | None,
) -> None:
    """Runs ``rllib evaluate``."""
    if out and out.suffix not in (".json", ".csv"):
        raise ConfigError(f"--out: expected a .json or .csv file, got {out}")
    require_folder_of(out)
    console = Console()
    found, algorithm, config, agent, made = opened(
        console, checkpoint, algo, env, modules_file, render=video is not None
    )
    with contextlib.closing(made):
        environment = filmed(made, video) if video else made
        limit = episodes or (None if steps else DEFAULT_EPISODES)
        results = played(console, agent, environment, seed, limit, steps)
        environment.close()  # writes the last episode's video

    # The return of a cut episode is not known.
    counted = [result for result in results if result.complete] or results
    returns = [result.episode_return for result in counted]
    lengths = [result.length for result in counted]
    table = Table("episode", "return", "length", box=None)
    for column in table.columns:
        column.justify = "right"
    for result in results:
        length = str(result.length) if result.complete else f"cut at {result.length}"
        table.add_row(str(result.episode), f"{result.episode_return:.2f}", length)
    table.add_row("mean", f"{np.mean(returns):.2f}", f"{np.mean(lengths):.1f}", style="bold")
    table.add_row("std", f"{np.std(returns):.2f}", f"{np.std(lengths):.1f}")
    console.print(f"{algorithm.__name__} on {config.env}", highlight=False)
    console.print(table)
    if out:
        about = {
            "checkpoint": str(found),
            "algorithm": algorithm.__name__,
            "env": str(config.env),
            "return_mean": float(np.mean(returns)),
            "return_std": float(np.std(returns)),
        }
        write(out, about, results)


def _shape(space: gym.Space[Any]) -> tuple[Any, ...]:
    return type(space), space.shape, getattr(space, "n", None)
