"""Throughput of one replay actor and one learner's view.

    python benchmarks/scaling.py --out benchmarks/results/scaling.json

Measures environment steps per second of 1 and 2 rollout workers that send their rows to the replay
(Half-Cheetah), rows per second that a replay actor accepts from 1, 4 and 16 simulated writers
(Walker's rows; 16 workers split 1000 steps into fragments of 62), and the time to update a view
with 1000 new rows of a replay that holds 1K to 1M rows.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import time

import click
import numpy as np
import ray

from qwr_rllib import QWRConfig
from qwr_rllib.replay.actor import Replay, ReplayActor
from qwr_rllib.replay.fragments import Fragment
from qwr_rllib.replay.replica import ReplayView
from qwr_rllib.specs import Spec

WALKER = Spec(obs_shape=(17,), obs_dtype="float32", action_dim=6, discrete=False)


def fragment(episode: int, rows: int, start: int = 0, done: bool = True) -> Fragment:
    """Returns ``rows`` steps of random numbers; truncated at the end if ``done``."""
    random = np.random.default_rng(episode)
    return Fragment(
        episode=episode,
        start=start,
        obs=random.standard_normal((rows + 1, 17), np.float32),
        action_dist_inputs=random.standard_normal((rows + 1, 6), np.float32),
        actions=random.standard_normal((rows, 6), np.float32),
        rewards=random.standard_normal(rows, np.float32),
        terminated=False,
        done=done,
    )


@ray.remote(num_cpus=0)
class Writer:
    """An actor that adds fragments one at a time, as a rollout worker does, as fast as possible."""

    def __init__(self, index: int, rows: int) -> None:
        self._index = index
        self._made = fragment(index, rows)

    def write(self, replay, until: float) -> int:
        stored = 0
        while time.time() < until:
            # The same numbers again, as a new episode.
            self._made = dataclasses.replace(self._made, episode=self._made.episode + 1000)
            stored += ray.get(replay.add.remote([self._made], self._index)).num_rows_stored
        return stored


def inserts(writers: int, seconds: float, rows: int) -> float:
    """Returns the rows per second that one replay actor accepts."""
    replay = ReplayActor.remote(WALKER, 50_000)
    hands = [Writer.remote(i, rows) for i in range(writers)]
    ray.get([hand.write.remote(replay, 0) for hand in hands])  # all are running
    until = time.time() + seconds
    stored = sum(ray.get([hand.write.remote(replay, until) for hand in hands]))
    took = time.time() - until + seconds
    assert ray.get(replay.metrics.remote())["num_rows_inserted_lifetime"] == stored
    for actor in (replay, *hands):
        ray.kill(actor)
    return stored / took


def env_steps(workers: int, steps: int, turns: int) -> float:
    """Returns the environment steps per second that reach the replay."""
    algo = (
        QWRConfig()
        .environment("HalfCheetah-v5")
        .env_runners(num_env_runners=workers)
        .training(n_interactions=steps, replay_capacity=10 * steps, learner_threads=1)
        .build_algo()
    )
    seconds = []
    for _ in range(turns + 1):  # the first warms up
        started = time.perf_counter()
        algo._collect()
        seconds.append(time.perf_counter() - started)
        algo._update_view()
    algo.stop()
    return steps / float(np.median(seconds[1:]))


def view_update(rows: int, turns: int) -> dict[str, float]:
    """Returns the seconds to update a view with 1000 new rows of a full replay, and with all rows.

    Transport is not included.
    """
    store = Replay(WALKER, rows)
    view = ReplayView(WALKER, rows)
    for episode in range(max(1, rows // 1000)):
        store.add([fragment(episode, min(1000, rows))])
    seconds = []
    started = time.perf_counter()
    view.update(store.update(view.uid, view.version).changes)
    load = time.perf_counter() - started
    for turn in range(turns):
        store.add([fragment(1_000_000 + turn, min(1000, rows // 2))])
        started = time.perf_counter()
        view.update(store.update(view.uid, view.version).changes)
        seconds.append(time.perf_counter() - started)
    return {"new_rows_s": float(np.median(seconds)), "whole_s": load}


@click.command()
@click.option("--seconds", default=10.0, show_default=True, help="Of each insert measurement.")
@click.option("--turns", default=5, show_default=True)
@click.option("--out", type=click.Path(dir_okay=False), help="Writes the results as JSON.")
def main(seconds: float, turns: int, out: str | None) -> None:
    result: dict = {"about": {"machine": platform.machine(), "seconds": seconds, "turns": turns}}
    result["view_update"] = {}
    for rows in (1_000, 10_000, 100_000, 1_000_000):
        result["view_update"][rows] = took = view_update(rows, turns)
        click.echo(
            f"view of {rows:9,} rows: {1e3 * took['new_rows_s']:8.1f} ms for new ones, "
            f"{1e3 * took['whole_s']:8.1f} ms for all"
        )
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    result["inserts_per_s"] = {}
    for writers in (1, 4, 16):
        for rows in (62, 1000):
            rate = inserts(writers, seconds, rows)
            result["inserts_per_s"][f"{writers} writers, fragments of {rows}"] = rate
            click.echo(f"{writers:2d} writers, fragments of {rows:4d} rows: {rate:9.0f} rows/s")
    result["env_steps_per_s"] = {}
    for workers in (1, 2):
        rate = env_steps(workers, 1000, turns)
        result["env_steps_per_s"][workers] = rate
        click.echo(f"{workers} rollout workers: {rate:6.0f} environment steps/s")
    if out:
        with open(out, "w") as file:
            json.dump(result, file, indent=2)
            file.write("\n")


if __name__ == "__main__":
    main()
