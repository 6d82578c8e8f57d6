"""What a run shows while it goes on: one line per training iteration of each trial."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from ray.tune import Callback
from ray.tune.error import TuneError
from ray.tune.experiment import Trial
from ray.tune.utils import flatten_dict
from rich.console import Console

from qwr_rllib.names import did_you_mean

ITERATION = "training_iteration"
ENV_STEPS = "num_env_steps_sampled_lifetime"
TIME = "time_total_s"
RETURN = "env_runners/episode_return_mean"
COUNTERS = (ITERATION, ENV_STEPS, TIME)
"""Results that grow steadily: how long a run still takes can be told from them."""

COLUMN_WIDTHS = {
    "iteration": 10,
    "env steps": 15,
    "return": 9,
    "critic loss": 13,
    "actor loss": 12,
    "updates/s": 11,
    "evaluation": 12,
    "elapsed": 9,
    "left": 9,
}
HEADER_EVERY_S = 600


def number(value: float | None, spec: str = ".1f") -> str:
    """The formatted number, ``-`` for ``None`` and NaN (a mean return before an episode ended)."""
    return "-" if value is None or math.isnan(value) else format(value, spec)


def duration(seconds: float | None) -> str:
    """``1:02:03``, or ``-`` for ``None``."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def seconds_left(result: Mapping[str, Any], stop: Mapping[str, float]) -> float | None:
    """What a trial still takes at the pace it had so far; ``None`` where ``stop`` cannot tell."""
    return min(
        (
            result[TIME] * max(0, stop[key] - result[key]) / result[key]
            for key in COUNTERS
            if key in stop and result.get(key)
        ),
        default=None,
    )


def row(result: Mapping[str, Any], stop: Mapping[str, float]) -> list[str]:
    """A flat result's values for the columns, ``-`` for those the algorithm does not report."""

    def of_total(key: str) -> str:
        return number(result.get(key), ".0f") + (f"/{stop[key]:.0f}" if key in stop else "")

    updates = [result.get(f"learner/{network}_updates_per_s") for network in ("critic", "actor")]
    return [
        of_total(ITERATION),
        of_total(ENV_STEPS),
        number(result.get(RETURN)),
        number(result.get("learner/critic_loss"), ".4g"),
        number(result.get("learner/actor_loss"), ".4g"),
        "/".join(number(value, ".0f") for value in updates) if any(updates) else "-",
        number(result.get(f"evaluation/{RETURN}")),
        duration(result.get(TIME)),
        duration(seconds_left(result, stop)),
    ]


class Progress(Callback):
    """Prints a line for each result, and one when a trial goes on, fails or starts again.

    Args:
        console: Where to.
        stop: The experiment's flat stopping criteria.
        show_trials: Whether lines begin with the trial's name: there are several.
        resumed: The ids of the trials to go on with; none in a new run.
    """

    def __init__(
        self, console: Console, stop: Mapping[str, float], show_trials: bool, resumed: set[str]
    ) -> None:
        self._console = console
        self._stop = stop
        self._show_trials = show_trials
        self._resumed = resumed
        self._header_at = -math.inf
        self._warned: set[str] = set()

    def _say(self, text: str, style: str | None = None) -> None:
        self._console.print(text, style=style, soft_wrap=True, highlight=False, markup=False)

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        # When Tune cannot read its state it logs that and begins a new run.
        if self._resumed - {trial.trial_id for trial in trials}:
            raise TuneError("Tune could not restore the trials; -v shows why")

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        if (saved := trial.latest_checkpoint_result) and saved.checkpoint:
            done = saved.metrics.get(ITERATION)
            self._say(f"{trial}: goes on after iteration {done}, from {saved.checkpoint.path}")
        elif self._resumed:
            self._say(f"{trial}: has no checkpoint, starts from the beginning", "yellow")

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        flat = flatten_dict(result)
        for metric in self._stop.keys() - flat.keys() - self._warned:
            self._warned.add(metric)
            hint = did_you_mean(metric, flat.keys())
            self._say(f"Stop criterion {metric!r} is not among the results so far{hint}", "yellow")
        margin = len(str(trial)) if self._show_trials else 0
        if time.monotonic() - self._header_at > HEADER_EVERY_S:
            self._header_at = time.monotonic()
            titles = (title.rjust(width) for title, width in COLUMN_WIDTHS.items())
            self._say(" " * margin + "".join(titles), "bold")
        cells = zip(row(flat, self._stop), COLUMN_WIDTHS.values(), strict=True)
        line = "".join(f"  {value}".rjust(width) for value, width in cells)
        self._say((str(trial) if self._show_trials else "") + line)

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self._say(f"{trial}: failed", "red")

    def on_trial_recover(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self._say(f"{trial}: failed {trial.num_failures} times, starts again", "yellow")
