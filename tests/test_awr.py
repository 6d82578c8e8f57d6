"""AWR and AWAC: QWR with another critic, and with the actions in the replay."""

import math

import numpy as np
import pytest
import torch
from helpers import CONTINUOUS, DISCRETE
from ray.tune.registry import get_trainable_cls
from test_learner import PlainQWR, ScriptedView, episodes, learner_for, networks_for, weights
from torch import nn

from qwr_rllib import AWAC, AWR, AWACConfig, AWRConfig, QWRConfig
from qwr_rllib.learning import losses
from qwr_rllib.learning.accel.gradients import AutogradGradient, DenseGradient, gradient_of
from qwr_rllib.learning.config import LearnerConfig
from qwr_rllib.learning.learner import Learner
from qwr_rllib.learning.networks import GatedCritic, QWRNetworks, ValueCritic

AWAC_SETTINGS = {"actor_actions": "replay"}
AWR_SETTINGS = AWAC_SETTINGS | {"critic_type": "v"}
SPECS = pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE], ids=["continuous", "discrete"])


# Against Algorithm 1, step by step


class PlainAWR(PlainQWR):
    """Algorithm 1, one minibatch and one state at a time, with autograd."""

    def values(self, critic, episode, t):
        with torch.no_grad():
            return critic(self.obs(episode, t)) / (1 - self.config.gamma), None

    def backup(self, value, probs, scale):
        return value.item()

    def scale(self, target_critic, minibatch):
        return 1.0

    def advantage(self, episode, t):
        critic = self.networks.critic
        return self.target(critic, episode, t, 1.0) - self.values(critic, episode, t)[0].item()

    def train_actor(self):
        config, actor = self.config, self.networks.actor
        adam = torch.optim.Adam(actor.parameters(), config.actor_lr, eps=config.adam_epsilon)
        for _ in range(config.n_actor_steps):
            minibatch = self.minibatch()
            advantages = [self.advantage(e, t) for e, t in minibatch]
            if config.advantage_scaling == "minibatch":
                mean = sum(advantages) / len(advantages)
                variance = sum((each - mean) ** 2 for each in advantages) / len(advantages)
                advantages = [(each - mean) / (variance**0.5 + 1e-5) for each in advantages]
            weights = [min(math.exp(each / config.beta), config.max_weight) for each in advantages]
            loss = torch.zeros(())
            for (e, t), w in zip(minibatch, weights, strict=True):
                params, action = actor(self.obs(e, t)), torch.tensor(self.data[e].actions[t])
                if self.spec.discrete:
                    policy = torch.distributions.Categorical(logits=params)
                else:
                    normal = torch.distributions.Normal(params, actor.action_std)
                    policy = torch.distributions.Independent(normal, 1)
                loss = loss - w * policy.log_prob(action) / len(minibatch)
            self.step(adam, actor, loss)
            self.actor_losses.append(loss.item())
            self.used_weights.append(torch.tensor(weights))


class PlainAWAC(PlainAWR):
    """QWR's critic; the advantage of the replay's action over the mean Q of mu's actions."""

    values, backup, scale = PlainQWR.values, PlainQWR.backup, PlainQWR.scale

    def advantage(self, episode, t):
        critic = self.networks.critic
        q_values, probs = self.values(critic, episode, t)
        action = torch.tensor(self.data[episode].actions[t])
        with torch.no_grad():
            taken = critic(self.obs(episode, t), action) / (1 - self.config.gamma)
        return (taken - (probs * q_values).sum()).item()


def scripted(spec, settings, **kwargs):
    critic_type = settings.get("critic_type", "q")
    networks = networks_for(spec, critic_type=critic_type)
    learner = learner_for(spec, networks=networks, **settings | kwargs)
    if not spec.discrete:
        learner.actor.proposals = evenly
    return learner, ScriptedView(episodes(spec), spec)


def evenly(params, n, generator=None, std=None):
    return params.unsqueeze(-2) + torch.linspace(-0.7, 1.1, n).unsqueeze(-1), None


