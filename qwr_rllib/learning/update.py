"""A step of a regression: a minibatch's gradient and a step of Adam.

On a GPU, a step is some thirty kernels of a few microseconds each. As launching each from Python
takes longer, the step can be captured as one CUDA graph.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from qwr_rllib.learning.accel.gradients import (
    Compiler,
    Loss,
    LossGradient,
    compiled_kernels,
    gradient_of,
)

# Steps before the capture; the first one creates Adam's moments and compiles.
EAGER_STEPS = 3


class RegressionStep:
    """A function that makes one step of gradient descent per call.

    Args:
        module: a critic or an actor, on its device.
        loss: ``loss(module(*inputs), *targets)`` is a scalar.
        loss_gradient: takes the loss's arguments and returns its gradient by the module's outputs.
        lr: Adam's learning rate.
        epsilon: Adam's epsilon.
        grad_clip: global norm to which gradients are clipped; ``None`` does not clip.
        compiler: see :func:`~qwr_rllib.learning.accel.gradients.gradient_of`.
        capture: whether to capture the step as a CUDA graph, for minibatches of one shape.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        loss_gradient: LossGradient,
        *,
        lr: float,
        epsilon: float,
        grad_clip: float | None,
        compiler: Compiler | None = None,
        capture: bool = False,
    ) -> None:
        self._adam = _FlatAdam(module, lr, epsilon, grad_clip, compiler)
        self._gradient = gradient_of(module, loss, loss_gradient, self._adam.gradient, compiler)
        self.shareable = self._gradient.shareable
        """Whether its numbers are the same for any number of threads."""
        self._eager_steps = EAGER_STEPS if capture else math.inf
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, inputs: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """Makes a step and returns the outputs from before it; the next call may overwrite them.

        Args:
            inputs: the network's inputs, each ``(batch, ...)``.
            targets: the loss's arguments after the network's outputs.
        """
        if self._eager_steps:
            self._eager_steps -= 1
            return self._step(inputs, targets)
        if self._graph is None:
            self._capture(inputs, targets)
            assert self._graph is not None
        given = (*inputs, *targets)
        if any(a.shape != b.shape for a, b in zip(self._arguments, given, strict=True)):
            return self._step(inputs, targets)  # the graph is for other shapes
        for argument, value in zip(self._arguments, given, strict=True):
            argument.copy_(value)
        self._graph.replay()
        return self._outputs

    def _step(self, inputs: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        outputs = self._gradient(inputs, targets)
        self._adam.step()
        return outputs

    def _capture(self, inputs: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
        self._arguments = [each.clone() for each in (*inputs, *targets)]
        count = len(inputs)
        (adam,) = self._adam.optimizer.param_groups
        adam["capturable"] = True  # required during a capture; outside, Adam would warn
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):  # records the kernels, does not run them
            self._outputs = self._step(self._arguments[:count], self._arguments[count:])
        adam["capturable"] = False

    def state_dict(self) -> dict[str, Any]:
        return self._adam.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Loads the moments; learning rate and epsilon stay the configured ones."""
        self._adam.load_state_dict(state)
        self._graph = None  # it refers to the old moments


class _FlatAdam:
    """Adam with global-norm clipping, on one vector of which all parameters become views.

    For a dozen small tensors, calls cost more than arithmetic. One vector needs one kernel each
    for the norm, the clip and Adam, or one compiled function for all three.
    """

    def __init__(
        self,
        module: nn.Module,
        lr: float,
        epsilon: float,
        grad_clip: float | None,
        compiler: Compiler | None,
    ) -> None:
        parameters = list(module.parameters())
        self._vector = vector = parameters_to_vector(parameters).detach()
        vector_to_parameters(vector, parameters)
        vector.grad = self.gradient = torch.zeros_like(vector)
        self._grad_clip = math.inf if grad_clip is None else grad_clip
        self._kernels = compiled_kernels() if compiler == "numba" else None
        self.optimizer = torch.optim.Adam([vector], lr=lr, eps=epsilon, fused=True)

    def step(self) -> None:
        """Makes a step with :attr:`gradient`."""
        state = self.optimizer.state[self._vector]
        if self._kernels and state:  # the optimizer's first step creates it
            (group,) = self.optimizer.param_groups
            self._kernels.clipped_adam(self._vector, self.gradient, state, group, self._grad_clip)
            return
        # As in torch.nn.utils.clip_grad_norm_.
        norm = self.gradient.norm()
        self.gradient.mul_((self._grad_clip / (norm + 1e-6)).clamp_(max=1.0))
        self.optimizer.step()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Loads the moments; learning rate and epsilon stay the configured ones."""
        configured = [
            {name: group[name] for name in ("lr", "eps")} for group in self.optimizer.param_groups
        ]
        # A copy, because the optimizer trains in the tensors that it loads.
        self.optimizer.load_state_dict(copy.deepcopy(state))
        for group, options in zip(self.optimizer.param_groups, configured, strict=True):
            group.update(options)
