"""Resumption of an earlier run of the same experiment."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import PurePosixPath

import pyarrow.fs
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.result import EXPR_PROGRESS_FILE, EXPR_RESULT_FILE
from ray.tune.utils import flatten_dict

from qwr_rllib._ray_compat import newest_experiment_state
from qwr_rllib.cli.errors import ConfigError
from qwr_rllib.cli.experiments import Experiment


def find_state(experiment: Experiment) -> str | None:
    """Returns the newest file with Tune's state of this experiment's trials, if any."""
    files, path = pyarrow.fs.FileSystem.from_uri(experiment.path)
    return newest_experiment_state(path, files)


def apply_stop(experiment: Experiment, state_path: str) -> set[str]:
    """Gives the trials in Tune's state file the experiment's stop criteria, which may be new.

    Tune itself keeps the criteria that the trials were started with and does not resume finished
    trials. Here, a trial that ended because it met its old criteria, and does not meet the new
    ones, is resumed. The result is written as a newer state file.

    Returns:
        The ids of all trials in the file.

    Raises:
        ConfigError: The file is broken.
    """
    files, path = pyarrow.fs.FileSystem.from_uri(experiment.path)
    try:
        with files.open_input_stream(state_path) as file:
            state = json.loads(file.readall())
        trials = [_restored(*pair) for pair in state["trial_data"]]
    except Exception as error:
        raise ConfigError(
            f"cannot resume {experiment.name}: {state_path} is broken "
            f"({type(error).__name__}: {error}); the trials' checkpoints are below {path}"
        ) from error
    for number, trial in enumerate(trials):
        trial_state, metadata = state["trial_data"][number]
        entries = json.loads(trial_state) | {"stopping_criterion": experiment.stop}
        result = flatten_dict(trial.last_result)
        # The result of a stopped trial has `done`, which is no criterion.
        result.pop("done", None)
        stopped = trial.status == Trial.TERMINATED and trial.should_stop(result)
        trial.stopping_criterion = experiment.stop
        if stopped and not trial.should_stop(result):
            entries["status"] = Trial.PENDING
        state["trial_data"][number] = [json.dumps(entries), metadata]
    name = TuneController.CKPT_FILE_TMPL.format(f"{datetime.now():%Y-%m-%d_%H-%M-%S}")
    with files.open_output_stream(str(PurePosixPath(path) / name)) as file:
        file.write(json.dumps(state).encode())
    return {trial.trial_id for trial in trials}


def trim_results(experiment: Experiment) -> None:
    """Removes an unfinished last line from the trials' logs, ``result.json`` and ``progress.csv``.

    A kill can end Tune in the middle of a line. On resumption, Tune appends the next result to that
    line, and both would be unreadable.
    """
    files, path = pyarrow.fs.FileSystem.from_uri(experiment.path)
    logs = [
        f"{folder.path}/{name}"
        for folder in files.get_file_info(pyarrow.fs.FileSelector(path))
        for name in (EXPR_RESULT_FILE, EXPR_PROGRESS_FILE)
    ]
    for log in files.get_file_info(logs):
        if not log.size:  # missing or empty
            continue
        with files.open_input_file(log.path) as file:
            file.seek(log.size - 1)
            if file.read(1) == b"\n":
                continue
            file.seek(0)
            text = file.readall()
        with files.open_output_stream(f"{log.path}.new") as file:
            file.write(text[: text.rfind(b"\n") + 1])
        files.move(f"{log.path}.new", log.path)  # whole or not at all


def _restored(trial_state: str, metadata: str) -> Trial:
    trial = Trial.from_json_state(trial_state, stub=True)
    trial.restore_run_metadata(metadata)
    return trial
