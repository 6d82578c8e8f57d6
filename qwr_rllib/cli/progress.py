"""Progress of a run on the terminal: one line per training iteration of each trial."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

import rich.progress
from ray.tune import Callback
from ray.tune.error import TuneError
from ray.tune.experiment import Trial
from ray.tune.utils import flatten_dict
from rich.console import Console
from rich.progress import BarColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.progress_bar import ProgressBar

from qwr_rllib.validation import did_you_mean

ITERATION = "training_iteration"
ENV_STEPS = "num_env_steps_sampled_lifetime"
TIME = "time_total_s"
RETURN = "env_runners/episode_return_mean"
COUNTERS = (ITERATION, ENV_STEPS, TIME)
"""Results that grow steadily: the remaining time is estimated from them."""

EVALUATION = f"evaluation/{RETURN}"
EPISODE_RETURNS = "env_runners/hist_stats/episode_reward"
NEW_EPISODES = "env_runners/episodes_this_iter"

COLUMNS = {
    ("", "iter"): 6,
    ("env", "steps"): 9,
    ("", "return"): 9,
    ("evaluated", "return"): 10,
    ("critic", "loss"): 10,
    ("actor", "loss"): 9,
    ("updates", "per s"): 10,
    ("", "elapsed"): 8,
    ("", "left"): 8,
}
"""The two lines of each column's title, and its width; the sum of widths is 79."""
TRIAL_WIDTH = 6
LEFT_OUT = ("actor", "loss")
"""The column that the trial's name replaces if there are several trials."""
HEADER_EVERY_S = 600


def number(value: float | None, spec: str = ".1f") -> str:
    """Formats a number; ``-`` for ``None`` and NaN (a mean return before an episode ended)."""
    return "-" if value is None or math.isnan(value) else format(value, spec)


def duration(seconds: float | None) -> str:
    """Formats seconds as ``1:02:03``; ``-`` for ``None``."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def seconds_left(result: Mapping[str, Any], stop: Mapping[str, float]) -> float | None:
    """Estimates the seconds that a trial still takes; ``None`` if ``stop`` does not tell."""
    return min(
        (
            result[TIME] * max(0, stop[key] - result[key]) / result[key]
            for key in COUNTERS
            if key in stop and result.get(key)
        ),
        default=None,
    )


def iteration_return(result: Mapping[str, Any]) -> float | None:
    """Returns the mean return of the episodes that ended in this iteration; ``None`` without one.

    RLlib's own mean is of the last 100 episodes and lags behind by many iterations. It is returned
    for algorithms that do not report single episodes (those on the new API stack).
    """
    returns = result.get(EPISODE_RETURNS)
    if returns is None:
        return result.get(RETURN)
    new = returns[len(returns) - result.get(NEW_EPISODES, 0) :]
    return fmean(new) if new else None


def short_name(trial: Trial) -> str:
    """Returns the end of the trial's id, which identifies it within an experiment."""
    return trial.trial_id[-5:]


def row(result: Mapping[str, Any], stop: Mapping[str, float], elapsed: float) -> list[str]:
    """Returns a flat result's values for the columns; ``-`` for those that are not reported."""
    updates = [result.get(f"learner/{network}_updates_per_s") for network in ("critic", "actor")]
    return [
        number(result.get(ITERATION), ".0f"),
        number(result.get(ENV_STEPS), ".0f"),
        number(iteration_return(result)),
        number(result.get(EVALUATION)),
        number(result.get("learner/critic_loss"), ".3g"),
        number(result.get("learner/actor_loss"), ".3g"),
        "/".join(number(value, ".0f") for value in updates) if any(updates) else "-",
        duration(elapsed),
        duration(seconds_left(result, stop)),
    ]


class _ExpectedTimeColumn(BarColumn):
    """A bar of the elapsed time as a share of the previous iteration's time."""

    def render(self, task: Task) -> ProgressBar:
        if task.total is not None:
            task.completed = min(task.elapsed or 0, task.total)
        return super().render(task)


