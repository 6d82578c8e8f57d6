"""The paper's Table 1, a cell at a time, stopped and taken up again at will.

    python benchmarks/reproduce.py --seeds 5 --jobs 2
    python benchmarks/reproduce.py --seeds 2 --jobs 16 --in-process cuda --results results
    qwr report docs/results/table1 --out docs/reports/table1      # pip install -e '.[report]'

A cell is a variant of the algorithm, a task and a seed: 100 iterations of ``rllib train`` with a
Ray of its own on one CPU. Cells whose results lie in ``--results`` are done, on whichever machine
that was; one that was interrupted goes on from its last checkpoint below ``--storage-path``. A
seed of every task comes before the next seed.

With ``--in-process`` a cell is 100 iterations of ``in_process.py`` instead, which needs no Ray and
can have its learner on a GPU; an interrupted one begins anew. Many processes share a GPU well only
below NVIDIA's MPS: ``nvidia-cuda-mps-control -d``.

What is kept of a cell is what reports read: its configuration, and of each result the returns, the
losses and what else :data:`qwr_rllib.report.trials.COLUMNS` names.
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from in_process import json_object

from qwr_rllib.report import COMMANDS_FILE
from qwr_rllib.report.trials import COLUMNS, EPISODE_RETURNS, TRAINING_EPISODES

ENVS = ("Hopper-v5", "Walker2d-v5", "HalfCheetah-v5", "Humanoid-v5")
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwr-lse": ("QWR", {}),
    "qwr-max": ("QWR", {"backup": "max"}),
    "qwr-avg": ("QWR", {"backup": "mean"}),
    "awr": ("AWR", {}),
}
DEFAULTS = {"QWR": "qwr-lse", "AWR": "awr"}  # the variants without changes
ITERATIONS = 100
RAY_RESULTS = Path("docs/results/table1")
CONFIG = {
    "num_env_runners": 0,
    "learner_threads": 1,
    "evaluation_interval": 10,
    "evaluation_duration": 10,
    "evaluation_duration_unit": "episodes",
}
KEPT = (
    *(key.split("/") for key in COLUMNS),
    ["done"],
    ["evaluation", *EPISODE_RETURNS],
)
KEPT_OF_THE_LAST = (EPISODE_RETURNS, ["config"], ["versions"], ["date"], ["trial_id"])


def kept(result: dict[str, Any], paths: Iterable[Sequence[str]]) -> dict[str, Any]:
    """The parts of a nested result at the paths, those that it has."""
    found: dict[str, Any] = {}
    for *parents, name in paths:
        source = result
        for key in parents:
            source = source.get(key) or {}
        if name in source:
            into = found
            for key in parents:
                into = into.setdefault(key, {})
            into[name] = source[name]
    return found


def keep(trial: Path, place: Path) -> None:
    """Writes what is kept of a trial's results to ``place``."""
    with open(trial / "result.json") as lines:
        results = [json.loads(line) for line in lines]
    last = results[-1]
    episodes = last["env_runners"]["hist_stats"]
    episodes["episode_reward"] = episodes["episode_reward"][-TRAINING_EPISODES:]
    slim = [kept(result, KEPT) for result in results[:-1]]
    slim.append(kept(last, [*KEPT, *KEPT_OF_THE_LAST]))
    place.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(result) + "\n" for result in slim)
    (place / "result.json").write_text(text)


def ray_command(
    variant: str, env: str, seed: int, storage: Path, changes: dict[str, Any]
) -> list[str]:
    """Trains a cell by ``rllib train``, or goes on with it."""
    name = f"{variant}-{env}-{seed}"
    algorithm, config = VARIANTS[variant]
    command = [
        *(sys.executable, "-m", "qwr_rllib.cli", "train"),
        *(
            "--algo",
            algorithm,
            "--env",
            env,
            "--config",
            json.dumps(CONFIG | config | changes | {"seed": seed}),
        ),
        *("--stop", json.dumps({"training_iteration": ITERATIONS})),
        *("--experiment-name", name, "--storage-path", str(storage), "--ray-num-cpus", "1"),
        *("--checkpoint-freq", "10", "--checkpoint-at-end", "--keep-checkpoints-num", "1"),
    ]
    if list((storage / name).glob("*/checkpoint_*")):
        command.append("--resume")
    return command


