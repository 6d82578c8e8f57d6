"""The formulas of Q-Value Weighted Regression, as functions of tensors.

Kozakowski et al., "Q-Value Weighted Regression: Reinforcement Learning with Limited Data"
(https://arxiv.org/abs/2102.06782), is "the paper" below.

Shapes: ``(...)`` are leading batch dimensions, ``n`` the actions considered at a state,
``T`` the steps of a trajectory slice (the paper's *margin*), ``d`` the action's dimensions.
For an impossible argument the functions raise a ``ValueError`` with its name and its value or
shape; the gradients and the losses of reduced forms, which run in the inner loops, do not check.
The only package that this module imports is torch.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

Backup = Literal["mean", "max", "logsumexp"]
Spread = Literal["none", "std", "abs"]
AdvantageScaling = Literal["median", "state", "minibatch", "none"]

SPREAD_EPS = 1e-5
ADVANTAGE_EPS = 1e-5


def _check_positive(name: str, value: float | Tensor) -> None:
    # A tensor is not checked: the check would stall a GPU, and a tensor is no user's setting.
    if not isinstance(value, Tensor) and not value > 0:
        raise ValueError(f"{name} must be > 0, got {value}")


def _check_samples(q_values: Tensor, probs: Tensor | None) -> None:
    if q_values.dim() < 1 or q_values.shape[-1] < 1:
        raise ValueError(f"q_values must be (..., n) with n >= 1, got {tuple(q_values.shape)}")
    if probs is not None and probs.shape != q_values.shape:
        raise ValueError(
            f"probs must have the shape of q_values {tuple(q_values.shape)}, "
            f"got {tuple(probs.shape)}"
        )


def _expectation(values: Tensor, probs: Tensor | None) -> Tensor:
    return values.mean(-1) if probs is None else (probs * values).sum(-1)


def backup(
    q_values: Tensor,
    operator: Backup = "logsumexp",
    temperature: float | Tensor = 1.0,
    probs: Tensor | None = None,
) -> Tensor:
    """Computes a state's value ``F`` from the Q-values of its actions (paper, section 3.2).

    ``"mean"`` is the value of ``mu`` itself, ``"max"`` that of the best action. ``"logsumexp"``,
    ``tau * log(mean(exp(q / tau)))``, lies between the two: it tends to the mean as ``tau`` grows
    and to the maximum as ``tau`` goes to 0.

    Args:
        q_values: ``(..., n)``.
        operator: the aggregation.
        temperature: ``tau`` of ``"logsumexp"``, in units of ``q_values``, > 0.
        probs: ``(..., n)``, ``mu(a|s)``, if the n actions are *all* (discrete) actions: mean and
            log-mean-exp are then expectations under ``mu``, and the maximum is over the actions
            with a probability above 0. ``None`` if the actions are samples of ``mu``.

    Returns:
        ``(...)``.
    """
    _check_samples(q_values, probs)
    _check_positive("temperature", temperature)
    if operator == "mean":
        return _expectation(q_values, probs)
    if operator == "max":
        if probs is not None:
            q_values = q_values.masked_fill(probs == 0, -math.inf)
        return q_values.amax(-1)
    if operator == "logsumexp":
        log_probs = -math.log(q_values.shape[-1]) if probs is None else probs.log()
        return temperature * torch.logsumexp(q_values / temperature + log_probs, -1)
    raise ValueError(f"operator must be one of {get_args(Backup)}, got {operator!r}")


def spread(
    q_values: Tensor, kind: Spread, dims: tuple[int, ...], probs: Tensor | None = None
) -> Tensor:
    """Computes the spread of Q-values, relative to which a temperature can be given.

    ``"std"`` is the (biased) standard deviation, ``"abs"`` the mean absolute deviation from the
    mean, both with 1e-5 added; ``"none"`` is a scalar 1. The reduced dimensions ``dims`` keep size
    1. ``probs`` are the values' weights, if all actions are enumerated.
    """
    if kind == "none":
        return q_values.new_ones(())
    weights = torch.ones_like(q_values) if probs is None else probs
    weights = weights / weights.sum(dims, keepdim=True)
    deviations = q_values - (weights * q_values).sum(dims, keepdim=True)
    if kind == "std":
        return (weights * deviations.square()).sum(dims, keepdim=True).sqrt() + SPREAD_EPS
    if kind == "abs":
        return (weights * deviations.abs()).sum(dims, keepdim=True) + SPREAD_EPS
    raise ValueError(f"kind must be one of {get_args(Spread)}, got {kind!r}")


def lambda_returns(
    rewards: Tensor, discounts: Tensor, next_values: Tensor, lambda_: float | Tensor
) -> Tensor:
    """Computes the truncated lambda-return of a slice's first step (paper, eq. 9-10).

    Goes backwards from ``L_T = r_T + g_T F_{T+1}`` by
    ``L_t = r_t + g_t ((1 - lambda_t) F_{t+1} + lambda_t L_{t+1})``. The weights of the 1..T-step
    returns sum to 1 (Sutton & Barto, 2nd ed., eq. 12.9), unlike those of eq. 10 as printed.

    Args:
        rewards: ``(..., T)``, ``r_t``.
        discounts: ``(..., T)``, ``g_t``: gamma, or 0 if the episode terminated at ``t``.
        next_values: ``(..., T)``, ``F`` of the state after step ``t``.
        lambda_: a number in [0, 1] or ``(..., T)``. Use 0 at ``t`` if the trajectory is cut after
            ``t``: the return then bootstraps there and ignores later steps.

    Returns:
        ``(...)``, ``L_1``.
    """
    shape = rewards.shape
    if rewards.dim() < 1 or shape[-1] < 1:
        raise ValueError(f"rewards must be (..., T) with T >= 1, got {tuple(shape)}")
    for name, value in (("discounts", discounts), ("next_values", next_values)):
        if value.shape != shape:
            raise ValueError(
                f"{name} must have the shape of rewards {tuple(shape)}, got {tuple(value.shape)}"
            )
    if not isinstance(lambda_, Tensor):
        if not 0 <= lambda_ <= 1:
            raise ValueError(f"lambda_ must be in [0, 1], got {lambda_}")
        lambda_ = rewards.new_full((), lambda_)
    elif lambda_.shape not in (shape, ()):
        raise ValueError(
            f"lambda_ must be a number or have the shape of rewards {tuple(shape)}, "
            f"got {tuple(lambda_.shape)}"
        )
    lambda_ = lambda_.expand(shape)
    returns = rewards[..., -1] + discounts[..., -1] * next_values[..., -1]
    for t in range(shape[-1] - 2, -1, -1):
        mixed = torch.lerp(next_values[..., t], returns, lambda_[..., t])
        returns = rewards[..., t] + discounts[..., t] * mixed
    return returns


def advantage_weights(
    q_values: Tensor,
    beta: float = 1.0,
    max_weight: float = 20.0,
    scaling: AdvantageScaling = "minibatch",
    probs: Tensor | None = None,
    baseline: Tensor | None = None,
) -> Tensor:
    """Computes the actor's weights ``min(exp(A / beta), max_weight)`` (paper, Algorithms 1, 2).

    The advantage is ``A_j = Q(s, a_j) - V(s)``.

    Args:
        q_values: ``(..., n)``, ``Q`` or another estimate of an action's return; the leading
            dimensions are the minibatch.
        beta: temperature, > 0. Large values approach behaviour cloning, small ones are greedy.
        max_weight: upper limit of the weights, > 0.
        scaling: ``"state"`` and ``"minibatch"`` first shift and scale the advantages of each state
            or of the whole minibatch to mean 0 and (biased) standard deviation 1, with 1e-5 added
            to the divisor. ``"median"`` shifts each state's advantages and divides all by the
            (lower) median of the states' standard deviations. ``"none"`` does neither. With
            ``probs``, the moments are expectations under ``mu``.
        probs: ``(..., n)``, ``mu(a|s)``, if the n actions are all actions; else ``None``.
        baseline: ``(...)``, ``V(s)``; by default the mean of ``q_values``, weighted by ``probs``.

    Returns:
        ``(..., n)``, without gradient.
    """
    _check_samples(q_values, probs)
    _check_positive("beta", beta)
    _check_positive("max_weight", max_weight)
    q_values = q_values.detach()
    if baseline is None:
        baseline = _expectation(q_values, probs)
    elif baseline.shape != q_values.shape[:-1]:
        raise ValueError(
            f"baseline must have the shape {tuple(q_values.shape[:-1])} of q_values without its "
            f"last dimension, got {tuple(baseline.shape)}"
        )
    advantages = q_values - baseline.detach().unsqueeze(-1)
    if scaling not in get_args(AdvantageScaling):
        raise ValueError(f"scaling must be one of {get_args(AdvantageScaling)}, got {scaling!r}")
    if scaling != "none":

        def moment(values: Tensor) -> Tensor:
            of_states = _expectation(values, probs).unsqueeze(-1)
            return of_states.mean() if scaling == "minibatch" else of_states

        # Without `baseline`, the mean is already 0, up to rounding.
        advantages = advantages - moment(advantages)
        std = moment(advantages.square()).sqrt()
        advantages = advantages / ((std.median() if scaling == "median" else std) + ADVANTAGE_EPS)
    # Clips the exponent, so that `exp` cannot overflow.
    return (advantages / beta).clamp(max=math.log(max_weight)).exp()


def critic_loss(q_values: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean of ``(q_values - targets)^2``, both ``(...)``; a scalar."""
    if q_values.shape != targets.shape:
        raise ValueError(
            f"targets must have the shape of q_values {tuple(q_values.shape)}, "
            f"got {tuple(targets.shape)}"
        )
    return (q_values - targets.detach()).square().mean()


