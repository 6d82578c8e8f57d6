"""Time of `qwr report` for a sweep of 120 trials with 100 results each.

    python benchmarks/report.py --out benchmarks/results/report.json

The trials are synthetic: the paper's ablation grid with five seeds, whose results have the size of
real ones (about 17 KB each, most of it the config and the returns of the last 100 episodes).
"""

from __future__ import annotations

import itertools
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

STEPS = 1000


def write_trial(experiment: Path, number: int, settings: dict, num_rows: int) -> None:
    """Writes a trial's folder as Tune does."""
    draw = random.Random(number)
    folder = experiment / f"QWR_HalfCheetah-v5_{number:05d}"
    folder.mkdir(parents=True)
    settings = settings | {"env": "HalfCheetah-v5"}
    (folder / "params.json").write_text(json.dumps(settings))
    # Stand-ins for the other keys of RLlib's config, with about as many characters.
    config = {f"other_setting_{index}": "x" * 30 for index in range(200)} | settings
    returns: list[float] = []
    with open(folder / "result.json", "w") as file:
        for iteration in range(1, num_rows + 1):
            level = 2500 * iteration / (iteration + 30)
            returns = [*returns, draw.gauss(level, 200)][-100:]
            result = {
                "env_runners": {
                    "episode_return_mean": sum(returns) / len(returns),
                    "hist_stats": {
                        "episode_reward": returns,
                        "policy_default_policy_reward": returns,
                        "episode_lengths": [1000] * len(returns),
                    },
                },
                "num_env_steps_sampled_lifetime": STEPS * iteration,
                "learner": {"critic_loss": 0.001, "actor_loss": 4.0, "q_mean": level / 10},
                "training_iteration": iteration,
                "trial_id": f"{number:05d}",
                "time_total_s": 30.0 * iteration,
                "done": iteration == num_rows,
                "date": "2021-02-12_12-00-00",
                "config": config,
            }
            if iteration % 10 == 0:
                played = [draw.gauss(level + 300, 100) for _ in range(10)]
                result["evaluation"] = {
                    "env_runners": {
                        "episode_return_mean": sum(played) / 10,
                        "hist_stats": {"episode_reward": played},
                    }
                }
            file.write(json.dumps(result) + "\n")


@click.command()
@click.option("--rows", default=100, help="Results of each trial.")
@click.option("--seeds", default=5, help="Seeds of each of the 24 points of the grid.")
@click.option("--out", type=click.Path(path_type=Path), help="A JSON file for the figures.")
def main(rows: int, seeds: int, out: Path | None) -> None:
    grid = itertools.product(["logsumexp", "max"], [1, 3, 7], [2, 4, 8, 16], range(seeds))
    keys = ("backup", "margin", "n_action_samples", "seed")
    with tempfile.TemporaryDirectory() as folder:
        experiment = Path(folder) / "ablation"
        for number, point in enumerate(grid):
            write_trial(experiment, number, dict(zip(keys, point, strict=True)), rows)
        size = sum(file.stat().st_size for file in experiment.rglob("result.json"))
        command = [sys.executable, "-c", "from qwr_rllib.cli import qwr; qwr()"]
        command += ["report", str(experiment), "--out", f"{folder}/report"]
        start = time.perf_counter()
        subprocess.run(command, check=True)
        wall = time.perf_counter() - start
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    figures = {
        "trials": 24 * seeds,
        "results_each": rows,
        "megabytes_read": round(size / 1e6, 1),
        "seconds": round(wall, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_megabytes": round(usage.ru_maxrss / 1e3),
    }
    print(json.dumps(figures, indent=2))
    if out:
        out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
