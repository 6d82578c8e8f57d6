"""Loops compiled by Numba for CPUs: the critic's gate, Adam, gathering of images.

With PyTorch operations, the gate makes eight passes over ``(states, actions, features)``, which
spend most of their time on memory traffic. Here each action is one pass within a core's L1 cache.
The gradients of bias and ReLU are one pass instead of two. More than half of the time of PyTorch's
Adam step is overhead, not arithmetic.

Importing Numba takes a second and the first calls some more, so only training imports this module.
Arrays are float32 and contiguous: ``k`` states, ``n`` actions of each, ``d`` dimensions of an
action, ``h`` features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from qwr_rllib.learning.networks import GatedCritic

f32 = np.float32
# fastmath allows the reordering of sums, without which they get no vector instructions.
_compiled: Any = numba.njit(fastmath=True, error_model="numpy", nogil=True, cache=True)
_elementwise: Any = numba.njit(error_model="numpy", nogil=True, cache=True)  # NaN stays NaN
_inlined: Any = numba.njit(fastmath=True, error_model="numpy", inline="always")


@_inlined
def _tanh(x):
    """Approximates tanh within 2e-7, by ``2 t / (1 + t^2)`` with ``t = tanh(x / 2)``.

    ``t`` is the seventh convergent of Lambert's continued fraction
    ``z/(1 + z^2/(3 + z^2/(5 + ...)))``, in which all terms are positive.
    """
    z = min(max(x, f32(-8)), f32(8)) * f32(0.5)
    y = z * z
    a = z * (((y + f32(378)) * y + f32(17325)) * y + f32(135135))
    b = ((f32(28) * y + f32(3150)) * y + f32(62370)) * y + f32(135135)
    return f32(2) * a * b / (b * b + a * a)


@_inlined
def _scratch(weight, count):
    """Returns ``count`` vectors ``(h,)`` and ``weight^T`` ``(d, h)``, in one block of memory.

    The compiler makes several versions of a loop, which differ in rounding. The relative addresses
    of the arrays decide which version runs. One block fixes these addresses.
    """
    h, d = weight.shape
    block = np.empty((count + d, h), f32)
    turned = block[count:]
    for i in range(d):
        for c in range(h):
            turned[i, c] = weight[c, i]
    return block[:count], turned


@_inlined
def _embed(action, weight, bias, into):
    """Writes ``weight^T action + bias``: ``(d,)``, ``(d, h)`` and ``(h,)`` into ``(h,)``."""
    d, h = weight.shape
    for c in range(h):
        into[c] = bias[c]
    whole = d - d % 3
    for i in range(0, whole, 3):  # three at once need a third of the loads and stores
        x0, x1, x2 = action[i], action[i + 1], action[i + 2]
        for c in range(h):
            into[c] += x0 * weight[i, c] + x1 * weight[i + 1, c] + x2 * weight[i + 2, c]
    for i in range(whole, d):
        x0 = action[i]
        for c in range(h):
            into[c] += x0 * weight[i, c]


@_inlined
def _moments(values, eps):
    """Returns mean and reciprocal standard deviation of ``(h,)``."""
    h = f32(values.shape[0])
    mean = f32(0)
    for c in range(values.shape[0]):
        mean += values[c]
    mean /= h
    var = f32(0)
    for c in range(values.shape[0]):
        var += (values[c] - mean) * (values[c] - mean)
    return mean, f32(1) / np.sqrt(var / h + eps)


@_compiled
def _values(features, actions, embed, bias, scale, shift, head, head_bias, eps, out):
    # Written out, without calls of `_moments`: the compiler then keeps more values in registers.
    h = features.shape[1]
    vectors, weight = _scratch(embed, 2)
    embedded, gated = vectors[0], vectors[1]
    head = head[0]
    for i in range(actions.shape[0]):
        feature = features[i]
        for j in range(actions.shape[1]):
            _embed(actions[i, j], weight, bias, embedded)
            mean, var = f32(0), f32(0)
            for c in range(h):
                g = _tanh(embedded[c]) * feature[c]
                gated[c] = g
                mean += g
            mean /= f32(h)
            for c in range(h):
                var += (gated[c] - mean) * (gated[c] - mean)
            rstd = f32(1) / np.sqrt(var / f32(h) + eps)
            value = head_bias[0]
            for c in range(h):
                hidden = (gated[c] - mean) * (rstd * scale[c]) + shift[c]
                value += max(hidden, f32(0)) * head[c]
            out[i, j] = value


@_compiled
def _forward(features, actions, embed, bias, scale, shift, head, head_bias, eps,
             gates, normed, rstds, out):  # fmt: skip
    vectors, weight = _scratch(embed, 1)
    gated = vectors[0]
    for i in range(actions.shape[0]):
        _embed(actions[i], weight, bias, gates[i])
        for c in range(gated.shape[0]):
            gates[i, c] = _tanh(gates[i, c])
            gated[c] = gates[i, c] * features[i, c]
        mean, rstds[i] = _moments(gated, eps)
        value = head_bias[0]
        for c in range(gated.shape[0]):
            normed[i, c] = (gated[c] - mean) * rstds[i]
            value += max(normed[i, c] * scale[c] + shift[c], f32(0)) * head[0, c]
        out[i] = value


@_compiled
def _backward(gradient, features, actions, gates, normed, rstds, scale, shift, head, d_features,
              d_embed, d_bias, d_scale, d_shift, d_head, d_head_bias):  # fmt: skip
    h = features.shape[1]
    d_weight = np.zeros((actions.shape[1], h), f32)
    d_hidden = np.empty(h, f32)
    for into in (d_bias, d_scale, d_shift, d_head[0], d_head_bias):
        into[:] = f32(0)
    for i in range(actions.shape[0]):
        d_head_bias[0] += gradient[i]
        sum_d, sum_dn = f32(0), f32(0)
        for c in range(h):
            n = normed[i, c]
            hidden = n * scale[c] + shift[c]
            active = gradient[i] if hidden > f32(0) else f32(0)
            d_head[0, c] += active * hidden
            d = active * head[0, c]
            d_shift[c] += d
            d_scale[c] += d * n
            d *= scale[c]
            d_hidden[c] = d
            sum_d += d
            sum_dn += d * n
        sum_d /= f32(h)
        sum_dn /= f32(h)
        for c in range(h):
            d = rstds[i] * (d_hidden[c] - sum_d - normed[i, c] * sum_dn)
            gate = gates[i, c]
            d_features[i, c] = d * gate
            d *= features[i, c] * (f32(1) - gate * gate)
            d_hidden[c] = d
            d_bias[c] += d
        for k in range(actions.shape[1]):
            for c in range(h):
                d_weight[k, c] += actions[i, k] * d_hidden[c]
    for c in range(h):
        for k in range(actions.shape[1]):
            d_embed[c, k] = d_weight[k, c]


@_elementwise
def _bias_backward(gradient, outputs, d_bias, relu):
    d_bias[:] = f32(0)
    for i in range(gradient.shape[0]):
        for c in range(gradient.shape[1]):
            if relu:
                gradient[i, c] = gradient[i, c] if outputs[i, c] > f32(0) else f32(0)
            d_bias[c] += gradient[i, c]


@_inlined
def _flushed(x, below):
    """Returns 0 for values near 0: arithmetic with denormal numbers takes a hundred times as long.

    Without this, Adam's moments of units that no input activates would become denormal.
    """
    return f32(0) if abs(x) < below else x


@_compiled
def _clipped_adam(weights, gradient, mean, square, clip, lr, beta1, beta2, eps, step):
    norm = f32(0)
    for i in range(gradient.shape[0]):
        norm += gradient[i] * gradient[i]
    clip = min(f32(clip) / (np.sqrt(norm) + f32(1e-6)), f32(1))
    rate = f32(lr / (1 - beta1**step))
    rms = f32(1 / np.sqrt(1 - beta2**step))
    old, old_square, new, new_square = f32(beta1), f32(beta2), f32(1 - beta1), f32(1 - beta2)
    for i in range(gradient.shape[0]):
        g = _flushed(gradient[i] * clip, f32(1e-17))
        mean[i] = _flushed(old * mean[i] + new * g, f32(1e-30))
        square[i] = _flushed(old_square * square[i] + new_square * g * g, f32(1e-36))
        weights[i] -= rate * mean[i] / (np.sqrt(square[i]) * rms + f32(eps))


@_inlined
def _clamped(x, size):
    return min(max(x, 0), size - 1)


@_elementwise
def _image_blocks(frames, pixels, slots, shifts, b, out):
    # Moves a block's row of pixels as `words` words, one for the usual sizes of `b`.
    words = frames.shape[3] // out.shape[2]
    height, width = pixels.shape[2:]
    shifted_pixels = np.empty(width, np.uint8)
    shifted = shifted_pixels.view(frames.dtype)
    for i in range(slots.shape[0]):
        down, right = (shifts[i, 0], shifts[i, 1]) if shifts.shape[0] else (0, 0)
        for y in range(out.shape[1]):
            blocks = out[i, y]
            for f in range(slots.shape[1]):
                for c in range(frames.shape[1]):
                    for dy in range(b):
                        source = _clamped(y * b + dy + down, height)
                        row = frames[slots[i, f], c, source]
                        if right:
                            of_source = pixels[slots[i, f], c, source]
                            for x in range(width):
                                shifted_pixels[x] = of_source[_clamped(x + right, width)]
                            row = shifted
                        first = ((f * frames.shape[1] + c) * b + dy) * words
                        for word in range(words):
                            for x in range(blocks.shape[0]):
                                blocks[x, first + word] = row[x * words + word]


def image_blocks(
    frames: Tensor, slots: Tensor, b: int, out: Tensor, shifts: Tensor | None = None
) -> Tensor:
    """Gathers frames, stacks them along their channels and turns their pixels into blocks.

    Like :func:`qwr_rllib.learning.networks.shifted` and then
    :func:`~qwr_rllib.learning.networks.to_blocks`, but in one pass over the memory.

    Args:
        frames: ``(slots, channels, height, width)``, bytes.
        slots: ``(k, n)``, the frames of each stack, newest last.
        b: side of a block, in pixels.
        out: at least ``k * n * channels * height * width`` bytes, overwritten.
        shifts: ``(k, 2)``, see :func:`~qwr_rllib.learning.networks.shifted`; ``None`` for 0.

    Returns:
        Bytes ``(k, n * channels * b * b, height / b, width / b)``, in the memory of ``out``, with
        channels last.
    """
    channels, height, width = frames.shape[1:]
    shape = len(slots), height // b, width // b, slots.shape[1] * channels * b * b
    blocks = out[: math.prod(shape)].view(shape)
    pixels = frames.numpy()
    word = np.dtype(f"u{b}") if b in (2, 4, 8) and pixels.flags.c_contiguous else np.dtype("u1")
    of_each = np.empty((0, 2), np.int64) if shifts is None else _array(shifts)
    _image_blocks(pixels.view(word), pixels, _array(slots), of_each, b, _array(blocks).view(word))
    return blocks.permute(0, 3, 1, 2)


def bias_backward(gradient: Tensor, outputs: Tensor, into: Tensor, relu: bool) -> None:
    """Computes the gradient of a layer's bias, and passes the outputs' gradient through the ReLU.

    Args:
        gradient: ``(k, h)``, by the outputs; with ``relu`` overwritten by that before the ReLU.
        outputs: ``(k, h)``, the layer's outputs.
        into: ``(h,)``, receives the gradient of the bias.
        relu: whether the layer ends with a ReLU.
    """
    _bias_backward(_array(gradient), _array(outputs), _array(into), relu)


def clipped_adam(
    weights: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any], clip: float
) -> None:
    """Makes a step of Adam with the gradient clipped to the norm ``clip``, in two passes.

    Args:
        weights: ``(p,)``, updated in place.
        gradient: ``(p,)``.
        state: the state of :class:`torch.optim.Adam` after its first step, updated in place.
        group: Adam's options.
        clip: the largest norm; may be infinite.
    """
    state["step"] += 1
    moments = _array(state["exp_avg"]), _array(state["exp_avg_sq"])
    rates = clip, group["lr"], *group["betas"], group["eps"]
    _clipped_adam(_array(weights), _array(gradient), *moments, *rates, state["step"].item())


def _array(tensor: Tensor) -> np.ndarray:
    """Returns the tensor's memory as an array, without a copy."""
    if not tensor.is_contiguous():
        raise ValueError(f"the kernels take contiguous tensors, got strides {tensor.stride()}")
    return tensor.detach().numpy()


