"""The replay as a Ray actor: the store of record that the rollout workers fill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import ray

from qwr_rllib.replay.storage import (
    Changes,
    Fragment,
    RefusedFragmentError,
    ReplayStorage,
)
from qwr_rllib.specs import Spec


@dataclass(frozen=True)
class Receipt:
    """What became of a worker's fragments."""

    num_rows_stored: int
    num_rows_refused: int
    refusals: list[str]
    """One line for each refused fragment: worker, episode, what is wrong with it."""


class Replay:
    """A :class:`~qwr_rllib.replay.storage.ReplayStorage` as the actor's methods."""

    def __init__(self, spec: Spec, capacity: int) -> None:
        self._storage = ReplayStorage(spec, capacity)
        self._num_rows_refused_lifetime = 0

    def add(self, fragments: Sequence[Fragment], worker: int = 0) -> Receipt:
        """Stores fragments; a bad one is refused and the others go on.

        Once this returns, the rows are acknowledged.
        """
        stored, refused, refusals = 0, 0, []
        for fragment in fragments:
            try:
                stored += self._storage.add(fragment)
            except RefusedFragmentError as error:
                refused += len(fragment)
                refusals.append(f"worker {worker}, episode {fragment.episode}: {error}")
        self._num_rows_refused_lifetime += refused
        return Receipt(stored, refused, refusals)

    def changes(self, uid: int, since: int) -> Changes:
        """See :meth:`ReplayStorage.changes`."""
        return self._storage.changes(uid, since)

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
        refused = np.array(self._num_rows_refused_lifetime)
        return self._storage.state_arrays() | {"num_rows_refused_lifetime": refused}

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        """Takes what :meth:`state_arrays` gave. Raises as :meth:`ReplayStorage.load`."""
        self._storage.load(arrays)
        self._num_rows_refused_lifetime = int(arrays["num_rows_refused_lifetime"])


# It takes no CPU of its own: declared ones would not fit a trial's placement group.
ReplayActor = ray.remote(num_cpus=0)(Replay)
