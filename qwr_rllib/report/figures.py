"""The figures of a report: drawn with matplotlib, without a display."""

from __future__ import annotations

import logging
import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qwr_rllib.report import counted, paper, statistics
from qwr_rllib.report.groups import Group, short, sort_key
from qwr_rllib.report.trials import Trial

logger = logging.getLogger(__name__)

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
"""Distinct with any colour vision (Okabe and Ito, 2008; their yellow is too light for lines)."""
MARKERS = "osD^vPX*"
MAX_LINES = len(COLORS)
OVERVIEW_FROM = 3
"""From this number of environments on, a figure shows a small panel for each."""
BAND = {"iqr": "median and interquartile range", "mean-ci": "mean and 95 % bootstrap interval"}
TITLES = {
    "training_return": "training (noisy policy)",
    "evaluation_return": "evaluation (mode of the policy)",
}
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.hashsalt": "qwr",
}


@dataclass(frozen=True)
class Drawing:
    """A figure with its title and caption."""

    name: str
    """Name of its files."""
    title: str
    caption: str
    figure: Figure


def draw(groups: Sequence[Group], kind: str) -> list[Drawing]:
    """Draws all figures for the groups.

    Args:
        groups: The groups of one report.
        kind: What a curve shows, "iqr" or "mean-ci", see :func:`statistics.curve`.
    """
    drawings: list[Drawing] = []
    with mpl.rc_context(STYLE):
        by_env: dict[str, list[Group]] = {}
        for group in groups:
            heading = f"{group.env}, logged data" if group.offline else group.env
            by_env.setdefault(heading, []).append(group)
        few = {env: cells for env, cells in by_env.items() if len(cells) <= MAX_LINES}
        if len(few) >= OVERVIEW_FROM and (found := overview(few, kind)):
            drawings.append(found)
        if few:
            drawings.append(learning_curves(few, kind))
        for env, cells in by_env.items():
            axes = grid_axes(cells)
            if axes:
                drawings.append(small_multiples(env, cells, axes, kind))
            elif len(cells) > MAX_LINES and (found := parameters(env, cells)):
                drawings.append(found)
            if (len(cells) > 1 or len(cells[0].trials) > 1) and (found := scores(env, cells)):
                drawings.append(found)
    return drawings


