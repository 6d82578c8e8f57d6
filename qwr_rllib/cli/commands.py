"""The commands' names, options and help texts.

Each command is implemented in its own module, which is imported when the command runs: importing
Ray, torch and pandas takes seconds, and help and usage errors do not need them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qwr_rllib.cli.errors import (
    ConfigError,
    require_file,
    require_folder_of,
)
from qwr_rllib.cli.options import JsonObject, with_options
from qwr_rllib.cli.policies import located

# Options of every command that trains.
RUN_OPTIONS = [
    click.option("--env", "-e", help="The environment; overrides the file's."),
    click.option("--stop", "-s", type=JsonObject(), default={}, metavar="JSON",
                 help="When to stop, as {\"training_iteration\": 100}; merged over the file's."),
    click.option("--experiment-name", "-n", help="The folder below the storage path."),
    click.option("--storage-path", metavar="PATH|URI", help="For results; default ~/ray_results."),
    click.option("--checkpoint-freq", type=click.IntRange(0), metavar="N",
                 help="Iterations between checkpoints, 0 for none."),
    click.option("--checkpoint-at-end", is_flag=True, help="A checkpoint when a trial is done."),
    click.option("--keep-checkpoints-num", type=click.IntRange(1), metavar="N",
                 help="How many checkpoints of a trial to keep; default all."),
    click.option("--resume", is_flag=True,
                 help="Go on with the last run of the same name and storage path."),
    click.option("--scheduler", help="A Tune scheduler, as async_hyperband; default FIFO."),
    click.option("--scheduler-config", type=JsonObject(), default={}, metavar="JSON",
                 help="The scheduler's arguments; merged over the file's."),
    click.option("--max-concurrent-trials", type=click.IntRange(1), metavar="N",
                 help="Run fewer trials at a time than there is room for."),
    click.option("--ray-address", envvar="RAY_ADDRESS", metavar="HOST:PORT|auto",
                 help="A running Ray cluster; default is a Ray of our own."),
    click.option("--ray-num-cpus", type=click.IntRange(1), help="CPUs of our own Ray."),
    click.option("--ray-num-gpus", type=click.IntRange(0), help="GPUs of our own Ray."),
    click.option("--ray-ui", is_flag=True, help="Start Ray's dashboard, for this machine only."),
    click.option("-v", "verbosity", count=True, help="Ray's log at INFO; twice (-vv) at DEBUG."),
]  # fmt: skip


@click.group(invoke_without_command=True)
@click.option("--algo", "--run", help="The algorithm: QWR, PPO, ... or package.module:Class.")
@click.option("--config", "-c", type=JsonObject(), default={}, metavar="JSON",
              help="The algorithm's configuration.")  # fmt: skip
@with_options(RUN_OPTIONS)
@click.pass_context
def train(
    ctx: click.Context, algo: str | None, config: dict[str, Any], **options: Any
) -> int | None:
    """Train an algorithm, from options or (see `train file --help`) from a file."""
    if ctx.invoked_subcommand:
        given = click.core.ParameterSource.COMMANDLINE
        if any(ctx.get_parameter_source(name) is given for name in ctx.params):
            raise ConfigError("options come after the file: rllib train file FILE --option ...")
        return None
    if not algo:
        raise ConfigError("nothing to train: give --algo and --env, or `train file FILE`")
    from qwr_rllib.cli import training

    return training.train_algorithm(algo, config, options)


@train.command("file")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--config", "-c", type=JsonObject(), default={}, metavar="JSON",
              help="Settings that go before the file's.")  # fmt: skip
@with_options(RUN_OPTIONS)
def train_file(path: Path, **options: Any) -> int:
    """Train the experiments of a YAML file, or a Python file's `config`."""
    require_file(path)
    from qwr_rllib.cli import training

    return training.train_file(path, options)


# Options of every command that plays a checkpoint's policy.
CHECKPOINT_OPTIONS = [
    click.option("--algo", "--run", help="Refuse a checkpoint of another algorithm."),
    click.option("--env", help="Another environment than the checkpoint's."),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True,
                 help="Of the first episode; the next has the next."),
    click.option("--file", "modules_file", type=click.Path(path_type=Path), metavar="FILE",
                 help="The training's YAML or Python file, for the modules it needs."),
]  # fmt: skip


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--episodes", type=click.IntRange(1), metavar="N",
              help="How many; default 10, any with --steps.")  # fmt: skip
@click.option("--steps", type=click.IntRange(1), metavar="N",
              help="Play at most so many environment steps, the last episode is cut.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE",
              help="Write the episodes here: .json or .csv.")  # fmt: skip
@click.option("--video", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="Write each episode here as an MP4.")  # fmt: skip
@with_options(CHECKPOINT_OPTIONS)
def evaluate(checkpoint: Path, **options: Any) -> None:
    """Play episodes with a checkpoint's policy, acting without exploration.

    CHECKPOINT is a checkpoint's folder, or that of a Tune trial or experiment: then the last
    checkpoint in it is taken. Or a policy alone: pretrained:NAME, which comes with the package,
    hf:OWNER/REPO[@REVISION] of the Hugging Face Hub, or FILE.safetensors of `qwr export`. No Ray
    is started and no GPU is used.
    """
    checkpoint = located(checkpoint)
    from qwr_rllib.cli import evaluation

    evaluation.evaluate(checkpoint, **options)


