"""The commands: in this process if they end before Ray starts, else as subprocesses."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import ray
import torch
from click.testing import CliRunner, Result
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.policy.policy import Policy
from ray.rllib.utils.spaces.space_utils import unsquash_action
from rich.console import Console

import qwr_rllib
from qwr_rllib import QWR, QWRConfig
from qwr_rllib.cli import commands, evaluation, qwr, rllib
from qwr_rllib.cli.errors import ConfigError
from qwr_rllib.cli.evaluation import EpisodeResult, played
from qwr_rllib.cli.experiments import Experiment, Overrides, check_experiment, read_file
from qwr_rllib.cli.interruption import Interruption
from qwr_rllib.cli.progress import Progress, iteration_return, row, seconds_left
from qwr_rllib.cli.resume import apply_stop, find_state, trim_results
from qwr_rllib.local.theorem import Trial

pytestmark = pytest.mark.ray

ENVS = """
import gymnasium as gym
import numpy as np
from neighbour import LENGTH


class Walk(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Box(-2, 6, (1,), np.float32)

    def __init__(self, config=None):
        pass

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._observation(), {}

    def step(self, action):
        self.t += 1
        return self._observation(), float(action[0]), False, self.t >= LENGTH, {}

    def _observation(self):
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)


# Gymnasium's registry is of one process: a rollout worker knows this only if it imports us.
gym.register("CliWalk-v0", Walk)
"""

WALK = """
imports: [walking]
walk:
  run: QWR
  env: CliWalk-v0
  stop: {training_iteration: 100000}
  checkpoint_config: {checkpoint_frequency: 1000, num_to_keep: 3}
  config: &small
    num_env_runners: 1
    n_interactions: 40
    n_critic_steps: 2
    n_actor_steps: 2
    target_update_freq: 2
    train_batch_size: 8
"""

STUMBLE = """
from qwr_rllib import QWRConfig
from .walking import Walk


class Stumble(Walk):
    def step(self, action):
        if self.t == 15:
            raise ArithmeticError("one leg too few")
        return super().step(action)


config = (
    QWRConfig()
    .environment(Stumble)
    .env_runners(num_env_runners=0)
    .training(n_interactions=40, n_critic_steps=2, n_actor_steps=2, target_update_freq=2)
)
stop = {"training_iteration": 2}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with environments and the files that train on them."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "neighbour.py").write_text("LENGTH = 20\n")
    (folder / "walking.py").write_text(ENVS)
    (folder / "walk.yaml").write_text(WALK)
    (folder / "stumble.py").write_text(STUMBLE)
    return folder


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(rllib, [str(argument) for argument in arguments])


