"""All settings of QWR, QWRPlus, AWR and AWAC, each with its default, rule and description.

``QWRConfig``, its ``training()``, the command line, training without Ray and the table in
``docs/settings.md`` read the dataclasses here.
"""

from __future__ import annotations

import ast
import inspect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qwr_rllib.learning import losses
from qwr_rllib.validation import (
    ANYTHING,
    BOOLEAN,
    POSITIVE,
    Rule,
    check_settings,
    integer,
    is_integer,
    is_number,
    number,
    one_of,
    setting,
)

CriticType = Literal["q", "v"]
CriticNetwork = Literal["gated", "joint"]
ActorActions = Literal["mu", "replay"]
SamplesFrom = Literal["mu", "pi"]
ImageNetwork = Literal["mnih2013", "mnih2015"]
Precision = Literal["float32", "bfloat16"]
BatchMode = Literal["truncate_episodes", "complete_episodes"]


def _is_discount(value: Any) -> bool:
    return is_number(value) and 0 <= value < 1


def _is_schedule(points: Any) -> bool:
    if not isinstance(points, (list, tuple)):
        return False
    if not all(isinstance(point, (list, tuple)) and len(point) == 2 for point in points):
        return False
    steps = [point[0] for point in points]
    return (
        all(map(is_integer, steps))
        and steps[:1] == [0]
        and all(before < after for before, after in itertools.pairwise(steps))
        and all(_is_discount(point[1]) for point in points)
    )


_DISCOUNT = Rule(
    "a number in [0, 1), or [[0, number], [env steps, number], ...] with rising steps",
    lambda value: _is_discount(value) or _is_schedule(value),
)
_CLIP = Rule(
    "a number > 0 or None", lambda value: value is None or (is_number(value) and value > 0)
)
_FINITE_CLIP = Rule(_CLIP.allowed, lambda value: value is None or POSITIVE.holds(value))


