"""The learner's time against that of its matrix products and convolutions alone.

    python benchmarks/limit.py --rows 10000 --rows 50000 --out benchmarks/results/limit.json
    python benchmarks/limit.py --task atari --rows 20000 --steps 100 --threads 2

An iteration runs once while the shapes of every matrix product and convolution are recorded;
compiled kernels are off, so that the gate's products are seen too. Then each operation is timed
alone, as the learner runs it (:mod:`qwr_rllib.learning.accel.gemm`, channels last), with operands
in cache. The sum of these times is the limit: the time of an iteration without ReLU, LayerNorm,
tanh, Adam, random numbers and gathers. For vectors, it assumes that several threads share the
operations without loss; for images, each operation uses all threads. In turn with this, the
learner's own time is measured, with its default compilation; last, each part of an iteration alone.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import click
import numpy as np
import torch
from learner import TASKS, filled_view, save
from torch.utils._python_dispatch import TorchDispatchMode

from qwr_rllib.learning.accel.gemm import matmul
from qwr_rllib.learning.config import LearnerConfig
from qwr_rllib.learning.learner import Learner
from qwr_rllib.learning.networks import QWRNetworks
from qwr_rllib.replay.replica import ReplayView

aten: Any = torch.ops.aten
# (m, k, n), or a convolution's inputs, weights, stride and the gradients that it computes.
Shape = tuple[Any, ...]


class Operations(TorchDispatchMode):
    """A context that counts the matrix products and convolutions computed inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[Shape] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        packet = func.overloadpacket
        if packet is aten.convolution:
            self.count[tuple(args[0].shape), tuple(args[1].shape), tuple(args[3]), None] += 1
        elif packet is aten.convolution_backward:
            shapes = tuple(args[1].shape), tuple(args[2].shape)
            self.count[(*shapes, tuple(args[4]), tuple(args[10][:2]))] += 1
        else:
            if packet is torch.ops.mkldnn._linear_pointwise:
                factors = args[0], args[1].t()
            else:
                factors = {aten.mm: args[:2], aten.addmm: args[1:3]}.get(packet)
            if factors:
                (m, k), (_, n) = (factor.shape for factor in factors)
                self.count[m, k, n] += 1
        return func(*args, **(kwargs or {}))


def learner(task: str, rows: int, compile: bool | str, steps: int) -> tuple[Learner, ReplayView]:
    torch.manual_seed(0)
    config = replace(LearnerConfig(), n_critic_steps=steps, n_actor_steps=steps, compile=compile)
    if TASKS[task].image:
        config = replace(config, margin=3)
    view = filled_view(TASKS[task], rows, seed=0)
    return Learner(QWRNetworks(TASKS[task]), config, seed=0), view


