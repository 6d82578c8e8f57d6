"""All settings of QWR, AWR and AWAC: the one place for a default, a rule and a description.

``QWRConfig``, its ``training()``, the command line, training without Ray and the table in
``docs/settings.md`` read the dataclasses here. Knows no Ray.
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
ActorActions = Literal["mu", "replay"]
ImageNetwork = Literal["mnih2013", "mnih2015"]
ImagePrecision = Literal["float32", "bfloat16"]
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
    """Settings of the two regressions (their sources: ``docs/algorithm.md``).

    Raises:
        ValueError: for an impossible value, naming the key, the value and what is allowed.
    """

    train_batch_size: int = setting(256, integer(1))
    """Slices of a critic minibatch, states of an actor minibatch."""
    n_critic_steps: int = setting(3000, integer(0))
    """Critic minibatches per iteration."""
    n_actor_steps: int = setting(3000, integer(0))
    """Actor minibatches per iteration."""
    target_update_freq: int = setting(100, integer(1))
    """Critic steps between syncs of the target network; also the length of a chunk."""
    critic_type: CriticType = setting("q", one_of(CriticType))
    """``"q"`` for ``Q(s, a)``; ``"v"`` for ``V(s)``, which knows no actions but those in the
    replay and needs ``actor_actions="replay"``."""
    actor_actions: ActorActions = setting("mu", one_of(ActorActions))
    """The actions that the actor considers: samples of ``"mu"`` (QWR), or the one in the
    ``"replay"`` (AWR with ``V(s)``, AWAC with ``Q(s, a)``)."""
    n_action_samples: int | Literal["all"] = setting(8, integer(1) | "all")
    """Actions of ``mu`` considered at a state. Discrete actions are all enumerated, weighted by
    ``mu``, where this covers them or with ``"all"``."""
    margin: int = setting(1, integer(1))
    """T, the longest return mixed into a target."""
    lambda_: float = setting(0.95, number(0, 1))
    """Mixes the 1..T-step returns."""
    gamma: float | Sequence[Sequence[float]] = setting(
        ((0, 0.99), (30_000, 0.99), (70_000, 0.997)), _DISCOUNT
    )
    """Discount; or its values after numbers of environment steps, ``[[0, value], [steps, value],
    ...]``, linear between these."""
    backup: losses.Backup = setting("logsumexp", one_of(losses.Backup))
    """The operator that makes the value of a state out of the values of sampled actions."""
    backup_temperature: float = setting(1.0, POSITIVE)
    """tau of the log-sum-exp: small is max, large is mean. In units of Q, or of its spread, see
    ``q_spread``."""
    q_spread: losses.Spread = setting("abs", one_of(losses.Spread))
    """Divides Q by its spread over the minibatch before the backup, and multiplies after:
    ``"std"``, ``"abs"`` (mean absolute deviation) or ``"none"``."""
    beta: float = setting(1.0, POSITIVE)
    """Temperature of the actor's weights: large is behaviour cloning."""
    max_weight: float = setting(20.0, POSITIVE)
    """Clip of the actor's weights."""
    advantage_scaling: losses.AdvantageScaling = setting(
        "minibatch", one_of(losses.AdvantageScaling)
    )
    """Divides the advantages by the standard deviation of those of their ``"state"``, of all in
    the ``"minibatch"``, or by the ``"median"`` of its states' standard deviations; ``"none"``
    leaves them."""
    critic_lr: float = setting(5e-4, POSITIVE)
    """Adam's learning rate of the critic."""
    actor_lr: float = setting(1e-4, POSITIVE)
    """Adam's learning rate of the actor."""
    adam_epsilon: float = setting(2e-6, POSITIVE)
    """Adam's addend to the root mean square of a gradient, of both."""
    grad_clip: float | None = setting(50.0, _CLIP)
    """Global norm to which gradients are clipped; ``None`` does not clip."""
    compile: bool | Literal["auto"] = setting(
        "auto", Rule("true, false or 'auto'", lambda v: v == "auto" or isinstance(v, bool))
    )
    """``True`` compiles the regression steps by ``torch.compile``; ``"auto"`` takes Numba's kernels
    on a CPU; with ``False`` nothing is compiled. ``docs/performance.md`` has what each gains."""
    cuda_graphs: bool = setting(True, BOOLEAN)
    """On a GPU, launch each regression step as one CUDA graph."""
    image_precision: ImagePrecision = setting("float32", one_of(ImagePrecision))
    """Arithmetic of the networks for images. ``"bfloat16"`` is faster on GPUs and on CPUs with
    instructions for it; weights, Adam and the heads stay float32."""

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

    def gamma_at(self, env_steps: int) -> float:
        """The discount after ``env_steps`` environment steps."""
        if isinstance(self.gamma, (int, float)):
            return self.gamma
        steps, values = zip(*self.gamma, strict=True)
        return float(np.interp(env_steps, steps, values))


