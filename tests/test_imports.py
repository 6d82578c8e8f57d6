"""A bare machine with torch and numpy can train: these modules need neither Ray nor Gymnasium."""

import subprocess
import sys

WITHOUT_RAY = """
import importlib
import sys


class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ray", "gymnasium"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Missing())
"""


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_RAY + code], capture_output=True, text=True, timeout=300
    )


def test_the_learner_needs_no_ray_and_the_formulas_nothing_of_ours():
    result = run("""
for name in "specs", "losses":
    importlib.import_module(f"qwr_rllib.{name}")
    print(*sorted(each for each in sys.modules if each.startswith("qwr_rllib.")))
for name in "networks", "gradients", "learner", "replay.storage", "replay.view", "replay.refill":
    importlib.import_module(f"qwr_rllib.{name}")
""")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["qwr_rllib.specs", "qwr_rllib.losses qwr_rllib.specs"]


def test_the_algorithm_needs_ray():
    result = run("from qwr_rllib import QWR")
    assert result.returncode == 1
    assert "ImportError" in result.stderr or "No module named 'ray" in result.stderr
