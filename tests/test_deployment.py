"""Policies in files of their own."""

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from qwr_rllib.deployment import METADATA_KEY

IN_PROCESS = Path(__file__).parents[1] / "benchmarks" / "in_process.py"
FEW = {"n_critic_steps": 2, "n_actor_steps": 2, "n_interactions": 50, "compile": False}


def in_process(*arguments: str) -> None:
    subprocess.run(
        [sys.executable, str(IN_PROCESS), *arguments], check=True, capture_output=True, timeout=300
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """The policy of a training of two iterations without Ray."""
    path = tmp_path_factory.mktemp("saved") / "policy.safetensors"
    few = ("--iterations", "2", "--config", json.dumps(FEW))
    in_process("Pendulum-v1", *few, "--seed", "7", "--save", str(path))
    return path


def test_training_without_ray_saves_what_acting_needs_and_says_what_it_is(saved):
    with safe_open(saved, "pt") as file:
        about = json.loads(file.metadata()[METADATA_KEY])
        names = set(file.keys())
        assert file.get_tensor("normalizer.count") == 100
    assert not any(name.startswith("critic") for name in names)
    assert {"normalizer.mean", "actor.body.0.weight", "actor.head.bias"} <= names
    assert (about["algorithm"], about["env"], about["seed"]) == ("QWR", "Pendulum-v1", 7)
    assert about["env_steps"] == 100
    assert (about["action"]["low"], about["action"]["high"]) == ([-2.0], [2.0])
    assert about["config"]["n_critic_steps"] == 2
    assert saved.stat().st_mode & stat.S_IRGRP, "as readable as other files"
