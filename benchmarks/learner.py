"""Updates per second of the learner against a plain loop that does Algorithm 2 step by step.

    python benchmarks/learner.py --rows 10000 --rows 50000 --out benchmarks/results/learner.json
    python benchmarks/learner.py --task atari --rows 20000 --steps 100 \
        --out benchmarks/results/learner-atari.json
    python benchmarks/learner.py --task qwr-plus --rows 20000 --steps 300 \
        --out benchmarks/results/learner-qwr-plus.json
    python benchmarks/learner.py --device cuda --rows 10000 --steps 3000 --turns 2 \
        --out benchmarks/results/learner-gpu.json
    python benchmarks/learner.py --device cuda --task atari --rows 20000 --steps 300 --turns 2 \
        --out benchmarks/results/learner-gpu-atari.json

On a GPU the learner is measured in four forms: with its operations one by one, with
``torch.compile``, with each step as a CUDA graph, and with both.

All sides have the same networks, rows, minibatch sizes and thread count, and run in turns. Each
side has its own process, as in use. In a shared process, the plain loop is 1.7 times as fast after
the other side has freed a large block: glibc then no longer returns the memory of large temporaries
to the system at every step. (The environment variables ``MALLOC_MMAP_THRESHOLD_=4000000000
MALLOC_TRIM_THRESHOLD_=4000000000`` have this effect on both sides.)

The plain loop is a straightforward PyTorch version: autograd, ``torch.optim.Adam``,
``clip_grad_norm_``, and targets and weights computed for each minibatch when it is drawn. It does
share the critic's features of a state among all n actions.

QWRPlus has no plain loop. Its learner with autograd's gradients (``compile: false``) is held
against the learner as it is, and with products in bfloat16.
"""

from __future__ import annotations

import copy
import itertools
import json
import multiprocessing
import platform
import time
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import click
import numpy as np
import torch

from qwr_rllib.learning import losses
from qwr_rllib.learning.config import LearnerConfig, defaults_of, learner_config
from qwr_rllib.learning.learner import Learner
from qwr_rllib.learning.networks import ImageEncoder, QWRNetworks, networks_of
from qwr_rllib.replay.fragments import Fragment
from qwr_rllib.replay.replica import ReplayView
from qwr_rllib.replay.storage import ReplayStorage
from qwr_rllib.specs import Spec

TASKS = {
    "walker": Spec((17,), "float32", 6, discrete=False),
    # Pong: stacks of four frames, six actions.
    "atari": Spec((4, 84, 84), "uint8", 6, discrete=True, frame_stack=4),
    "qwr-plus": Spec((17,), "float32", 6, discrete=False),
}
EPISODE = 1000
WHAT = ("critic updates/s", "actor updates/s", "updates/s")


