"""Time of a regression step with each acceleration added to the ones before it.

    python benchmarks/acceleration.py --out benchmarks/results/acceleration.json

Measures steps of a critic and of an actor with Walker2d's sizes (or, with ``--task atari``, on
images) on minibatches of 256. The variants run in turns of some steps each, so that all run under
the same load. A variant's time is the median over turns; its gain is the median over turns of the
ratio to the variant before. Variants that a device or a task does not support are left out.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

from qwr_rllib.learning import losses
from qwr_rllib.learning.accel import gemm
from qwr_rllib.learning.accel.gradients import AutogradGradient
from qwr_rllib.learning.config import LearnerConfig
from qwr_rllib.learning.evaluation import set_precisions
from qwr_rllib.learning.networks import QWRNetworks
from qwr_rllib.learning.update import RegressionStep
from qwr_rllib.specs import Spec
from qwr_rllib.versions import versions

TASKS = {
    "walker": Spec((17,), "float32", 6, False),
    "atari": Spec((4, 84, 84), "uint8", 6, True, frame_stack=4),
}
BATCH = 256
ADAM = {"lr": 1e-4, "epsilon": 2e-6, "grad_clip": 50.0}
Step = Callable[[], object]
Turn = Callable[[int], None]


class PlainStep:
    """A step with autograd and PyTorch's Adam on each parameter, as in a tutorial."""

    def __init__(self, module: nn.Module, loss: Callable[..., Tensor]) -> None:
        self._module, self._loss = module, loss
        self._adam = torch.optim.Adam(module.parameters(), lr=ADAM["lr"], eps=ADAM["epsilon"])

    def __call__(self, inputs: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> None:
        self._adam.zero_grad()
        self._loss(self._module(*inputs), *targets).backward()
        nn.utils.clip_grad_norm_(self._module.parameters(), ADAM["grad_clip"])
        self._adam.step()


def variants(task: str, device: str, which: str) -> Iterator[tuple[str, Turn]]:
    """Yields variants and their turns, each with one acceleration more than the one before."""

    def build(kind: str, compiler: Any = None, precision: str = "float32") -> Step:
        torch.manual_seed(0)
        spec = TASKS[task]
        networks = QWRNetworks(spec).to(device)
        set_precisions(networks, LearnerConfig(image_precision=precision), torch.device(device))
        obs = torch.rand(BATCH, *spec.obs_shape) * 255
        inputs = networks.normalize(obs.to(getattr(torch, spec.obs_dtype)).to(device))
        if which == "critic":
            actions = torch.randn(BATCH, spec.action_dim, device=device)
            given: tuple[Tensor, ...] = (inputs, actions)
            if spec.discrete:
                given = inputs, actions.argmax(-1)
            targets: tuple[Tensor, ...] = (torch.randn(BATCH, device=device),)
            module, loss = networks.critic, losses.critic_loss
            gradient = losses.critic_loss_gradient
        else:
            actor = networks.actor
            considered = torch.randn(BATCH, 8, spec.action_dim, device=device)
            weights = torch.rand(BATCH, 8, device=device)
            if spec.discrete:
                considered = considered.argmax(-1)
            given, targets = (inputs,), actor.regression(considered, weights, None)
            module, loss, gradient = actor, actor.regression_loss, actor.regression_gradient
        assert module is not None
        if kind == "plain":
            plain = PlainStep(module, loss)
            return lambda: plain(given, targets)
        step = RegressionStep(
            module, loss, gradient, **ADAM, compiler=compiler, capture=kind == "graph"
        )
        if kind == "flat":
            step._gradient = AutogradGradient(module, loss, step._adam.gradient)
        return lambda: step(given, targets)

    onednn = gemm.HAS_ONEDNN
    threads = torch.get_num_threads()

    def with_gemm(step: Step, onednn: bool, threads: int = 1) -> Turn:
        def run(steps: int) -> None:
            gemm.HAS_ONEDNN = onednn
            torch.set_num_threads(threads)
            for _ in range(steps):
                step()

        return run

    yield "autograd, Adam on each parameter", with_gemm(build("plain"), False)
    yield "Adam on one vector", with_gemm(build("flat"), False)
    if task == "walker":
        yield "backward pass by hand", with_gemm(build("step"), False)
    if device == "cuda":
        yield "CUDA graph", with_gemm(build("graph"), onednn)
        return
    if task == "walker" and onednn:
        yield "products by oneDNN", with_gemm(build("step"), True)
    yield "kernels by Numba", with_gemm(build("step", "numba"), onednn)
    if task == "atari":
        yield "bfloat16", with_gemm(build("step", "numba", "bfloat16"), onednn)
    elif threads > 1:
        yield "two threads", with_gemm(build("step", "numba"), onednn, 2)


@click.command()
@click.option("--task", type=click.Choice(list(TASKS)), default="walker", show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--turns", default=15, show_default=True)
@click.option("--steps", default=100, show_default=True, help="Of each variant in a turn.")
@click.option("--out", type=click.Path(path_type=Path), help="Writes the results as JSON.")
def main(task: str, device: str, turns: int, steps: int, out: Path | None) -> None:
    found: dict[str, Any] = {
        "task": task,
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
        "versions": versions(),
    }
    for which in ("critic", "actor"):
        chosen = list(variants(task, device, which))
        seconds: dict[str, list[float]] = {name: [] for name, _ in chosen}
        for turn in range(turns + 1):  # the first warms up
            for name, run in chosen:
                started = time.perf_counter()
                run(steps)
                if device == "cuda":
                    torch.cuda.synchronize()
                if turn:
                    seconds[name].append((time.perf_counter() - started) / steps)
        rows, before = {}, seconds[chosen[0][0]]
        for name, times in seconds.items():
            ratios = [own / other for own, other in zip(times, before, strict=True)]
            rows[name] = {
                "ms": round(1000 * statistics.median(times), 4),
                "of the variant before": round(statistics.median(ratios), 3),
            }
            before = times
            click.echo(f"{which:6}  {name:34}  {rows[name]['ms']:8.3f} ms  {rows[name]}")
        found[which] = rows
    if out:
        out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
