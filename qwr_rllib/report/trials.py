"""The trials in Tune's result folders, including running and killed ones."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from qwr_rllib.report import COMMANDS_FILE, counted

FINISHED = "finished"
STOPPED_EARLY = "stopped early"
UNFINISHED = "unfinished"
FAILED = "failed"

COLUMNS = {
    "training_iteration": "iteration",
    "num_env_steps_sampled_lifetime": "env_steps",
    "time_total_s": "seconds",
    "env_runners/episode_return_mean": "training_return",
    "evaluation/env_runners/episode_return_mean": "evaluation_return",
    "learner/critic_loss": "critic_loss",
    "learner/actor_loss": "actor_loss",
    "learner/q_mean": "q_mean",
    "learner/target_mean": "target_mean",
    "learner/weight_ess": "weight_ess",
}
"""The results that are kept, with their names in a report. Steps are environment steps."""

EPISODE_RETURNS = ("env_runners", "hist_stats", "episode_reward")
TRAINING_EPISODES = 10
"""Number of last training episodes whose mean return is shown beside the evaluation."""


class NoResultsError(ValueError):
    """Raised if there is nothing to report on."""


@dataclass
class Trial:
    """One trial, as far as it ran."""

    folder: Path
    trial_id: str
    algorithm: str
    env: str
    seed: int | None
    config: dict[str, Any]
    """Flat config; it has the defaults after the first result."""
    rows: pd.DataFrame
    """A row for each iteration, see :data:`COLUMNS`."""
    status: str
    reason: str = ""
    """Why it is not finished, or is finished but not averaged."""
    training_score: float = math.nan
    """Mean return of the last 10 episodes of training."""
    evaluation_episodes: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    unreadable: list[int] = field(default_factory=list)
    """Numbers, from 1, of the lines in its ``result.json`` that are no results."""
    date: str = ""
    """Date of the last result."""

    @property
    def env_steps(self) -> int:
        """Environment steps so far."""
        return int(self.rows.env_steps.iloc[-1]) if len(self.rows) else 0

    @property
    def offline(self) -> bool:
        """Whether it learns from logged data alone."""
        return "offline/dataset" in self.config and self.config.get("offline/iterations") is None

    @property
    def budget(self) -> int:
        """Environment steps so far, or iterations if it trains on logged data alone."""
        return len(self.rows) if self.offline else self.env_steps

    @property
    def evaluation_score(self) -> float:
        """Mean return of the last evaluation; NaN without one."""
        evaluated = self.rows.evaluation_return.dropna()
        return float(evaluated.iloc[-1]) if len(evaluated) else math.nan

    @property
    def name(self) -> str:
        """``experiment/trial id``."""
        return f"{self.folder.parent.name}/{self.trial_id}"


def read(paths: Sequence[Path]) -> list[Trial]:
    """Reads all trials below the paths: folders of trials, of experiments, or of several of these.

    Raises:
        NoResultsError: naming the path that is missing or has no results of an RLlib algorithm.
    """
    trials: dict[Path, Trial] = {}
    for path in paths:
        if not path.is_dir():
            raise NoResultsError(f"{path}: no such folder")
        found = {trial.folder: trial for trial in _read_below(path.resolve())}
        if not found:
            raise NoResultsError(f"{path}: no results of Tune in this folder")
        if not any(len(trial.rows) for trial in found.values()):
            first = next(iter(found.values()))
            raise NoResultsError(f"{path}: no trial has results; {first.name}: {first.reason}")
        trials |= found
    return sorted(trials.values(), key=lambda trial: (str(trial.folder.parent), trial.trial_id))


def commands(trials: Sequence[Trial]) -> list[str]:
    """Returns the commands that started the trials' experiments, if they were recorded."""
    noted: dict[str, None] = {}
    for folder in dict.fromkeys(trial.folder.parent for trial in trials):
        try:
            noted |= dict.fromkeys((folder / COMMANDS_FILE).read_text().splitlines())
        except OSError:
            continue
    return list(noted)


def _read_below(path: Path) -> Iterator[Trial]:
    experiments = [path.parent] if _is_trial(path) else [path, *sorted(path.iterdir())]
    for experiment in experiments:
        if not experiment.is_dir() or (_is_trial(experiment) and experiment != path.parent):
            continue
        states = _states(experiment)
        folders = [path] if _is_trial(path) else sorted(filter(_is_trial, experiment.iterdir()))
        for folder in folders:
            yield _read_trial(folder, states.pop(folder.name, {}))
        if _is_trial(path):
            return
        for name, state in states.items():
            yield _read_trial(experiment / name, state)


def _is_trial(folder: Path) -> bool:
    return (folder / "result.json").is_file() or (folder / "params.json").is_file()


def _states(experiment: Path) -> dict[str, dict[str, Any]]:
    """Reads each trial's state, by its folder's name, from Tune's newest readable state file."""
    for file in sorted(experiment.glob("experiment_state-*.json"), reverse=True):
        try:
            entries = [json.loads(entry[0]) for entry in json.loads(file.read_text())["trial_data"]]
            return {entry["relative_logdir"]: entry for entry in entries}
        except (OSError, ValueError, LookupError, TypeError):
            continue
    return {}