def filled_view(spec: Spec, rows: int, seed: int, device: str = "cpu") -> ReplayView:
    """Returns a view of whole trajectories of random numbers, with ``rows`` steps in total."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    def observations(count: int) -> np.ndarray:
        if spec.image:
            return rng.integers(0, 256, (count, *spec.frame_shape), np.uint8)
        return normal(count, *spec.frame_shape)

    storage, view = ReplayStorage(spec, rows), ReplayView(spec, rows, device)
    for episode in range(rows // EPISODE):
        mu = normal(EPISODE + 1, spec.action_dim, scale=0.3)
        actions = mu[:-1] + normal(EPISODE, spec.action_dim, scale=0.4)
        storage.add(
            Fragment(
                episode=episode,
                start=0,
                obs=observations(EPISODE + 1),
                action_dist_inputs=mu,
                actions=actions.argmax(1) if spec.discrete else actions,
                rewards=normal(EPISODE),
                terminated=False,
                done=True,
                context=observations(spec.frame_stack - 1),
            )
        )
    view.update(storage.changes())
    return view


class PlainLoop:
    """Algorithm 2, one minibatch at a time."""

    def __init__(self, networks: QWRNetworks, config: LearnerConfig, seed: int) -> None:
        self.networks, self.config = networks, config
        self.actor, self.critic = networks.actor, networks.critic
        self.target = copy.deepcopy(self.critic)
        self.critic_adam = torch.optim.Adam(self.critic.parameters(), lr=config.critic_lr)
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), lr=config.actor_lr)
        self.generator = torch.Generator(self.critic.head.weight.device).manual_seed(seed)

    def inputs(self, view: ReplayView, slots: torch.Tensor) -> torch.Tensor:
        """Returns the networks' inputs for the states in ``slots`` ``(k,)``."""
        obs = view.observations(slots)
        return obs.float() / 255 if view.spec.image else self.networks.normalize(obs)

    def q_values(self, critic, view: ReplayView, slots: torch.Tensor):
        """Returns Q of n actions of mu at each slot, the actions and their probabilities.

        ``(k, n)``, ``(k, n, [d])`` and ``(k, n)``; probabilities are ``None`` for sampled actions.
        """
        mu = view.columns["action_dist_inputs"][slots]
        actions, probs = self.actor.proposals(mu, self.config.n_action_samples, self.generator)
        features = critic.features(self.inputs(view, slots))
        return critic.scaled_q(features.unsqueeze(-2), actions) * critic.q_scale, actions, probs

    def step(self, adam, parameters, loss) -> None:
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, self.config.grad_clip)
        adam.step()

    def train_critic(self, view: ReplayView) -> None:
        config = self.config
        for step in range(config.n_critic_steps):
            if step % config.target_update_freq == 0:
                self.target.load_state_dict(self.critic.state_dict())
            rows = view.sample(config.train_batch_size, self.generator)
            slices = view.slices(rows, config.margin)
            with torch.no_grad():
                q_values, _, probs = self.q_values(self.target, view, slices.next_slots.flatten())
                scale = losses.spread(q_values, config.q_spread, (0, 1), probs)
                q_values = q_values / scale
                values = losses.backup(q_values, config.backup, config.backup_temperature, probs)
                values = values * scale.squeeze(-1)
                targets = losses.lambda_returns(
                    slices.rewards,
                    config.gamma_at(0) * slices.nonterminals,
                    values.view_as(slices.rewards),
                    config.lambda_ * slices.continues,
                )
            predicted = self.critic(self.inputs(view, rows), view.columns["actions"][rows])
            loss = losses.critic_loss(predicted, targets / self.critic.q_scale)
            self.step(self.critic_adam, self.critic.parameters(), loss)

    def train_actor(self, view: ReplayView) -> None:
        config = self.config
        for _ in range(config.n_actor_steps):
            rows = view.sample(config.train_batch_size, self.generator)
            with torch.no_grad():
                q_values, actions, probs = self.q_values(self.critic, view, rows)
                weights = losses.advantage_weights(
                    q_values, config.beta, config.max_weight, config.advantage_scaling, probs
                )
                if probs is not None:
                    weights = weights * probs * probs.shape[-1]
            params = self.actor(self.inputs(view, rows)).unsqueeze(-2)
            log_probs = self.actor.log_prob(params.expand(*actions.shape[:2], -1), actions)
            loss = losses.actor_loss(log_probs, weights)
            self.step(self.actor_adam, self.actor.parameters(), loss)


PLAIN = "plain loop"
# Forms of the learner, by the device's type or the task. Of a task, the first is the base.
FORMS: dict[str, dict[str, dict[str, Any]]] = {
    "cpu": {"learner": {}, "bfloat16": {"image_precision": "bfloat16"}},
    "qwr-plus": {
        "autograd": {"compile": False},
        "learner": {},
        "bfloat16": {"critic_precision": "bfloat16"},
    },
    "cuda": {
        "eager": {"compile": False, "cuda_graphs": False},
        "compiled": {"compile": True, "cuda_graphs": False},
        "graphs": {"compile": False, "cuda_graphs": True},
        "compiled graphs": {"compile": True, "cuda_graphs": True},
    },
}


def save(out: str, results: list[dict[str, Any]], **about: Any) -> None:
    """Writes results as JSON, with a description of the machine and the measurement."""
    about |= {"torch": torch.__version__, "machine": platform.machine()}
    with open(out, "w") as file:
        json.dump({"about": about, "results": results}, file, indent=2)
        file.write("\n")


