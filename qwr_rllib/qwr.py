"""QWR as an RLlib Algorithm: one iteration of the paper's Algorithm 2, in its order.

rollout workers --rows--> replay actor --new rows--> learner's view --weights--> rollout workers
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import ray
import torch
from ray.actor import ActorHandle
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.env.env_context import EnvContext
from ray.rllib.models import MODEL_DEFAULTS
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
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from qwr_rllib import checkpoint, losses, settings
from qwr_rllib.collection import Collector, num_steps
from qwr_rllib.envs import ATARI, atari_config, frame_stack_of, require_observation_shape
from qwr_rllib.learner import ImagePrecision, Learner, LearnerConfig
from qwr_rllib.metrics import RunMetrics
from qwr_rllib.names import did_you_mean, from_mapping
from qwr_rllib.networks import ACTIVATIONS, IMAGE_NETWORKS, ImageNetwork
from qwr_rllib.offline import OfflineConfig, load
from qwr_rllib.qwr_torch_policy import QWRTorchPolicy
from qwr_rllib.replay.actor import ReplayActor
from qwr_rllib.replay.storage import ReplayStorage, check_arrays, memory_bytes
from qwr_rllib.replay.supervisor import SupervisedReplay
from qwr_rllib.replay.view import ReplayView
from qwr_rllib.settings import learner_config, networks_of
from qwr_rllib.spaces import check_actions, fitted, spec_of
from qwr_rllib.specs import Spec
from qwr_rllib.unused_keys import MODEL_KEYS, UNUSED, UNUSED_MODEL, refuse, unchanged
from qwr_rllib.versions import versions

# Below RLlib's logger: its handler and the config's log_level apply.
logger = logging.getLogger("ray.rllib.qwr")

UPDATE_VIEW_TIMER = "update_view"
CRITIC_TIMER = "critic_phase"
ACTOR_TIMER = "actor_phase"


class RefusedRowsError(RuntimeError):
    """More of the collected rows were refused than the config tolerates."""


class QWRConfig(AlgorithmConfig):
    """Configures :class:`QWR`.

    Minimises, alternating (Kozakowski et al., 2021, https://arxiv.org/abs/2102.06782),

        critic:  E[(Q(s, a) - R)^2],  R a multi-step return that bootstraps from
                 F({Q_target(s', a'_j)}),  a'_1..a'_n ~ mu(.|s')
        actor:  -E[sum_j w_j log pi(a_j|s)],  w_j = exp((Q(s, a_j) - V(s)) / beta)

    where mu is the policy that collected the state, whose parameters are in the replay.

    .. code-block:: python

        from qwr_rllib import QWRConfig

        config = QWRConfig().environment("Walker2d-v5").training(backup="max", margin=3)
        algo = config.build_algo()
        print(algo.train()["learner"]["critic_loss"])
    """

    _chosen: frozenset[str] = frozenset()
    """The attributes that a user has set, be it to their defaults."""

    def __init__(self, algo_class: type | None = None) -> None:
        self.exploration_config = {"type": "StochasticSampling"}
        super().__init__(algo_class=algo_class or QWR)
        self.api_stack(enable_rl_module_and_learner=False, enable_env_runner_and_connector_v2=False)
        self.exploration_config = {"type": "StochasticSampling"}
        for name, field in LearnerConfig.__dataclass_fields__.items():
            setattr(self, name, field.default)
        for name, value in settings.DEFAULTS.items():
            setattr(self, name, value)
        self.max_refused_fraction = 0.1
        self.overlap_sampling = False
        self.learner_threads: int | Literal["auto"] = "auto"
        self.offline: dict[str, Any] | None = None

        self.num_env_runners = 1
        self.framework_str = "torch"
        # A row is acknowledged per iteration: fragments are as long as a worker's share of it.
        self.rollout_fragment_length = "auto"
        # The normaliser is in the network; a filter would put filtered rows into the replay.
        self.observation_filter = "NoFilter"
        # RLlib's preprocessor ends the run on an observation outside its space (a NaN is one); here
        # the replay refuses the row. A Box needs no preprocessing.
        self._disable_preprocessor_api = True
        # RLlib would wrap Atari games a second time and clip the returns that it reports.
        self.preprocessor_pref = None
        self.model |= copy.deepcopy(settings.MODEL)
        self.evaluation_config = {"explore": False}
        self.restart_failed_env_runners = True
        self.delay_between_env_runner_restarts_s = 1.0
        # RLlib's 60 would kill workers whose environment is slow: a worker answers when it has
        # its whole share of an iteration.
        self.sample_timeout_s = 1800.0
        self.__dict__["_chosen"] = frozenset()  # so far nobody chose anything

    @override(AlgorithmConfig)
    def training(
        self,
        *,
        n_interactions: int = NotProvided,
        n_critic_steps: int = NotProvided,
        n_actor_steps: int = NotProvided,
        target_update_freq: int = NotProvided,
        critic_type: Literal["q", "v"] = NotProvided,
        actor_actions: Literal["mu", "replay"] = NotProvided,
        n_action_samples: int | Literal["all"] = NotProvided,
        margin: int = NotProvided,
        gamma: float | Sequence[Sequence[float]] = NotProvided,
        lambda_: float = NotProvided,
        backup: losses.Backup = NotProvided,
        backup_temperature: float = NotProvided,
        q_spread: losses.Spread = NotProvided,
        beta: float = NotProvided,
        max_weight: float = NotProvided,
        advantage_scaling: losses.AdvantageScaling = NotProvided,
        action_std: float = NotProvided,
        critic_lr: float = NotProvided,
        actor_lr: float = NotProvided,
        adam_epsilon: float = NotProvided,
        replay_capacity: int = NotProvided,
        normalize_observations: bool = NotProvided,
        critic_post_gate_layer: bool = NotProvided,
        image_network: ImageNetwork = NotProvided,
        max_refused_fraction: float = NotProvided,
        overlap_sampling: bool = NotProvided,
        compile: bool | Literal["auto"] = NotProvided,
        cuda_graphs: bool = NotProvided,
        image_precision: ImagePrecision = NotProvided,
        learner_threads: int | Literal["auto"] = NotProvided,
        frame_stack: int | Literal["auto"] = NotProvided,
        reward_clip: float | None = NotProvided,
        offline: dict[str, Any] | None = NotProvided,
        **kwargs,
    ) -> QWRConfig:
        """Sets the training related configuration; defaults and sources: ``docs/algorithm.md``.

        Args:
            n_interactions: Environment steps collected per iteration, over all rollout workers;
                with ``batch_mode="complete_episodes"`` each of them collects one whole episode.
            n_critic_steps: Critic minibatches per iteration.
            n_actor_steps: Actor minibatches per iteration.
            target_update_freq: Critic steps between syncs of the target network.
            critic_type: "q" for Q(s, a), "v" for V(s), which needs ``actor_actions="replay"``.
            actor_actions: The actions that the actor considers: samples of "mu" (QWR), or the one
                in the "replay" (AWR with V(s), AWAC with Q(s, a)).
            n_action_samples: Actions of mu considered at a state. Discrete actions are all
                enumerated, weighted by mu, where this covers them or with "all".
            margin: The longest return mixed into a target (T).
            gamma: Discount; or its values after numbers of environment steps,
                ``[[0, value], [steps, value], ...]``, linear between these.
            lambda_: Mixes the 1..T-step returns, in [0, 1].
            backup: How sampled actions' values become the value of a state: "logsumexp",
                "max" or "mean".
            backup_temperature: tau of "logsumexp": small is max, large is mean. In units of Q,
                or of its spread, see ``q_spread``.
            q_spread: Divide Q by its spread over the minibatch before the backup and multiply
                after: "std", "abs" (mean absolute deviation) or "none".
            beta: Temperature of the actor's weights: large is behaviour cloning.
            max_weight: Clip of the actor's weights.
            advantage_scaling: Divide the advantages by the standard deviation of those of their
                "state", of all in the "minibatch", or by the "median" of its states' standard
                deviations; "none" leaves them.
            action_std: The Gaussian policy's standard deviation, where the action range is
                [-1, 1].
            critic_lr: Adam's learning rate of the critic.
            actor_lr: Adam's learning rate of the actor.
            adam_epsilon: Adam's addend to the root mean square of a gradient, of both.
            replay_capacity: Environment steps kept in the replay.
            normalize_observations: By running mean and variance inside the network.
            critic_post_gate_layer: One more hidden layer behind the critic's gate.
            image_network: The convolutions and dense layers for images: "mnih2013" (2 and 1) or
                "mnih2015" (3 and 1, wider). ``model``'s ``conv_filters`` and
                ``post_fcnet_hiddens`` go before it.
            offline: Train on logged data: ``{"dataset": ...}``, a Minari data set's id or path or
                RLlib's recorded output, and what else
                :class:`~qwr_rllib.offline.OfflineConfig` has.
            max_refused_fraction: The run fails when more than this share of an iteration's rows
                is refused by the replay (NaN, infinite values).
            overlap_sampling: Collect the next iteration's rows while the learner trains, with the
                actor of the iteration before. The paper does one after the other.
            compile: True compiles the regressions by ``torch.compile``; "auto" takes Numba's
                kernels on a CPU; False compiles nothing.
            cuda_graphs: On a GPU, launch each regression step as one CUDA graph.
            image_precision: Arithmetic of the networks for images: "float32", or "bfloat16", which
                is faster on GPUs and on CPUs that have instructions for it.
            learner_threads: CPU threads of the learner, at most; "auto" takes the CPUs of the main
                process and of the rollout workers, where these rest meanwhile.
            frame_stack: Observations are this many frames along their first axis, of which the
                replay keeps one each; "auto" is what the package's own environments have, else 1.
            reward_clip: Rewards are clipped to this absolute value in the replay; the returns
                that are reported are not.
            **kwargs: RLlib's own: ``train_batch_size``, ``grad_clip`` (global norm),
                ``model`` (``fcnet_hiddens`` and ``fcnet_activation`` for vectors, ``conv_filters``
                and ``post_fcnet_hiddens`` for images).

        Returns:
            This updated config.
        """
        own = {name: value for name, value in locals().items() if name in vars(self)}
        if isinstance(model := kwargs.get("model"), dict):
            for name in model.keys() - unchanged(model, self.model, UNUSED_MODEL):
                refuse(name, model[name], UNUSED_MODEL, "model.")
        super().training(**kwargs)
        for name, value in own.items():
            if value is not NotProvided:
                setattr(self, name, value)
        return self

    @override(AlgorithmConfig)
    def to_dict(self) -> dict[str, Any]:
        """As the parent's, without what this class notes of its settings."""
        return {name: value for name, value in super().to_dict().items() if name != "_chosen"}

    @override(AlgorithmConfig)
    def update_from_dict(self, config_dict) -> QWRConfig:
        """As the parent's, but a key that is unknown or does nothing is an error.

        Raises:
            ValueError: naming the key and the nearest known one, or what to set instead.
        """
        now = vars(self) | self.to_dict()  # in which some names end without their "_"
        known = now.keys() | UNUSED.keys() | {"multiagent", "class"}
        given = dict(config_dict.items())  # RLlib passes configs, too
        if "class" in given:  # of a checkpoint, which an earlier release may have written
            given = {key: value for key, value in given.items() if key not in UNUSED}
            given["model"] = {name: given["model"][name] for name in MODEL_KEYS}
        for key in given:
            # "class" and "_..." are RLlib's and Tune's own bookkeeping.
            if key.startswith("_") or self._translate_special_keys(key, False) in known:
                continue
            raise ValueError(f"unknown config key {key!r}{did_you_mean(key, known)}")
        # The others are set as attributes, which refuses what does nothing.
        same = unchanged(given, now)
        chosen = {key: value for key, value in given.items() if key not in same}
        return super().update_from_dict(chosen)

    def __setattr__(self, key: str, value: Any) -> None:
        # The last that RLlib's own constructor sets: what comes after is of a user.
        if hasattr(self, "_is_frozen"):
            refuse(key, value)
            self.__dict__["_chosen"] = self._chosen | {key}
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
        learner_config(self)
        for name, low, high in (
            ("n_interactions", 1, None),
            ("replay_capacity", 1, None),
            ("num_env_runners", 0, None),
            ("num_envs_per_env_runner", 1, None),
        ):
            _require_number(name, getattr(self, name), low, high, whole=True)
        _require_number("max_refused_fraction", self.max_refused_fraction, 0, 1)
        _require_positive("action_std", self.action_std)
        _require_positive("sample_timeout_s", self.sample_timeout_s)
        if self.reward_clip is not None:
            _require_positive("reward_clip", self.reward_clip)
        for name in ("normalize_observations", "critic_post_gate_layer", "overlap_sampling"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")
        for name in ("learner_threads", "frame_stack"):
            if getattr(self, name) != "auto":
                _require_number(name, getattr(self, name), 1, None, whole=True)
        self.offline_config()
        if self.env == ATARI:
            atari_config(self.env_config)
        if self.overlap_sampling and not self.num_env_runners and not self.in_evaluation:
            raise ValueError(
                "overlap_sampling needs num_env_runners >= 1: the main process cannot collect "
                f"while it trains; got num_env_runners {self.num_env_runners}"
            )
        if self.replay_capacity < self.n_interactions:
            raise ValueError(
                f"replay_capacity must be >= n_interactions ({self.n_interactions}), "
                f"got {self.replay_capacity}"
            )
        envs = max(1, self.num_env_runners) * self.num_envs_per_env_runner
        if self.n_interactions % envs and not (self.in_evaluation or self._whole_episodes):
            raise ValueError(
                f"n_interactions must be a multiple of the number of environments ({envs} = "
                f"rollout workers x num_envs_per_env_runner), got {self.n_interactions}"
            )
        if self.rollout_fragment_length != "auto" and not self.in_evaluation:
            raise ValueError(
                "rollout_fragment_length must be 'auto' (it follows from n_interactions), "
                f"got {self.rollout_fragment_length!r}"
            )
        if self.observation_filter != "NoFilter":
            raise ValueError(
                "observation_filter must be 'NoFilter' (normalize_observations has the effect), "
                f"got {self.observation_filter!r}"
            )
        if self._whole_episodes and self.num_envs_per_env_runner > 1:
            raise ValueError(
                "num_envs_per_env_runner must be 1 with batch_mode 'complete_episodes', where each "
                f"rollout worker collects one episode, got {self.num_envs_per_env_runner}"
            )
        if self.image_network not in IMAGE_NETWORKS:
            raise ValueError(
                f"image_network must be one of {', '.join(map(repr, IMAGE_NETWORKS))}, "
                f"got {self.image_network!r}"
            )
        if self.exploration_config != {"type": "StochasticSampling"}:
            raise ValueError(
                "exploration_config has no effect, action_std is the noise; "
                f"got {self.exploration_config!r}"
            )
        if self.is_multi_agent:
            raise ValueError(f"policies must be one policy, got {sorted(self.policies)}")
        if self.compress_observations:
            raise ValueError("compress_observations must be false: the replay keeps arrays")
        known = MODEL_DEFAULTS.keys()
        for name in self.model.keys() - known:
            raise ValueError(f"unknown key model.{name}{did_you_mean(name, known)}")
        for name in UNUSED_MODEL.keys() & self.model.keys():
            if self.model[name] != MODEL_DEFAULTS[name]:
                refuse(name, self.model[name], UNUSED_MODEL, "model.")
        for name in ("fcnet_hiddens", "post_fcnet_hiddens"):
            widths = self.model.get(name)
            if name == "post_fcnet_hiddens" and not widths:
                continue  # RLlib's default, for which the networks have their own
            if not (isinstance(widths, (list, tuple)) and widths and all(map(_is_size, widths))):
                raise ValueError(f"model.{name} must be a list of integers > 0, got {widths!r}")
        filters = self.model.get("conv_filters")
        if filters and not (isinstance(filters, (list, tuple)) and all(map(_is_layer, filters))):
            raise ValueError(
                "model.conv_filters must be a list of [filters, kernel, stride], integers > 0 (the "
                f"kernel also [height, width]), got {filters!r}"
            )
        if self.model.get("fcnet_activation") not in list(ACTIVATIONS):
            raise ValueError(
                f"model.fcnet_activation must be one of {', '.join(ACTIVATIONS)}, "
                f"got {self.model.get('fcnet_activation')!r}"
            )
        super().validate()

    @property
    def _whole_episodes(self) -> bool:
        """Whether an iteration collects an episode of each worker, and not ``n_interactions``."""
        return self.batch_mode == "complete_episodes" and not self.in_evaluation

    @property
    def rows_per_iteration(self) -> int:
        """Environment steps, at least, that an iteration collects."""
        return max(1, self.num_env_runners) if self._whole_episodes else self.n_interactions

    def check_spaces(self, observation_space: gym.Space, action_space: gym.Space) -> None:
        """Checks that there are networks and a learner for an environment's spaces.

        Raises:
            ValueError: naming the space, or a setting that has no effect with it.
        """
        spec = spec_of(observation_space, action_space, frame_stack_of(self))
        check_actions(action_space, self)
        self.check_effect(spec)
        Learner(networks_of(spec, self), dataclasses.replace(learner_config(self), compile=False))

    def check_effect(self, spec: Spec) -> None:
        """Checks that what was chosen has an effect in the environment.

        Raises:
            ValueError: naming the setting that has none.
        """
        default = type(self)()

        def unused(name: str, where: str, hint: str = "") -> None:
            settings, defaults = (vars(each) | each.model for each in (self, default))
            if name in self._chosen or settings[name] != defaults[name]:
                name = f"model.{name}" if name in self.model else name
                raise ValueError(f"{name} has no effect with {where}{hint}")

        if spec.discrete:
            unused("action_std", "discrete actions: they are sampled by their probabilities")
        if spec.image:
            unused("fcnet_hiddens", "images", ": set model.post_fcnet_hiddens")
        else:
            for name in ("conv_filters", "post_fcnet_hiddens", "image_network"):
                unused(name, "observations that are vectors", ": set model.fcnet_hiddens")
            unused("image_precision", "observations that are vectors")

    def offline_config(self) -> OfflineConfig | None:
        """The checked ``offline``; ``None`` where all data is collected.

        Raises:
            ValueError: naming the key, the value and what is allowed.
        """
        if self.offline is None:
            return None
        return from_mapping(OfflineConfig, self.offline, "offline")

    def load_offline(self, env: gym.Env) -> ReplayStorage | None:
        """A store with the logged data of ``offline``; ``None`` where all data is collected.

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
        if self._whole_episodes:
            return 1  # what is beyond this is the rest of the episode
        envs = max(1, self.num_env_runners) * self.num_envs_per_env_runner
        return self.n_interactions // envs


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_layer(value: Any) -> bool:
    """Whether it is filters, kernel and stride of a convolution."""
    if not (isinstance(value, (list, tuple)) and len(value) == 3):
        return False
    filters, kernel, stride = value
    sizes = kernel if isinstance(kernel, (list, tuple)) and len(kernel) == 2 else [kernel]
    return all(map(_is_size, [filters, *sizes, stride]))


def _require_number(
    name: str, value: Any, low: float, high: float | None, whole: bool = False
) -> None:
    kinds = (int,) if whole else (int, float)
    good = isinstance(value, kinds) and not isinstance(value, bool) and value >= low
    if not good or (high is not None and value > high):
        kind = "an integer" if whole else "a number"
        limits = f">= {low}" if high is None else f"in [{low}, {high}]"
        raise ValueError(f"{name} must be {kind} {limits}, got {value!r}")


def _require_positive(name: str, value: Any) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and 0 < value < float("inf")):
        raise ValueError(f"{name} must be a number > 0, got {value!r}")


def _num_cpus() -> int:
    """CPUs that this process may use; macOS and Windows cannot tell them from all."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


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
        config.check_effect(policy.spec)
        if isinstance(policy.action_space, gym.spaces.Box) and not policy.action_space.is_bounded():
            logger.warning(
                "%s has no bounds: actions go to the environment as the policy samples them, at "
                "first with mean 0 and standard deviation %s.",
                policy.action_space,
                config.action_std,
            )
        if config.learner_threads == "auto":
            runners = config.num_env_runners * config.num_cpus_per_env_runner
            runners *= not config.overlap_sampling
            threads = int(config.num_cpus_for_main_process + runners)
        else:
            threads = config.learner_threads
        policy.learner.threads = threads = max(1, min(threads, _num_cpus()))
        # Of images any operation is large enough to be shared, of vectors the learner decides.
        torch.set_num_threads(threads if policy.spec.image else 1)

        self._check_memory(policy)
        self.collector = Collector(
            self.env_runner_group,
            config.num_env_runners,
            config.rows_per_iteration,
            lambda: self.restore_env_runners(self.env_runner_group),
            config.env_runner_restore_timeout_s if config.restart_failed_env_runners else 0,
            config.sample_timeout_s,
        )
        self.view = ReplayView(policy.spec, config.replay_capacity, policy.device)
        self.supervised = SupervisedReplay(self._start_replay, self.view, self.collector.resend)
        self._num_steps_in_view = 0
        self._learner_metrics: dict[str, float] = {}
        self._replay_metrics: dict[str, float] = {}
        self._blocked_s = 0.0
        self._versions = versions()
        self._offline = config.offline_config()
        self._num_rows_offline = 0  # of those inserted into the replay
        self._replay_to_load: dict[str, np.ndarray] = {}  # checked with what else is restored
        # Without Tune, the folder of the results is what names a run.
        trial = self.trial_name if self.trial_id != "default" else Path(self.logdir).name
        self._run_metrics = RunMetrics(trial, str(config.env))

    def _check_memory(self, policy: QWRTorchPolicy) -> None:
        """Says what the replay and its view take, and refuses what this node does not have."""
        needed = 2 * memory_bytes(policy.spec, self.config.replay_capacity)
        rows = f"{self.config.replay_capacity} rows of {policy.spec.obs_shape} observations"
        logger.info("Replay and view of %s take %.1f MB.", rows, needed / 1e6)
        node_id = ray.get_runtime_context().get_node_id()
        for node in ray.nodes():
            memory = node["Resources"].get("memory")
            if node["NodeID"] == node_id and memory is not None and needed > memory:
                raise ValueError(
                    f"replay_capacity must fit the memory: {rows} take {needed / 1e9:.1f} GB in "
                    f"replay and view, this node has {memory / 1e9:.1f} GB"
                )

    def _start_replay(self) -> ActorHandle:
        """Starts the replay actor beside the learner, inside the trial's resources if any."""
        group = ray.util.get_current_placement_group()
        strategy: Any
        if group is not None:
            strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
        else:
            node_id = ray.get_runtime_context().get_node_id()
            strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
        return ReplayActor.options(scheduling_strategy=strategy).remote(
            self.get_policy().spec, self.config.replay_capacity
        )

    @property
    def replay(self) -> ActorHandle:
        """The replay actor: the store of record. It may be another one after a failure."""
        return self.supervised.actor

    def placement(self) -> dict[str, str]:
        """The id of the node that each part runs on, as ``ray.nodes()`` has it."""
        nodes = self.env_runner_group.foreach_env_runner(
            lambda worker: (worker.worker_index, ray.get_runtime_context().get_node_id()),
            local_env_runner=False,
        )
        return {
            "learner": ray.get_runtime_context().get_node_id(),
            "replay": self.supervised.call("node_id"),
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
            self.collector.begin(self.supervised, self.learner.num_actor_updates)
        self.learner.gamma = self.learner.config.gamma_at(self._counters[NUM_ENV_STEPS_SAMPLED])
        with self._timers[CRITIC_TIMER]:
            critic = self.learner.train_critic(self.view)
        with self._timers[ACTOR_TIMER]:
            actor = self.learner.train_actor(self.view)
        # A worker that hangs must not be waited for below.
        self.collector.wait()
        with self._timers[SYNCH_WORKER_WEIGHTS_TIMER]:
            # Waited for: the next rows are to come from these weights.
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
        """Whether an iteration (the first is 0) collects rows, or trains on logged data alone."""
        if self._offline is None:
            return True
        return self._offline.iterations is not None and iteration >= self._offline.iterations

    def _fill(self) -> None:
        """Fills the replay with the logged data."""
        _, creator = self._get_env_id_and_creator(self.config.env, self.config)
        with contextlib.closing(creator(EnvContext(self.config.env_config, 0))) as env:
            storage = self.config.load_offline(env)
        self._num_rows_offline = storage.num_rows_inserted_lifetime
        self.supervised.call("load", storage.state_arrays())
        self._update_view()

    def _collect(self) -> None:
        """Collects ``n_interactions`` rows; see :class:`Collector`."""
        collected = self.collector.complete(
            self.supervised, self._num_steps_in_view, self.learner.num_actor_updates
        )
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
        new, metrics = self.supervised.update_view()
        self.collector.end_round()
        self._observe(new)
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

    def _observe(self, new: torch.Tensor) -> None:
        if not self.view.spec.image:  # which have no statistics
            self.learner.observe(self.view.observations(new))

    @override(Algorithm)
    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Writes a checkpoint that is whole or not there at all; one before stays until then.

        Nothing else in the folder is touched. The replay is ``replay.npz``, plain arrays.

        Raises:
            FileExistsError: if the folder has something else under a name that a checkpoint uses.
        """
        with checkpoint.replaced(Path(checkpoint_dir)) as folder:
            super().save_checkpoint(str(folder))
            arrays = self.supervised.call("state_arrays")
            np.savez(folder / checkpoint.REPLAY_FILE, allow_pickle=False, **arrays)

    @override(Algorithm)
    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Restores everything, the replay too.

        Raises:
            ValueError: if the checkpoint is missing or incomplete, or of another environment,
                network, first discount or version; nothing is restored then.
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
        """As the parent's; the replay is restored too.

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
        self.supervised.call("load", arrays)
        # With overlap_sampling there may be rows of the next iteration, which are new.
        new, metrics = self.supervised.update_view()
        self._replay_metrics = dict(metrics)
        self._observe(new)

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
        # An older learner has no gamma, which its config has.
        missing = [
            *({"num_rows_offline", "num_steps_in_view", "num_inserted_seen"} - state.keys()),
            *(self.learner.state_dict().keys() - {"gamma"} - saved_learner.keys()),
        ]
        if missing:
            raise ValueError(
                f"it lacks {', '.join(sorted(missing))}: it is of another version or algorithm"
            )
        # A class of a script is another object in the script's next run.
        env, own_env = (
            getattr(env, "__qualname__", env) for env in (state["config"]["env"], self.config.env)
        )
        if env != own_env:
            raise ValueError(f"the checkpoint is of environment {env!r}, not {own_env!r}")
        config = self.learner.config
        first = dataclasses.replace(config, gamma=state["config"]["gamma"]).gamma_at(0)
        if first != config.gamma_at(0):
            raise ValueError(
                f"gamma must begin with the checkpoint's, {first}, which scales its critic's head; "
                f"got {config.gamma!r}"
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
        """Becomes another trial in the same process, which Tune's ``reuse_actors`` asks for.

        Everything is made anew, so that with a seed the trial is the same as in a process of its
        own; what is saved is the start of the process and its imports.
        """
        self.stop()
        # What Tune hands to a new trainable inside its config.
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
            self.collector.wait()  # RLlib would wait for a worker that hangs, without a time-out
        super().cleanup()
        if hasattr(self, "supervised"):
            self.supervised.stop()
        if hasattr(self, "_run_metrics"):
            self._run_metrics.stop()
