"""How far the learner is from what the machine's matrix products allow.

    python benchmarks/limit.py --rows 10000 --rows 50000 --out benchmarks/results/limit.json

An iteration is run once with every matrix product recorded by its shapes, without compiled
kernels, so that the gate's are seen too. Then each shape is timed alone, by the library that the
learner takes for it (:mod:`qwr_rllib.products`), with operands that are in cache. The sum over all
of them is the time that an iteration would take if it consisted of its matrix products and nothing
else: no ReLU, LayerNorm, tanh, Adam, random numbers or gathers; for several threads, if they shared
these without any loss. The learner's own time, with what it compiles by default, is measured
beside it in turn.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from typing import Any

import click
import numpy as np
import torch
from learner import TASKS, filled_view, save
from torch.utils._python_dispatch import TorchDispatchMode

from qwr_rllib.learner import Learner, LearnerConfig
from qwr_rllib.networks import QWRNetworks
from qwr_rllib.products import matmul
from qwr_rllib.replay.view import ReplayView

Product = tuple[int, int, int]  # (m, k) times (k, n)
aten: Any = torch.ops.aten


class Products(TorchDispatchMode):
    """Counts the matrix products that are computed while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[Product] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is torch.ops.mkldnn._linear_pointwise:
            factors = args[0], args[1].t()
        else:
            factors = {aten.mm: args[:2], aten.addmm: args[1:3]}.get(func.overloadpacket)
        if factors:
            (m, k), (_, n) = (factor.shape for factor in factors)
            self.count[m, k, n] += 1
        return func(*args, **(kwargs or {}))


def learner(rows: int, compile: bool | str, steps: int) -> tuple[Learner, ReplayView]:
    torch.manual_seed(0)
    config = replace(LearnerConfig(), n_critic_steps=steps, n_actor_steps=steps, compile=compile)
    view = filled_view(TASKS["walker"], rows, seed=0)
    return Learner(QWRNetworks(TASKS["walker"]), config, seed=0), view


def seconds_of(product: Product, atleast: float = 0.05) -> float:
    """The median time of one product of this shape."""
    m, k, n = product
    left, right = torch.randn(m, k), torch.randn(n, k).t()
    times: list[float] = []
    while sum(times) < atleast or len(times) < 5:
        started = time.perf_counter()
        for _ in range(10):
            matmul(left, right)
        times.append((time.perf_counter() - started) / 10)
    return float(np.median(times))


@click.command()
@click.option("--rows", multiple=True, type=int, default=(10_000, 50_000), show_default=True)
@click.option("--steps", default=3000, show_default=True, help="Of each phase.")
@click.option("--turns", default=3, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--out", type=click.Path(dir_okay=False), help="Writes the results as JSON.")
def main(rows: tuple[int, ...], steps: int, turns: int, threads: int, out: str | None) -> None:
    torch.set_num_threads(1)
    results = []
    for count in rows:
        plain, view = learner(count, False, steps)
        with Products() as products:
            plain.train(view)
        shapes = products.count
        trained, view = learner(count, "auto", steps)
        trained.threads = threads
        trained.train(view)
        limits, seconds = [], []
        for _ in range(turns):
            alone = sum(seconds_of(shape) * times for shape, times in shapes.items())
            limits.append(alone / threads)
            started = time.perf_counter()
            trained.train(view)
            seconds.append(time.perf_counter() - started)
        flops = sum(2 * m * k * n * times for (m, k, n), times in shapes.items())
        limit, taken = float(np.median(limits)), float(np.median(seconds))
        row = {
            "rows": count,
            "matrix products, 1e12 floating-point operations": flops / 1e12,
            "their time alone, s": limit,
            "their rate alone, 1e9 per second": flops / limit / 1e9,
            "learner, s": taken,
            "learner, 1e9 per second": flops / taken / 1e9,
            "ratio": limit / taken,
        }
        results.append(row)
        click.echo("\n".join(f"{key:50s} {value:10.3f}" for key, value in row.items()) + "\n")
    if out:
        save(out, results, threads=threads, steps=steps, turns=turns)


if __name__ == "__main__":
    main()
