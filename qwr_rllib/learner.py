"""The two regressions of Algorithms 1 and 2, in chunks between target syncs. Knows torch only.

Between two syncs the target network, the stored ``mu`` and the replay are constant, and during
the whole actor phase the critic is too. So everything that a chunk's minibatches regress *onto*
is computed at its start in one pass without gradients: the values of the distinct next states
and the multi-step targets, or the sampled actions and their weights. What is left are plain
regression steps. Statistics of a minibatch (spread of Q, moments of the advantages) stay those of
that minibatch. The one difference from a step-by-step loop: a state that is drawn more than once
within a chunk has its actions sampled once in that chunk.

Where QWR, AWR and AWAC differ are two methods: ``_values_after``, what a target bootstraps from,
and ``_considered``, the actions that the actor considers and what they are held against.
"""

from __future__ import annotations

import copy
import io
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from qwr_rllib import losses
from qwr_rllib.gradients import Compiler, compiled_kernels, features_of, gate_kernel
from qwr_rllib.networks import (
    CategoricalActor,
    CriticType,
    GatedCritic,
    ImageEncoder,
    QWRNetworks,
    ValueCritic,
    channels_first,
)
from qwr_rllib.replay.storage import Slot
from qwr_rllib.replay.view import ReplayView, Slices
from qwr_rllib.steps import RegressionStep, Sharing

logger = logging.getLogger(__name__)

# The critic's features of every row of the view are kept over an actor phase up to this size.
MAX_CACHED_FEATURES_BYTES = 2**28
MINIBATCHES_AT_ONCE = 20  # whose weights are computed: their actions stay in a core's cache
MAX_CHUNK_STEPS = 100  # whose inputs, slices and targets are in memory at once
# States that go through a body at once, and elements of their observations.
MAX_TILE, MAX_TILE_ELEMENTS = 2**11, 2**23
MAX_GPU_TILE, MAX_GPU_TILE_ELEMENTS = 2**15, 2**28

ActorActions = Literal["mu", "replay"]
ImagePrecision = Literal["float32", "bfloat16"]
Critic = GatedCritic | ValueCritic
Considered = tuple[Tensor, Tensor, Tensor | None, Tensor | None]  # see Learner._considered


class NonFiniteLossError(ArithmeticError):
    """A loss became NaN or infinite; the weights are not to be trusted any more."""


