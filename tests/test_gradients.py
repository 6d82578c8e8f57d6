"""The written-out gradients against autograd's."""

import math
import sys

import pytest
import torch
from torch import nn

from qwr_rllib.learning import losses
from qwr_rllib.learning.accel import kernels
from qwr_rllib.learning.accel.gradients import (
    AutogradGradient,
    CriticGradient,
    DenseGradient,
    KernelCriticGradient,
    features_of,
    gate_kernel,
    gradient_of,
)
from qwr_rllib.learning.networks import QWRNetworks
from qwr_rllib.specs import Spec

BATCH = 16
CRITIC_LOSS = losses.critic_loss, losses.critic_loss_gradient


def both(module, loss, loss_gradient, inputs, targets, kind, compiler=None):
    """Compares gradient and outputs with autograd's."""
    size = sum(parameter.numel() for parameter in module.parameters())
    by_hand, by_autograd = torch.full((size,), 7.0), torch.full((size,), -7.0)
    gradient = gradient_of(module, loss, loss_gradient, by_hand, compiler)
    assert type(gradient) is kind
    # First another minibatch: its buffers must not affect the next one.
    gradient([torch.zeros_like(each) for each in inputs], targets)
    found = gradient(inputs, targets)
    expected = AutogradGradient(module, loss, by_autograd)(inputs, targets)
    # Compiled sums have another order, so that rounding differs, also among processors.
    tolerance = {"rtol": 5e-6, "atol": 1e-5} if kind is KernelCriticGradient else {}
    torch.testing.assert_close(by_hand, by_autograd, **tolerance)
    torch.testing.assert_close(found, expected, **tolerance)
    assert not found.requires_grad
    return by_hand


def loss_of(actor):
    return actor.regression_loss, actor.regression_gradient


def networks(discrete, action_dim=3, **kwargs):
    torch.manual_seed(0)
    spec = Spec((5,), "float32", action_dim, discrete)
    return QWRNetworks(spec, hiddens=(32, 24), q_scale=100.0, **kwargs)


def lively(module):
    """Moves the module's parameters away from initial values of about 0 or 1."""
    for name, parameter in module.named_parameters():
        if parameter.dim() == 1 or name.startswith("head"):
            nn.init.normal_(parameter)
    return module


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("post", [False, True])
def test_critic(discrete, post):
    critic = lively(networks(discrete, critic_post_gate_layer=post).critic)
    actions = torch.randint(3, (BATCH,)) if discrete else torch.randn(BATCH, 3)
    gradient = both(
        critic,
        *CRITIC_LOSS,
        [torch.randn(BATCH, 5), actions],
        [torch.randn(BATCH)],
        CriticGradient,
    )
    assert (gradient != 0).float().mean() > 0.5


def lively_critic(action_dim):
    """Returns a critic in which all parameters of the gate have an effect."""
    critic = networks(False, action_dim).critic
    for parameter in [*critic.norm.parameters(), critic.embed.bias, *critic.head.parameters()]:
        nn.init.normal_(parameter)
    return critic


@pytest.mark.parametrize("action_dim", [1, 3, 5])  # the kernel handles three dimensions at once
def test_the_gradient_of_the_compiled_gate(action_dim):
    gradient = both(
        lively_critic(action_dim),
        *CRITIC_LOSS,
        [torch.randn(BATCH, 5), 2 * torch.randn(BATCH, action_dim)],
        [torch.randn(BATCH)],
        KernelCriticGradient,
        compiler="numba",
    )
    assert (gradient != 0).float().mean() > 0.5


@pytest.mark.parametrize("action_dim", [1, 3, 5])
def test_the_values_of_the_compiled_gate(action_dim):
    critic = lively_critic(action_dim)
    features, actions = torch.randn(7, 24), 5 * torch.randn(7, 4, action_dim)
    found = gate_kernel(critic).q_values(features, actions)
    # The head sums numbers near 1, times q_scale: its rounding errors scale likewise.
    expected = critic.q_values(features, actions)
    torch.testing.assert_close(found, expected, rtol=5e-6, atol=1e-6 * critic.q_scale)


def test_features():
    critic, obs = lively(networks(False).critic), torch.randn(7, 5)
    features = features_of(critic)
    torch.testing.assert_close(features(obs), critic.features(obs))
    critic.load_state_dict(networks(False).critic.state_dict())
    torch.testing.assert_close(features(obs), critic.features(obs))
    assert features(obs.fill_(float("nan"))).isnan().all()
    tanh = networks(False, activation="tanh").critic
    assert features_of(tanh) == tanh.features


def test_the_compiled_gate_knows_no_stale_parameters():
    critic = lively_critic(3)
    gate = gate_kernel(critic)
    critic.load_state_dict(networks(False).critic.state_dict())
    features, actions = torch.randn(7, 24), torch.randn(7, 4, 3)
    torch.testing.assert_close(gate.q_values(features, actions), critic.q_values(features, actions))


def joint_critic(action_dim=3, precision="float32", hiddens=(32, 24, 16)):
    """Returns a joint critic in which all parameters have an effect."""
    torch.manual_seed(0)
    spec = Spec((5,), "float32", action_dim, False)
    critic = QWRNetworks(spec, hiddens, q_scale=7.0, critic_network="joint").critic
    for name, parameter in critic.named_parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, mean=float("norm" in name))
    nn.init.normal_(critic.head.weight)
    critic.post.precision = getattr(torch, precision)
    return critic


