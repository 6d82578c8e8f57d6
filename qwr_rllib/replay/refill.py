"""A store again from the learner's copy of it. Knows torch and numpy only."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qwr_rllib.replay.storage import Slot
from qwr_rllib.replay.view import ReplayView


def store_arrays(view: ReplayView, outline: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What :meth:`ReplayStorage.state_arrays` gave when ``view`` was last brought up to date.

    Args:
        view: the copy.
        outline: :meth:`ReplayStorage.outline` of the same version of the store.

    Returns:
        The arrays that :meth:`ReplayStorage.load` takes. Only the order in which free slots will
        be used may differ from the lost store's.
    """
    kind = view.kind.cpu().numpy()
    slots = np.flatnonzero(kind != Slot.FREE)
    columns = view.columns | {
        "kind": view.kind,
        "next": view.next,
        "inserted": view.inserted,
        "policy_version": view.policy_version,
    }
    arrays = {f"column_{name}": column.cpu().numpy()[slots] for name, column in columns.items()}
    arrays["column_next"] = arrays["column_next"].astype(np.int32)
    return arrays | {
        "counters": outline["counters"],
        "slots": slots,
        "free": np.flatnonzero(kind == Slot.FREE)[::-1],
        "trajectories": outline["trajectories"],
        "trajectory_slots": _trajectory_slots(view.next.cpu().numpy(), outline),
    }


def _trajectory_slots(following: np.ndarray, outline: Mapping[str, np.ndarray]) -> np.ndarray:
    """Slots of the rows of all trajectories, one trajectory after the other, each in order."""
    lengths = outline["trajectories"][:, 2]
    starts = np.cumsum(lengths) - lengths
    slots = np.zeros(lengths.sum(), np.int64)
    # All trajectories at once, a step at a time.
    current = outline["first_slots"]
    for step in range(lengths.max(initial=0)):
        alive = lengths > step
        starts, lengths, current = starts[alive], lengths[alive], current[alive]
        slots[starts + step] = current
        current = following[current]
    return slots
