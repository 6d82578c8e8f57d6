"""QWR as an RLlib Algorithm: one iteration of the paper's Algorithm 2, in its order.

rollout workers --rows--> replay actor --new rows--> learner's view --weights--> rollout workers
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import logging
import random
from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import ray
import torch
from ray.actor import ActorHandle
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.env.env_context import EnvContext
from ray.rllib.policy.policy import Policy
from ray.rllib.policy.sample_batch import DEFAULT_POLICY_ID
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import (
    NUM_AGENT_STEPS_SAMPLED,
    NUM_ENV_STEPS_SAMPLED,
    NUM_ENV_STEPS_TRAINED,
    SAMPLE_TIMER,
    SYNCH_WORKER_WEIGHTS_TIMER,
)
from ray.tune.result import STDERR_FILE, STDOUT_FILE, TRIAL_INFO

from qwr_rllib.algorithms import checkpoint, resources
from qwr_rllib.algorithms.checks import check_combinations, check_effect, check_model
from qwr_rllib.algorithms.policy import QWRTorchPolicy
from qwr_rllib.algorithms.unused_keys import MODEL_KEYS, UNUSED, UNUSED_MODEL, refuse, unchanged
from qwr_rllib.envs.atari import ATARI, atari_config, frame_stack_of, require_observation_shape
from qwr_rllib.envs.spaces import check_actions, fitted, spec_of
from qwr_rllib.learning.config import (
    ALGORITHMS,
    MODEL,
    QWRSettings,
    defaults,
    descriptions,
    learner_config,
)
from qwr_rllib.learning.learner import Learner
from qwr_rllib.learning.networks import networks_of
from qwr_rllib.offline import OfflineConfig, load, logged_mu
from qwr_rllib.prometheus import RunMetrics
from qwr_rllib.replay.client import ReplayClient
from qwr_rllib.replay.replica import ReplayView
from qwr_rllib.replay.serialization import check_arrays
from qwr_rllib.replay.storage import ReplayStorage
from qwr_rllib.sampling.collector import Collector, RolloutWorkers, num_steps
from qwr_rllib.validation import POSITIVE, did_you_mean, from_mapping, integer
from qwr_rllib.versions import versions

# A child of RLlib's logger, so that its handler and the config's log_level apply.
logger = logging.getLogger("ray.rllib.qwr")

UPDATE_VIEW_TIMER = "update_view"
CRITIC_TIMER = "critic_phase"
ACTOR_TIMER = "actor_phase"


class RefusedRowsError(RuntimeError):
    """Raised if more of the collected rows were refused than ``max_refused_fraction`` allows."""


_SETTINGS = defaults(QWRSettings)


def _refuse_unknown(names: Iterable[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"unknown config key {name!r}{did_you_mean(name, known)}")


def _documented(training: Callable[..., QWRConfig]) -> Callable[..., QWRConfig]:
    """Adds the settings to the signature and the docstring of ``training()``."""
    kind = inspect.Parameter.KEYWORD_ONLY
    own = [inspect.Parameter(name, kind, default=NotProvided) for name in _SETTINGS]
    own.append(inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD))
    positional = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    training.__signature__ = inspect.Signature([positional, *own])  # type: ignore[attr-defined]
    texts = descriptions().items()
    arguments = [f"    {name}: {' '.join(text.split())}" for name, text in texts]
    summary, raises = inspect.cleandoc(training.__doc__ or "").split("\n\n")
    training.__doc__ = "\n\n".join([summary, "\n".join(["Args:", *arguments]), raises])
    return training


class QWRConfig(AlgorithmConfig):
    """Configures :class:`QWR`.

    Minimises two losses in turn (Kozakowski et al., 2021, https://arxiv.org/abs/2102.06782):

        critic:  E[(Q(s, a) - R)^2],  R a multi-step return that bootstraps from
                 F({Q_target(s', a'_j)}),  a'_1..a'_n ~ mu(.|s')
        actor:  -E[sum_j w_j log pi(a_j|s)],  w_j = exp((Q(s, a_j) - V(s)) / beta)

    where mu is the policy that collected the state. The replay stores mu's parameters.

    .. code-block:: python

        from qwr_rllib import QWRConfig

        config = QWRConfig().environment("Walker2d-v5").training(backup="max", margin=3)
        algo = config.build_algo()
        print(algo.train()["learner"]["critic_loss"])
    """

    chosen: frozenset[str] = frozenset()
    """The attributes that the user has set, even if to their defaults."""
    _own_defaults: ClassVar[dict[str, Any]] = ALGORITHMS["QWR"]

    def __init__(self, algo_class: type | None = None) -> None:
        self.exploration_config = {"type": "StochasticSampling"}
        super().__init__(algo_class=algo_class or QWR)
        self.api_stack(enable_rl_module_and_learner=False, enable_env_runner_and_connector_v2=False)
        self.exploration_config = {"type": "StochasticSampling"}
        for name, value in (_SETTINGS | self._own_defaults).items():
            setattr(self, name, value)

        self.num_env_runners = 1
        self.framework_str = "torch"
        # A fragment is a worker's share of an iteration.
        self.rollout_fragment_length = "auto"
        # The normaliser is in the network; a filter would put filtered rows into the replay.
        self.observation_filter = "NoFilter"
        # RLlib's preprocessor raises on an observation outside its space, such as a NaN; without
        # it the replay refuses the row. A Box needs no preprocessing.
        self._disable_preprocessor_api = True
        # RLlib would wrap Atari games a second time and clip the returns that it reports.
        self.preprocessor_pref = None
        self.model |= copy.deepcopy(MODEL)
        self.evaluation_config = {"explore": False}
        self.restart_failed_env_runners = True
        self.delay_between_env_runner_restarts_s = 1.0
        # RLlib's default of 60 would kill workers with slow environments: a worker answers only
        # after its whole share of an iteration.
        self.sample_timeout_s = 1800.0
        self.__dict__["chosen"] = frozenset()  # the user has set nothing yet

    @_documented
    @override(AlgorithmConfig)
    def training(self, **settings: Any) -> QWRConfig:
        """Sets settings; see ``docs/settings.md``. Other keys, such as ``model``, are RLlib's.

        Raises:
            ValueError: for an unknown key or one that has no effect.
        """
        names = {key for key in settings if settings[key] is not NotProvided}
        rllib = inspect.signature(AlgorithmConfig.training).parameters.keys() - {"self"}
        _refuse_unknown(names, rllib | _SETTINGS.keys())
        if isinstance(model := settings.get("model"), dict):
            for name in model.keys() - unchanged(model, self.model, UNUSED_MODEL):
                refuse(name, model[name], UNUSED_MODEL, "model.")
        super().training(**{name: settings[name] for name in names - _SETTINGS.keys()})
        for name in names & _SETTINGS.keys():
            setattr(self, name, settings[name])
        return self

    @override(AlgorithmConfig)
    def to_dict(self) -> dict[str, Any]:
        """Returns the parent's dict without ``chosen``."""
        return {name: value for name, value in super().to_dict().items() if name != "chosen"}

    @override(AlgorithmConfig)
    def update_from_dict(self, config_dict) -> QWRConfig:
        """Updates the config as the parent does, but refuses keys that are unknown or unused.

        Raises:
            ValueError: naming the key and the closest known one, or what to set instead.
        """
        now = vars(self) | self.to_dict()  # which writes some names without their final "_"
        known = now.keys() | UNUSED.keys() | {"multiagent", "class"}
        given = dict(config_dict.items())  # RLlib also passes config objects
        given.pop("chosen", None)
        if "class" in given:  # from a checkpoint, perhaps of an earlier release
            given = {key: value for key, value in given.items() if key not in UNUSED}
            given["model"] = {name: given["model"][name] for name in MODEL_KEYS}
        # Keys that begin with "_" belong to RLlib and Tune.
        own = (key for key in given if not key.startswith("_"))
        _refuse_unknown((self._translate_special_keys(key, False) for key in own), known)
        # `__setattr__` refuses the others if they are unused.
        same = unchanged(given, now)
        before = self.chosen
        super().update_from_dict({key: value for key, value in given.items() if key not in same})
        # The user did not choose what is in a checkpoint, or in a dict with every setting.
        if "class" in given or len(given.keys() & _SETTINGS.keys()) > len(_SETTINGS) / 2:
            self.__dict__["chosen"] = before
        return self

    def __setattr__(self, key: str, value: Any) -> None:
        # RLlib's constructor sets `_is_frozen` last: later assignments are not RLlib's.
        if hasattr(self, "_is_frozen"):
            refuse(key, value)
            self.__dict__["chosen"] = self.chosen | {key}
        super().__setattr__(key, value)

    @override(AlgorithmConfig)
    def validate(self) -> None:
        """Checks everything that can be checked before anything starts.

        Raises:
            ValueError: one line with the key, its value and what is allowed.
        """
        if self.enable_rl_module_and_learner or self.enable_env_runner_and_connector_v2:
            raise ValueError(
                "QWR runs on RLlib's old API stack: its rollout workers and its policy are of that "
                "one, and its learner is no RLlib Learner; leave api_stack(), "
                "enable_rl_module_and_learner and enable_env_runner_and_connector_v2 out"
            )
        if self.framework_str != "torch":
            raise ValueError(f"framework must be 'torch', got {self.framework_str!r}")
        QWRSettings(**{name: getattr(self, name) for name in _SETTINGS})
        for name, low in (("num_env_runners", 0), ("num_envs_per_env_runner", 1)):
            integer(low).check(name, getattr(self, name))
        POSITIVE.check("sample_timeout_s", self.sample_timeout_s)
        self.offline_config()
        if self.env == ATARI:
            atari_config(self.env_config)
        check_combinations(self)
        check_model(self.model)
        super().validate()

    @property
    def whole_episodes(self) -> bool:
        """Whether an iteration collects one episode per worker instead of ``n_interactions``."""
        return self.batch_mode == "complete_episodes" and not self.in_evaluation

    @property
    def rows_per_iteration(self) -> int:
        """Least number of environment steps that an iteration collects."""
        return max(1, self.num_env_runners) if self.whole_episodes else self.n_interactions

    def check_spaces(self, observation_space: gym.Space, action_space: gym.Space) -> None:
        """Checks that networks and a learner can be built for an environment's spaces.

        Raises:
            ValueError: naming the space, or a setting that has no effect with it.
        """
        spec = spec_of(observation_space, action_space, frame_stack_of(self))
        check_actions(action_space, self)
        check_effect(self, spec)
        Learner(networks_of(spec, self), dataclasses.replace(learner_config(self), compile=False))

    def offline_config(self) -> OfflineConfig | None:
        """Returns the checked ``offline``; ``None`` if all data is collected.

        Raises:
            ValueError: naming the key, the value and what is allowed.
        """
        if self.offline is None:
            return None
        return from_mapping(OfflineConfig, self.offline, "offline")

    def load_offline(self, env: gym.Env) -> ReplayStorage | None:
        """Returns a store with the logged data of ``offline``; ``None`` if all data is collected.

        Raises:
            ValueError: see :func:`qwr_rllib.offline.load`.
            ModuleNotFoundError: if Minari is needed and not installed.
        """
        offline = self.offline_config()
        if offline is None:
            return None
        return load(
            offline,
            env,
            spec_of(env.observation_space, env.action_space, frame_stack_of(self)),
            self.replay_capacity,
            self.margin,
            self.normalize_actions,
            self.reward_clip,
        )

    @override(AlgorithmConfig)
    def get_evaluation_config_object(self) -> AlgorithmConfig | None:
        config = super().get_evaluation_config_object()
        if config is not None and self.env == ATARI:
            config.env_config = self.env_config | config.env_config | {"evaluation": True}
        return config

    @override(AlgorithmConfig)
    def get_rollout_fragment_length(self, worker_index: int = 0) -> int:
        if isinstance(self.rollout_fragment_length, int):  # evaluation sets its own
            return self.rollout_fragment_length
        if self.whole_episodes:
            return 1  # RLlib adds the rest of the episode
        envs = max(1, self.num_env_runners) * self.num_envs_per_env_runner
        return self.n_interactions // envs


class QWR(Algorithm):
    """Q-Value Weighted Regression; see :class:`QWRConfig`."""

    @classmethod
    @override(Algorithm)
    def get_default_config(cls) -> QWRConfig:
        return QWRConfig()

    @classmethod
    @override(Algorithm)
    def get_default_policy_class(cls, config: AlgorithmConfig) -> type[Policy]:
        return QWRTorchPolicy

    @staticmethod
    @override(Algorithm)
    def _get_env_id_and_creator(env_specifier, config):
        # `validate_env`, RLlib's place for checks, is not called in remote rollout workers.
        env_id, creator = Algorithm._get_env_id_and_creator(env_specifier, config)
        if env_id is None:
            return env_id, creator
        return env_id, lambda context: require_observation_shape(
            fitted(creator(context)), context.worker_index
        )

    @override(Algorithm)
    def setup(self, config: QWRConfig) -> None:
        super().setup(config)
        policy = self.get_policy()
        check_effect(config, policy.spec)
        if isinstance(policy.action_space, gym.spaces.Box) and not policy.action_space.is_bounded():
            logger.warning(
                "%s has no bounds: actions go to the environment as the policy samples them, at "
                "first with mean 0 and standard deviation %s.",
                policy.action_space,
                config.action_std,
            )
        # With images every operation is large enough for threads; with vectors the learner decides.
        torch.set_num_threads(policy.learner.threads if policy.spec.image else 1)

        resources.check_memory(policy.spec, config.replay_capacity)
        workers = RolloutWorkers(
            self.env_runner_group,
            config.num_env_runners,
            lambda: self.restore_env_runners(self.env_runner_group),
            config.env_runner_restore_timeout_s if config.restart_failed_env_runners else 0,
            config.sample_timeout_s,
        )
        self.view = ReplayView(policy.spec, config.replay_capacity, policy.device)
        start = partial(resources.start_replay, policy.spec, config.replay_capacity)
        self.replay_client = ReplayClient(start, self.view, workers.resend)
        self.collector = Collector(workers, self.replay_client, config.rows_per_iteration)
        self._num_steps_in_view = 0
        self._learner_metrics: dict[str, float] = {}
        self._replay_metrics: dict[str, float] = {}
        self._blocked_s = 0.0
        self._versions = versions()
        self._offline = config.offline_config()
        self._num_rows_offline = 0  # logged rows among those inserted into the replay
        self._replay_to_load: dict[str, np.ndarray] = {}  # `_check_compatible` checks it
        # Without Tune, the results folder names the run.
        trial = self.trial_name if self.trial_id != "default" else Path(self.logdir).name
        self._run_metrics = RunMetrics(trial, str(config.env))

    @property
    def replay(self) -> ActorHandle:
        """The replay actor, the store of record; after a failure, a new actor."""
        return self.replay_client.actor

    def placement(self) -> dict[str, str]:
        """Returns the node id of each part, as in ``ray.nodes()``."""
        nodes = self.env_runner_group.foreach_env_runner(
            lambda worker: (worker.worker_index, ray.get_runtime_context().get_node_id()),
            local_env_runner=False,
        )
        return {
            "learner": ray.get_runtime_context().get_node_id(),
            "replay": self.replay_client.call("node_id"),
            **{f"rollout worker {index}": node for index, node in nodes},
        }

    @property
    def learner(self) -> Learner:
        """The learner in the local worker's policy."""
        learner = self.get_policy().learner
        assert learner is not None
        return learner

    @override(Algorithm)
    def training_step(self) -> dict[str, Any]:
        if self.learner.num_actor_updates and not self.view.num_rows:
            raise RuntimeError(
                "this algorithm was restored without its replay, which Algorithm.from_checkpoint "
                "does not know of: use QWR.from_checkpoint or Algorithm.restore"
            )
        if self._offline is not None and not self.view.num_rows:
            self._fill()
        if self._collects(self.iteration):
            with self._timers[SAMPLE_TIMER]:
                self._collect()
        with self._timers[UPDATE_VIEW_TIMER]:
            self._update_view()
        if self.config.overlap_sampling and self._collects(self.iteration + 1):
            self.collector.begin(self.learner.num_actor_updates)
        with self._timers[CRITIC_TIMER]:
            critic = self.learner.train_critic(self.view, self._counters[NUM_ENV_STEPS_SAMPLED])
        with self._timers[ACTOR_TIMER]:
            actor = self.learner.train_actor(self.view)
        # Kills a worker that hangs: the weights' sync below would wait for it.
        self.collector.wait()
        with self._timers[SYNCH_WORKER_WEIGHTS_TIMER]:
            # Blocks, so that the next rows come from these weights.
            self.env_runner_group.sync_weights(timeout_seconds=self.config.sample_timeout_s)
        batch_size = self.config.train_batch_size
        self._counters[NUM_ENV_STEPS_TRAINED] += batch_size * self.config.n_critic_steps
        self._replay_metrics["samples_per_insert"] = (
            self.learner.num_critic_updates
            * batch_size
            / self._replay_metrics["num_rows_inserted_lifetime"]
        )
        self._learner_metrics = (
            critic
            | actor
            | {
                "gamma": self.learner.gamma,
                "num_critic_updates_lifetime": self.learner.num_critic_updates,
                "num_actor_updates_lifetime": self.learner.num_actor_updates,
                "num_target_updates_lifetime": self.learner.num_target_updates,
            }
        )
        return {}

    @override(Algorithm)
    def step(self) -> dict[str, Any]:
        results = super().step()
        results |= {
            "learner": self._learner_metrics,
            "replay": self._replay_metrics,
            "versions": self._versions,
        }
        self._run_metrics.report(results)
        return results

    def _collects(self, iteration: int) -> bool:
        """Returns False if an iteration (the first is 0) trains on logged data alone."""
        if self._offline is None:
            return True
        return self._offline.iterations is not None and iteration >= self._offline.iterations

    def _fill(self) -> None:
        """Fills the replay with the logged data."""
        _, creator = self._get_env_id_and_creator(self.config.env, self.config)
        with contextlib.closing(creator(EnvContext(self.config.env_config, 0))) as env:
            storage = self.config.load_offline(env)
        self._num_rows_offline = storage.num_rows_inserted_lifetime
        assert self._offline is not None
        self.learner.logged_mu = logged_mu(storage, self.config.action_std, self._offline.mu_std)
        logger.info("The policy of the logged actions: %s", self.learner.logged_mu)
        self.replay_client.call("load", storage.state_arrays())
        self._update_view()

    def _collect(self) -> None:
        """Collects an iteration's rows; see :class:`Collector`."""
        self.learner.logged_mu = None  # rows of the policy join those of logged data
        collected = self.collector.complete(self._num_steps_in_view, self.learner.num_actor_updates)
        self._blocked_s = collected.blocked_s
        refused = collected.metrics["num_rows_refused_lifetime"] - self._replay_metrics.get(
            "num_rows_refused_lifetime", 0
        )
        if refused > self.config.max_refused_fraction * self.config.n_interactions:
            last = collected.refusals[-1] if collected.refusals else "of a worker that is lost"
            raise RefusedRowsError(
                f"{refused} of {num_steps(collected.metrics) - self._num_steps_in_view} rows were "
                f"refused, more than max_refused_fraction {self.config.max_refused_fraction} "
                f"allows; the log names each, the last is: {last}"
            )

    def _update_view(self) -> None:
        """Brings the learner's view and the counters up to date with the store of record."""
        new, metrics = self.replay_client.update_view()
        self.collector.end_round()
        self._update_normalizer(new)
        self._num_steps_in_view = num_steps(metrics)
        steps = self._num_steps_in_view - self._num_rows_offline
        self._counters[NUM_ENV_STEPS_SAMPLED] = steps
        self._counters[NUM_AGENT_STEPS_SAMPLED] = steps
        ages = (self.learner.num_actor_updates - self.view.policy_version).double()
        self._replay_metrics = metrics | {
            "blocked_s": self._blocked_s,
            "policy_age": ages[self.view.rows].mean().item(),
            "policy_age_new": ages[new].mean().item(),
        }

    def _update_normalizer(self, new: torch.Tensor) -> None:
        if not self.view.spec.image:  # images need no statistics
            self.learner.update_normalizer(self.view.observations(new))

    @override(Algorithm)
    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Writes a checkpoint, completely or not at all; an earlier one stays until then.

        Other files in the folder are not touched. ``replay.npz`` is the replay, as plain arrays.

        Raises:
            FileExistsError: if the folder has something else under a name that a checkpoint uses.
        """
        with checkpoint.replaced(Path(checkpoint_dir)) as folder:
            super().save_checkpoint(str(folder))
            arrays = self.replay_client.call("state_arrays")
            np.savez(folder / checkpoint.REPLAY_FILE, allow_pickle=False, **arrays)

    @override(Algorithm)
    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Restores everything, including the replay.

        Raises:
            ValueError: if the checkpoint is missing or incomplete, or of another environment,
                network, scale of Q or version; nothing is restored then.
        """
        with checkpoint.opened(Path(checkpoint_dir)) as folder:
            self._replay_to_load = arrays = checkpoint.read_replay(folder)
            try:
                super().load_checkpoint(str(folder))
            finally:
                self._replay_to_load = {}
        self._load_replay(arrays)

    @classmethod
    @override(Algorithm)
    def from_checkpoint(cls, path, filesystem=None, **kwargs) -> QWR:
        """Builds the algorithm of a checkpoint as the parent does, and restores the replay.

        Raises:
            ValueError: if the checkpoint is missing, incomplete or of another version.
        """
        directory = path.to_directory() if hasattr(path, "to_directory") else str(path)
        with checkpoint.opened(Path(directory)) as folder:
            arrays = checkpoint.read_replay(folder)
            algorithm = super().from_checkpoint(str(folder), filesystem, **kwargs)
            check_arrays(algorithm.view.spec, arrays)
        algorithm._load_replay(arrays)
        return algorithm

    def _load_replay(self, arrays: dict[str, np.ndarray]) -> None:
        self.collector.abandon_round()
        self.replay_client.call("load", arrays)
        # With overlap_sampling the replay may hold new rows, those of the next iteration.
        new, metrics = self.replay_client.update_view()
        self._replay_metrics = dict(metrics)
        self._update_normalizer(new)

    @override(Algorithm)
    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {
            "num_rows_offline": self._num_rows_offline,
            "num_steps_in_view": self._num_steps_in_view,
            "num_inserted_seen": self.view.num_inserted_seen,
            "random_states": {
                "python": random.getstate(),
                "numpy": np.random.get_state(),
                "torch": torch.get_rng_state(),
            },
        }

    @override(Algorithm)
    def __setstate__(self, state: dict[str, Any]) -> None:
        self._check_compatible(state)
        super().__setstate__(state)
        self._num_rows_offline = state["num_rows_offline"]
        self._num_steps_in_view = state["num_steps_in_view"]
        self.view.num_inserted_seen = state["num_inserted_seen"]
        setters: dict[str, Callable[[Any], None]] = {
            "python": random.setstate,
            "numpy": np.random.set_state,
            "torch": torch.set_rng_state,
        }
        states = state.get("random_states", {})
        for name, set_state in setters.items():
            if name in states:
                set_state(states[name])
        if missing := sorted(setters.keys() - states.keys()):
            logger.warning(
                "The checkpoint lacks the random states of %s: their numbers begin anew.",
                ", ".join(missing),
            )

    def _check_compatible(self, state: dict[str, Any]) -> None:
        saved_learner = state["worker"]["policy_states"][DEFAULT_POLICY_ID].get("learner", {})
        # Older checkpoints have gamma in their config only.
        missing = [
            *({"num_rows_offline", "num_steps_in_view", "num_inserted_seen"} - state.keys()),
            *(self.learner.state_dict().keys() - {"gamma"} - saved_learner.keys()),
        ]
        if missing:
            raise ValueError(
                f"it lacks {', '.join(sorted(missing))}: it is of another version or algorithm"
            )
        # A script's class is a different object in the script's next run: compare names.
        env, own_env = (
            getattr(env, "__qualname__", env) for env in (state["config"]["env"], self.config.env)
        )
        if env != own_env:
            raise ValueError(f"the checkpoint is of environment {env!r}, not {own_env!r}")
        config = self.learner.config
        saved_config = dataclasses.replace(
            config,
            gamma=state["config"]["gamma"],
            q_scale=state["config"].get("q_scale", "horizon"),  # the only one in earlier releases
        )
        if saved_config.head_scale != config.head_scale:
            raise ValueError(
                "q_scale and the first gamma must divide Q by the checkpoint's number, "
                f"{saved_config.head_scale:g}, got {config.head_scale:g} "
                f"(q_scale {config.q_scale!r}, gamma {config.gamma!r})"
            )
        saved = saved_learner["networks"]
        own = self.learner.networks.state_dict()
        for name in sorted(saved.keys() | own.keys()):
            shapes = [
                tuple(tensors[name].shape) if name in tensors else None for tensors in (saved, own)
            ]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"the checkpoint is of another network: {name} has shape {shapes[0]} there "
                    f"and {shapes[1]} here"
                )
        if self._replay_to_load:
            check_arrays(self.view.spec, self._replay_to_load)

    @override(Algorithm)
    def export_policy_model(
        self, export_dir: str, policy_id: str = DEFAULT_POLICY_ID, onnx: int | None = None
    ) -> None:
        """Writes the policy to deploy; see :meth:`QWRTorchPolicy.export_model`."""
        env_steps = self._counters[NUM_ENV_STEPS_SAMPLED]
        self.get_policy(policy_id).export_model(export_dir, onnx, env_steps)

    @override(Algorithm)
    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Starts another trial in the same process, for Tune's ``reuse_actors``.

        Everything is built again, so that a seed gives the same trial as in a new process. Only
        the start of the process and its imports are saved.
        """
        self.stop()
        # Tune passes these to a new trainable inside its config.
        own = {
            TRIAL_INFO: self._trial_info,
            STDOUT_FILE: self._stdout_file,
            STDERR_FILE: self._stderr_file,
        }
        self.__init__({**new_config, **own}, storage=self._storage)  # type: ignore[misc]
        return True

    @override(Algorithm)
    def cleanup(self) -> None:
        if hasattr(self, "collector"):
            self.collector.wait()  # RLlib would wait for a hanging worker without a time-out
        super().cleanup()
        if hasattr(self, "replay_client"):
            self.replay_client.stop()
        if hasattr(self, "_run_metrics"):
            self._run_metrics.stop()