@dataclass(frozen=True)
class LearnerConfig:
    """Hyper-parameters of the two regressions (their sources: ``docs/algorithm.md``).

    Raises:
        ValueError: for an impossible value, naming the key, the value and what is allowed.
    """

    train_batch_size: int = 256
    """Slices of a critic minibatch, states of an actor minibatch."""
    n_critic_steps: int = 3000
    """Critic minibatches per iteration."""
    n_actor_steps: int = 3000
    """Actor minibatches per iteration."""
    target_update_freq: int = 100
    """Critic steps between syncs of the target network; also the length of a chunk."""
    critic_type: CriticType = "q"
    """``Q(s, a)``, or ``V(s)``, which knows no actions but those in the replay."""
    actor_actions: ActorActions = "mu"
    """The actions that the actor considers: samples of ``mu``, or the one in the replay."""
    n_action_samples: int | Literal["all"] = 8
    """Actions of ``mu`` considered at a state; discrete actions are all enumerated where this
    covers them, or with ``"all"``."""
    margin: int = 1
    """T, the longest return in a target."""
    lambda_: float = 0.95
    """Mixes the 1..T-step returns."""
    gamma: float | Sequence[Sequence[float]] = ((0, 0.99), (30_000, 0.99), (70_000, 0.997))
    """Discount; or its values after numbers of environment steps, linear between these."""
    backup: losses.Backup = "logsumexp"
    """How the values of sampled actions become the value of a state."""
    backup_temperature: float = 1.0
    """tau of the log-sum-exp; in units of Q, or of its spread, see ``q_spread``."""
    q_spread: losses.Spread = "abs"
    """Divides Q by its spread over the minibatch before the backup, and multiplies after."""
    beta: float = 1.0
    """Temperature of the actor's weights."""
    max_weight: float = 20.0
    """Clip of the actor's weights."""
    advantage_scaling: losses.AdvantageScaling = "minibatch"
    """What advantages are divided by: see :func:`qwr_rllib.losses.advantage_weights`."""
    critic_lr: float = 5e-4
    """Adam's learning rate of the critic."""
    actor_lr: float = 1e-4
    """Adam's learning rate of the actor."""
    adam_epsilon: float = 2e-6
    """Adam's addend to the root mean square of a gradient."""
    grad_clip: float | None = 50.0
    """Global norm to which gradients are clipped; ``None`` does not clip."""
    compile: bool | Literal["auto"] = "auto"
    """``True`` compiles the regression steps by ``torch.compile``; ``"auto"`` takes Numba's kernels
    on a CPU; with ``False`` nothing is compiled. ``docs/performance.md`` has what each gains."""
    cuda_graphs: bool = True
    """On a GPU, launch each regression step as one CUDA graph."""
    image_precision: ImagePrecision = "float32"
    """Arithmetic of the convolutions and dense layers for images. ``"bfloat16"`` is faster on GPUs
    and on CPUs with instructions for it; weights, Adam and the heads stay float32."""

    def __post_init__(self) -> None:
        def require(name: str, allowed: str, ok: Callable[[Any], bool]) -> None:
            value = getattr(self, name)
            if not ok(value):
                raise ValueError(f"{name} must be {allowed}, got {value!r}")

        def whole(value: Any) -> bool:
            return isinstance(value, int) and not isinstance(value, bool)

        def number(value: Any) -> bool:
            return isinstance(value, (int, float)) and not isinstance(value, bool)

        def discount(value: Any) -> bool:
            return number(value) and 0 <= value < 1

        def schedule(points: Sequence[Any]) -> bool:
            if not all(isinstance(point, (list, tuple)) and len(point) == 2 for point in points):
                return False
            steps = [point[0] for point in points]
            return (
                all(whole(step) for step in steps)
                and steps[:1] == [0]
                and all(before < after for before, after in itertools.pairwise(steps))
                and all(discount(point[1]) for point in points)
            )

        def one_of(kind: Any) -> tuple[str, Callable[[Any], bool]]:
            return f"one of {', '.join(map(repr, get_args(kind)))}", get_args(kind).__contains__

        for name in ("train_batch_size", "target_update_freq", "margin"):
            require(name, "an integer >= 1", lambda v: whole(v) and v >= 1)
        for name in ("n_critic_steps", "n_actor_steps"):
            require(name, "an integer >= 0", lambda v: whole(v) and v >= 0)
        require(
            "n_action_samples",
            "an integer >= 1 or 'all'",
            lambda v: v == "all" or (whole(v) and v >= 1),
        )
        require("lambda_", "a number in [0, 1]", lambda v: number(v) and 0 <= v <= 1)
        require(
            "gamma",
            "a number in [0, 1), or [[0, number], [env steps, number], ...] with rising steps",
            lambda v: discount(v) or (isinstance(v, (list, tuple)) and schedule(v)),
        )
        for name in (
            "backup_temperature", "beta", "critic_lr", "actor_lr", "adam_epsilon", "max_weight",
        ):  # fmt: skip
            require(name, "a number > 0", lambda v: number(v) and 0 < v < float("inf"))
        require("grad_clip", "a number > 0 or None", lambda v: v is None or (number(v) and v > 0))
        require("critic_type", *one_of(CriticType))
        require("actor_actions", *one_of(ActorActions))
        require(
            "actor_actions",
            "'replay' with critic_type 'v', which cannot tell the value of other actions",
            lambda v: self.critic_type == "q" or v == "replay",
        )
        require("backup", *one_of(losses.Backup))
        require("q_spread", *one_of(losses.Spread))
        require("advantage_scaling", *one_of(losses.AdvantageScaling))
        require(
            "advantage_scaling",
            "'minibatch' or 'none' with actor_actions 'replay', which is one action of a state",
            lambda v: self.actor_actions == "mu" or v in ("minibatch", "none"),
        )
        require("compile", "true, false or 'auto'", lambda v: v == "auto" or isinstance(v, bool))
        require("cuda_graphs", "true or false", lambda v: isinstance(v, bool))
        require("image_precision", *one_of(ImagePrecision))

    def gamma_at(self, env_steps: int) -> float:
        """The discount after ``env_steps`` environment steps."""
        if isinstance(self.gamma, (int, float)):
            return self.gamma
        steps, values = zip(*self.gamma, strict=True)
        return float(np.interp(env_steps, steps, values))


