"""Environment steps per second of a rollout worker against a bare gymnasium + torch loop.

    python benchmarks/rollout.py --out benchmarks/results/rollout.json

Each side steps the same environment with the same policy network on one thread; the sides run in
turns in one process. The worker is RLlib's own with our policy, and its time includes splitting the
batch into the replay's fragments.
"""

from __future__ import annotations

import json
import platform
import time

import click
import gymnasium as gym
import numpy as np
import ray
import torch
from ray.rllib.policy.sample_batch import DEFAULT_POLICY_ID

from qwr_rllib import QWRConfig
from qwr_rllib.sampling.worker import fragments_of

STEPS = 1000


def bare_loop(env: gym.Env, networks) -> None:
    """Collects STEPS steps and keeps their rows, as a single-file implementation would."""
    low, high = env.action_space.low, env.action_space.high
    rows = []
    obs, _ = env.reset()
    for _ in range(STEPS):
        with torch.inference_mode():
            mu = networks.dist_inputs(torch.as_tensor(obs, dtype=torch.float32))
            action = networks.actor.sample(mu)
        mu, action = mu.numpy(), action.numpy()
        scaled = low + (np.clip(action, -1, 1) + 1) * (high - low) / 2
        next_obs, reward, terminated, truncated, _ = env.step(scaled)
        rows.append((obs, mu, action, reward, terminated))
        obs = next_obs if not (terminated or truncated) else env.reset()[0]


@click.command()
@click.option("--env", "env_id", default="HalfCheetah-v5", show_default=True)
@click.option("--envs", multiple=True, type=int, default=(1, 2, 4, 8), show_default=True)
@click.option("--turns", default=5, show_default=True)
@click.option("--out", type=click.Path(dir_okay=False), help="Writes the results as JSON.")
def main(env_id: str, envs: tuple[int, ...], turns: int, out: str | None) -> None:
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    algos = [
        QWRConfig()
        .environment(env_id)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=count)
        .training(n_interactions=STEPS, replay_capacity=STEPS, learner_threads=1)
        .build_algo()
        for count in envs
    ]
    torch.set_num_threads(1)
    env = gym.make(env_id)
    seconds: dict[str, list[float]] = {}
    for _ in range(turns + 1):  # the first warms up
        started = time.perf_counter()
        bare_loop(env, algos[0].get_policy().networks)
        seconds.setdefault("bare loop", []).append(time.perf_counter() - started)
        for count, algo in zip(envs, algos, strict=True):
            started = time.perf_counter()
            batch = algo.env_runner.sample().policy_batches[DEFAULT_POLICY_ID]
            fragments_of(algo.get_policy(), batch)
            assert len(batch) == STEPS
            name = f"worker, {count} environments"
            seconds.setdefault(name, []).append(time.perf_counter() - started)
    rates = {name: STEPS / float(np.median(times[1:])) for name, times in seconds.items()}
    for name, rate in rates.items():
        ratio = rate / rates["bare loop"]
        click.echo(f"{name:24s} {rate:8.0f} steps/s   {ratio:5.2f} of the bare loop")
    if out:
        about = {"env": env_id, "machine": platform.machine(), "turns": turns}
        with open(out, "w") as file:
            json.dump({"about": about, "steps_per_s": rates}, file, indent=2)
            file.write("\n")


if __name__ == "__main__":
    main()
