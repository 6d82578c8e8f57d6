"""The commands ``rllib train`` and ``rllib train file``."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shlex
import socket
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import pyarrow.fs
import ray
from ray import tune
from ray.tune.experiment import Experiment as TuneExperiment
from ray.tune.experiment import Trial
from ray.tune.tune_config import ResumeConfig
from ray.tune.utils import flatten_dict
from rich.console import Console

from qwr_rllib._ray_compat import bootstrap_address, own_session
from qwr_rllib.cli.errors import ConfigError
from qwr_rllib.cli.experiments import (
    Experiment,
    Overrides,
    check_experiment,
    load_user_modules,
    read_file,
)
from qwr_rllib.cli.interruption import Interruption
from qwr_rllib.cli.progress import EVALUATION, RETURN, Progress, iteration_return, number
from qwr_rllib.cli.resume import apply_stop, find_state, trim_results
from qwr_rllib.cli.user_modules import UserModules
from qwr_rllib.report import COMMANDS_FILE

FAILED = 1
INTERRUPTED = 130


def train_algorithm(algo: str, config: dict[str, Any], options: dict[str, Any]) -> int:
    """Trains an algorithm with a config; returns and raises as :func:`train`."""
    modules = UserModules((os.getcwd(),))
    load_user_modules(modules)
    return train({"default": {"run": algo, "config": config}}, modules, None, options)


def train_file(path: Path, options: dict[str, Any]) -> int:
    """Trains the experiments of a file; returns and raises as :func:`train`."""
    specs, modules = read_file(path)
    return train(specs, modules, path if modules.names else None, options)


def train(
    specs: dict[str, dict[str, Any]],
    modules: UserModules,
    modules_file: Path | None,
    options: dict[str, Any],
) -> int:
    """Checks the experiments, starts Ray and runs them one after the other.

    They run in sequence because Tune can resume only one experiment per run.

    Returns:
        The exit code.

    Raises:
        ConfigError: An experiment or option is wrong; nothing was started.
    """
    _quiet(options["verbosity"])
    if (name := options["experiment_name"]) and len(specs) > 1:
        raise ConfigError(f"--experiment-name: the file has {len(specs)} experiments")
    checkpoint_config = {
        "checkpoint_frequency": options["checkpoint_freq"],
        "checkpoint_at_end": options["checkpoint_at_end"] or None,
        "num_to_keep": options["keep_checkpoints_num"],
    }
    overrides = Overrides(
        env=options["env"],
        config=options.get("config", {}),
        stop=options["stop"],
        storage_path=options["storage_path"],
        checkpoint_config={k: v for k, v in checkpoint_config.items() if v is not None},
        log_level={0: None, 1: "INFO"}.get(options["verbosity"], "DEBUG"),
        sweep={
            key: options[key] for key in ("scheduler", "scheduler_config", "max_concurrent_trials")
        },
    )
    experiments = [check_experiment(name or key, spec, overrides) for key, spec in specs.items()]
    resumed = _prepare_resume(experiments) if options["resume"] else {}

    console = Console()
    exit_codes = []
    with _ray_started(experiments, modules, options, console):
        for experiment in experiments:
            _note_command(experiment)
            trials, code = run(experiment, resumed.get(experiment.name, set()), console)
            exit_codes.append(code)
            report(experiment, trials, code, modules_file, console)
            if code == INTERRUPTED:
                break
    return max(exit_codes)


def _note_command(experiment: Experiment) -> None:
    """Appends this command to the list of commands in the experiment's folder, for its report."""
    files, path = pyarrow.fs.FileSystem.from_uri(experiment.path)
    files.create_dir(path)
    place = f"{path}/{COMMANDS_FILE}"
    earlier = b""
    if files.get_file_info(place).type == pyarrow.fs.FileType.File:
        with files.open_input_stream(place) as file:
            earlier = file.readall()
    with files.open_output_stream(place) as file:
        file.write(earlier + f"{_command(sys.argv[1:])}\n".encode())


def _command(arguments: Sequence[str]) -> str:
    program = click.get_current_context().find_root().info_name or "rllib"
    return shlex.join([program, *arguments])