@SPECS
@pytest.mark.parametrize(
    ("plain", "settings"),
    [
        (PlainAWR, AWR_SETTINGS | {"margin": 60}),
        (PlainAWR, AWR_SETTINGS | {"margin": 2, "advantage_scaling": "none", "beta": 0.5}),
        (PlainAWAC, AWAC_SETTINGS),
        (PlainAWAC, AWAC_SETTINGS | {"backup": "max", "advantage_scaling": "none"}),
    ],
    ids=["awr", "awr-short", "awac", "awac-max"],
)
def test_training_is_the_algorithm(spec, plain, settings):
    learner, view = scripted(spec, settings, max_weight=1.5)
    expected = plain(learner, view, episodes(spec))
    expected.train_critic()
    metrics = learner.train_critic(view)
    close = {"rtol": 2e-4, "atol": 2e-5}
    torch.testing.assert_close(weights(learner.critic), weights(expected.networks.critic), **close)
    assert metrics["target_mean"] == pytest.approx(np.mean(expected.targets), rel=1e-3)

    expected.train_actor()
    metrics = learner.train_actor(view)
    torch.testing.assert_close(weights(learner.actor), weights(expected.networks.actor), **close)
    assert metrics["actor_loss"] == pytest.approx(np.mean(expected.actor_losses), rel=1e-3)
    used = torch.stack(expected.used_weights)
    assert 0 < metrics["weight_clip_fraction"] < 1
    assert metrics["weight_clip_fraction"] == pytest.approx((used >= 1.4999).float().mean().item())
    # Over the states of a minibatch, because each state has one action.
    shares = used.sum(-1) ** 2 / (used**2).sum(-1)
    assert metrics["weight_ess"] == pytest.approx(shares.mean().item(), rel=1e-3)


@pytest.mark.parametrize("settings", [AWR_SETTINGS, AWAC_SETTINGS], ids=["awr", "awac"])
def test_the_actor_does_not_depend_on_the_features_being_cached(settings, monkeypatch):
    trained = []
    for limit in (2**28, 0):
        monkeypatch.setattr("qwr_rllib.learning.evaluation.MAX_CACHED_FEATURES_BYTES", limit)
        learner, view = scripted(CONTINUOUS, settings)
        learner.train_actor(view)
        trained.append(weights(learner.actor))
    torch.testing.assert_close(trained[1], trained[0], rtol=1e-4, atol=1e-5)


def test_the_value_critic_does_not_see_actions():
    critic = networks_for(CONTINUOUS, critic_type="v").critic
    assert isinstance(critic, ValueCritic)
    obs = torch.randn(6, 2)
    torch.testing.assert_close(critic(obs, torch.randn(6, 1)), critic(obs, torch.randn(6, 1)))
    torch.testing.assert_close(critic.features(obs).squeeze(-1), critic(obs) / (1 - 0.9))


def test_the_value_critics_gradient_by_hand():
    critic = networks_for(CONTINUOUS, critic_type="v", hiddens=(12, 7)).critic
    size = sum(parameter.numel() for parameter in critic.parameters())
    by_hand, by_autograd = torch.full((size,), 7.0), torch.full((size,), -7.0)
    gradient = gradient_of(critic, losses.critic_loss, losses.critic_loss_gradient, by_hand, None)
    assert type(gradient) is DenseGradient
    inputs, targets = (torch.randn(5, 2), torch.randn(5, 1)), (torch.randn(5),)
    found = gradient(inputs, targets)
    expected = AutogradGradient(critic, losses.critic_loss, by_autograd)(inputs, targets)
    torch.testing.assert_close(by_hand, by_autograd)
    torch.testing.assert_close(found, expected)
    assert (by_hand != 0).float().mean() > 0.3


def test_each_loss_reaches_its_own_network_only():
    for settings in (AWR_SETTINGS, AWAC_SETTINGS):
        learner, view = scripted(CONTINUOUS, settings)
        for loss, own in zip(
            learner.losses(view, view.rows), (learner.critic, learner.actor), strict=True
        ):
            learner.networks.zero_grad()
            loss.backward()
            reached = {id(p) for p in learner.networks.parameters() if p.grad is not None}
            assert reached == {id(p) for p in own.parameters()}


# The weights


