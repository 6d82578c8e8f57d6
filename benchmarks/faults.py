"""What the death of the replay actor costs, beside an iteration.

    python benchmarks/faults.py --out benchmarks/results/faults.json

Walker2d with a full replay of random rows: seconds of whole iterations (1000 environment steps,
3000 + 3000 updates), and seconds from a SIGKILL of the replay actor until its successor holds
every row, in turns in one process.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import time

import click
import numpy as np
import ray
from scaling import fragment

from qwr_rllib import QWRConfig
from qwr_rllib.replay.storage import ReplayStorage


@click.command()
@click.option("--rows", default=50_000, show_default=True, help="In the replay.")
@click.option("--turns", default=3, show_default=True)
@click.option("--out", type=click.Path(dir_okay=False), help="Writes the results as JSON.")
def main(rows: int, turns: int, out: str | None) -> None:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    algo = (
        QWRConfig()
        .environment("Walker2d-v5")
        .training(replay_capacity=rows, learner_threads=1)
        .debugging(seed=0, log_level="ERROR")
        .build_algo()
    )
    full = ReplayStorage(algo.get_policy().spec, rows)
    for episode in range(rows // 1000):
        full.add(fragment(episode, 1000))
    algo._load_replay(full.state_arrays())

    seconds: dict[str, list[float]] = {"an iteration": [], "death of the replay actor": []}
    for _ in range(turns):
        started = time.perf_counter()
        algo.train()
        seconds["an iteration"].append(time.perf_counter() - started)
        held = ray.get(algo.replay.metrics.remote())["num_rows"]
        pid = ray.get(algo.replay.__ray_call__.remote(lambda self: os.getpid()))
        os.kill(pid, signal.SIGKILL)
        started = time.perf_counter()
        assert algo.supervised.call("metrics")["num_rows"] == held
        seconds["death of the replay actor"].append(time.perf_counter() - started)
    algo.stop()

    medians = {name: float(np.median(each)) for name, each in seconds.items()}
    ratio = medians["death of the replay actor"] / medians["an iteration"]
    for name, each in seconds.items():
        click.echo(f"{name}: {medians[name]:.1f} s ({', '.join(f'{s:.1f}' for s in each)})")
    click.echo(f"ratio: {ratio:.3f}")
    if out:
        about = {"machine": platform.machine(), "rows": rows, "turns": turns}
        with open(out, "w") as file:
            json.dump({"about": about, "seconds": seconds, "ratio": ratio}, file, indent=2)
            file.write("\n")


if __name__ == "__main__":
    main()
