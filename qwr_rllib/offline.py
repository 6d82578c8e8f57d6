"""Logged data as a replay: Minari's data sets and RLlib's own recorded output.

An episode of ``k`` steps becomes ``k`` rows. Where the data does not say which policy chose its
actions, the taken action stands in for ``mu``: as the mean of the Gaussian (whose standard
deviation is ``action_std`` as always), or with probability ``1 - smoothing`` beside a uniform
rest. The state after a cut episode's last step has no action: it gets the ``mu`` of that step.

RLlib's output is unpickled where its columns are compressed: read only what you trust.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import gymnasium as gym
import numpy as np
from gymnasium.spaces.utils import flatten, flatten_space
from gymnasium.vector.utils import batch_space, iterate
from ray.rllib.offline.json_reader import from_json_data
from ray.rllib.policy.sample_batch import DEFAULT_POLICY_ID, MultiAgentBatch, SampleBatch

from qwr_rllib.names import did_you_mean
from qwr_rllib.replay.storage import Fragment, ReplayStorage
from qwr_rllib.spaces import is_flattened
from qwr_rllib.specs import Spec

logger = logging.getLogger("ray.rllib.qwr")

Mu = Literal["recorded", "taken"]
MU_KEY = SampleBatch.ACTION_DIST_INPUTS
"""Of a Minari episode's ``infos``: the parameters of ``mu`` in each state, ``(k + 1, m)``."""
NO_MINARI = "Minari data sets need the extra `offline`: pip install 'qwr-rllib[offline]'"


@dataclass(frozen=True)
class OfflineConfig:
    """The keys of the config's ``offline``.

    Raises:
        ValueError: for an impossible value, naming the key, the value and what is allowed.
    """

    dataset: str
    """The id of a data set in Minari's local store, or the path of one, or the folder or file of
    RLlib's recorded output (JSON or Parquet)."""
    iterations: int | None = None
    """After so many iterations on the data alone, environment steps are collected too, as many
    each iteration as ``n_interactions`` says; ``None`` is never."""
    num_episodes: int | None = None
    """Takes the first so many; ``None`` takes all."""
    mu: Mu = "recorded"
    """Whether recorded parameters of ``mu`` are taken where there are any, or the taken action
    always stands in."""
    smoothing: float = 0.1
    """The share of a uniform distribution in a discrete action's stand-in for ``mu``."""
    check_env: bool = True
    """Refuse data that says to be of another environment; spaces must be the same anyway."""

    def __post_init__(self) -> None:
        def require(name: str, allowed: str, ok: bool) -> None:
            if not ok:
                value = getattr(self, name)
                raise ValueError(f"offline.{name} must be {allowed}, got {value!r}")

        def whole(value: Any, low: int) -> bool:
            return value is None or (type(value) is int and value >= low)

        dataset, smoothing = self.dataset, self.smoothing
        require("dataset", "a data set's id or path", isinstance(dataset, str) and bool(dataset))
        require("iterations", "an integer >= 0 or None", whole(self.iterations, 0))
        require("num_episodes", "an integer >= 1 or None", whole(self.num_episodes, 1))
        require("mu", f"one of {', '.join(map(repr, get_args(Mu)))}", self.mu in get_args(Mu))
        number = isinstance(smoothing, (int, float)) and not isinstance(smoothing, bool)
        require("smoothing", "a number in (0, 1]", number and 0 < smoothing <= 1)
        require("check_env", "true or false", isinstance(self.check_env, bool))


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
    """Whether it says so; otherwise its last step is a cut."""
    mu: np.ndarray | None
    """``(k + 1, m)`` or ``(k, m)`` recorded parameters."""


class Dataset(NamedTuple):
    """Where episodes come from, and what is known about them."""

    name: str
    env_id: str | None
    observation_space: gym.Space | None
    action_space: gym.Space | None
    normalized: bool
    """Whether actions are in the policy's space and not in the environment's."""
    episodes: Iterable[Episode]


