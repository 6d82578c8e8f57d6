"""Evaluation of networks at states of the replay, without gradients."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from qwr_rllib.learning.accel.gradients import (
    Compiler,
    compiled_kernels,
    features_of,
    gate_kernel,
)
from qwr_rllib.learning.config import LearnerConfig
from qwr_rllib.learning.networks import (
    ImageEncoder,
    NormedLayers,
    QCritic,
    QWRNetworks,
    ValueCritic,
    channels_first,
    shifted,
)
from qwr_rllib.replay.layout import Slot
from qwr_rllib.replay.replica import ReplayView, View

logger = logging.getLogger(__name__)

# Up to this size, the critic's features of all states in the view are cached.
MAX_CACHED_FEATURES_BYTES = 2**28
# Limits of a tile, the states that pass a body at once: states, and elements of observations.
MAX_TILE, MAX_TILE_ELEMENTS = 2**11, 2**23
MAX_GPU_TILE, MAX_GPU_TILE_ELEMENTS = 2**15, 2**28

Critic = QCritic | ValueCritic


class NetworkInputs:
    """Network inputs of states in the replay.

    Args:
        networks: the networks, with their normaliser.
        compiler: ``"numba"`` gathers images by a compiled kernel.
        image_shift: largest shift of an image, in pixels.
        generator: random numbers for the shifts.
    """

    def __init__(
        self,
        networks: QWRNetworks,
        compiler: Compiler | None,
        image_shift: int,
        generator: torch.Generator,
    ) -> None:
        self._networks = networks
        self._image_shift = image_shift
        self._generator = generator
        self._image_kernel: Callable[..., Tensor] | None = None
        if compiler == "numba" and (kernels := compiled_kernels()):
            self._image_kernel = kernels.image_blocks
        self._image_memory = torch.empty(0, dtype=torch.uint8)

    def of(self, view: View, slots: Tensor) -> Tensor:
        """Returns inputs of the states in ``slots`` ``(...)``; the next call may overwrite them."""
        spec = view.spec
        if not spec.image:
            return self._networks.normalize(view.observations(slots))
        shifts = self._shifts(slots.numel()) if self._image_shift else None
        channels_last = channels_first(spec.obs_shape) != spec.obs_shape
        if self._image_kernel is None or spec.obs_dtype != "uint8":
            obs = view.observations(slots)
            if shifts is not None:
                images = obs.reshape(-1, *spec.obs_shape)
                images = images.permute(0, 3, 1, 2) if channels_last else images
                images = shifted(images, shifts)
                obs = images.permute(0, 2, 3, 1) if channels_last else images
            return self._networks.normalize(obs)
        frames = view.columns["obs"]
        if spec.frame_stack > 1:
            frames = frames.unsqueeze(1)
        elif channels_last:
            frames = frames.permute(0, 3, 1, 2)
        needed = len(slots) * math.prod(spec.obs_shape)
        if self._image_memory.numel() < needed:  # allocating takes as long as filling
            self._image_memory = torch.empty(needed, dtype=torch.uint8)
        return self._image_kernel(
            frames, view.frames(slots), self._networks.blocks, self._image_memory, shifts
        )

    def _shifts(self, count: int) -> Tensor:
        bounds = -self._image_shift, self._image_shift + 1
        generator, device = self._generator, self._generator.device
        return torch.randint(*bounds, (count, 2), generator=generator, device=device)

    def of_each(self, view: View, rows: Tensor) -> Iterator[Tensor]:
        """Returns an iterator over the inputs of the minibatches in ``rows`` ``(steps, batch)``."""
        if view.spec.image:  # the images of all minibatches together take gigabytes
            return (self.of(view, each) for each in rows)
        return iter(self.of(view, rows))


class CriticEvaluator:
    """An evaluator of critics at states of the replay.

    Args:
        critics: their parameters may change, but must keep their memory.
        inputs: makes the critics' inputs.
        compiler: see :func:`~qwr_rllib.learning.accel.gradients.gradient_of`.
        pessimistic: whether several critics' values of an action are combined by their minimum, or
            by their mean.
    """

    def __init__(
        self,
        critics: Sequence[Critic],
        inputs: NetworkInputs,
        compiler: Compiler | None,
        pessimistic: bool = False,
    ) -> None:
        self._critics = critics
        self._inputs = inputs
        self._gates: list[Any] = [
            (gate_kernel(critic) if compiler == "numba" else None) or critic for critic in critics
        ]
        self.bodies = [
            critic.features if compiler == "torch" else features_of(critic) for critic in critics
        ]
        """Functions that compute each critic's features ``(k, h)`` from inputs."""
        self._pessimistic = pessimistic

    @torch.no_grad()
    def features(self, view: View, slots: Tensor, known: Tensor | None = None) -> Tensor:
        """Returns the features ``(k, h)`` of the states in ``slots`` ``(k,)``.

        Those of several critics are side by side.

        Args:
            view: the learner's copy of the replay.
            slots: the slots of the states.
            known: the features of all slots, for a look-up; ``None`` computes them.
        """
        if known is not None:
            return known[slots]
        tiles = []
        for tile in slots.split(tile_size(view)):
            inputs = self._inputs.of(view, tile)
            tiles.append(_side_by_side([body(inputs) for body in self.bodies]))
        return torch.cat(tiles)

    @torch.no_grad()
    def all_features(self, view: ReplayView) -> Tensor | None:
        """Returns the features of all states, ``(num_slots, h)``; ``None`` if they are too big."""
        shape = (view.num_slots, sum(critic.num_features for critic in self._critics))
        if shape[0] * shape[1] * 4 > MAX_CACHED_FEATURES_BYTES:
            return None
        features = torch.empty(shape, device=view.device)
        held = ((view.kind == Slot.ROW) | (view.kind == Slot.TAIL)).nonzero().squeeze(1)
        features[held] = self.features(view, held)
        return features

    def q_values(self, features: Tensor, actions: Tensor) -> Tensor:
        """Returns ``Q(s, a)`` ``(k, n)`` for features ``(k, h)`` and actions ``(k, n, [d])``."""
        if len(self._gates) == 1:
            return self._gates[0].q_values(features, actions)
        parts = features.chunk(len(self._gates), -1)
        values = torch.stack(
            [
                gate.q_values(part.contiguous(), actions)
                for gate, part in zip(self._gates, parts, strict=True)
            ]
        )
        return values.amin(0) if self._pessimistic else values.mean(0)

    def action_gradient(self, features: Tensor, actions: Tensor) -> Tensor:
        """Returns the gradient of the critics' mean ``Q(s, a)`` by the actions, ``(k, n, d)``.

        The arguments are those of :meth:`q_values`, for continuous actions.
        """
        parts = features.chunk(len(self._critics), -1)
        gradients = []
        for critic, gate, part in zip(self._critics, self._gates, parts, strict=True):
            assert isinstance(critic, QCritic)
            gradient_of = getattr(gate, "action_gradient", critic.action_gradient)
            gradients.append(gradient_of(part.contiguous(), actions))
        return torch.stack(gradients).mean(0)


