"""Sweeps: the keys of a file, the resources of trials, and small real sweeps."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from click.testing import CliRunner, Result
from ray import tune
from ray._private.services import psutil  # Ray contains it
from ray.tune.search.sample import Categorical, Float, Integer

from qwr_rllib import QWR, QWRConfig
from qwr_rllib.cli import rllib
from qwr_rllib.cli.errors import ConfigError
from qwr_rllib.cli.experiments import Experiment, Overrides, check_experiment, read_file
from qwr_rllib.cli.sweeps import searched, with_spaces

pytestmark = pytest.mark.ray

EXAMPLES = Path(__file__).parents[1] / "tuned_examples"
RETURN = "env_runners/episode_return_mean"


def example(name: str, storage_path: Path) -> Experiment:
    specs, _ = read_file(EXAMPLES / f"{name}.yaml")
    return check_experiment(name, specs[name], Overrides(storage_path=str(storage_path)))


# --- Files ---------------------------------------------------------------------------------


def test_spaces() -> None:
    config = with_spaces(
        {
            "beta": {"loguniform": [0.1, 10]},
            "model": {"fcnet_hiddens": {"choice": [[64], [256, 256]]}},
            "margin": {"randint": [1, 8]},
            "backup": {"grid_search": ["max", "mean"]},
            "gamma": 0.99,
        },
        "x",
    )
    assert isinstance(config["beta"], Float)
    assert (config["beta"].lower, config["beta"].upper) == (0.1, 10)
    assert isinstance(config["model"]["fcnet_hiddens"], Categorical)
    assert config["model"]["fcnet_hiddens"].categories == [[64], [256, 256]]
    assert isinstance(config["margin"], Integer)
    assert config["backup"] == {"grid_search": ["max", "mean"]}
    assert searched(config)
    assert not searched({"model": {"fcnet_hiddens": [64]}})


@pytest.mark.parametrize(
    ("space", "part"),
    [
        ({"uniform": 1}, "uniform must be a list"),
        ({"uniform": [1]}, "x: beta: uniform"),
        ({"loguniform": [0, 1]}, "x: beta: loguniform"),
    ],
)
def test_bad_spaces(space: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(part)):
        with_spaces({"beta": space}, "x")


SEARCH = "config: {beta: {uniform: [0.5, 1]}, evaluation_interval: 1}, metric: some/return, "


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("scheduler: async_hyperbnd", ["'async_hyperband'"]),
        ("scheduler: {max_t: 1}", ["scheduler", "`type`"]),
        ("scheduler: async_hyperband", ["metric is missing", "async_hyperband"]),
        ("metric: m, scheduler: {type: async_hyperband, max_tt: 3}", ["'max_tt'", "'max_t'"]),
        ("metric: m, scheduler: {type: async_hyperband, max_t: -1}", ["async_hyperband"]),
        ("metric: 5, scheduler: async_hyperband", ["metric", "5"]),
        ("metric: m, mode: best, scheduler: async_hyperband", ["mode", "'best'"]),
        ("metric: evaluation/m, scheduler: async_hyperband", ["evaluation_interval", "None"]),
        ("max_concurrent_trials: 0", ["max_concurrent_trials", "0"]),
        ("reuse_actors: sometimes", ["reuse_actors", "'sometimes'"]),
        ("search_alg: optuna, metric: m", ["no value of the config is a space"]),
        (SEARCH + "search_alg: optunna", ["'optuna'"]),
        (SEARCH + "search_alg: {type: optuna, sed: 1}", ["'sed'", "'seed'"]),
        (SEARCH.replace("metric: some/return, ", "search_alg: optuna"), ["metric is missing"]),
        (
            SEARCH.replace("evaluation_interval: 1", "margin: {grid_search: [1, 3]}")
            + "search_alg: optuna",
            ["optuna", "Grid search"],
        ),
        (SEARCH.replace("some/", "evaluation/").replace(": 1}", ": 5}") + "search_alg: optuna",
         ["evaluation_interval", "got 5"]),
    ],
)  # fmt: skip
def test_bad_sweep(tmp_path: Path, text: str, parts: list[str]) -> None:
    (tmp_path / "file.yaml").write_text(f"a: {{run: QWR, env: Pendulum-v1, {text}}}")
    result = invoke("train", "file", tmp_path / "file.yaml", "--storage-path", tmp_path)
    assert_refused(result, *parts)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(rllib, [str(argument) for argument in arguments])


def assert_refused(result: Result, *parts: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    for part in parts:
        assert part in result.stderr
    assert not ray.is_initialized()


def test_search_without_optuna_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.tune.search.optuna.optuna_search.ot", None)
    with pytest.raises(ConfigError, match=re.escape("pip install 'qwr-rllib[search]'")):
        example("qwr-search", tmp_path)


def test_command_line_over_the_file(tmp_path: Path) -> None:
    spec = {
        "run": "QWR",
        "env": "Pendulum-v1",
        "metric": RETURN,
        "scheduler": {"type": "async_hyperband", "max_t": 7, "grace_period": 2},
        "max_concurrent_trials": 3,
    }

    def sweep(**overrides: Any) -> Any:
        return check_experiment(
            "a", spec, Overrides(storage_path=str(tmp_path), sweep=overrides)
        ).sweep

    assert sweep().scheduler_config == {"max_t": 7, "grace_period": 2}
    assert sweep(scheduler_config={"max_t": 9}).scheduler_config == {"max_t": 9, "grace_period": 2}
    assert sweep(scheduler="median_stopping_rule").scheduler_config == {}
    assert sweep().make_scheduler().metric == RETURN
    assert sweep().max_concurrent_trials == 3
    assert sweep(max_concurrent_trials=1).max_concurrent_trials == 1


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_example_can_be_run(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An example may need a data set that the user must record first.
    monkeypatch.setattr(QWRConfig, "load_offline", lambda *_: None)
    assert example(file.stem, tmp_path).num_trials >= 1


def test_settings_of_the_command_line_go_before_the_files(tmp_path: Path) -> None:
    specs, _ = read_file(EXAMPLES / "qwr-atari.yaml")
    spec = specs["qwr-atari"]
    config = {"env_config": {"game": "boxing"}, "margin": 1, "beta": {"grid_search": [1, 2]}}
    overrides = Overrides(storage_path=str(tmp_path), config=config)
    spec["config"]["env_config"]["noop_max"] = 3
    found = check_experiment("a", spec, overrides)
    assert found.num_trials == 2
    trial = found.tune_spec["config"]
    assert trial["env_config"] == {"game": "boxing", "noop_max": 3}
    assert (trial["margin"], trial["reward_clip"]) == (1, 1.0)
    with pytest.raises(ConfigError, match="unknown config key 'betta'; did you mean 'beta'"):
        check_experiment("a", spec, Overrides(storage_path=str(tmp_path), config={"betta": 1}))


def test_examples(tmp_path: Path) -> None:
    paper = example("qwr-ablation-halfcheetah", tmp_path)
    config = paper.tune_spec["config"]
    assert paper.num_trials == 2 * 3 * 4 * 5
    assert config["n_action_samples"] == {"grid_search": [2, 4, 8, 16]}
    assert paper.resources == {"CPU": 1.0}
    small = example("qwr-ablation-small", tmp_path)
    assert small.num_trials == 16
    assert small.sweep.reuse_actors
    search = example("qwr-search", tmp_path)
    searcher = search.sweep.make_searcher(search.tune_spec["config"])
    assert searcher is not None
    names = {"critic_lr", "actor_lr", "backup_temperature", "beta", "action_std"}
    assert searcher.suggest("first").keys() == names
    assert searcher.suggest("first")["critic_lr"] == 5e-4  # the defaults come first
    assert 0.1 <= searcher.suggest("second")["action_std"] <= 0.8


# --- Resources -----------------------------------------------------------------------------


def test_a_trial_asks_for_all_its_processes() -> None:
    config = (
        QWRConfig()
        .environment("Pendulum-v1")
        .resources(num_cpus_for_main_process=3, num_gpus=0.5)
        .env_runners(num_env_runners=2, num_cpus_per_env_runner=2)
        .evaluation(evaluation_interval=1, evaluation_num_env_runners=1)
    )
    request = QWR.default_resource_request(config.to_dict())
    cpus = [bundle.get("CPU", 0) for bundle in request.bundles]
    assert cpus == [3, 2, 2, 2]  # the learner with the replay beside it, workers, evaluation
    assert request.required_resources["GPU"] == 0.5


@pytest.fixture(scope="module")
def two_cpus() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False)
    yield
    ray.shutdown()


class Watch(tune.Callback):
    """A callback that reads Ray's state between the steps of Tune's loop."""

    def __init__(self) -> None:
        self.free_cpus: list[float] = []
        self.groups: list[int] = []

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.free_cpus.append(ray.available_resources().get("CPU", 0))
        table = ray.util.placement_group_table().values()
        self.groups.append(sum(group["state"] == "CREATED" for group in table))


def test_reused_actors_and_the_limits_of_the_machine(two_cpus: None, tmp_path: Path) -> None:
    config = (
        QWRConfig()
        .environment("Pendulum-v1")
        .env_runners(num_env_runners=0)
        .training(
            n_interactions=200,
            n_critic_steps=4,
            n_actor_steps=4,
            target_update_freq=2,
            train_batch_size=16,
            # The last two repeat the first two, in the same processes.
            margin=tune.grid_search([1, 3, 1, 3]),
        )
        .debugging(seed=7)
    )
    watch = Watch()
    results = tune.Tuner(
        QWR,
        param_space=config,
        tune_config=tune.TuneConfig(reuse_actors=True),
        run_config=tune.RunConfig(
            stop={"training_iteration": 2},
            storage_path=str(tmp_path),
            callbacks=[watch],
            verbose=0,
        ),
    ).fit()
    assert not results.errors
    metrics = [result.metrics for result in results]
    assert all(each and each["training_iteration"] == 2 for each in metrics)
    losses = [each["learner"]["critic_loss"] for each in metrics if each]
    assert losses[:2] == losses[2:]
    assert losses[0] != losses[1]
    assert len({each["pid"] for each in metrics if each}) == 2
    assert all(each["versions"]["ray"] == ray.__version__ for each in metrics if each)
    assert max(watch.groups) == 2
    assert min(watch.free_cpus) == 0


# --- Through the command line --------------------------------------------------------------

PACE = """
import gymnasium as gym
import numpy as np


