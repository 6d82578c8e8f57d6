"""Training that starts no Ray: an environment, the store, the view and the learner in one loop.

    python benchmarks/in_process.py Hopper-v5 --steps 60000 --config '{"backup_temperature": 0.1}' \
        --out hopper.jsonl

For looking at many settings quickly: an iteration takes what the learner takes. Rows, targets and
updates are those of ``rllib train``; random numbers are drawn in another order, so that a run is
another sample of the same thing and not the same run. A line of JSON for each iteration:

    steps     environment steps so far
    training  mean return of the last 10 episodes, with the policy's noise
    mode      every ``--evaluate-every`` iterations: mean return of 10 episodes with its mode
    q_mean, critic_loss, weight_ess: see docs/metrics.md
    q_std     standard deviation of Q over the actions of a state, in the median one of 512
    moved     root mean square of how far the policy's mean moved in the states just collected
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import click
import gymnasium as gym
import numpy as np
import torch

from qwr_rllib.cli.experiments import JsonObject
from qwr_rllib.learner import Learner, LearnerConfig
from qwr_rllib.networks import QWRNetworks
from qwr_rllib.qwr import QWRConfig
from qwr_rllib.replay.storage import Fragment, ReplayStorage
from qwr_rllib.replay.view import ReplayView
from qwr_rllib.specs import Spec

EVALUATION_EPISODES = 10


class Actor:
    """Acts in an environment with Box actions."""

    def __init__(self, env: gym.Env, networks: QWRNetworks, seed: int) -> None:
        self.env, self.networks = env, networks
        self.random = np.random.default_rng(seed)
        self.obs, _ = env.reset(seed=seed)
        self.episode = self.step = 0
        self.total = 0.0
        self.returns: deque[float] = deque(maxlen=10)

    @torch.inference_mode()
    def mean(self, obs: np.ndarray) -> np.ndarray:
        return self.networks.behaviour(torch.as_tensor(obs, dtype=torch.float32)[None])[0].numpy()

    def act(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool]:
        high = self.env.action_space.high  # type: ignore[attr-defined]
        obs, reward, terminated, truncated, _ = self.env.step(high * np.clip(action, -1, 1))
        return obs, float(reward), terminated, truncated

    def collect(self, steps: int) -> Iterator[Fragment]:
        """Whole episodes, and what has begun of the last one."""
        rows: list[tuple[np.ndarray, np.ndarray, np.ndarray, float]] = []
        for left in range(steps - 1, -1, -1):
            mean = self.mean(self.obs)
            std = self.networks.actor.action_std
            action = mean + std * self.random.standard_normal(mean.shape, np.float32)
            after, reward, terminated, truncated = self.act(action)
            rows.append((self.obs, mean, action, reward))
            self.obs, self.step, self.total = after, self.step + 1, self.total + reward
            done = terminated or truncated
            if done or not left:
                obs, mu, actions, rewards = map(list, zip(*rows, strict=True))
                last = [] if terminated else [after]
                yield Fragment(
                    episode=self.episode,
                    start=self.step - len(rows),
                    obs=np.array(obs + last, np.float32),
                    action_dist_inputs=np.array(mu + [self.mean(each) for each in last]),
                    actions=np.array(actions),
                    rewards=np.array(rewards, np.float32),
                    terminated=terminated,
                    done=done,
                )
                rows = []
            if done:
                self.returns.append(self.total)
                self.obs, _ = self.env.reset()
                self.episode, self.step, self.total = self.episode + 1, 0, 0.0

    def evaluate(self) -> float:
        """Mean return of episodes with the mode, in an environment of its own."""
        actor = Actor(gym.make(self.env.spec), self.networks, seed=0)  # type: ignore[arg-type]
        total = 0.0
        for _ in range(EVALUATION_EPISODES):
            done = False
            while not done:
                obs, reward, *ends = actor.act(actor.mean(actor.obs))
                actor.obs, total, done = obs, total + reward, any(ends)
            actor.obs, _ = actor.env.reset()
        return total / EVALUATION_EPISODES


@torch.no_grad()
def std_over_actions(learner: Learner, view: ReplayView, slots: torch.Tensor) -> float:
    critic: Any = learner.critic
    mu = view.columns["action_dist_inputs"][slots]
    actions, _ = learner.actor.proposals(mu, 8)
    features = critic.features(learner.networks.normalize(view.observations(slots)))
    return critic.q_values(features, actions).std(-1).median().item()


@click.command()
@click.argument("env_id", metavar="ENV")
@click.option("--steps", default=100_000, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--config", "given", type=JsonObject(), default={}, metavar="JSON",
              help="Keys of LearnerConfig and those of the replay.")  # fmt: skip
@click.option("--evaluate-every", default=5, show_default=True, help="Iterations.")
@click.option("--out", type=click.File("w"), default="-")
def main(
    env_id: str, steps: int, seed: int, given: dict[str, Any], evaluate_every: int, out: Any
) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    names = {field.name for field in fields(LearnerConfig)}
    defaults = QWRConfig()
    settings = {
        name: getattr(defaults, name)
        for name in ("replay_capacity", "n_interactions", "action_std")
    }
    if unknown := given.keys() - settings.keys() - names:
        raise click.BadParameter(f"unknown config key {unknown.pop()!r}")
    settings |= given
    env = gym.make(env_id)
    spaces: Any = env.observation_space, env.action_space
    spec = Spec(spaces[0].shape, "float32", spaces[1].shape[0], False)
    learner_config = LearnerConfig(**{k: v for k, v in settings.items() if k in names})
    networks = QWRNetworks(
        spec, gamma=learner_config.gamma_at(0), action_std=settings["action_std"]
    )
    learner = Learner(networks, learner_config, seed)
    capacity, per_iteration = settings["replay_capacity"], settings["n_interactions"]
    storage, view = ReplayStorage(spec, capacity), ReplayView(spec, capacity)
    actor = Actor(env, networks, seed)
    for iteration in range(1, steps // per_iteration + 1):
        for fragment in actor.collect(per_iteration):
            storage.add(fragment)
        new = view.update(storage.changes(view.uid, view.version))
        learner.observe(view.observations(new))
        learner.gamma = learner_config.gamma_at(iteration * per_iteration)
        metrics = learner.train(view)
        moved = networks.behaviour(view.observations(new)).detach()
        moved -= view.columns["action_dist_inputs"][new]
        row = {
            "steps": iteration * per_iteration,
            "training": float(np.mean(actor.returns)) if actor.returns else None,
            **{name: metrics[name] for name in ("q_mean", "critic_loss", "weight_ess")},
            "q_std": std_over_actions(learner, view, new[torch.randint(len(new), (512,))]),
            "moved": moved.square().sum(-1).mean().sqrt().item(),
        }
        if iteration % evaluate_every == 0:
            row["mode"] = actor.evaluate()
        click.echo(json.dumps(row), file=out)
        out.flush()


if __name__ == "__main__":
    main()
