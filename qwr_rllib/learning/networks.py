"""Actor, critic and observation normaliser (paper, appendix 6.1).

Shapes: ``(...)`` are leading batch dimensions, ``n`` the actions of one state, ``d`` the action's
dimensions or the number of discrete actions, ``h`` the width of the critic's features.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qwr_rllib.learning import losses
from qwr_rllib.learning.config import CriticNetwork, CriticType, ImageNetwork, learner_config
from qwr_rllib.specs import Spec

HEAD_INIT = 1e-2
ConvFilter = tuple[int, int | Sequence[int], int]  # filters, kernel, stride
# Convolutions, and widths of the dense layers after them.
IMAGE_NETWORKS: dict[ImageNetwork, tuple[Sequence[ConvFilter], Sequence[int]]] = {
    "mnih2013": (((16, 8, 4), (32, 4, 2)), (256,)),
    "mnih2015": (((32, 8, 4), (64, 4, 2), (64, 3, 1)), (512,)),
}
TILE = 128  # states; with 8 actions and 256 features each, 1 MiB
OBSERVATION_CLIP = 10.0
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    # In place: nothing else needs the linear layer's outputs that it overwrites.
    "relu": partial(nn.ReLU, inplace=True),
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "silu": nn.SiLU,
}


def mlp(in_features: int, hiddens: Sequence[int], activation: str = "relu") -> nn.Sequential:
    """Makes linear layers of the given widths, each followed by the activation."""
    layers: list[nn.Module] = []
    for width in hiddens:
        layers += [nn.Linear(in_features, width), ACTIVATIONS[activation]()]
        in_features = width
    return nn.Sequential(*layers)


class ImageEncoder(nn.Sequential):
    """Convolutions with ReLU over bytes of images, then dense layers.

    Takes images from :func:`to_blocks`, in blocks of side :attr:`blocks`. If the first kernel and
    the image are multiples of the first stride, that convolution becomes one of stride 1 over many
    channels, which vector and matrix units compute fast. Its weights keep their usual shape; they
    are divided by 255, as bytes are not scaled.

    Args:
        obs_shape: shape of one image; the smaller of its first and last axis is the channels.
        conv_filters: for each layer, the number of filters, the kernel's size (an integer, or
            height and width) and the stride.
        hiddens: widths of the dense layers.
        activation: activation of the dense layers.

    Raises:
        ValueError: for an image that is too small for the convolutions, naming both.
    """

    def __init__(
        self,
        obs_shape: Sequence[int],
        conv_filters: Sequence[ConvFilter],
        hiddens: Sequence[int],
        activation: str = "relu",
    ) -> None:
        layers: list[nn.Module] = []
        channels, *size = channels_first(obs_shape)
        blocks = _blocks(size, conv_filters)
        for filters, kernel, stride in conv_filters:
            height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
            size = [(size[0] - height) // stride + 1, (size[1] - width) // stride + 1]
            if min(size) < 1:
                raise ValueError(
                    f"an image observation must be large enough for model.conv_filters "
                    f"{[list(each) for each in conv_filters]}, got {tuple(obs_shape)}; "
                    "gymnasium.wrappers.FlattenObservation makes it a vector"
                )
            layers += [nn.Conv2d(channels, filters, (height, width), stride), nn.ReLU(inplace=True)]
            channels = filters
        super().__init__(
            *layers, nn.Flatten(), mlp(channels * math.prod(size), hiddens, activation)
        )
        self.blocks = blocks
        self.precision = torch.float32
        """Type of the arithmetic; bytes are exact in it. Weights and features stay float32."""

    def forward(self, blocks: Tensor) -> Tensor:
        """Returns features ``(k, h)`` of bytes ``(k, channels * b * b, height / b, width / b)``."""

        def cast(tensor: Tensor | None) -> Tensor:
            assert tensor is not None
            return tensor.to(self.precision)

        first, *others = (layer for layer in self.modules() if not isinstance(layer, nn.Sequential))
        assert isinstance(first, nn.Conv2d)
        weight = to_blocks(first.weight / 255, self.blocks)
        stride = first.stride[0] // self.blocks
        hidden = F.conv2d(cast(blocks), cast(weight), cast(first.bias), stride)
        for layer in others:
            if isinstance(layer, nn.Conv2d):
                hidden = F.conv2d(hidden, cast(layer.weight), cast(layer.bias), layer.stride)
            elif isinstance(layer, nn.Linear):
                hidden = F.linear(hidden, cast(layer.weight), cast(layer.bias))
            elif isinstance(layer, nn.Flatten):
                if hidden.requires_grad:
                    # The gradient of Flatten has channels first, the outputs of the ReLU before it
                    # have channels last. A pass over two layouts takes ten times as long as one
                    # over a single layout.
                    hidden.register_hook(_channels_last)
                hidden = layer(hidden)
            else:
                hidden = layer(hidden)
        return hidden.float()


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def _blocks(size: Sequence[int], conv_filters: Sequence[ConvFilter]) -> int:
    """Returns the block's side for :func:`to_blocks`: the first stride, or 1 if it does not fit."""
    _, kernel, stride = conv_filters[0]
    sides = [*size, *([kernel] if isinstance(kernel, int) else kernel)]
    return 1 if any(side % stride for side in sides) else stride


