"""Has the rollout workers fill the replay, a round of ``n_interactions`` rows at a time.

What counts is what the replay has: a worker may die after its rows arrived there.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import ray
from ray._private.state import actors
from ray.actor import ActorHandle
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from qwr_rllib.replay.actor import Receipt
from qwr_rllib.replay.client import SupervisedReplay
from qwr_rllib.sampling.worker import Failure, Outcome, ReplayLost, collect, resend

logger = logging.getLogger("ray.rllib.qwr")

MAX_ROUNDS_WITHOUT_ROWS = 3
"""After so many in a row the run ends; so many restarts without an answer count as well."""

# Tags of RLlib's asynchronous calls.
_COLLECT, _OVERLAPPED, _RESEND = "qwr_collect", "qwr_overlapped", "qwr_resend"


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
        timeout_s: for how long an answer of a worker is waited for. One that gives none is killed,
            so that Ray restarts it; the local one cannot be interrupted.
    """

    def __init__(
        self,
        group: EnvRunnerGroup,
        num_workers: int,
        num_rows: int,
        restore_workers: Callable[[], object],
        patience_s: float,
        timeout_s: float,
    ) -> None:
        self._group = group
        self._num_workers = num_workers
        self._num_rows = num_rows
        self._share = num_rows // max(1, num_workers)
        self._restore_workers = restore_workers
        self._patience_s = patience_s
        self._timeout_s = timeout_s
        self._number = 0
        self._overlapped: list[Outcome] = []  # of a round that was begun, as far as it is over
        self._trouble: dict[int, str] = {}  # by worker: why it brought no rows last time
        self._refusals: list[str] = []  # of the round

    def begin(self, replay: SupervisedReplay, policy_version: int) -> None:
        """Starts a round that the next :meth:`complete` takes the rows of."""
        self._ask(self._job(replay.actor, policy_version), _OVERLAPPED)

    def wait(self) -> None:
        """Waits for the workers to end what was begun, at most for the time-out."""
        self._overlapped += self._answers(_OVERLAPPED)

    def complete(self, replay: SupervisedReplay, steps_before: int, policy_version: int) -> Round:
        """Collects until the replay has taken a round more than ``steps_before`` rows ever.

        Raises:
            RuntimeError: if an environment or worker raised, if no worker comes back, or if the
                workers bring no rows again and again.
        """
        result = Round()
        self.wait()
        overlapped, self._overlapped = self._overlapped, []
        self._take(overlapped, replay, result)
        num_fruitless, least_missing = 0, self._num_rows + 1
        while True:
            result.metrics = replay.call("metrics")
            missing = steps_before + self._num_rows - num_steps(result.metrics)
            if missing <= 0:  # less if a worker that seemed lost had sent its rows
                result.refusals = self._refusals
                return result
            num_fruitless = 0 if missing < least_missing else num_fruitless + 1
            least_missing = missing
            if num_fruitless == MAX_ROUNDS_WITHOUT_ROWS:
                raise RuntimeError(self._no_rows(f"in {MAX_ROUNDS_WITHOUT_ROWS} rounds"))
            job = self._job(replay.actor, policy_version)
            if self._num_workers:
                self._ask(job, _COLLECT, self._healthy()[: max(1, missing // self._share)])
                outcomes = self._answers(_COLLECT)
            else:
                outcomes = [job(self._group.local_env_runner)]
            self._take(outcomes, replay, result)

    def resend(self, actor: ActorHandle) -> None:
        """Has the workers send again what they sent in this round."""
        job = functools.partial(resend, replay=actor, round_number=self._number)
        if self._num_workers:
            self._ask(job, _RESEND)
            outcomes = self._answers(_RESEND)
        else:
            outcomes = [job(self._group.local_env_runner)]
        self._raise_failures(outcomes)
        self._note_refusals(outcomes)

    def end_round(self) -> None:
        """Lets the workers drop the rows of the round: the learner's view has them."""
        self._number += 1
        self._refusals = []

    def abandon_round(self) -> None:
        """Waits for what is under way and forgets it."""
        self.wait()
        self._overlapped = []
        self.end_round()

    def _job(self, actor: ActorHandle, policy_version: int) -> Callable[..., Outcome]:
        return functools.partial(
            collect, replay=actor, round_number=self._number, policy_version=policy_version
        )

    def _ask(
        self, job: Callable[..., Outcome], tag: str, workers: Sequence[int] | None = None
    ) -> None:
        """Has the healthy workers, or those given, do a job."""
        self._group.foreach_env_runner_async(job, tag=tag, remote_worker_ids=workers)

    def _answers(self, tag: str) -> list[Outcome]:
        """What became of the jobs; a worker that does not say so within the time-out is killed."""
        manager = self._group._worker_manager
        asked = set(manager._filter_calls_by_tag(tag)[1])
        ready = self._group.fetch_ready_async_reqs(tags=tag, timeout_seconds=self._timeout_s)
        silent = manager._filter_calls_by_tag(tag)[1]
        for worker in asked - set(silent) - {worker for worker, _ in ready}:
            self._trouble[worker] = "its process died"
        for worker in silent:
            self._trouble[worker] = f"no answer within sample_timeout_s ({self._timeout_s:g} s)"
            logger.warning(
                "Rollout worker %d is killed: %s; its environment hangs, or is slow and needs a "
                "longer sample_timeout_s",
                worker,
                self._trouble[worker],
            )
            manager.set_actor_state(worker, healthy=False)
            ray.kill(manager.actors()[worker], no_restart=not self._patience_s)
        return [outcome for _, outcome in ready]

    def _no_rows(self, when: str) -> str:
        trouble = ", ".join(f"worker {worker}: {why}" for worker, why in self._trouble.items())
        session = ray.get_runtime_context().get_session_name()
        return (
            f"the rollout workers brought no rows {when} ({trouble or 'no reason is known'}). Does "
            "the environment hang, or end its process? Step through it by itself, and see "
            f"worker-*.err in the logs of Ray's session {session} on the worker's node"
        )

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
        restarts_before = None
        while not (healthy := self._group.healthy_worker_ids()):
            if time.monotonic() > deadline:
                raise RuntimeError(self._no_rows("and none of them is alive"))
            restarts = self._num_restarts()
            restarts_before = restarts_before or restarts
            if all(
                restarts[worker] - before >= MAX_ROUNDS_WITHOUT_ROWS
                for worker, before in restarts_before.items()
            ):
                raise RuntimeError(self._no_rows(f"and died in {MAX_ROUNDS_WITHOUT_ROWS} restarts"))
            time.sleep(0.5)
            self._restore_workers()
        return healthy

    def _num_restarts(self) -> dict[int, int]:
        handles = self._group._worker_manager.actors()
        return {
            worker: int(actors(handle._actor_id.hex())["NumRestarts"])
            for worker, handle in handles.items()
        }