def assert_refused(result: Result, *parts: str) -> None:
    """Checks for one line of error, exit code 2, and nothing started."""
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert not result.stdout
    for part in parts:
        assert part in result.stderr
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a:\n  run: QWR\n   env: x\n", ["file.yaml:3:7"]),
        ("just words", ["experiment-name"]),
        ("a: {env: Pendulum-v1}", ["a: `run`"]),
        ("a: {run: QRW, env: Pendulum-v1}", ["'QRW'", "'QWR'"]),
        ("a: {run: ppoo, env: CartPole-v1}", ["'ppoo'", "'PPO'"]),
        ("a: {run: 'no_such_module:Algo', env: CartPole-v1}", ["no_such_module"]),
        ("a: {run: 'json:dumps', env: CartPole-v1}", ["'json:dumps'"]),
        ("a: {run: QWR}", ["`env` is missing"]),
        ("a: {run: QWR, env: Pendulim-v1}", ["'Pendulim-v1'", "`Pendulum`"]),
        ("a: {run: QWR, env: ALE/Pong-v5}", ["ale_py:ALE/Pong-v5"]),
        ("a: {run: QWR, env: LunarLander-v3}", ["pip install"]),
        ("a: {run: QWR, env: Pendulum-v1, checkpiont_config: {}}", ["'checkpoint_config'"]),
        ("a: {run: QWR, env: Pendulum-v1, checkpoint_config: {frequency: 1}}", ["'frequency'"]),
        ("a: {run: QWR, env: Pendulum-v1, num_samples: many}", ["num_samples", "'many'"]),
        ("a: {run: QWR, env: Pendulum-v1, stop: {training_iteration: soon}}", ["'soon'"]),
        ("a: {run: QWR, env: Pendulum-v1, config: {margn: 1}}", ["'margn'", "'margin'"]),
        ("a: {run: QWR, env: Pendulum-v1, config: {margin: 0}}", ["margin", "0"]),
        (
            "a: {run: QWR, env: Pendulum-v1, config: {margin: {grid_search: [1, 3, 0]}}}",
            ["margin=0", "got 0"],
        ),
        ("a: {run: PPO, env: CartPole-v1, config: {lrr: 1}}", ["'lrr'", "'lr'"]),
        (
            "a: {run: QWR, env: Pendulum-v1, restore: /nowhere}",
            ["checkpoint to restore", "/nowhere"],
        ),
        ("a: {run: QWR, env: Pendulum-v1, config: {beta: 1.0, beta: 2.0}}", ["'beta'", "twice"]),
        ("imports: [no_such_module]\na: {run: QWR, env: Pendulum-v1}", ["no_such_module"]),
    ],
)
def test_bad_yaml(tmp_path: Path, text: str, parts: list[str]) -> None:
    (tmp_path / "file.yaml").write_text(text)
    result = invoke("train", "file", tmp_path / "file.yaml", "--storage-path", tmp_path)
    assert_refused(result, *parts)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--resume"], ["nothing to resume in", "/results/a"]),
        (["--stop", "{'a': 1}"], ["--stop", "not JSON"]),
        (["--stop", "[1]"], ["--stop", "object"]),
        (["--checkpoint-freq", "-1"], ["--checkpoint-freq"]),
        (["--chekpoint-freq", "1"], ["--checkpoint-freq"]),
        (["--scheduler", "async_hyperbnd"], ["'async_hyperband'"]),
        (["--scheduler", "pbt", "--scheduler-config", '{"time_atr": 1}'], ["'time_attr'"]),
        (["--storage-path", "/proc/nowhere"], ["/proc/nowhere"]),
        (["--ray-address", "127.0.0.1:1"], ["127.0.0.1:1"]),
        (["--ray-address", "auto:1", "--ray-num-cpus", "1"], ["--ray-num-cpus"]),
    ],
)
def test_bad_options(tmp_path: Path, arguments: list[str], parts: list[str]) -> None:
    file = tmp_path / "file.yaml"
    file.write_text("a: {run: QWR, env: Pendulum-v1}")
    result = invoke("train", "file", file, "--storage-path", tmp_path / "results", *arguments)
    assert_refused(result, *parts)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["train", "file", "missing.yaml"], ["missing.yaml"]),
        (["train", "file", "missing.py"], ["missing.py"]),
        (["train"], ["--algo"]),
        (["train", "--algo", "QWR"], ["`env` is missing"]),
        (["train", "--algo", "QWR", "file", "x.yaml"], ["after the file"]),
        (["evaluate", "/nowhere"], ["/nowhere"]),
        (["evaluate", "/"], ["neither"]),
        (["trian"], ["'trian'"]),
    ],
)
def test_bad_command(arguments: list[str], parts: list[str]) -> None:
    assert_refused(invoke(*arguments), *parts)


