"""Interruption of a run by Ctrl-C, after a checkpoint of every running trial."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.result import SHOULD_CHECKPOINT
from rich.console import Console

# Signals within this many seconds count as one: `timeout` sends SIGTERM to its child and then to
# the child's process group, and programs that forward a terminal's SIGINT also double it.
SAME_SIGNAL_S = 1.0


class Interruption(Callback):
    """A callback that ends a run on SIGINT or SIGTERM, after running trials saved a checkpoint.

    Tune's own handler saves the state of the experiment but not of its trials, which would lose
    their progress since the last checkpoint. Trials without checkpoints are not waited for.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self.requested = False
        self._requested_at = 0.0
        self._unsaved: set[str] | None = None

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Handles SIGINT and SIGTERM within the block; the second signal aborts.

        Raises:
            KeyboardInterrupt: On the second signal.
        """
        signals = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, self._on_signal) for number in signals]
        try:
            yield
        finally:
            for number, handler in zip(signals, before, strict=True):
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.requested and now - self._requested_at > SAME_SIGNAL_S:
            raise KeyboardInterrupt
        if not self.requested:
            self.requested, self._requested_at = True, now

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        if self.requested and self._unsaved is None:
            # Not in the handler: the signal may have interrupted another print.
            self._console.print(
                "Interrupted: waiting for the running iterations and their checkpoints; "
                "once more (Ctrl-C) ends at once",
                style="yellow",
                soft_wrap=True,
            )
            self._unsaved = {
                trial.trial_id
                for trial in trials
                if trial.status == Trial.RUNNING
                and (trial.checkpoint_freq or trial.checkpoint_at_end)
            }

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        if trial.trial_id in (self._unsaved or ()):
            result[SHOULD_CHECKPOINT] = True

    def on_trial_save(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        if self._unsaved:
            self._unsaved.discard(trial.trial_id)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        if self._unsaved is None:
            return
        running = {trial.trial_id for trial in trials if trial.status == Trial.RUNNING}
        self._unsaved &= running
        if not self._unsaved:
            # Tune ends its loop on this signal, and saves the state of the experiment.
            signal.raise_signal(signal.SIGUSR1)
