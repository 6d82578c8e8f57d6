"""Samples of the current policy, samples moved along the gradient of Q, and several critics."""

import dataclasses
import math

import pytest
import torch
from helpers import CONTINUOUS, DISCRETE
from test_learner import evenly, learner_for, networks_for, scripted, view_of, weights

from qwr_rllib.learning import learner as learner_module
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


@pytest.mark.parametrize("samples_from", ["pi", "mu"])
def test_the_critic_of_samples_of_pi_learns_at_the_executed_actions(samples_from):
    found = []
    for clip in (False, True):
        learner, view = scripted(CONTINUOUS, samples_from=samples_from)
        actions = view.columns["actions"].mul_(3)
        if clip:
            actions.clamp_(-1, 1)
        learner.train_critic(view)
        found.append(weights(learner.critic))
    assert torch.equal(*found) == (samples_from == "pi")


def test_the_sampled_policy_stays_that_of_the_iterations_beginning(monkeypatch):
    monkeypatch.setattr(learner_module, "MAX_CHUNK_STEPS", 2)
    steps = {"n_critic_steps": 4, "n_actor_steps": 4, "target_update_freq": 4}
    learner, view = scripted(CONTINUOUS, samples_from="pi", **steps)
    states = view.rows[:8]
    drawn = {"critic": [], "actor": []}

    def spied(phase, method):
        def spy(*args):
            drawn[phase].append(learner._sampler.draw(view, states)[0])
            return method(*args)

        return spy

    monkeypatch.setattr(learner, "_targets", spied("critic", learner._targets))
    monkeypatch.setattr(learner, "_actor_regression", spied("actor", learner._actor_regression))
    for _ in range(2):
        with torch.no_grad():
            params = learner.actor(learner.networks.normalize(view.observations(states)))
        expected = evenly(params, learner.config.n_action_samples)[0].clamp(-1, 1)
        learner.train(view)
        for phase in drawn.values():
            assert len(phase) == 2
            for actions in phase:
                torch.testing.assert_close(actions, expected)
            phase.clear()
        assert not torch.equal(learner.actor.head.weight, learner._sampler._policy.head.weight)


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


@pytest.mark.parametrize("scaling", ["state", "median", "minibatch"])
def test_samples_move_along_the_gradient_of_q(scaling):
    distance = 0.002
    ascent = distance / (0.4 * math.sqrt(PLANE.action_dim))
    still, view = scripted(PLANE, n_action_samples=3)
    moving, _ = scripted(PLANE, n_action_samples=3, sample_ascent=ascent, advantage_scaling=scaling)
    states = view.rows
    found = []
    for learner in (still, moving):
        learner.actor.proposals = inside
        found.append(learner._candidates(view, states, None, learner._returns))
    before, after = found
    steps = after.actions - before.actions
    lengths = steps.square().sum(-1).mean(1).sqrt()
    assert (lengths == 0).sum() <= 2  # where no unit of the critic's last layer is active
    if scaling == "median":
        scales = lengths.median()
    elif scaling == "minibatch":
        scales = lengths.square().mean().sqrt()
    else:
        scales = lengths[lengths > 0]
    torch.testing.assert_close(scales, torch.full_like(scales, distance), rtol=1e-3, atol=1e-6)
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
    flat = gradients.flatten(1).norm(dim=1)
    ratios = (lengths / flat)[flat > 0]
    assert (ratios.std() < 1e-3 * ratios.mean()) == (scaling != "state")
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


def test_targets_take_the_least_of_the_critics_and_the_actor_their_mean():
    networks = networks_for(CONTINUOUS, num_critics=2)
    torch.nn.init.normal_(networks.other_critics[0].head.weight, 0.0, 0.3)
    learner, view = scripted(
        CONTINUOUS, networks, num_critics=2, backup="mean", margin=1, n_action_samples=3
    )
    learner._sync_target()
    rows = view.rows[:10]
    found = learner._targets(view, rows, 1)[0]
    values = learner._candidates(view, rows, None, learner._returns).q_values

    def of_both(slots):
        """Returns each critic's Q of the actions at a slot, ``(2, 3)``."""
        obs = networks.normalize(view.observations(slots))
        actions = evenly(view.columns["action_dist_inputs"][slots], 3)[0][0]
        critics = networks.critic, networks.other_critics[0]
        of_actions = [[critic(obs, a[None]) for a in actions] for critic in critics]
        return torch.tensor(of_actions) * networks.critic.q_scale

    lower = set()
    with torch.no_grad():
        for row, target, of_row in zip(rows, found, values, strict=True):
            torch.testing.assert_close(of_row, of_both(row[None]).mean(0), rtol=1e-4, atol=1e-4)
            slices = view.slices(row[None], 1)
            expected = slices.rewards[0, 0]
            if slices.nonterminals[0, 0]:
                first, second = of_both(slices.next_slots[0])
                lower |= set((first < second).tolist())
                expected = expected + learner.gamma * torch.minimum(first, second).mean()
            torch.testing.assert_close(target, expected, rtol=1e-4, atol=1e-4)
    assert lower == {True, False}


def test_equal_critics_train_as_one():
    networks = networks_for(CONTINUOUS, num_critics=2)
    networks.other_critics[0].load_state_dict(networks.critic.state_dict())
    single = networks_for(CONTINUOUS)
    single.load_state_dict(networks.state_dict(), strict=False)
    both, view = scripted(CONTINUOUS, networks, num_critics=2, sample_ascent=0.1)
    alone, other_view = scripted(CONTINUOUS, single, sample_ascent=0.1)
    first, second = (learner.train(each) for learner, each in ((both, view), (alone, other_view)))
    assert first["critic_loss"] == pytest.approx(second["critic_loss"], rel=1e-5)
    assert torch.equal(weights(both.critics[0]), weights(both.critics[1]))
    for found, expected in ((both.critic, alone.critic), (both.actor, alone.actor)):
        torch.testing.assert_close(weights(found), weights(expected), rtol=1e-5, atol=1e-6)


def test_all_critics_learn_and_are_saved():
    learner = learner_for(
        CONTINUOUS, networks=networks_for(CONTINUOUS, num_critics=3), num_critics=3
    )
    view = view_of(CONTINUOUS)
    start = [weights(critic) for critic in learner.critics]
    learner.train(view)
    trained = [weights(critic) for critic in learner.critics]
    assert len(trained) == 3
    assert not any(map(torch.equal, start, trained))
    assert not torch.equal(trained[1], trained[2])

    loaded = learner_for(
        CONTINUOUS, networks=networks_for(CONTINUOUS, 1, num_critics=3), num_critics=3
    )
    loaded.load_state_dict(learner.state_dict())
    for each in (learner, loaded):
        each.train_critic(view)
    for found, expected in (
        (loaded.critics, learner.critics), (loaded.target_critics, learner.target_critics)
    ):  # fmt: skip
        assert all(map(torch.equal, map(weights, found), map(weights, expected)))
    assert not any("critic" in name for name in learner.networks.acting_state())


def test_one_critic_is_loaded_from_a_checkpoint_of_before():
    learner = learner_for(CONTINUOUS)
    state = learner.state_dict()
    before = {name: value for name, value in state.items() if not name.startswith("other_")}
    assert before.keys() < state.keys()
    learner_for(CONTINUOUS).load_state_dict(before)


def test_several_state_values_are_refused():
    with pytest.raises(ValueError, match="num_critics must be 1 with critic_type 'v', got 2"):
        LearnerConfig(critic_type="v", actor_actions="replay", num_critics=2)