def test_weights_against_a_baseline_by_hand():
    q_values, baseline = torch.tensor([[3.0], [1.0], [2.0]]), torch.tensor([1.0, 1.0, 3.0])
    found = losses.advantage_weights(q_values, 2.0, 2.0, "none", baseline=baseline)
    # Advantages 2, 0, -1.
    expected = [[2.0], [1.0], [math.exp(-0.5)]]
    torch.testing.assert_close(found, torch.tensor(expected))
    found = losses.advantage_weights(q_values, 1.0, 20.0, baseline=baseline)
    std = math.sqrt((2**2 + 0 + 1) / 3 - (1 / 3) ** 2)
    expected = [[math.exp((each - 1 / 3) / std)] for each in (2, 0, -1)]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_a_baseline_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"baseline must have the shape \(3,\).*got \(3, 1\)"):
        losses.advantage_weights(torch.zeros(3, 2), baseline=torch.zeros(3, 1))


@pytest.mark.parametrize("settings", [AWR_SETTINGS, AWAC_SETTINGS], ids=["awr", "awac"])
def test_large_beta_is_behaviour_cloning(settings):
    learner, view = scripted(CONTINUOUS, settings, beta=1e9)
    metrics = learner.train_actor(view)
    assert metrics["weight_ess"] == pytest.approx(learner.config.train_batch_size)
    assert metrics["weight_max"] == pytest.approx(1.0)


# Settings


def test_one_action_cannot_be_scaled_within_its_state():
    with pytest.raises(ValueError, match="advantage_scaling must be 'minibatch' or 'none' with"):
        LearnerConfig(actor_actions="replay", advantage_scaling="median")


def test_a_state_value_cannot_judge_samples():
    with pytest.raises(ValueError, match="actor_actions must be 'replay' with critic_type 'v'"):
        LearnerConfig(critic_type="v")
    with pytest.raises(ValueError, match="critic_type must be one of 'q', 'v', got 'u'"):
        LearnerConfig(critic_type="u")


def test_the_networks_must_have_the_critic_that_is_asked_for():
    with pytest.raises(ValueError, match="'v' a ValueCritic, got GatedCritic"):
        Learner(QWRNetworks(CONTINUOUS), LearnerConfig(**AWR_SETTINGS))
    with pytest.raises(ValueError, match="'q' a QCritic, got ValueCritic"):
        Learner(QWRNetworks(CONTINUOUS, critic_type="v"), LearnerConfig())


def test_a_config_says_only_what_differs():
    def differing(config):
        own, qwr = config.to_dict(), QWRConfig().to_dict()
        assert own.keys() == qwr.keys()
        return {key: own[key] for key in own if own[key] != qwr[key]}

    assert differing(AWRConfig()) == AWR_SETTINGS | {
        "margin": 60,
        "gamma": 0.99,
        "n_interactions": 2048,
        "n_critic_steps": 200,
        "n_actor_steps": 1000,
        "replay_capacity": 50_000,
    }
    assert differing(AWACConfig()) == AWAC_SETTINGS


def test_tune_knows_them():
    assert get_trainable_cls("AWR") is AWR
    assert get_trainable_cls("AWAC") is AWAC


# On Ray


@pytest.mark.ray
@pytest.mark.parametrize("kind", [AWRConfig, AWACConfig])
@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1"])
def test_an_iteration_on_rllib(local_ray, kind, env, tmp_path):
    config = (
        kind()
        .environment(env)
        .env_runners(num_env_runners=0)
        .debugging(seed=1)
        .training(
            n_interactions=100,
            n_critic_steps=6,
            n_actor_steps=4,
            train_batch_size=16,
            replay_capacity=1000,
        )
    )
    algo = config.build_algo()
    try:
        result = algo.train()
        assert result["num_env_steps_sampled_lifetime"] == 100
        assert result["learner"]["num_critic_updates_lifetime"] == 6
        assert result["learner"]["num_actor_updates_lifetime"] == 4
        critic = ValueCritic if kind is AWRConfig else GatedCritic
        assert type(algo.learner.critic) is critic
        assert isinstance(algo.learner.target_critic, nn.Module)
        path = algo.save(str(tmp_path / "saved")).checkpoint.path
    finally:
        algo.stop()
    restored = type(algo).from_checkpoint(path)
    try:
        assert restored.train()["learner"]["num_critic_updates_lifetime"] == 12
    finally:
        restored.stop()
