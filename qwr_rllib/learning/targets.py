"""The targets of the two regressions. Only here do QWR, AWR and AWAC differ.

An algorithm consists of two choices. The critic's target bootstraps from :class:`QBootstrap` or
:class:`VBootstrap`. The actor considers :class:`SampledActions`, :class:`AscendedActions`,
:class:`ReplayActionByQ` or :class:`ReplayActionByV`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from qwr_rllib.learning import losses
from qwr_rllib.learning.config import LearnerConfig
from qwr_rllib.learning.evaluation import CriticEvaluator, NetworkInputs, tile_size
from qwr_rllib.learning.networks import CategoricalActor, GaussianActor
from qwr_rllib.replay.replica import Slices, View
from qwr_rllib.specs import LoggedMu


class Candidates(NamedTuple):
    """Actions that an actor considers at ``k`` states."""

    q_values: Tensor
    """``(k, n)``, the actions' values: ``Q(s, a)`` or returns."""
    actions: Tensor
    """``(k, n, [d])``."""
    probs: Tensor | None = None
    """``(k, n)``, ``mu(a|s)`` if all discrete actions are enumerated."""
    baseline: Tensor | None = None
    """``(k,)``, ``V(s)`` if it is not the mean of ``q_values``."""


class ActionSampler:
    """A sampler of actions from the stored ``mu`` or a copy of the policy, with their values.

    Args:
        actor: samples from the parameters of ``mu``.
        n: actions per state, or ``"all"`` for all discrete actions.
        generator: random numbers for the samples.
        inputs: makes the actor's inputs, to sample from its policy as of the last :meth:`renew`,
            within the action range; ``None`` samples from the stored ``mu``.
    """

    def __init__(
        self,
        actor: GaussianActor | CategoricalActor,
        n: int | str,
        generator: torch.Generator,
        inputs: NetworkInputs | None = None,
    ) -> None:
        self._actor = actor
        self._policy = actor if inputs is None else copy.deepcopy(actor).requires_grad_(False)
        self._n = n
        self._generator = generator
        self._inputs = inputs
        self.logged_mu: LoggedMu | None = None
        """What ``mu`` is for logged actions; ``None`` for those of the policy."""

    def renew(self) -> None:
        """Makes the actor's present policy the sampled one, unless samples are from ``mu``."""
        if self._inputs is not None:
            self._policy.load_state_dict(self._actor.state_dict())

    def draw(self, view: View, states: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns actions at ``states`` ``(k,)`` and ``mu(a|s)``, as the actor's ``proposals``."""
        std = self.logged_mu and self.logged_mu.std
        if self._inputs is None:
            params = view.columns["action_dist_inputs"][states]
        else:
            tiles = states.split(tile_size(view))
            of_tiles = [self._policy(self._inputs.of(view, tile)) for tile in tiles]
            params, std = torch.cat(of_tiles), None
        n = params.shape[-1] if isinstance(self._n, str) else self._n
        actions, probs = self._actor.proposals(params, n, self._generator, std)
        return self.executed(actions), probs

    def executed(self, actions: Tensor) -> Tensor:
        """Returns actions as the environment executes them, if samples are of the policy.

        Actions outside the range are clipped. Unclipped samples would let the policy's mean leave
        the range for good, and the critic would learn at other actions than it is asked for.
        """
        if self._inputs is None or not actions.is_floating_point():
            return actions
        return actions.clamp(-1, 1)

    def __call__(
        self,
        critic: CriticEvaluator,
        view: View,
        states: Tensor,
        features: Tensor | None = None,
    ) -> Candidates:
        """Samples actions at ``states`` ``(k,)``; ``features`` are those of all slots, if known."""
        actions, probs = self.draw(view, states)
        clipped = self.logged_mu is not None and self.logged_mu.clipped
        executed = actions.clamp(-1, 1) if clipped else actions
        tile = tile_size(view)
        values = [
            # In tiles, so that their features are still in a core's cache for the actions.
            critic.q_values(critic.features(view, some, features), of_some)
            for some, of_some in zip(states.split(tile), executed.split(tile), strict=True)
        ]
        return Candidates(torch.cat(values), actions, probs)


class Bootstrap(Protocol):
    """A function that computes the state values from which the critic's targets bootstrap."""

    repeats: bool
    """Whether all draws of a row between two syncs have the same target."""

    def __call__(
        self,
        view: View,
        states: Tensor,
        inverse: Tensor,
        steps: int,
        features: Tensor | None,
    ) -> Tensor:
        """Returns the target critic's values of ``states[inverse]``, in the shape of ``inverse``.

        Args:
            view: the learner's copy of the replay.
            states: ``(k,)``, distinct slots.
            inverse: ``(steps * batch, T)``, indices into ``states`` of the states in each slice.
            steps: number of minibatches.
            features: the target critic's features of all slots, if known.
        """
        ...


class VBootstrap:
    """Bootstraps from ``V(s')`` (AWR)."""

    repeats = True

    def __init__(self, target: CriticEvaluator) -> None:
        self._target = target

    def __call__(
        self,
        view: View,
        states: Tensor,
        inverse: Tensor,
        steps: int,
        features: Tensor | None,
    ) -> Tensor:
        return self._target.features(view, states, features).squeeze(-1)[inverse]


class QBootstrap:
    """Bootstraps from ``F({Q(s', a_j)})``, ``a_j ~ mu(.|s')`` (paper, equations 8 to 10)."""

    repeats = False

    def __init__(
        self, target: CriticEvaluator, sample: ActionSampler, config: LearnerConfig
    ) -> None:
        self._target = target
        self._sample = sample
        self._config = config

    def __call__(
        self,
        view: View,
        states: Tensor,
        inverse: Tensor,
        steps: int,
        features: Tensor | None,
    ) -> Tensor:
        operator, temperature = self._config.backup, self._config.backup_temperature
        q_values, _, probs, _ = self._sample(self._target, view, states, features)
        if self._config.q_spread == "none":
            return losses.backup(q_values, operator, temperature, probs)[inverse]
        # (steps, batch * T, n): the spread is over all values of a minibatch. A slice that ends
        # early counts its last state several times.
        by_minibatch = inverse.view(steps, -1)
        q_values = q_values[by_minibatch]
        probs = None if probs is None else probs[by_minibatch]
        scale = losses.spread(q_values, self._config.q_spread, (1, 2), probs)
        values = losses.backup(q_values / scale, operator, temperature, probs)
        return (values * scale.squeeze(-1)).view_as(inverse)


Returns = Callable[[Slices, Tensor], Tensor]
"""Computes lambda-returns ``(N,)`` from slices and their next states' values ``(N, T)``."""


class CandidateSource(Protocol):
    """A function that chooses the actor's actions, with their values and baseline."""

    several: bool
    """Whether a state has several candidates."""

    def __call__(
        self, view: View, states: Tensor, features: Tensor | None, returns: Returns
    ) -> Candidates:
        """Returns candidates at ``states`` ``(k,)``; ``features`` are those of all slots."""
        ...


class SampledActions:
    """Samples of ``mu``; the baseline is their mean (QWR)."""

    several = True

    def __init__(self, critic: CriticEvaluator, sample: ActionSampler) -> None:
        self._critic = critic
        self._sample = sample

    def __call__(
        self, view: View, states: Tensor, features: Tensor | None, returns: Returns
    ) -> Candidates:
        return self._sample(self._critic, view, states, features)


class AscendedActions(SampledActions):
    """Samples that are moved along the gradient of Q, within the action range.

    An action moves by more where Q rises more steeply. The root mean square over a state's actions
    is ``distance``: in each state, in the median state or over all states.

    Args:
        critic: evaluates the actions.
        sample: samples the actions.
        distance: in the policy's action space.
        scaling: that of the advantages: ``"median"`` for the median state, ``"minibatch"`` for all
            states, any other for each state.
    """

    def __init__(
        self,
        critic: CriticEvaluator,
        sample: ActionSampler,
        distance: float,
        scaling: losses.AdvantageScaling = "state",
    ) -> None:
        super().__init__(critic, sample)
        self._distance = distance
        self._scaling = scaling

    def __call__(
        self, view: View, states: Tensor, features: Tensor | None, returns: Returns
    ) -> Candidates:
        sampled, _ = self._sample.draw(view, states)
        tile = tile_size(view)
        of_states = [self._critic.features(view, some, features) for some in states.split(tile)]

        def in_tiles(function: Callable[[Tensor, Tensor], Tensor], actions: Tensor) -> Tensor:
            return torch.cat(list(map(function, of_states, actions.split(tile))))

        gradient = in_tiles(self._critic.action_gradient, sampled)
        length = gradient.square().sum(-1).mean(1).sqrt()
        if self._scaling == "median":
            length = length.median()
        elif self._scaling == "minibatch":
            length = length.square().mean().sqrt()
        step = gradient * (self._distance / length.clamp_min(1e-12)).view(-1, 1, 1)
        actions = (sampled + step).clamp(-1, 1)
        return Candidates(in_tiles(self._critic.q_values, actions), actions)


class ReplayActionByQ(SampledActions):
    """The replay's action with ``Q(s, a)``; the baseline is the mean Q of samples (AWAC)."""

    several = False

    def __call__(
        self, view: View, states: Tensor, features: Tensor | None, returns: Returns
    ) -> Candidates:
        actions = self._sample.executed(view.columns["actions"][states]).unsqueeze(1)
        samples, _, probs, _ = super().__call__(view, states, features, returns)
        values = losses.backup(samples, "mean", probs=probs)
        of_states = self._critic.features(view, states, features)
        return Candidates(self._critic.q_values(of_states, actions), actions, baseline=values)


class ReplayActionByV:
    """The replay's action with its return; the baseline is ``V(s)`` (AWR)."""

    several = False

    def __init__(self, critic: CriticEvaluator, margin: int) -> None:
        self._critic = critic
        self._margin = margin

    def __call__(
        self, view: View, states: Tensor, features: Tensor | None, returns: Returns
    ) -> Candidates:
        actions = view.columns["actions"][states].unsqueeze(1)
        slices = view.slices(states, self._margin)
        after = self._critic.features(view, slices.next_slots.flatten(), features)
        of_actions = returns(slices, after.view_as(slices.next_slots)).unsqueeze(1)
        values = self._critic.features(view, states, features).squeeze(-1)
        return Candidates(of_actions, actions, baseline=values)