def outputs_of(shape: Shape) -> tuple[int, ...]:
    (count, _, *size), (filters, _, *kernel), stride, _ = shape
    sides = ((side - k) // step + 1 for side, k, step in zip(size, kernel, stride, strict=True))
    return count, filters, *sides


def flops_of(shape: Shape) -> int:
    if len(shape) == 3:
        return 2 * math.prod(shape)
    passes = 1 if shape[3] is None else sum(shape[3])
    return 2 * math.prod(outputs_of(shape)) * math.prod(shape[1][1:]) * passes


def operation(shape: Shape) -> Callable[[], Any]:
    """Returns a function that runs the operation of this shape on random operands."""
    if len(shape) == 3:
        m, k, n = shape
        left, right = torch.randn(m, k), torch.randn(n, k).t()
        return lambda: matmul(left, right)
    last = torch.channels_last
    inputs = torch.randn(shape[0]).to(memory_format=last)
    weight = torch.randn(shape[1]).to(memory_format=last)
    if shape[3] is None:
        return lambda: torch.conv2d(inputs, weight, None, shape[2])
    gradient = torch.randn(outputs_of(shape)).to(memory_format=last)
    mask = [*shape[3], True]
    filters = [len(weight)]
    return lambda: aten.convolution_backward(
        gradient, inputs, weight, filters, shape[2], [0, 0], [1, 1], False, [0, 0], 1, mask
    )


def seconds_of(call: Callable[[], Any], atleast: float = 0.05) -> float:
    """Returns the median time of a call."""
    times: list[float] = []
    with torch.no_grad():
        call()
        while sum(times) < atleast or len(times) < 5:
            started = time.perf_counter()
            call()
            times.append(time.perf_counter() - started)
    return float(np.median(times))


def parts_of(trained: Learner, view: ReplayView) -> dict[str, float]:
    """Returns the seconds that each part of an iteration takes alone."""
    config = trained.config
    batch = config.train_batch_size
    rows = view.sample(100 * batch, trained._generator)
    some = rows[:batch]
    obs = trained._inputs.of(view, some).clone()
    actions, targets = view.columns["actions"][some], torch.zeros(batch)
    regression, _ = trained._actor_regression(view, some.unsqueeze(0), None)
    regression = [part[0] for part in regression]
    critic_steps, actor_steps = config.n_critic_steps, config.n_actor_steps
    critic, actor = trained._critic_steps[0], trained._actor_step
    forward = critic_steps * seconds_of(lambda: trained.critic(obs, actions))
    forward += actor_steps * seconds_of(lambda: trained.actor(obs))
    gradients = critic_steps * seconds_of(lambda: critic._gradient((obs, actions), (targets,)))
    gradients += actor_steps * seconds_of(lambda: actor._gradient((obs,), regression))
    adam = critic_steps * seconds_of(critic._adam.step)
    adam += actor_steps * seconds_of(actor._adam.step)
    features = trained._by_critic.all_features(view)
    chunks = rows.view(100, -1)
    parts = {
        "inputs": (critic_steps + actor_steps) * seconds_of(lambda: trained._inputs.of(view, some)),
        "forward": forward,
        "backward": gradients - forward,
        "Adam": adam,
        "targets": critic_steps / 100 * seconds_of(lambda: trained._targets(view, rows, 100), 0),
        "features for the actor": seconds_of(lambda: trained._by_critic.all_features(view), 0),
        "actions and weights": actor_steps
        / 100
        * seconds_of(lambda: trained._actor_regression(view, chunks, features)),
    }
    return parts


@click.command()
@click.option("--task", type=click.Choice(list(TASKS)), default="walker", show_default=True)
@click.option("--rows", multiple=True, type=int, default=(10_000, 50_000), show_default=True)
@click.option("--steps", default=3000, show_default=True, help="Of each phase.")
@click.option("--turns", default=3, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--out", type=click.Path(dir_okay=False), help="Writes the results as JSON.")
def main(
    task: str, rows: tuple[int, ...], steps: int, turns: int, threads: int, out: str | None
) -> None:
    image = TASKS[task].image
    torch.set_num_threads(threads if image else 1)
    results = []
    for count in rows:
        plain, view = learner(task, count, False, steps)
        with Operations() as operations:
            plain.train(view)
        shapes = operations.count
        trained, view = learner(task, count, "auto", steps)
        trained.threads = threads
        trained.train(view)
        limits, seconds = [], []
        for _ in range(turns):
            alone = sum(seconds_of(operation(shape)) * times for shape, times in shapes.items())
            limits.append(alone / (1 if image else threads))
            started = time.perf_counter()
            trained.train(view)
            seconds.append(time.perf_counter() - started)
        flops = sum(flops_of(shape) * times for shape, times in shapes.items())
        limit, taken = float(np.median(limits)), float(np.median(seconds))
        row = {
            "rows": count,
            "1e12 floating-point operations of products": flops / 1e12,
            "their time alone, s": limit,
            "their rate alone, 1e9 per second": flops / limit / 1e9,
            "learner, s": taken,
            "learner, 1e9 per second": flops / taken / 1e9,
            "ratio": limit / taken,
        }
        parts = parts_of(trained, view)
        total = sum(parts.values())
        row |= {f"share of {name}": value / total for name, value in parts.items()}
        results.append(row)
        click.echo("\n".join(f"{key:50s} {value:10.3f}" for key, value in row.items()) + "\n")
    if out:
        save(out, results, task=task, threads=threads, steps=steps, turns=turns)


if __name__ == "__main__":
    main()