def _series(trial: Trial, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns a trial's steps (thousands; iterations on logged data) and its returns there."""
    rows = trial.rows.dropna(subset=column)
    steps = rows.iteration if trial.offline else rows.env_steps / 1000
    return steps.to_numpy(), rows[column].to_numpy()


def _steps_label(cells: Sequence[Group]) -> str:
    return "iterations" if cells[0].offline else "environment steps (thousands)"


def _plot(axes: Axes, cell: Group, column: str, kind: str, color: str, marker: str) -> bool:
    """Draws a group's average and band, and thin lines of trials that are not averaged."""
    series = [pair for trial in cell.trials if len((pair := _series(trial, column))[0])]
    drawn = False
    if series:
        found = statistics.curve(series, kind)
        sparse = len(found.steps) <= 30
        axes.plot(
            found.steps,
            found.middle,
            color=color,
            marker=marker if sparse else None,
            markersize=4,
            linewidth=1.6,
        )
        axes.fill_between(found.steps, found.low, found.high, color=color, alpha=0.2, linewidth=0)
        drawn = True
    for trial in cell.others:
        steps, returns = _series(trial, column)
        if len(steps):
            axes.plot(steps, returns, color=color, linewidth=0.9, linestyle=":", alpha=0.9)
            drawn = True
    return drawn


def _handle(cell: Group, color: str, marker: str) -> Line2D:
    count = len(cell.trials)
    seeds = counted(count, "seed") if count else "unfinished"
    return Line2D(
        [],
        [],
        color=color,
        linestyle="-" if count else ":",
        marker=marker if count else "",
        markersize=4,
        label=f"{_label(cell)} ({seeds})",
    )


def _reference_line(axes: Axes, cells: Sequence[Group], upright: bool = False) -> Line2D | None:
    """Draws the paper's score of the environment, or the return of the logged data, if known."""
    task = cells[0].task
    score, label = None, "paper, QWR-LSE at 100K"
    if cells[0].offline:
        score, label = _logged_return(cells[0]), "logged data"
    elif found := paper.table_of(task):
        score = found[0]["QWR-LSE"][task].mean
    if score is None:
        return None
    draw_line = axes.axvline if upright else axes.axhline
    line: Line2D = draw_line(score, color="0.35", linestyle="--", linewidth=1, label=label)
    return line


def _logged_return(cell: Group) -> float | None:
    """Returns the mean return of a group's logged data; ``None`` if the data is not found."""
    config = (cell.trials + cell.others)[0].config
    return _mean_return(config["offline/dataset"], config.get("offline/num_episodes"))


@cache
def _mean_return(dataset: str, num_episodes: int | None) -> float | None:
    # Imported here because importing RLlib takes seconds.
    from qwr_rllib.offline import OfflineConfig, mean_return

    try:
        return mean_return(OfflineConfig(dataset, num_episodes=num_episodes))
    except (ValueError, ModuleNotFoundError) as error:
        logger.warning("No line for the logged data: %s", error)
        return None


def learning_curves(by_env: dict[str, list[Group]], kind: str) -> Drawing:
    """Draws training and evaluation return over steps, a row for each environment."""
    heights = [3.0 + 0.22 * _legend_rows(cells) for cells in by_env.values()]
    figure = Figure(figsize=(9, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(by_env), 1, squeeze=False, height_ratios=heights)
    everywhere = list(dict.fromkeys(cell.label for cells in by_env.values() for cell in cells))
    for part, (env, cells) in zip(parts[:, 0], by_env.items(), strict=True):
        # A group looks the same in every row, unless there are more groups than colours.
        own = [cell.label for cell in cells]
        labels = own if len(everywhere) > MAX_LINES else everywhere
        places = [labels.index(cell.label) for cell in cells]
        looks = [(cell, (COLORS[i], MARKERS[i])) for cell, i in zip(cells, places, strict=True)]
        # On logged data there is no training return, and some runs are never evaluated.
        titles = {name: title for name, title in TITLES.items() if _has(cells, name)}
        titles = titles or {"training_return": TITLES["training_return"]}
        line = None
        row = part.subplots(1, len(titles), sharey=True, sharex=True, squeeze=False)[0]
        for axes, (column, title) in zip(row, titles.items(), strict=True):
            drawn = [_plot(axes, cell, column, kind, *look) for cell, look in looks]
            axes.set_title(f"{env}: {title}")
            axes.set_xlabel(_steps_label(cells))
            if any(drawn):
                line = _reference_line(axes, cells)
            else:
                _say(axes, "no return yet")
        row[0].set_ylabel("episode return")
        handles = [_handle(cell, *look) for cell, look in looks]
        part.legend(
            handles=handles + ([line] if line else []),
            loc="outside lower center",
            ncols=1 if _long(cells) else 3,
            fontsize=8,
        )
    caption = f"Lines and bands: {BAND[kind]} over seeds. {DOTTED}"
    return Drawing("learning-curves", "Learning curves", caption, figure)


def overview(by_env: dict[str, list[Group]], kind: str) -> Drawing | None:
    """Draws a grid of small panels, one per environment; ``None`` if there are too few colours."""
    labels = list(dict.fromkeys(cell.label for cells in by_env.values() for cell in cells))
    if len(labels) > MAX_LINES:
        return None
    looks = {label: look for label, *look in zip(labels, COLORS, MARKERS, strict=False)}
    columns = 2 if len(by_env) == 4 else min(3, len(by_env))
    rows = math.ceil(len(by_env) / columns)
    size = (3.1 * columns, 2.3 * rows + 0.4 + 0.22 * len(labels))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    line = None
    for axes, (env, cells) in zip(panels, by_env.items(), strict=False):
        column = _column(cells)
        drawn = [_plot(axes, cell, column, kind, *looks[cell.label]) for cell in cells]
        if any(drawn):
            line = _reference_line(axes, cells) or line
        else:
            _say(axes, "no return yet")
        axes.set_title(env + ("" if column.startswith("eval") else " (training)"), fontsize=9)
        axes.set_xlabel(_steps_label(cells), fontsize=8)
    for axes in list(figure.axes)[len(by_env) :]:
        axes.remove()
    figure.supylabel("episode return", fontsize=9)
    handles: list[Any] = [
        Line2D([], [], color=color, marker=marker, markersize=4, label=textwrap.fill(label, 110))
        for label, (color, marker) in looks.items()
    ]
    figure.legend(
        handles=handles + ([line] if line else []),
        loc="outside lower center",
        ncols=1 if max(map(len, labels)) > 30 else 3,
        fontsize=8,
    )
    caption = f"Evaluation where there is one. Lines and bands: {BAND[kind]} over seeds. {DOTTED}"
    return Drawing("overview", "All environments", caption, figure)


def _long(cells: Sequence[Group]) -> bool:
    return max(len(cell.label) for cell in cells) > 30


def _legend_rows(cells: Sequence[Group]) -> int:
    entries = len(cells) + 1
    wrapped = sum(_label(cell).count("\n") for cell in cells)
    return entries + wrapped if _long(cells) else math.ceil(entries / 3)


def _label(cell: Group) -> str:
    return textwrap.fill(cell.label, 110)


DOTTED = "Dotted: single trials that are unfinished, failed or for another reason not averaged."


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="0.4")


@dataclass(frozen=True)
class GridAxes:
    """The config keys that a figure of small multiples shows by rows, columns and colours."""

    row: str | None
    column: str
    color: str


def grid_axes(cells: Sequence[Group]) -> GridAxes | None:
    """Returns the axes of a grid over two or three keys; ``None`` if the groups form no grid.

    A search is no grid: each of its trials has its own values.
    """
    keys = list(cells[0].settings)
    if len(keys) not in (2, 3) or len({cell.algorithm for cell in cells}) > 1:
        return None
    counts = [len({short(cell.settings[key]) for cell in cells}) for key in keys]
    if math.prod(counts) > 2 * len(cells) or max(counts) > MAX_LINES:
        return None
    row = keys[0] if len(keys) == 3 else None
    return GridAxes(row, keys[-2], keys[-1])


def _colors(values: Sequence[Any]) -> list[Any]:
    """Returns a colour per value: from dark to light for numbers, distinct ones for words."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return list(mpl.colormaps["viridis"](np.linspace(0, 0.85, len(values))))
    return list(COLORS[: len(values)])


def small_multiples(env: str, cells: Sequence[Group], keys: GridAxes, kind: str) -> Drawing:
    """Draws the ablation grid: a panel for each value of two keys, a line for each of the third."""
    values = {key: _values(cells, key) for key in (keys.row, keys.column, keys.color) if key}
    rows = values[keys.row] if keys.row else [None]
    colors = dict(zip(map(short, values[keys.color]), _colors(values[keys.color]), strict=True))
    markers = dict(zip(colors, MARKERS, strict=False))
    column = _column(cells)
    size = (2.7 * len(values[keys.column]) + 1.6, 2.3 * len(rows) + 0.7)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(
        len(rows), len(values[keys.column]), squeeze=False, sharex=True, sharey=True
    )
    line = None
    for row, row_value in zip(panels, rows, strict=True):
        for axes, column_value in zip(row, values[keys.column], strict=True):
            shown = [
                cell
                for cell in cells
                if (keys.row is None or cell.settings[keys.row] == row_value)
                and cell.settings[keys.column] == column_value
            ]
            drawn = [
                _plot(axes, cell, column, kind, colors[name], markers[name])
                for cell in shown
                for name in [short(cell.settings[keys.color])]
            ]
            if any(drawn):
                line = _reference_line(axes, cells)
            else:
                _say(axes, "no results")
            title = [f"{keys.column}={short(column_value)}"]
            title[:0] = [f"{keys.row}={short(row_value)}"] if keys.row else []
            seeds = sorted({len(cell.trials) for cell in shown})
            spread = " to ".join(map(str, dict.fromkeys(seeds[:1] + seeds[-1:]))) or "0"
            noun = "seed" if spread == "1" else "seeds"
            axes.set_title(", ".join(title) + f"\n{spread} {noun} a line", fontsize=9)
    figure.supxlabel(_steps_label(cells), fontsize=9)
    figure.supylabel(f"{column.partition('_')[0]} return", fontsize=9)
    handles = [
        Line2D([], [], color=color, marker=markers[name], markersize=4, label=name)
        for name, color in colors.items()
    ]
    figure.legend(
        handles=handles + ([line] if line else []), title=keys.color, loc="outside right upper"
    )
    caption = f"{TITLES[column].capitalize()}. Lines and bands: {BAND[kind]} over seeds. {DOTTED}"
    return Drawing(f"ablation-{_file(env)}", f"Ablation on {env}", caption, figure)


def _values(cells: Sequence[Group], key: str) -> list[Any]:
    """Returns a setting's sorted values in the groups; a value may be a list."""
    values = {short(cell.settings[key]): cell.settings[key] for cell in cells}
    return sorted(values.values(), key=lambda value: sort_key([value]))


def _column(cells: Sequence[Group]) -> str:
    return "evaluation_return" if _has(cells, "evaluation_return") else "training_return"


def _has(cells: Sequence[Group], column: str) -> bool:
    """Returns whether a trial has a value in the column; logged data gives no training return."""
    if cells[0].offline and column == "training_return":
        return False
    trials = [trial for cell in cells for trial in cell.trials + cell.others]
    return any(trial.rows[column].notna().any() for trial in trials)


def _score(cells: Sequence[Group]) -> tuple[str, Callable[[Trial], float]]:
    if _column(cells) == "evaluation_return":
        return "evaluation_score", lambda trial: trial.evaluation_score
    return "training_score", lambda trial: trial.training_score


def scores(env: str, cells: Sequence[Group]) -> Drawing | None:
    """Draws each seed's final score, and each group's interquartile mean with its interval."""
    column, _ = _score(cells)
    shown = [cell for cell in cells if cell.scores(column)]
    if not shown or len(shown) > 60:
        return None
    figure = Figure(figsize=(8, 0.27 * len(shown) + 1.3), layout="constrained")
    axes = figure.subplots()
    for place, cell in enumerate(shown):
        values = cell.scores(column)
        axes.plot(values, [place] * len(values), "o", color="0.55", markersize=4, alpha=0.7)
        middle = float(statistics.iqm(values))
        bounds = statistics.interval([values])
        if bounds:
            axes.plot(bounds, [place, place], color=COLORS[0], linewidth=2.5, alpha=0.6)
        axes.plot(middle, place, "D", color=COLORS[0], markersize=6)
    line = _reference_line(axes, cells, upright=True)
    axes.set_yticks(
        range(len(shown)), [f"{cell.label}  (n={len(cell.scores(column))})" for cell in shown]
    )
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.grid(axis="y", alpha=0)
    what = column.partition("_")[0]
    axes.set_xlabel(f"final {what} return on {env}")
    handles: list[Any] = [
        Line2D([], [], color="0.55", marker="o", linestyle="", markersize=4, label="seeds"),
        Line2D([], [], color=COLORS[0], marker="D", label="IQM, 95 % interval"),
    ]
    figure.legend(
        handles=handles + ([line] if line else []), loc="outside upper right", ncols=3, fontsize=8
    )
    caption = (
        "A dot is a seed; the diamond the interquartile mean; the bar its 95 % bootstrap interval, "
        "missing where there is one seed only."
    )
    return Drawing(f"final-scores-{_file(env)}", f"Final scores on {env}", caption, figure)


def parameters(env: str, cells: Sequence[Group]) -> Drawing | None:
    """Draws the last score of each trial of a search against each searched value."""
    column, score = _score(cells)
    keys = [
        key
        for key in cells[0].settings
        if all(isinstance(cell.settings.get(key), int | float) for cell in cells)
    ]
    if not keys:
        return None
    columns = min(3, len(keys))
    rows = math.ceil(len(keys) / columns)
    figure = Figure(figsize=(3.1 * columns + 0.6, 2.6 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).flat
    for axes, key in zip(panels, keys, strict=False):
        values = [float(cell.settings[key]) for cell in cells]
        if min(values) > 0 and max(values) > 20 * min(values):
            axes.set_xscale("log")
        for members, face, label in (
            ("trials", COLORS[0], "finished"),
            ("others", "none", "ended early or unfinished"),
        ):
            pairs = [
                (value, score(trial))
                for value, cell in zip(values, cells, strict=True)
                for trial in getattr(cell, members)
            ]
            if pairs:
                axes.scatter(
                    *zip(*pairs, strict=True),
                    s=22,
                    facecolors=face,
                    edgecolors=COLORS[0],
                    label=label,
                )
        axes.set_xlabel(key)
    for axes in list(figure.axes)[len(keys) :]:
        axes.remove()
    what = column.partition("_")[0]
    figure.supylabel(f"last {what} return", fontsize=9)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, fontsize=8)
    caption = "Each trial's last score against each searched value; hollow ones ended early."
    return Drawing(f"parameters-{_file(env)}", f"Search on {env}", caption, figure)


def _file(env: str) -> str:
    kept = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in env)
    return kept.strip("-.")
