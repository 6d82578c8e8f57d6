"""Handwritten gradients of the two regressions, into preallocated buffers.

The inner loops are thousands of steps on networks of a few 256 x 256 layers. At that size,
autograd spends as much time on bookkeeping, allocation and copies as on matrix products. The
backward passes here are written out, and equal autograd's up to rounding, which the tests check.
Networks with other layers use :class:`AutogradGradient`. On a CPU,
:mod:`~qwr_rllib.learning.accel.gemm` multiplies the matrices. If Numba is installed,
:mod:`~qwr_rllib.learning.accel.kernels` computes the biases' gradients, and the gate of a critic of
continuous actions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor, nn

from qwr_rllib.learning.accel.gemm import linear, matmul, takes_onednn
from qwr_rllib.learning.networks import (
    CategoricalActor,
    GatedCritic,
    GaussianActor,
    JointCritic,
    QCritic,
    ValueCritic,
)

if TYPE_CHECKING:
    from qwr_rllib.learning.accel.joint import JointKernel
    from qwr_rllib.learning.accel.kernels import GateKernel

logger = logging.getLogger(__name__)

Loss = Callable[..., Tensor]  # takes a network's outputs and the minibatch's targets
LossGradient = Callable[..., Tensor]  # takes the same; the gradient is by the outputs
Compiler = Literal["torch", "numba"]
aten: Any = torch.ops.aten


class Gradient(Protocol):
    """A function that writes a minibatch's gradient into the buffer given at construction."""

    shareable: bool
    """Whether its numbers are the same to the last bit for any number of threads."""

    def __call__(self, inputs: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """Returns the network's outputs, without gradient; the next call may overwrite them.

        Args:
            inputs: the network's inputs, each ``(batch, ...)``.
            targets: the loss's arguments after the network's outputs.
        """
        ...


def gradient_of(
    module: nn.Module,
    loss: Loss,
    loss_gradient: LossGradient,
    into: Tensor,
    compiler: Compiler | None,
) -> Gradient:
    """Returns the fastest available gradient for a network, device and compiler.

    Args:
        module: a critic or an actor.
        loss: ``loss(module(*inputs), *targets)`` is a scalar.
        loss_gradient: takes the loss's arguments and returns its gradient by the module's outputs.
        into: ``(p,)``, receives the gradient of all parameters, flat and in their order.
        compiler: ``"torch"`` compiles forward and backward pass by ``torch.compile``; ``"numba"``
            uses the kernels that exist for this network.
    """
    if compiler != "torch":
        kernels = compiled_kernels() if compiler == "numba" else None
        if isinstance(module, QCritic) and _dense_layers(module.body) is not None:
            gate = gate_kernel(module, _views(into, module)) if compiler == "numba" else None
            if gate is not None:
                return KernelCriticGradient(module, gate, loss_gradient, into, kernels)
            if isinstance(module, GatedCritic) and _dense_layers(module.post) is not None:
                return CriticGradient(module, loss_gradient, into, kernels)
        if isinstance(module, (GaussianActor, CategoricalActor, ValueCritic)) and (
            _dense_layers(module.body, module.head) is not None
        ):
            return DenseGradient(module, loss_gradient, into, kernels)
    return AutogradGradient(module, loss, into, compiler == "torch")


def gate_kernel(
    critic: nn.Module, into: Mapping[Tensor, Tensor] | None = None
) -> GateKernel | JointKernel | None:
    """Returns the compiled layers of a critic after its features.

    Returns ``None`` if there are none for this critic, or Numba is missing.

    Args:
        critic: its parameters may change, but must keep their memory.
        into: tensors into which the kernel's backward pass writes each parameter's gradient.
    """
    if not (
        isinstance(critic, QCritic)
        and isinstance(critic.embed, nn.Linear)
        and critic.embed.weight.device.type == "cpu"
        and (compiled := compiled_kernels())
    ):
        return None
    if isinstance(critic, JointCritic):
        return import_module("qwr_rllib.learning.accel.joint").JointKernel(critic, into)
    if isinstance(critic, GatedCritic) and isinstance(critic.post, nn.Identity):
        return compiled.GateKernel(critic, into)
    return None


def features_of(critic: QCritic | ValueCritic) -> Callable[[Tensor], Tensor]:
    """Returns a function for ``critic.features``, which uses ``gemm`` if the body is dense layers.

    Args:
        critic: its parameters may change, but must keep their memory.
    """
    layers = _dense_layers(critic.body) if isinstance(critic, QCritic) else None
    if layers is None:
        return critic.features

    def features(inputs: Tensor) -> Tensor:
        for layer, relu in layers:
            inputs = linear(inputs, layer.weight, layer.bias, relu)
        return inputs

    return features


def compiled_kernels() -> ModuleType | None:
    """Imports :mod:`qwr_rllib.learning.accel.kernels`; returns ``None`` without Numba."""
    try:
        return import_module("qwr_rllib.learning.accel.kernels")
    except (ImportError, RuntimeError) as error:  # no Numba, or no folder for its cache
        logger.info("No compiled kernels: %s", error)
        return None


class AutogradGradient:
    """Gradient of any network, by autograd."""

    shareable = False  # the order of PyTorch's sums depends on the number of threads

    def __init__(self, module: nn.Module, loss: Loss, into: Tensor, compiled: bool = False) -> None:
        def forward(inputs: Sequence[Tensor], targets: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
            outputs = module(*inputs)
            return loss(outputs, *targets), outputs

        self._forward = torch.compile(forward, dynamic=False) if compiled else forward
        self._parameters = list(module.parameters())
        self._into = into

    def __call__(self, inputs: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        with torch.enable_grad():
            loss, outputs = self._forward(inputs, targets)
            gradients = torch.autograd.grad(loss, self._parameters)
        torch.cat([gradient.reshape(-1) for gradient in gradients], out=self._into)
        return outputs.detach()


def _dense_layers(*modules: nn.Module) -> list[tuple[nn.Linear, bool]] | None:
    """Returns linear layers and whether a ReLU follows each; ``None`` if there are other layers."""
    layers: list[tuple[nn.Linear, bool]] = []
    for module in modules:
        for each in module.modules():
            if isinstance(each, nn.Linear):
                layers.append((each, False))
            elif isinstance(each, nn.ReLU) and layers:
                layers[-1] = (layers[-1][0], True)
            elif not isinstance(each, (nn.Sequential, nn.Identity)):
                return None
    return layers


def _views(into: Tensor, module: nn.Module) -> dict[Tensor, Tensor]:
    parts = into.split([parameter.numel() for parameter in module.parameters()])
    parameters = module.parameters()
    return {each: part.view_as(each) for each, part in zip(parameters, parts, strict=True)}


class _Dense:
    """Linear layers, each with or without ReLU; keeps the activations for the backward pass."""

    def __init__(
        self,
        layers: list[tuple[nn.Linear, bool]],
        views: dict[Tensor, Tensor],
        kernels: ModuleType | None,
    ) -> None:
        self._kernels = kernels
        self._layers = [
            (layer.weight, layer.bias, views[layer.weight], views[layer.bias], relu)
            for layer, relu in layers
        ]

    def forward(self, inputs: Tensor) -> Tensor:
        self._outputs = [inputs]
        for weight, bias, *_, relu in self._layers:
            self._outputs.append(linear(self._outputs[-1], weight, bias, relu))
        return self._outputs[-1]

    def backward(self, gradient: Tensor, through: bool = False) -> Tensor:
        """Computes the parameters' gradients; overwrites ``gradient``, which is by the outputs.

        With ``through``, returns the gradient by the inputs.
        """
        for i in range(len(self._layers) - 1, -1, -1):
            weight, _, weight_gradient, bias_gradient, relu = self._layers[i]
            inputs, outputs = self._outputs[i : i + 2]
            if self._kernels:
                self._kernels.bias_backward(gradient, outputs, bias_gradient, relu)
            else:
                if relu:
                    aten.threshold_backward.grad_input(gradient, outputs, 0.0, grad_input=gradient)
                torch.sum(gradient, 0, out=bias_gradient)
            weight_gradient.copy_(matmul(gradient.t(), inputs))
            if i or through:
                gradient = matmul(gradient, weight)
        return gradient


class DenseGradient:
    """Gradient of an actor or a value critic whose body is linear layers and ReLUs."""

    def __init__(
        self,
        module: GaussianActor | CategoricalActor | ValueCritic,
        loss_gradient: LossGradient,
        into: Tensor,
        kernels: ModuleType | None,
    ) -> None:
        layers = _dense_layers(module.body, module.head)
        assert layers is not None
        self._dense = _Dense(layers, _views(into, module), kernels)
        self.shareable = kernels is not None and takes_onednn(into)
        self._scalar = isinstance(module, ValueCritic)
        self._loss_gradient = loss_gradient

    @torch.no_grad()
    def __call__(self, inputs: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        outputs = self._dense.forward(inputs[0])
        if self._scalar:
            outputs = outputs.squeeze(-1)
        gradient = self._loss_gradient(outputs, *targets)
        self._dense.backward(gradient.unsqueeze(-1) if self._scalar else gradient)
        return outputs


class CriticGradient:
    """Gradient of a :class:`GatedCritic` whose body is linear layers and ReLUs."""

    shareable = False

    def __init__(
        self,
        critic: GatedCritic,
        loss_gradient: LossGradient,
        into: Tensor,
        kernels: ModuleType | None,
    ) -> None:
        views = _views(into, critic)
        body, post = _dense_layers(critic.body), _dense_layers(critic.post)
        assert body is not None
        assert post is not None
        self._critic = critic
        self._body = _Dense(body, views, kernels)
        self._post = _Dense(post, views, kernels) if post else None
        self._embed_gradients = [views[each] for each in critic.embed.parameters()]
        self._norm_gradients = [views[each] for each in critic.norm.parameters()]
        self._head_gradients = [views[each] for each in critic.head.parameters()]
        self._loss_gradient = loss_gradient

    @torch.no_grad()
    def __call__(self, inputs: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        obs, actions = inputs
        critic = self._critic
        norm, head = critic.norm, critic.head.weight[0]

        features = self._body.forward(obs)
        gates = critic.embed(actions).tanh_()
        gated = features * gates
        hidden, mean, rstd = torch.native_layer_norm(
            gated, norm.normalized_shape, norm.weight, norm.bias, norm.eps
        )
        relu = hidden.relu_()
        last = self._post.forward(relu) if self._post else relu
        outputs = torch.addmv(critic.head.bias, last, head)

        gradient = self._loss_gradient(outputs, *targets)
        weight_gradient, bias_gradient = self._head_gradients
        torch.mv(last.t(), gradient, out=weight_gradient[0])
        torch.sum(gradient, 0, keepdim=True, out=bias_gradient)
        gradient = torch.outer(gradient, head)
        if self._post:
            gradient = self._post.backward(gradient, through=True)
        aten.threshold_backward.grad_input(gradient, relu, 0.0, grad_input=gradient)
        gradient, *norm_gradients = aten.native_layer_norm_backward(
            gradient, gated, norm.normalized_shape, mean, rstd, norm.weight, norm.bias,
            [True, True, True],
        )  # fmt: skip
        for into, value in zip(self._norm_gradients, norm_gradients, strict=True):
            into.copy_(value)
        gate_gradient = aten.tanh_backward(gradient * features, gates)
        self._embed_backward(actions, gate_gradient)
        self._body.backward(gradient.mul_(gates))
        return outputs

    def _embed_backward(self, actions: Tensor, gradient: Tensor) -> None:
        if isinstance(self._critic.embed, nn.Embedding):
            (weight_gradient,) = self._embed_gradients
            weight_gradient.zero_().index_add_(0, actions, gradient)
        else:
            weight_gradient, bias_gradient = self._embed_gradients
            torch.mm(gradient.t(), actions, out=weight_gradient)
            torch.sum(gradient, 0, out=bias_gradient)


class KernelCriticGradient:
    """Gradient of a critic whose layers after the features are compiled."""

    def __init__(
        self,
        critic: QCritic,
        gate: GateKernel | JointKernel,
        loss_gradient: LossGradient,
        into: Tensor,
        kernels: ModuleType | None,
    ) -> None:
        body = _dense_layers(critic.body)
        assert body is not None
        self._body = _Dense(body, _views(into, critic), kernels)
        self.shareable = kernels is not None and takes_onednn(into)
        self._gate = gate
        self._loss_gradient = loss_gradient

    @torch.no_grad()
    def __call__(self, inputs: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        obs, actions = inputs
        outputs = self._gate.forward(self._body.forward(obs), actions)
        gradient = self._loss_gradient(outputs, *targets)
        self._body.backward(self._gate.backward(gradient))
        return outputs
