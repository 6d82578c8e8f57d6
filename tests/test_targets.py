"""Samples of the current policy, and samples moved along the gradient of Q."""

import dataclasses
import math

import pytest
import torch
from helpers import CONTINUOUS, DISCRETE
from test_learner import evenly, learner_for, scripted, view_of

from qwr_rllib.learning.config import LearnerConfig

PLANE = dataclasses.replace(CONTINUOUS, action_dim=2)


def test_targets_sample_the_current_policy():
    """The critic's targets by a loop over rows, one network pass for each action."""
    changes = {"samples_from": "pi", "backup": "mean", "margin": 1, "n_action_samples": 3}
    learner, view = scripted(CONTINUOUS, **changes)
    rows = view.rows[:10]
    found = learner._targets(view, rows, 1)[0]
    seen = 0
    with torch.no_grad():
        for row, target in zip(rows, found, strict=True):
            slices = view.slices(row[None], 1)
            expected = slices.rewards[0, 0]
            if slices.nonterminals[0, 0]:
                obs = learner.networks.normalize(view.observations(slices.next_slots[0]))
                actions = evenly(learner.actor(obs), 3)[0][0].clamp(-1, 1)
                values = [learner.target_critic(obs, a[None]) for a in actions]
                value = torch.stack(values).mean() * learner.target_critic.q_scale
                expected = expected + learner.gamma * value
                seen += 1
            torch.testing.assert_close(target, expected, rtol=1e-4, atol=1e-4)
    assert seen > 5
    stored, _ = scripted(CONTINUOUS, **changes | {"samples_from": "mu"})
    assert (stored._targets(view, rows, 1)[0] - found).abs().max() > 0.1


def test_the_actor_regresses_onto_clipped_samples_of_the_current_policy():
    learner, view = scripted(CONTINUOUS, samples_from="pi", n_action_samples=2)
    states = view.rows[:8]
    with torch.no_grad():
        candidates = learner._candidates(view, states, None, learner._returns)
        params = learner.actor(learner.networks.normalize(view.observations(states)))
    unclipped = evenly(params, 2)[0]
    assert (unclipped.abs() > 1).any()
    torch.testing.assert_close(candidates.actions, unclipped.clamp(-1, 1))


def test_all_discrete_actions_are_weighted_by_the_current_policy():
    learner = learner_for(DISCRETE, samples_from="pi", n_action_samples="all")
    view = view_of(DISCRETE)
    states = view.rows[:8]
    with torch.no_grad():
        candidates = learner._candidates(view, states, None, learner._returns)
        logits = learner.actor(learner.networks.normalize(view.observations(states)))
    torch.testing.assert_close(candidates.probs, logits.softmax(-1))


def inside(params, n, generator=None, std=None):
    """Returns actions inside of the range, in place of samples."""
    return (0.3 * evenly(params, n)[0]).clamp(-0.9, 0.9), None


def test_samples_move_along_the_gradient_of_q():
    distance = 0.002
    ascent = distance / (0.4 * math.sqrt(PLANE.action_dim))
    still, view = scripted(PLANE, n_action_samples=3)
    moving, _ = scripted(PLANE, n_action_samples=3, sample_ascent=ascent)
    states = view.rows
    found = []
    for learner in (still, moving):
        learner.actor.proposals = inside
        found.append(learner._candidates(view, states, None, learner._returns))
    before, after = found
    steps = after.actions - before.actions
    lengths = steps.square().sum(-1).mean(1).sqrt()
    assert (lengths == 0).sum() <= 2  # where no unit of the critic's last layer is active
    lengths = lengths[lengths > 0]
    torch.testing.assert_close(lengths, torch.full_like(lengths, distance), rtol=1e-3, atol=1e-6)
    # A small step raises Q by its length times that of the gradient, by finite differences.
    obs = still.networks.normalize(view.observations(states))
    rises = after.q_values - before.q_values
    gradients = torch.stack(
        [
            torch.autograd.functional.jacobian(
                lambda a, o=o: still.critic(o.expand(3, -1), a).sum(), actions
            )
            for o, actions in zip(obs, before.actions, strict=True)
        ]
    )
    expected = (steps * gradients).sum(-1) * still.critic.q_scale
    assert (expected[steps.any(-1)] > 0).all()
    torch.testing.assert_close(rises, expected, rtol=0.1, atol=1e-3)


def test_moved_samples_stay_in_the_action_range():
    learner, view = scripted(CONTINUOUS, n_action_samples=3, sample_ascent=10)
    candidates = learner._candidates(view, view.rows, None, learner._returns)
    assert candidates.actions.abs().max() == 1
    assert not candidates.q_values.requires_grad


def test_both_learn_a_step_without_touching_the_critic():
    learner = learner_for(CONTINUOUS, samples_from="pi", sample_ascent=0.3)
    view = view_of(CONTINUOUS)
    critic = [each.clone() for each in learner.critic.parameters()]
    actor = [each.clone() for each in learner.actor.parameters()]
    learner.train_actor(view)
    assert all(map(torch.equal, critic, learner.critic.parameters()))
    assert all(each.grad is None for each in learner.critic.embed.parameters())
    assert not all(map(torch.equal, actor, learner.actor.parameters()))


def test_what_cannot_be_moved_is_refused():
    with pytest.raises(ValueError, match=r"sample_ascent must be 0 where actions are discrete"):
        learner_for(DISCRETE, sample_ascent=0.1)
    with pytest.raises(ValueError, match=r"sample_ascent must be 0 with actor_actions 'replay'"):
        LearnerConfig(actor_actions="replay", sample_ascent=0.1)
    with pytest.raises(ValueError, match="samples_from must be one of 'mu', 'pi', got 'policy'"):
        LearnerConfig(samples_from="policy")
