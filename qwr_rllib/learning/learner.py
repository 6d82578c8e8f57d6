"""The two regressions of Algorithms 1 and 2, in chunks of steps.

A chunk is up to :data:`MAX_CHUNK_STEPS` steps without a target sync. During a chunk, the target
network, the policy that is sampled and the replay are constant; in the actor phase, the critic is
too. (With ``tau`` below 1 the target moves during a chunk, but is used as it is at its start.) So
the start of a chunk computes all regression targets of its minibatches in one pass without
gradients: the values of the distinct next states and the multi-step targets, or the sampled actions
and their weights. Plain regression steps follow. Statistics of a minibatch (the spread of Q, the
moments of the advantages) are still computed from that minibatch alone. There is one difference
from a step-by-step loop: if a chunk draws a state several times, it samples its actions once.

QWR, AWR and AWAC differ in :mod:`qwr_rllib.learning.targets` only.
"""

from __future__ import annotations

import copy
import io
import logging
import math
import time
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from qwr_rllib.learning import losses
from qwr_rllib.learning.accel.gradients import Compiler
from qwr_rllib.learning.accel.threads import AdaptiveThreads
from qwr_rllib.learning.config import LearnerConfig
from qwr_rllib.learning.evaluation import (
    Critic,
    CriticEvaluator,
    NetworkInputs,
    set_precisions,
)
from qwr_rllib.learning.networks import (
    CategoricalActor,
    GaussianActor,
    QCritic,
    QWRNetworks,
    ValueCritic,
)
from qwr_rllib.learning.targets import (
    ActionSampler,
    AscendedActions,
    Bootstrap,
    Candidates,
    CandidateSource,
    QBootstrap,
    ReplayActionByQ,
    ReplayActionByV,
    SampledActions,
    VBootstrap,
)
from qwr_rllib.learning.update import RegressionStep
from qwr_rllib.replay.replica import ReplayView, Slices, View
from qwr_rllib.specs import LoggedMu

logger = logging.getLogger(__name__)

MINIBATCHES_AT_ONCE = 20  # per computation of weights; their actions then fit a core's cache
MAX_CHUNK_STEPS = 100  # bounds the memory of a chunk's inputs, slices and targets


class NonFiniteLossError(ArithmeticError):
    """Raised if a loss is NaN or infinite; the weights are then unusable."""


