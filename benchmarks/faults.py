"""Cost of process deaths: a single one of the replay actor, or many during a run.

    python benchmarks/faults.py --out benchmarks/results/faults.json
    python benchmarks/faults.py --soak 200 --overlap

Without ``--soak``: Walker2d with a full replay of random rows. Measures seconds of whole iterations
(1000 environment steps, 3000 + 3000 updates), and seconds from a SIGKILL of the replay actor until
its successor holds every row, in turns in one process.

With ``--soak``: runs this many short iterations of Pendulum with two rollout workers, while at
random moments a worker or the replay actor gets a SIGKILL. Each iteration must have all its rows.
If an iteration takes longer than ``--stall`` seconds, the stacks of this process are printed.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import platform
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator

import click
import numpy as np
import ray
from ray._private.state import actors
from scaling import fragment

from qwr_rllib import QWRConfig
from qwr_rllib.replay.storage import ReplayStorage


@click.command()
@click.option("--rows", default=50_000, show_default=True, help="In the replay.")
@click.option("--turns", default=3, show_default=True)
@click.option("--soak", type=click.IntRange(1), help="So many iterations with kills instead.")
@click.option("--overlap", is_flag=True, help="With --soak: overlap_sampling.")
@click.option("--every", default=20.0, show_default=True, help="Mean seconds between kills.")
@click.option("--stall", default=60.0, show_default=True, help="Seconds of a stall.")
@click.option("--seed", default=0, show_default=True, help="Of the kills.")
@click.option("--out", type=click.Path(dir_okay=False), help="Writes the results as JSON.")
def main(
    rows: int,
    turns: int,
    soak: int | None,
    overlap: bool,
    every: float,
    stall: float,
    seed: int,
    out: str | None,
) -> None:
    results = (
        cost_of_a_death(rows, turns)
        if soak is None
        else with_kills(soak, overlap, every, stall, seed)
    )
    if out:
        with open(out, "w") as file:
            json.dump(results, file, indent=2)
            file.write("\n")


@contextlib.contextmanager
def killer(every: float, seed: int) -> Iterator[Counter[str]]:
    """Kills rollout workers and replay actors of this driver; yields the kills by kind."""
    killed: Counter[str] = Counter()
    over = threading.Event()
    rng = random.Random(seed)
    job = ray.get_runtime_context().get_job_id()

    def kill() -> None:
        while not over.wait(rng.expovariate(1 / every)):
            alive = [
                actor
                for actor in actors().values()
                if actor["JobID"] == job and actor["State"] == "ALIVE" and actor["Pid"]
            ]
            if alive:
                victim = rng.choice(alive)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim["Pid"], signal.SIGKILL)
                    killed[victim["ActorClassName"].rpartition(".")[2]] += 1

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    yield killed
    over.set()
    thread.join()


def with_kills(iterations: int, overlap: bool, every: float, stall: float, seed: int) -> dict:
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    config = QWRConfig().environment("Pendulum-v1").env_runners(num_env_runners=2)
    config.training(
        n_interactions=200,
        n_critic_steps=200,
        n_actor_steps=200,
        overlap_sampling=overlap,
        learner_threads=1,
    )
    algo = config.debugging(seed=0, log_level="ERROR").build_algo()
    seconds: list[float] = []
    with killer(every, seed) as killed:
        for iteration in range(1, iterations + 1):
            faulthandler.dump_traceback_later(stall, repeat=True, file=sys.stderr)
            started = time.perf_counter()
            result = algo.train()
            seconds.append(time.perf_counter() - started)
            faulthandler.cancel_dump_traceback_later()
            assert result["num_env_steps_sampled_lifetime"] == 200 * iteration
            assert result["replay"]["num_rows"] == algo.view.num_rows
            if seconds[-1] > stall:
                click.echo(f"iteration {iteration} took {seconds[-1]:.1f} s")
    algo.stop()
    median, longest = float(np.median(seconds)), max(seconds)
    click.echo(f"{iterations} iterations, overlap {overlap}, killed {dict(killed)}")
    click.echo(f"an iteration: median {median:.1f} s, longest {longest:.1f} s")
    about = {"machine": platform.machine(), "overlap": overlap, "every": every, "seed": seed}
    return {"about": about, "killed": dict(killed), "seconds": seconds}


def cost_of_a_death(rows: int, turns: int) -> dict:
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
        assert algo.replay_client.call("metrics")["num_rows"] == held
        seconds["death of the replay actor"].append(time.perf_counter() - started)
    algo.stop()

    medians = {name: float(np.median(each)) for name, each in seconds.items()}
    ratio = medians["death of the replay actor"] / medians["an iteration"]
    for name, each in seconds.items():
        click.echo(f"{name}: {medians[name]:.1f} s ({', '.join(f'{s:.1f}' for s in each)})")
    click.echo(f"ratio: {ratio:.3f}")
    about = {"machine": platform.machine(), "rows": rows, "turns": turns}
    return {"about": about, "seconds": seconds, "ratio": ratio}


if __name__ == "__main__":
    main()
