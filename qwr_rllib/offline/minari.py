"""Reader of Minari's data sets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces.utils import flatten, flatten_space
from gymnasium.vector.utils import batch_space, iterate

from qwr_rllib.envs.spaces import is_flattened
from qwr_rllib.offline.episodes import MU_KEY, Dataset, Episode, one_line
from qwr_rllib.validation import did_you_mean

NO_MINARI = "Minari data sets need the extra `offline`: pip install 'qwr-rllib[offline]'"


def minari_dataset(name: str, folder: Path | None) -> Dataset:
    """Returns the data set ``name`` in Minari's local store, or the one in ``folder``.

    Raises:
        ValueError: if there is no such data set, or it cannot be read.
        ModuleNotFoundError: if Minari is not installed.
    """
    try:
        import minari
        from minari.storage import get_dataset_path
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(NO_MINARI, name=error.name) from error
    try:
        found = minari.load_dataset(name) if folder is None else minari.MinariDataset(folder)
        env_spec = found.env_spec
        space, action_space = found.observation_space, found.action_space
    except FileNotFoundError:
        known = list(minari.list_local_datasets())
        raise ValueError(
            f"offline.dataset: there is no data set {name!r} in Minari's store "
            f"{get_dataset_path()}{did_you_mean(name, known)} "
            f"(`minari download {name}` fetches a public one)"
        ) from None
    except Exception as error:
        raise ValueError(f"data set {name} cannot be read: {one_line(error)}") from error
    env_id = env_spec.id if env_spec is not None else None
    episodes = _episodes(name, found, space if is_flattened(space) else None)
    space = flatten_space(space) if is_flattened(space) else space
    return Dataset(name, env_id, space, action_space, False, episodes)


def _episodes(name: str, found: Any, flattened: gym.Space | None) -> Iterator[Episode]:
    """Yields the episodes; observations of the space ``flattened`` become vectors."""
    episodes = found.iterate_episodes()
    for index in found.episode_indices:
        where = f"data set {name}: episode {index}"
        try:
            episode = next(episodes)
            observations = episode.observations
            if flattened is not None:
                states = iterate(batch_space(flattened), observations)
                observations = np.stack([np.asarray(flatten(flattened, each)) for each in states])
        except Exception as error:  # h5py, pyarrow and the decoding raise many kinds
            raise ValueError(f"{where} cannot be read: {one_line(error)}") from error
        steps = len(episode.rewards)
        for kind in ("terminations", "truncations"):
            early = np.flatnonzero(np.asarray(getattr(episode, kind))[:-1])
            if len(early):
                raise ValueError(f"{where} goes on after {kind[:-1]} at step {early[0]} of {steps}")
        lengths = [len(observations), len(episode.actions), len(episode.terminations)]
        if lengths != [steps + 1, steps, steps]:
            raise ValueError(
                f"{where} has {steps} rewards, {lengths[0]} observations (one more is right), "
                f"{lengths[1]} actions and {lengths[2]} terminations"
            )
        mu = (episode.infos or {}).get(MU_KEY)
        yield Episode(
            f"episode {index}",
            np.asarray(observations),
            np.asarray(episode.actions),
            np.asarray(episode.rewards),
            bool(steps and episode.terminations[-1]),
            None if mu is None else np.asarray(mu),
        )