def process(name: str, *arguments: Any) -> ProcessPoolExecutor:
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, spawn, initializer=start, initargs=(name, *arguments))


def start(name: str, task: str, rows: int, steps: int, device: str, threads: int) -> None:
    """Builds this process's side and its rows."""
    global side, view
    settings = defaults_of("QWRPlus" if task == "qwr-plus" else "QWR")
    settings |= {"n_critic_steps": steps, "n_actor_steps": steps}
    config = learner_config(settings)
    view = filled_view(TASKS[task], rows, seed=0, device=device)
    torch.manual_seed(0)
    networks = networks_of(TASKS[task], settings).to(device)
    if name == PLAIN:
        # PyTorch's own layers, on images in [0, 1].
        ImageEncoder.forward = torch.nn.Sequential.forward  # type: ignore[method-assign]
        side = PlainLoop(networks, config, seed=0)
    else:
        forms = FORMS.get(task, FORMS[device])
        side = Learner(networks, replace(config, **forms[name]), seed=0)
        if device == "cpu" and not TASKS[task].image:
            side.threads = threads
            threads = 1
    torch.set_num_threads(threads)


def turn() -> dict[str, float]:
    """Returns the seconds that each phase of this process's side takes."""
    seconds = {}
    for phase in ("train_critic", "train_actor"):
        started = time.perf_counter()
        getattr(side, phase)(view)
        if view.device.type == "cuda":
            torch.cuda.synchronize()
        seconds[phase] = time.perf_counter() - started
    return seconds


@click.command()
@click.option("--task", type=click.Choice(list(TASKS)), default="walker", show_default=True)
@click.option("--rows", multiple=True, type=int, default=(10_000, 50_000), show_default=True)
@click.option("--steps", default=1000, show_default=True, help="Of each phase, in each turn.")
@click.option("--turns", default=3, show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--out", type=click.Path(dir_okay=False), help="Writes the results as JSON.")
def main(
    task: str,
    rows: tuple[int, ...],
    steps: int,
    turns: int,
    device: str,
    threads: int,
    out: str | None,
) -> None:
    if task == "qwr-plus":
        if device != "cpu":
            raise click.UsageError("--task qwr-plus compares gradients on a CPU")
        base, *forms = FORMS[task]
    else:
        base = PLAIN
        forms = [name for name in FORMS[device] if TASKS[task].image or name != "bfloat16"]
    results = []
    for count in rows:
        seconds: dict[tuple[str, str], list[float]] = {}
        with ExitStack() as stack:
            sides = {
                name: stack.enter_context(process(name, task, count, steps, device, threads))
                for name in (base, *forms)
            }
            # A first turn of all sides at once, for compilation.
            wait([side.submit(turn) for side in sides.values()])
            for _ in range(turns):
                for name, side in sides.items():
                    for phase, took in side.submit(turn).result().items():
                        seconds.setdefault((name, phase), []).append(took)
        row: dict[str, float] = {"rows": count}
        for name in sides:
            critic = np.array(seconds[name, "train_critic"])
            actor = np.array(seconds[name, "train_actor"])
            row[f"{name}: critic updates/s"] = steps / np.median(critic)
            row[f"{name}: actor updates/s"] = steps / np.median(actor)
            row[f"{name}: updates/s"] = 2 * steps / np.median(critic + actor)
        for name, what in itertools.product(forms, WHAT):
            ratio = "ratio" if len(forms) == 1 else f"{name}, ratio"
            row[f"{ratio}: {what}"] = row[f"{name}: {what}"] / row[f"{base}: {what}"]
        results.append(row)
        click.echo("\n".join(f"{key:32s} {value:10.2f}" for key, value in row.items()) + "\n")
    if out:
        where = {"gpu": torch.cuda.get_device_name()} if device == "cuda" else {"threads": threads}
        save(out, results, task=task, steps=steps, turns=turns, **where)


if __name__ == "__main__":
    main()
