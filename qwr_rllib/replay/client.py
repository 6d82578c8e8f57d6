"""A client of a replay actor that replaces a dead actor by one with the same rows.

A row is *acknowledged* when the learner's view, the second copy, has it. Until then, its rollout
worker keeps it (see :mod:`qwr_rllib.sampling.worker`). So a new actor loads the view's rows, and
the workers send theirs again; a repeated row is not stored twice. Rows are lost only if the actor
and a worker die within the same iteration: this worker's rows of that iteration, which
were not counted yet and are collected anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError
from torch import Tensor

from qwr_rllib.replay.actor import COUNTS, Update
from qwr_rllib.replay.recovery import store_arrays
from qwr_rllib.replay.replica import ReplayView

logger = logging.getLogger("ray.rllib.qwr")

MAX_RESTARTS_IN_A_ROW = 3


class ReplayClient:
    """A client that calls a replay actor, and replaces it by one with its rows if it dies.

    Args:
        start: starts an empty replay actor.
        view: the learner's copy of the replay.
        resend: makes the rollout workers send the given actor the rows that the view may lack.
    """

    def __init__(
        self,
        start: Callable[[], ActorHandle],
        view: ReplayView,
        resend: Callable[[ActorHandle], None],
    ) -> None:
        self._start = start
        self._resend = resend
        self._outline: dict[str, np.ndarray] | None = None
        self._restarts_in_a_row = 0
        self.view = view
        self.actor = start()
        self.num_restarts = 0

    def call(self, method: str, *args: Any) -> Any:
        """Calls a method of the actor and waits; if the actor is dead, calls its successor."""
        while True:
            actor = self.actor
            try:
                return ray.get(getattr(actor, method).remote(*args))
            except RayActorError as error:
                self.replace(actor, str(error))

    def update_view(self) -> tuple[Tensor, dict[str, int]]:
        """Brings the view up to date.

        Returns:
            The slots of new rows (see :meth:`ReplayView.update`), and the replay's metrics.
        """
        update: Update = self.call("update", self.view.uid, self.view.version)
        new = self.view.update(update.changes)
        self._outline = update.outline
        self._restarts_in_a_row = 0
        return new, update.metrics | {"num_restarts_lifetime": self.num_restarts}

    def replace(self, actor: ActorHandle, reason: str) -> None:
        """Replaces ``actor`` by a successor, unless this was done before.

        Raises:
            RuntimeError: if successors keep dying.
        """
        if actor != self.actor:
            return
        if self._restarts_in_a_row == MAX_RESTARTS_IN_A_ROW:
            raise RuntimeError(
                f"the replay actor died {MAX_RESTARTS_IN_A_ROW + 1} times within an iteration, "
                f"the last time because: {reason}"
            )
        self._restarts_in_a_row += 1
        self.num_restarts += 1
        first_line = reason.partition("\n")[0]
        logger.warning("The replay actor is lost, starting another one: %s", first_line)
        # The actor may be alive but out of reach; there must not be two stores of record.
        ray.kill(actor)
        self.actor = self._start()
        try:
            if self._outline is not None:
                counts = {name: self._outline[name] for name in COUNTS}
                arrays = store_arrays(self.view, self._outline) | counts
                ray.get(self.actor.load.remote(arrays))
            self._resend(self.actor)
        except RayActorError as error:
            self.replace(self.actor, str(error))
            return
        logger.warning("The new replay actor has the %d rows of the view.", self.view.num_rows)

    def stop(self) -> None:
        """Stops the actor."""
        ray.kill(self.actor)