@dataclass(frozen=True)
class AgentConfig(LearnerConfig):
    """Settings of an agent: the learner's, and those of collection, replay and networks.

    Raises:
        ValueError: for an impossible value, naming the key, the value and what is allowed.
    """

    n_interactions: int = setting(1000, integer(1))
    """Environment steps collected per iteration, over all rollout workers; with
    ``batch_mode="complete_episodes"`` each of them collects one whole episode."""
    batch_mode: BatchMode = setting("truncate_episodes", one_of(BatchMode))
    """True if an iteration collects ``n_interactions`` steps or whole episodes."""
    replay_capacity: int = setting(5000, integer(1))
    """Environment steps kept in the replay."""
    action_std: float = setting(0.4, POSITIVE)
    """The Gaussian policy's standard deviation, where the action range is [-1, 1]."""
    normalize_observations: bool = setting(True, BOOLEAN)
    """By running mean and variance inside the network."""
    critic_post_gate_layer: bool = setting(False, BOOLEAN)
    """One more hidden layer behind the critic's gate."""
    image_network: ImageNetwork = setting("mnih2013", one_of(ImageNetwork))
    """The convolutions and dense layers for images: ``"mnih2013"`` (2 and 1) or ``"mnih2015"`` (3
    and 1, wider). ``model``'s ``conv_filters`` and ``post_fcnet_hiddens`` go before it."""
    frame_stack: int | Literal["auto"] = setting("auto", integer(1) | "auto")
    """Observations are this many frames along their first axis, of which the replay keeps one
    each; ``"auto"`` is what the package's own environments have, else 1."""
    reward_clip: float | None = setting(None, _FINITE_CLIP)
    """Rewards are clipped to this absolute value in the replay; the returns that are reported are
    not."""


@dataclass(frozen=True)
class QWRSettings(AgentConfig):
    """Settings of training with Ray: the agent's, and those of workers, threads and logged data.

    Raises:
        ValueError: for an impossible value, naming the key, the value and what is allowed.
    """

    offline: dict[str, Any] | None = setting(None, ANYTHING)  # an `OfflineConfig` has its rules
    """Trains on logged data: ``{"dataset": ...}``, a Minari data set's id or path or RLlib's
    recorded output, and what else :class:`~qwr_rllib.offline.OfflineConfig` has."""
    max_refused_fraction: float = setting(0.1, number(0, 1))
    """The run fails when more than this share of an iteration's rows is refused by the replay
    (NaN, infinite values)."""
    learner_threads: int | Literal["auto"] = setting("auto", integer(1) | "auto")
    """CPU threads of the learner, at most; ``"auto"`` takes the CPUs of the main process and of the
    rollout workers, where these rest meanwhile."""
    overlap_sampling: bool = setting(False, BOOLEAN)
    """Collect the next iteration's rows while the learner trains, with the actor of the iteration
    before. The paper does one after the other."""


MODEL: dict[str, Any] = {
    "fcnet_hiddens": [256, 256],
    "fcnet_activation": "relu",
    "conv_filters": None,
    "post_fcnet_hiddens": [],
}
"""Defaults of the keys of RLlib's ``model`` that the networks are made from."""
ALGORITHMS: dict[str, dict[str, Any]] = {
    "QWR": {},
    "AWR": {
        "critic_type": "v",
        "actor_actions": "replay",
        "margin": 60,
        "replay_capacity": 50_000,
    },
    "AWAC": {"actor_actions": "replay"},
}
"""The defaults of an algorithm that are not QWR's; docs/algorithm.md says why."""


def defaults(settings: type[LearnerConfig]) -> dict[str, Any]:
    """The defaults of a class of settings, by their names."""
    return {each.name: each.default for each in fields(settings)}


def defaults_of(algorithm: str) -> dict[str, Any]:
    """The defaults of ``"QWR"``, ``"AWR"`` or ``"AWAC"``, as in the dict of its config."""
    return {
        **{name.rstrip("_"): value for name, value in defaults(AgentConfig).items()},
        # RLlib's own.
        **{"env_config": {}, "seed": None, "normalize_actions": True, "clip_actions": False},
        "model": MODEL,
        **ALGORITHMS[algorithm],
    }


def learner_config(config: Any) -> LearnerConfig:
    """The learner's part of a ``QWRConfig`` or its dict.

    A trial of an earlier release lacks the settings that came later.
    """
    keys = {each.name: each.name.rstrip("_") for each in fields(LearnerConfig)}  # RLlib's "lambda"
    return LearnerConfig(**{name: config[key] for name, key in keys.items() if key in config})


def descriptions() -> dict[str, str]:
    """Reads the description below each setting above; empty where the source is missing."""
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
