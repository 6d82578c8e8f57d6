"""CPU use of a sweep: 8 small trials on 2 CPUs.

    python benchmarks/sweep.py --out benchmarks/results/sweep.json

Reads Ray's state four times a second: the CPUs that no trial has reserved, and the number of
placement groups (one per trial). Runs with and without reused actors.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from pathlib import Path

import click
import ray
from ray import tune

from qwr_rllib import QWR, QWRConfig

CPUS = 2


def watch(stop: threading.Event, samples: list[tuple[float, int]]) -> None:
    while not stop.wait(0.25):
        table = ray.util.placement_group_table().values()
        created = sum(group["state"] == "CREATED" for group in table)
        samples.append((ray.available_resources().get("CPU", 0.0), created))


def run(reuse_actors: bool, trials: int, iterations: int) -> dict[str, float]:
    config = (
        QWRConfig()
        .environment("Pendulum-v1")
        .env_runners(num_env_runners=0)
        .training(
            n_interactions=400,
            n_critic_steps=400,
            n_actor_steps=400,
            target_update_freq=50,
            train_batch_size=64,
            model={"fcnet_hiddens": [64, 64]},
        )
        .debugging(seed=tune.grid_search(list(range(trials))))
    )
    samples: list[tuple[float, int]] = []
    stop = threading.Event()
    watcher = threading.Thread(target=watch, args=(stop, samples))
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        watcher.start()
        results = tune.Tuner(
            QWR,
            param_space=config,
            tune_config=tune.TuneConfig(reuse_actors=reuse_actors),
            run_config=tune.RunConfig(
                stop={"training_iteration": iterations}, storage_path=folder, verbose=0
            ),
        ).fit()
        seconds = time.perf_counter() - start
        stop.set()
        watcher.join()
    assert not results.errors
    return {
        "seconds": round(seconds, 1),
        "most_trials_at_a_time": max(created for _, created in samples),
        "least_free_cpus": min(free for free, _ in samples),
        "share_of_time_with_all_cpus_reserved": round(
            sum(free == 0 for free, _ in samples) / len(samples), 3
        ),
    }


@click.command()
@click.option("--trials", default=8)
@click.option("--iterations", default=5)
@click.option("--out", type=click.Path(path_type=Path), help="A JSON file for the figures.")
def main(trials: int, iterations: int, out: Path | None) -> None:
    ray.init(address="local", num_cpus=CPUS, include_dashboard=False)
    figures = {
        name: run(reuse_actors, trials, iterations)
        for name, reuse_actors in (("new_actors", False), ("reused_actors", True))
    }
    ray.shutdown()
    text = json.dumps({"trials": trials, "cpus": CPUS} | figures, indent=2)
    print(text)
    if out:
        out.write_text(text + "\n")


if __name__ == "__main__":
    main()