@dataclass(frozen=True)
class LearnerConfig:
    """Settings of the two regressions; ``docs/algorithm.md`` names their sources.

    Raises:
        ValueError: for an impossible value, naming the key, the value and what is allowed.
    """

    train_batch_size: int = setting(256, integer(1))
    """Trajectory slices in a critic minibatch, and states in an actor minibatch."""
    n_critic_steps: int = setting(3000, integer(0))
    """Critic minibatches per iteration."""
    n_actor_steps: int = setting(3000, integer(0))
    """Actor minibatches per iteration."""
    target_update_freq: int = setting(100, integer(1))
    """Critic steps between syncs of the target network."""
    tau: float = setting(
        1.0, Rule("a number in (0, 1]", lambda value: is_number(value) and 0 < value <= 1)
    )
    """1 syncs the target network by a copy of the critic (the paper). Below 1, the target is a
    moving average of the critic, ``target += tau * (critic - target)`` after each critic step.
    Targets are then computed from it every ``target_update_freq`` steps, or every 100 if that is
    less, and the actor's weights too are computed from the average."""
    critic_type: CriticType = setting("q", one_of(CriticType))
    """``"q"`` for ``Q(s, a)`` or ``"v"`` for ``V(s)``. ``"v"`` needs ``actor_actions="replay"``,
    because ``V(s)`` cannot evaluate other actions."""
    num_critics: int = setting(1, integer(1))
    """Critics, which differ in their initial weights. Targets take the minimum of their values of
    each action, the actor their mean. Each costs as much as the first."""
    actor_actions: ActorActions = setting("mu", one_of(ActorActions))
    """Actions that the actor considers: samples of ``"mu"`` (QWR), or the state's action in the
    ``"replay"`` (AWR with ``V(s)``, AWAC with ``Q(s, a)``)."""
    n_action_samples: int | Literal["all"] = setting(8, integer(1) | "all")
    """Actions sampled from ``mu`` per state. If this is ``"all"`` or at least the number of
    discrete actions, all of them are used, weighted by ``mu``."""
    samples_from: SamplesFrom = setting("mu", one_of(SamplesFrom))
    """Policy that the sampled actions of targets and actor are from: the stored ``"mu"`` of each
    row (the paper), or ``"pi"`` as of the beginning of the iteration. Continuous samples of
    ``"pi"`` are clipped to the action range, as the environment executes them."""
    sample_ascent: float = setting(0.0, number(0, 10))
    """Distance that the actor's sampled actions are moved along the gradient of Q before they are
    weighted, in units of ``action_std`` times the square root of the action's dimension. It is the
    distance in each state, in the median state or over all states, as ``advantage_scaling`` says.
    Continuous actions only; 0, as in the paper, does not move them."""
    margin: int = setting(1, integer(1))
    """T: a target mixes the returns of 1 to T steps."""
    lambda_: float = setting(0.95, number(0, 1))
    """Mixes the 1..T-step returns: 0 uses the 1-step return alone, 1 the T-step return alone."""
    gamma: float | Sequence[Sequence[float]] = setting(
        ((0, 0.99), (30_000, 0.99), (70_000, 0.997)), _DISCOUNT
    )
    """Discount: a number, or a schedule ``[[0, value], [env steps, value], ...]`` that is linear
    between its points."""
    backup: losses.Backup = setting("logsumexp", one_of(losses.Backup))
    """Operator that computes a state's value from the Q-values of its actions."""
    backup_temperature: float = setting(1.0, POSITIVE)
    """tau of the log-sum-exp: small values approach max, large ones mean. In units of Q's
    spread (``q_spread``), or of Q if that is ``"none"``."""
    q_spread: losses.Spread = setting("abs", one_of(losses.Spread))
    """Spread of Q over the minibatch: ``"std"`` (standard deviation), ``"abs"`` (mean absolute
    deviation) or ``"none"`` (1). The backup divides Q by it, and multiplies the result by it."""
    beta: float = setting(1.0, POSITIVE)
    """Temperature of the actor's weights: large values approach behaviour cloning."""
    max_weight: float = setting(20.0, POSITIVE)
    """Upper limit of the actor's weights."""
    advantage_scaling: losses.AdvantageScaling = setting(
        "minibatch", one_of(losses.AdvantageScaling)
    )
    """Shifts advantages to mean 0 and divides by their standard deviation, per ``"state"`` or over
    the ``"minibatch"``. ``"median"`` shifts per state and divides by the median of the states'
    standard deviations; ``"none"`` does neither."""
    q_scale: float | Literal["horizon"] = setting("horizon", POSITIVE | "horizon")
    """The critic's head predicts Q divided by this. ``"horizon"`` is ``1 / (1 - gamma)`` with the
    first gamma (the authors' code); predictions are then of the order of one reward. Small values
    make Q change less at each step of Adam."""
    critic_lr: float = setting(5e-4, POSITIVE)
    """Adam's learning rate for the critic."""
    actor_lr: float = setting(1e-4, POSITIVE)
    """Adam's learning rate for the actor."""
    adam_epsilon: float = setting(2e-6, POSITIVE)
    """Adam's epsilon for critic and actor."""
    grad_clip: float | None = setting(50.0, _CLIP)
    """Global norm to which gradients are clipped; ``None`` does not clip."""
    compile: bool | Literal["auto"] = setting(
        "auto", Rule("true, false or 'auto'", lambda v: v == "auto" or isinstance(v, bool))
    )
    """``True`` compiles the regression steps with ``torch.compile``, ``"auto"`` uses Numba's
    kernels on a CPU, ``False`` compiles nothing; ``docs/performance.md`` compares them."""
    cuda_graphs: bool = setting(True, BOOLEAN)
    """Whether to launch each regression step on a GPU as one CUDA graph."""
    image_precision: Precision = setting("float32", one_of(Precision))
    """Arithmetic of the image networks. ``"bfloat16"`` is faster on GPUs and CPUs that have
    instructions for it. Weights, Adam and the heads stay float32."""
    image_shift: int = setting(0, integer(0))
    """Pixels by which training shifts each image at most, at random in both directions, repeating
    the image's edge. 0 shifts none; DrQ (Kostrikov et al., 2021) uses 4."""
    critic_precision: Precision = setting("float32", one_of(Precision))
    """Arithmetic of the matrix products between a joint critic's hidden layers. ``"bfloat16"`` is
    faster on GPUs and CPUs that have instructions for it. All else stays float32."""

    def __post_init__(self) -> None:
        check_settings(self)
        Rule(
            "'replay' with critic_type 'v', which cannot tell the value of other actions",
            lambda value: self.critic_type == "q" or value == "replay",
        ).check("actor_actions", self.actor_actions)
        Rule(
            "'minibatch' or 'none' with actor_actions 'replay', which is one action of a state",
            lambda value: self.actor_actions == "mu" or value in ("minibatch", "none"),
        ).check("advantage_scaling", self.advantage_scaling)

        Rule("1 with critic_type 'v'", lambda value: self.critic_type == "q" or value == 1).check(
            "num_critics", self.num_critics
        )
        Rule(
            "0 with actor_actions 'replay', which samples no actions for the actor",
            lambda value: self.actor_actions == "mu" or value == 0,
        ).check("sample_ascent", self.sample_ascent)

    def gamma_at(self, env_steps: int) -> float:
        """Returns the discount after ``env_steps`` environment steps."""
        if isinstance(self.gamma, (int, float)):
            return self.gamma
        steps, values = zip(*self.gamma, strict=True)
        return float(np.interp(env_steps, steps, values))

    @property
    def head_scale(self) -> float:
        """The number by which the critic's head divides Q: :attr:`q_scale`."""
        return 1 / (1 - self.gamma_at(0)) if isinstance(self.q_scale, str) else self.q_scale


