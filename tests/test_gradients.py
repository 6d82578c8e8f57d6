"""The written-out gradients against autograd's."""

import pytest
import torch
from torch import nn

from qwr_rllib import losses
from qwr_rllib.gradients import (
    AutogradGradient,
    CriticGradient,
    DenseGradient,
    gradient_of,
)
from qwr_rllib.networks import QWRNetworks
from qwr_rllib.specs import Spec

BATCH = 16


def both(module, loss, inputs, targets, kind):
    """Gradient, loss and outputs by hand and by autograd."""
    size = sum(parameter.numel() for parameter in module.parameters())
    by_hand, by_autograd = torch.full((size,), 7.0), torch.full((size,), -7.0)
    gradient = gradient_of(module, loss, by_hand, compiled=False)
    assert type(gradient) is kind
    # Twice: buffers of an earlier minibatch must not show.
    gradient([torch.zeros_like(each) for each in inputs], targets)
    found = gradient(inputs, targets)
    expected = AutogradGradient(module, loss, by_autograd)(inputs, targets)
    torch.testing.assert_close(by_hand, by_autograd)
    torch.testing.assert_close(found, expected)
    assert not any(each.requires_grad for each in found)
    return by_hand


def networks(discrete, **kwargs):
    torch.manual_seed(0)
    spec = Spec((5,), "float32", 3, discrete)
    return QWRNetworks(spec, hiddens=(32, 24), **kwargs)


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("post", [False, True])
def test_critic(discrete, post):
    critic = networks(discrete, critic_post_gate_layer=post).critic
    # Heads start near 0, where a wrong gradient of the layers below would be near 0 too.
    nn.init.normal_(critic.head.weight)
    actions = torch.randint(3, (BATCH,)) if discrete else torch.randn(BATCH, 3)
    gradient = both(
        critic,
        losses.critic_loss,
        [torch.randn(BATCH, 5), actions],
        [torch.randn(BATCH)],
        CriticGradient,
    )
    assert (gradient != 0).float().mean() > 0.5


def test_gaussian_actor():
    actor = networks(discrete=False).actor
    nn.init.normal_(actor.head.weight)
    regression = actor.regression(torch.randn(BATCH, 4, 3), torch.rand(BATCH, 4), None)
    both(actor, actor.regression_loss, [torch.randn(BATCH, 5)], regression, DenseGradient)


def test_categorical_actor():
    actor = networks(discrete=True).actor
    nn.init.normal_(actor.head.weight)
    regression = actor.regression(torch.randint(3, (BATCH, 4)), torch.rand(BATCH, 4), None)
    both(actor, actor.regression_loss, [torch.randn(BATCH, 5)], regression, DenseGradient)


def test_batches_of_changing_size():
    actor = networks(discrete=False).actor
    into = torch.zeros(sum(parameter.numel() for parameter in actor.parameters()))
    gradient = gradient_of(actor, actor.regression_loss, into, compiled=False)
    for size in (4, 9):
        regression = actor.regression(torch.randn(size, 4, 3), torch.rand(size, 4), None)
        _, outputs = gradient([torch.randn(size, 5)], regression)
        assert outputs.shape == (size, 3)


def test_other_layers_go_through_autograd():
    module = networks(discrete=False, activation="tanh")
    into = torch.zeros(sum(parameter.numel() for parameter in module.critic.parameters()))
    gradient = gradient_of(module.critic, losses.critic_loss, into, compiled=False)
    assert type(gradient) is AutogradGradient
    gradient([torch.randn(BATCH, 5), torch.randn(BATCH, 3)], [torch.randn(BATCH)])
    assert (into != 0).any()
