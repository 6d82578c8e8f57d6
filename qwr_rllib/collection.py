"""Has the rollout workers fill the replay, a round of ``n_interactions`` rows at a time.

What counts is what the replay has: a worker may die after its rows arrived there.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ray.actor import ActorHandle
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from qwr_rllib.replay.actor import Receipt
from qwr_rllib.replay.supervisor import SupervisedReplay
from qwr_rllib.rollouts import Failure, Outcome, ReplayLost, collect, resend

logger = logging.getLogger("ray.rllib.qwr")

_OVERLAPPED = "overlapped"


@dataclass
class Round:
    """What a round brought beside rows."""

    metrics: dict[str, int] = field(default_factory=dict)
    """The replay's at the end."""
    blocked_s: float = 0.0
    """Seconds that workers waited for the replay, summed over them."""
    refusals: list[str] = field(default_factory=list)
    """A line for each refused fragment."""


def num_steps(metrics: dict[str, int]) -> int:
    """Environment steps that reached the replay so far, by its metrics."""
    return metrics["num_rows_inserted_lifetime"] + metrics["num_rows_refused_lifetime"]


class Collector:
    """Asks rollout workers for rows; what a lost one owes is asked of the others.

    Args:
        group: the rollout workers, or a local one alone.
        num_workers: rollout workers that the round is shared among; 0 for the local one.
        num_rows: of a round; a multiple of the workers.
        restore_workers: takes restarted workers back into the group.
        patience_s: for how long a restart of the last worker is waited for; 0 where workers are
            not restarted.
    """

    def __init__(
        self,
        group: EnvRunnerGroup,
        num_workers: int,
        num_rows: int,
        restore_workers: Callable[[], object],
        patience_s: float,
    ) -> None:
        self._group = group
        self._num_workers = num_workers
        self._num_rows = num_rows
        self._share = num_rows // max(1, num_workers)
        self._restore_workers = restore_workers
        self._patience_s = patience_s
        self._number = 0
        self._under_way = False
        self._refusals: list[str] = []  # of the round

    def begin(self, replay: SupervisedReplay, policy_version: int) -> None:
        """Starts a round that the next :meth:`complete` waits for."""
        self._under_way = True
        self._group.foreach_env_runner_async(
            self._job(replay.actor, policy_version), tag=_OVERLAPPED
        )

    def complete(self, replay: SupervisedReplay, steps_before: int, policy_version: int) -> Round:
        """Collects until the replay has taken a round more than ``steps_before`` rows ever.

        Raises:
            RuntimeError: if an environment or worker raised, or no worker comes back.
        """
        result = Round()
        self._take(self._overlapped(), replay, result)
        while True:
            result.metrics = replay.call("metrics")
            missing = steps_before + self._num_rows - num_steps(result.metrics)
            if missing <= 0:  # less if a worker that seemed lost had sent its rows
                result.refusals = self._refusals
                return result
            job = self._job(replay.actor, policy_version)
            if self._num_workers:
                asked = self._healthy()[: max(1, missing // self._share)]
                outcomes = self._group.foreach_env_runner(
                    job, local_env_runner=False, remote_worker_ids=asked
                )
            else:
                outcomes = [job(self._group.local_env_runner)]
            self._take(outcomes, replay, result)

    def resend(self, actor: ActorHandle) -> None:
        """Has the workers send again what they sent in this round."""
        outcomes = self._group.foreach_env_runner(
            functools.partial(resend, replay=actor, round_number=self._number),
            local_env_runner=not self._num_workers,
        )
        self._raise_failures(outcomes)
        self._note_refusals(outcomes)

    def end_round(self) -> None:
        """Lets the workers drop the rows of the round: the learner's view has them."""
        self._number += 1
        self._refusals = []

    def abandon_round(self) -> None:
        """Waits for what is under way and forgets it."""
        self._overlapped()
        self.end_round()

    def _job(self, actor: ActorHandle, policy_version: int) -> Callable[..., Outcome]:
        return functools.partial(
            collect, replay=actor, round_number=self._number, policy_version=policy_version
        )

    def _overlapped(self) -> list[Outcome]:
        if not self._under_way:
            return []
        self._under_way = False
        ready = self._group.fetch_ready_async_reqs(tags=_OVERLAPPED, timeout_seconds=None)
        return [outcome for _, outcome in ready]

    def _take(self, outcomes: Sequence[Outcome], replay: SupervisedReplay, into: Round) -> None:
        self._raise_failures(outcomes)
        self._note_refusals(outcomes)
        for outcome in outcomes:
            if isinstance(outcome, ReplayLost):
                replay.replace(outcome.replay, outcome.reason)
            elif isinstance(outcome, Receipt):
                into.blocked_s += outcome.blocked_s

    def _note_refusals(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            if isinstance(outcome, Receipt):
                self._refusals += outcome.refusals
                for refusal in outcome.refusals:
                    logger.warning("Refused rows: %s", refusal)

    @staticmethod
    def _raise_failures(outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            if isinstance(outcome, Failure):
                raise RuntimeError(f"rollout worker {outcome.worker} failed:\n{outcome.traceback}")

    def _healthy(self) -> list[int]:
        """Workers that can be asked, waiting for a restart where there is none."""
        deadline = time.monotonic() + self._patience_s
        while not (healthy := self._group.healthy_worker_ids()):
            if time.monotonic() > deadline:
                raise RuntimeError("no rollout worker is alive")
            time.sleep(0.5)
            self._restore_workers()
        return healthy
