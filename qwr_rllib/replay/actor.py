"""The replay as a Ray actor: the store of record, which the rollout workers fill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import ray

from qwr_rllib.replay.fragments import Fragment, Refusal, RefusedFragmentError
from qwr_rllib.replay.storage import Changes, ReplayStorage
from qwr_rllib.specs import Spec

# Further counters of a replay; its arrays contain them, for a successor and for checkpoints.
COUNTS = ("num_rows_refused_lifetime", "num_rows_repeated_lifetime")


@dataclass(frozen=True)
class Receipt:
    """The answer to a worker that sent fragments."""

    num_rows_stored: int
    refusals: list[str]
    """One line for each run of refused rows: worker, episode, reason, time steps."""
    blocked_s: float = 0.0
    """Seconds that the worker waited for the receipt."""


@dataclass(frozen=True)
class Update:
    """What the learner's process needs from the replay, all of one version of the store."""

    changes: Changes
    outline: dict[str, np.ndarray]
    """See :meth:`ReplayStorage.outline`; includes :data:`COUNTS`."""
    metrics: dict[str, int]


class Replay:
    """The class of the actor, around a :class:`~qwr_rllib.replay.storage.ReplayStorage`."""

    def __init__(self, spec: Spec, capacity: int) -> None:
        self._storage = ReplayStorage(spec, capacity)
        self._counts = dict.fromkeys(COUNTS, 0)

    def add(self, fragments: Sequence[Fragment], worker: int = 0) -> Receipt:
        """Stores the good rows of fragments and refuses the bad ones.

        Rows that are already stored are counted as repeated and not stored again.
        """
        stored, refusals = 0, []
        for fragment in fragments:
            try:
                added, refused = self._storage.add_intact(fragment)
            except RefusedFragmentError as error:
                added, refused = 0, [Refusal(len(fragment), str(error))]
            stored += added
            num_refused = sum(refusal.num_rows for refusal in refused)
            self._counts["num_rows_refused_lifetime"] += num_refused
            self._counts["num_rows_repeated_lifetime"] += len(fragment) - added - num_refused
            for refusal in refused:
                refusals.append(f"worker {worker}, episode {fragment.episode}: {refusal.message}")
        return Receipt(stored, refusals)

    def update(self, uid: int, since: int) -> Update:
        """Returns the outline, and the changes for a copy of version ``since`` of store ``uid``."""
        changes = self._storage.changes(uid, since)
        outline = self._storage.outline() | self._count_arrays()
        return Update(changes, outline, self.metrics())

    def node_id(self) -> str:
        """Returns the id of the actor's node."""
        return ray.get_runtime_context().get_node_id()

    def metrics(self) -> dict[str, int]:
        """Returns the ``replay/`` results; rows are environment steps."""
        return {
            "num_rows": self._storage.num_rows,
            "num_episodes": self._storage.num_episodes,
            "num_bytes": self._storage.num_bytes,
            "num_rows_inserted_lifetime": self._storage.num_rows_inserted_lifetime,
            **self._counts,
        }

    def state_arrays(self) -> dict[str, np.ndarray]:
        """Returns :meth:`ReplayStorage.state_arrays` and the counters :data:`COUNTS`."""
        return self._storage.state_arrays() | self._count_arrays()

    def _count_arrays(self) -> dict[str, np.ndarray]:
        return {name: np.array(count) for name, count in self._counts.items()}

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        """Loads the arrays of :meth:`state_arrays`; missing counters become 0.

        Raises:
            ValueError: see :meth:`ReplayStorage.load`.
        """
        self._storage.load(arrays)
        self._counts = {name: int(arrays.get(name, 0)) for name in COUNTS}


# Declares no CPU, because it would not fit into a trial's placement group.
ReplayActor = ray.remote(num_cpus=0)(Replay)
