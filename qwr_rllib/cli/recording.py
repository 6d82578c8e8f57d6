"""``qwr record``: episodes of a checkpoint's policy as a Minari data set."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import click
import gymnasium as gym
import numpy as np
from rich.console import Console
from rich.progress import track

from qwr_rllib.cli.errors import ConfigError
from qwr_rllib.cli.evaluation import Agent, opened
from qwr_rllib.offline import MU_KEY, NO_MINARI


def record(
    checkpoint: Path,
    dataset_id: str,
    episodes: int,
    explore: bool,
    algo: str | None,
    env: str | None,
    seed: int,
    modules_file: Path | None,
) -> None:
    """Runs ``qwr record``."""
    place = _place(dataset_id)
    console = Console()
    found, algorithm, config, agent, opened_env = opened(
        console, checkpoint, algo, env, modules_file
    )
    with contextlib.closing(opened_env) as environment:
        for name in ("observation_space", "action_space"):
            space = getattr(environment, name)
            if not isinstance(space, (gym.spaces.Box, gym.spaces.Discrete)):
                raise ConfigError(f"cannot record {name} {space}: only Box and Discrete")
        played = [
            _episode(agent, environment, seed + i, explore)
            for i in track(range(episodes), "Episodes", console=console)
        ]
        name = f"{algorithm.__name__} on {config.env}"
        _write(place, dataset_id, played, environment, algorithm.__name__, f"{name}, {found.name}")
    returns = [sum(each["rewards"]) for each in played]
    steps = sum(len(each["rewards"]) for each in played)
    console.print(
        f"{name}: {episodes} episodes, {steps} steps, return {np.mean(returns):.2f} ± "
        f"{np.std(returns):.2f}",
        highlight=False,
    )
    console.print(f"Data set {dataset_id} in {place}", highlight=False, soft_wrap=True)


def _place(dataset_id: str) -> Path:
    """Returns the folder of the data set to write.

    Raises:
        ConfigError: The id is invalid or taken, or Minari is missing.
    """
    try:
        import h5py  # noqa: F401
        from minari.dataset.minari_dataset import parse_dataset_id
        from minari.storage import get_dataset_path
    except ModuleNotFoundError as error:
        raise ConfigError(NO_MINARI) from error
    try:
        parse_dataset_id(dataset_id)
    except ValueError as error:
        raise ConfigError(f"--dataset-id: {error}") from error
    place = get_dataset_path(dataset_id)
    if place.exists():
        raise ConfigError(f"--dataset-id: there is a data set {dataset_id!r} already, in {place}")
    return place


def _episode(agent: Agent, env: gym.Env[Any, Any], seed: int, explore: bool) -> dict[str, Any]:
    """Plays an episode and returns the arguments of Minari's ``EpisodeBuffer``."""
    observation, _ = env.reset(seed=seed)
    agent.reset(observation)
    observations, mu = [observation], [agent.dist_inputs(observation)]
    actions, rewards, terminations, truncations = [], [], [], []
    over = False
    while not over:
        action = agent.act(explore)
        observation, reward, terminated, truncated, _ = env.step(action)
        agent.observe(observation, float(reward), terminated, truncated)
        observations.append(observation)
        mu.append(agent.dist_inputs(observation))
        actions.append(action)
        rewards.append(float(reward))
        terminations.append(bool(terminated))
        truncations.append(bool(truncated))
        over = terminated or truncated
    return {
        "seed": seed,
        "observations": np.stack(observations),
        "actions": np.stack(actions),
        "rewards": rewards,
        "terminations": terminations,
        "truncations": truncations,
        "infos": {} if mu[0] is None else {MU_KEY: np.array(mu)},
    }


def _write(
    place: Path,
    dataset_id: str,
    played: list[dict[str, Any]],
    env: gym.Env[Any, Any],
    algorithm: str,
    description: str,
) -> None:
    import minari
    from minari.data_collector import EpisodeBuffer

    buffers = [EpisodeBuffer(id=i, **each) for i, each in enumerate(played)]
    try:
        minari.create_dataset_from_buffers(
            dataset_id,
            buffers,
            env=env,
            algorithm_name=algorithm,
            description=description,
            data_format="hdf5",
            jpeg_encoding=False,  # JPEG is lossy
        )
    except BaseException as error:
        shutil.rmtree(place, ignore_errors=True)
        if not isinstance(error, Exception):
            raise
        raise click.ClickException(
            f"cannot write data set {dataset_id}: {type(error).__name__}: {error}"
        ) from error