def critic_loss_gradient(q_values: Tensor, targets: Tensor) -> Tensor:
    """Returns the gradient of :func:`critic_loss` by ``q_values``, ``(...)``."""
    return (q_values - targets) * (2 / q_values.numel())


def actor_loss(log_probs: Tensor, weights: Tensor) -> Tensor:
    """Returns ``-mean(weights * log pi(a|s))``, both ``(..., n)``; a scalar.

    If all actions are enumerated, pass ``weights * n * mu(a|s)``: the mean over actions is then
    the expectation under ``mu``.
    """
    if log_probs.shape != weights.shape:
        raise ValueError(
            f"weights must have the shape of log_probs {tuple(log_probs.shape)}, "
            f"got {tuple(weights.shape)}"
        )
    return -(weights.detach() * log_probs).mean()


class GaussianRegression(NamedTuple):
    """The means over n weighted actions that determine a Gaussian actor's loss."""

    actions: Tensor
    """``(..., d)``, the weighted mean action."""
    weights: Tensor
    """``(...)``, the mean weight."""
    offsets: Tensor
    """``(...)``, the part of the loss that does not depend on the policy."""


def gaussian_regression(actions: Tensor, weights: Tensor, action_std: float) -> GaussianRegression:
    """Reduces :func:`actor_loss` of a Gaussian with constant std to a regression on one action.

    ``mean_j w_j ||m - a_j||^2 = W ||m - abar||^2 + mean_j w_j ||a_j - abar||^2`` with
    ``W = mean_j w_j`` and ``abar = sum_j w_j a_j / sum_j w_j``. Only the first term depends on the
    mean ``m``, so the n actions need not be kept.

    Args:
        actions: ``(..., n, d)``.
        weights: ``(..., n)``.
        action_std: sigma, > 0.
    """
    _check_positive("action_std", action_std)
    if actions.shape[:-1] != weights.shape:
        raise ValueError(
            f"weights must have the shape {tuple(actions.shape[:-1])} of actions without its last "
            f"dimension, got {tuple(weights.shape)}"
        )
    mean_weight = weights.mean(-1)
    # All weights underflow to 0 if all actions are far worse than V(s); abar is then irrelevant.
    total = mean_weight.clamp(min=torch.finfo(weights.dtype).tiny).unsqueeze(-1)
    mean_action = (weights.unsqueeze(-1) * actions).mean(-2) / total
    scatter = (weights * (actions - mean_action.unsqueeze(-2)).square().sum(-1)).mean(-1)
    log_normalizer = actions.shape[-1] * math.log(action_std * math.sqrt(2 * math.pi))
    offsets = scatter / (2 * action_std**2) + mean_weight * log_normalizer
    return GaussianRegression(mean_action, mean_weight, offsets)


