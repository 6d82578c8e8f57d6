"""Checks of the arrays of a saved store. Imports neither torch nor Ray."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from qwr_rllib.replay.layout import Slot, all_columns, num_slots
from qwr_rllib.specs import Spec

# Dimensions of the arrays other than columns, see `ReplayStorage.state_arrays`.
_INDEX_ARRAYS = {"counters": 1, "slots": 1, "free": 1, "trajectories": 2, "trajectory_slots": 1}


def check_arrays(spec: Spec, arrays: Mapping[str, Any]) -> None:
    """Checks the argument of :meth:`ReplayStorage.load`.

    Raises:
        ValueError: if an array is missing, has another shape or dtype, or contradicts the others.
    """
    try:
        _check_arrays(spec, arrays)
    except KeyError as error:
        raise ValueError(f"the replay's file lacks the array {error}") from None


def _check_arrays(spec: Spec, arrays: Mapping[str, Any]) -> None:
    for name, dimensions in _INDEX_ARRAYS.items():
        if arrays[name].ndim != dimensions or arrays[name].dtype.kind not in "iu":
            raise ValueError(
                f"{name} must be integers of {dimensions} dimensions, the replay's file has "
                f"{arrays[name].dtype} {arrays[name].shape}"
            )
    slots, free = arrays["slots"], arrays["free"]
    for name, (shape, dtype) in all_columns(spec).items():
        column = arrays[f"column_{name}"]
        if column.shape != (len(slots), *shape) or column.dtype != dtype:
            raise ValueError(
                f"{name} must be {dtype} {shape} per row, the replay's file has "
                f"{column.dtype} {column.shape[1:]} for {len(slots)} slots"
            )
    kind = arrays["column_kind"]
    following, preceding = arrays["column_next"], arrays["column_prev"]
    table, own_slots = arrays["trajectories"], arrays["trajectory_slots"]
    held = len(slots) + len(free)
    consistent = (
        arrays["counters"].shape == (3,)
        and held == num_slots(int(arrays["counters"][0]))
        and np.array_equal(np.sort(np.append(slots, free)), np.arange(held))
        and all(((links >= 0) & (links < held)).all() for links in (following, preceding))
        and table.shape[1:] == (7,)
        and table[:, 2:4].sum() == len(own_slots)
        and table[:, 3].sum() == (kind == Slot.ROW).sum()
        and np.array_equal(np.sort(own_slots), np.sort(slots[kind != Slot.TAIL]))
        and np.array_equal(np.sort(table[table[:, 4] >= 0, 4]), np.sort(slots[kind == Slot.TAIL]))
    )
    if not consistent:
        raise ValueError("the arrays of the replay's file contradict each other")
