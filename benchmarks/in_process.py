"""Training that starts no Ray: an environment, the store, the view and the learner in one loop.

    python benchmarks/in_process.py Hopper-v5 --config '{"backup_temperature": 0.1}'
    python benchmarks/in_process.py --like docs/results/table1/awr/AWR_Hopper-v5_seed0 --device cuda

For looking at many settings quickly, and for a machine without Ray: an iteration takes what the
learner takes. Rows, targets and updates are those of ``rllib train``; random numbers are drawn in
another order, so that a run is another sample of the same thing and not the same run.

A line for each iteration, in the shape of RLlib's ``result.json`` as far as reports read it: the
training return with the policy's noise, the evaluation with its mode. What Ray's do not have:

    learner/q_std       standard deviation of Q over the actions of a state, in the median of 512
    learner/moved       root mean square of how far the policy's mean moved in the new states
    versions/in_process the device: the mark of a run of this script
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import gymnasium as gym
import numpy as np
import torch

from qwr_rllib import deployment
from qwr_rllib.learner import Learner, LearnerConfig
from qwr_rllib.networks import QWRNetworks
from qwr_rllib.replay.storage import Fragment, ReplayStorage
from qwr_rllib.replay.view import ReplayView
from qwr_rllib.settings import learner_config, networks_of
from qwr_rllib.specs import Spec
from qwr_rllib.versions import versions

SMOOTHING = 100  # episodes in the mean return of training, as RLlib's
EVALUATION_EPISODES = 10
# RLlib calls lambda_ "lambda".
DEFAULTS = {
    name.rstrip("_"): field.default for name, field in LearnerConfig.__dataclass_fields__.items()
}
CHANGEABLE = DEFAULTS.keys() | {
    "action_std",
    "critic_post_gate_layer",
    "n_interactions",
    "normalize_observations",
    "replay_capacity",
}


class Actor:
    """Acts in an environment with Box actions."""

    def __init__(self, env: gym.Env, networks: QWRNetworks, seed: int) -> None:
        self.env, self.networks = env, networks
        self.random = np.random.default_rng(seed)
        self.obs, _ = env.reset(seed=seed)
        self.episode = self.step = 0
        self.total = 0.0
        self.returns: deque[float] = deque(maxlen=SMOOTHING)

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

    def evaluate(self) -> list[float]:
        """Returns of episodes with the mode."""
        returns = []
        for _ in range(EVALUATION_EPISODES):
            self.obs, _ = self.env.reset()
            total, done = 0.0, False
            while not done:
                self.obs, reward, *ends = self.act(self.mean(self.obs))
                total, done = total + reward, any(ends)
            returns.append(total)
        return returns


@torch.no_grad()
def std_over_actions(learner: Learner, view: ReplayView, slots: torch.Tensor) -> float:
    critic: Any = learner.critic
    mu = view.columns["action_dist_inputs"][slots]
    actions, _ = learner.actor.proposals(mu, 8)
    features = critic.features(learner.networks.normalize(view.observations(slots)))
    return critic.q_values(features, actions).std(-1).median().item()


def json_object(text: str) -> dict[str, Any]:
    """The value of an option; the package's own type for it needs Ray."""
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f'expected an object such as {{"key": 1}}, got {text}')
    return value


def settings_of(trial: Path | None) -> dict[str, Any]:
    """The config that a trial's results name, or QWR's defaults."""
    if trial:
        results = (trial / "result.json").read_text().splitlines()
        return DEFAULTS | json.loads(results[-1])["config"]  # a later release may have more keys
    from qwr_rllib.qwr import QWRConfig  # the one thing here that needs Ray

    return QWRConfig().to_dict()


@click.command()
@click.argument("env_id", metavar="[ENV]", required=False)
@click.option("--like", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="A trial's folder, which has the environment, seed and settings.")  # fmt: skip
@click.option("--iterations", default=100, show_default=True)
@click.option("--seed", type=int, show_default="the trial's, or 0")
@click.option("--config", "given", type=json_object, default="{}", metavar="JSON",
              help="Changes to the learner's, replay's and networks' settings.")  # fmt: skip
@click.option("--evaluate-every", default=10, show_default=True, help="Iterations.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--out", type=click.File("w"), default="-")
@click.option("--save", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Write the trained policy here, as safetensors.")  # fmt: skip
def main(
    env_id: str | None,
    like: Path | None,
    iterations: int,
    seed: int | None,
    given: dict[str, Any],
    evaluate_every: int,
    device: str,
    out: Any,
    save: Path | None,
) -> None:
    config = settings_of(like)
    if unknown := given.keys() - CHANGEABLE:
        raise click.BadParameter(
            f"unknown config key {unknown.pop()!r}, known are {', '.join(sorted(CHANGEABLE))}"
        )
    config |= given
    env_id = config["env"] = env_id or config["env"]
    if not env_id:
        raise click.UsageError("needs an environment, or --like")
    seed = config["seed"] = (config["seed"] or 0) if seed is None else seed
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    env = gym.make(env_id)
    spaces: Any = env.observation_space, env.action_space
    spec = Spec(spaces[0].shape, "float32", spaces[1].shape[0], False)
    settings, networks = learner_config(config), networks_of(spec, config).to(device)
    learner = Learner(networks, settings, seed)
    capacity, per_iteration = config["replay_capacity"], config["n_interactions"]
    storage, view = ReplayStorage(spec, capacity), ReplayView(spec, capacity, device)
    acting = networks_of(spec, config, with_critic=False)
    acting.load_state_dict(networks.acting_state())
    actor = Actor(env, acting, seed)
    evaluated = Actor(gym.make(env_id), acting, seed + 10_000)
    on_gpu = device.startswith("cuda")
    made_with = versions() | {"in_process": torch.cuda.get_device_name() if on_gpu else device}
    started = time.perf_counter()
    for iteration in range(1, iterations + 1):
        for fragment in actor.collect(per_iteration):
            storage.add(fragment)
        new = view.update(storage.changes(view.uid, view.version))
        learner.observe(view.observations(new))
        learner.gamma = settings.gamma_at(iteration * per_iteration)
        metrics = learner.train(view)
        moved = networks.behaviour(view.observations(new)).detach()
        moved -= view.columns["action_dist_inputs"][new]
        metrics["moved"] = moved.square().sum(-1).mean().sqrt().item()
        if settings.critic_type == "q":
            some = new[torch.randint(len(new), (512,))]
            metrics["q_std"] = std_over_actions(learner, view, some)
        acting.load_state_dict(networks.acting_state())
        row: dict[str, Any] = {
            "training_iteration": iteration,
            "num_env_steps_sampled_lifetime": iteration * per_iteration,
            "time_total_s": time.perf_counter() - started,
            "env_runners": {
                "episode_return_mean": float(np.mean(actor.returns or [np.nan])),
            },
            "learner": metrics,
            "done": iteration == iterations,
        }
        if iteration % evaluate_every == 0:
            returns = evaluated.evaluate()
            row["evaluation"] = {
                "env_runners": {
                    "episode_return_mean": float(np.mean(returns)),
                    "hist_stats": {"episode_reward": returns},
                }
            }
        if row["done"]:
            row["env_runners"]["hist_stats"] = {"episode_reward": list(actor.returns)}
            row |= {"config": config, "versions": made_with}
            row["date"] = time.strftime("%Y-%m-%d_%H-%M-%S")
        click.echo(json.dumps(row, default=str), file=out)
        out.flush()
    if save:
        about = deployment.describe(spec, *spaces, config, iterations * per_iteration)
        deployment.save(save, networks.acting_state(), about)


if __name__ == "__main__":
    main()
