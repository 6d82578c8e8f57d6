"""The tables of a report, as data frames of numbers and as Markdown."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from qwr_rllib.report import paper
from qwr_rllib.report.groups import Group
from qwr_rllib.report.statistics import interval, iqm
from qwr_rllib.report.trials import FINISHED, Trial

MISSING = "-"


@dataclass(frozen=True)
class Table:
    """A table of a report."""

    name: str
    """Name of its CSV file."""
    title: str
    frame: pd.DataFrame
    """The content of the CSV file: numbers as numbers."""
    text: pd.DataFrame
    """The content of the page: formatted text."""
    notes: tuple[str, ...] = ()

    @property
    def markdown(self) -> str:
        """The formatted text as a Markdown table."""
        rows = [list(self.text.columns), ["---"] * self.text.shape[1], *self.text.values.tolist()]
        cells = ([str(cell).replace("|", r"\|").replace("\n", " ") for cell in row] for row in rows)
        return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def number(value: float | None) -> str:
    """Formats a number with 0 to 2 decimals, by its size; a dash if it is missing."""
    if value is None or math.isnan(value):
        return MISSING
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}"


def with_interval(value: float, low: float | None, high: float | None) -> str:
    """Formats ``12.0 [10.0, 13.0]``, with a dash in the brackets if there is no interval."""
    if math.isnan(value):
        return MISSING
    bounds = MISSING if low is None or math.isnan(low) else f"{number(low)}, {number(high)}"
    return f"{number(value)} [{bounds}]"


def _estimate(samples: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Returns the interquartile mean and the interval's bounds; NaN for what does not exist."""
    scores = np.concatenate([np.asarray(sample, float) for sample in samples])
    if not len(scores):
        return (math.nan,) * 3
    low, high = interval(samples) or (math.nan, math.nan)
    return float(iqm(scores)), low, high


def final_scores(groups: Sequence[Group]) -> Table:
    """Returns the table of each group's final scores: evaluation and training, over seeds."""
    rows = []
    for group in groups:
        evaluation = group.scores("evaluation_score")
        episodes = [trial.evaluation_episodes or math.nan for trial in group.trials]
        row = {
            "environment": group.env,
            "group": group.label,
            "seeds": len(group.trials),
            "unfinished_or_left_out": len(group.others),
            "env_steps": group.env_steps,
            "evaluation_episodes": min(episodes, default=math.nan),
        }
        row |= dict(
            zip(
                ("evaluation_iqm", "evaluation_low", "evaluation_high"),
                _estimate([evaluation]),
                strict=True,
            )
        )
        row["evaluation_mean"] = float(np.mean(evaluation)) if evaluation else math.nan
        row["evaluation_std"] = float(np.std(evaluation, ddof=1)) if len(evaluation) > 1 else None
        row |= dict(
            zip(
                ("training_iqm", "training_low", "training_high"),
                _estimate([group.scores("training_score")]),
                strict=True,
            )
        )
        rows.append(row)
    frame = pd.DataFrame(rows)
    text = pd.DataFrame(
        {
            "environment": frame.environment,
            "group": frame.group,
            "seeds": frame.seeds,
            "left out": frame.unfinished_or_left_out,
            "steps": [group.budget for group in groups],
            "evaluation, IQM [95 %]": _intervals(frame, "evaluation"),
            "mean ± std": [
                MISSING
                if math.isnan(mean)
                else number(mean) + ("" if pd.isna(std) else f" ± {number(std)}")
                for mean, std in zip(frame.evaluation_mean, frame.evaluation_std, strict=True)
            ],
            "training, IQM [95 %]": _intervals(frame, "training"),
        }
    )
    notes = ["Training: mean return of the last 10 training episodes."]
    if frame.evaluation_mean.isna().all():
        text = text.drop(columns=["evaluation, IQM [95 %]", "mean ± std"])
    else:
        notes[0] = (
            "Evaluation: mean return of the episodes of the last evaluation, with the mode of the "
            f"policy{_episodes(frame)}. {notes[0]}"
        )
    if (frame.seeds == 1).any():
        notes.append("One seed: no interval, and little is known.")
    return Table("final_scores", "Final scores", frame, text, tuple(notes))


def _episodes(frame: pd.DataFrame) -> str:
    counts = sorted({int(count) for count in frame.evaluation_episodes.dropna()})
    return f" ({', '.join(map(str, counts))} episode{'s' * (counts != [1])})" if counts else ""


def _intervals(frame: pd.DataFrame, what: str) -> list[str]:
    columns = (frame[f"{what}_{part}"] for part in ("iqm", "low", "high"))
    return [with_interval(*values) for values in zip(*columns, strict=True)]


def beside_the_paper(groups: Sequence[Group]) -> Table | None:
    """Returns our scores beside the paper's Tables 1 and 2; ``None`` if no environment matches."""
    rows, sources, short = [], [], False
    for group in groups:
        if not group.trials or group.offline or (found := paper.table_of(group.task)) is None:
            continue
        table, source = found
        evaluation = group.scores("evaluation_score")
        if not evaluation:
            continue  # the paper's scores are of evaluations
        sources.append(source)
        value, low, high = _estimate([evaluation])
        short |= abs(group.env_steps - paper.STEPS) > 0.01 * paper.STEPS
        rows.append(
            {
                "environment": group.env,
                "group": group.label,
                "seeds": len(evaluation),
                "env_steps": group.env_steps,
                "ours_iqm": value,
                "ours_low": low,
                "ours_high": high,
                "ours_mean": float(np.mean(evaluation)),
                "same_in_the_paper": group.variant if group.variant in table else None,
            }
            | {f"paper_{name}": table[name][group.task].mean for name in table}
        )
    if not rows:
        return None
    frame = pd.DataFrame(rows)
    text = pd.DataFrame(
        {
            "environment": frame.environment,
            "group": frame.group,
            "seeds": frame.seeds,
            "steps": [f"{steps:,}".replace(",", " ") for steps in frame.env_steps],
            "**ours**, IQM [95 %]": _intervals(frame, "ours"),
        }
    )
    columns = [name for name in frame.columns if name.startswith("paper_")]
    for column in columns:
        name = column.removeprefix("paper_")
        text[name] = [_cell(env, name) for env in frame.environment]
    notes = [f"All but ours: {source}." for source in dict.fromkeys(sources)]
    if short:
        notes.append("Where steps are not 100 000 the scores do not compare as they stand.")
    return Table("paper", "Beside the paper", frame, text, tuple(notes))


