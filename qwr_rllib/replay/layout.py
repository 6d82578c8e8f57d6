"""Memory layout of the replay's store: columns and slots. Imports neither torch nor Ray."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from qwr_rllib.specs import Spec


class Slot(IntEnum):
    """The content of a slot."""

    FREE = 0
    ROW = 1
    TAIL = 2
    CONTEXT = 3


def num_slots(capacity: int) -> int:
    """Returns the slots for ``capacity`` rows, and the tails and contexts of their trajectories."""
    return capacity + max(64, capacity // 16)


def all_columns(spec: Spec) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Returns shape and dtype of each column of a store: those of the spec and internal ones."""
    return spec.columns | {
        "kind": ((), np.dtype("int8")),
        # Slots of the next and the previous state; at an end, the slot itself.
        "next": ((), np.dtype("int32")),
        "prev": ((), np.dtype("int32")),
        "inserted": ((), np.dtype("int64")),  # number of rows ever inserted before this one
        "policy_version": ((), np.dtype("int32")),  # actor updates of the policy that collected it
    }


def memory_bytes(spec: Spec, capacity: int) -> int:
    """Returns the bytes that a store of this capacity allocates."""
    row = sum(
        int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        for shape, dtype in all_columns(spec).values()
    )
    return num_slots(capacity) * (row + 2 * np.dtype("int64").itemsize)
