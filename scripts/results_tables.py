"""Writes the tables of docs/results.md from the files in results/.

    python scripts/results_tables.py

Run ``qwr report`` for the scores of other folders.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from qwr_rllib.report import paper, statistics, trials

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "results", ROOT / "docs" / "results.md"
END = "<!-- end -->\n"
TASKS = {
    "HalfCheetah-v5": "Half-Cheetah",
    "Walker2d-v5": "Walker2d",
    "Hopper-v5": "Hopper",
    "Humanoid-v5": "Humanoid",
}
# Folders with runs of each column: with Ray, and without.
TABLE_1 = {
    "QWR-LSE": ["table1/qwr-lse"],
    "QWR-MAX": ["table1/qwr-max", "table1-in-process/qwr-max"],
    "QWR-AVG": ["table1-in-process/qwr-avg"],
    "AWR": ["table1-awr/awr"],
}
LOGGED = {"QWR": "qwr-lse", "AWR": "awr", "cloning": "cloning"}
LAST = 10
"""Evaluations at the end of training on logged data that count."""


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def runs(*folders: str) -> list[trials.Trial]:
    """Reads the runs in folders of results, by seed: the bootstrap depends on their order."""
    found = trials.read([RESULTS / folder for folder in folders])
    return sorted(found, key=lambda run: run.seed or 0)


def table1() -> str:
    """Scores at 100K: ours, with the number of seeds, above the paper's."""
    found = {name: runs(*folders) for name, folders in TABLE_1.items()}
    rows = []
    for env, task in TASKS.items():
        ours, theirs = [f"**{task}**, here"], ["the paper"]
        for name, of_all in found.items():
            scores = [run.evaluation_score for run in of_all if run.env == env]
            low, high = statistics.interval([scores]) or (np.nan, np.nan)
            ours.append(f"{statistics.iqm(scores):.0f} [{low:.0f}, {high:.0f}] ({len(scores)})")
            theirs.append(str(paper.TABLE_1[name][paper.task(env)]))
        rows += [ours, theirs]
    return markdown(["", *found], rows)


def logged_data() -> str:
    """The last evaluations on logged data as shares of the data's return, for each seed."""
    rows = []
    for row in csv.DictReader((RESULTS / "logged-data" / "data.csv").read_text().splitlines()):
        env = row["environment"]
        line = [f"{TASKS[env]} ({float(row['return_mean']):.0f} ± {float(row['return_std']):.0f})"]
        for variant in LOGGED.values():
            of_env = [run for run in runs(f"logged-data/{variant}") if run.env == env]
            ends = [run.rows.evaluation_return.dropna().to_numpy()[-LAST:] for run in of_env]
            shares = [np.mean(end) / float(row["return_mean"]) for end in ends]
            line.append(", ".join(f"{share:.2f}" for share in shares))
        rows.append(line)
    return markdown(["data (return)", *LOGGED], rows)


TABLES = {"table 1": table1, "logged data": logged_data}


def page(text: str) -> str:
    """Returns the page with new tables between its marks."""
    for name, table in TABLES.items():
        before, mark, rest = text.partition(f"<!-- begin: scripts/results_tables.py, {name} -->\n")
        if not mark:
            raise KeyError(f"{PAGE} has no mark for {name!r}")
        text = f"{before}{mark}\n{table()}\n{END}{rest.partition(END)[2]}"
    return text


def main() -> None:
    PAGE.write_text(page(PAGE.read_text()))


if __name__ == "__main__":
    main()
