"""A bare machine with torch and numpy can train: these modules need neither Ray nor Gymnasium."""

import subprocess
import sys

import pytest

WITHOUT_RAY = """
import importlib
import sys


class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ray", "gymnasium"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Missing())
"""

MODULES = [
    "specs",
    "losses",
    "networks",
    "gradients",
    "learner",
    "replay.storage",
    "replay.view",
]


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_RAY + code], capture_output=True, text=True, timeout=120
    )


def test_the_learner_s_modules_need_no_ray():
    result = run(f"for name in {MODULES}: importlib.import_module('qwr_rllib.' + name)")
    assert result.returncode == 0, result.stderr


def test_the_algorithm_needs_ray():
    result = run("from qwr_rllib import QWR")
    assert result.returncode == 1
    assert "ImportError" in result.stderr or "No module named 'ray" in result.stderr


@pytest.mark.parametrize("module", ["losses", "specs"])
def test_the_formulas_know_nothing_of_the_rest(module):
    code = f"""
importlib.import_module("qwr_rllib.{module}")
print(*(name for name in sys.modules if name.startswith("qwr_rllib.")))
"""
    assert run(code).stdout.split() == [f"qwr_rllib.{module}"]
