"""The learner's copy of the replay, on the learner's device. Does not import Ray."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from qwr_rllib.replay.layout import Slot, memory_bytes, num_slots
from qwr_rllib.replay.storage import Changes
from qwr_rllib.specs import Spec


class Slices(NamedTuple):
    """``T`` consecutive steps from each of ``N`` rows; each column is ``(N, T)``.

    After the end of a trajectory, a slice repeats its last row. ``continues`` is 0 there, so that
    the repeated rows do not affect a target.
    """

    next_slots: Tensor
    """Slot of the state after each step; the row's own slot if the episode terminated."""
    rewards: Tensor
    nonterminals: Tensor
    """1, or 0 if the episode terminated at this step."""
    continues: Tensor
    """1, or 0 if the trajectory ends (terminated or cut) after this step."""


class ReplayView:
    """A copy of a :class:`~qwr_rllib.replay.storage.ReplayStorage`, slot by slot.

    Args:
        spec: the storage's.
        capacity: the storage's.
        device: device of the columns, on which they are sampled.

    Raises:
        ValueError: if the columns do not fit the memory of a GPU.
    """

    def __init__(self, spec: Spec, capacity: int, device: torch.device | str = "cpu") -> None:
        self.spec = spec
        self.device = torch.device(device)
        self.num_slots = num_slots(capacity)
        try:
            self.columns = {
                name: torch.zeros(
                    (self.num_slots, *shape), dtype=getattr(torch, str(dtype)), device=self.device
                )
                for name, (shape, dtype) in spec.columns.items()
            }
        except torch.OutOfMemoryError as error:
            needed = memory_bytes(spec, capacity) / 1e9
            raise ValueError(
                f"replay_capacity must fit the memory of {self.device}: {capacity} rows of "
                f"{spec.obs_shape} observations take {needed:.1f} GB there"
            ) from error
        # int64, so that the learner's loops index without conversion.
        self.next = torch.zeros(self.num_slots, dtype=torch.int64, device=self.device)
        self.prev = torch.zeros_like(self.next)
        self.kind = torch.zeros(self.num_slots, dtype=torch.int8, device=self.device)
        self.inserted = torch.zeros(self.num_slots, dtype=torch.int64, device=self.device)
        self.policy_version = torch.zeros(self.num_slots, dtype=torch.int32, device=self.device)
        self.rows = torch.zeros(0, dtype=torch.int64, device=self.device)
        self.uid = 0
        self.version = -1
        self.num_inserted_seen = 0

    @property
    def num_rows(self) -> int:
        """Number of rows that can be sampled."""
        return len(self.rows)

    @property
    def num_bytes(self) -> int:
        """Bytes allocated for the columns."""
        own = [self.next, self.prev, self.kind, self.inserted, self.policy_version]
        columns = [*self.columns.values(), *own]
        return sum(column.nbytes for column in columns)

    def update(self, changes: Changes) -> Tensor:
        """Brings the copy up to date.

        Returns:
            The slots of the rows that are new to this copy, ``(k,)``. A row is new only once, also
            if a whole store is loaded again, so that the observation statistics count it once.
        """
        if changes.reset:
            self.kind.fill_(Slot.FREE)

        # Copies, because arrays from Ray's object store are read-only.
        def tensor(array: np.ndarray) -> Tensor:
            return torch.tensor(array, device=self.device)

        slots, kind = tensor(changes.slots), tensor(changes.columns["kind"])
        for name, column in self.columns.items():
            column[slots] = tensor(changes.columns[name])
        self.next[slots] = tensor(changes.columns["next"]).long()
        self.prev[slots] = tensor(changes.columns["prev"]).long()
        self.kind[slots] = kind
        self.inserted[slots] = tensor(changes.columns["inserted"])
        self.policy_version[slots] = tensor(changes.columns["policy_version"])
        self.rows = torch.nonzero(self.kind == Slot.ROW).squeeze(1)
        self.uid, self.version = changes.uid, changes.version

        rows = changes.columns["kind"] == Slot.ROW
        inserted = changes.columns["inserted"]
        new = rows & (inserted >= self.num_inserted_seen)
        if changes.reset or new.any():
            # A reset may lower the number: the store may be from an older checkpoint.
            self.num_inserted_seen = int(inserted[rows].max(initial=-1)) + 1
        return slots[tensor(new)]

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Samples slots ``(count,)`` of rows, uniformly with replacement.

        Raises:
            ValueError: if the view is empty.
        """
        if not self.num_rows:
            raise ValueError("the replay holds no rows to sample")
        chosen = torch.randint(self.num_rows, (count,), generator=generator, device=self.device)
        return self.rows[chosen]

    def frames(self, slots: Tensor) -> Tensor:
        """Returns slots ``(..., frame_stack)`` of the states' frames, newest last."""
        frames = [slots]
        for _ in range(self.spec.frame_stack - 1):
            frames.append(self.prev[frames[-1]])
        return torch.stack(frames[::-1], -1)

    def observations(self, slots: Tensor) -> Tensor:
        """Returns raw observations ``(..., *obs_shape)`` of the states in ``slots`` ``(...)``.

        Stacks the frames, newest last.
        """
        return self.columns["obs"][self.frames(slots) if self.spec.frame_stack > 1 else slots]

    def slices(self, starts: Tensor, length: int) -> Slices:
        """Follows each row of ``starts`` ``(N,)`` for ``length`` steps."""
        columns = []
        rows = starts
        for _ in range(length):
            following = self.next[rows]
            terminated = self.columns["terminateds"][rows]
            continues = (self.kind[following] == Slot.ROW) & ~terminated
            columns.append((following, self.columns["rewards"][rows], ~terminated, continues))
            rows = torch.where(continues, following, rows)
        following, rewards, nonterminals, continues = (
            torch.stack(column, 1) for column in zip(*columns, strict=True)
        )
        return Slices(following, rewards, nonterminals.float(), continues.float())


