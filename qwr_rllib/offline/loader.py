"""Loading of logged data into a replay: Minari's data sets and RLlib's recorded output.

An episode of ``k`` steps becomes ``k`` rows. If the data lacks the parameters of the policy ``mu``
that chose its actions, ``mu`` is made from the taken actions: a Gaussian with the action as mean;
or a categorical distribution with ``1 - smoothing`` on the action plus ``smoothing`` spread
uniformly. The state after a cut episode's last step has no action; it gets the ``mu`` of that step.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import gymnasium as gym
import numpy as np

from qwr_rllib.offline.config import OfflineConfig
from qwr_rllib.offline.episodes import Dataset, Episode
from qwr_rllib.offline.minari import minari_dataset
from qwr_rllib.offline.rllib import rllib_dataset
from qwr_rllib.replay.fragments import Fragment, make_fragment
from qwr_rllib.replay.storage import ReplayStorage
from qwr_rllib.specs import Spec

logger = logging.getLogger("ray.rllib.qwr")


def load(
    config: OfflineConfig,
    env: gym.Env,
    spec: Spec,
    capacity: int,
    margin: int = 1,
    normalize_actions: bool = True,
    reward_clip: float | None = None,
) -> ReplayStorage:
    """Loads a data set into a store; if it is too large, as many episodes, at random, as fit.

    Args:
        config: which data set to read, and how.
        env: the environment to which the data must belong.
        spec: shapes of the environment.
        capacity: capacity of the store, in rows.
        margin: logs a warning if trajectories are shorter than this; they are loaded.
        normalize_actions: whether the policy's actions span [-1, 1], as in RLlib's config.
        reward_clip: rewards are clipped to [-reward_clip, reward_clip]; ``None`` does not clip.

    Raises:
        ValueError: for data that is missing, damaged, empty, of another environment or not finite,
            or if no episode fits; the message names the data set, the episode and the fault.
        ModuleNotFoundError: if Minari is needed but not installed.
    """
    dataset = open_dataset(config.dataset)
    _check_same_env(dataset, env, config.check_env)
    action_space = env.action_space if normalize_actions and not dataset.normalized else None

    def fill(
        storage: ReplayStorage, episodes: Iterable[Episode], chosen: set[int] | None = None
    ) -> list[tuple[str, int]]:
        """Adds all or the chosen episodes; returns the name and the number of rows of each."""
        added = []
        for number, episode in enumerate(_first(episodes, config.num_episodes)):
            if chosen is not None and number not in chosen:
                continue
            try:
                made = _fragment(number, episode, spec, config, action_space, reward_clip)
                if len(made) <= capacity:
                    storage.add(made)
            except ValueError as error:
                raise ValueError(f"data set {dataset.name}: {episode.name}: {error}") from error
            added.append((episode.name, len(made)))
        return added

    storage = ReplayStorage(spec, capacity)
    found = fill(storage, dataset.episodes)
    count, num_rows = len(found), sum(rows for _, rows in found)
    if not count:
        raise ValueError(f"data set {dataset.name} is empty")
    if config.num_episodes is not None and count < config.num_episodes:
        raise ValueError(
            f"offline.num_episodes is {config.num_episodes}, "
            f"data set {dataset.name} has {count} episodes"
        )
    lengths = np.array([rows for _, rows in found], np.int64)
    chosen = _sampled(lengths, storage)
    if not chosen:
        raise ValueError(
            f"replay_capacity {capacity} is too small for any episode of data set {dataset.name}: "
            f"the shortest has {lengths.min()} rows"
        )
    if len(chosen) < count:
        logger.warning(
            "Data set %s has %d rows in %d episodes, more than replay_capacity %d takes: %d "
            "episodes of them, drawn at random, are trained on.",
            dataset.name, num_rows, count, capacity, len(chosen),
        )  # fmt: skip
        # Later episodes evicted some of the chosen ones, so fill a new store.
        storage = ReplayStorage(spec, capacity)
        found = fill(storage, open_dataset(config.dataset).episodes, chosen)
    short = [name for name, rows in found if rows < margin]
    if short:
        logger.warning(
            "%d of %d trajectories of data set %s are shorter than the margin of %d steps, their "
            "returns end with them: %s%s",
            len(short), len(chosen), dataset.name, margin,
            ", ".join(short[:5]), ", ..." if len(short) > 5 else "",
        )  # fmt: skip
    return storage


def mean_return(config: OfflineConfig) -> float:
    """Returns the mean return of the episodes that ``config`` selects.

    Raises:
        ValueError: for data that is missing or damaged.
        ModuleNotFoundError: if Minari is needed but not installed.
    """
    episodes = _first(open_dataset(config.dataset).episodes, config.num_episodes)
    return float(np.mean([np.sum(episode.rewards) for episode in episodes]))


def _first(episodes: Iterable[Episode], count: int | None) -> Iterator[Episode]:
    for i, episode in enumerate(episodes):
        if i == count:
            return
        yield episode


def _sampled(lengths: np.ndarray, storage: ReplayStorage) -> set[int]:
    """Returns the numbers of episodes that fit a store: all, or some drawn at random."""
    # A long episode is cut into parts. Each needs slots for its last state and its older frames.
    parts = -(-lengths // storage.max_trajectory)
    slots = lengths + parts * storage.spec.frame_stack
    free_rows, free_slots = storage.capacity, storage.num_slots - storage.spec.frame_stack
    if lengths.sum() <= free_rows and slots.sum() <= free_slots:
        return set(range(len(lengths)))
    chosen = set()
    for number in np.random.default_rng(0).permutation(len(lengths)).tolist():
        if lengths[number] <= free_rows and slots[number] <= free_slots:
            chosen.add(number)
            free_rows -= lengths[number]
            free_slots -= slots[number]
    return chosen


def _fragment(
    number: int,
    episode: Episode,
    spec: Spec,
    config: OfflineConfig,
    action_space: gym.Space | None,
    reward_clip: float | None,
) -> Fragment:
    """Makes an episode's fragment; normalises actions from ``action_space`` if it is given."""
    actions = np.asarray(episode.actions)
    rows = len(actions)
    if not rows:
        raise ValueError("it has no steps")
    if not spec.discrete and actions.size == rows * spec.action_dim:
        actions = actions.reshape(rows, spec.action_dim).astype(np.float64)
        if action_space is not None:
            actions = _normalized(actions, action_space)
        actions = actions.astype(np.float32)
    if spec.discrete and not np.issubdtype(actions.dtype, np.integer):
        raise ValueError(f"actions must be integers, got {actions.dtype}")
    obs = np.asarray(episode.obs)
    if obs[0].size == np.prod(spec.obs_shape):
        obs = obs.reshape(len(obs), *spec.obs_shape)
    mu = episode.mu if config.mu == "recorded" else None
    if mu is not None and mu.shape[1:] != (spec.action_dim,):
        mu = None  # another kind of policy recorded it
    if mu is None:
        mu = _stand_in(actions, spec, config.smoothing)
    if episode.terminated:
        obs, mu = obs[:rows], mu[:rows]
    elif len(obs) == rows:
        # The state after the last step is not recorded, so cut the episode before that step.
        rows -= 1
        if not rows:
            raise ValueError("it is cut after its only step and does not have the state after")
    mu = np.concatenate([mu, mu[-1:]])[: len(obs)]
    return make_fragment(
        spec,
        episode=number,
        start=0,
        obs=obs,
        action_dist_inputs=mu,
        actions=actions[:rows],
        rewards=np.asarray(episode.rewards)[:rows],
        terminated=episode.terminated,
        done=True,
        reward_clip=reward_clip,
    )