class GateKernel:
    """The gate of a critic of continuous actions without a layer after the gate.

    Args:
        critic: on the CPU; its parameters may change, but must keep their memory.
        into: tensors into which :meth:`backward` writes each parameter's gradient.
    """

    def __init__(self, critic: GatedCritic, into: Mapping[Tensor, Tensor] | None = None) -> None:
        layers = (critic.embed, critic.norm, critic.head)
        parameters = [each for layer in layers for each in layer.parameters()]
        self._parameters = [_array(each) for each in parameters]
        self._into = [_array(into[each]) for each in parameters] if into else []
        self._eps = f32(critic.norm.eps)
        self._q_scale = critic.q_scale
        self._shape = torch.Size()

    def q_values(self, features: Tensor, actions: Tensor) -> Tensor:
        """Computes :meth:`GatedCritic.q_values`, ``(k, h)`` and ``(k, n, d)`` to ``(k, n)``."""
        values = features.new_empty(actions.shape[:2])
        inputs = _array(features), _array(actions)
        _values(*inputs, *self._parameters, self._eps, _array(values))
        return values.mul_(self._q_scale)

    def forward(self, features: Tensor, actions: Tensor) -> Tensor:
        """Computes :meth:`GatedCritic.scaled_q`, ``(k, h)`` and ``(k, d)`` to ``(k,)``."""
        if self._shape != features.shape:
            self._shape = features.shape
            self._gates, self._normed, self._d_features = (
                np.empty(features.shape, f32) for _ in range(3)
            )
            self._rstds = np.empty(len(features), f32)
        self._inputs = _array(features), _array(actions)
        values = features.new_empty(len(features))
        _forward(
            *self._inputs, *self._parameters, self._eps,
            self._gates, self._normed, self._rstds, _array(values),
        )  # fmt: skip
        return values

    def backward(self, gradient: Tensor) -> Tensor:
        """Returns the gradient by the last :meth:`forward`'s features, given that by its values.

        ``(k,)`` to ``(k, h)``.
        """
        _, _, scale, shift, head, _ = self._parameters
        _backward(
            _array(gradient), *self._inputs, self._gates, self._normed, self._rstds,
            scale, shift, head, self._d_features, *self._into,
        )  # fmt: skip
        return torch.from_numpy(self._d_features)
