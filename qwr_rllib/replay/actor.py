"""The replay as a Ray actor: the store of record that the rollout workers fill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import ray

from qwr_rllib.replay.storage import (
    Changes,
    Fragment,
    Refusal,
    RefusedFragmentError,
    ReplayStorage,
)
from qwr_rllib.specs import Spec


@dataclass(frozen=True)
class Receipt:
    """What became of a worker's fragments."""

    num_rows_stored: int
    refusals: list[str]
    """One line for each run of refused rows: worker, episode, what is wrong, time steps."""
    blocked_s: float = 0.0
    """Seconds that the worker waited for this."""


@dataclass(frozen=True)
class Update:
    """What the learner's side takes from the replay at one moment."""

    changes: Changes
    outline: dict[str, np.ndarray]
    """See :meth:`ReplayStorage.outline`; with ``num_rows_refused_lifetime``."""
    metrics: dict[str, int]


class Replay:
    """A :class:`~qwr_rllib.replay.storage.ReplayStorage` as the actor's methods."""

    def __init__(self, spec: Spec, capacity: int) -> None:
        self._storage = ReplayStorage(spec, capacity)
        self._num_rows_refused_lifetime = 0

    def add(self, fragments: Sequence[Fragment], worker: int = 0) -> Receipt:
        """Stores fragments; their bad rows are refused and the others stored.

        A fragment that is stored already, in whole or in part, is not stored twice.
        """
        stored, refusals = 0, []
        for fragment in fragments:
            try:
                added, refused = self._storage.add_intact(fragment)
            except RefusedFragmentError as error:
                added, refused = 0, [Refusal(len(fragment), str(error))]
            stored += added
            for refusal in refused:
                self._num_rows_refused_lifetime += refusal.num_rows
                refusals.append(f"worker {worker}, episode {fragment.episode}: {refusal.message}")
        return Receipt(stored, refusals)

    def update(self, uid: int, since: int) -> Update:
        """What a copy of version ``since`` of the store ``uid`` lacks, and what describes it."""
        changes = self._storage.changes(uid, since)
        outline = self._storage.outline() | self._refused()
        return Update(changes, outline, self.metrics())

    def node_id(self) -> str:
        """The node that this runs on."""
        return ray.get_runtime_context().get_node_id()

    def metrics(self) -> dict[str, int]:
        """The ``replay/`` results; rows are environment steps."""
        return {
            "num_rows": self._storage.num_rows,
            "num_episodes": self._storage.num_episodes,
            "num_bytes": self._storage.num_bytes,
            "num_rows_inserted_lifetime": self._storage.num_rows_inserted_lifetime,
            "num_rows_refused_lifetime": self._num_rows_refused_lifetime,
        }

    def state_arrays(self) -> dict[str, np.ndarray]:
        """See :meth:`ReplayStorage.state_arrays`; with the count of refused rows."""
        return self._storage.state_arrays() | self._refused()

    def _refused(self) -> dict[str, np.ndarray]:
        return {"num_rows_refused_lifetime": np.array(self._num_rows_refused_lifetime)}

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        """Takes what :meth:`state_arrays` gave. Raises as :meth:`ReplayStorage.load`."""
        self._storage.load(arrays)
        self._num_rows_refused_lifetime = int(arrays["num_rows_refused_lifetime"])


# It takes no CPU of its own: declared ones would not fit a trial's placement group.
ReplayActor = ray.remote(num_cpus=0)(Replay)