class Pace(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, config=None):
        self.length = (config or {}).get("length", 10)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.t += 1
        if not self.length:
            raise ArithmeticError("no way to go")
        return np.zeros(2, np.float32), 1.0, False, self.t >= self.length, {}


gym.register("SweepPace-v0", lambda **config: Pace(config))
"""

SWEEPS = """
imports: [pace]
grid:
  run: QWR
  env: SweepPace-v0
  stop: {training_iteration: 60}
  checkpoint_config: {checkpoint_frequency: 1, num_to_keep: 1}
  reuse_actors: true
  config: &small
    env_config: {length: {grid_search: [10, 0, 20]}}
    num_env_runners: 0
    n_interactions: 40
    n_critic_steps: 2
    n_actor_steps: 2
    target_update_freq: 2
    train_batch_size: 8
search:
  run: QWR
  env: SweepPace-v0
  num_samples: 2
  stop: {training_iteration: 4}
  metric: evaluation/env_runners/episode_return_mean
  scheduler: {type: async_hyperband, time_attr: training_iteration, max_t: 4, grace_period: 1}
  search_alg: {type: optuna, seed: 0}
  reuse_actors: true
  config:
    <<: *small
    env_config: {}
    critic_lr: {loguniform: [1e-5, 1e-3]}
    evaluation_interval: 1
    evaluation_duration: 1
