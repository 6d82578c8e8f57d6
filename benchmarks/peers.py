"""Wall-clock to 20K Half-Cheetah interactions, updates and floating-point work per second.

    pip install -e . 'stable-baselines3>=2.4,<3' 'sbx-rl>=0.20,<1'
    python benchmarks/peers.py --out benchmarks/results/peers.json

Compares soft actor-critic of Stable-Baselines3, of SBX (the same in JAX) and of RLlib (both API
stacks), with two hidden layers of 256 units, minibatches of 256 and the usual one update per
interaction, and QWR with its defaults, which makes six updates per interaction. They run one at a
time, each in its own process with one thread, which also steps the environment. A peer that is not
finished after ``--limit`` is stopped, and its time is extrapolated from its rate so far.

Updates of different algorithms are not comparable. Therefore the multiplications of an update are
counted: for QWR from the shapes of its matrix products (``limit.py``), for soft actor-critic by the
formula at :func:`sac_products`. Products that an implementation computes but does not need are not
counted.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from typing import Any

import click
from learner import save
from limit import Products, learner

ENV = "HalfCheetah-v5"
OBS, ACTION, WIDTH, BATCH = 17, 6, 256, 256
WARM_UP = 100  # interactions before the first update of soft actor-critic
THREADS = {
    "OMP_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}


def sac_products() -> float:
    """Returns the floating-point operations of the matrix products that one update of SAC needs.

    The critic's loss needs a pass of the actor and of two target critics at the next states, and
    passes of two critics forwards and, for weights and inputs, backwards. The actor's loss needs
    passes of the actor forwards and backwards, and of two critics forwards and back to the action.
    """
    critic = (OBS + ACTION) * WIDTH + WIDTH**2 + WIDTH
    actor = OBS * WIDTH + WIDTH**2 + WIDTH * 2 * ACTION
    return 2.0 * BATCH * (actor * (1 + 1 + 2) + 2 * critic * (1 + 1 + 2 + 1 + 1))


def qwr_products(steps: int) -> float:
    """Returns the same for QWR's average update in a run of ``steps`` interactions."""
    plain, view = learner(rows=max(1000, steps // 2), compile=False, steps=300)
    with Products() as products:
        plain.train(view)
    counted = products.count.items()
    return sum(2.0 * m * k * n * times for (m, k, n), times in counted) / (2 * 300)


def stable_baselines(library: str, steps: int, deadline: float) -> tuple[int, int]:
    import importlib

    model = importlib.import_module(library).SAC(
        "MlpPolicy",
        ENV,
        batch_size=BATCH,
        learning_starts=WARM_UP,
        policy_kwargs={"net_arch": [WIDTH, WIDTH]},
        seed=0,
    )
    model.learn(steps, callback=lambda *_: time.perf_counter() < deadline)
    return model.num_timesteps, model._n_updates


def rllib_sac(new_stack: bool, steps: int, deadline: float) -> tuple[int, int]:
    from ray.rllib.algorithms.sac import SACConfig
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

    hiddens = [WIDTH, WIDTH]
    config = (
        SACConfig()
        .api_stack(
            enable_rl_module_and_learner=new_stack, enable_env_runner_and_connector_v2=new_stack
        )
        .environment(ENV)
        .env_runners(num_env_runners=0, rollout_fragment_length=1)
        .reporting(min_sample_timesteps_per_iteration=100)
        .debugging(seed=0)
    )
    common = {"num_steps_sampled_before_learning_starts": WARM_UP, "training_intensity": None}
    if new_stack:
        replay = {"type": "EpisodeReplayBuffer", "capacity": 100_000}
        config.training(train_batch_size_per_learner=BATCH, replay_buffer_config=replay, **common)
        config.rl_module(model_config=DefaultModelConfig(fcnet_hiddens=hiddens))
    else:
        networks = {"fcnet_hiddens": hiddens}
        replay = {"type": "MultiAgentReplayBuffer", "capacity": 100_000}
        config.training(
            replay_buffer_config=replay,
            train_batch_size=BATCH,
            q_model_config=networks,
            policy_model_config=networks,
            **common,
        )
    result = train(config, steps, deadline)
    taken = int(result["num_env_steps_sampled_lifetime"])
    return taken, taken - WARM_UP


def qwr(steps: int, deadline: float) -> tuple[int, int]:
    from qwr_rllib import QWRConfig

    config = (
        QWRConfig()
        .environment(ENV)
        .env_runners(num_env_runners=0)
        .training(learner_threads=1)
        .debugging(seed=0)
    )
    result = train(config, steps, deadline)
    updates = [result["learner"][f"num_{phase}_updates_lifetime"] for phase in ("critic", "actor")]
    return int(result["num_env_steps_sampled_lifetime"]), sum(updates)


def train(config: Any, steps: int, deadline: float) -> dict[str, Any]:
    """Trains an RLlib algorithm and returns its last result."""
    algo = config.build_algo()
    while (result := algo.train())["num_env_steps_sampled_lifetime"] < steps:
        if time.perf_counter() > deadline:
            break
    algo.stop()
    return result


# Functions from (interactions, time at which to give up) to (interactions, updates) made.
PEERS: dict[str, Callable[[int, float], tuple[int, int]]] = {
    "Stable-Baselines3 SAC": partial(stable_baselines, "stable_baselines3"),
    "SBX SAC": partial(stable_baselines, "sbx"),
    "RLlib SAC, new API stack": partial(rllib_sac, True),
    "RLlib SAC, old API stack": partial(rllib_sac, False),
    "QWR": qwr,
}


def timed(peer: str, steps: int, limit: float) -> dict[str, float]:
    """Runs a peer; the time includes imports and Ray's start, for which a user also waits."""
    started = time.perf_counter()
    interactions, updates = PEERS[peer](steps, started + limit)
    seconds = time.perf_counter() - started
    return {"interactions": interactions, "updates": updates, "seconds": seconds}


@click.command()
@click.option("--steps", default=20_000, show_default=True, help="Interactions of each.")
@click.option("--limit", default=15.0, show_default=True, help="Minutes of each.")
@click.option("--peer", "peers", multiple=True, type=click.Choice(list(PEERS)), default=list(PEERS))
@click.option("--out", type=click.Path(dir_okay=False), help="Writes the results as JSON.")
def main(steps: int, limit: float, peers: tuple[str, ...], out: str | None) -> None:
    os.environ |= THREADS
    spawn = multiprocessing.get_context("spawn")
    results: list[dict[str, Any]] = []
    for peer in peers:
        with ProcessPoolExecutor(1, spawn) as process:
            run = process.submit(timed, peer, steps, limit * 60).result()
        products = qwr_products(int(run["interactions"])) if peer == "QWR" else sac_products()
        rate = run["updates"] / run["seconds"]
        row = run | {
            f"seconds to {steps} interactions": run["seconds"] * steps / run["interactions"],
            "updates per second": rate,
            "1e6 floating-point operations per update": products / 1e6,
            "1e9 floating-point operations per second": products * rate / 1e9,
        }
        results.append({"peer": peer} | row)
        click.echo("\n".join([peer, *(f"  {key:45s} {value:10.1f}" for key, value in row.items())]))
    if out:
        packages = ("stable-baselines3", "sbx-rl", "ray", "jax")
        save(out, results, env=ENV, threads=1, versions={name: version(name) for name in packages})


if __name__ == "__main__":
    main()