class Learner:
    """Trains the networks from a view of the replay.

    Args:
        networks: with their critic, on ``view``'s device.
        config: hyper-parameters.
        seed: of everything random here; ``None`` draws one.

    Raises:
        ValueError: for networks without this kind of critic, or all of continuous actions to
            enumerate.
    """

    def __init__(
        self, networks: QWRNetworks, config: LearnerConfig, seed: int | None = None
    ) -> None:
        critic, kind = networks.critic, GatedCritic if config.critic_type == "q" else ValueCritic
        if critic is None or not isinstance(critic, kind):
            raise ValueError(
                "networks must have a critic to be trained, with critic_type "
                f"{config.critic_type!r} a {kind.__name__}, got {critic!r}"
            )
        if config.n_action_samples == "all" and not isinstance(networks.actor, CategoricalActor):
            raise ValueError(
                "n_action_samples must be an integer >= 1 where actions are continuous, got 'all'"
            )
        self.networks = networks
        self.config = config
        self.gamma = config.gamma_at(0)
        """Discount of the targets. Who knows the environment steps moves it along its schedule."""
        self.actor = networks.actor
        self.critic: Critic = critic
        self._device = self.critic.head.weight.device
        precision = getattr(torch, config.image_precision)
        if precision is torch.bfloat16 and not _computes_bfloat16(self._device):
            logger.warning(
                "image_precision is 'bfloat16', for which this %s has no instructions: "
                "training in float32.",
                self._device.type.upper(),
            )
            precision = torch.float32
        for module in networks.modules():
            if isinstance(module, ImageEncoder):
                module.precision = precision
        self.target_critic: Critic = copy.deepcopy(self.critic).requires_grad_(False)
        self._generator = torch.Generator(self._device)
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)
        self.threads = 1
        """CPU threads that share operations, where that is faster and leaves the numbers as they
        are. Others are left to PyTorch's own number of threads."""
        self.num_critic_updates = 0
        self.num_actor_updates = 0
        self.num_target_updates = 0
        on_gpu = self._device.type == "cuda"
        compiler: Compiler | None = "torch" if config.compile else None
        if config.compile == "auto":
            compiler = None if on_gpu else "numba"
        step = partial(
            RegressionStep,
            epsilon=config.adam_epsilon,
            grad_clip=config.grad_clip,
            compiler=compiler,
            capture=on_gpu and config.cuda_graphs,
        )
        self._critic_step = step(
            self.critic, losses.critic_loss, losses.critic_loss_gradient, lr=config.critic_lr
        )
        self._actor_step = step(
            self.actor,
            self.actor.regression_loss,
            self.actor.regression_gradient,
            lr=config.actor_lr,
        )
        self._image_kernel: Callable[..., Tensor] | None = None
        if compiler == "numba" and not on_gpu and (kernels := compiled_kernels()):
            self._image_kernel = kernels.image_blocks
        self._image_memory = torch.empty(0, dtype=torch.uint8)
        self._gates = {
            critic: gate_kernel(critic) if compiler == "numba" else None
            for critic in (self.critic, self.target_critic)
        }
        self._bodies = {
            critic: critic.features if compiler == "torch" else features_of(critic)
            for critic in (self.critic, self.target_critic)
        }

    def observe(self, obs: Tensor) -> None:
        """Takes newly collected raw observations ``(k, ...)`` into the normaliser."""
        update = getattr(self.networks.normalizer, "update", None)
        if update is not None:
            update(obs)

    def train(self, view: ReplayView) -> dict[str, float]:
        """One iteration: the critic phase, then the actor phase.

        Returns:
            The metrics of both; see ``docs/metrics.md``.

        Raises:
            NonFiniteLossError: if a loss is NaN or infinite.
        """
        return self.train_critic(view) | self.train_actor(view)

    def train_critic(self, view: ReplayView) -> dict[str, float]:
        """``n_critic_steps`` steps; the target is synced before each ``target_update_freq``."""
        started = time.perf_counter()
        totals = torch.zeros(3, device=self._device)
        features = None
        with self._sharing(self._critic_step) as sharing:
            for steps in self._chunks(self.config.n_critic_steps, self.num_critic_updates):
                if self.num_critic_updates % self.config.target_update_freq == 0:
                    self.target_critic.load_state_dict(self.critic.state_dict())
                    self.num_target_updates += 1
                    features = None
                    if self._visits_states_again(view):
                        features = self._all_features(view, self.target_critic)
                totals += self._critic_chunk(view, steps, features, sharing)
                self.num_critic_updates += steps
        means = (totals / max(1, self.config.n_critic_steps)).tolist()
        return self._metrics(
            "critic",
            started,
            self.config.n_critic_steps,
            {"critic_loss": means[0], "q_mean": means[1], "target_mean": means[2]},
        )

    def train_actor(self, view: ReplayView) -> dict[str, float]:
        """``n_actor_steps`` steps with weights from the critic as it is now."""
        started = time.perf_counter()
        features = self._all_features(view, self.critic)
        totals = torch.zeros(4, device=self._device)
        with self._sharing(self._actor_step) as sharing:
            for steps in self._chunks(self.config.n_actor_steps, self.num_actor_updates):
                chunk = self._actor_chunk(view, steps, features, sharing)
                largest = torch.maximum(totals[3], chunk[3])
                totals += chunk
                totals[3] = largest
                self.num_actor_updates += steps
        means = (totals / max(1, self.config.n_actor_steps)).tolist()
        return self._metrics(
            "actor",
            started,
            self.config.n_actor_steps,
            {
                "actor_loss": means[0],
                "weight_ess": means[1],
                "weight_clip_fraction": means[2],
                "weight_max": totals[3].item(),
            },
        )

    def losses(self, view: ReplayView, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The critic's and the actor's loss of one minibatch ``(N,)`` of rows, for autograd."""
        critic, networks = self.critic, self.networks
        targets = self._targets(view, rows, 1)[0] / critic.q_scale
        regression, _ = self._actor_regression(view, rows.unsqueeze(0), None)
        obs = networks.normalize(view.observations(rows))
        return (
            losses.critic_loss(critic(obs, view.columns["actions"][rows]), targets),
            self.actor.regression_loss(self.actor(obs), *(part[0] for part in regression)),
        )

    def _metrics(
        self, phase: str, started: float, steps: int, metrics: dict[str, float]
    ) -> dict[str, float]:
        loss = metrics[f"{phase}_loss"]
        if loss != loss or abs(loss) == float("inf"):
            raise NonFiniteLossError(
                f"{phase}_loss is {loss} after {getattr(self, f'num_{phase}_updates')} updates"
            )
        elapsed = time.perf_counter() - started
        return metrics | {f"{phase}_updates_per_s": steps / elapsed}

    def _sharing(self, step: RegressionStep) -> Sharing:
        return Sharing(self.threads if step.shareable else 1)

    def _chunks(self, steps: int, done: int) -> list[int]:
        """Lengths of the chunks of ``steps``, where ``done`` steps were made before."""
        freq = self.config.target_update_freq
        lengths = []
        while steps:
            lengths.append(min(steps, freq - done % freq, MAX_CHUNK_STEPS))
            done += lengths[-1]
            steps -= lengths[-1]
        return lengths

    @torch.no_grad()
    def _critic_chunk(
        self, view: ReplayView, steps: int, features: Tensor | None, sharing: Sharing
    ) -> Tensor:
        """Returns the sums over steps of loss, mean Q and mean target."""
        rows = view.sample(steps * self.config.train_batch_size, self._generator)
        targets = self._targets(view, rows, steps, features)
        # The head predicts (1 - gamma) Q, and so the loss is in these units too.
        scaled_targets = targets / self.critic.q_scale
        rows = rows.view(steps, -1)
        actions = view.columns["actions"][rows]
        predicted = torch.empty_like(scaled_targets)
        minibatches = zip(self._inputs(view, rows), actions, scaled_targets, predicted, strict=True)
        for obs, action, target, outputs in sharing.over(minibatches):
            outputs.copy_(self._critic_step((obs, action), (target,)))
        loss = losses.critic_loss(predicted, scaled_targets)
        return steps * torch.stack([loss, predicted.mean() * self.critic.q_scale, targets.mean()])

    @torch.no_grad()
    def _targets(
        self, view: ReplayView, rows: Tensor, steps: int, features: Tensor | None = None
    ) -> Tensor:
        """Multi-step targets of the critic for ``rows`` of ``steps`` minibatches.

        ``(steps, batch)``; ``features`` are the target critic's, where they are known.
        """
        again = None
        if isinstance(self.target_critic, ValueCritic):
            # A row's target is the same in every minibatch, and with a long margin dear.
            rows, again = _distinct(rows, view.num_slots)
        slices = view.slices(rows, self.config.margin)
        states, inverse = _distinct(slices.next_slots, view.num_slots)
        targets = self._returns(slices, self._values_after(view, states, inverse, steps, features))
        return (targets if again is None else targets[again]).view(steps, -1)

    def _returns(self, slices: Slices, next_values: Tensor) -> Tensor:
        """The truncated lambda-returns of slices, ``(N,)``, from their values ``(N, T)``."""
        return losses.lambda_returns(
            slices.rewards,
            self.gamma * slices.nonterminals,
            next_values,
            self.config.lambda_ * slices.continues,
        )

    def _values_after(
        self,
        view: ReplayView,
        states: Tensor,
        inverse: Tensor,
        steps: int,
        features: Tensor | None,
    ) -> Tensor:
        """``F`` or ``V`` of the target critic at ``states[inverse]``, as ``inverse``."""
        config, critic = self.config, self.target_critic
        if isinstance(critic, ValueCritic):
            return self._features(critic, view, states, features).squeeze(-1)[inverse]
        q_values, _, probs = self._propose(critic, view, states, features)
        if config.q_spread == "none":
            values = losses.backup(q_values, config.backup, config.backup_temperature, probs)
            return values[inverse]
        # (steps, batch * T, n): the spread is over all values of a minibatch, in which a slice
        # that ends early counts its last state again.
        by_minibatch = inverse.view(steps, -1)
        q_values = q_values[by_minibatch]
        probs = None if probs is None else probs[by_minibatch]
        scale = losses.spread(q_values, config.q_spread, (1, 2), probs)
        values = losses.backup(q_values / scale, config.backup, config.backup_temperature, probs)
        return (values * scale.squeeze(-1)).view_as(inverse)

    @torch.no_grad()
    def _actor_chunk(
        self, view: ReplayView, steps: int, features: Tensor | None, sharing: Sharing
    ) -> Tensor:
        """Returns the sums over steps of loss, ESS and clip fraction, and the largest weight."""
        rows = view.sample(steps * self.config.train_batch_size, self._generator).view(steps, -1)
        regression, (ess, clip_fraction, largest) = self._actor_regression(view, rows, features)
        params = torch.empty(*rows.shape, view.spec.action_dim, device=self._device)
        minibatches = zip(self._inputs(view, rows), params, *regression, strict=True)
        for obs, outputs, *targets in sharing.over(minibatches):
            outputs.copy_(self._actor_step((obs,), targets))
        loss = self.actor.regression_loss(params, *regression)
        return torch.stack([loss * steps, ess * steps, clip_fraction * steps, largest])

    @torch.no_grad()
    def _actor_regression(
        self,
        view: ReplayView,
        rows: Tensor,
        features: Tensor | None,
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, Tensor, Tensor]]:
        """What the actor regresses onto in each minibatch; mean ESS, clip fraction, largest."""
        states, inverse = _distinct(rows, view.num_slots)
        considered = self._considered(view, states, features)
        at_once = MINIBATCHES_AT_ONCE if self._device.type == "cpu" else len(rows)
        parts = [self._weighted(considered, some) for some in inverse.split(at_once)]
        regressions, diagnostics = zip(*parts, strict=True)
        ess, clip_fraction, largest = map(torch.cat, zip(*diagnostics, strict=True))
        regression = tuple(map(torch.cat, zip(*regressions, strict=True)))
        return regression, (ess.mean(), clip_fraction.mean(), largest.max())

    def _weighted(
        self, considered: Considered, states: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, Tensor, Tensor]]:
        """What minibatches of the states considered regress onto; ESS, clip fraction, largest.

        ``(k, batch)``; each diagnostic is ``(k,)``.
        """
        config = self.config
        q_values, actions, probs, baseline = (
            None if part is None else part[states] for part in considered
        )
        assert q_values is not None
        assert actions is not None

        def weigh(q_values: Tensor, probs: Tensor | None, baseline: Tensor | None) -> Tensor:
            return losses.advantage_weights(
                q_values,
                config.beta,
                config.max_weight,
                config.advantage_scaling,
                probs,
                baseline,
            )

        in_dims = tuple(None if part is None else 0 for part in (q_values, probs, baseline))
        weights = torch.vmap(weigh, in_dims)(q_values, probs, baseline)
        clipped = weights >= config.max_weight * (1 - 1e-6)
        # Of a single action it would always be 1: then it is that of the minibatch's states.
        shared = weights if config.actor_actions == "mu" else weights.flatten(1)
        ess = losses.effective_sample_size(shared, probs).view(len(weights), -1).mean(1)
        diagnostics = ess, clipped.flatten(1).float().mean(1), weights.flatten(1).amax(1)
        return self.actor.regression(actions, weights, probs), diagnostics

    def _considered(self, view: ReplayView, states: Tensor, features: Tensor | None) -> Considered:
        """The actions that the actor considers at ``states``.

        Returns:
            What they return ``(k, n)``, themselves, their probabilities (see :meth:`_propose`),
            and ``V(s)`` ``(k,)`` where it is not the mean of the first.
        """
        if self.config.actor_actions == "mu":
            assert isinstance(self.critic, GatedCritic)
            return *self._propose(self.critic, view, states, features), None
        actions = view.columns["actions"][states].unsqueeze(1)
        if isinstance(self.critic, ValueCritic):
            slices = view.slices(states, self.config.margin)
            after = self._features(self.critic, view, slices.next_slots.flatten(), features)
            returns = self._returns(slices, after.view_as(slices.next_slots))
            values = self._features(self.critic, view, states, features).squeeze(-1)
            return returns.unsqueeze(1), actions, None, values
        samples, _, probs = self._propose(self.critic, view, states, features)
        values = losses.backup(samples, "mean", probs=probs)
        of_states = self._features(self.critic, view, states, features)
        return self._q_values(self.critic, of_states, actions), actions, None, values

    def _propose(
        self,
        critic: GatedCritic,
        view: ReplayView,
        states: Tensor,
        features: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Actions of the stored ``mu`` at the states: their Q-values, themselves, their probs."""
        n = self.config.n_action_samples
        mu = view.columns["action_dist_inputs"][states]
        actions, probs = self.actor.proposals(
            mu, mu.shape[-1] if n == "all" else n, self._generator
        )

        values = [
            # In tiles: their features are used before they leave a core's cache.
            self._q_values(critic, self._features(critic, view, some, features), of_some)
            for some, of_some in zip(
                states.split(_tile(view)), actions.split(_tile(view)), strict=True
            )
        ]
        return torch.cat(values), actions, probs

    def _q_values(self, critic: GatedCritic, features: Tensor, actions: Tensor) -> Tensor:
        return (self._gates[critic] or critic).q_values(features, actions)

    def _visits_states_again(self, view: ReplayView) -> bool:
        """Whether the chunks between two syncs have more distinct states than the view has rows."""
        config = self.config
        chunks = math.ceil(config.target_update_freq / MAX_CHUNK_STEPS)
        draws = min(config.target_update_freq, MAX_CHUNK_STEPS) * config.train_batch_size
        seen = -math.expm1(-draws * config.margin / max(1, view.num_rows))  # share of them
        return chunks * seen > 1

    def _all_features(self, view: ReplayView, critic: Critic) -> Tensor | None:
        """A critic's features of every state held; ``None`` if they would not fit."""
        shape = (view.num_slots, critic.num_features)
        if shape[0] * shape[1] * 4 > MAX_CACHED_FEATURES_BYTES:
            return None
        features = torch.empty(shape, device=self._device)
        held = ((view.kind == Slot.ROW) | (view.kind == Slot.TAIL)).nonzero().squeeze(1)
        features[held] = self._features(critic, view, held)
        return features

    @torch.no_grad()
    def _features(
        self, critic: Critic, view: ReplayView, slots: Tensor, known: Tensor | None = None
    ) -> Tensor:
        """What the critic makes of the states, ``(k, h)``; looked up where it is ``known``."""
        if known is not None:
            return known[slots]
        return torch.cat(
            [
                self._bodies[critic](self._normalized(view, some))
                for some in slots.split(_tile(view))
            ]
        )

    def _inputs(self, view: ReplayView, rows: Tensor) -> Iterator[Tensor]:
        """What the networks take for each minibatch of ``rows`` ``(steps, batch)`` in turn."""
        if view.spec.image:  # a chunk of them at once would be gigabytes
            return (self._normalized(view, each) for each in rows)
        return iter(self._normalized(view, rows))

    def _normalized(self, view: ReplayView, slots: Tensor) -> Tensor:
        """What the networks take for the states in ``slots``; the next call may overwrite it."""
        bytes_ = view.spec.image and view.spec.obs_dtype == "uint8"
        if not bytes_ or self._image_kernel is None:
            return self.networks.normalize(view.observations(slots))
        frames = view.columns["obs"]
        if view.spec.frame_stack > 1:
            frames = frames.unsqueeze(1)
        elif channels_first(view.spec.obs_shape) != view.spec.obs_shape:
            frames = frames.permute(0, 3, 1, 2)
        needed = len(slots) * math.prod(view.spec.obs_shape)
        if self._image_memory.numel() < needed:  # fresh memory would cost as much as its contents
            self._image_memory = torch.empty(needed, dtype=torch.uint8)
        return self._image_kernel(
            frames, view.frames(slots), self.networks.blocks, self._image_memory
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that training needs to go on exactly: plain tensors and numbers."""
        state = {
            "networks": self.networks.state_dict(),
            "target_critic": self.target_critic.state_dict(),
            "critic_optimizer": self._critic_step.state_dict(),
            "actor_optimizer": self._actor_step.state_dict(),
            "generator": self._generator.get_state(),
            "gamma": self.gamma,
            "num_critic_updates": self.num_critic_updates,
            "num_actor_updates": self.num_actor_updates,
            "num_target_updates": self.num_target_updates,
        }
        # Tensors of its own, not those that are being trained, for machines with a GPU or without.
        copied = io.BytesIO()
        torch.save(state, copied)
        copied.seek(0)
        return torch.load(copied, map_location="cpu")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what :meth:`state_dict` gave; learning rates stay the configured ones."""
        self.networks.load_state_dict(state["networks"])
        self.target_critic.load_state_dict(state["target_critic"])
        self._critic_step.load_state_dict(state["critic_optimizer"])
        self._actor_step.load_state_dict(state["actor_optimizer"])
        if state["generator"].shape == self._generator.get_state().shape:
            self._generator.set_state(state["generator"])
        else:
            logger.warning(
                "The checkpoint is of another kind of device: random numbers begin anew."
            )
        self.gamma = state.get("gamma", self.gamma)  # older checkpoints have none
        for counter in ("num_critic_updates", "num_actor_updates", "num_target_updates"):
            setattr(self, counter, state[counter])


def _computes_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for products of bfloat16 numbers."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _tile(view: ReplayView) -> int:
    """How many states go through a body at once."""
    tile, elements = MAX_TILE, MAX_TILE_ELEMENTS
    if view.device.type == "cuda":  # which needs many to be busy, and has no tiles in its cache
        tile, elements = MAX_GPU_TILE, MAX_GPU_TILE_ELEMENTS
    return max(1, min(tile, elements // math.prod(view.spec.obs_shape)))


def _distinct(slots: Tensor, num_slots: int) -> tuple[Tensor, Tensor]:
    """The distinct slots, and where among them each of ``slots`` is."""
    seen = torch.zeros(num_slots, dtype=torch.bool, device=slots.device)
    seen[slots] = True
    return seen.nonzero().squeeze(1), (seen.cumsum(0) - 1)[slots]