def _results(file: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """Returns the results in a file, and the numbers of its lines that are no results.

    A trial that was resumed from a checkpoint, or restarted, repeats some iterations. The repeated
    ones count; those of the abandoned run, and all later ones of it, are dropped.
    """
    results: list[dict[str, Any]] = []
    broken = []
    with open(file, errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            try:
                result = json.loads(line)
                iteration = result["training_iteration"]
            except (ValueError, LookupError, TypeError):
                if line.strip():
                    broken.append(number)
                continue
            while results and results[-1]["training_iteration"] >= iteration:
                results.pop()
            results.append(result)
    return results, broken


def unreadable_text(lines: Sequence[int]) -> str:
    """Returns ``2 unreadable lines in result.json (3, 7)``; names at most five lines."""
    named = ", ".join(map(str, lines[:5])) + (", ..." if len(lines) > 5 else "")
    return f"{counted(len(lines), 'unreadable line')} in result.json ({named})"


def _look_up(result: dict[str, Any], path: Sequence[str]) -> Any:
    found: Any = result
    for key in path:
        if not isinstance(found, dict) or key not in found:
            return None
        found = found[key]
    return found


def _number(value: Any) -> float:
    good = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if good else math.nan


def _read_trial(folder: Path, state: dict[str, Any]) -> Trial:
    file = folder / "result.json"
    results, broken = _results(file) if file.is_file() else ([], [])
    notes = [unreadable_text(broken)] if broken else []
    last = results[-1] if results else {}
    paths = {name: key.split("/") for key, name in COLUMNS.items()}
    rows = pd.DataFrame(
        [
            {name: _number(_look_up(result, path)) for name, path in paths.items()}
            for result in results
        ],
        columns=list(COLUMNS.values()),
    )
    # Every RLlib algorithm reports these keys; a user's own trainable does not. The return itself
    # is NaN until an episode has ended.
    foreign = bool(last) and not {"num_env_steps_sampled_lifetime", "env_runners"} <= last.keys()
    config = _flat(last.get("config") or state.get("config") or _params(folder))
    status, reason = _status(folder, state, last)
    if not results:
        reason = reason or "no result yet"
    if foreign:
        status, reason = FAILED, "has no returns: not the results of an RLlib algorithm"
        rows = rows.iloc[:0]
    evaluated = [result for result in results if result.get("evaluation")]
    if evaluated and evaluated[-1] is not last and status == FINISHED:
        at = _number(evaluated[-1].get("num_env_steps_sampled_lifetime"))
        notes.append(f"last evaluation at {at:.0f} steps")
    returns = [_number(value) for value in _look_up(last, EPISODE_RETURNS) or []]
    returns = returns[-TRAINING_EPISODES:]
    episodes = _look_up(evaluated[-1], ("evaluation", *EPISODE_RETURNS)) if evaluated else None
    seed = config.get("seed")
    algorithm = str(state.get("trainable_name") or folder.name.partition("_")[0])
    return Trial(
        folder=folder,
        trial_id=str(state.get("trial_id") or last.get("trial_id") or folder.name),
        algorithm=re.split(r"[.:]", algorithm)[-1],
        env=_environment(config),
        seed=seed if isinstance(seed, int) else None,
        config=config,
        rows=rows,
        status=status,
        reason=reason,
        training_score=sum(returns) / len(returns) if returns else math.nan,
        evaluation_episodes=len(episodes) if episodes else None,
        versions={k: str(v) for k, v in (last.get("versions") or {}).items() if v},
        notes=notes,
        unreadable=broken,
        date=str(last.get("date", "")),
    )


def _environment(config: dict[str, Any]) -> str:
    """Returns ``Atari100k/MsPacman`` if ``env_config`` names a game, else the name in ``env``."""
    env, game = str(config.get("env", "?")), config.get("env_config/game")
    return env if game is None else f"{env}/{str(game).title().replace('_', '')}"


def _status(folder: Path, state: dict[str, Any], last: dict[str, Any]) -> tuple[str, str]:
    saved = state.get("status")
    error = folder / "error.txt"
    if saved == "ERROR" or (saved is None and not last.get("done") and error.is_file()):
        return FAILED, _last_line(error)
    if not last.get("done") and saved != "TERMINATED":
        return UNFINISHED, "not started" if saved == "PENDING" and not last else ""
    stop = state.get("stopping_criterion") or {}
    reached = {key: _number(_look_up(last, key.split("/"))) for key in stop}
    if stop and not any(reached[key] >= value for key, value in stop.items()):
        ends = ", ".join(f"{key} {value}" for key, value in stop.items())
        return STOPPED_EARLY, f"ended before its stop, {ends}"
    return FINISHED, ""


def _last_line(file: Path) -> str:
    try:
        lines = [line.strip() for line in file.read_text(errors="replace").splitlines()]
    except OSError:
        return ""
    return next((line for line in reversed(lines) if line), "")


def _params(folder: Path) -> dict[str, Any]:
    try:
        params = json.loads((folder / "params.json").read_text())
    except (OSError, ValueError):
        return {}
    return params if isinstance(params, dict) else {}


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns a flat config, nested keys joined by ``/``; removes objects' memory addresses."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}/")
        elif isinstance(value, str):
            flat[prefix + key] = re.sub(r" at 0x[0-9a-f]+", "", value)
        else:
            flat[prefix + key] = value
    return flat
