"""Matrix products by the better of the two libraries that PyTorch has for them on a CPU.

PyTorch multiplies float32 matrices with MKL, which computes at less than half of its speed on
an AMD processor. oneDNN, which PyTorch has for convolutions and for its compiler, does not, and it
adds a layer's bias on the way. Knows torch only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

# How much slower oneDNN may be measured: a margin for noise, so that all processes on a machine
# decide the same where the two are about equally fast.
MAX_RATIO = 1.3


def matmul(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right`` of ``(m, k)`` and ``(k, n)``, which may be transposed views."""
    if takes_onednn(left):
        return _onednn(left, right.t())
    return torch.mm(left, right)


def linear(inputs: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
    """A linear layer and, with ``relu``, that: ``(k, i)``, ``(h, i)``, ``(h,)`` to ``(k, h)``."""
    if takes_onednn(inputs):
        outputs = _onednn(inputs, weight, bias)
    else:
        outputs = torch.addmm(bias, inputs, weight.t())
    # Not by oneDNN, whose ReLU makes 0 of NaN.
    return outputs.relu_() if relu else outputs


def takes_onednn(tensor: Tensor) -> bool:
    """Whether products of tensors like this one are oneDNN's."""
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32 and _onednn_is_good()


def _onednn(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.default(inputs, weight, bias, "none", [], "")


@lru_cache(1)
def _onednn_is_good() -> bool:
    """Whether oneDNN is there and not clearly slower than MKL, by a minibatch's product."""
    if not torch.backends.mkldnn.is_available():
        return False
    # No random numbers: they would change what a seed gives in the first run of a process.
    left, right = torch.ones(2, 256, 256)

    def seconds(product: Callable[[Tensor, Tensor], Tensor]) -> float:
        started = time.perf_counter()
        product(left, right)
        return time.perf_counter() - started

    with torch.no_grad():
        pairs = [(seconds(torch.mm), seconds(_onednn)) for _ in range(20)]
    mkl, onednn = map(min, zip(*pairs, strict=True))
    return onednn < MAX_RATIO * mkl
