"""Table with one row for each run of a campaign: its evaluations every 10K environment steps.

    python benchmarks/seed_table.py results/table1 results/table1-awr-5k

Writes ``seeds.csv`` into each folder, from the ``result.json`` files below it. An evaluation is the
mean return of its episodes, with the most likely action; ``training`` is the mean return of the
last 10 training episodes. Needs the standard library only.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

COLUMNS = [f"{thousands}K" for thousands in range(10, 101, 10)]
MAX_DISTANCE = 2500  # environment steps between an evaluation and its column
FILE = "seeds.csv"


def row(file: Path) -> dict[str, Any]:
    """Returns the row of one run.

    Args:
        file: Its ``result.json``, in a folder named ``ALGORITHM_ENVIRONMENT_seedN`` inside a folder
            named as the variant of the algorithm.
    """
    _, environment, seed = file.parent.name.split("_")
    results = [json.loads(line) for line in file.read_text().splitlines()]
    scores, distances = {}, {}
    for result in results:
        score = result.get("evaluation", {}).get("env_runners", {}).get("episode_return_mean")
        if score is not None:
            steps = result["num_env_steps_sampled_lifetime"]
            thousands = 10 * round(steps / 10_000)
            column, distance = f"{thousands}K", abs(steps - 1000 * thousands)
            if distance <= distances.get(column, MAX_DISTANCE):  # the one nearest to the column
                scores[column], distances[column] = round(score, 1), distance
    episodes = results[-1]["env_runners"].get("hist_stats", {}).get("episode_reward", [])[-10:]
    return {
        "variant": file.parent.parent.name,
        "environment": environment,
        "seed": int(seed.removeprefix("seed")),
        **{column: scores.get(column, "") for column in COLUMNS},
        "training": round(sum(episodes) / len(episodes), 1) if episodes else "",
    }


def table(campaign: Path) -> list[dict[str, Any]]:
    """Returns the rows of all runs below a folder, by variant, environment and seed."""
    rows = [row(file) for file in campaign.glob("*/*/result.json")]
    return sorted(rows, key=lambda row: (row["variant"], row["environment"], row["seed"]))


def main() -> None:
    for campaign in map(Path, sys.argv[1:]):
        rows = table(campaign)
        with (campaign / FILE).open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
