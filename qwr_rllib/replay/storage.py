"""The replay's store: whole trajectories in preallocated columns. Imports neither torch nor Ray.

A *row* is one environment step. It is stored in any free *slot* of the columns, and points to the
slot of the next state. So an episode's fragments can be stored apart, and to evict a trajectory is
to free its slots. Bootstrapping needs the observation and ``mu`` of the state after the last row of
an unfinished or cut trajectory. This state has a slot too, the trajectory's *tail*, which becomes
a row when the episode continues.

If observations are stacks of frames, a slot keeps the newest frame and points to the slot of the
previous state, which has the next older frame. A trajectory that begins in the middle of an episode
stores the frames before it, its *context*, in slots of their own.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qwr_rllib.replay.fragments import (
    Fragment,
    Refusal,
    RefusedFragmentError,
    check_form,
    faults,
)
from qwr_rllib.replay.layout import Slot, all_columns, num_slots
from qwr_rllib.replay.serialization import check_arrays
from qwr_rllib.specs import Spec


@dataclass(frozen=True)
class Changes:
    """The changes of the store since the version of a copy."""

    uid: int
    version: int
    reset: bool
    """Whether the copy must be emptied first."""
    slots: np.ndarray
    columns: dict[str, np.ndarray]
    """All columns of these slots, see :func:`~qwr_rllib.replay.layout.all_columns`."""


@dataclass
class _Trajectory:
    episode: int
    context: np.ndarray
    """Slots of the frames before the first row."""
    slots: np.ndarray
    tail: int
    """Slot of the state after the last row, or -1 if the episode terminated."""
    next_t: int
    closed: bool
    """Whether no row can follow: the episode is over, or rows are missing."""


class ReplayStorage:
    """A store of at most ``capacity`` rows, in whole trajectories.

    Args:
        spec: shapes and dtypes of the columns.
        capacity: maximum number of rows; the oldest trajectories are evicted first, as a whole. A
            trajectory that reaches a tenth of the capacity is cut and continues as a new one, so
            that a long episode is not evicted all at once.
    """

    def __init__(self, spec: Spec, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be >= 1, got {capacity}")
        self.spec = spec
        self.capacity = capacity
        self.num_slots = num_slots(capacity)
        self.max_trajectory = max(1, capacity // 10)
        self.columns = {
            name: np.zeros((self.num_slots, *shape), dtype)
            for name, (shape, dtype) in all_columns(spec).items()
        }
        self._stamps = np.zeros(self.num_slots, np.int64)
        self._clear()

    def _clear(self) -> None:
        self.num_rows = 0
        self.num_rows_inserted_lifetime = 0
        self.uid = secrets.randbits(62)
        self.version = 0
        self.columns["kind"].fill(Slot.FREE)
        self._stamps.fill(0)
        self._free = np.arange(self.num_slots - 1, -1, -1, dtype=np.int64)
        self._num_free = self.num_slots
        self._trajectories: dict[int, _Trajectory] = {}  # oldest first
        self._next_key = 0
        self._latest: dict[int, int] = {}  # from episode to the key of its last trajectory

    @property
    def num_episodes(self) -> int:
        """Number of trajectories held, with unfinished ones."""
        return len(self._trajectories)

    @property
    def num_bytes(self) -> int:
        """Bytes allocated for the columns, used or unused."""
        return sum(column.nbytes for column in self.columns.values()) + self._stamps.nbytes

    def add(self, fragment: Fragment) -> int:
        """Stores a fragment and returns the number of new rows.

        A fragment continues its episode's trajectory. Rows that are already stored are skipped. If
        rows are missing in between, a new trajectory begins.

        Raises:
            RefusedFragmentError: if a column has a wrong shape or dtype, values that are not
                finite or invalid actions, or if the fragment has no rows or more than the capacity.
        """
        check_form(fragment, self.spec, self.capacity)
        for fault in faults(fragment, self.spec):
            raise RefusedFragmentError(fault.message)
        return self._store(fragment)

    def add_intact(self, fragment: Fragment) -> tuple[int, list[Refusal]]:
        """Stores a fragment without its bad rows, as :meth:`add` stores the rows between them.

        A trajectory ends before a bad row, and another begins after it. A row whose next state is
        bad is bad too, because its return cannot bootstrap from that state.

        Returns:
            The number of new rows, and one refusal for each run of bad rows.

        Raises:
            RefusedFragmentError: if a column has a wrong shape or dtype, or if the fragment has no
                rows or more than the capacity; nothing is stored then.
        """
        check_form(fragment, self.spec, self.capacity)
        reasons: dict[int, str] = {}  # by bad row
        for fault in faults(fragment, self.spec):
            for row in range(max(0, fault.first_row), min(fault.last_row + 1, len(fragment))):
                reasons.setdefault(row, fault.message)
        if not reasons:
            return self._store(fragment), []
        bad = np.isin(np.arange(len(fragment)), list(reasons))
        bounds = [0, *(np.flatnonzero(np.diff(bad)) + 1).tolist(), len(fragment)]
        stored, refusals = 0, []
        for start, stop in itertools.pairwise(bounds):
            if bad[start]:
                first, last = fragment.start + start, fragment.start + stop - 1
                refused = f"refused: step {first}" + (f" to {last}" if last > first else "")
                refusals.append(Refusal(stop - start, f"{reasons[start]}; {refused}"))
            else:
                stored += self._store(fragment.part(start, stop, self.spec.frame_stack))
        return stored, refusals

    def _store(self, fragment: Fragment) -> int:
        """Stores a fragment without checks; see :meth:`add`."""
        self.version += 1
        known = 0
        latest = self._trajectories.get(self._latest.get(fragment.episode, -1))
        if latest is not None:
            known = min(max(latest.next_t - fragment.start, 0), len(fragment))
            latest.closed |= latest.next_t < fragment.start
        first = known
        while first < len(fragment):
            first += self._append(fragment, first)
        if fragment.done and known < len(fragment):
            self._trajectories[self._latest[fragment.episode]].closed = True
        return len(fragment) - known

    def _append(self, fragment: Fragment, first: int) -> int:
        """Appends as many rows from ``first`` as fit to one trajectory; returns their number."""
        key = self._latest.get(fragment.episode)
        held = 0
        if key is not None:
            held = len(self._trajectories[key].slots)
            if self._trajectories[key].closed or held >= self.max_trajectory:
                key, held = None, 0
        count = min(len(fragment) - first, self.max_trajectory - held)
        needed = count + self.spec.frame_stack
        while self.num_rows + count > self.capacity or self._num_free < needed:
            self._evict()
        if key not in self._trajectories:  # nothing to continue, or just evicted
            key = self._begin(fragment, first)
        assert key is not None
        trajectory = self._trajectories[key]

        terminated = fragment.terminated and first + count == len(fragment)
        states = count + (not terminated)
        reused = np.array([trajectory.tail] if trajectory.tail >= 0 else [], np.int64)
        slots = np.append(reused, self._take(states - len(reused)))
        rows = slots[:count]
        columns, chosen = self.columns, slice(first, first + count)
        columns["obs"][slots] = fragment.obs[first : first + states]
        columns["action_dist_inputs"][slots] = fragment.action_dist_inputs[first : first + states]
        columns["actions"][rows] = fragment.actions[chosen]
        columns["rewards"][rows] = fragment.rewards[chosen]
        columns["terminateds"][slots] = False
        columns["terminateds"][rows[-1]] = terminated
        columns["next"][slots[:-1]] = slots[1:]
        columns["next"][slots[-1]] = slots[-1]
        columns["prev"][slots[1:]] = slots[:-1]
        if not len(reused):
            columns["prev"][slots[0]] = np.append(slots[0], trajectory.context)[-1]
        columns["kind"][slots] = Slot.TAIL
        columns["kind"][rows] = Slot.ROW
        inserted = self.num_rows_inserted_lifetime
        columns["inserted"][rows] = np.arange(inserted, inserted + count)
        versions = np.broadcast_to(fragment.policy_version, len(fragment))
        columns["policy_version"][rows] = versions[chosen]
        self._stamps[slots] = self.version

        trajectory.slots = np.append(trajectory.slots, rows)
        trajectory.tail = -1 if terminated else int(slots[-1])
        trajectory.next_t += count
        self.num_rows += count
        self.num_rows_inserted_lifetime += count
        return count

    def _begin(self, fragment: Fragment, first: int) -> int:
        """Begins a trajectory with the fragment's row ``first`` and returns its key."""
        frames = fragment.obs[:first]
        if fragment.context is not None:
            frames = np.concatenate([fragment.context, frames])
        frames = frames[max(0, len(frames) - self.spec.frame_stack + 1) :]
        context = self._take(len(frames))
        self.columns["obs"][context] = frames
        self.columns["prev"][context] = np.append(context[:1], context[:-1])
        self.columns["next"][context] = context
        self.columns["kind"][context] = Slot.CONTEXT
        self._stamps[context] = self.version

        key = self._next_key
        self._next_key += 1
        self._trajectories[key] = _Trajectory(
            fragment.episode,
            context,
            slots=np.zeros(0, np.int64),
            tail=-1,
            next_t=fragment.start + first,
            closed=False,
        )
        self._latest[fragment.episode] = key
        return key

    def _take(self, count: int) -> np.ndarray:
        self._num_free -= count
        return self._free[self._num_free : self._num_free + count][::-1].copy()

    def _evict(self) -> None:
        key, trajectory = next(iter(self._trajectories.items()))
        del self._trajectories[key]
        if self._latest.get(trajectory.episode) == key:
            del self._latest[trajectory.episode]
        self.num_rows -= len(trajectory.slots)
        slots = np.append(trajectory.context, trajectory.slots)
        if trajectory.tail >= 0:
            slots = np.append(slots, trajectory.tail)
        self.columns["kind"][slots] = Slot.FREE
        self._stamps[slots] = self.version
        self._free[self._num_free : self._num_free + len(slots)] = slots[::-1]
        self._num_free += len(slots)

    def trajectories(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yields each trajectory's episode and the slots of its rows, in order of time."""
        for each in self._trajectories.values():
            yield each.episode, each.slots

    def changes(self, uid: int = 0, since: int = -1) -> Changes:
        """Returns the changes for a copy that has version ``since`` of the store ``uid``.

        A new copy, or one of another store, gets everything, with ``reset``.
        """
        reset = uid != self.uid or since > self.version
        if reset:
            slots = np.flatnonzero(self.columns["kind"] != Slot.FREE)
        else:
            slots = np.flatnonzero(self._stamps > since)
        columns = {name: column[slots] for name, column in self.columns.items()}
        return Changes(self.uid, self.version, reset, slots, columns)

    def outline(self) -> dict[str, np.ndarray]:
        """Describes the trajectories, so that a copy of the columns can become a store again.

        ``trajectories`` and ``counters`` are those of :meth:`state_arrays`; ``first_slots`` has
        the slot of each trajectory's first row. From there, the column ``next`` leads to the other
        rows and ``prev`` to the context.
        """
        table = [
            (
                key,
                each.episode,
                len(each.context),
                len(each.slots),
                each.tail,
                each.next_t,
                each.closed,
            )
            for key, each in self._trajectories.items()
        ]
        first_slots = [each.slots[0] for each in self._trajectories.values()]
        return {
            "counters": np.array([self.capacity, self.num_rows_inserted_lifetime, self._next_key]),
            "trajectories": np.array(table, np.int64).reshape(-1, 7),
            "first_slots": np.array(first_slots, np.int64),
        }

    def state_arrays(self) -> dict[str, np.ndarray]:
        """Returns the whole store as arrays, for ``numpy.savez`` and :meth:`load`."""
        slots = np.flatnonzero(self.columns["kind"] != Slot.FREE)
        held = self._trajectories.values()
        empty = np.zeros(0, np.int64)
        outline = self.outline()
        return {
            "counters": outline["counters"],
            "slots": slots,
            "free": self._free[: self._num_free],
            "trajectories": outline["trajectories"],
            "trajectory_slots": np.concatenate(
                [empty, *(np.append(each.context, each.slots) for each in held)]
            ),
            **{f"column_{name}": column[slots] for name, column in self.columns.items()},
        }

    def load(self, arrays: Mapping[str, Any]) -> None:
        """Replaces everything held by the arrays of :meth:`state_arrays`.

        If the saved store had another capacity, keeps the newest rows that fit.

        Raises:
            ValueError: if an array is missing, has another shape or dtype, or contradicts the
                others; nothing is loaded then.
        """
        check_arrays(self.spec, arrays)
        saved_capacity = int(arrays["counters"][0])
        if saved_capacity != self.capacity:
            self._load_resized(saved_capacity, arrays)
            return
        self._clear()
        slots, free = arrays["slots"], arrays["free"]
        for name, column in self.columns.items():
            column[slots] = arrays[f"column_{name}"]
        self._free[: len(free)] = free
        self._num_free = len(free)
        start = 0
        for key, episode, context, rows, tail, next_t, closed in arrays["trajectories"].tolist():
            own = arrays["trajectory_slots"][start : start + context + rows]
            start += len(own)
            self._trajectories[key] = _Trajectory(
                episode, own[:context], own[context:], tail, next_t, bool(closed)
            )
            self._latest[episode] = key
            self.num_rows += rows
        _, self.num_rows_inserted_lifetime, self._next_key = arrays["counters"].tolist()

    def _load_resized(self, saved_capacity: int, arrays: Mapping[str, Any]) -> None:
        saved = ReplayStorage(self.spec, saved_capacity)
        saved.load(arrays)
        self._clear()
        for each in saved._trajectories.values():
            rows = each.slots[-self.capacity :]
            states = rows if each.tail < 0 else np.append(rows, each.tail)
            before = np.append(each.context, each.slots[: -len(rows)])
            before = before[max(0, len(before) - self.spec.frame_stack + 1) :]
            self.add(
                Fragment(
                    episode=each.episode,
                    start=each.next_t - len(rows),
                    obs=saved.columns["obs"][states],
                    action_dist_inputs=saved.columns["action_dist_inputs"][states],
                    actions=saved.columns["actions"][rows],
                    rewards=saved.columns["rewards"][rows],
                    terminated=each.tail < 0,
                    done=each.closed,
                    context=saved.columns["obs"][before],
                    policy_version=saved.columns["policy_version"][rows],
                )
            )
        self.num_rows_inserted_lifetime = saved.num_rows_inserted_lifetime
