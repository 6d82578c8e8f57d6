"""Recovery of a store from the learner's copy of it. Does not import Ray."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qwr_rllib.replay.layout import Slot
from qwr_rllib.replay.replica import ReplayView


def store_arrays(view: ReplayView, outline: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Makes the arrays of :meth:`ReplayStorage.state_arrays` from a view of the store.

    Args:
        view: the copy.
        outline: see :meth:`ReplayStorage.outline`, of the same version of the store.

    Returns:
        The argument of :meth:`ReplayStorage.load`. Only the order in which free slots will be
        used may differ from the lost store's.
    """
    kind = view.kind.cpu().numpy()
    slots = np.flatnonzero(kind != Slot.FREE)
    columns = view.columns | {
        "kind": view.kind,
        "next": view.next,
        "prev": view.prev,
        "inserted": view.inserted,
        "policy_version": view.policy_version,
    }
    arrays = {f"column_{name}": column.cpu().numpy()[slots] for name, column in columns.items()}
    for name in ("column_next", "column_prev"):
        arrays[name] = arrays[name].astype(np.int32)
    return arrays | {
        "counters": outline["counters"],
        "slots": slots,
        "free": np.flatnonzero(kind == Slot.FREE)[::-1],
        "trajectories": outline["trajectories"],
        "trajectory_slots": _trajectory_slots(view, outline),
    }


def _trajectory_slots(view: ReplayView, outline: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns the slots of context and rows of each trajectory in turn, in order of time."""
    following, preceding = view.next.cpu().numpy(), view.prev.cpu().numpy()
    first = outline["first_slots"]
    contexts, lengths = outline["trajectories"][:, 2], outline["trajectories"][:, 3]
    starts = np.cumsum(contexts + lengths) - lengths  # of the rows
    slots = np.zeros((contexts + lengths).sum(), np.int64)
    _follow(following, first, lengths, slots, starts, 1)
    _follow(preceding, preceding[first], contexts, slots, starts - 1, -1)
    return slots


def _follow(
    links: np.ndarray,
    current: np.ndarray,
    lengths: np.ndarray,
    into: np.ndarray,
    starts: np.ndarray,
    direction: int,
) -> None:
    """Writes the slots along chains of these lengths, one link of all chains at a time."""
    for step in range(lengths.max(initial=0)):
        alive = lengths > step
        starts, lengths, current = starts[alive], lengths[alive], current[alive]
        into[starts + direction * step] = current
        current = links[current]