"""


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "qwr_rllib.cli", "train", "file", "sweeps.yaml"]
    command += ["--storage-path", str(folder / "results"), "--ray-num-cpus", "1", *more]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def statuses(experiment: Path) -> list[str]:
    """Returns the trials' statuses by id; Tune's state has the resumed trials first."""
    state = json.loads(max(experiment.glob("experiment_state-*.json")).read_text())
    entries = [json.loads(trial) for trial, _ in state["trial_data"]]
    return [entry["status"] for entry in sorted(entries, key=lambda entry: entry["trial_id"])]


def results_of(experiment: Path, trial: str) -> list[dict[str, Any]]:
    [file] = experiment.glob(f"*_{trial}_*/result.json")
    return [json.loads(line) for line in file.read_text().splitlines()]


def assert_gone(processes: list[psutil.Process]) -> None:
    """Checks that no process outlives the command."""

    def alive(process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.NoSuchProcess):
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        return False

    deadline = time.monotonic() + 300
    while left := [process for process in processes if alive(process)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.5)


def test_killed_sweep_goes_on_with_what_was_unfinished(tmp_path: Path) -> None:
    (tmp_path / "pace.py").write_text(PACE)
    (tmp_path / "sweeps.yaml").write_text(SWEEPS)
    grid, search = tmp_path / "results/grid", tmp_path / "results/search"

    killed = start(tmp_path)
    assert killed.stdout is not None
    seen: list[str] = []
    for line in killed.stdout:
        seen.append(line)
        # The first trial has ended, the second has failed, the third is in its middle.
        if re.search(r"^ *00002 +30 ", line):
            break
    started = psutil.Process(killed.pid).children(recursive=True)
    assert any("raylet" in child.name() for child in started)
    assert any(child.cmdline()[0].startswith("ray::QWR") for child in started)
    # Ray's two agents look for their raylet only once a minute: they are awaited at the end.
    agents = [child for child in started if "Agent" in child.cmdline()[0]]
    killed.kill()
    _, errors = killed.communicate()
    assert_gone([child for child in started if child not in agents])
    assert seen, errors
    assert re.search("_00001: failed", "".join(seen)), "".join(seen) + errors
    before = results_of(grid, "00000")
    assert [result["training_iteration"] for result in before] == list(range(1, 61))

    resumed = start(tmp_path, "--resume")
    output, errors = resumed.communicate(timeout=500)
    # One trial failed, the others did not.
    assert resumed.returncode == 1, output + errors
    [failure] = [line for line in errors.splitlines() if line.startswith("Error: ")]
    assert "_00001: " in failure
    assert "no way to go" in failure
    assert statuses(grid) == ["TERMINATED", "ERROR", "TERMINATED"]
    assert results_of(grid, "00000") == before
    assert not re.search(r"^ *00000 +\d+ ", output.split("Results: ")[0], re.MULTILINE)
    # The kill loses about the last second of the third trial.
    [after] = re.findall(r"_00002: goes on after iteration (\d+),", output, re.MULTILINE)
    assert 0 < int(after) < 60
    iterations = [result["training_iteration"] for result in results_of(grid, "00002")]
    assert iterations[-1] == 60
    assert len((grid / "commands.txt").read_text().splitlines()) == 2

    # The search ran after the grid and ended.
    assert statuses(search) == ["TERMINATED"] * 2
    rates = [json.loads(file.read_text())["critic_lr"] for file in search.glob("QWR_*/params.json")]
    assert len(set(rates)) == 2
    assert all(1e-5 <= rate <= 1e-3 for rate in rates)


OWN_ENVIRONMENTS = """
import sys

