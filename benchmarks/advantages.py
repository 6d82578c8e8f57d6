"""Advantages of a trained critic against advantages measured by episodes.

    python benchmarks/advantages.py CHECKPOINT --out benchmarks/results/advantages-hopper.json

For Hopper, Walker2d and Half-Cheetah, whose observations determine the simulator's state. In states
of the replay's latest rows, each of n actions of the stored policy starts ``--rollouts`` episodes,
which continue with the checkpoint's noisy policy. The noise is the same for all n actions. The
correlation r between two halves of the episodes tells how reliable the measured advantages are: a
perfect critic would correlate by ``sqrt(2 r / (1 + r))`` with the advantages of all episodes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import gymnasium as gym
import numpy as np
import torch
from learner import save
from ray.rllib.policy import Policy

from qwr_rllib.algorithms.policy import QWRTorchPolicy
from qwr_rllib.replay.storage import ReplayStorage

LATEST = 3000  # rows


def returns(
    env_id: str, policy: QWRTorchPolicy, obs: np.ndarray, actions: np.ndarray, noise: np.ndarray
) -> np.ndarray:
    """Returns discounted returns ``(n, rollouts)`` of episodes that begin in one state.

    Args:
        env_id: the id of a MuJoCo task.
        policy: the policy that acts after the first step.
        obs: ``(o,)``, the observation of the first state.
        actions: ``(n, d)``, the first actions.
        noise: ``(horizon, rollouts, d)``, standard normal, for the steps after the first.
    """
    n, horizon, rollouts = len(actions), *noise.shape[:2]
    env: Any = gym.make(env_id).unwrapped
    env.reset(seed=0)
    hidden = env.model.nq + env.model.nv - len(obs)  # the first positions are not observed
    start = np.concatenate([np.zeros(hidden), obs])
    total = np.zeros((n, rollouts))
    states = [(i, k, start) for i in range(n) for k in range(rollouts)]
    chosen = np.repeat(actions, rollouts, 0)
    for t in range(horizon):
        after, observations = [], []
        for (i, k, state), action in zip(states, chosen, strict=True):
            env.set_state(state[: env.model.nq], state[env.model.nq :])
            clipped = np.clip(action, -1, 1) * env.action_space.high
            observation, reward, terminated, _, _ = env.step(clipped)
            total[i, k] += policy.learner.gamma**t * reward
            if not terminated:
                after.append((i, k, np.concatenate([env.data.qpos, env.data.qvel])))
                observations.append(observation)
        if not after:
            break
        states = after
        means = policy.dist_inputs(np.array(observations, np.float32))
        chosen = means + policy.config["action_std"] * noise[t, [k for _, k, _ in states]]
    return total


def centred(values: np.ndarray) -> np.ndarray:
    return values - values.mean(1, keepdims=True)


def correlation(left: np.ndarray, right: np.ndarray) -> float:
    return float(np.corrcoef(left.ravel(), right.ravel())[0, 1])


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--states", default=100, show_default=True)
@click.option("--actions", "n", default=8, show_default=True, help="Actions of each state.")
@click.option("--rollouts", default=32, show_default=True, help="Episodes of each action.")
@click.option("--horizon", default=200, show_default=True, help="Steps of an episode.")
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=click.Path(dir_okay=False), help="Writes the results as JSON.")
def main(
    checkpoint: Path, states: int, n: int, rollouts: int, horizon: int, seed: int, out: str | None
) -> None:
    torch.set_num_threads(1)
    policy: Any = Policy.from_checkpoint(str(checkpoint))["default_policy"]
    networks, env_id = policy.networks, policy.config["env"]
    storage = ReplayStorage(policy.spec, policy.config["replay_capacity"])
    with np.load(checkpoint / "replay.npz") as arrays:
        storage.load(arrays)
    rng = np.random.default_rng(seed)
    latest = storage.state_arrays()["trajectory_slots"][-LATEST:]
    slots = rng.choice(latest, states, replace=False)
    obs, mu = (storage.columns[name][slots] for name in ("obs", "action_dist_inputs"))
    std = policy.config["action_std"]
    actions = mu[:, None] + std * rng.standard_normal((states, n, mu.shape[-1]), np.float32)
    noise = rng.standard_normal((states, horizon, rollouts, mu.shape[-1]), np.float32)
    with click.progressbar(range(states), label="states") as progress:
        measured = np.stack(
            [returns(env_id, policy, obs[i], actions[i], noise[i]) for i in progress]
        )
    with torch.no_grad():
        features = networks.critic.features(networks.normalize(torch.from_numpy(obs)))
        q_values = networks.critic.q_values(features, torch.from_numpy(actions)).numpy()

    halves = [centred(half.mean(2)) for half in np.split(measured, [rollouts // 2], axis=2)]
    true, predicted = centred(measured.mean(2)), centred(q_values)
    signal = np.sqrt(np.clip((halves[0] * halves[1]).mean(1), 0, None))  # free of the noise
    results = {
        "correlation of values over states": correlation(measured.mean((1, 2)), q_values.mean(1)),
        "correlation of advantages": correlation(true, predicted),
        "correlation of advantages, halves of the episodes": correlation(*halves),
        "std of the true advantages, median state": float(np.median(signal)),
        "std of the true advantages, 90 % of states": float(np.quantile(signal, 0.9)),
        "std of the critic's advantages, median state": float(np.median(predicted.std(1))),
        "std of the critic's advantages, 90 % of states": float(np.quantile(predicted.std(1), 0.9)),
    }
    click.echo(json.dumps(results, indent=2))
    if out:
        save(out, [results], env=env_id, states=states, actions=n, rollouts=rollouts, seed=seed)


if __name__ == "__main__":
    main()