def _quiet(verbosity: int) -> None:
    level = {0: logging.ERROR, 1: logging.INFO}.get(verbosity, logging.DEBUG)
    for name in ("ray", "ray.rllib", "ray.tune"):
        logging.getLogger(name).setLevel(level)
    if not verbosity:
        warnings.simplefilter("ignore")
        # Tune logs the trials' failures as errors; `report` prints them instead.
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        for name in ("alembic", "mlflow"):  # they log each table of a new store
            logging.getLogger(name).setLevel(logging.WARNING)


def _prepare_resume(experiments: list[Experiment]) -> dict[str, set[str]]:
    """Returns the ids of the trials to resume, by the name of their experiment."""
    states = {experiment.name: find_state(experiment) for experiment in experiments}
    if not any(states.values()):
        places = ", ".join(experiment.path for experiment in experiments)
        raise ConfigError(f"nothing to resume in {places}")
    trials = {}
    for experiment in experiments:
        if state := states[experiment.name]:
            trials[experiment.name] = apply_stop(experiment, state)
            trim_results(experiment)
    return trials


@contextlib.contextmanager
def _ray_started(
    experiments: list[Experiment], modules: UserModules, options: dict[str, Any], console: Console
) -> Iterator[None]:
    """Starts our own Ray or connects to a cluster, and checks that a trial of each fits.

    Raises:
        ConfigError: There is no such cluster, or our own Ray is too small.
    """
    address = options["ray_address"]
    amounts = {"num_cpus": options["ray_num_cpus"], "num_gpus": options["ray_num_gpus"]}
    if address and any(amount is not None for amount in amounts.values()):
        raise ConfigError("--ray-num-cpus and --ray-num-gpus do not go with --ray-address")
    if address:
        address = _reachable(address)
    # "local" below: without an address, Ray reads one from a file that an ended Ray may have left.
    own = amounts | {"include_dashboard": options["ray_ui"], "dashboard_host": "127.0.0.1"}
    # `Interruption` replaces Tune's handler.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    # Tune's newer output prints a table even with `verbose=0`.
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    # A resume after a crash begins with Tune's last written state and loses later checkpoints. By
    # default Tune writes it every ten seconds or more.
    num_trials = max(experiment.num_trials for experiment in experiments)
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", str(1 + num_trials // 10))
    # Workers have the current folder on their path anyway, and start faster without a hook.
    hook = modules.worker_setup() if modules.names or modules.folders != (os.getcwd(),) else None
    for experiment in experiments:
        _announce(experiment, console)
    try:
        with own_session():
            context = ray.init(
                address=address or "local",
                **({} if address else own),
                logging_level=logging.getLogger("ray").level,
                log_to_driver=options["verbosity"] > 0,
                runtime_env={"worker_process_setup_hook": hook} if hook else None,
            )
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"cannot start Ray: {error}") from error
    try:
        if options["ray_ui"]:
            console.print(f"Dashboard: http://{context.dashboard_url}")
        for experiment in experiments:
            _check_room(experiment, bool(address), console)
        yield
    finally:
        ray.shutdown()


def _announce(experiment: Experiment, console: Console) -> None:
    """Prints what is started: the first iteration's line may come minutes later."""
    config = experiment.tune_spec["config"]
    ends = [f"{key} {value:g}" for key, value in experiment.stop.items()]
    if (budget := experiment.tune_spec.get("time_budget_s")) is not None:
        ends.append(f"time_budget_s {budget}")
    trials = f"{experiment.num_trials} trials" if experiment.num_trials > 1 else "a trial"
    needs = ", ".join(f"{amount:g} {name}" for name, amount in experiment.resources.items())
    lines = [
        f"{experiment.name}: {experiment.tune_spec['run'].__name__} on {config.get('env')}, "
        f"until {' or '.join(ends) or 'Ctrl-C: no stop is given'}",
        f"  {trials} of {needs}",
        f"  results in {experiment.path}",
    ]
    if "n_critic_steps" in config:
        counts = ("n_interactions", "n_critic_steps", "n_actor_steps")
        lines[1] += "; an iteration: {} environment steps, {} critic and {} actor updates".format(
            *(config[name] if isinstance(config[name], int) else "various" for name in counts)
        )
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _reachable(address: str) -> str:
    """Returns the cluster's ``host:port``; ``auto`` finds the cluster on this machine."""
    try:
        found = bootstrap_address(address)
        host, _, port = found.rpartition(":")
        # If nothing listens there, `ray.init` waits for ever and cannot be interrupted.
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        hint = "expected auto or host:port, on a node of the cluster"
        raise ConfigError(f"no Ray cluster at {address}: {error}; {hint}") from error
    return found