@dataclass(frozen=True)
class AgentConfig(LearnerConfig):
    """Settings of an agent: the learner's, and those of collection, replay and networks.

    Raises:
        ValueError: for an impossible value, naming the key, the value and what is allowed.
    """

    n_interactions: int = setting(1000, integer(1))
    """Environment steps collected per iteration by all rollout workers together, if ``batch_mode``
    is ``"truncate_episodes"``."""
    batch_mode: BatchMode = setting("truncate_episodes", one_of(BatchMode))
    """``"truncate_episodes"`` collects ``n_interactions`` steps per iteration;
    ``"complete_episodes"`` collects one whole episode per rollout worker."""
    replay_capacity: int = setting(5000, integer(1))
    """Environment steps kept in the replay."""
    action_std: float = setting(0.4, POSITIVE)
    """Standard deviation of the Gaussian policy; the action range is scaled to [-1, 1]."""
    normalize_observations: bool = setting(True, BOOLEAN)
    """Whether the network normalises vector observations by their running mean and variance."""
    critic_network: CriticNetwork = setting("gated", one_of(CriticNetwork))
    """How ``Q(s, a)`` takes the action: ``"gated"`` multiplies the state's features by it (the
    paper); ``"joint"`` passes both together through layers with LayerNorm."""
    critic_post_gate_layer: bool = setting(False, BOOLEAN)
    """Whether to add a hidden layer after the critic's gate."""
    image_network: ImageNetwork = setting("mnih2013", one_of(ImageNetwork))
    """Layers for images: ``"mnih2013"`` (2 convolutions, 1 dense layer) or ``"mnih2015"`` (3 and 1,
    wider). ``conv_filters`` and ``post_fcnet_hiddens`` in ``model`` override it."""
    frame_stack: int | Literal["auto"] = setting("auto", integer(1) | "auto")
    """Frames per observation, along its first axis; the replay stores each frame once. ``"auto"``
    is the setting of ``Atari100k``, and 1 for other environments."""
    reward_clip: float | None = setting(None, _FINITE_CLIP)
    """Largest absolute reward in the replay; larger rewards are clipped. Reported returns are not
    clipped. ``None`` does not clip."""

    def __post_init__(self) -> None:
        super().__post_init__()
        Rule(
            "'gated' with critic_type 'v', which takes no action",
            lambda value: self.critic_type == "q" or value == "gated",
        ).check("critic_network", self.critic_network)
        Rule(
            "false with critic_network 'joint', which has no gate",
            lambda value: self.critic_network == "gated" or not value,
        ).check("critic_post_gate_layer", self.critic_post_gate_layer)
        Rule(
            "'float32' with critic_network 'gated'",
            lambda value: self.critic_network == "joint" or value == "float32",
        ).check("critic_precision", self.critic_precision)


