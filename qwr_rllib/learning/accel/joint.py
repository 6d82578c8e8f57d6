"""The layers of a :class:`JointCritic` after its features, on CPUs: values and gradients.

Matrix products are :mod:`~qwr_rllib.learning.accel.gemm`'s. What is between two of them (the
embedded action, LayerNorm, ReLU) is one loop compiled by Numba. These loops read and write float32,
or bfloat16 as unsigned integers of 16 bits; their arithmetic is float32.

Shapes: ``k`` states, ``n`` actions of each, ``r`` of k * n rows, ``d`` dimensions of an action,
``h`` the width of a layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numba import types
from numba.extending import intrinsic, overload
from torch import Tensor, nn

from qwr_rllib.learning.accel.gemm import linear, matmul
from qwr_rllib.learning.accel.kernels import _array, _compiled, _embed, _inlined, _moments, _scratch
from qwr_rllib.learning.networks import JointCritic

f32, u16, u32 = np.float32, np.uint16, np.uint32
TILE_ROWS = 1024  # rows at once, so that a layer's numbers stay in a core's cache


def _same_bits(source: Any, target: Any) -> Any:
    """Returns a function for compiled code that reads the bits of ``source`` as ``target``."""

    def typed(typing_context, x):
        def code(context, builder, signature, arguments):
            return builder.bitcast(arguments[0], context.get_value_type(target))

        return target(source), code

    return intrinsic(typed)


_as_float = _same_bits(types.uint32, types.float32)
_as_bits = _same_bits(types.float32, types.uint32)


def _read(x):
    """Returns a float32 from a float32 or from the bits of a bfloat16."""


def _write(x, array):
    """Returns a float32 as an element of ``array``: itself, or the bits of the next bfloat16."""


@overload(_read, inline="always")
def _(x):
    if x == types.uint16:
        return lambda x: _as_float(u32(u32(x) << u32(16)))
    return lambda x: x


@overload(_write, inline="always")
def _(x, array):
    if array.dtype == types.uint16:
        # Half of the last kept bit is added, less a little if that bit is 0: ties become even.
        return lambda x, array: u16(
            u32(_as_bits(x) + u32(0x7FFF) + (u32(_as_bits(x) >> u32(16)) & u32(1))) >> u32(16)
        )
    return lambda x, array: x


@_inlined
def _norm(values, scale, shift, eps, keep, i, out, normed, rstds):
    """Writes LayerNorm and ReLU of ``values`` ``(h,)`` into ``out[i]``."""
    mean, rstd = _moments(values, eps)
    rstds[i] = rstd
    for c in range(values.shape[0]):
        x = (values[c] - mean) * rstd
        if keep:
            normed[i, c] = _write(x, normed)
        out[i, c] = _write(max(x * scale[c] + shift[c], f32(0)), out)


@_compiled
def _first_layer(features, actions, embed, bias, scale, shift, eps, keep, out, normed, rstds):
    vectors, weight = _scratch(embed, 1)
    values = vectors[0]
    n = actions.shape[1]
    for i in range(actions.shape[0]):
        for j in range(n):
            _embed(actions[i, j], weight, bias, values)
            for c in range(values.shape[0]):
                values[c] += features[i, c]
            _norm(values, scale, shift, eps, keep, i * n + j, out, normed, rstds)


@_compiled
def _later_layer(inputs, scale, shift, eps, keep, out, normed, rstds):
    values = np.empty(inputs.shape[1], f32)
    for i in range(inputs.shape[0]):
        for c in range(values.shape[0]):
            values[c] = _read(inputs[i, c])
        _norm(values, scale, shift, eps, keep, i, out, normed, rstds)


@_compiled
def _head(inputs, weight, bias, out):
    for i in range(inputs.shape[0]):
        value = bias[0]
        for c in range(inputs.shape[1]):
            value += inputs[i, c] * weight[0, c]
        out[i] = value


@_compiled
def _head_backward(gradient, inputs, weight, d_inputs, d_weight, d_bias):
    d_weight[:] = f32(0)
    d_bias[:] = f32(0)
    for i in range(inputs.shape[0]):
        d_bias[0] += gradient[i]
        for c in range(inputs.shape[1]):
            d_weight[0, c] += gradient[i] * inputs[i, c]
            d_inputs[i, c] = gradient[i] * weight[0, c]


@_compiled
def _norm_backward(gradient, normed, rstds, scale, shift, d_inputs, d_scale, d_shift, d_bias):
    h = normed.shape[1]
    d_hidden = np.empty(h, f32)
    for into in (d_scale, d_shift, d_bias):
        into[:] = f32(0)
    for i in range(normed.shape[0]):
        sum_d, sum_dn = f32(0), f32(0)
        for c in range(h):
            x = _read(normed[i, c])
            d = _read(gradient[i, c]) if x * scale[c] + shift[c] > f32(0) else f32(0)
            d_shift[c] += d
            d_scale[c] += d * x
            d *= scale[c]
            d_hidden[c] = d
            sum_d += d
            sum_dn += d * x
        sum_d /= f32(h)
        sum_dn /= f32(h)
        for c in range(h):
            d = rstds[i] * (d_hidden[c] - sum_d - _read(normed[i, c]) * sum_dn)
            d_bias[c] += d
            d_inputs[i, c] = _write(d, d_inputs)


class _Memory:
    """What a pass over ``rows`` rows keeps of a layer of width ``width``; the next overwrites it.

    Args:
        rows: r.
        width: h.
        dtype: of the matrix products.
        last: whether the head takes the outputs.
    """

    def __init__(self, rows: int, width: int, dtype: torch.dtype, last: bool) -> None:
        # The head takes float32.
        self.outputs = torch.empty(rows, width, dtype=torch.float32 if last else dtype)
        self.gradient = torch.empty(rows, width, dtype=dtype)
        self.output_bits, self.gradient_bits = _bits(self.outputs), _bits(self.gradient)
        self.normed_bits = _bits(torch.empty(rows, width, dtype=dtype))
        self.rstds = np.empty(rows, f32)


class JointKernel:
    """The layers of a critic of continuous actions after its features.

    Args:
        critic: on the CPU; its parameters may change, but must keep their memory.
        into: tensors into which :meth:`backward` writes each parameter's gradient.
    """

    def __init__(self, critic: JointCritic, into: Mapping[Tensor, Tensor] | None = None) -> None:
        assert isinstance(critic.embed, nn.Linear)
        self._embed = critic.embed.weight
        self._q_scale = critic.q_scale
        self._dtype = critic.post.precision
        norms = [critic.norm, *(each for each in critic.post if isinstance(each, nn.LayerNorm))]
        linears = [each for each in critic.post if isinstance(each, nn.Linear)]
        self._linears = [(each.weight, each.bias) for each in linears]
        self._widths = [norm.normalized_shape[0] for norm in norms]
        self._norms = [(*_arrays(norm), f32(norm.eps)) for norm in norms]
        self._embed_and_bias, self._head = _arrays(critic.embed), _arrays(critic.head)

        if into is None:  # for the gradients by the actions alone
            into = {each: torch.empty_like(each).detach() for each in critic.parameters()}
        self._d_embed = into[critic.embed.weight]
        self._d_linears = [into[weight] for weight, _ in self._linears]
        # Each LayerNorm's weight and bias, and the bias of the layer before it.
        self._d_norms = [
            tuple(_array(into[each]) for each in (norm.weight, norm.bias, before.bias))
            for norm, before in zip(norms, [critic.embed, *linears], strict=True)
        ]
        self._d_head = [_array(into[each]) for each in critic.head.parameters()]
        self._memory: list[_Memory] = []

    @torch.no_grad()
    def q_values(self, features: Tensor, actions: Tensor) -> Tensor:
        """Computes :meth:`JointCritic.q_values`, ``(k, h)`` and ``(k, n, d)`` to ``(k, n)``."""
        values = features.new_empty(actions.shape[:2])
        for of_states, some, into in _tiles(features, actions, values):
            self._forward(of_states, some, False, into.view(-1))
        return values.mul_(self._q_scale)

    @torch.no_grad()
    def action_gradient(self, features: Tensor, actions: Tensor) -> Tensor:
        """Computes :meth:`JointCritic.action_gradient`, ``(k, n, d)``."""
        gradient = torch.empty_like(actions)
        for of_states, some, into in _tiles(features, actions, gradient):
            values = some.new_empty(some.shape[0] * some.shape[1])
            self._forward(of_states, some, True, values)
            by_embedded = self._backward(values.fill_(self._q_scale), False)
            into.copy_(matmul(by_embedded, self._embed).view_as(into))
        return gradient

    @torch.no_grad()
    def forward(self, features: Tensor, actions: Tensor) -> Tensor:
        """Computes :meth:`JointCritic.scaled_q`, ``(k, h)`` and ``(k, d)`` to ``(k,)``."""
        self._actions = actions
        values = features.new_empty(len(features))
        self._forward(features, actions.unsqueeze(1), True, values)
        return values

    @torch.no_grad()
    def backward(self, gradient: Tensor) -> Tensor:
        """Returns the gradient by the last :meth:`forward`'s features, given that by its values.

        ``(k,)`` to ``(k, h)``.
        """
        by_embedded = self._backward(gradient, True)
        self._d_embed.copy_(matmul(by_embedded.t(), self._actions))
        return by_embedded

    def _forward(self, features: Tensor, actions: Tensor, keep: bool, values: Tensor) -> None:
        """Writes the head's values ``(r,)``; with ``keep``, keeps what the backward pass needs."""
        rows = len(values)
        if not self._memory or len(self._memory[0].rstds) != rows:
            self._memory = [
                _Memory(rows, width, self._dtype, i == len(self._widths))
                for i, width in enumerate(self._widths, 1)
            ]
        first, *later = (
            (*norm, keep, memory.output_bits, memory.normed_bits, memory.rstds)
            for norm, memory in zip(self._norms, self._memory, strict=True)
        )
        _first_layer(_array(features), _array(actions), *self._embed_and_bias, *first)
        for layer, rest, before in zip(self._linears, later, self._memory, strict=False):
            _later_layer(_bits(linear(before.outputs, *layer, relu=False)), *rest)
        _head(self._memory[-1].output_bits, *self._head, _array(values))

    def _backward(self, gradient: Tensor, learns: bool) -> Tensor:
        """Returns the gradient ``(r, h)`` by the inputs of the first LayerNorm.

        Args:
            gradient: ``(r,)``, by the head's values.
            learns: whether to compute the gradients of all parameters, or of some only.
        """
        last = self._memory[-1]
        by_outputs = torch.empty_like(last.outputs)
        _head_backward(
            _array(gradient), last.output_bits, self._head[0], _bits(by_outputs), *self._d_head
        )
        for i in range(len(self._memory) - 1, 0, -1):
            by_inputs = self._memory[i].gradient
            self._norm_backward(i, by_outputs, by_inputs)
            if learns:
                self._d_linears[i - 1].copy_(matmul(by_inputs.t(), self._memory[i - 1].outputs))
            by_outputs = matmul(by_inputs, self._linears[i - 1][0].to(self._dtype))
        by_embedded = torch.empty(by_outputs.shape)
        self._norm_backward(0, by_outputs, by_embedded)
        return by_embedded

    def _norm_backward(self, i: int, by_outputs: Tensor, by_inputs: Tensor) -> None:
        memory, (scale, shift, _) = self._memory[i], self._norms[i]
        _norm_backward(
            _bits(by_outputs), memory.normed_bits, memory.rstds, scale, shift, _bits(by_inputs),
            *self._d_norms[i],
        )  # fmt: skip


def _tiles(features: Tensor, actions: Tensor, into: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Splits arguments of a first axis of k into tiles of at most ``TILE_ROWS`` actions."""
    tile = max(1, TILE_ROWS // actions.shape[1])
    return zip(features.split(tile), actions.split(tile), into.split(tile), strict=True)


def _bits(tensor: Tensor) -> np.ndarray:
    """Returns the memory of float32 numbers, or the bits of bfloat16 ones, without a copy."""
    if tensor.dtype == torch.bfloat16:
        return _array(tensor.view(torch.int16)).view(u16)
    return _array(tensor)


def _arrays(module: nn.Module) -> tuple[np.ndarray, ...]:
    return tuple(_array(each) for each in module.parameters())