def _check_room(experiment: Experiment, may_grow: bool, console: Console) -> None:
    there = ray.cluster_resources()
    for resource, amount in experiment.resources.items():
        if amount > there.get(resource, 0):
            has = f"Ray has {there.get(resource, 0):g}"
            message = f"{experiment.name}: a trial needs {amount:g} {resource}, {has}"
            if not may_grow:
                raise ConfigError(f"{message}; lower num_env_runners or num_gpus, or give Ray more")
            console.print(f"{message}; waiting for the cluster to grow")


def run(experiment: Experiment, resumed: set[str], console: Console) -> tuple[list[Trial], int]:
    """Runs an experiment, or resumes the trials ``resumed``.

    Returns:
        Its trials and the exit code.
    """
    interruption = Interruption(console)
    show_trials = max(experiment.num_trials, len(resumed)) > 1
    progress = Progress(console, experiment.stop, show_trials, resumed)
    retry = ResumeConfig.ResumeType.RESUME
    resume_config = ResumeConfig(errored=retry) if resumed else None
    sweep = experiment.sweep
    spec = experiment.spec_where(ray.cluster_resources().get("GPU", 0))
    try:
        with interruption.installed(), progress.shown():
            # `run_experiments` supports neither search algorithms nor limits.
            trials = tune.run(
                TuneExperiment.from_json(experiment.name, spec),
                scheduler=sweep.make_scheduler(),
                search_alg=sweep.make_searcher(spec["config"]),
                max_concurrent_trials=sweep.max_concurrent_trials,
                reuse_actors=sweep.reuse_actors,
                verbose=0,
                callbacks=[progress, interruption, *experiment.loggers],
                resume_config=resume_config,
                raise_on_failed_trial=False,
            ).trials
    except KeyboardInterrupt:
        return [], INTERRUPTED
    except Exception as error:
        logging.getLogger("ray.tune").info("The run failed", exc_info=True)
        click.echo(f"Error: {experiment.name}: {_last_line(str(error))}", err=True)
        return [], FAILED
    failed = any(trial.status == Trial.ERROR for trial in trials)
    return trials, INTERRUPTED if interruption.requested else FAILED if failed else 0


def report(
    experiment: Experiment,
    trials: list[Trial],
    code: int,
    modules_file: Path | None,
    console: Console,
) -> None:
    """Prints the results of a run and the commands to continue with."""

    def say(text: str) -> None:
        console.print(text, soft_wrap=True, highlight=False, markup=False)

    say(f"Results: {experiment.path}")
    scores = {}
    for trial in trials:
        last = iteration_return(flatten_dict(trial.last_result))
        mean, evaluation = (trial.metric_analysis.get(name, {}) for name in (RETURN, EVALUATION))
        scores[trial] = evaluation.get("last", math.nan if last is None else last)
        line = f"{trial}: last return {number(last)}, of RLlib's 100 episodes"
        line += f" {number(mean.get('last'))}, best {number(mean.get('max'))}"
        if evaluation:
            line += f"; evaluation {number(evaluation['last'])}, best {number(evaluation['max'])}"
        say(line)
    checkpoints = {trial: trial.checkpoint for trial in trials if trial.checkpoint}
    if checkpoints:
        best_trial = max(
            checkpoints, key=lambda trial: (not math.isnan(scores[trial]), scores[trial])
        )
        command = ["evaluate", checkpoints[best_trial].path]
        command += ["--file", str(modules_file)] if modules_file else []
        say(f"Evaluate: {_command(command)}")
    elif trials:
        say("No checkpoint was saved: see --checkpoint-freq and --checkpoint-at-end")
    for trial in trials:
        if trial.status == Trial.ERROR:
            place = f"{trial.path}/{trial.run_metadata.error_filename}"
            click.echo(
                f"Error: {trial}: {_last_line(str(trial.get_error()))} (see {place})", err=True
            )
    if code:
        arguments = [argument for argument in sys.argv[1:] if argument != "--resume"]
        say(f"Resume: {_command([*arguments, '--resume'])}")


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "?")