@pytest.mark.parametrize("hiddens", [(16,), (32, 24, 16)])
@pytest.mark.parametrize("action_dim", [1, 5])
def test_the_gradient_of_the_compiled_joint_critic(hiddens, action_dim):
    gradient = both(
        joint_critic(action_dim, hiddens=hiddens),
        *CRITIC_LOSS,
        [torch.randn(BATCH, 5), torch.randn(BATCH, action_dim)],
        [torch.randn(BATCH)],
        KernelCriticGradient,
        compiler="numba",
    )
    assert (gradient != 0).float().mean() > 0.5


@pytest.mark.parametrize("states", [7, 2000])  # more rows than a tile
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_values_of_the_compiled_joint_critic(precision, states):
    critic = joint_critic(precision=precision)
    features, actions = torch.randn(states, 32), torch.randn(states, 4, 3)
    kernel = gate_kernel(critic)
    # Both round to bfloat16 in the same places, but add in another order. A unit near 0 may then
    # pass the gradient in one of the two only.
    limits = {"q_values": 5e-6, "action_gradient": 5e-6 if precision == "float32" else 0.05}
    for name, limit in limits.items():
        found, expected = (getattr(each, name)(features, actions) for each in (kernel, critic))
        assert (found - expected).norm() / (expected - expected.mean()).norm() < limit


def test_the_compiled_joint_critic_in_bfloat16_is_near_float32():
    obs, actions, target = torch.randn(256, 5), torch.randn(256, 3), torch.randn(256)
    gradients = []
    for precision in ("float32", "bfloat16"):
        critic = joint_critic(precision=precision)
        into = torch.zeros(sum(parameter.numel() for parameter in critic.parameters()))
        gradient_of(critic, *CRITIC_LOSS, into, "numba")((obs, actions), (target,))
        gradients.append(into)
    exact, rounded = gradients
    error = (rounded - exact).norm() / exact.norm()
    assert 1e-4 < error < 0.02  # numbers have 8 bits


@pytest.mark.parametrize("clip", [0.5, float("inf")])
def test_the_compiled_adam(clip):
    torch.manual_seed(0)
    ours = torch.randn(100)
    theirs = ours.clone().requires_grad_()
    adam = torch.optim.Adam([theirs], lr=1e-2)
    # The function needs the state that the optimizer creates at its first step.
    optimizer = torch.optim.Adam([ours], lr=1e-2)
    ours.grad, theirs.grad = (torch.ones(100) for _ in range(2))
    optimizer.step()
    adam.step()
    for size in (0.01, 1.0, 100.0):
        gradient = size * torch.randn(100)
        theirs.grad = gradient.clone()
        nn.utils.clip_grad_norm_([theirs], clip)
        adam.step()
        (group,) = optimizer.param_groups
        kernels.clipped_adam(ours, gradient, optimizer.state[ours], group, clip)
        torch.testing.assert_close(ours, theirs.detach())
    assert optimizer.state[ours]["step"] == adam.state[theirs]["step"] == 4


def test_the_compiled_adam_keeps_no_denormal_numbers():
    """A unit that no input activates has no gradient; its moments shrink."""
    weights, gradient = torch.ones(3), torch.tensor([0.0, 1e-3, 1e-30])
    optimizer = torch.optim.Adam([weights], lr=1e-2)
    weights.grad = torch.full((3,), 1e-18)
    optimizer.step()
    state, (group,) = optimizer.state[weights], optimizer.param_groups
    for _ in range(300):  # 1e-19 * 0.9^300 = 2e-33
        kernels.clipped_adam(weights, gradient, state, group, math.inf)
    for moment in (state["exp_avg"], state["exp_avg_sq"]):
        assert (moment != 0).tolist() == [False, True, False]


def test_without_numba_nothing_is_compiled(monkeypatch):
    monkeypatch.setitem(sys.modules, "qwr_rllib.learning.accel.kernels", None)
    critic = networks(discrete=False).critic
    assert gate_kernel(critic) is None
    into = torch.zeros(sum(parameter.numel() for parameter in critic.parameters()))
    assert type(gradient_of(critic, *CRITIC_LOSS, into, "numba")) is CriticGradient


@pytest.mark.parametrize("compiler", [None, "numba"])
def test_gaussian_actor(compiler):
    actor = lively(networks(discrete=False).actor)
    regression = actor.regression(torch.randn(BATCH, 4, 3), torch.rand(BATCH, 4), None)
    both(
        actor,
        actor.regression_loss,
        actor.regression_gradient,
        [torch.randn(BATCH, 5)],
        regression,
        DenseGradient,
        compiler,
    )


@pytest.mark.parametrize("compiler", [None, "numba"])
def test_categorical_actor(compiler):
    actor = lively(networks(discrete=True).actor)
    regression = actor.regression(torch.randint(3, (BATCH, 4)), torch.rand(BATCH, 4), None)
    both(
        actor,
        actor.regression_loss,
        actor.regression_gradient,
        [torch.randn(BATCH, 5)],
        regression,
        DenseGradient,
        compiler,
    )


def test_batches_of_changing_size():
    actor = networks(discrete=False).actor
    into = torch.zeros(sum(parameter.numel() for parameter in actor.parameters()))
    gradient = gradient_of(actor, *loss_of(actor), into, None)
    for size in (4, 9):
        regression = actor.regression(torch.randn(size, 4, 3), torch.rand(size, 4), None)
        outputs = gradient([torch.randn(size, 5)], regression)
        assert outputs.shape == (size, 3)


def test_other_layers_go_through_autograd():
    module = networks(discrete=False, activation="tanh")
    into = torch.zeros(sum(parameter.numel() for parameter in module.critic.parameters()))
    gradient = gradient_of(module.critic, *CRITIC_LOSS, into, None)
    assert type(gradient) is AutogradGradient
    gradient([torch.randn(BATCH, 5), torch.randn(BATCH, 3)], [torch.randn(BATCH)])
    assert (into != 0).any()