class Progress(Callback):
    """A callback that prints a line for each result and each start, restart or failure of a trial.

    On a terminal there is a bar for each running trial below these lines. A trial cannot be asked
    while it trains, so the bar assumes the time of its previous iteration.

    Args:
        console: The console to print to.
        stop: The experiment's flat stop criteria.
        show_trials: Whether lines begin with the trial's name, for several trials.
        resumed: The ids of the trials to resume; empty in a new run.
    """

    def __init__(
        self, console: Console, stop: Mapping[str, float], show_trials: bool, resumed: set[str]
    ) -> None:
        self._console = console
        self._stop = stop
        self._show_trials = show_trials
        self._resumed = resumed
        self._began = time.monotonic()
        self._header_at = -math.inf
        self._warned: set[str] = set()
        self._bars = rich.progress.Progress(
            TextColumn("{task.description}"),
            _ExpectedTimeColumn(bar_width=30),
            TimeElapsedColumn(),
            TextColumn("{task.fields[expected]}"),
            console=console,
            transient=True,
            refresh_per_second=2,
            disable=not console.is_terminal,
        )
        self._bar_of: dict[str, TaskID] = {}

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Shows the bars within the block."""
        with self._bars:
            yield

    def _say(self, text: str, style: str | None = None) -> None:
        self._console.print(text, style=style, soft_wrap=True, highlight=False, markup=False)

    def _begin_bar(self, trial: Trial, done: int, took: float) -> None:
        """Shows a bar of the iteration after ``done``; the previous one took ``took`` seconds."""
        name = f"trial {short_name(trial)}, " if self._show_trials else ""
        self._bar_of[trial.trial_id] = self._bars.add_task(
            f"{name}iteration {done + 1}",
            total=took or None,
            expected=f"of about {duration(took)}" if took else "",
        )

    def _end_bar(self, trial: Trial) -> None:
        bar = self._bar_of.pop(trial.trial_id, None)
        if bar is not None:
            self._bars.remove_task(bar)

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        # If Tune cannot read its state, it only logs this and begins a new run.
        if self._resumed - {trial.trial_id for trial in trials}:
            raise TuneError("Tune could not restore the trials; -v shows why")

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        saved = trial.latest_checkpoint_result
        done = saved.metrics.get(ITERATION, 0) if saved and saved.checkpoint else 0
        if done:
            self._say(f"{trial}: goes on after iteration {done}, from {saved.checkpoint.path}")
        elif self._resumed:
            self._say(f"{trial}: has no checkpoint, starts from the beginning", "yellow")
        else:
            # Tune's tag is "0", or "1_margin=3,seed=0" at a point of a grid or a search.
            point = trial.experiment_tag.partition("_")[2]
            self._say(f"{trial}: started" + (f", {point}" if point else ""))
        self._begin_bar(trial, done, 0)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        flat = flatten_dict(result)
        for metric in self._stop.keys() - flat.keys() - self._warned:
            self._warned.add(metric)
            hint = did_you_mean(metric, flat.keys())
            self._say(f"Stop criterion {metric!r} is not among the results so far{hint}", "yellow")
        shown = dict(COLUMNS)
        cells = row(flat, self._stop, time.monotonic() - self._began)
        if self._show_trials:
            del cells[list(shown).index(LEFT_OUT)], shown[LEFT_OUT]
            shown = {("", "trial"): TRIAL_WIDTH} | shown
            cells.insert(0, short_name(trial))
        if time.monotonic() - self._header_at > HEADER_EVERY_S:
            self._header_at = time.monotonic()
            for line in zip(*shown, strict=True):
                titles = map(str.rjust, line, shown.values())
                self._say("".join(titles), "bold")
        # The space separates a value that is too long for its column from the one before.
        padded = (f" {value}".rjust(w) for value, w in zip(cells, shown.values(), strict=True))
        self._say("".join(padded))
        self._end_bar(trial)
        if seconds_left(flat, self._stop) != 0:
            self._begin_bar(trial, flat.get(ITERATION, 0), flat.get("time_this_iter_s", 0))

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self._end_bar(trial)

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self._end_bar(trial)
        self._say(f"{trial}: failed", "red")

    def on_trial_recover(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self._end_bar(trial)
        self._say(f"{trial}: failed {trial.num_failures} times, starts again", "yellow")
