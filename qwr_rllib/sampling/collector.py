"""Collection by the rollout workers into the replay, in rounds of ``n_interactions`` rows.

A row counts once the replay has it: a worker may die after sending its rows.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import ray
from ray.actor import ActorHandle
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from qwr_rllib._ray_compat import mark_unhealthy, num_restarts, unanswered, worker_handles
from qwr_rllib.replay.actor import Receipt
from qwr_rllib.replay.client import ReplayClient
from qwr_rllib.sampling.worker import Failure, Outcome, ReplayLost, collect, resend

logger = logging.getLogger("ray.rllib.qwr")

MAX_ROUNDS_WITHOUT_ROWS = 3
"""The run ends after this many rounds in a row without rows, or restarts without an answer."""

# Tags of RLlib's asynchronous calls.
_COLLECT, _OVERLAPPED, _RESEND = "qwr_collect", "qwr_overlapped", "qwr_resend"


@dataclass
class Round:
    """The outcome of a round, without its rows."""

    metrics: dict[str, int] = field(default_factory=dict)
    """The replay's metrics at the end."""
    blocked_s: float = 0.0
    """Seconds that workers waited for the replay, summed over workers."""
    refusals: list[str] = field(default_factory=list)
    """A line for each refused fragment."""


def num_steps(metrics: dict[str, int]) -> int:
    """Returns the environment steps that reached the replay so far, from its metrics."""
    return metrics["num_rows_inserted_lifetime"] + metrics["num_rows_refused_lifetime"]


class RolloutWorkers:
    """The rollout workers of a group, which run jobs that collect rows.

    Args:
        group: the rollout workers, or a local worker alone.
        num_workers: number of rollout workers; 0 for the local worker.
        restore_workers: takes restarted workers back into the group.
        patience_s: seconds to wait for a restart if no worker is left; 0 if workers are not
            restarted.
        timeout_s: seconds to wait for a worker's answer. A worker without an answer is killed, so
            that Ray restarts it; the local worker cannot be interrupted.
    """

    def __init__(
        self,
        group: EnvRunnerGroup,
        num_workers: int,
        restore_workers: Callable[[], object],
        patience_s: float,
        timeout_s: float,
    ) -> None:
        self._group = group
        self.num_workers = num_workers
        self._restore_workers = restore_workers
        self._patience_s = patience_s
        self._timeout_s = timeout_s
        self.round_number = 0
        """Grows when the learner's view has the rows; the workers then drop theirs."""
        self.refusals: list[str] = []
        """One line for each refused run of rows in this round."""
        self._trouble: dict[int, str] = {}  # by worker: why it brought no rows last time

    def ask(
        self, job: Callable[..., Outcome], tag: str, workers: Sequence[int] | None = None
    ) -> None:
        """Starts a job in the healthy remote workers, or in those given."""
        self._group.foreach_env_runner_async(job, tag=tag, remote_worker_ids=workers)

    def answers(self, tag: str) -> list[Outcome]:
        """Waits for the jobs of a tag and returns their outcomes.

        Raises:
            RuntimeError: if an environment or worker raised.
        """
        asked = set(unanswered(self._group, tag))
        ready = self._group.fetch_ready_async_reqs(tags=tag, timeout_seconds=self._timeout_s)
        silent = unanswered(self._group, tag)
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
            mark_unhealthy(self._group, worker)
            ray.kill(worker_handles(self._group)[worker], no_restart=not self._patience_s)
        return self._checked([outcome for _, outcome in ready])

    def do(
        self, job: Callable[..., Outcome], tag: str, workers: Sequence[int] | None = None
    ) -> list[Outcome]:
        """Runs a job in the workers and waits; see :meth:`ask` and :meth:`answers`."""
        if not self.num_workers:
            return self._checked([job(self._group.local_env_runner)])
        self.ask(job, tag, workers)
        return self.answers(tag)

    def resend(self, actor: ActorHandle) -> None:
        """Makes the workers send this round's rows again, to ``actor``."""
        self.do(functools.partial(resend, replay=actor, round_number=self.round_number), _RESEND)

    def end_round(self) -> None:
        """Lets the workers drop the rows of the round: the learner's view has them."""
        self.round_number += 1
        self.refusals = []

    def healthy(self) -> list[int]:
        """Returns the healthy workers; waits for a restart if there are none.

        Raises:
            RuntimeError: if no worker comes back.
        """
        deadline = time.monotonic() + self._patience_s
        restarts_before = None
        while not (healthy := self._group.healthy_worker_ids()):
            if time.monotonic() > deadline:
                raise RuntimeError(self.no_rows("and none of them is alive"))
            handles = worker_handles(self._group)
            restarts = {worker: num_restarts(handle) for worker, handle in handles.items()}
            restarts_before = restarts_before or restarts
            if all(
                restarts[worker] - before >= MAX_ROUNDS_WITHOUT_ROWS
                for worker, before in restarts_before.items()
            ):
                raise RuntimeError(self.no_rows(f"and died in {MAX_ROUNDS_WITHOUT_ROWS} restarts"))
            time.sleep(0.5)
            self._restore_workers()
        return healthy

    def no_rows(self, when: str) -> str:
        """Returns a message: there were no rows, what is known of each worker, where to look."""
        trouble = ", ".join(f"worker {worker}: {why}" for worker, why in self._trouble.items())
        session = ray.get_runtime_context().get_session_name()
        return (
            f"the rollout workers brought no rows {when} ({trouble or 'no reason is known'}). Does "
            "the environment hang, or end its process? Step through it by itself, and see "
            f"worker-*.err in the logs of Ray's session {session} on the worker's node"
        )

    def _checked(self, outcomes: list[Outcome]) -> list[Outcome]:
        for outcome in outcomes:
            if isinstance(outcome, Failure):
                raise RuntimeError(f"rollout worker {outcome.worker} failed:\n{outcome.traceback}")
            if isinstance(outcome, Receipt):
                self.refusals += outcome.refusals
                for refusal in outcome.refusals:
                    logger.warning("Refused rows: %s", refusal)
        return outcomes