import gymnasium as gym
import numpy as np
import ray
from ray import tune
from ray._private.services import psutil  # Ray contains it

from qwr_rllib import QWR, QWRConfig


class Walk(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, config):
        self.length = config["length"]

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.zeros(2, np.float32), 1.0, False, self.t == self.length, {}


if __name__ == "__main__":
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    tune.register_env("walk", lambda config: Walk({"length": 2 * config["length"]}))
    for env, algorithm in ((Walk, QWR), ("walk", "QWR")):
        config = (
            QWRConfig()
            .environment(env, env_config={"length": 10})
            .env_runners(num_env_runners=1)
            .training(
                n_interactions=40,
                n_critic_steps=2,
                n_actor_steps=2,
                target_update_freq=2,
                train_batch_size=8,
            )
        )
        run = tune.RunConfig(storage_path=sys.argv[1], stop={"training_iteration": 1})
        [result] = tune.Tuner(algorithm, param_space=config, run_config=run).fit()
        assert result.error is None, result.error
        print("RETURN", result.metrics["env_runners"]["episode_return_mean"])
"""


def test_a_scripts_own_environments_by_class_and_by_name(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(OWN_ENVIRONMENTS)
    command = [sys.executable, "script.py", str(tmp_path / "results")]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert re.findall(r"^RETURN (.*)$", ended.stdout, re.MULTILINE) == ["10.0", "20.0"]