def in_process_command(
    variant: str, env: str, seed: int, storage: Path, changes: dict[str, Any], device: str
) -> list[str]:
    """Trains a cell by ``in_process.py``, with the settings that its algorithm had with Ray."""
    algorithm, config = VARIANTS[variant]
    like = RAY_RESULTS / DEFAULTS[algorithm] / f"{algorithm}_{env}_seed0"
    out = storage / f"{variant}-{env}-{seed}" / "in_process" / "result.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    return [
        *(sys.executable, str(Path(__file__).with_name("in_process.py"))),
        *("--like", str(like), "--seed", str(seed), "--config", json.dumps(config | changes)),
        *("--iterations", str(ITERATIONS), "--device", device, "--out", str(out)),
    ]


def run(
    variant: str,
    env: str,
    seed: int,
    place: Path,
    storage: Path,
    changes: dict[str, Any],
    device: str | None,
) -> int:
    """Trains a cell and keeps its results; the exit code of its process."""
    name = f"{variant}-{env}-{seed}"
    storage.mkdir(parents=True, exist_ok=True)
    if device:
        command = in_process_command(variant, env, seed, storage, changes, device)
    else:
        command = ray_command(variant, env, seed, storage, changes)
    click.echo(f"{name}: begins, see {storage / name}.log")
    with open(storage / f"{name}.log", "a") as log:
        code = subprocess.run(command, stdout=log, stderr=log).returncode
    if code == 0:
        # One that was killed before its first checkpoint has begun anew beside what it had.
        results = (storage / name).glob("*/result.json")
        keep(max(results, key=lambda result: result.stat().st_mtime).parent, place)
        kept_command = ["python", "benchmarks/reproduce.py", "--variant", variant]
        if changes:
            kept_command += ["--config", json.dumps(changes)]
        if device:
            kept_command += ["--in-process", device]
        if changes or device:
            kept_command += ["--results", str(place.parents[1])]
        (place.parent / COMMANDS_FILE).write_text(shlex.join(kept_command) + "\n")
    click.echo(f"{name}: {'done' if code == 0 else f'exit code {code}'}")
    return code


@click.command()
@click.option(
    "--variant",
    "variants",
    multiple=True,
    type=click.Choice(list(VARIANTS)),
    default=["qwr-lse"],
    show_default=True,
)
@click.option("--env", "envs", multiple=True, type=click.Choice(ENVS), default=ENVS)
@click.option("--seeds", default=5, show_default=True, help="Seeds 0, 1, ... of each task.")
@click.option("--jobs", default=os.cpu_count(), show_default="CPUs", help="Cells at a time.")
@click.option("--config", "changes", type=json_object, default="{}", metavar="JSON",
              help="Changes to every cell; needs --results.")  # fmt: skip
@click.option("--in-process", "device", metavar="DEVICE",
              help="Without Ray, the learner on cpu or cuda; needs --results.")  # fmt: skip
@click.option(
    "--results",
    default=str(RAY_RESULTS),
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
)
@click.option("--storage-path", show_default="~/ray_results/<name of --results>", type=Path,
              help="Of checkpoints and all results.")  # fmt: skip
def main(
    variants: tuple[str, ...],
    envs: tuple[str, ...],
    seeds: int,
    jobs: int,
    changes: dict[str, Any],
    device: str | None,
    results: Path,
    storage_path: Path | None,
) -> None:
    source = click.get_current_context().get_parameter_source("results")
    if (changes or device) and source == ParameterSource.DEFAULT:
        raise click.UsageError("--config and --in-process need --results: these are other cells")
    cells = {
        (variant, env, seed): results / variant / f"{VARIANTS[variant][0]}_{env}_seed{seed}"
        for seed, variant, env in itertools.product(range(seeds), variants, envs)
    }
    missing = {cell: place for cell, place in cells.items() if not (place / "result.json").exists()}
    click.echo(f"{len(cells) - len(missing)} of {len(cells)} cells are done.")
    storage_path = storage_path or Path("~/ray_results", results.resolve().name)
    storage = storage_path.expanduser().resolve()
    with ThreadPoolExecutor(jobs) as pool:
        codes = pool.map(
            lambda item: run(*item[0], item[1], storage, changes, device), missing.items()
        )
    sys.exit(max(codes, default=0))


if __name__ == "__main__":
    main()
