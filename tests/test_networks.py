import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from qwr_rllib.learning import losses
from qwr_rllib.learning.config import AgentConfig, defaults_of
from qwr_rllib.learning.networks import (
    CategoricalActor,
    GatedCritic,
    GaussianActor,
    ImageEncoder,
    ObservationNormalizer,
    QWRNetworks,
    networks_of,
    shifted,
    to_blocks,
)
from qwr_rllib.specs import Spec

CONTINUOUS = Spec(obs_shape=(3,), obs_dtype="float32", action_dim=2, discrete=False)
DISCRETE = Spec(obs_shape=(3,), obs_dtype="float32", action_dim=4, discrete=True)


def gaussian_actor(action_std=0.4):
    return GaussianActor(nn.Identity(), 3, 2, action_std)


def categorical_actor():
    return CategoricalActor(nn.Identity(), 3, 4)


def actions_for(spec, *shape):
    if spec.discrete:
        return torch.randint(spec.action_dim, shape)
    return torch.randn(*shape, spec.action_dim)


def spoil_init(module):
    """Sets weights of order 1, so that small weights do not hide a part of a formula."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0.3, 0.5)
    return module


# Normaliser


def test_normalizer_is_the_identity_before_the_first_update():
    obs = torch.tensor([[-3.0, 0.0, 9.5]])
    torch.testing.assert_close(ObservationNormalizer((3,))(obs), obs)


def test_normalizer_golden():
    normalizer = ObservationNormalizer((2,))
    normalizer.update(torch.tensor([[1.0, 10.0], [3.0, 10.0]]))
    normalizer.update(torch.tensor([[8.0, 10.0]]))
    # 1 3 8: mean 4, squared deviations 9 1 16
    torch.testing.assert_close(normalizer.mean, torch.tensor([4.0, 10.0]))
    torch.testing.assert_close(normalizer.var, torch.tensor([26 / 3, 0.0]))
    assert normalizer.count == 3
    obs = torch.tensor([[4.0 + math.sqrt(26 / 3), 10.0]])
    torch.testing.assert_close(normalizer(obs), torch.tensor([[1.0, 0.0]]))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(0, 2**31))
def test_normalizer_equals_numpy_over_uneven_batches(sizes, seed):
    batches = [
        np.random.default_rng([seed, i]).normal(50 * i, 1 + i, (size, 3)).astype(np.float32)
        for i, size in enumerate(sizes)
    ]
    normalizer = ObservationNormalizer((3,))
    for batch in batches:
        normalizer.update(torch.from_numpy(batch))
    together = np.concatenate(batches).astype(np.float64)
    assert normalizer.count == len(together)
    if len(together):
        np.testing.assert_allclose(normalizer.mean, together.mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(normalizer.var, together.var(0), rtol=1e-3, atol=1e-3)


def test_normalizer_stays_exact_over_many_small_updates():
    obs = np.random.default_rng(0).normal(1000.0, 2.0, (3000, 1)).astype(np.float32)
    normalizer = ObservationNormalizer((1,))
    for batch in torch.from_numpy(obs).split(7):
        normalizer.update(batch)
    np.testing.assert_allclose(normalizer.mean, obs.astype(np.float64).mean(0), rtol=1e-6)
    np.testing.assert_allclose(normalizer.var, obs.astype(np.float64).var(0), rtol=1e-3)


def test_normalizer_clips_at_10():
    normalizer = ObservationNormalizer((1,))
    normalizer.update(torch.tensor([[-1.0], [1.0]]))
    scaled = normalizer(torch.tensor([[-1e6], [9.9], [1e6]]))
    torch.testing.assert_close(scaled, torch.tensor([[-10.0], [9.9], [10.0]]))


def test_normalizer_statistics_are_state_but_not_trained():
    normalizer = ObservationNormalizer((3,))
    assert set(normalizer.state_dict()) == {"mean", "var", "count"}
    assert not list(normalizer.parameters())


# Actors


def test_gaussian_log_prob_golden():
    actor = gaussian_actor(action_std=0.5)
    # Two dimensions, one at the mean and one two std away: -2 - 2 log(0.5 sqrt(2 pi)).
    actual = actor.log_prob(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 2.0]))
    assert actual.item() == pytest.approx(-2 - 2 * math.log(0.5 * math.sqrt(2 * math.pi)))


def test_gaussian_log_prob_is_that_of_torch():
    params, actions = torch.randn(5, 7, 2), torch.randn(5, 7, 2)
    expected = torch.distributions.Normal(params, 0.4).log_prob(actions).sum(-1)
    torch.testing.assert_close(gaussian_actor().log_prob(params, actions), expected)


def test_categorical_log_prob_is_that_of_torch():
    params, actions = torch.randn(5, 7, 4), torch.randint(4, (5, 7))
    expected = torch.distributions.Categorical(logits=params).log_prob(actions)
    torch.testing.assert_close(categorical_actor().log_prob(params, actions), expected)


def test_gaussian_proposals_have_the_moments_of_mu():
    params = torch.tensor([[0.5, -1.0], [3.0, 0.0]])
    actions, probs = gaussian_actor().proposals(params, 100_000)
    assert probs is None
    assert actions.shape == (2, 100_000, 2)
    torch.testing.assert_close(actions.mean(1), params, rtol=0, atol=6e-3)
    torch.testing.assert_close(actions.std(1), torch.full((2, 2), 0.4), rtol=0, atol=6e-3)
    noise = (actions - params.unsqueeze(1)).permute(0, 2, 1).flatten(0, 1)
    correlations = torch.corrcoef(noise) - torch.eye(4)
    assert correlations.abs().max() < 0.02


def test_only_proposals_have_the_std_of_mu():
    actor = gaussian_actor()
    params = torch.zeros(10_000, 2)
    actions, _ = actor.proposals(params, 1, std=0.1)
    assert actions.std().item() == pytest.approx(0.1, rel=0.05)
    assert actor.sample(params).std().item() == pytest.approx(0.4, rel=0.05)


def test_categorical_proposals_follow_mu():
    params = torch.tensor([[0.0, math.log(2), math.log(5), -math.inf]])
    actions, probs = categorical_actor().proposals(params.expand(50_000, 4), 3)
    assert probs is None
    assert actions.shape == (50_000, 3)
    shares = torch.bincount(actions.flatten(), minlength=4) / actions.numel()
    torch.testing.assert_close(shares, torch.tensor([1, 2, 5, 0]) / 8, rtol=0, atol=6e-3)


@pytest.mark.parametrize("n", [4, 8])
def test_categorical_proposals_enumerate_where_n_covers_the_actions(n):
    params = torch.randn(6, 4)
    actions, probs = categorical_actor().proposals(params, n)
    assert actions.tolist() == [[0, 1, 2, 3]] * 6
    torch.testing.assert_close(probs, params.softmax(-1))


@pytest.mark.parametrize("actor", [gaussian_actor(), categorical_actor()])
def test_proposals_follow_the_generator(actor):
    params = torch.randn(5, actor.head.out_features)
    drawn = [actor.proposals(params, 3, torch.Generator().manual_seed(s))[0] for s in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_sample_is_one_action_of_the_action_space():
    assert gaussian_actor().sample(torch.zeros(5, 2)).shape == (5, 2)
    actions = categorical_actor().sample(torch.zeros(5, 4))
    assert actions.shape == (5,)
    assert actions.dtype == torch.int64


def test_mode_is_the_likeliest_action():
    params = torch.tensor([[0.1, 3.0, -1.0, 2.0]])
    assert torch.equal(gaussian_actor().mode(params), params)
    assert categorical_actor().mode(params).tolist() == [1]


def test_actors_start_near_zero():
    obs = torch.randn(100, 3)
    for spec in (CONTINUOUS, DISCRETE):
        params = QWRNetworks(spec, hiddens=(16, 16)).dist_inputs(obs)
        assert 0 < params.abs().max() < 0.2


# Critic


def naive_critic(critic, obs, action, post_gate_layer):
    """Returns ``Q(s, a) / q_scale`` of one state and action by the formula of appendix 6.1."""
    state = critic.state_dict()
    hidden = obs
    for layer in (0, 2):
        weight, bias = state[f"body.0.{layer}.weight"], state[f"body.0.{layer}.bias"]
        hidden = torch.clamp(weight @ hidden + bias, min=0)
    o = state["body.1.weight"] @ hidden + state["body.1.bias"]
    if "embed.bias" in state:
        embedded = state["embed.weight"] @ action + state["embed.bias"]
    else:
        embedded = state["embed.weight"][action]
    gated = o * torch.tanh(embedded)
    scaled = (gated - gated.mean()) / (gated.var(correction=0) + 1e-5).sqrt()
    hidden = torch.clamp(scaled * state["norm.weight"] + state["norm.bias"], min=0)
    if post_gate_layer:
        hidden = torch.clamp(state["post.0.weight"] @ hidden + state["post.0.bias"], min=0)
    return (state["head.weight"] @ hidden + state["head.bias"]).squeeze()


@pytest.mark.parametrize("post_gate_layer", [False, True])
@pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE])
def test_critic_is_the_formula(spec, post_gate_layer):
    networks = QWRNetworks(spec, hiddens=(8, 6), critic_post_gate_layer=post_gate_layer)
    critic = spoil_init(networks.critic)
    obs, actions = torch.randn(5, 3), actions_for(spec, 5)
    expected = [
        naive_critic(critic, o, a, post_gate_layer) for o, a in zip(obs, actions, strict=True)
    ]
    torch.testing.assert_close(critic(obs, actions), torch.stack(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("post_gate_layer", [False, True])
@pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE])
@pytest.mark.parametrize("states", [1, 127, 128, 129, 400])
def test_q_values_are_the_scaled_forward_pass(spec, states, post_gate_layer):
    networks = QWRNetworks(
        spec, hiddens=(8, 6), q_scale=20.0, critic_post_gate_layer=post_gate_layer
    )
    critic = spoil_init(networks.critic)
    obs, actions = torch.randn(states, 3), actions_for(spec, states, 5)
    features = critic.features(obs)
    before = features.detach().clone()
    q_values = critic.q_values(features, actions)
    assert not q_values.requires_grad
    assert torch.equal(features, before)
    for j in range(5):
        torch.testing.assert_close(
            q_values[:, j], critic(obs, actions[:, j]) * 20, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE])
def test_features_and_gate_are_the_forward_pass(spec):
    critic = spoil_init(QWRNetworks(spec, hiddens=(8, 6)).critic)
    obs, actions = torch.randn(2, 5, 3), actions_for(spec, 2, 5)
    expected = critic(obs, actions)
    assert expected.shape == (2, 5)
    torch.testing.assert_close(critic.scaled_q(critic.features(obs), actions), expected)


@pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE])
def test_q_depends_on_state_and_action(spec):
    critic = spoil_init(QWRNetworks(spec, hiddens=(8, 6)).critic)
    obs = torch.randn(4, 3)
    actions = torch.tensor([0, 1, 2, 3]) if spec.discrete else torch.randn(4, 2)
    assert critic(obs, actions[:1].expand_as(actions)).unique().numel() == 4
    assert critic(obs[:1].expand_as(obs), actions).unique().numel() == 4


def test_critic_starts_near_zero():
    networks = QWRNetworks(CONTINUOUS, q_scale=100.0)
    q_values = networks.critic(torch.randn(100, 3), torch.randn(100, 2))
    assert 0 < q_values.abs().max() < 0.2


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"gamma": 0.99}, 100),
        ({"gamma": 0.0}, 1),
        ({"gamma": [[0, 0.9], [100, 0.99]]}, 10),
        ({"gamma": 0.99, "q_scale": 3.0}, 3),
    ],
    ids=str,
)
def test_q_scale_is_the_setting_or_the_first_horizon(settings, expected):
    networks = networks_of(CONTINUOUS, defaults_of("QWR") | settings)
    assert networks.critic.q_scale == pytest.approx(expected)


def naive_joint_critic(critic, obs, action):
    state = {name: value.double() for name, value in critic.state_dict().items()}

    def normed(name, values):
        scaled = (values - values.mean()) / (values.var(correction=0) + 1e-5).sqrt()
        return torch.clamp(scaled * state[f"{name}.weight"] + state[f"{name}.bias"], min=0)

    of_obs = state["body.1.weight"] @ obs.double() + state["body.1.bias"]
    if "embed.bias" in state:
        of_action = state["embed.weight"] @ action.double() + state["embed.bias"]
    else:
        of_action = state["embed.weight"][action]
    hidden = normed("norm", of_obs + of_action)
    hidden = normed("post.1", state["post.0.weight"] @ hidden + state["post.0.bias"])
    return (state["head.weight"] @ hidden + state["head.bias"]).squeeze().float()


@pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE])
def test_joint_critic_is_the_formula(spec):
    networks = QWRNetworks(spec, hiddens=(8, 6), q_scale=20.0, critic_network="joint")
    critic = spoil_init(networks.critic)
    obs, actions = torch.randn(130, 3), actions_for(spec, 130, 5)
    features = critic.features(obs)
    before = features.detach().clone()
    q_values = critic.q_values(features, actions)
    assert torch.equal(features, before)
    for j in range(5):
        expected = torch.stack(
            [naive_joint_critic(critic, o, a) for o, a in zip(obs, actions[:, j], strict=True)]
        )
        torch.testing.assert_close(critic(obs, actions[:, j]), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(q_values[:, j], expected * 20, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"critic_network": "wide"}, "critic_network must be one of 'gated', 'joint', got 'wide'"),
        (
            {"critic_network": "joint", "critic_type": "v", "actor_actions": "replay"},
            "critic_network must be 'gated' with critic_type 'v', which takes no action",
        ),
        (
            {"critic_network": "joint", "critic_post_gate_layer": True},
            "critic_post_gate_layer must be false with critic_network 'joint', which has no gate",
        ),
        (
            {"critic_precision": "bfloat16"},
            "critic_precision must be 'float32' with critic_network 'gated', got 'bfloat16'",
        ),
    ],
)
def test_impossible_critics_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AgentConfig(**settings)


def test_joint_critic_takes_images_of_the_convolutions():
    spec = Spec(obs_shape=(4, 84, 84), obs_dtype="uint8", action_dim=3, discrete=True)
    networks = QWRNetworks(spec, critic_network="joint")
    obs = torch.randint(0, 256, (2, 4, 84, 84), dtype=torch.uint8)
    values = networks.critic(networks.normalize(obs), torch.tensor([0, 2]))
    assert values.shape == (2,)
    assert networks.critic.num_features == 256


def test_post_gate_layer_is_one_more_layer():
    def layers(post_gate_layer):
        critic = GatedCritic(nn.Identity(), 3, CONTINUOUS, 0.9, post_gate_layer)
        return sum(isinstance(module, nn.Linear) for module in critic.modules())

    assert layers(True) == layers(False) + 1


# All together


@pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE])
def test_acting_state_is_all_that_acting_needs(spec):
    networks = QWRNetworks(spec, hiddens=(8, 8))
    networks.normalizer.update(5 + 3 * torch.randn(50, 3))
    state = networks.acting_state()
    assert not [name for name in state if "critic" in name]
    actor_only = QWRNetworks(spec, hiddens=(8, 8), with_critic=False)
    assert actor_only.critic is None
    actor_only.load_state_dict(state)
    obs = torch.randn(7, 3)
    assert torch.equal(actor_only.dist_inputs(obs), networks.dist_inputs(obs))


def test_dist_inputs_normalize_raw_observations():
    networks = QWRNetworks(CONTINUOUS, hiddens=(8, 8))
    networks.normalizer.update(torch.tensor([[0.0, 0.0, 0.0], [2.0, 4.0, 8.0]]))
    scaled = torch.tensor([[1.0, -1.0, 0.0]])
    raw = torch.tensor([[2.0, 0.0, 4.0]], dtype=torch.float64)
    torch.testing.assert_close(networks.dist_inputs(raw), networks.actor(scaled))


def test_without_normalization_observations_go_in_raw():
    networks = QWRNetworks(CONTINUOUS, hiddens=(8, 8), normalize_observations=False)
    obs = 100 * torch.randn(4, 3)
    assert torch.equal(networks.dist_inputs(obs), networks.actor(obs))
    assert not [name for name in networks.state_dict() if "normalizer" in name]


def test_actor_and_critic_share_no_weights():
    networks = QWRNetworks(CONTINUOUS, hiddens=(8, 8))
    actor = {parameter.data_ptr() for parameter in networks.actor.parameters()}
    critic = {parameter.data_ptr() for parameter in networks.critic.parameters()}
    assert not actor & critic


@pytest.mark.parametrize("activation", ["relu", "tanh", "elu", "silu"])
def test_activations(activation):
    networks = QWRNetworks(CONTINUOUS, hiddens=(8,), activation=activation)
    obs = torch.randn(4, 3)
    (layer,) = (each for each in networks.actor.body.modules() if isinstance(each, nn.Linear))
    hidden = getattr(functional, activation)(layer(networks.normalize(obs)))
    torch.testing.assert_close(networks.dist_inputs(obs), networks.actor.head(hidden))


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((), "float32"), ((2, 3), "float32"), ((2, 2, 2), "float32"), ((6,), "uint8")],
)
def test_observations_that_are_neither_vectors_nor_images_are_flattened(shape, dtype):
    spec = Spec(obs_shape=shape, obs_dtype=dtype, action_dim=4, discrete=True)
    networks = QWRNetworks(spec, hiddens=(8, 8))
    obs = torch.randint(0, 256, (5, 3, *shape)).to(getattr(torch, dtype))
    networks.normalizer.update(obs.flatten(0, 1))
    raw = obs.float().reshape(5, 3, -1)
    scaled = (raw - raw.mean((0, 1))) / raw.std((0, 1), correction=0)
    torch.testing.assert_close(networks.normalize(obs), scaled, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(networks.dist_inputs(obs), networks.actor(networks.normalize(obs)))
    assert networks.dist_inputs(obs).shape == (5, 3, 4)
    assert networks.dist_inputs(obs[:0]).shape == (0, 3, 4)


# Images

IMAGES = Spec(obs_shape=(2, 24, 20), obs_dtype="uint8", action_dim=4, discrete=True)


def test_the_convolutions_of_2013_on_an_atari_observation():
    spec = Spec(obs_shape=(4, 84, 84), obs_dtype="uint8", action_dim=6, discrete=True)
    body = QWRNetworks(spec).actor.body
    shapes = [tuple(parameter.shape) for parameter in body.parameters() if parameter.dim() > 1]
    # 84 -> (84 - 8) / 4 + 1 = 20 -> (20 - 4) / 2 + 1 = 9
    assert shapes == [(16, 4, 8, 8), (32, 16, 4, 4), (256, 32 * 9 * 9)]


def test_the_convolutions_of_2015_on_an_atari_observation():
    spec = Spec(obs_shape=(4, 84, 84), obs_dtype="uint8", action_dim=6, discrete=True)
    body = QWRNetworks(spec, image_network="mnih2015").actor.body
    shapes = [tuple(parameter.shape) for parameter in body.parameters() if parameter.dim() > 1]
    # 9 -> 9 - 3 + 1 = 7
    assert shapes == [(32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3), (512, 64 * 7 * 7)]


def test_bfloat16_rounds_features_and_keeps_weights_and_gradients_float32():
    encoder = ImageEncoder((1, 12, 12), [(4, 4, 2)], [6])
    images = to_blocks(torch.randint(0, 256, (9, 1, 12, 12)).float(), encoder.blocks)
    exact = encoder(images)
    encoder.precision = torch.bfloat16
    rounded = encoder(images)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.02)
    rounded.sum().backward()
    assert {each.grad.dtype for each in encoder.parameters()} == {torch.float32}


def test_encoder_equals_a_naive_convolution():
    encoder = spoil_init(ImageEncoder((1, 3, 4), [(2, 2, 1)], [5]))
    (conv, _, _, dense) = encoder
    image = torch.randn(1, 3, 4)
    naive = torch.zeros(2, 2, 3)
    for f in range(2):
        for y in range(2):
            for x in range(3):
                patch = image[0, y : y + 2, x : x + 2]
                naive[f, y, x] = (conv.weight[f, 0] * patch).sum() + conv.bias[f]
    expected = (dense[0].weight @ naive.relu().flatten() + dense[0].bias).relu()
    bytes_ = to_blocks(255 * image[None], encoder.blocks)
    torch.testing.assert_close(encoder(bytes_)[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("height", "blocks"),
    [(84, 4), (86, 1)],  # 86 is no multiple of 4
)
def test_encoder_in_blocks_equals_the_layers_one_by_one(height, blocks):
    encoder = ImageEncoder((3, height, 84), [(4, 8, 4), (5, 3, 2)], [6])
    assert encoder.blocks == blocks
    images = torch.randint(0, 256, (7, 3, height, 84)).float()
    expected = torch.nn.Sequential.forward(encoder, images / 255)
    outputs = encoder(to_blocks(images, blocks))
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-5)
    parameters = list(encoder.parameters())
    gradients = torch.autograd.grad(outputs.square().sum(), parameters)
    for ours, theirs in zip(
        gradients, torch.autograd.grad(expected.square().sum(), parameters), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_blocks_have_each_pixel_once_in_their_channels():
    image = torch.arange(2 * 4 * 6).view(1, 2, 4, 6)
    blocks = to_blocks(image, 2)
    assert blocks.shape == (1, 8, 2, 3)
    assert blocks.is_contiguous(memory_format=torch.channels_last)
    for channel in range(2):
        for y in range(4):
            for x in range(6):
                place = 4 * channel + 2 * (y % 2) + x % 2
                assert blocks[0, place, y // 2, x // 2] == image[0, channel, y, x]


def test_shifted_images_are_crops_of_padded_ones():
    images = torch.randint(0, 256, (3, 2, 6, 8), dtype=torch.uint8)
    shifts = torch.tensor([[0, 0], [4, -4], [-1, 3]])
    padded = np.pad(images.numpy(), [(0, 0), (0, 0), (4, 4), (4, 4)], mode="edge")
    for image, crop, (down, right) in zip(shifted(images, shifts), padded, shifts, strict=True):
        expected = crop[:, 4 + down : 10 + down, 4 + right : 12 + right]
        assert np.array_equal(image.numpy(), expected)


def test_the_channels_of_images_are_found_and_their_bytes_kept():
    first = torch.randint(0, 256, (5, 2, 24, 20), dtype=torch.uint8)
    expected = to_blocks(first, 4)
    torch.testing.assert_close(QWRNetworks(IMAGES).normalize(first), expected)
    last = Spec(obs_shape=(24, 20, 2), obs_dtype="uint8", action_dim=4, discrete=True)
    torch.testing.assert_close(QWRNetworks(last).normalize(first.permute(0, 2, 3, 1)), expected)


def test_image_networks_keep_leading_dimensions_and_have_no_normaliser():
    networks = QWRNetworks(IMAGES)
    obs = torch.randint(0, 256, (3, 5, 2, 24, 20), dtype=torch.uint8)
    params = networks.dist_inputs(obs)
    assert params.shape == (3, 5, 4)
    torch.testing.assert_close(params[1, 2], networks.dist_inputs(obs[1, 2]))
    assert not any("normalizer" in name for name in networks.state_dict())


def test_one_pass_of_the_body_gives_q_of_all_actions():
    critic = spoil_init(QWRNetworks(IMAGES).critic)
    obs, actions = to_blocks(255 * torch.rand(3, 2, 24, 20), 4), torch.arange(4).expand(3, 4)
    q_values = critic.q_values(critic.features(obs), actions)
    for j in range(4):
        expected = critic(obs, actions[:, j]) * critic.q_scale
        torch.testing.assert_close(q_values[:, j], expected.detach(), rtol=1e-4, atol=1e-4)


def test_an_image_too_small_for_the_convolutions_is_named():
    spec = Spec(obs_shape=(3, 24, 19), obs_dtype="uint8", action_dim=4, discrete=True)
    with pytest.raises(ValueError, match=r"large enough for model.conv_filters.*\(3, 24, 19\)"):
        QWRNetworks(spec)
    QWRNetworks(spec, conv_filters=[[8, [4, 3], 2]])


def test_enumerated_and_sampled_actions_agree_in_expectation():
    """Backup and weights are the same with all actions under mu and with many samples."""
    torch.manual_seed(1)
    actor, critic = QWRNetworks(IMAGES).actor, spoil_init(QWRNetworks(IMAGES, q_scale=1.0).critic)
    features = critic.features(to_blocks(255 * torch.rand(1, 2, 24, 20), 4))
    features = features / features.std()
    mu = torch.tensor([[1.0, 0.0, -1.0, 0.5]])
    exact = {}
    for n in (4, 3):
        wide = mu.expand(40_000, 4) if n == 3 else mu
        actions, probs = actor.proposals(wide, n)
        assert (probs is None) == (n == 3)
        q_values = critic.q_values(features.expand(len(wide), -1), actions)
        if probs is None:
            # 3 samples of each of 40,000 equal states are 120,000 of one state.
            q_values, actions = q_values.view(1, -1), actions.reshape(1, -1)
        for operator in ("mean", "max", "logsumexp"):
            value = losses.backup(q_values, operator, 0.7, probs)
            torch.testing.assert_close(value, exact.setdefault(operator, value), rtol=0.02, atol=0)
        weights = losses.advantage_weights(q_values, probs=probs)
        targets = losses.categorical_regression(actions, weights, 4, probs)
        torch.testing.assert_close(targets, exact.setdefault("targets", targets), rtol=0, atol=0.02)


@pytest.mark.parametrize("q_scale", [2.0, 100.0, 1000.0])
@pytest.mark.parametrize("critic_type", ["q", "v"])
def test_what_the_critic_predicts_starts_near_0(critic_type, q_scale):
    networks = QWRNetworks(CONTINUOUS, q_scale=q_scale, critic_type=critic_type)
    obs, actions = torch.randn(500, 3), torch.randn(500, 2)
    assert 0 < networks.critic(obs, actions).abs().max() < 0.5