class Learner:
    """A trainer of the networks from a view of the replay.

    Args:
        networks: with a critic, on the view's device.
        config: hyper-parameters.
        seed: seeds the sampling of rows and actions; ``None`` draws a seed.
        threads: maximum number of CPU threads of a training phase. If it is 1, or if the number
            would change the results of the phase's steps, PyTorch's number stays as it is.

    Raises:
        ValueError: if the networks lack a critic of ``critic_type``, if ``n_action_samples`` is
            ``"all"`` for continuous actions, or if ``sample_ascent`` is not 0 for discrete ones.
    """

    def __init__(
        self,
        networks: QWRNetworks,
        config: LearnerConfig,
        seed: int | None = None,
        threads: int = 1,
    ) -> None:
        critic, kind = networks.critic, QCritic if config.critic_type == "q" else ValueCritic
        if critic is None or not isinstance(critic, kind):
            raise ValueError(
                "networks must have a critic to be trained, with critic_type "
                f"{config.critic_type!r} a {kind.__name__}, got {critic!r}"
            )
        if config.n_action_samples == "all" and not isinstance(networks.actor, CategoricalActor):
            raise ValueError(
                "n_action_samples must be an integer >= 1 where actions are continuous, got 'all'"
            )
        if config.sample_ascent and isinstance(networks.actor, CategoricalActor):
            raise ValueError(
                "sample_ascent must be 0 where actions are discrete, which cannot be moved, got "
                f"{config.sample_ascent}"
            )
        self.networks = networks
        self.config = config
        self.gamma = config.gamma_at(0)
        """Discount of the targets; :meth:`train_critic` updates it by the schedule."""
        self.threads = threads
        self.actor = networks.actor
        self.critics: list[Critic] = networks.critics
        self._device = critic.head.weight.device
        set_precisions(networks, config, self._device)
        self.target_critics = [copy.deepcopy(each).requires_grad_(False) for each in self.critics]
        self._average = get_ema_multi_avg_fn(1 - config.tau) if config.tau < 1 else None
        self._averaged = [
            (list(target.parameters()), list(critic.parameters()))
            for target, critic in zip(self.target_critics, self.critics, strict=True)
        ]
        self._generator = torch.Generator(self._device)
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)
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
        self._critic_steps = [
            step(each, losses.critic_loss, losses.critic_loss_gradient, lr=config.critic_lr)
            for each in self.critics
        ]
        self._actor_step = step(
            self.actor,
            self.actor.regression_loss,
            self.actor.regression_gradient,
            lr=config.actor_lr,
        )
        self._inputs = NetworkInputs(
            networks, None if on_gpu else compiler, config.image_shift, self._generator
        )
        of_actor = self.critics if self._average is None else self.target_critics
        self._by_critic = CriticEvaluator(of_actor, self._inputs, compiler)
        self._by_target = CriticEvaluator(
            self.target_critics, self._inputs, compiler, pessimistic=True
        )
        sample = self._sampler = ActionSampler(
            self.actor,
            config.n_action_samples,
            self._generator,
            self._inputs if config.samples_from == "pi" else None,
        )
        self._bootstrap: Bootstrap
        self._candidates: CandidateSource
        if config.critic_type == "v":
            self._bootstrap = VBootstrap(self._by_target)
            self._candidates = ReplayActionByV(self._by_critic, config.margin)
        else:
            self._bootstrap = QBootstrap(self._by_target, sample, config)
            source = SampledActions if config.actor_actions == "mu" else ReplayActionByQ
            self._candidates = source(self._by_critic, sample)
            if config.sample_ascent:
                assert isinstance(self.actor, GaussianActor)
                dimension = self.actor.head.out_features
                distance = config.sample_ascent * self.actor.action_std * math.sqrt(dimension)
                self._candidates = AscendedActions(
                    self._by_critic, sample, distance, config.advantage_scaling
                )

    @property
    def critic(self) -> Critic:
        """The first critic."""
        return self.critics[0]

    @property
    def target_critic(self) -> Critic:
        """The first critic's target."""
        return self.target_critics[0]

    def update_normalizer(self, obs: Tensor) -> None:
        """Adds newly collected raw observations ``(k, ...)`` to the normaliser's statistics."""
        update = getattr(self.networks.normalizer, "update", None)
        if update is not None:
            update(obs)

    @property
    def logged_mu(self) -> LoggedMu | None:
        """What ``mu`` is for logged continuous actions; ``None`` if the policy collected all."""
        return self._sampler.logged_mu

    @logged_mu.setter
    def logged_mu(self, logged_mu: LoggedMu | None) -> None:
        self._sampler.logged_mu = logged_mu

    def train(self, view: ReplayView, env_steps: int | None = None) -> dict[str, float]:
        """Trains for one iteration: the critic phase, then the actor phase.

        Args:
            view: the learner's copy of the replay.
            env_steps: environment steps so far, for the discount's schedule; ``None`` keeps the
                discount.

        Returns:
            The metrics of both phases; see ``docs/metrics.md``.

        Raises:
            NonFiniteLossError: if a loss is NaN or infinite.
        """
        return self.train_critic(view, env_steps) | self.train_actor(view)

    def train_critic(self, view: ReplayView, env_steps: int | None = None) -> dict[str, float]:
        """Makes ``n_critic_steps`` steps; syncs the target every ``target_update_freq`` steps."""
        started = time.perf_counter()
        if env_steps is not None:
            self.gamma = self.config.gamma_at(env_steps)
        self._sampler.renew()
        totals = torch.zeros(3, device=self._device)
        features = None
        with self._threads_of(self._critic_steps[0]) as threads:
            for steps in self._chunks(self.config.n_critic_steps, self.num_critic_updates):
                if self.num_critic_updates % self.config.target_update_freq == 0:
                    self._sync_target()
                    features = None
                    if self._average is None and self._visits_states_again(view):
                        features = self._by_target.all_features(view)
                totals += self._critic_chunk(view, steps, features, threads)
                self.num_critic_updates += steps
        means = (totals / max(1, self.config.n_critic_steps)).tolist()
        return self._metrics(
            "critic",
            started,
            self.config.n_critic_steps,
            {"critic_loss": means[0], "q_mean": means[1], "target_mean": means[2]},
        )

    def train_actor(self, view: ReplayView) -> dict[str, float]:
        """Makes ``n_actor_steps`` steps with weights from the current critic."""
        started = time.perf_counter()
        self._sampler.renew()
        features = self._by_critic.all_features(view)
        totals = torch.zeros(4, device=self._device)
        with self._threads_of(self._actor_step) as threads:
            for steps in self._chunks(self.config.n_actor_steps, self.num_actor_updates):
                chunk = self._actor_chunk(view, steps, features, threads)
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

    def losses(self, view: View, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Returns critic loss and actor loss of a minibatch ``(N,)`` of rows, for autograd."""
        self._sampler.renew()
        targets = self._targets(view, rows, 1)[0] / self.critic.q_scale
        regression, _ = self._actor_regression(view, rows.unsqueeze(0), None)
        obs = self._inputs.of(view, rows).clone()
        actions = self._sampler.executed(view.columns["actions"][rows])
        of_critics = [losses.critic_loss(each(obs, actions), targets) for each in self.critics]
        return (
            sum(of_critics[1:], start=of_critics[0]),
            self.actor.regression_loss(self.actor(obs), *(part[0] for part in regression)),
        )

    @torch.no_grad()
    def step(self, view: View, rows: Tensor) -> dict[str, float]:
        """Makes a critic step and an actor step on one minibatch ``(N,)`` of rows.

        Syncs the target every ``target_update_freq`` steps.

        Returns:
            ``critic_loss`` and ``actor_loss``, each from before its step.

        Raises:
            NonFiniteLossError: if a loss is NaN or infinite.
        """
        if self.num_critic_updates % self.config.target_update_freq == 0:
            self._sync_target()
        self._sampler.renew()
        targets = self._targets(view, rows, 1)[0] / self.critic.q_scale
        actions = self._sampler.executed(view.columns["actions"][rows])
        inputs = self._inputs.of(view, rows), actions
        outputs = torch.stack([step(inputs, (targets,)) for step in self._critic_steps])
        self._move_target()
        critic_loss = losses.critic_loss(outputs, targets.expand_as(outputs)).item()
        self.num_critic_updates += 1
        regression, _ = self._actor_regression(view, rows.unsqueeze(0), None)
        onto = [part[0] for part in regression]
        params = self._actor_step((self._inputs.of(view, rows),), onto)
        actor_loss = self.actor.regression_loss(params, *onto).item()
        self.num_actor_updates += 1
        found = {"critic_loss": critic_loss, "actor_loss": actor_loss}
        for name, loss in found.items():
            self._require_finite(name, loss)
        return found

    def _sync_target(self) -> None:
        if self._average is None or self.num_target_updates == 0:
            for target, critic in zip(self.target_critics, self.critics, strict=True):
                target.load_state_dict(critic.state_dict())
        self.num_target_updates += 1

    def _move_target(self) -> None:
        """Moves the target towards the critic after a critic step, with ``tau`` below 1."""
        if self._average is None:
            return
        for target, critic in self._averaged:
            self._average(target, critic, None)

    def _require_finite(self, name: str, loss: float) -> None:
        if not math.isfinite(loss):
            updates = self.num_critic_updates if name == "critic_loss" else self.num_actor_updates
            raise NonFiniteLossError(f"{name} is {loss} after {updates} updates")

    def _metrics(
        self, phase: str, started: float, steps: int, metrics: dict[str, float]
    ) -> dict[str, float]:
        self._require_finite(f"{phase}_loss", metrics[f"{phase}_loss"])
        elapsed = time.perf_counter() - started
        return metrics | {f"{phase}_updates_per_s": steps / elapsed}

    def _threads_of(self, step: RegressionStep) -> AdaptiveThreads:
        return AdaptiveThreads(self.threads if step.shareable else 1)

    def _chunks(self, steps: int, done: int) -> list[int]:
        """Returns the lengths of the chunks of ``steps``, after ``done`` earlier steps."""
        freq = self.config.target_update_freq
        lengths = []
        while steps:
            lengths.append(min(steps, freq - done % freq, MAX_CHUNK_STEPS))
            done += lengths[-1]
            steps -= lengths[-1]
        return lengths

    @torch.no_grad()
    def _critic_chunk(
        self, view: ReplayView, steps: int, features: Tensor | None, threads: AdaptiveThreads
    ) -> Tensor:
        """Returns the sums over steps of loss, mean Q and mean target."""
        rows = view.sample(steps * self.config.train_batch_size, self._generator)
        targets = self._targets(view, rows, steps, features)
        # The head predicts Q / q_scale, so the loss is in these units too.
        scaled_targets = targets / self.critic.q_scale
        rows = rows.view(steps, -1)
        actions = self._sampler.executed(view.columns["actions"][rows])
        predicted = scaled_targets.new_empty((steps, len(self.critics), rows.shape[1]))
        minibatches = zip(
            self._inputs.of_each(view, rows), actions, scaled_targets, predicted, strict=True
        )
        for obs, action, target, outputs in threads.over(minibatches):
            for step, of_critic in zip(self._critic_steps, outputs, strict=True):
                of_critic.copy_(step((obs, action), (target,)))
            self._move_target()
        loss = losses.critic_loss(predicted, scaled_targets.unsqueeze(1).expand_as(predicted))
        return steps * torch.stack([loss, predicted.mean() * self.critic.q_scale, targets.mean()])

    @torch.no_grad()
    def _targets(
        self, view: View, rows: Tensor, steps: int, features: Tensor | None = None
    ) -> Tensor:
        """Returns the critic's multi-step targets ``(steps, batch)`` for ``rows``.

        ``features`` are the target critic's of all slots, if known.
        """
        again = None
        if self._bootstrap.repeats:
            # A row has the same target in every minibatch; with a long margin it is expensive.
            rows, again = _distinct(rows, view.num_slots)
        slices = view.slices(rows, self.config.margin)
        states, inverse = _distinct(slices.next_slots, view.num_slots)
        values = self._bootstrap(view, states, inverse, steps, features)
        targets = self._returns(slices, values)
        return (targets if again is None else targets[again]).view(steps, -1)

    def _returns(self, slices: Slices, next_values: Tensor) -> Tensor:
        """Returns lambda-returns ``(N,)`` of slices, given their next states' values ``(N, T)``."""
        return losses.lambda_returns(
            slices.rewards,
            self.gamma * slices.nonterminals,
            next_values,
            self.config.lambda_ * slices.continues,
        )

    @torch.no_grad()
    def _actor_chunk(
        self, view: ReplayView, steps: int, features: Tensor | None, threads: AdaptiveThreads
    ) -> Tensor:
        """Returns the sums over steps of loss, ESS and clip fraction, and the largest weight."""
        rows = view.sample(steps * self.config.train_batch_size, self._generator).view(steps, -1)
        regression, (ess, clip_fraction, largest) = self._actor_regression(view, rows, features)
        params = torch.empty(*rows.shape, view.spec.action_dim, device=self._device)
        minibatches = zip(self._inputs.of_each(view, rows), params, *regression, strict=True)
        for obs, outputs, *targets in threads.over(minibatches):
            outputs.copy_(self._actor_step((obs,), targets))
        loss = self.actor.regression_loss(params, *regression)
        return torch.stack([loss * steps, ess * steps, clip_fraction * steps, largest])

    @torch.no_grad()
    def _actor_regression(
        self,
        view: View,
        rows: Tensor,
        features: Tensor | None,
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, Tensor, Tensor]]:
        """Returns the actor's targets of all minibatches, ESS, clip fraction and largest weight."""
        states, inverse = _distinct(rows, view.num_slots)
        candidates = self._candidates(view, states, features, self._returns)
        at_once = MINIBATCHES_AT_ONCE if self._device.type == "cpu" else len(rows)
        parts = [self._weighted(candidates, some) for some in inverse.split(at_once)]
        regressions, diagnostics = zip(*parts, strict=True)
        ess, clip_fraction, largest = map(torch.cat, zip(*diagnostics, strict=True))
        regression = tuple(map(torch.cat, zip(*regressions, strict=True)))
        return regression, (ess.mean(), clip_fraction.mean(), largest.max())

    def _weighted(
        self, candidates: Candidates, states: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, Tensor, Tensor]]:
        """Returns the actor's targets of ``states``, and ESS, clip fraction and largest weight.

        ``states`` is ``(k, batch)``, indices into ``candidates``; each diagnostic is ``(k,)``.
        """
        config = self.config
        q_values, actions, probs, baseline = (
            None if part is None else part[states] for part in candidates
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
        # With one action per state, over the states: over the actions it would always be 1.
        shared = weights if self._candidates.several else weights.flatten(1)
        ess = losses.effective_sample_size(shared, probs).view(len(weights), -1).mean(1)
        diagnostics = ess, clipped.flatten(1).float().mean(1), weights.flatten(1).amax(1)
        return self.actor.regression(actions, weights, probs), diagnostics

    def _visits_states_again(self, view: ReplayView) -> bool:
        """Returns whether the chunks between two syncs visit more states than there are rows."""
        config = self.config
        chunks = math.ceil(config.target_update_freq / MAX_CHUNK_STEPS)
        draws = min(config.target_update_freq, MAX_CHUNK_STEPS) * config.train_batch_size
        seen = -math.expm1(-draws * config.margin / max(1, view.num_rows))  # share of rows
        return chunks * seen > 1

    def state_dict(self) -> dict[str, Any]:
        """Returns the tensors and numbers that resume training exactly."""
        state = {
            "networks": self.networks.state_dict(),
            "target_critic": self.target_critic.state_dict(),
            "other_target_critics": [each.state_dict() for each in self.target_critics[1:]],
            "critic_optimizer": self._critic_steps[0].state_dict(),
            "other_critic_optimizers": [each.state_dict() for each in self._critic_steps[1:]],
            "actor_optimizer": self._actor_step.state_dict(),
            "generator": self._generator.get_state(),
            "gamma": self.gamma,
            "logged_mu": self.logged_mu and tuple(self.logged_mu),
            "num_critic_updates": self.num_critic_updates,
            "num_actor_updates": self.num_actor_updates,
            "num_target_updates": self.num_target_updates,
        }
        # Copies, as training changes the originals; on the CPU, as a reader may have no GPU.
        copied = io.BytesIO()
        torch.save(state, copied)
        copied.seek(0)
        return torch.load(copied, map_location="cpu")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Loads what :meth:`state_dict` returned; keeps the configured learning rates."""
        self.networks.load_state_dict(state["networks"])
        # Earlier checkpoints have one critic.
        targets = [state["target_critic"], *state.get("other_target_critics", [])]
        optimizers = [state["critic_optimizer"], *state.get("other_critic_optimizers", [])]
        for target, loaded in zip(self.target_critics, targets, strict=True):
            target.load_state_dict(loaded)
        for step, loaded in zip(self._critic_steps, optimizers, strict=True):
            step.load_state_dict(loaded)
        self._actor_step.load_state_dict(state["actor_optimizer"])
        if state["generator"].shape == self._generator.get_state().shape:
            self._generator.set_state(state["generator"])
        else:
            logger.warning(
                "The checkpoint is of another kind of device: random numbers begin anew."
            )
        self.gamma = state.get("gamma", self.gamma)  # older checkpoints have no gamma
        logged_mu = state.get("logged_mu")
        self.logged_mu = logged_mu and LoggedMu(*logged_mu)
        for counter in ("num_critic_updates", "num_actor_updates", "num_target_updates"):
            setattr(self, counter, state[counter])


def _distinct(slots: Tensor, num_slots: int) -> tuple[Tensor, Tensor]:
    """Returns the distinct slots, and the index among them of each of ``slots``."""
    seen = torch.zeros(num_slots, dtype=torch.bool, device=slots.device)
    seen[slots] = True
    return seen.nonzero().squeeze(1), (seen.cumsum(0) - 1)[slots]