@click.command()
@click.argument("env")
@click.option(
    "--algo",
    "--run",
    type=click.Choice(["QWR", "QWRPlus", "AWR", "AWAC"]),
    default="QWR",
    show_default=True,
    help="The algorithm whose settings it is held against.",
)
@click.option(
    "--config",
    "-c",
    type=JsonObject(),
    default={},
    metavar="JSON",
    help="The algorithm's configuration, `env_config` too.",
)
@click.option(
    "--file",
    "modules_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A YAML or Python file of a training, for the modules it needs.",
)
@click.option(
    "--steps",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    metavar="N",
    help="Random steps to play, five seconds at most.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)  # fmt: skip
def check(env: str, **options: Any) -> int:
    """Check whether an environment is fit for QWR, and say what QWR will do with it.

    ENV is what `rllib train --env` takes. Gymnasium's own checker looks at it, and it is played
    with random actions. No Ray is started. The exit code is 1 if there is a problem.
    """
    if options["modules_file"]:
        require_file(options["modules_file"])
    from qwr_rllib.cli import checking

    return checking.check(env, **options)


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--dataset-id", required=True, metavar="NAME",
              help="Such as hopper/qwr-v0, in Minari's local store.")  # fmt: skip
@click.option("--episodes", type=click.IntRange(1), default=50, show_default=True, metavar="N")
@click.option("--explore", is_flag=True,
              help="Sample actions as in training; else the most likely one is taken.")  # fmt: skip
@with_options(CHECKPOINT_OPTIONS)
def record(checkpoint: Path, **options: Any) -> None:
    """Record episodes of a checkpoint's policy as a Minari data set.

    CHECKPOINT is as in `evaluate`. A config's `offline: {dataset: NAME}` reads the data set, with
    the parameters of the policy that acted where they are known (policies of this package). It is
    written when all episodes are played, whole or not at all.
    """
    checkpoint = located(checkpoint)
    from qwr_rllib.cli import recording

    recording.record(checkpoint, **options)


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--format", "kind", type=click.Choice(["onnx", "torchscript", "safetensors"]),
              required=True, help="What to write.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True,
              metavar="FILE", help="Where; a file that is there is replaced.")  # fmt: skip
@click.option("--file", "modules_file", type=click.Path(path_type=Path), metavar="FILE",
              help="The training's YAML or Python file, for the modules it needs.")  # fmt: skip
def export(checkpoint: Path, out: Path, **options: Any) -> None:
    """Write a checkpoint's policy as one file that acts without Ray and this package.

    The file takes raw observations and returns the environment's actions, those of `evaluate`.
    CHECKPOINT is as in `evaluate`. Neither Ray nor an environment is started.
    """
    checkpoint = located(checkpoint)
    require_folder_of(out)
    from qwr_rllib.cli import exporting

    exporting.export(checkpoint, out=out, **options)


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("repo", metavar="OWNER/REPO")
@click.option("--episodes", type=click.IntRange(2), default=10, show_default=True, metavar="N",
              help="Of the evaluation that the card tells.")  # fmt: skip
@click.option("--private", is_flag=True, help="A repository that is made is private.")
@click.option("--video", is_flag=True, help="Film the first episode.")
@with_options(CHECKPOINT_OPTIONS)
def push(checkpoint: Path, **options: Any) -> None:
    """Publish a checkpoint's policy on the Hugging Face Hub, with a card.

    CHECKPOINT is as in `evaluate`, which plays what was pushed as hf:OWNER/REPO. The repository
    is created if it is missing. Log in with `hf auth login` or set HF_TOKEN first.
    """
    checkpoint = located(checkpoint)
    from qwr_rllib.cli import publishing

    publishing.push(checkpoint, **options)


@click.command()
@click.argument(
    "paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option("--out", required=True, metavar="DIR", type=click.Path(path_type=Path),
              help="The report's folder.")  # fmt: skip
@click.option("--interval", "kind", type=click.Choice(["iqr", "mean-ci"]), default="iqr",
              show_default=True, help="What curves show over seeds: median and interquartile "
              "range, or mean and 95 % bootstrap interval.")  # fmt: skip
@click.option("--title", default="Report", help="The page's title.")
def report(**options: Any) -> None:
    """Tables and figures of Tune's results, beside the paper's.

    PATH is the folder of a trial, of an experiment, or one with several experiments.
    """
    from qwr_rllib.cli import reporting

    reporting.report(**options)


@click.command()
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, metavar="N")
@click.option("--share", "shares", type=click.FloatRange(0, 1), multiple=True,
              default=(0.0, 0.5, 1.0), show_default=True, metavar="X",
              help="Of the states that get a second action; may be given again.")  # fmt: skip
@click.option("--episodes", type=click.IntRange(2), default=16, show_default=True,
              metavar="N", help="Logged episodes, of 10 steps.")  # fmt: skip
@click.option("--iterations", type=click.IntRange(1), default=14, show_default=True,
              metavar="N", help="Of 100 critic and 200 actor steps.")  # fmt: skip
@click.option("--csv", "csv_path", type=click.Path(path_type=Path), metavar="FILE",
              help="Write every trial's numbers here.")  # fmt: skip
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE",
              help="Draw the picture here (.png, .svg); needs matplotlib.")  # fmt: skip
def theorem(**options: Any) -> None:
    """Show the limit of AWR, and that QWR does not have it.

    Trains both on logged episodes in which every state has one action, and on episodes in which a
    share of the states has two. No Ray is started; docs/theorem.md explains the results.
    """
    from qwr_rllib.cli.theorem import theorem

    theorem(**options)
