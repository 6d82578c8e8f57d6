"""The learner's copy of the replay, on the learner's device. Knows torch and numpy only."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from qwr_rllib.replay.layout import Slot, memory_bytes, num_slots
from qwr_rllib.replay.storage import Changes
from qwr_rllib.specs import Spec


class Slices(NamedTuple):
    """``T`` consecutive steps from each start; each column ``(N, T)``.

    Behind the end of a trajectory a slice repeats its last row; ``continues`` is 0 there, so
    that nothing of it reaches a target.
    """

    next_slots: Tensor
    """Slot of the state after each step (the row's own where the episode terminated)."""
    rewards: Tensor
    nonterminals: Tensor
    """1, or 0 where the episode terminated at this step."""
    continues: Tensor
    """1, or 0 where the trajectory ends (terminated or cut) after this step."""


class ReplayView:
    """Mirrors a :class:`~qwr_rllib.replay.storage.ReplayStorage` slot by slot.

    Args:
        spec: that of the storage.
        capacity: that of the storage.
        device: where the columns live and are sampled.

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
        # int64 slots index without conversion in the learner's loops.
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
        """Rows that can be sampled."""
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
            The slots of the rows that no update brought before, ``(k,)``: each row counts
            once into the observation statistics, also when a whole store is loaded again.
        """
        if changes.reset:
            self.kind.fill_(Slot.FREE)

        # Copied: arrays out of Ray's object store are read-only.
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
            # A reset may go back, to a store from an older checkpoint.
            self.num_inserted_seen = int(inserted[rows].max(initial=-1)) + 1
        return slots[tensor(new)]

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Slots of ``count`` rows, uniformly with replacement, ``(count,)``.

        Raises:
            ValueError: if the view is empty.
        """
        if not self.num_rows:
            raise ValueError("the replay holds no rows to sample")
        chosen = torch.randint(self.num_rows, (count,), generator=generator, device=self.device)
        return self.rows[chosen]

    def frames(self, slots: Tensor) -> Tensor:
        """Slots of the frames ``(..., frame_stack)`` of the states in ``slots``, newest last."""
        frames = [slots]
        for _ in range(self.spec.frame_stack - 1):
            frames.append(self.prev[frames[-1]])
        return torch.stack(frames[::-1], -1)

    def observations(self, slots: Tensor) -> Tensor:
        """Raw observations ``(..., *obs_shape)`` of the states in ``slots`` ``(...)``.

        Frames are stacked here, the newest last.
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
    """Single transitions in the form of a :class:`ReplayView`: the learner's losses take both.

    State ``i`` is in slot ``i``, the state after it in slot ``N + i``.

    Args:
        spec: shapes of the columns.
        columns: ``obs`` and ``action_dist_inputs`` of the ``N`` states and then of the ``N`` after
            them, ``(2 N, ...)``, observations as whole stacks; ``actions``, ``rewards`` and
            ``terminateds``, ``(N, ...)``.
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
        """As :meth:`ReplayView.frames`."""
        n = self.spec.frame_stack
        return slots.unsqueeze(-1) * n + torch.arange(n, device=self.device)

    def observations(self, slots: Tensor) -> Tensor:
        """As :meth:`ReplayView.observations`."""
        return self.columns["obs"][self.frames(slots) if self.spec.frame_stack > 1 else slots]

    def slices(self, starts: Tensor, length: int) -> Slices:
        """As :meth:`ReplayView.slices`, of trajectories that are one step long."""

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