def load(
    config: OfflineConfig,
    env: gym.Env,
    spec: Spec,
    capacity: int,
    margin: int = 1,
    normalize_actions: bool = True,
    reward_clip: float | None = None,
) -> ReplayStorage:
    """A store that holds the whole data set.

    Args:
        config: which data set and how to read it.
        env: the environment that the data must be of.
        spec: its shapes.
        capacity: of the store, in rows.
        margin: trajectories that are shorter are named in the log; they are taken.
        normalize_actions: whether the policy's actions span [-1, 1], as in RLlib's config.
        reward_clip: rewards are clipped to [-reward_clip, reward_clip].

    Raises:
        ValueError: for data that is missing, damaged, empty, not of this environment, not finite
            or too large; the message names the data set, the episode and what is wrong.
        ModuleNotFoundError: if Minari is needed and not installed.
    """
    dataset = open_dataset(config.dataset)
    _check_same_env(dataset, env, config.check_env)
    storage = ReplayStorage(spec, capacity)
    short: list[str] = []
    count = num_rows = 0
    for count, episode in enumerate(_first(dataset.episodes, config.num_episodes), 1):
        where = f"data set {dataset.name}: {episode.name}"
        try:
            fragment = _fragment(
                count - 1,
                episode,
                spec,
                config,
                env.action_space if normalize_actions and not dataset.normalized else None,
                reward_clip,
            )
            num_rows += len(fragment)
            if num_rows > capacity:
                raise ValueError(
                    f"replay_capacity {capacity} is too small: there are more rows up to here; "
                    "offline.num_episodes takes fewer"
                )
            storage.add(fragment)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if len(fragment) < margin:
            short.append(episode.name)
    if not count:
        raise ValueError(f"data set {dataset.name} is empty")
    if config.num_episodes is not None and count < config.num_episodes:
        raise ValueError(
            f"offline.num_episodes is {config.num_episodes}, "
            f"data set {dataset.name} has {count} episodes"
        )
    if storage.num_rows < num_rows:  # many short episodes: their last states need room too
        raise ValueError(
            f"replay_capacity {capacity} is too small for the {count} episodes and {num_rows} "
            f"rows of data set {dataset.name}"
        )
    if short:
        logger.warning(
            "%d of %d trajectories of data set %s are shorter than the margin of %d steps, their "
            "returns end with them: %s%s",
            len(short), count, dataset.name, margin,
            ", ".join(short[:5]), ", ..." if len(short) > 5 else "",
        )  # fmt: skip
    return storage


def mean_return(config: OfflineConfig) -> float:
    """The mean return of the episodes that are taken of a data set.

    Raises:
        ValueError: for data that is missing or damaged.
        ModuleNotFoundError: if Minari is needed and not installed.
    """
    episodes = _first(open_dataset(config.dataset).episodes, config.num_episodes)
    return float(np.mean([np.sum(episode.rewards) for episode in episodes]))


def _first(episodes: Iterable[Episode], count: int | None) -> Iterator[Episode]:
    for i, episode in enumerate(episodes):
        if i == count:
            return
        yield episode


def _fragment(
    number: int,
    episode: Episode,
    spec: Spec,
    config: OfflineConfig,
    action_space: gym.Space | None,
    reward_clip: float | None,
) -> Fragment:
    """The episode's rows; actions are normalised from ``action_space`` where it is given."""
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
        mu = None  # of another kind of policy
    if mu is None:
        mu = _stand_in(actions, spec, config.smoothing)
    if episode.terminated:
        obs, mu = obs[:rows], mu[:rows]
    elif len(obs) == rows:
        # The state after the last step is not recorded: its own state is where it is cut.
        rows -= 1
        if not rows:
            raise ValueError("it is cut after its only step and does not have the state after")
    mu = np.concatenate([mu, mu[-1:]])[: len(obs)]
    context = None
    if spec.frame_stack > 1:
        if not np.array_equal(obs[1:, :-1], obs[:-1, 1:]):
            raise ValueError(
                f"frame_stack is {spec.frame_stack}, but its observations are not stacks of the "
                "last frames, newest last"
            )
        context, obs = obs[0, :-1], obs[:, -1]
    rewards = np.asarray(episode.rewards)[:rows]
    if reward_clip is not None:
        rewards = rewards.clip(-reward_clip, reward_clip)
    return Fragment(
        episode=number,
        start=0,
        obs=obs,
        action_dist_inputs=mu,
        actions=actions[:rows],
        rewards=rewards,
        terminated=episode.terminated,
        done=True,
        context=context,
    )


def _normalized(actions: np.ndarray, space: gym.Space) -> np.ndarray:
    """The environment's actions in the policy's space, as RLlib's ``normalize_action``."""
    assert isinstance(space, gym.spaces.Box)
    if not space.is_bounded():
        return actions
    low, high = space.low.reshape(-1), space.high.reshape(-1)
    return 2 * (actions - low) / (high.astype(np.float64) - low) - 1