def gaussian_regression_loss(
    means: Tensor, regression: GaussianRegression, action_std: float
) -> Tensor:
    """Computes :func:`actor_loss` for means ``(..., d)`` from the reduced form; a scalar.

    Value and gradient are equal to those of :func:`actor_loss`.
    """
    distances = (means - regression.actions).square().sum(-1)
    return (regression.weights * distances / (2 * action_std**2) + regression.offsets).mean()


def gaussian_regression_loss_gradient(
    means: Tensor, regression: GaussianRegression, action_std: float
) -> Tensor:
    """Returns the gradient of :func:`gaussian_regression_loss` by ``means``, ``(..., d)``."""
    scale = regression.weights / (action_std**2 * regression.weights.numel())
    return (means - regression.actions) * scale.unsqueeze(-1)


def effective_sample_size(weights: Tensor, probs: Tensor | None = None) -> Tensor:
    """Returns ``(sum_j w_j)^2 / sum_j w_j^2`` of each state, ``(..., n)`` to ``(...)``.

    n is behaviour cloning, 1 is greedy. With ``probs``, the sums are expectations times n.
    """
    _check_samples(weights, probs)
    total = _expectation(weights, probs)
    return weights.shape[-1] * total.square() / _expectation(weights.square(), probs)


def categorical_regression(
    actions: Tensor, weights: Tensor, num_actions: int, probs: Tensor | None = None
) -> Tensor:
    """Reduces :func:`actor_loss` of a categorical policy to one weight for each action.

    ``-mean_j w_j log pi(a_j) = -sum_a c_a log pi(a)`` with ``c_a = mean_j w_j [a_j = a]``. If all
    actions are enumerated, ``c_a = mu(a|s) w_a``.

    Args:
        actions: ``(..., n)``, indices.
        weights: ``(..., n)``.
        num_actions: A.
        probs: ``(..., A)``, ``mu(a|s)``, if the actions are all actions in order; else ``None``.

    Returns:
        ``(..., A)``.
    """
    _check_samples(weights, probs)
    if probs is not None:
        return probs * weights
    counts = weights.new_zeros(*weights.shape[:-1], num_actions)
    return counts.scatter_add(-1, actions, weights) / weights.shape[-1]


def categorical_regression_loss(logits: Tensor, action_weights: Tensor) -> Tensor:
    """Computes :func:`actor_loss` from the reduced form, both ``(..., A)``; a scalar."""
    return -(action_weights * logits.log_softmax(-1)).sum(-1).mean()


def categorical_regression_loss_gradient(logits: Tensor, action_weights: Tensor) -> Tensor:
    """Returns the gradient of :func:`categorical_regression_loss` by ``logits``."""
    total = action_weights.sum(-1, keepdim=True)
    return (logits.softmax(-1) * total - action_weights) / logits[..., 0].numel()
