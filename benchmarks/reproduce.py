"""Reproduction of the paper's tables and figures, cell by cell; it can be stopped and resumed.

    python benchmarks/reproduce.py --table 1 --seeds 5 --jobs 2
    python benchmarks/reproduce.py --table 2 --in-process cuda --jobs 6 --results results
    python benchmarks/reproduce.py --figure 1 --seeds 3 --jobs 2
    python benchmarks/reproduce.py --figure 2 --seeds 3 --jobs 2
    qwr report results/table1 --out results/table1/report      # pip install -e '.[report]'

A cell is a variant of the algorithm, a task and a seed. It runs ``rllib train`` with its own Ray on
one CPU, for 100K interactions. Cells with results in ``--results`` are done, on whichever machine
they ran. Ctrl-C and SIGTERM stop the running cells too. A stopped cell resumes from its last
checkpoint below ``--storage-path``. Each seed runs on every task before the next seed. Before
anything starts, the script prints which cells are done, which are missing and about how long they
will take; ``--dry-run`` stops there.

The cells of Figure 2 train on 50 episodes of policies that come with the package. The script
records data sets that are missing: it needs ``pip install -e '.[offline]'``.

Ray Tune can also run Figure 1: ``rllib train file tuned_examples/qwr-ablation-halfcheetah.yaml``.
Here its cells run one by one instead, so that several machines can share them.

With ``--in-process``, a cell runs ``in_process.py`` instead, which needs no Ray and can have its
learner on a GPU. Many processes share a GPU well only with NVIDIA's MPS:
``nvidia-cuda-mps-control -d``.

The kept part of a cell is what reports read: its configuration, and the columns of each result that
:data:`qwr_rllib.report.trials.COLUMNS` names, such as returns and losses.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import click
import numpy as np
import yaml
from in_process import json_object

from qwr_rllib.learning.config import defaults_of, steps_per_result
from qwr_rllib.report import COMMANDS_FILE
from qwr_rllib.report.trials import COLUMNS, EPISODE_RETURNS, TRAINING_EPISODES

MUJOCO = ("Hopper-v5", "Walker2d-v5", "HalfCheetah-v5", "Humanoid-v5")
GAMES = ("boxing", "breakout", "freeway", "gopher", "pong", "seaquest")
BACKUPS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwr-lse": ("QWR", {}),
    "qwr-max": ("QWR", {"backup": "max"}),
    "qwr-avg": ("QWR", {"backup": "mean"}),
}
GAMES_ONLY: dict[str, tuple[str, dict[str, Any]]] = {
    # As in light_atari.gin of google/trax in October 2020.
    "qwr-lse-authors": (
        "QWR",
        {
            "image_network": "mnih2015",
            "target_update_freq": 300,
            "grad_clip": 0.5,
            "env_config": {"terminal_on_life_loss": False},
        },
    ),
}
EXAMPLES = Path(__file__).parents[1] / "tuned_examples"
BUDGET = 100_000
ITERATIONS_ON_LOGGED_DATA = 20
# Environments and the policies of the package whose most likely actions are the data of Figure 2.
EXPERTS = {"Hopper-v5": "hopper", "Walker2d-v5": "walker", "HalfCheetah-v5": "halfcheetah"}
EVALUATION = {
    "evaluation_interval": 10,
    "evaluation_duration": 10,
    "evaluation_duration_unit": "episodes",
}


@dataclass(frozen=True)
class Cell:
    """A run whose results are kept as one trial."""

    variant: str
    algorithm: str
    env: str
    task: str
    """Name of the environment, or of the game."""
    config: dict[str, Any]
    """Settings that differ from the algorithm's defaults, and the seed."""
    steps: int = BUDGET
    """Environment steps."""

    @property
    def name(self) -> str:
        return f"{self.variant}-{self.task}-{self.config['seed']}"

    @property
    def place(self) -> Path:
        """Path of the cell's folder, relative to the folder of results."""
        trial = f"{self.algorithm}_{self.task}_seed{self.config['seed']}"
        return Path(self.variant, trial)

    @property
    def iterations(self) -> int:
        return -(-self.steps // steps_per_result(defaults_of(self.algorithm) | self.config))


def table1(seed: int) -> Iterator[Cell]:
    variants = BACKUPS | {"awr": ("AWR", {}), "qwr-plus": ("QWRPlus", {})}
    for (variant, (algorithm, config)), env in itertools.product(variants.items(), MUJOCO):
        yield Cell(variant, algorithm, env, env, EVALUATION | config | {"seed": seed})


def table2(seed: int) -> Iterator[Cell]:
    variants = BACKUPS | GAMES_ONLY
    for (variant, (algorithm, config)), game in itertools.product(variants.items(), GAMES):
        (example,) = yaml.safe_load((EXAMPLES / "qwr-atari.yaml").read_text()).values()
        settings = example["config"] | config | {"seed": seed}
        settings["env_config"] = {"game": game} | config.get("env_config", {})
        yield Cell(variant, algorithm, example["env"], game, settings)


def figure1(seed: int) -> Iterator[Cell]:
    grid = itertools.product((1, 3, 7), ("logsumexp", "max"), (8, 2, 4, 16))
    for margin, backup, samples in grid:
        varied = {"backup": backup, "margin": margin, "n_action_samples": samples}
        variant = f"{backup}-margin-{margin}-samples-{samples}"
        env = "HalfCheetah-v5"
        yield Cell(variant, "QWR", env, env, EVALUATION | varied | {"seed": seed})


def figure2(seed: int) -> Iterator[Cell]:
    cloning = ("QWR", {"beta": 1e6, "n_critic_steps": 0})  # equal weights for all actions
    variants = {"qwr-lse": BACKUPS["qwr-lse"], "awr": ("AWR", {}), "cloning": cloning}
    often = EVALUATION | {"evaluation_interval": 1, "evaluation_duration": 5}
    for (variant, (algorithm, config)), env in itertools.product(variants.items(), EXPERTS):
        data = {"offline": {"dataset": f"{EXPERTS[env]}/mode-v0"}, "replay_capacity": 50_000}
        steps = ITERATIONS_ON_LOGGED_DATA * defaults_of(algorithm)["n_interactions"]
        settings = often | data | config | {"seed": seed}
        yield Cell(variant, algorithm, env, env, settings, steps)


def prepare_data(cells: Iterable[Cell], results: Path) -> None:
    """Records the cells' data sets that Minari's store lacks, and writes the returns of all.

    The file ``data.csv`` in ``results`` has a row for each environment.
    """
    import minari
    from minari.storage import get_dataset_path

    about = results / "data.csv"
    rows = {}
    if about.exists():  # has environments that this call may leave out
        rows = {env: row for env, *row in csv.reader(about.read_text().splitlines()[1:])}
    for env, dataset in {cell.env: cell.config["offline"]["dataset"] for cell in cells}.items():
        if not get_dataset_path(dataset).exists():
            from qwr_rllib.cli import qwr  # needs Ray

            policy = f"pretrained:{EXPERTS[env]}"
            arguments = ["record", policy, "--dataset-id", dataset, "--seed", "1"]
            qwr.main(arguments, standalone_mode=False)
        returns = [episode.rewards.sum() for episode in minari.load_dataset(dataset)]
        rows[env] = [len(returns), np.mean(returns).round(1), np.std(returns).round(1)]
    results.mkdir(parents=True, exist_ok=True)
    with open(about, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["environment", "episodes", "return_mean", "return_std"])
        writer.writerows([env, *row] for env, row in rows.items())


CAMPAIGNS: dict[str, tuple[Callable[[int], Iterator[Cell]], str]] = {
    "table 1": (table1, "results/table1"),
    "table 2": (table2, "results/table2"),
    "figure 1": (figure1, "results/ablation-cells"),
    "figure 2": (figure2, "results/logged-data"),
}
KEPT = (
    *(key.split("/") for key in COLUMNS),
    ["done"],
    ["evaluation", *EPISODE_RETURNS],
)
KEPT_OF_THE_LAST = (EPISODE_RETURNS, ["config"], ["versions"], ["date"], ["trial_id"])


def kept(result: dict[str, Any], paths: Iterable[Sequence[str]]) -> dict[str, Any]:
    """Returns the parts of a nested result at the paths that exist."""
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
    """Writes the kept part of a trial's results to ``place``."""
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


def ray_command(cell: Cell, storage: Path) -> list[str]:
    """Returns the command that trains or resumes a cell with ``rllib train``."""
    config = cell.config | {"num_env_runners": 0, "learner_threads": 1}
    command = [
        *(sys.executable, "-m", "qwr_rllib.cli", "train", "--algo", cell.algorithm),
        *("--env", cell.env, "--config", json.dumps(config)),
        *("--stop", json.dumps({"training_iteration": cell.iterations})),
        *("--experiment-name", cell.name, "--storage-path", str(storage), "--ray-num-cpus", "1"),
        *("--checkpoint-freq", "10", "--checkpoint-at-end", "--keep-checkpoints-num", "1"),
    ]
    if list((storage / cell.name).glob("*/checkpoint_*")):
        command.append("--resume")
    return command


def in_process_command(cell: Cell, storage: Path, device: str) -> list[str]:
    """Returns the command that trains or resumes a cell with ``in_process.py``."""
    place = storage / cell.name / "in_process"
    final = str(cell.config["evaluation_duration"])
    # For Table 2, evaluations during training are after 30K, 60K and 90K interactions.
    every, episodes = "15", "10"
    if cell.task not in GAMES:
        every, episodes = str(cell.config["evaluation_interval"]), final
    return [
        *(sys.executable, str(Path(__file__).with_name("in_process.py")), cell.env),
        *("--run", cell.algorithm, "--config", json.dumps(cell.config)),
        *("--seed", str(cell.config["seed"]), "--iterations", str(cell.iterations)),
        *("--device", device, "--out", str(place / "result.json")),
        *("--save", str(place / "policy.safetensors"), "--checkpoint", str(place)),
        *("--evaluate-every", every, "--episodes", episodes, "--final-episodes", final),
    ]


def run(
    cell: Cell,
    results: Path,
    storage: Path,
    command: list[str],
    kept_command: str,
    running: list[subprocess.Popen[bytes]],
) -> int:
    """Trains a cell, keeps its results and returns the exit code of its process.

    Meanwhile the process is in ``running``.
    """
    storage.mkdir(parents=True, exist_ok=True)
    click.echo(f"{cell.name}: begins, see {storage / cell.name}.log")
    with (
        open(storage / f"{cell.name}.log", "a") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
    ):
        running.append(process)
        code = process.wait()
        running.remove(process)
    if code == 0:
        # A cell killed before its first checkpoint restarted in a second folder.
        found = (storage / cell.name).glob("*/result.json")
        place = results / cell.place
        keep(max(found, key=lambda result: result.stat().st_mtime).parent, place)
        (place.parent / COMMANDS_FILE).write_text(kept_command + "\n")
    click.echo(f"{cell.name}: {'done' if code == 0 else f'exit code {code}'}")
    return code


def seconds_of(result: Path) -> float:
    """Returns how long a run with kept results took."""
    return json.loads(result.read_text().splitlines()[-1])["time_total_s"]


@click.command()
@click.option("--table", type=click.IntRange(1, 2), help="Default: 1.")
@click.option("--figure", type=click.IntRange(1, 2))
@click.option("--variant", "variants", multiple=True, help="Default: all.")
@click.option("--env", "tasks", multiple=True, help="An environment or a game; default: all.")
@click.option("--seeds", default=5, show_default=True, help="Seeds 0, 1, ... of each task.")
@click.option(
    "--steps",
    type=click.IntRange(1),
    show_default=f"{BUDGET}; {ITERATIONS_ON_LOGGED_DATA} iterations of logged data",
    help="Environment steps of a cell; on logged data, iterations times n_interactions.",
)
@click.option("--jobs", default=os.cpu_count(), show_default="CPUs", help="Cells at a time.")
@click.option(
    "--config",
    "changes",
    type=json_object,
    default="{}",
    metavar="JSON",
    help="Changes to every cell; needs --results.",
)
@click.option(
    "--in-process",
    "device",
    metavar="DEVICE",
    help="Without Ray, the learner on cpu or cuda; needs --results.",
)
@click.option(
    "--results", show_default="below results", type=click.Path(file_okay=False, path_type=Path)
)
@click.option(
    "--storage-path",
    show_default="~/ray_results/<name of --results>",
    type=Path,
    help="Of checkpoints and all results.",
)
@click.option("--dry-run", is_flag=True, help="Say what is missing, start nothing.")
def main(
    table: int | None,
    figure: int | None,
    variants: tuple[str, ...],
    tasks: tuple[str, ...],
    seeds: int,
    steps: int | None,
    jobs: int,
    changes: dict[str, Any],
    device: str | None,
    results: Path | None,
    storage_path: Path | None,
    dry_run: bool,
) -> None:  # fmt: skip
    if table and figure:
        raise click.UsageError("--table and --figure do not go together")
    campaign = f"figure {figure}" if figure else f"table {table or 1}"
    if (changes or device or steps) and not results:
        raise click.UsageError(
            "--config, --steps and --in-process need --results: these are other cells"
        )
    cells_of, folder = CAMPAIGNS[campaign]
    results = results or Path(folder)
    everything = [cell for seed in range(seeds) for cell in cells_of(seed)]
    for option, given, known in (
        ("--variant", variants, {cell.variant: None for cell in everything}),
        ("--env", tasks, {cell.task: None for cell in everything}),
    ):
        for name in given:
            if name not in known:
                allowed = ", ".join(known)
                raise click.UsageError(f"{option} of {campaign} is one of {allowed}, got {name}")
    cells = [
        replace(cell, config=cell.config | changes, steps=steps or cell.steps)
        for cell in everything
        if (not variants or cell.variant in variants) and (not tasks or cell.task in tasks)
    ]
    done = [path for cell in cells if (path := results / cell.place / "result.json").exists()]
    missing = [cell for cell in cells if not (results / cell.place / "result.json").exists()]
    click.echo(f"{campaign}: {len(done)} of {len(cells)} cells are done in {results}.")
    if done and missing:
        hours = float(np.median([seconds_of(path) for path in done])) * len(missing) / jobs / 3600
        click.echo(
            f"The others take {hours:.1f} hours if each takes as long as those, {jobs} at once."
        )
    if dry_run:
        for cell in missing:
            click.echo(f"missing: {cell.name}")
        return
    storage_path = storage_path or Path("~/ray_results", results.resolve().name)
    storage = storage_path.expanduser().resolve()
    number = ["--figure", str(figure)] if figure else ["--table", str(table or 1)]
    options = ["--config", json.dumps(changes)] if changes else []
    options += ["--in-process", device] if device else []
    options += ["--steps", str(steps)] if steps else []
    options += ["--results", str(results)] if options else []

    running: list[subprocess.Popen[bytes]] = []

    def train(cell: Cell) -> int:
        if device:
            command = in_process_command(cell, storage, device)
        else:
            command = ray_command(cell, storage)
        kept = ["python", "benchmarks/reproduce.py", *number, "--variant", cell.variant, *options]
        return run(cell, results, storage, command, shlex.join(kept), running)

    def stop(number: int, frame: FrameType | None) -> None:
        for process in running:
            process.terminate()
        sys.exit(128 + number)

    if campaign == "figure 2" and missing:
        prepare_data(cells, results)
    with contextlib.ExitStack() as stack:
        stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, stop))
        pool = stack.enter_context(ThreadPoolExecutor(jobs))
        codes = list(pool.map(train, missing))
    sys.exit(max(codes, default=0))


if __name__ == "__main__":
    main()