def _side_by_side(features: list[Tensor]) -> Tensor:
    return features[0] if len(features) == 1 else torch.cat(features, -1)


def tile_size(view: View) -> int:
    """Returns the number of states that pass a body at once."""
    tile, elements = MAX_TILE, MAX_TILE_ELEMENTS
    if view.device.type == "cuda":  # large tiles keep a GPU busy; small ones keep to a CPU's cache
        tile, elements = MAX_GPU_TILE, MAX_GPU_TILE_ELEMENTS
    return max(1, min(tile, elements // math.prod(view.spec.obs_shape)))


def set_precisions(networks: QWRNetworks, config: LearnerConfig, device: torch.device) -> None:
    """Sets the arithmetic of the image networks and of the joint critics.

    Logs a warning and sets ``"float32"`` if the device has no instructions for ``"bfloat16"``.
    """
    for kind, name in ((ImageEncoder, "image_precision"), (NormedLayers, "critic_precision")):
        dtype = getattr(torch, getattr(config, name))
        if dtype is torch.bfloat16 and not computes_bfloat16(device):
            logger.warning(
                "%s is 'bfloat16', for which this %s has no instructions: training in float32.",
                name,
                device.type.upper(),
            )
            dtype = torch.float32
        for module in networks.modules():
            if isinstance(module, kind):
                module.precision = dtype


def computes_bfloat16(device: torch.device) -> bool:
    """Returns whether the device has instructions for products of bfloat16 numbers."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