class TransitionView:
    """Single transitions with the interface of a :class:`ReplayView`, for the learner's losses.

    State ``i`` is in slot ``i``, the state after it in slot ``N + i``.

    Args:
        spec: shapes of the columns.
        columns: ``obs`` (whole stacks) and ``action_dist_inputs``, ``(2 N, ...)``, of the ``N``
            states and then of the ``N`` next states; ``actions``, ``rewards`` and ``terminateds``,
            ``(N, ...)``.
    """

    def __init__(self, spec: Spec, columns: dict[str, Tensor]) -> None:
        self.spec = spec
        self.columns = dict(columns)
        self.device = columns["rewards"].device
        self.num_rows = len(columns["rewards"])
        self.num_slots = 2 * self.num_rows
        self.rows = torch.arange(self.num_rows, device=self.device)
        if spec.frame_stack > 1:
            self.columns["obs"] = columns["obs"].reshape(-1, *spec.frame_shape)

    def frames(self, slots: Tensor) -> Tensor:
        """See :meth:`ReplayView.frames`."""
        n = self.spec.frame_stack
        return slots.unsqueeze(-1) * n + torch.arange(n, device=self.device)

    def observations(self, slots: Tensor) -> Tensor:
        """See :meth:`ReplayView.observations`."""
        return self.columns["obs"][self.frames(slots) if self.spec.frame_stack > 1 else slots]

    def slices(self, starts: Tensor, length: int) -> Slices:
        """See :meth:`ReplayView.slices`; each trajectory is one step long."""

        def repeated(column: Tensor) -> Tensor:
            return column[starts].unsqueeze(1).expand(-1, length)

        continues = torch.zeros(len(starts), length, device=self.device)
        return Slices(
            repeated(self.rows + self.num_rows),
            repeated(self.columns["rewards"]),
            repeated(~self.columns["terminateds"]).float(),
            continues,
        )


View = ReplayView | TransitionView
