"""``qwr theorem``: AWR and QWR on replays with one or two logged actions per state."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from qwr_rllib.cli.errors import ConfigError, require_folder_of
from qwr_rllib.local.theorem import Outcome, Trial, run_trial, trials

KINDS = {True: "discrete", False: "Gaussian"}
COLORS = {"AWR": "tab:orange", "QWR": "tab:blue"}


def theorem(
    seeds: int,
    shares: tuple[float, ...],
    episodes: int,
    iterations: int,
    csv_path: Path | None,
    plot: Path | None,
) -> None:
    """Runs ``qwr theorem``."""
    if plot:
        _require_drawable(plot)
    require_folder_of(csv_path)
    require_folder_of(plot)
    torch.set_num_threads(1)  # The networks are too small for threads.
    console = Console()
    planned = trials(
        seeds, sorted(set(shares)), Trial("AWR", True, 0, 0.0, 1.0, episodes, iterations)
    )
    outcomes = [run_trial(each) for each in track(planned, "Trials", console=console)]
    for line in table(outcomes):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    if csv_path:
        write(csv_path, outcomes)
    if plot:
        draw(plot, outcomes)


def _require_drawable(plot: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ConfigError("--plot needs matplotlib: pip install 'qwr-rllib[report]'") from error
    known = sorted(Figure().canvas.get_supported_filetypes())
    if plot.suffix[1:].lower() not in known:
        raise ConfigError(f"--plot: expected a file of type {', '.join(known)}, got {plot}")


def _groups(outcomes: Iterable[Outcome]) -> list[list[Outcome]]:
    """Groups the outcomes that differ only in their seed."""

    def key(outcome: Outcome) -> tuple:
        trial = outcome.trial
        return not trial.discrete, trial.share, trial.algorithm, -trial.sign

    return [list(group) for _, group in groupby(sorted(outcomes, key=key), key)]


def table(outcomes: Iterable[Outcome]) -> list[str]:
    """Returns a Markdown table: means over seeds, and the policy's return with its deviation."""
    lines = [
        "| actions | states with two actions | algorithm | rewards | cloned | better of two |"
        " policy's return | logged return | greedy return |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for group in _groups(outcomes):
        trial = group[0].trial
        returns = [each.policy_return for each in group]
        cells = [
            KINDS[trial.discrete],
            f"{trial.share:.0%}",
            trial.algorithm,
            "true" if trial.sign > 0 else "opposite",
            _mean([each.cloning[-1] for each in group]),
            _mean([each.prefers_better for each in group]),
            f"{np.mean(returns):.2f} ± {np.std(returns):.2f}",
            _mean([each.logged_return for each in group]),
            _mean([each.greedy_return for each in group]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _mean(values: list[float]) -> str:
    return "" if math.isnan(values[0]) else f"{np.mean(values):.2f}"


def write(path: Path, outcomes: Iterable[Outcome]) -> None:
    """Writes a CSV with a row per trial and a column for the cloning after each iteration."""
    rows = []
    for each in outcomes:
        about = asdict(each.trial) | asdict(each)
        curve = {f"cloning_{i}": value for i, value in enumerate(about.pop("cloning"))}
        rows.append({key: value for key, value in (about | curve).items() if key != "trial"})
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def draw(path: Path, outcomes: list[Outcome]) -> None:
    """Draws cloning over the iterations, and return over the share of states with two actions."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(9, 6), constrained_layout=True)
    groups = _groups(outcomes)
    for discrete, (left, right) in zip((True, False), axes, strict=True):
        own = [group for group in groups if group[0].trial.discrete == discrete]
        fewest = min(group[0].trial.share for group in own)
        for group in own:
            trial = group[0].trial
            if trial.share == fewest:
                cloning = np.array([each.cloning for each in group])
                rewards = "" if trial.sign > 0 else ", opposite rewards"
                left.plot(
                    cloning.mean(0),
                    color=COLORS[trial.algorithm],
                    linestyle="-" if trial.sign > 0 else ":",
                    label=trial.algorithm + rewards,
                )
        for name, color in COLORS.items():
            line = [
                (group[0].trial.share, [each.policy_return for each in group])
                for group in own
                if group[0].trial.algorithm == name and group[0].trial.sign > 0
            ]
            shares, returns = [share for share, _ in line], np.array([each for _, each in line])
            right.errorbar(
                shares, returns.mean(1), returns.std(1), color=color, marker="o", label=name
            )
        logged = np.mean([each.logged_return for group in own for each in group])
        right.axhline(logged, color="grey", linestyle="--", label="logged episodes")
        left.set_ylabel(
            "probability of\nthe logged action" if discrete else "share of the way\nto it"
        )
        left.set_title(f"{KINDS[discrete]} actions, one per state")
        right.set_title(f"{KINDS[discrete]} actions")
        right.set_ylabel("return")
        left.set_ylim(None, 1.03)
        left.set_xlabel("iterations of 200 actor steps")
        right.set_xlabel("share of states with two actions")
        for each in (left, right):
            each.legend(fontsize="small")
            each.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)