class Collector:
    """A collector of rows by rollout workers; other workers collect what a lost one owes.

    Args:
        workers: the workers that collect.
        replay: the replay to which they send the rows.
        num_rows: rows per round; a multiple of the number of workers.
    """

    def __init__(self, workers: RolloutWorkers, replay: ReplayClient, num_rows: int) -> None:
        self._workers = workers
        self._replay = replay
        self._num_rows = num_rows
        self._share = num_rows // max(1, workers.num_workers)
        self._overlapped: list[Outcome] = []  # finished part of a round that was begun

    def begin(self, policy_version: int) -> None:
        """Starts a round, whose rows the next :meth:`complete` takes."""
        self._workers.ask(self._job(policy_version), _OVERLAPPED)

    def wait(self) -> None:
        """Waits for the workers to end the round that was begun, at most for the time-out."""
        self._overlapped += self._workers.answers(_OVERLAPPED)

    def complete(self, steps_before: int, policy_version: int) -> Round:
        """Collects until the replay has received ``steps_before`` and a round of rows in total.

        Raises:
            RuntimeError: if an environment or worker raised, if no worker comes back, or if the
                workers bring no rows again and again.
        """
        result = Round()
        self.wait()
        overlapped, self._overlapped = self._overlapped, []
        self._take(overlapped, result)
        num_fruitless, least_missing = 0, self._num_rows + 1
        while True:
            result.metrics = self._replay.call("metrics")
            missing = steps_before + self._num_rows - num_steps(result.metrics)
            if missing <= 0:  # < 0 if a worker that seemed lost had sent its rows
                result.refusals = self._workers.refusals
                return result
            num_fruitless = 0 if missing < least_missing else num_fruitless + 1
            least_missing = missing
            if num_fruitless == MAX_ROUNDS_WITHOUT_ROWS:
                raise RuntimeError(self._workers.no_rows(f"in {MAX_ROUNDS_WITHOUT_ROWS} rounds"))
            asked = None
            if self._workers.num_workers:
                asked = self._workers.healthy()[: max(1, missing // self._share)]
            self._take(self._workers.do(self._job(policy_version), _COLLECT, asked), result)

    def end_round(self) -> None:
        """Lets the workers drop the rows of the round: the learner's view has them."""
        self._workers.end_round()

    def abandon_round(self) -> None:
        """Waits for the running round and drops its outcomes."""
        self.wait()
        self._overlapped = []
        self.end_round()

    def _job(self, policy_version: int) -> Callable[..., Outcome]:
        return functools.partial(
            collect,
            replay=self._replay.actor,
            round_number=self._workers.round_number,
            policy_version=policy_version,
        )

    def _take(self, outcomes: Sequence[Outcome], into: Round) -> None:
        for outcome in outcomes:
            if isinstance(outcome, ReplayLost):
                self._replay.replace(outcome.replay, outcome.reason)
            elif isinstance(outcome, Receipt):
                into.blocked_s += outcome.blocked_s
