"""A bare machine with torch and numpy can train: these modules need neither Ray nor Gymnasium."""

import re
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


def run(code: str, before: str = WITHOUT_RAY) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", before + code], capture_output=True, text=True, timeout=300
    )


def test_the_learner_needs_no_ray_and_the_formulas_nothing_of_ours():
    result = run("""
for name in "specs", "losses":
    importlib.import_module(f"qwr_rllib.{name}")
    print(*sorted(each for each in sys.modules if each.startswith("qwr_rllib.")))
names = "networks", "gradients", "kernels", "learner", "settings", "deployment", "theorem"
for name in *names, "replay.storage", "replay.view", "replay.refill", "replay.fragments":
    importlib.import_module(f"qwr_rllib.{name}")
""")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["qwr_rllib.specs", "qwr_rllib.losses qwr_rllib.specs"]


def test_training_in_one_process_needs_no_ray():
    code = WITHOUT_RAY.replace('("ray", "gymnasium")', '("ray",)')
    result = run("import qwr_rllib.local", code)
    assert result.returncode == 0, result.stderr


def test_the_algorithm_needs_ray():
    result = run("from qwr_rllib import QWR")
    assert result.returncode == 1
    assert re.search("No module named '(ray|gymnasium)'", result.stderr)


def test_what_else_is_missing_is_named():
    code = WITHOUT_RAY.replace('("ray", "gymnasium")', '("gymnasium",)')
    result = run("import qwr_rllib", code)
    assert result.returncode == 1
    assert "No module named 'gymnasium'" in result.stderr


def test_importing_registers_the_algorithms_and_environments():
    result = run(
        """
import qwr_rllib
from ray.tune.registry import ENV_CREATOR, TRAINABLE_CLASS, _global_registry

for name in "QWR", "AWR", "AWAC":
    assert _global_registry.contains(TRAINABLE_CLASS, name)
assert _global_registry.contains(ENV_CREATOR, "Atari100k")
""",
        before="",
    )
    assert result.returncode == 0, result.stderr