def _normalized(actions: np.ndarray, space: gym.Space) -> np.ndarray:
    """Converts actions to the policy's space, as RLlib's ``normalize_action`` does."""
    assert isinstance(space, gym.spaces.Box)
    if not space.is_bounded():
        return actions
    low, high = space.low.reshape(-1), space.high.reshape(-1)
    return 2 * (actions - low) / (high.astype(np.float64) - low) - 1


def _stand_in(actions: np.ndarray, spec: Spec, smoothing: float) -> np.ndarray:
    """Returns parameters ``(k, m)`` of a ``mu`` made from the taken actions."""
    if not spec.discrete:
        return actions
    probs = np.full((len(actions), spec.action_dim), smoothing / spec.action_dim)
    valid = (actions >= 0) & (actions < spec.action_dim)  # the store refuses the others
    probs[np.flatnonzero(valid), actions[valid]] += 1 - smoothing
    return np.log(probs).astype(np.float32)


def _check_same_env(dataset: Dataset, env: gym.Env, check_id: bool) -> None:
    own_id = env.spec.id if env.spec is not None else None
    if check_id and dataset.env_id and own_id and dataset.env_id != own_id:
        raise ValueError(
            f"data set {dataset.name} is of environment {dataset.env_id!r}, not {own_id!r}; "
            "offline.check_env: false takes it if the spaces are the same"
        )
    for kind in ("observation_space", "action_space"):
        logged, own = getattr(dataset, kind), getattr(env, kind)
        if logged is not None and not _same(logged, own, bounds=kind == "action_space"):
            raise ValueError(
                f"data set {dataset.name} has {kind} {logged}, the environment has {own}"
            )


def _same(logged: gym.Space, own: gym.Space, bounds: bool) -> bool:
    if isinstance(logged, gym.spaces.Box) and isinstance(own, gym.spaces.Box):
        return logged.shape == own.shape and (
            not bounds or (np.allclose(logged.low, own.low) and np.allclose(logged.high, own.high))
        )
    return logged == own


def open_dataset(dataset: str) -> Dataset:
    """Finds a data set by its path or its id in Minari's local store.

    Raises:
        ValueError: if there is no such data set, or it cannot be read.
        ModuleNotFoundError: if Minari is needed but not installed.
    """
    path = Path(dataset).expanduser()
    if path.is_dir():
        for folder in (path / "data", path):
            if (folder / "metadata.json").exists():
                return minari_dataset(dataset, folder)
    if path.exists():
        return rllib_dataset(path)
    if path.is_absolute() or dataset[0] in "~." or path.suffix in (".json", ".parquet"):
        raise ValueError(f"offline.dataset: there is nothing at {path}")
    return minari_dataset(dataset, None)
