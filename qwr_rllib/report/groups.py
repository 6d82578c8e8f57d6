"""Groups of trials that differ only in their seed, and the choice of those to average."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from qwr_rllib.report import paper
from qwr_rllib.report.trials import FINISHED, Trial

NO_DIFFERENCE = (
    "_",
    "callbacks",
    "checkpoint",
    "compile",
    "custom_resources",
    "delay_between_env_runner_restarts_s",
    "env_runner_restore_timeout_s",
    "evaluation_",
    "extra_python_environs",
    "learner_threads",
    "log_",
    "logger",
    "num_consecutive_env_runner_failures_tolerance",
    "num_cpus",
    "num_gpus",
    "placement_strategy",
    "restart_failed_env_runners",
    "seed",
    "worker_health",
)
"""Prefixes of config keys that change how a trial runs, not what it learns."""

FIRST_KEYS = ("backup", "margin", "n_action_samples")
"""The axes of the paper's ablation, in its order; other keys come after these."""

ABSENT = object()


@dataclass
class Group:
    """Trials that differ only in their seeds."""

    algorithm: str
    env: str
    settings: dict[str, Any]
    """The config keys in which groups of the same algorithm and environment differ."""
    label: str = ""
    trials: list[Trial] = field(default_factory=list)
    """Finished trials with different seeds and the same number of steps: they are averaged."""
    others: list[Trial] = field(default_factory=list)
    """Unfinished, failed and other trials: they are listed and never averaged."""

    @property
    def task(self) -> str:
        """The paper's name of the environment."""
        return paper.task(self.env)

    @property
    def env_steps(self) -> int:
        """Environment steps of the longest averaged trial; 0 if there is none."""
        return max((trial.env_steps for trial in self.trials), default=0)

    @property
    def offline(self) -> bool:
        """Whether its trials learn from logged data alone."""
        return any(trial.offline for trial in self.trials + self.others)

    @property
    def budget(self) -> str:
        """Environment steps of each averaged trial, or iterations on logged data."""
        if not self.offline:
            return f"{self.env_steps:,}".replace(",", " ")
        count = max((trial.budget for trial in self.trials), default=0)
        return f"{count} iterations on logged data"

    @property
    def variant(self) -> str:
        """The paper's name of the algorithm."""
        if self.algorithm != "QWR":
            return self.algorithm
        config = (self.trials + self.others)[0].config
        return paper.VARIANTS.get(config.get("backup", ""), "QWR")

    def scores(self, column: str) -> list[float]:
        """Returns the averaged trials' ``evaluation_score`` or ``training_score``, without NaN."""
        values = [getattr(trial, column) for trial in self.trials]
        return [value for value in values if value == value]


def group(trials: Iterable[Trial]) -> list[Group]:
    """Groups trials by algorithm, environment, kind of data and all settings but the seed.

    Sets ``reason`` in the trials that are finished but not averaged.
    """
    kinds: dict[tuple[str, str, bool], list[Trial]] = defaultdict(list)
    for trial in trials:
        if trial.config:
            kinds[trial.env, trial.algorithm, trial.offline].append(trial)
    groups: list[Group] = []
    algorithms = {algorithm for _, algorithm, _ in kinds}
    for (env, algorithm, _), members in sorted(kinds.items()):
        keys = varying(members)
        cells: dict[str, Group] = {}
        for trial in members:
            # Before its first result, a trial's config lacks the defaults.
            settings = {key: _setting(trial.config, key) for key in keys}
            if ABSENT in settings.values():
                continue
            cell = cells.setdefault(_text(settings), Group(algorithm, env, settings))
            cell.others.append(trial)
        for cell in cells.values():
            words = [f"{key}={short(value)}" for key, value in cell.settings.items()]
            if len(algorithms) > 1 or not words:
                words.insert(0, algorithm)
            cell.label = ", ".join(words)
            _choose(cell)
        groups += sorted(cells.values(), key=lambda cell: sort_key(cell.settings.values()))
    return groups


def varying(trials: Sequence[Trial]) -> list[str]:
    """Returns the config keys in which the trials differ, the paper's axes first.

    Compares trials with results if there are any, as only their configs have the defaults. A key
    that some of them lack, such as one of a later release, is no difference. A mapping such as
    ``offline`` that is empty or null in some of them is one setting.
    """
    complete = [trial.config for trial in trials if len(trial.rows)]
    configs = complete or [trial.config for trial in trials]
    keys = []
    for key in sorted(set().union(*configs)):
        if key.startswith(NO_DIFFERENCE) or "/_" in key:
            continue
        values = [_setting(config, key) for config in configs]
        if ABSENT not in values and len(set(map(_text, values))) > 1:
            keys.append(key)
    return sorted(
        keys, key=lambda key: FIRST_KEYS.index(key) if key in FIRST_KEYS else len(FIRST_KEYS)
    )


def _setting(config: dict[str, Any], key: str) -> Any:
    """Returns a key's value in a flat config, a mapping as one value; ``ABSENT`` without it."""
    if key in config:
        return config[key]
    inside = f"{key}/"
    return {
        name.removeprefix(inside): value
        for name, value in config.items()
        if name.startswith(inside)
    } or ABSENT


def _choose(cell: Group) -> None:
    """Moves the trials that may be averaged from ``others`` to ``trials``."""
    finished = [trial for trial in cell.others if trial.status == FINISHED]
    budget = max((trial.budget for trial in finished), default=0)
    by_seed: dict[Any, Trial] = {}
    for trial in sorted(finished, key=lambda trial: trial.date):
        # The last iteration may be a few rows longer or shorter.
        if trial.budget < 0.99 * budget:
            unit = "iterations" if trial.offline else "steps"
            trial.reason = f"ended at {trial.budget} {unit}, others at {budget}"
            continue
        key = trial.folder if trial.seed is None else trial.seed
        if key in by_seed:
            by_seed[key].reason = f"same seed as the later trial in {trial.folder}"
        by_seed[key] = trial
    cell.trials = sorted(by_seed.values(), key=lambda trial: (trial.seed or 0, trial.trial_id))
    chosen = {trial.folder for trial in cell.trials}
    cell.others = [trial for trial in cell.others if trial.folder not in chosen]


def sort_key(values: Iterable[Any]) -> tuple[Any, ...]:
    """Returns a sort key that puts numbers, by their size, before words."""
    return tuple(
        (1, 0.0, str(value)) if isinstance(value, bool | str) or value is None
        else (0, float(value), "") if isinstance(value, int | float)
        else (2, 0.0, _text(value))
        for value in values
    )  # fmt: skip


def short(value: Any) -> str:
    """Returns a setting's value as text for a label."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
