"""Matrix products by oneDNN on x86 processors.

PyTorch multiplies float32 matrices with MKL. On AMD's processors MKL reaches less than half of
their speed, and its results depend on the memory addresses of thin matrices, so that the same seed
gives different weights from run to run. oneDNN, which PyTorch includes for convolutions and its
compiler, has neither problem, and adds a layer's bias in the same pass. On Intel's processors MKL
can be a quarter faster (``benchmarks/results/acceleration.json``). The processor type alone decides
which library is used: with a measurement, other programs could change a seed's numbers.
"""

from __future__ import annotations

import platform

import torch
from torch import Tensor

HAS_ONEDNN = torch.backends.mkldnn.is_available() and platform.machine() in ("x86_64", "AMD64")
"""Whether oneDNN computes the products. On other processors PyTorch's own library is faster."""


def matmul(left: Tensor, right: Tensor) -> Tensor:
    """Returns ``left @ right`` for ``(m, k)`` and ``(k, n)``, which may be transposed views."""
    if not takes_onednn(left):
        return torch.mm(left, right)
    if len(left) == 1:  # for a single row, oneDNN's sum depends on the number of threads
        return _onednn(right.t(), left).t()
    return _onednn(left, right.t())


def linear(inputs: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
    """Applies a linear layer, ReLU if set: ``(k, i)``, ``(h, i)``, ``(h,)`` to ``(k, h)``.

    Computes with the type of the inputs.
    """
    weight, bias = weight.to(inputs.dtype), bias.to(inputs.dtype)
    if takes_onednn(inputs):
        outputs = _onednn(inputs, weight, bias)
    else:
        outputs = torch.addmm(bias, inputs, weight.t())
    # PyTorch's ReLU, because oneDNN's turns NaN into 0.
    return outputs.relu_() if relu else outputs


def takes_onednn(tensor: Tensor) -> bool:
    """Returns whether oneDNN computes the products of tensors like this one."""
    known = tensor.dtype in (torch.float32, torch.bfloat16)
    return tensor.device.type == "cpu" and known and HAS_ONEDNN


def _onednn(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.default(inputs, weight, bias, "none", [], "")