def to_blocks(images: Tensor, b: int) -> Tensor:
    """Turns each ``b x b`` block of pixels into channels.

    Args:
        images: ``(k, channels, height, width)``; height and width are multiples of ``b``.
        b: the block's side.

    Returns:
        ``(k, channels * b * b, height / b, width / b)``, channels last in memory.
    """
    k, channels, height, width = images.shape
    parts = images.reshape(k, channels, height // b, b, width // b, b)
    last = parts.permute(0, 2, 4, 1, 3, 5).reshape(k, height // b, width // b, channels * b * b)
    return last.permute(0, 3, 1, 2)


def shifted(images: Tensor, shifts: Tensor) -> Tensor:
    """Shifts each image, repeating its edge (Kostrikov et al., 2021, "Image augmentation is all").

    Args:
        images: ``(k, channels, height, width)``.
        shifts: ``(k, 2)``, the pixels by which the content moves up and to the left.
    """
    k, channels, *size = images.shape
    rows, columns = (
        (torch.arange(length, device=images.device) + shift[:, None]).clamp(0, length - 1)
        for length, shift in zip(size, shifts.unbind(1), strict=True)
    )
    of_all = torch.arange(k, device=images.device)[:, None, None, None]
    of_channels = torch.arange(channels, device=images.device)[:, None, None]
    return images[of_all, of_channels, rows[:, None, :, None], columns[:, None, None, :]]


def channels_first(obs_shape: Sequence[int]) -> tuple[int, int, int]:
    """Returns an image's channels, height and width."""
    first, second, last = obs_shape
    return (last, first, second) if last < first else (first, second, last)


def _glorot(module: nn.Module) -> None:
    """Sets Glorot-uniform weights and zero biases, as in the authors' framework."""
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.xavier_uniform_(module.weight)
        assert module.bias is not None
        nn.init.zeros_(module.bias)


def _small_head(in_features: int, out_features: int) -> nn.Linear:
    head = nn.Linear(in_features, out_features)
    nn.init.uniform_(head.weight, -HEAD_INIT, HEAD_INIT)
    nn.init.zeros_(head.bias)
    return head


def _action_embedding(spec: Spec, width: int) -> nn.Module:
    layer = nn.Embedding if spec.discrete else nn.Linear
    return layer(spec.action_dim, width)


class ObservationNormalizer(nn.Module):
    """A layer that normalises observations by their running mean and variance, clipped to +-10.

    Until the first :meth:`update` it only clips.

    Args:
        shape: shape of one observation.
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("var", torch.ones(shape))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def forward(self, obs: Tensor) -> Tensor:
        scaled = (obs - self.mean) * torch.rsqrt(self.var + 1e-8)
        return scaled.clamp(-OBSERVATION_CLIP, OBSERVATION_CLIP)

    @torch.no_grad()
    def update(self, obs: Tensor) -> None:
        """Merges a batch ``(k, *shape)`` into the statistics (Chan et al., 1979)."""
        if not len(obs):
            return
        obs = obs.double()
        count = self.count + len(obs)
        share = len(obs) / count
        delta = obs.mean(0) - self.mean
        var = (1 - share) * self.var + share * obs.var(0, correction=0)
        self.var.copy_(var + delta.square() * share * (1 - share))
        self.mean.copy_(self.mean + delta * share)
        self.count.copy_(count)


class GaussianActor(nn.Module):
    """The policy ``N(m(s), action_std^2 I)``; its parameters are the mean ``m(s)``.

    Args:
        body: features of the normalised observation.
        in_features: width of the features.
        action_dim: d.
        action_std: the constant standard deviation, in the policy's action space.
    """

    def __init__(self, body: nn.Module, in_features: int, action_dim: int, action_std: float):
        super().__init__()
        self.body = body.apply(_glorot)
        self.head = _small_head(in_features, action_dim)
        self.action_std = action_std

    def forward(self, obs: Tensor) -> Tensor:
        return self.head(self.body(obs))

    def mode(self, params: Tensor) -> Tensor:
        return params

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Samples one action for each state, ``(..., d)`` to ``(..., d)``."""
        return self.proposals(params, 1, generator)[0].squeeze(-2)

    def proposals(
        self,
        params: Tensor,
        n: int,
        generator: torch.Generator | None = None,
        std: float | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Returns ``n`` samples of ``mu``, ``(..., n, d)``, and ``None``.

        ``std`` is the standard deviation of ``mu``, by default the policy's.
        """
        shape = (*params.shape[:-1], n, params.shape[-1])
        noise = torch.randn(shape, generator=generator, device=params.device)
        alpha = self.action_std if std is None else std
        return torch.add(params.unsqueeze(-2), noise, alpha=alpha), None

    def log_prob(self, params: Tensor, actions: Tensor) -> Tensor:
        """Returns ``log pi(a|s)``, both ``(..., d)`` to ``(...)``."""
        scaled = (actions - params) / self.action_std
        log_normalizer = math.log(self.action_std * math.sqrt(2 * math.pi))
        return (-0.5 * scaled.square() - log_normalizer).sum(-1)

    def regression(self, actions: Tensor, weights: Tensor, probs: Tensor | None) -> tuple:
        """Reduces the weighted actions to the arguments of :meth:`regression_loss`."""
        return losses.gaussian_regression(actions, weights, self.action_std)

    def regression_loss(self, params: Tensor, *regression: Tensor) -> Tensor:
        """Returns the actor loss of a minibatch, given its :meth:`regression`; a scalar."""
        return losses.gaussian_regression_loss(
            params, losses.GaussianRegression(*regression), self.action_std
        )

    def regression_gradient(self, params: Tensor, *regression: Tensor) -> Tensor:
        """Returns the gradient of :meth:`regression_loss` by ``params``."""
        return losses.gaussian_regression_loss_gradient(
            params, losses.GaussianRegression(*regression), self.action_std
        )


class CategoricalActor(nn.Module):
    """A categorical policy; its parameters are the logits.

    Args:
        body: features of the normalised observation.
        in_features: width of the features.
        num_actions: d.
    """

    def __init__(self, body: nn.Module, in_features: int, num_actions: int):
        super().__init__()
        self.body = body.apply(_glorot)
        self.head = _small_head(in_features, num_actions)
        self.num_actions = num_actions

    def forward(self, obs: Tensor) -> Tensor:
        return self.head(self.body(obs))

    def mode(self, params: Tensor) -> Tensor:
        return params.argmax(-1)

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Samples one action for each state, ``(..., d)`` to ``(...)``."""
        return self._sample(params, 1, generator).squeeze(-1)

    def _sample(self, params: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
        probs = params.softmax(-1).reshape(-1, self.num_actions)
        actions = torch.multinomial(probs, n, replacement=True, generator=generator)
        return actions.reshape(*params.shape[:-1], n)

    def proposals(
        self,
        params: Tensor,
        n: int,
        generator: torch.Generator | None = None,
        std: float | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Returns ``n`` samples of ``mu``, ``(..., n)``, and ``None``.

        If ``n`` is at least d, returns all actions and ``mu(a|s)``, both ``(..., d)``. ``std`` has
        no effect: logits say all of ``mu``.
        """
        if n < self.num_actions:
            return self._sample(params, n, generator), None
        actions = torch.arange(self.num_actions, device=params.device)
        return actions.expand(params.shape), params.softmax(-1)

    def log_prob(self, params: Tensor, actions: Tensor) -> Tensor:
        """Returns ``log pi(a|s)``, ``(..., d)`` and ``(...)`` to ``(...)``."""
        return params.log_softmax(-1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def regression(self, actions: Tensor, weights: Tensor, probs: Tensor | None) -> tuple:
        """Reduces the weighted actions to the arguments of :meth:`regression_loss`."""
        return (losses.categorical_regression(actions, weights, self.num_actions, probs),)

    def regression_loss(self, params: Tensor, *regression: Tensor) -> Tensor:
        """Returns the actor loss of a minibatch, given its :meth:`regression`; a scalar."""
        return losses.categorical_regression_loss(params, *regression)

    def regression_gradient(self, params: Tensor, *regression: Tensor) -> Tensor:
        """Returns the gradient of :meth:`regression_loss` by ``params``."""
        return losses.categorical_regression_loss_gradient(params, *regression)


class QCritic(nn.Module):
    """``Q(s, a)``: features of the state, combined with the embedded action, then further layers.

    The head predicts ``Q / q_scale``. :meth:`features` depends on the state alone, so that n
    actions need one pass of it. Subclasses make the layers and combine features and action.
    """

    body: nn.Module
    embed: nn.Module
    norm: nn.LayerNorm
    post: nn.Module
    head: nn.Linear
    num_features: int
    q_scale: float

    def features(self, obs: Tensor) -> Tensor:
        """Returns the features ``(..., h)`` of normalised observations."""
        return self.body(obs)

    def _combine(self, features: Tensor, embedded: Tensor) -> Tensor:
        raise NotImplementedError

    def _combine_(self, features: Tensor, embedded: Tensor) -> Tensor:
        """Writes :meth:`_combine` into ``embedded``."""
        raise NotImplementedError

    def scaled_q(self, features: Tensor, actions: Tensor) -> Tensor:
        """Returns ``Q(s, a) / q_scale`` ``(...)`` for features ``(..., h)`` and actions."""
        combined = self._combine(features, self.embed(actions))
        return self.head(self.post(F.relu(self.norm(combined)))).squeeze(-1)

    def forward(self, obs: Tensor, actions: Tensor) -> Tensor:
        """Returns ``Q(s, a) / q_scale``, ``(...)``, for one action of each state."""
        return self.scaled_q(self.features(obs), actions)

    @torch.no_grad()
    def q_values(self, features: Tensor, actions: Tensor) -> Tensor:
        """Returns ``Q(s, a)`` of n actions per state: ``(k, h)``, ``(k, n, [d])`` to ``(k, n)``.

        On a CPU, computes the states in tiles that stay in a core's cache.
        """
        tile = TILE if features.device.type == "cpu" else max(1, len(features))
        values = [
            # In place, as memory traffic takes a third of the time.
            self.head(
                self.post(self.norm(self._combine_(o.unsqueeze(-2), self.embed(some))).relu_())
            ).squeeze(-1)
            for o, some in zip(features.split(tile), actions.split(tile), strict=True)
        ]
        return torch.cat(values) * self.q_scale

    def action_gradient(self, features: Tensor, actions: Tensor) -> Tensor:
        """Returns the gradient of ``Q(s, a)`` by n actions per state, ``(k, n, d)``.

        The arguments are those of :meth:`q_values`, for continuous actions.
        """
        with torch.enable_grad():
            actions = actions.detach().requires_grad_()
            values = self.scaled_q(features.unsqueeze(1), actions) * self.q_scale
            (gradient,) = torch.autograd.grad(values.sum(), actions)
        return gradient


class GatedCritic(QCritic):
    """Features of the state gated by the action (paper, appendix 6.1).

    ``o * tanh(embed(a))``, LayerNorm, ReLU, an optional further layer, then the head. Without the
    LayerNorm the Q-values diverge.

    Args:
        body: features of the normalised observation.
        in_features: width of the features.
        spec: kind and dimension of the actions.
        q_scale: the head predicts Q divided by it.
        post_gate_layer: whether to add a ReLU layer after the gate.
    """

    def __init__(
        self,
        body: nn.Module,
        in_features: int,
        spec: Spec,
        q_scale: float,
        post_gate_layer: bool = False,
    ):
        super().__init__()
        self.body = nn.Sequential(body, nn.Linear(in_features, in_features))
        self.embed = _action_embedding(spec, in_features)
        self.norm = nn.LayerNorm(in_features)
        self.post = mlp(in_features, [in_features]) if post_gate_layer else nn.Identity()
        self.apply(_glorot)
        if isinstance(self.embed, nn.Linear):
            # With biases of 0, the gate would be 0 for an action of 0, which would hide the state
            # from the critic.
            nn.init.uniform_(self.embed.bias, -1, 1)
        self.num_features = in_features
        self.q_scale = q_scale
        self.head = _small_head(in_features, 1)

    def _combine(self, features: Tensor, embedded: Tensor) -> Tensor:
        return features * torch.tanh(embedded)

    def _combine_(self, features: Tensor, embedded: Tensor) -> Tensor:
        return embedded.tanh_().mul_(features)


class NormedLayers(nn.Sequential):
    """Linear layers, each followed by LayerNorm and ReLU.

    Args:
        widths: of the inputs and of each layer.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        layers: list[nn.Module] = []
        for before, width in itertools.pairwise(widths):
            layers += [nn.Linear(before, width), nn.LayerNorm(width), nn.ReLU(inplace=True)]
        super().__init__(*layers)
        self.precision = torch.float32
        """Type of the matrix products. Weights, LayerNorm and outputs are float32."""

    def forward(self, hidden: Tensor) -> Tensor:
        def cast(tensor: Tensor) -> Tensor:
            return tensor.to(self.precision)

        for layer in self:
            if isinstance(layer, nn.Linear):
                hidden = F.linear(cast(hidden), cast(layer.weight), cast(layer.bias)).float()
            else:
                hidden = layer(hidden)
        return hidden


class JointCritic(QCritic):
    """Linear layers of state and action together, each followed by LayerNorm and ReLU.

    LayerNorm bounds Q at actions that no row has (Ball et al., 2023, "Efficient online
    reinforcement learning with offline data", section 4.2). Targets that evaluate actions of the
    current policy need this bound.

    Args:
        body: features of the normalised observation; an identity for vectors.
        in_features: width of the features, or size of the vector.
        spec: kind and dimension of the actions.
        q_scale: the head predicts Q divided by it.
        hiddens: widths of the layers, at least one.
    """

    post: NormedLayers

    def __init__(
        self, body: nn.Module, in_features: int, spec: Spec, q_scale: float, hiddens: Sequence[int]
    ):
        super().__init__()
        first, last = hiddens[0], hiddens[-1]
        # The first layer in two parts, of which that of the state serves all of its actions.
        self.body = nn.Sequential(body, nn.Linear(in_features, first))
        self.embed = _action_embedding(spec, first)
        self.norm = nn.LayerNorm(first)
        self.post = NormedLayers(hiddens)
        self.apply(_glorot)
        self.num_features = first
        self.q_scale = q_scale
        self.head = _small_head(last, 1)

    def _combine(self, features: Tensor, embedded: Tensor) -> Tensor:
        return features + embedded

    def _combine_(self, features: Tensor, embedded: Tensor) -> Tensor:
        return embedded.add_(features)


class ValueCritic(nn.Module):
    """``V(s)``: a body and a head that predicts ``V / q_scale`` (paper, Algorithm 1).

    Args:
        body: features of the normalised observation.
        in_features: width of the features.
        q_scale: the head predicts V divided by it.
    """

    def __init__(self, body: nn.Module, in_features: int, q_scale: float):
        super().__init__()
        self.body = body.apply(_glorot)
        self.num_features = 1
        self.q_scale = q_scale
        self.head = _small_head(in_features, 1)

    def features(self, obs: Tensor) -> Tensor:
        """Returns ``V(s)``, ``(..., 1)``, as this critic's values depend on the state alone."""
        return self.head(self.body(obs)) * self.q_scale

    def forward(self, obs: Tensor, actions: Tensor | None = None) -> Tensor:
        """Returns ``V(s) / q_scale``, ``(...)``; ignores the actions."""
        return self.head(self.body(obs)).squeeze(-1)


class QWRNetworks(nn.Module):
    """The networks of one agent: the actor, the normaliser and optionally the critics.

    Images (:attr:`Spec.image`) pass convolutions; any other observation is flattened to a vector.

    Args:
        spec: shapes of observation and action.
        hiddens: widths of the bodies' layers for vectors.
        activation: one of :data:`ACTIVATIONS`.
        q_scale: the critics' heads predict Q (or V) divided by it.
        action_std: standard deviation of the Gaussian actor.
        normalize_observations: whether to normalise vectors by their running mean and variance;
            images are scaled to [0, 1] in any case.
        critic_post_gate_layer: see :class:`GatedCritic`.
        critic_type: ``"q"`` for a :class:`QCritic`, ``"v"`` for a :class:`ValueCritic`.
        critic_network: ``"gated"`` for a :class:`GatedCritic`, ``"joint"`` for a
            :class:`JointCritic`.
        with_critic: ``False`` for an agent that only acts.
        num_critics: at least 1; all but the first are in :attr:`other_critics`.
        image_network: the layers for images, one of :data:`IMAGE_NETWORKS`.
        conv_filters: replace those of ``image_network``; see :class:`ImageEncoder`.
        conv_hiddens: widths of dense layers that replace those of ``image_network``.
    """

    def __init__(
        self,
        spec: Spec,
        hiddens: Sequence[int] = (256, 256),
        activation: str = "relu",
        q_scale: float = 100.0,
        action_std: float = 0.4,
        normalize_observations: bool = True,
        critic_post_gate_layer: bool = False,
        critic_type: CriticType = "q",
        critic_network: CriticNetwork = "gated",
        with_critic: bool = True,
        num_critics: int = 1,
        image_network: ImageNetwork = "mnih2013",
        conv_filters: Sequence[ConvFilter] | None = None,
        conv_hiddens: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self._spec = spec
        filters, widths = IMAGE_NETWORKS[image_network]
        filters, widths = conv_filters or filters, conv_hiddens or widths

        self.blocks = 1
        if spec.image:
            self.blocks = _blocks(channels_first(spec.obs_shape)[1:], filters)

        def body() -> nn.Module:
            if spec.image:
                return ImageEncoder(spec.obs_shape, filters, widths, activation)
            return mlp(math.prod(spec.obs_shape), hiddens, activation)

        width = (widths if spec.image else hiddens)[-1]
        self.normalizer: nn.Module = nn.Identity()
        if normalize_observations and not spec.image:
            self.normalizer = ObservationNormalizer(spec.obs_shape)
        self.actor: GaussianActor | CategoricalActor
        if spec.discrete:
            self.actor = CategoricalActor(body(), width, spec.action_dim)
        else:
            self.actor = GaussianActor(body(), width, spec.action_dim, action_std)

        def critic() -> QCritic | ValueCritic:
            if critic_type == "v":
                return ValueCritic(body(), width, q_scale)
            if critic_network == "joint":
                if spec.image:
                    return JointCritic(body(), width, spec, q_scale, [width])
                size = math.prod(spec.obs_shape)
                return JointCritic(nn.Identity(), size, spec, q_scale, hiddens)
            return GatedCritic(body(), width, spec, q_scale, critic_post_gate_layer)

        self.critic = critic() if with_critic else None
        self.other_critics = nn.ModuleList(critic() for _ in range(with_critic * num_critics - 1))

    @property
    def critics(self) -> list[QCritic | ValueCritic]:
        """All critics; none if the agent only acts."""
        others: list[Any] = list(self.other_critics)
        return [] if self.critic is None else [self.critic, *others]

    def normalize(self, obs: Tensor) -> Tensor:
        """Converts raw observations ``(..., *obs_shape)`` to the inputs of actor and critic.

        Vectors become ``(..., features)``, images the input of an :class:`ImageEncoder`.
        """
        shape = self._spec.obs_shape
        if self._spec.image:
            images = obs.reshape(-1, *shape)
            if channels_first(shape) != tuple(shape):
                images = images.permute(0, 3, 1, 2)
            images = to_blocks(images, self.blocks)
            full = self._spec.image_max or 255
            return images if full == 255 else images * (255 / full)
        batch = obs.shape[: obs.dim() - len(shape)]
        return self.normalizer(obs.float()).reshape(*batch, math.prod(shape))

    def dist_inputs(self, obs: Tensor) -> Tensor:
        """Returns the parameters of ``pi(.|s)`` for raw observations ``(..., *obs_shape)``."""
        batch = obs.shape[: obs.dim() - len(self._spec.obs_shape)]
        return self.actor(self.normalize(obs)).reshape(*batch, self._spec.action_dim)

    def acting_state(self) -> dict[str, Any]:
        """Returns the tensors for acting, those of actor and normaliser, on the CPU."""
        return {
            name: value.detach().cpu()
            for name, value in self.state_dict().items()
            if not name.startswith(("critic.", "other_critics."))
        }


def networks_of(spec: Spec, config: Any, with_critic: bool = True) -> QWRNetworks:
    """Makes the networks for a ``QWRConfig`` or its dict."""
    model = config["model"]
    return QWRNetworks(
        spec,
        hiddens=model["fcnet_hiddens"],
        activation=model["fcnet_activation"],
        q_scale=learner_config(config).head_scale,
        action_std=config["action_std"],
        normalize_observations=config["normalize_observations"],
        critic_post_gate_layer=config["critic_post_gate_layer"],
        critic_type=config["critic_type"],
        critic_network=config.get("critic_network", "gated"),  # the only one in earlier releases
        with_critic=with_critic,
        num_critics=config.get("num_critics", 1),  # the only number in earlier releases
        image_network=config.get("image_network", "mnih2013"),  # the only one in earlier releases
        conv_filters=model["conv_filters"],
        conv_hiddens=model["post_fcnet_hiddens"],
    )
