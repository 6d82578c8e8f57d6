"""Training in one process without Ray: an environment, the store, the view and the learner.

Rows, targets and updates are computed as in the Algorithm. Random numbers are drawn in another
order, so that the same seed gives another run. Use it on machines without Ray, for debugging, and
for many runs side by side on one GPU.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from qwr_rllib.envs import spaces
from qwr_rllib.envs.atari import ATARI, LIFE_LOST, frame_stack_of, make_atari
from qwr_rllib.learning.config import learner_config
from qwr_rllib.learning.learner import Learner
from qwr_rllib.learning.networks import QWRNetworks, networks_of
from qwr_rllib.replay.fragments import Fragment, split_steps
from qwr_rllib.replay.replica import ReplayView
from qwr_rllib.replay.storage import ReplayStorage
from qwr_rllib.specs import Spec
from qwr_rllib.validation import from_mapping

SMOOTHING = 100  # episodes in the mean training return, as in RLlib
REPLAY_FILE, STATE_FILE = "replay.npz", "state.pt"


def make_env(config: Mapping[str, Any], evaluation: bool = False) -> gym.Env:
    """Makes the environment that a config names.

    Args:
        config: has ``env`` and ``env_config``.
        evaluation: whether it is for an evaluation, which has its own limits in Atari games.
    """
    env_config = dict(config["env_config"])
    if config["env"] == ATARI:
        return make_atari(env_config | {"evaluation": evaluation})
    return spaces.fitted(gym.make(config["env"], **env_config))


def spec_of(env: gym.Env, config: Mapping[str, Any]) -> Spec:
    """Returns the :class:`Spec` of an environment's spaces.

    Raises:
        ValueError: for spaces that QWR does not support, and for actions without bounds.
    """
    spec = spaces.spec_of(env.observation_space, env.action_space, frame_stack_of(config))
    if isinstance(env.action_space, gym.spaces.Box) and not env.action_space.is_bounded():
        raise ValueError(
            f"training without Ray takes Discrete or bounded Box actions, got {env.action_space}"
        )
    return spec


class Runner:
    """An environment in which networks on the CPU act.

    Args:
        env: see :func:`spec_of`.
        networks: the acting networks; they need no critic.
        spec: the environment's.
        seed: for the environment and for the actions.
    """

    def __init__(self, env: gym.Env, networks: QWRNetworks, spec: Spec, seed: int) -> None:
        self.env, self.networks, self.spec = env, networks, spec
        self.generator = torch.Generator().manual_seed(seed)
        self.episode = self.num_steps = 0
        self.returns: deque[float] = deque(maxlen=SMOOTHING)
        if not spec.discrete:
            space: Any = env.action_space
            self._middle = ((space.high + space.low) / 2).reshape(-1)
            self._half = ((space.high - space.low) / 2).reshape(-1)
        self._obs: np.ndarray | None = None
        self._seed: int | None = seed  # of the first episode

    def _reset(self) -> None:
        self._obs, _ = self.env.reset(seed=self._seed)
        self._seed = None
        self._time, self._return = 0, 0.0

    @torch.inference_mode()
    def dist_inputs(self, obs: np.ndarray) -> np.ndarray:
        """Returns parameters ``(k, m)`` of the policy at observations ``(k, *obs_shape)``."""
        dtype = getattr(np, self.spec.obs_dtype)
        return self.networks.dist_inputs(torch.from_numpy(np.asarray(obs, dtype))).numpy()

    def _step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, bool]:
        """Returns observation, reward, terminated, truncated, and terminated for the learner."""
        if self.spec.discrete:
            obs, reward, terminated, truncated, info = self.env.step(int(action))
        else:
            scaled = self._half * np.clip(action, -1, 1) + self._middle
            obs, reward, terminated, truncated, info = self.env.step(
                scaled.reshape(self.env.action_space.shape)
            )
        lost = bool(info.get(LIFE_LOST))
        return obs, float(reward), terminated, truncated, terminated or lost

    def collect(self, steps: int | None, reward_clip: float | None) -> list[Fragment]:
        """Collects steps of the stochastic policy.

        Args:
            steps: number of steps; ``None`` for one whole episode.
            reward_clip: see :func:`~qwr_rllib.replay.fragments.split_steps`.
        """
        rows: list[tuple] = []
        done = False
        while len(rows) < steps if steps else not done:
            if self._obs is None:
                self._reset()
            obs = self._obs
            assert obs is not None
            mu = self.dist_inputs(obs[None])[0]
            sampled = self.networks.actor.sample(torch.from_numpy(mu), self.generator)
            action = sampled.numpy()
            after, reward, terminated, truncated, ends = self._step(action)
            row = self.episode, self._time, obs, after, mu, action, reward, ends, truncated
            rows.append(row)
            self._obs, self._time, self._return = after, self._time + 1, self._return + reward
            done = terminated or truncated
            if done:
                self.returns.append(self._return)
                self.episode += 1
                self._obs = None
        self.num_steps += len(rows)
        columns = [np.array(column) for column in zip(*rows, strict=True)]
        episodes, times, obs, after, mus, actions, rewards, terminations, truncations = columns
        return split_steps(
            self.spec,
            episodes=episodes,
            times=times,
            obs=obs,
            next_obs=after,
            action_dist_inputs=mus,
            actions=actions,
            rewards=rewards.astype(np.float32),
            terminated=terminations,
            truncated=truncations,
            dist_inputs=self.dist_inputs,
            reward_clip=reward_clip,
        )

    def evaluate(self, episodes: int) -> list[float]:
        """Plays whole episodes with the mode of the policy, and gives the return of each."""
        returns = []
        for _ in range(episodes):
            self._reset()
            done = False
            while not done:
                assert self._obs is not None
                mu = torch.from_numpy(self.dist_inputs(self._obs[None])[0])
                action = self.networks.actor.mode(mu).numpy()
                self._obs, reward, terminated, truncated, _ = self._step(action)
                self._return += reward
                done = terminated or truncated
            returns.append(self._return)
        self._obs = None
        return returns


class LocalTrainer:
    """A trainer of QWR, QWRPlus, AWR or AWAC in this process.

    Args:
        config: the keys of a ``QWRConfig``'s dict, as in
            :func:`~qwr_rllib.learning.config.defaults_of`, with ``env`` and ``seed``.
        device: the learner's device; the acting policy stays on the CPU.
        threads: CPU threads of the learner's steps, see :class:`Learner`.

    Raises:
        ValueError: for an unsupported space, a setting that the learner refuses, or logged data
            that cannot be loaded.
    """

    def __init__(
        self, config: Mapping[str, Any], device: torch.device | str = "cpu", threads: int = 1
    ) -> None:
        if not config["normalize_actions"] or config["clip_actions"]:
            raise ValueError(
                "training without Ray takes normalize_actions true and clip_actions false, got "
                f"{config['normalize_actions']!r} and {config['clip_actions']!r}"
            )
        self.config = config
        self.iteration = 0
        seed = config["seed"] or 0
        torch.manual_seed(seed)
        env = make_env(config)
        self.spec = spec = spec_of(env, config)
        self._whole_episodes = config["batch_mode"] == "complete_episodes"
        self._networks = networks_of(spec, config).to(device)
        self.learner = Learner(self._networks, learner_config(config), seed, threads)
        self.storage = ReplayStorage(spec, config["replay_capacity"])
        self.view = ReplayView(spec, config["replay_capacity"], device)
        self._acting = networks_of(spec, config, with_critic=False)
        self.runner = Runner(env, self._acting, spec, seed)
        self._evaluation: Runner | None = None
        self.collects = not config.get("offline")
        """Whether iterations collect rows, or train on logged data alone."""
        if not self.collects:
            self._fill(env)
        self._sync()

    def _fill(self, env: gym.Env) -> None:
        """Fills the replay with the logged data of the config's ``offline``."""
        from qwr_rllib.offline import OfflineConfig, load, logged_mu  # reading needs Ray

        offline = from_mapping(OfflineConfig, self.config["offline"], "offline")
        if offline.iterations is not None:
            raise ValueError(
                "training without Ray collects nothing after logged data: offline.iterations must "
                f"be None, got {offline.iterations}"
            )
        self.storage = load(
            offline,
            env,
            self.spec,
            self.storage.capacity,
            self.config["margin"],
            reward_clip=self.config["reward_clip"],
        )
        self.learner.logged_mu = logged_mu(self.storage, self.config["action_std"], offline.mu_std)
        self._update_view()

    def _update_view(self) -> torch.Tensor:
        """Brings the view up to date and returns the slots of the new rows."""
        new = self.view.update(self.storage.changes(self.view.uid, self.view.version))
        if not self.spec.image:
            self.learner.update_normalizer(self.view.observations(new))
        return new

    @property
    def num_env_steps(self) -> int:
        return self.runner.num_steps

    def acting_state(self) -> dict[str, torch.Tensor]:
        """See :meth:`QWRNetworks.acting_state`."""
        return self._networks.acting_state()

    def _sync(self) -> None:
        self._acting.load_state_dict(self.acting_state())

    def train(self) -> dict[str, Any]:
        """Trains for one iteration, or several, as ``min_sample_timesteps_per_iteration`` says.

        Returns:
            The metrics of the learner and of collection in the last of them: see
            ``docs/metrics.md``. ``moved`` is the root mean square distance, in the new states,
            between the policy's parameters after training and those at collection.
            ``collection_s`` and ``training_s`` are sums.
        """
        least = self.config.get("min_sample_timesteps_per_iteration") or 0
        until = self.num_env_steps + (least if self.collects else 0)
        metrics = self._train_once()
        while self.num_env_steps < until:
            before, metrics = metrics, self._train_once()
            for name in ("collection_s", "training_s"):
                metrics[name] += before[name]
        self.iteration += 1
        return metrics

    def _train_once(self) -> dict[str, Any]:
        started = time.perf_counter()
        if self.collects:
            steps = None if self._whole_episodes else self.config["n_interactions"]
            for fragment in self.runner.collect(steps, self.config["reward_clip"]):
                self.storage.add(fragment)
            new = self._update_view()
        collected = time.perf_counter()
        metrics: dict[str, Any] = self.learner.train(self.view, self.num_env_steps)
        if self.collects:
            with torch.no_grad():
                moved = self._networks.dist_inputs(self.view.observations(new))
            moved -= self.view.columns["action_dist_inputs"][new]
            metrics["moved"] = moved.square().sum(-1).mean().sqrt().item()
        metrics["gamma"] = self.learner.gamma
        metrics["collection_s"] = collected - started
        metrics["training_s"] = time.perf_counter() - collected
        self._sync()
        return metrics

    def evaluate(self, episodes: int) -> list[float]:
        """Plays whole episodes with the mode of the policy, and gives the return of each."""
        if self._evaluation is None:
            env = make_env(self.config, evaluation=True)
            seed = (self.config["seed"] or 0) + 10_000
            self._evaluation = Runner(env, self._acting, self.spec, seed)
        return self._evaluation.evaluate(episodes)

    def save(self, folder: Path, replay: bool = True) -> None:
        """Writes a checkpoint: ``state.pt`` and, unless it is left out, ``replay.npz``.

        The files are replaced one after the other, ``state.pt`` last; :meth:`restore` refuses a
        checkpoint whose two files are of different iterations. The environment's state is not
        saved: a restored run begins with a new episode.

        Args:
            folder: is created if it is missing.
            replay: if false, the policy can be evaluated but not trained further.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if replay:
            with open(folder / f".{REPLAY_FILE}", "wb") as file:
                np.savez(file, allow_pickle=False, **self.storage.state_arrays())
            os.replace(folder / f".{REPLAY_FILE}", folder / REPLAY_FILE)
        else:
            (folder / REPLAY_FILE).unlink(missing_ok=True)
        state = {
            "iteration": self.iteration,
            "learner": self.learner.state_dict(),
            "num_rows_inserted": self.storage.num_rows_inserted_lifetime,
            "num_inserted_seen": self.view.num_inserted_seen,
            "episode": self.runner.episode + 1,
            "num_steps": self.runner.num_steps,
            "returns": list(self.runner.returns),
            "actions": self.runner.generator.get_state(),
            "torch": torch.get_rng_state(),
        }
        torch.save(state, folder / f".{STATE_FILE}")
        os.replace(folder / f".{STATE_FILE}", folder / STATE_FILE)

    def restore(self, folder: Path, replay: bool = True) -> None:
        """Restores a checkpoint, without its replay if ``replay`` is false.

        Raises:
            ValueError: if the checkpoint has no replay, or the replay of another iteration.
        """
        state = torch.load(folder / STATE_FILE, weights_only=True)
        if replay:
            if not (folder / REPLAY_FILE).exists():
                raise ValueError(f"checkpoint {folder} has no {REPLAY_FILE} to go on from")
            with np.load(folder / REPLAY_FILE, allow_pickle=False) as arrays:
                self.storage.load(dict(arrays))
            found, expected = self.storage.num_rows_inserted_lifetime, state["num_rows_inserted"]
            if found != expected:
                raise ValueError(
                    f"checkpoint {folder} is incomplete: {REPLAY_FILE} is after {found} rows and "
                    f"{STATE_FILE} after {expected}"
                )
            self.view.update(self.storage.changes())
            self.view.num_inserted_seen = state["num_inserted_seen"]
        self.learner.load_state_dict(state["learner"])
        self.iteration = state["iteration"]
        self.runner.episode, self.runner.num_steps = state["episode"], state["num_steps"]
        self.runner.returns.extend(state["returns"])
        self.runner.generator.set_state(state["actions"])
        # A new seed, so that the first episodes are not repeated.
        self.runner._seed = (self.config["seed"] or 0) + state["num_steps"]
        torch.set_rng_state(state["torch"])
        self._sync()