@dataclass(frozen=True)
class QWRSettings(AgentConfig):
    """Settings of training with Ray: the agent's, and those of threads, sampling and logged data.

    Raises:
        ValueError: for an impossible value, naming the key, the value and what is allowed.
    """

    offline: dict[str, Any] | None = setting(None, ANYTHING)  # `OfflineConfig` checks it
    """Logged data to train on, ``{"dataset": ...}``: the id or path of a Minari data set, or the
    path of RLlib's output. :class:`~qwr_rllib.offline.OfflineConfig` has the other keys."""
    max_refused_fraction: float = setting(0.1, number(0, 1))
    """The run fails if the replay refuses more than this share of ``n_interactions`` rows in an
    iteration (NaN, infinite values)."""
    learner_threads: int | Literal["auto"] = setting("auto", integer(1) | "auto")
    """Maximum number of the learner's CPU threads. ``"auto"`` uses the CPUs of the main process
    and, without ``overlap_sampling``, of the rollout workers."""
    overlap_sampling: bool = setting(False, BOOLEAN)
    """Whether to collect the next iteration's rows during training, with the previous iteration's
    actor. The paper collects and trains in turns."""


MODEL: dict[str, Any] = {
    "fcnet_hiddens": [256, 256],
    "fcnet_activation": "relu",
    "conv_filters": None,
    "post_fcnet_hiddens": [],
}
"""Defaults of the keys of RLlib's ``model`` that the networks use."""
ALGORITHMS: dict[str, dict[str, Any]] = {
    "QWR": {},
    "AWR": {
        "critic_type": "v",
        "actor_actions": "replay",
        "margin": 60,
        "gamma": 0.99,
        "n_interactions": 2048,
        "n_critic_steps": 200,
        "n_actor_steps": 1000,
        "replay_capacity": 50_000,
    },
    "AWAC": {"actor_actions": "replay"},
    "QWRPlus": {
        "n_interactions": 100,
        "min_sample_timesteps_per_iteration": 1000,
        "n_critic_steps": 200,
        "n_actor_steps": 100,
        "replay_capacity": 100_000,
        "samples_from": "pi",
        "sample_ascent": 0.3,
        "n_action_samples": 4,
        "action_std": 0.2,
        "advantage_scaling": "median",
        "backup": "mean",
        "margin": 5,
        "gamma": 0.99,
        "num_critics": 2,
        "critic_network": "joint",
        "q_scale": 1.0,
        "tau": 0.005,
        "critic_lr": 3e-4,
        "actor_lr": 3e-4,
    },
}
"""Each algorithm's defaults that differ from QWR's. ``docs/algorithm.md`` and ``docs/qwr-plus.md``
have the reasons."""


def defaults(settings: type[LearnerConfig]) -> dict[str, Any]:
    """Returns the defaults of a class of settings, by name."""
    return {each.name: each.default for each in fields(settings)}


def defaults_of(algorithm: str) -> dict[str, Any]:
    """Returns the defaults of one of :data:`ALGORITHMS`, as in its config's dict."""
    return {
        **{name.rstrip("_"): value for name, value in defaults(AgentConfig).items()},
        # Settings of RLlib.
        **{"env_config": {}, "seed": None, "normalize_actions": True, "clip_actions": False},
        "min_sample_timesteps_per_iteration": 0,
        "offline": None,
        "model": MODEL,
        **ALGORITHMS[algorithm],
    }


def steps_per_result(config: Any) -> int:
    """Returns the environment steps of a result, of a ``QWRConfig`` or its dict.

    These are ``n_interactions``, times the iterations of a result: RLlib's
    ``min_sample_timesteps_per_iteration`` asks for several.
    """
    each, least = config["n_interactions"], config.get("min_sample_timesteps_per_iteration") or 0
    return each * max(1, -(-least // each))


def learner_config(config: Any) -> LearnerConfig:
    """Returns the learner's part of a ``QWRConfig`` or its dict.

    Missing settings get their defaults: configs of earlier releases lack newer settings.
    """
    keys = {each.name: each.name.rstrip("_") for each in fields(LearnerConfig)}  # RLlib's "lambda"
    return LearnerConfig(**{name: config[key] for name, key in keys.items() if key in config})


def descriptions() -> dict[str, str]:
    """Reads the description below each setting; returns ``{}`` if the source file is missing."""
    try:
        tree = ast.parse(Path(__file__).read_text())
    except OSError:
        return {}
    found = {}
    for each in tree.body:
        if not isinstance(each, ast.ClassDef):
            continue
        for target, text in itertools.pairwise(each.body):
            if (
                isinstance(target, ast.AnnAssign)
                and isinstance(target.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
            ):
                found[target.target.id] = inspect.cleandoc(str(text.value.value))
    return found