@pytest.mark.parametrize("group", [rllib, qwr])
def test_help(group) -> None:
    result = CliRunner().invoke(group, ["train", "file", "--help"])
    assert result.exit_code == 0
    assert "--checkpoint-freq" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["train", "file", "--help"], ["evaluate", "/nowhere"]],
)
def test_help_and_wrong_paths_do_without_long_imports(arguments: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "qwr_rllib.cli", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.stdout or "no such folder" in ended.stderr
    imported = set(re.findall(r"^import time:.*\| *(\S+)$", ended.stderr, re.MULTILINE))
    assert "qwr_rllib.cli.commands" in imported
    assert not imported & {"ray", "torch", "pandas", "numpy", "gymnasium", "rich"}


@pytest.mark.parametrize("group", [rllib, qwr])
def test_version(group) -> None:
    result = CliRunner().invoke(group, ["--version"])
    assert result.exit_code == 0
    assert result.stdout == f"qwr-rllib {qwr_rllib.__version__}\n"


def test_defaults_of_theorem_are_those_of_its_trials() -> None:
    defaults = {parameter.name: parameter.default for parameter in commands.theorem.params}
    assert defaults["episodes"] == Trial.num_episodes
    assert defaults["iterations"] == Trial.iterations


def test_command_line_is_merged_over_the_file(project: Path, tmp_path: Path) -> None:
    specs, _ = read_file(project / "walk.yaml")
    experiment = check_experiment(
        "walk",
        specs["walk"],
        Overrides(
            stop={"env_runners": {"episode_return_mean": 5}},
            storage_path=str(tmp_path),
            checkpoint_config={"checkpoint_frequency": 2},
        ),
    )
    assert experiment.stop == {"training_iteration": 100000, "env_runners/episode_return_mean": 5}
    assert experiment.tune_spec["checkpoint_config"] == {
        "checkpoint_frequency": 2,
        "num_to_keep": 3,
    }
    assert experiment.tune_spec["config"]["env"] == "CliWalk-v0"
    assert experiment.path == f"{tmp_path}/walk"
    assert experiment.resources == {"CPU": 2.0}


def test_grid_is_counted_and_scientific_notation_is_a_number(tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(
        "a: {run: QWR, env: Pendulum-v1, num_samples: 2,"
        " config: {critic_lr: {grid_search: [5e-4, 1e-3, 2]}}}"
    )
    specs, _ = read_file(file)
    experiment = check_experiment("a", specs["a"], Overrides(storage_path=str(tmp_path)))
    assert experiment.tune_spec["config"]["critic_lr"]["grid_search"] == [0.0005, 0.001, 2]
    assert experiment.num_trials == 6


def test_tune_is_given_our_defaults_to_resume_with(tmp_path: Path) -> None:
    spec = {"run": "AWR", "env": "Pendulum-v1", "config": {"beta": 2.0, "gamma": 0.9}}
    experiment = check_experiment("a", spec, Overrides(storage_path=str(tmp_path)))
    given = experiment.tune_spec["config"]
    names = ("beta", "gamma", "margin", "replay_capacity", "grad_clip")
    assert [given[name] for name in names] == [2.0, 0.9, 60, 50_000, 50.0]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"frame_stack": {"grid_search": [1, 4]}}, "frame_stack"),
        ({"n_action_samples": "all"}, "n_action_samples must be an integer >= 1"),
        ({"model": {"fcnet_hidden": [64]}}, "did you mean 'fcnet_hiddens'"),
        ({"env_config": 3}, "env_config must be a mapping, got 3"),
    ],
)
def test_every_point_is_checked_against_the_spaces(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    spec = {"run": "QWR", "env": "Pendulum-v1", "config": config}
    with pytest.raises(ConfigError, match=message):
        check_experiment("a", spec, Overrides(storage_path=str(tmp_path)))


def test_a_gpu_is_taken_where_there_is_one(tmp_path: Path) -> None:
    def checked(num_gpus: object) -> Experiment:
        spec = {"run": "QWR", "env": "Pendulum-v1", "config": {"num_gpus": num_gpus}}
        return check_experiment("a", spec, Overrides(storage_path=str(tmp_path)))

    experiment = checked("auto")
    assert experiment.resources == {"CPU": 2.0}  # no GPU is needed
    assert experiment.spec_where(gpus=2)["config"]["num_gpus"] == 1
    assert experiment.spec_where(gpus=0)["config"]["num_gpus"] == 0
    assert checked(0).spec_where(gpus=2)["config"]["num_gpus"] == 0


RESULT = {
    "training_iteration": 5,
    "num_env_steps_sampled_lifetime": 5000,
    "time_total_s": 100.0,
    "time_this_iter_s": 20.0,
    "env_runners/episode_return_mean": 12.345,
    "env_runners/hist_stats/episode_reward": [1.0, 2.0, 30.0, 60.0],
    "env_runners/episodes_this_iter": 2,
    "learner/critic_loss": 0.012345678,
    "learner/actor_loss": 1.5,
    "learner/critic_updates_per_s": 400.4,
    "learner/actor_updates_per_s": 300.0,
    "evaluation/env_runners/episode_return_mean": -3.0,
}


def test_row_of_qwr_and_of_an_algorithm_without_its_metrics() -> None:
    stop = {"num_env_steps_sampled_lifetime": 20000, "training_iteration": 1000}
    # A quarter of the steps took 100 s, so 300 s are left: less than for the 1000 iterations.
    assert row(RESULT, stop, 105) == [
        "5", "5000", "45.0", "-3.0", "0.0123", "1.5", "400/300", "0:01:45", "0:05:00",
    ]  # fmt: skip
    bare = {"training_iteration": 5, "env_runners/episode_return_mean": float("nan")}
    assert row(bare, {}, 3) == ["5", *"------", "0:00:03", "-"]
    assert seconds_left(RESULT, {"env_runners/episode_return_mean": 100}) is None


@pytest.mark.parametrize(("new", "expected"), [(4, 23.25), (1, 60.0), (0, None)])
def test_return_is_of_the_episodes_that_ended_in_the_iteration(
    new: int, expected: float | None
) -> None:
    assert iteration_return(RESULT | {"env_runners/episodes_this_iter": new}) == expected
    windowed = {"env_runners/episode_return_mean": 7.0}  # all that the new API stack reports
    assert iteration_return(windowed) == 7.0


class FakeTrial:
    """The part of a trial that a callback of Tune reads."""

    latest_checkpoint_result = None

    def __init__(self, number: int, seed: int | None = None) -> None:
        self.trial_id = f"abcde_{number:05d}"  # as in Tune
        self.experiment_tag = f"{number}" if seed is None else f"{number}_seed={seed}"

    def __str__(self) -> str:
        return f"QWR_HalfCheetah-v5_{self.trial_id}"


@pytest.mark.parametrize("count", [1, 2])
def test_rows_fit_a_terminal_and_say_which_trial(count: int) -> None:
    out = io.StringIO()
    trials: Any = [FakeTrial(number, number + 7) for number in range(count)]
    progress = Progress(Console(file=out), {"training_iteration": 2000}, count > 1, set())
    result = RESULT | {
        "training_iteration": 1234,
        "num_env_steps_sampled_lifetime": 12345678,
        "env_runners/hist_stats/episode_reward": [-12345.6],
        "env_runners/episodes_this_iter": 1,
        "learner/critic_loss": -1.2345e-05,
        "learner/critic_updates_per_s": 2222.2,
        "learner/actor_updates_per_s": 2222.2,
        "time_total_s": 36000.0,
    }
    with progress.shown():
        for trial in trials:
            progress.on_trial_start(0, trials, trial)
        for trial in trials:
            progress.on_trial_result(1, trials, trial, dict(result))
    lines = out.getvalue().splitlines()
    assert all(len(line) < 80 for line in lines), lines
    assert [line[-8:] for line in lines[:count]] == [", seed=7", ", seed=8"][:count]
    assert lines[count + 1].split()[-2:] == ["elapsed", "left"]
    rows = lines[count + 2 :]
    first = [["00000"], ["00001"]] if count > 1 else [[]]
    assert [line.split()[: len(begin)] for line, begin in zip(rows, first, strict=True)] == first
    for line in rows:
        assert "1234 12345678 -12345.6 " in line
        assert len(line.split()) == 9  # the trial replaces the actor's loss
        assert "2222/2222" in line


def test_a_bar_shows_how_far_an_iteration_may_be_on_terminals_alone() -> None:
    def output(terminal: bool) -> str:
        out = io.StringIO()
        trials: Any = [FakeTrial(0)]
        console = Console(file=out, force_terminal=terminal, width=80)
        progress = Progress(console, {"training_iteration": 9}, False, set())
        with progress.shown():
            progress.on_trial_start(0, trials, trials[0])
            progress.on_trial_result(1, trials, trials[0], dict(RESULT))
            progress._bars.refresh()
            last = RESULT | {"training_iteration": 9}
            progress.on_trial_result(2, trials, trials[0], last)  # no bar after the last
        assert not progress._bars.tasks
        return out.getvalue()

    assert "iteration 6" in output(True)
    assert "of about 0:00:20" in output(True)
    assert "iteration 6" not in output(False)
    assert "\x1b" not in output(False)


def test_python_file_may_import_its_neighbours(project: Path) -> None:
    specs, modules = read_file(project / "stumble.py")
    assert specs["stumble"]["stop"] == {"training_iteration": 2}
    assert modules.names == (str(project / "stumble.py"),)
    (project / "no_config.py").write_text("config = {}")
    assert_refused(invoke("train", "file", project / "no_config.py"), "must define `config`")


# --- With Ray ------------------------------------------------------------------------------


@contextlib.contextmanager
def running(
    project: Path, *arguments: object, prefix: Sequence[str] = ()
) -> Iterator[subprocess.Popen[str]]:
    """Runs a command in its own process group, as a shell does."""
    command = [*prefix, sys.executable, "-m", "qwr_rllib.cli", *map(str, arguments)]
    process = subprocess.Popen(
        command,
        cwd=project.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(process: subprocess.Popen[str], pattern: str) -> re.Match[str]:
    """Reads the output until a line matches; returns the match."""
    assert process.stdout is not None
    read = []
    for line in process.stdout:
        read.append(line)
        if match := re.search(pattern, line):
            return match
    assert process.stderr is not None
    raise AssertionError("".join(read) + process.stderr.read())


def train_walk(project: Path, results: Path, *more: str) -> list[object]:
    options = ["--storage-path", results, "--ray-num-cpus", 2, "--checkpoint-freq", 1]
    return ["train", "file", f"{project.name}/walk.yaml", *options, *more]


@pytest.fixture(scope="module")
def trained(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was interrupted, timed out, and resumed to its end."""
    results = tmp_path_factory.mktemp("results")
    with running(project, *train_walk(project, results)) as process:
        wait_for(process, r"^walk: QWR on CliWalk-v0, until training_iteration 100000$")
        wait_for(process, r"^  a trial of 2 CPU; an iteration: 40 environment steps, 2 critic ")
        wait_for(process, rf"^  results in {results}/walk$")
        wait_for(process, r"^ *3 +120 ")
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C on a terminal
        output, errors = process.communicate(timeout=300)
    assert process.returncode == 130, output + errors
    assert not errors
    assert "\x1b" not in output
    [resume] = re.findall(r"^Resume: (.*)", output, re.MULTILINE)
    assert resume.startswith(f"rllib train file {project.name}/walk.yaml")
    assert resume.endswith("--resume")
    # Includes iterations that ended after the signal was sent.
    last = ["3", *re.findall(r"^ *(\d+) +\d+ ", output, re.MULTILINE)][-1]

    # `timeout` does the same as when its time is over: SIGTERM to the command, and once more to all
    # of the process group.
    timeout = ["timeout", "3600"]
    with running(project, *train_walk(project, results, "--resume"), prefix=timeout) as process:
        # Interrupted after its last iteration was saved: nothing is lost.
        [done] = wait_for(process, r"goes on after iteration (\d+)").groups()
        assert done == last
        wait_for(process, rf"^ *{int(done) + 1} +{40 * int(done) + 40} ")
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=300)
    assert "Interrupted: waiting" in output, output + errors
    assert re.search(r"^Resume: rllib train file .* --resume$", output, re.MULTILINE)
    last = [str(int(done) + 1), *re.findall(r"^ *(\d+) +\d+ ", output, re.MULTILINE)][-1]

    end = int(last) + 10
    stop = json.dumps({"training_iteration": end})
    with running(project, *train_walk(project, results, "--resume", "--stop", stop)) as process:
        wait_for(process, f"goes on after iteration {last},")
        wait_for(process, rf"^ *{int(last) + 1} +{40 * int(last) + 40} ")
        output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, output + errors
    assert re.search(rf"^Results: {results}/walk$", output, re.MULTILINE)
    assert re.search(
        r"last return -?\d+\.\d, of RLlib's 100 episodes -?\d+\.\d, best -?\d+\.\d", output
    )
    evaluate = rf"^Evaluate: rllib evaluate {results}/walk/QWR_\S+/checkpoint_\d+ --file "
    assert re.search(evaluate, output, re.MULTILINE)
    assert len(list(results.glob("walk/QWR_*/checkpoint_*"))) == 3  # num_to_keep of the file
    return results / "walk"


def test_interrupt_timeout_resume(trained: Path) -> None:
    assert trained.is_dir()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_interrupt_ends_at_once(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(number)
    interruption = Interruption(Console())
    clock = SimpleNamespace(monotonic=iter([100.0, 100.5, 102.0]).__next__)
    monkeypatch.setattr("qwr_rllib.cli.interruption.time", clock)
    with interruption.installed():
        signal.raise_signal(number)
        assert interruption.requested
        signal.raise_signal(number)  # the same signal, forwarded by the parent process
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_later_stop_takes_finished_trials_up_again(project: Path, trained: Path) -> None:
    specs, _ = read_file(project / "walk.yaml")

    def status_with(stop: dict[str, float]) -> str:
        overrides = Overrides(stop=stop, storage_path=str(trained.parent))
        experiment = check_experiment("walk", specs["walk"], overrides)
        before = find_state(experiment)
        assert before
        apply_stop(experiment, before)
        after = find_state(experiment)
        assert after
        assert after > before
        [[trial, _]] = json.loads(Path(after).read_text())["trial_data"]
        Path(after).unlink()
        assert json.loads(trial)["stopping_criterion"] == experiment.stop
        return json.loads(trial)["status"]

    assert status_with({"training_iteration": 5}) == "TERMINATED"
    assert status_with({"training_iteration": 10**6}) == "PENDING"


def test_an_unfinished_line_of_a_log_is_removed(tmp_path: Path) -> None:
    spec = {"run": "QWR", "env": "Pendulum-v1"}
    experiment = check_experiment("a", spec, Overrides(storage_path=str(tmp_path)))
    logs = {"one/result.json": '{"x": 1}\n{"x": 2}\n{"x', "one/progress.csv": "x\n1\n2"}
    logs |= {"two/result.json": '{"x": 1}\n', "three/result.json": '{"x"', "commands.txt": "rllib"}
    for name, text in logs.items():
        (tmp_path / "a" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "a" / name).write_text(text)
    trim_results(experiment)
    kept = {"one/result.json": '{"x": 1}\n{"x": 2}\n', "one/progress.csv": "x\n1\n"}
    kept |= {"three/result.json": ""}
    found = {name: (tmp_path / "a" / name).read_text() for name in logs}
    assert found == logs | kept
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == len(logs)


def test_broken_state_is_not_a_new_run(project: Path, trained: Path) -> None:
    state = trained / "experiment_state-9999-01-01_00-00-00.json"
    state.write_text('{"trial_data": [["{}"')
    try:
        assert_refused(invoke(*train_walk_in(project, trained.parent), "--resume"), str(state))
    finally:
        state.unlink()


def train_walk_in(project: Path, results: Path) -> list[object]:
    return ["train", "file", project / "walk.yaml", "--storage-path", results]


def test_evaluate(project: Path, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "episodes.json"
    options = ["--file", project / "walk.yaml", "--episodes", 3, "--seed", 7, "--out", out]
    result = invoke("evaluate", trained, *options)
    assert result.exit_code == 0, result.output
    assert not ray.is_initialized()
    written = json.loads(out.read_text())
    assert written["checkpoint"] in result.stdout

    # Compute by hand: the mode action, from the policy's [-1, 1] to the environment's [-2, 6].
    policy = Policy.from_checkpoint(written["checkpoint"])["default_policy"]
    env = gym.make("CliWalk-v0")
    for number, episode in enumerate(written["episodes"]):
        observation, _ = env.reset(seed=7 + number)
        total, length, over = 0.0, 0, False
        while not over:
            action, _, _ = policy.compute_single_action(observation, explore=False)
            action = unsquash_action(action, policy.action_space_struct)
            observation, reward, terminated, truncated, _ = env.step(action)
            total, length, over = total + float(reward), length + 1, terminated or truncated
        assert episode == {
            "episode": number,
            "seed": 7 + number,
            "episode_return": pytest.approx(total, rel=1e-5),
            "length": 20,
            "complete": True,
        }
    returns = [episode["episode_return"] for episode in written["episodes"]]
    assert written["return_mean"] == pytest.approx(np.mean(returns))
    assert written["return_std"] == pytest.approx(np.std(returns))
    assert f"{written['return_mean']:.2f}" in result.stdout


def test_evaluate_stops_after_steps_and_writes_csv(
    project: Path, trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "episodes.csv"
    options = ["--file", project / "walk.yaml", "--steps", 21, "--out", out]
    result = invoke("evaluate", trained, *options)
    assert result.exit_code == 0
    lines = out.read_text().splitlines()
    assert lines[0] == "episode,seed,episode_return,length,complete"
    first, second = (line.split(",") for line in lines[1:])
    assert first[3:] == ["20", "True"]
    assert second[3:] == ["1", "False"]
    assert "cut at 1" in result.stdout
    mean = re.search(r"mean +(\S+) +20.0", result.stdout)  # of the whole episode alone
    assert mean
    assert float(mean[1]) == pytest.approx(float(first[2]), abs=0.01)


class Stander:
    """An agent without a policy."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Box(-2, 6, (1,), np.float32)

    def reset(self, observation: Any) -> None:
        pass

    def act(self, explore: bool = False) -> Any:
        return np.ones(1, np.float32)

    def observe(self, *step: Any) -> None:
        pass


class Endless(gym.Env):
    """An environment without a time limit; it cannot be rendered."""

    observation_space, action_space = Stander.observation_space, Stander.action_space

    def __init__(self, config: Any = None) -> None:
        pass

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        return np.zeros(2, np.float32), 1.0, False, False, {}


@pytest.mark.parametrize("episodes", [None, 3])
def test_an_episode_without_end_is_cut_by_the_limit_of_steps(episodes: int | None) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    agent: Any = Stander()
    results = played(console, agent, Endless(), 5, episodes, 30)
    assert results == [EpisodeResult(0, 5, 30.0, 30, complete=False)]
    assert "episode 1, step 30" in console.file.getvalue()  # type: ignore[attr-defined]
    console = Console(file=io.StringIO())
    played(console, agent, Endless(), 5, episodes, 30)
    assert not console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("env", "options", "parts"),
    [
        ("NowhereElse-v0", [], ["'NowhereElse-v0'", "--file"]),
        (Endless, ["--video", "videos"], ["--video", "cannot be rendered", "render_mode"]),
    ],
)
def test_evaluate_of_environments_of_ones_own_hints(
    env: Any, options: list[str], parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rllib_checkpoint.json").write_text("{}")
    loaded = (QWR, QWRConfig().environment(env), Stander())
    monkeypatch.setattr(evaluation, "load_checkpoint", lambda _: loaded)
    monkeypatch.chdir(tmp_path)
    assert_refused(invoke("evaluate", tmp_path, *options), *parts)


def test_a_checkpoint_of_a_module_that_is_not_there_hints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_there(_: Any) -> Any:
        raise ConfigError("cannot load") from ModuleNotFoundError("No module named 'walking'")

    (tmp_path / "rllib_checkpoint.json").write_text("{}")
    monkeypatch.setattr(evaluation, "load_checkpoint", not_there)
    assert_refused(invoke("evaluate", tmp_path), "cannot load", "--file")


def test_evaluate_of_the_new_api_stack(tmp_path: Path) -> None:
    config = PPOConfig().environment("CartPole-v1").env_runners(num_env_runners=0)
    config.training(train_batch_size=64, minibatch_size=32, num_epochs=1)
    config.learners(num_learners=0)
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        algo = config.build_algo()
        algo.train()
        algo.save(str(tmp_path / "checkpoint"))
        module = algo.get_module()
        algo.stop()
    finally:
        ray.shutdown()
    out = tmp_path / "episodes.json"
    result = invoke("evaluate", tmp_path / "checkpoint", "--episodes", 2, "--seed", 3, "--out", out)
    assert result.exit_code == 0, result.output

    env = gym.make("CartPole-v1")
    for number, episode in enumerate(json.loads(out.read_text())["episodes"]):
        observation, _ = env.reset(seed=3 + number)
        total, over = 0.0, False
        while not over:
            outputs = module.forward_inference({"obs": torch.from_numpy(observation)[None]})
            action = outputs["action_dist_inputs"].argmax().item()
            observation, reward, terminated, truncated, _ = env.step(action)
            total, over = total + float(reward), terminated or truncated
        assert episode["episode_return"] == total


def test_evaluate_refuses(project: Path, trained: Path) -> None:
    file = ["--file", project / "walk.yaml"]
    assert_refused_after_choice(invoke("evaluate", trained, *file, "--algo", "PPO"), "not PPO")
    wrong_env = invoke("evaluate", trained, *file, "--env", "Pendulum-v1")
    assert_refused_after_choice(wrong_env, "observation_space", "Pendulum-v1")
    assert_refused(invoke("evaluate", trained, *file, "--out", "episodes.xls"), "episodes.xls")
    assert_refused(invoke("evaluate", trained, *file, "--out", "no/such/a.csv"), "no such folder")
    [checkpoint, *_] = trained.glob("QWR_*/checkpoint_*")
    state = checkpoint / "policies" / "default_policy" / "policy_state.pkl"
    state.write_bytes(state.read_bytes()[:1000])
    assert_refused(invoke("evaluate", checkpoint, *file), "cannot load", "truncated")


def assert_refused_after_choice(result: Result, *parts: str) -> None:
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    for part in parts:
        assert part in result.stderr


def test_failed_trial(project: Path, tmp_path: Path) -> None:
    options = ["--storage-path", tmp_path, "--ray-num-cpus", 2]
    result = invoke("train", "file", project / "stumble.py", *options)
    assert result.exit_code == 1, result.output
    match = re.fullmatch(r"Error: QWR_\S+: .*one leg too few \(see (.*)\)\n", result.stderr)
    assert match, result.stderr
    assert 'stumble.py", line' in Path(match[1]).read_text()  # the place in the traceback
    assert re.search(r"^Resume: .* --resume$", result.stdout, re.MULTILINE)
    assert not ray.is_initialized()
