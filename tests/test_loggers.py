"""Results in TensorBoard, Weights & Biases and MLflow by a key of the file, offline."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from qwr_rllib.cli import rllib
from qwr_rllib.cli.errors import ConfigError
from qwr_rllib.cli.experiments import Overrides, check_experiment
from qwr_rllib.cli.loggers import make_loggers

pytestmark = pytest.mark.ray

FILE = """
logged:
  run: QWR
  env: Pendulum-v1
  stop: {{training_iteration: 2}}
  loggers:
    - tensorboard
    - wandb
    - {{type: mlflow, tracking_uri: "sqlite:///{folder}/mlflow.db"}}
  config:
    num_env_runners: 0
    n_interactions: 40
    n_critic_steps: 2
    n_actor_steps: 2
    target_update_freq: 2
    train_batch_size: 8
"""


@pytest.mark.parametrize(
    ("loggers", "message"),
    [
        ("wandb", "loggers must be a list, got 'wandb'"),
        (["wandbb"], "unknown 'wandbb'; did you mean 'wandb'"),
        ([3], "unknown 3, expected one of tensorboard, wandb, mlflow"),
        ([{"type": "mlflow", "trackin_uri": "x"}], "'tracking_uri'"),
        ([{"type": "tensorboard", "logdir": "x"}], "unknown key 'logdir'"),
    ],
)
def test_wrong_loggers_are_refused(tmp_path: Path, loggers: object, message: str) -> None:
    spec = {"run": "QWR", "env": "Pendulum-v1", "loggers": loggers}
    with pytest.raises(ConfigError, match=message):
        check_experiment("a", spec, Overrides(storage_path=str(tmp_path)))


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_that_is_not_installed_is_named(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.air.integrations import wandb

    monkeypatch.setattr(wandb, "wandb", None)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match=rf"pip install 'qwr-rllib\[{name}\]'"):
        make_loggers({"loggers": [name]}, "a")


def test_wandb_without_a_key_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))  # a login is stored there
    spec = {"run": "QWR", "env": "Pendulum-v1", "loggers": ["wandb"]}
    with pytest.raises(ConfigError, match=r"loggers: wandb: .*WANDB_API_KEY"):
        check_experiment("a", spec, Overrides(storage_path=str(tmp_path)))


def test_results_are_in_all_three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    (tmp_path / "logged.yaml").write_text(FILE.format(folder=tmp_path))
    arguments = ["train", "file", tmp_path / "logged.yaml", "--ray-num-cpus", 1]
    arguments += ["--storage-path", tmp_path / "results"]
    ended = CliRunner().invoke(rllib, list(map(str, arguments)))
    assert ended.exit_code == 0, ended.output

    [events] = tmp_path.glob("results/logged/QWR_*/events.out.tfevents.*")
    assert b"ray/tune/learner/critic_loss" in events.read_bytes()

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("logged")
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "learner/critic_loss")
    assert len(history) == 2
    assert run.data.params["n_interactions"] == "40"

    [offline] = tmp_path.glob("results/logged/QWR_*/wandb/offline-run-*/run-*.wandb")
    assert b"learner/critic_loss" in offline.read_bytes()