def _stand_in(actions: np.ndarray, spec: Spec, smoothing: float) -> np.ndarray:
    """Parameters of a ``mu`` around the taken actions, ``(k, m)``."""
    if not spec.discrete:
        return actions
    probs = np.full((len(actions), spec.action_dim), smoothing / spec.action_dim)
    valid = (actions >= 0) & (actions < spec.action_dim)  # the store names the others
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
        ValueError: if there is none, or it cannot be read.
        ModuleNotFoundError: if Minari is needed and not installed.
    """
    path = Path(dataset).expanduser()
    if path.is_dir():
        for folder in (path / "data", path):
            if (folder / "metadata.json").exists():
                return _minari_dataset(dataset, folder)
    if path.exists():
        return _rllib_dataset(path)
    if path.is_absolute() or dataset[0] in "~." or path.suffix in (".json", ".parquet"):
        raise ValueError(f"offline.dataset: there is nothing at {path}")
    return _minari_dataset(dataset, None)


def _minari_dataset(name: str, folder: Path | None) -> Dataset:
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
        raise ValueError(f"data set {name} cannot be read: {_one_line(error)}") from error
    env_id = env_spec.id if env_spec is not None else None
    episodes = _minari_episodes(name, found, space if is_flattened(space) else None)
    space = flatten_space(space) if is_flattened(space) else space
    return Dataset(name, env_id, space, action_space, False, episodes)


def _minari_episodes(name: str, found: Any, flattened: gym.Space | None) -> Iterator[Episode]:
    """Its episodes; observations of the space ``flattened`` become vectors."""
    episodes = found.iterate_episodes()
    for index in found.episode_indices:
        where = f"data set {name}: episode {index}"
        try:
            episode = next(episodes)
            observations = episode.observations
            if flattened is not None:
                states = iterate(batch_space(flattened), observations)
                observations = np.stack([np.asarray(flatten(flattened, each)) for each in states])
        except Exception as error:  # of h5py, of pyarrow, of the decoding
            raise ValueError(f"{where} cannot be read: {_one_line(error)}") from error
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


def _rllib_dataset(path: Path) -> Dataset:
    files = [path]
    if path.is_dir():
        files = sorted([*path.glob("*.json"), *path.glob("*.parquet")])
    if not files or not all(file.suffix in (".json", ".parquet") for file in files):
        raise ValueError(
            f"offline.dataset: {path} is neither a Minari data set nor RLlib's recorded output "
            "(.json or .parquet files)"
        )
    return Dataset(str(path), None, None, None, True, _rllib_episodes(path, files))


def _rllib_episodes(path: Path, files: list[Path]) -> Iterator[Episode]:
    """Episodes in the order of their first row; the fragments of one may be anywhere."""
    rows: dict[Any, list[tuple]] = {}
    for file in files:
        for i, batch in enumerate(_rllib_batches(file)):
            for eps_id, row in _rllib_rows(f"data set {path}: {file.name}, batch {i}", batch):
                own = rows.setdefault(eps_id, [])
                own.append(row if row[0] is not None else (len(own), *row[1:]))
    for eps_id, own in rows.items():
        own.sort(key=lambda row: row[0])
        start = 0
        for i, (t, *_, terminated, truncated) in enumerate(own):
            following = own[i + 1][0] if i + 1 < len(own) else None
            if terminated or truncated or following != t + 1:
                part = own[start : i + 1]
                start = i + 1
                _, obs, next_obs, actions, rewards, mu, *_ = zip(*part, strict=True)
                last = [] if next_obs[-1] is None else [next_obs[-1]]
                yield Episode(
                    f"episode {eps_id} from step {part[0][0]}",
                    np.stack([*obs, *last]),
                    np.stack(actions),
                    np.array(rewards),
                    bool(terminated),
                    None if mu[0] is None else np.stack(mu),
                )


def _rllib_batches(file: Path) -> Iterator[SampleBatch]:
    try:
        if file.suffix == ".parquet":
            from pyarrow import parquet  # Ray's data library depends on it

            records = parquet.read_table(file).to_pylist()
        else:
            records = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
        for record in records:
            batch = from_json_data({k: v for k, v in record.items() if v is not None}, None)
            if isinstance(batch, MultiAgentBatch):
                if list(batch.policy_batches) != [DEFAULT_POLICY_ID]:
                    raise ValueError(f"it is of the policies {', '.join(batch.policy_batches)}")
                batch = batch.policy_batches[DEFAULT_POLICY_ID]
            yield batch
    except Exception as error:
        raise ValueError(f"data set {file} cannot be read: {_one_line(error)}") from error


def _rllib_rows(where: str, batch: SampleBatch) -> Iterator[tuple[Any, tuple]]:
    """Of each row its episode and (t, obs, next obs, action, reward, mu, two flags)."""
    needed = (
        SampleBatch.OBS, SampleBatch.ACTIONS, SampleBatch.REWARDS,
        SampleBatch.TERMINATEDS, SampleBatch.EPS_ID,
    )  # fmt: skip
    if missing := [name for name in needed if name not in batch]:
        raise ValueError(f"{where} lacks the columns {', '.join(missing)}")
    count = len(batch[SampleBatch.REWARDS])

    def column(name: str) -> np.ndarray | list[None]:
        if name not in batch:
            return [None] * count
        values = np.asarray(batch[name])
        if len(values) != count:
            raise ValueError(f"{where} has {len(values)} values of {name} and {count} rewards")
        return values

    truncated = column(SampleBatch.TRUNCATEDS) if SampleBatch.TRUNCATEDS in batch else [0] * count
    yield from zip(
        (int(episode) for episode in np.asarray(batch[SampleBatch.EPS_ID])),
        zip(
            (None if t is None else int(t) for t in column(SampleBatch.T)),
            column(SampleBatch.OBS),
            column(SampleBatch.NEXT_OBS),
            column(SampleBatch.ACTIONS),
            column(SampleBatch.REWARDS),
            column(SampleBatch.ACTION_DIST_INPUTS),
            column(SampleBatch.TERMINATEDS),
            truncated,
            strict=True,
        ),
        strict=True,
    )


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