def _cell(env: str, name: str) -> str:
    task = paper.task(env)
    found = paper.table_of(task)
    return str(found[0][name][task]) if found and name in found[0] else MISSING


def human_normalized(groups: Sequence[Group]) -> Table | None:
    """Returns human-normalised Atari scores, per game and over games; ``None`` without a game."""
    by_label: dict[str, dict[str, list[float]]] = defaultdict(dict)
    for group in groups:
        scores = group.scores("evaluation_score")
        if group.task in paper.HUMAN and scores:
            key = group.label if group.settings else group.algorithm
            if group.task in by_label[key]:  # the same game by another name, or on logged data
                key += f" ({group.env}{', logged data' if group.offline else ''})"
            by_label[key][group.task] = [
                paper.human_normalized(group.task, score) for score in scores
            ]
    rows = []
    for label, games in by_label.items():
        for game, normalized in games.items():
            rows.append(_normalized_row(label, game, [normalized]))
        if len(games) > 1:
            rows.append(_normalized_row(label, f"all {len(games)} games", list(games.values())))
    for name, table in paper.TABLE_2.items() if rows else ():
        played = {game for games in by_label.values() for game in games}
        means = [[paper.human_normalized(game, table[game].mean)] for game in sorted(played)]
        rows.append(_normalized_row(f"{name} (paper)", f"the same {len(played)} games", means))
    if not rows:
        return None
    frame = pd.DataFrame(rows)
    text = pd.DataFrame(
        {
            "group": frame.group,
            "game": frame.game,
            "seeds": [f"{count:g}" if count else MISSING for count in frame.seeds],
            "IQM [95 %]": _intervals(frame, "score"),
            "mean": [number(value) for value in frame["mean"]],
            "median of games": [number(value) for value in frame["median"]],
        }
    )
    notes = (
        "(score - random) / (human - random): 0 plays at random, 1 as a human. Intervals over "
        "games redraw the seeds within each game; the paper's have no seeds to draw from.",
        f"Sources: {paper.HUMAN_SOURCE}.",
    )
    return Table("human_normalized", "Human-normalised Atari scores", frame, text, notes)


def _normalized_row(label: str, game: str, samples: list[list[float]]) -> dict[str, object]:
    value, low, high = _estimate(samples)
    means = [float(np.mean(sample)) for sample in samples]
    return {
        "group": label,
        "game": game,
        "seeds": 0 if "(paper)" in label else min(map(len, samples)),
        "score_iqm": value,
        "score_low": low,
        "score_high": high,
        "mean": float(np.mean(means)),
        "median": float(np.median(means)),
    }


def left_out(trials: Sequence[Trial], groups: Sequence[Group]) -> Table | None:
    """Returns the trials that are not averaged, with the reason; ``None`` if there are none."""
    averaged = {trial.folder for group in groups for trial in group.trials}
    missing = [trial for trial in trials if trial.folder not in averaged]
    return _listing("left_out", "Not in the averages", missing) if missing else None


def all_trials(trials: Sequence[Trial]) -> Table:
    """Returns the table of all trials."""
    return _listing("trials", "All trials", trials)


def _listing(name: str, title: str, trials: Sequence[Trial]) -> Table:
    frame = pd.DataFrame(
        {
            "trial": [trial.name for trial in trials],
            "algorithm": [trial.algorithm for trial in trials],
            "environment": [trial.env for trial in trials],
            "seed": [MISSING if trial.seed is None else trial.seed for trial in trials],
            "status": [
                "left out" if trial.status == FINISHED and trial.reason else trial.status
                for trial in trials
            ],
            "env_steps": [trial.env_steps for trial in trials],
            "evaluation_score": [trial.evaluation_score for trial in trials],
            "training_score": [trial.training_score for trial in trials],
            "remarks": [
                "; ".join([*filter(None, [trial.reason]), *trial.notes]) for trial in trials
            ],
            "folder": [trial.folder.name for trial in trials],
        }
    )
    text = frame.drop(columns="folder").rename(
        columns={
            "env_steps": "steps",
            "evaluation_score": "evaluation",
            "training_score": "training",
        }
    )
    for column in ("evaluation", "training"):
        if text[column].isna().all():
            text = text.drop(columns=column)
        else:
            text[column] = [number(value) for value in text[column]]
    return Table(name, title, frame, text)


def results(trials: Sequence[Trial]) -> pd.DataFrame:
    """Returns the kept results of every iteration of every trial."""
    frames = [
        trial.rows.assign(trial=trial.name, environment=trial.env, seed=trial.seed)
        for trial in trials
        if len(trial.rows)
    ]
    frame = pd.concat(frames, ignore_index=True)
    first = ["trial", "environment", "seed"]
    return frame[first + [name for name in frame.columns if name not in first]]
