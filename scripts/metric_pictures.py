"""Draws the pictures of docs/ from committed results.

    python scripts/metric_pictures.py

table1.png: learning curves of QWR's five seeds on the paper's four tasks.
metrics-continuous.png, metrics-discrete.png: a healthy and an unhealthy run side by side.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

ROOT = Path(__file__).parents[1]
RESULTS, IMAGES = ROOT / "results", ROOT / "docs" / "images"
# The paper's Table 1, QWR-LSE at 100K interactions.
PAPER = {"HalfCheetah-v5": 2323, "Walker2d-v5": 1301, "Hopper-v5": 1758, "Humanoid-v5": 511}
COLUMNS = {
    "evaluation_return": "evaluation return",
    "q_mean": "mean Q",
    "critic_loss": "critic loss",
    "weight_ess": "effective sample size\nof the weights",
}
Series = dict[str, list[tuple[float, float]]]


def of_json(file: Path) -> Series:
    """The columns of a run's ``result.json``, as (environment steps, value)."""
    found: Series = {name: [] for name in COLUMNS}
    for line in file.read_text().splitlines():
        result = json.loads(line)
        steps = result["num_env_steps_sampled_lifetime"]
        values = dict(result["learner"])
        values["evaluation_return"] = (
            result.get("evaluation", {}).get("env_runners", {}).get("episode_return_mean")
        )
        for name in COLUMNS:
            if values[name] is not None:
                found[name].append((steps, values[name]))
    return found


def of_csv(file: Path) -> Series:
    """The same of an older run's CSV."""
    with file.open() as lines:
        rows = list(csv.DictReader(lines))
    return {
        name: [(float(row["env_steps"]), float(row[name])) for row in rows if row[name]]
        for name in COLUMNS
    }


def iqm(scores: np.ndarray) -> np.ndarray:
    """Interquartile mean over five seeds, axis 0: a quarter of 5 is 1.25, as SciPy's trim_mean."""
    return np.sort(scores, 0)[1:-1].mean(0)


def table1() -> None:
    figure, panels = plt.subplots(1, 4, figsize=(12, 3), layout="constrained")
    for panel, (env, paper) in zip(panels, PAPER.items(), strict=True):
        files = sorted(RESULTS.glob(f"table1/qwr-lse/QWR_{env}_seed*/result.json"))
        curves = np.array([of_json(file)["evaluation_return"] for file in files])
        steps, scores = curves[0, :, 0] / 1000, curves[:, :, 1]
        panel.fill_between(steps, scores.min(0), scores.max(0), alpha=0.2)
        panel.plot(steps, iqm(scores))
        panel.axhline(paper, color="gray", linestyle="--", linewidth=1)
        panel.set(title=env, xlabel="1000 environment steps", ylim=(0, None))
    panels[0].set_ylabel("return")
    figure.savefig(IMAGES / "table1.png", dpi=110, metadata={"Software": None})


def side_by_side(name: str, runs: dict[str, Series]) -> None:
    figure, panels = plt.subplots(
        len(COLUMNS), len(runs), figsize=(8, 7.5), sharex="col", squeeze=False, layout="constrained"
    )
    for column, (title, series) in enumerate(runs.items()):
        for row, (key, label) in enumerate(COLUMNS.items()):
            steps, values = np.array(series[key]).T
            panel = panels[row, column]
            panel.plot(steps / 1000, values, marker="." if key == "evaluation_return" else None)
            if key == "critic_loss":
                panel.set_yscale("log")
            if key == "weight_ess":
                panel.set_ylim(1, None)
            if not column:
                panel.set_ylabel(label)
        panels[0, column].set_title(title)
        panels[-1, column].set_xlabel("1000 environment steps")
    figure.savefig(IMAGES / f"{name}.png", dpi=90, metadata={"Software": None})


def main() -> None:
    table1()
    runs = RESULTS / "table1"
    side_by_side(
        "metrics-continuous",
        {
            "healthy: logsumexp": of_json(runs / "qwr-lse/QWR_Walker2d-v5_seed4/result.json"),
            "unhealthy: max": of_json(runs / "qwr-max/QWR_Walker2d-v5_seed0/result.json"),
        },
    )
    side_by_side(
        "metrics-discrete",
        {
            "healthy: Freeway": of_csv(RESULTS / "qwr-freeway-64.csv"),
            "unhealthy: Pong, few updates": of_csv(RESULTS / "qwr-pong-600.csv"),
        },
    )


if __name__ == "__main__":
    main()
