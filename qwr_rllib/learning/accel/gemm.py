"""Matrix products by oneDNN on x86 processors. Knows torch only.

PyTorch multiplies float32 matrices with MKL. On AMD's processors MKL computes at less than half of
their speed, and its results depend on where thin matrices lie in memory, so that one seed gives
different weights from run to run. oneDNN, which PyTorch has for convolutions and for its compiler,
does neither; it adds a layer's bias on the way. On Intel's processors MKL can be a quarter faster
(``benchmarks/results/acceleration.json``). The choice follows from the processor alone: a
measurement would let other work on the machine change a seed's numbers.
"""

from __future__ import annotations

import platform

import torch
from torch import Tensor

HAS_ONEDNN = torch.backends.mkldnn.is_available() and platform.machine() in ("x86_64", "AMD64")
"""True if products are oneDNN's. On other processors PyTorch's own library is the better one."""


def matmul(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right`` of ``(m, k)`` and ``(k, n)``, which may be transposed views."""
    if not takes_onednn(left):
        return torch.mm(left, right)
    if len(left) == 1:  # of a single row oneDNN's sum depends on the number of threads
        return _onednn(right.t(), left).t()
    return _onednn(left, right.t())


def linear(inputs: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
    """A linear layer and, with ``relu``, that: ``(k, i)``, ``(h, i)``, ``(h,)`` to ``(k, h)``."""
    if takes_onednn(inputs):
        outputs = _onednn(inputs, weight, bias)
    else:
        outputs = torch.addmm(bias, inputs, weight.t())
    # Not by oneDNN, whose ReLU makes 0 of NaN.
    return outputs.relu_() if relu else outputs


def takes_onednn(tensor: Tensor) -> bool:
    """True if products of tensors like this one are oneDNN's."""
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32 and HAS_ONEDNN


def _onednn(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.default(inputs, weight, bias, "none", [], "")
