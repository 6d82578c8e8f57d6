"""Training is possible with torch and numpy alone: these modules need no Ray or Gymnasium."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from qwr_rllib._moved import MOVED

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
for name in "specs", "learning.losses":
    importlib.import_module(f"qwr_rllib.{name}")
    ours = sorted(each for each in sys.modules if each.startswith("qwr_rllib."))
    print(*(each for each in ours if each not in ("qwr_rllib._moved", "qwr_rllib.learning")))
import pkgutil
import qwr_rllib.learning, qwr_rllib.learning.accel, qwr_rllib.replay
for package in qwr_rllib.learning, qwr_rllib.learning.accel, qwr_rllib.replay:
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        if module.name not in ("qwr_rllib.replay.actor", "qwr_rllib.replay.client"):
            importlib.import_module(module.name)
for name in "deployment", "local.theorem", "validation", "versions":
    importlib.import_module(f"qwr_rllib.{name}")
""")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "qwr_rllib.specs",
        "qwr_rllib.learning.losses qwr_rllib.specs",
    ]


ROOMS = ["specs", "learning", "replay", "sampling", "algorithms"]


def test_imports_point_one_way():
    """A part imports only parts before it, but learning and replay each other; none imports cli."""
    package = Path(__file__).parents[1] / "qwr_rllib"
    for file in package.rglob("*.py"):
        room = file.relative_to(package).parts[0].removesuffix(".py")
        for target in re.findall(r"(?:from|import) qwr_rllib\.(\w+)", file.read_text()):
            if room in ROOMS and target in ROOMS:
                assert ROOMS.index(target) <= ROOMS.index(room) or {room, target} == {
                    "learning",
                    "replay",
                }, f"{file} imports {target}"
            assert target != "cli" or room == "cli", f"{file} imports the command line"


@pytest.mark.parametrize("old", MOVED)
def test_old_names_of_modules_still_give_what_was_in_them(old):
    sys.modules.pop(f"qwr_rllib.{old}", None)
    with pytest.warns(DeprecationWarning, match=f"qwr_rllib.{old} is now qwr_rllib"):
        module = importlib.import_module(f"qwr_rllib.{old}")
    for new in MOVED[old]:
        found = importlib.import_module(f"qwr_rllib.{new}")
        own = [
            name
            for name, value in vars(found).items()
            if getattr(value, "__module__", None) == found.__name__
        ]
        assert own or new.endswith("validation")
        for name in own:
            assert getattr(module, name) is getattr(found, name)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        module.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("module", "name"), [("envs", "make_atari"), ("offline", "load"), ("local", "LocalTrainer")]
)
def test_modules_that_became_rooms_still_give_what_was_in_them(module, name):
    assert hasattr(importlib.import_module(f"qwr_rllib.{module}"), name)


def test_training_in_one_process_needs_no_ray():
    code = WITHOUT_RAY.replace('("ray", "gymnasium")', '("ray",)')
    result = run("import qwr_rllib.local.trainer", code)
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

for name in "QWR", "QWRPlus", "AWR", "AWAC":
    assert _global_registry.contains(TRAINABLE_CLASS, name)
assert _global_registry.contains(ENV_CREATOR, "Atari100k")
""",
        before="",
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.ray
def test_a_worker_process_of_ray_imports_no_more_than_it_needs(local_ray):
    """The replay actor needs neither torch nor RLlib."""

    @ray.remote
    def loaded() -> set[str]:
        import qwr_rllib.replay.actor  # noqa: F401

        return {"torch", "ray.rllib"} & sys.modules.keys()

    assert ray.get(loaded.remote()) == set()


def test_a_worker_process_of_ray_registers_on_first_use():
    result = run(
        """
import sys

sys.argv[0] = "default_worker.py"
import qwr_rllib
from ray.tune.registry import TRAINABLE_CLASS, _global_registry

assert not _global_registry.contains(TRAINABLE_CLASS, "QWR")
from qwr_rllib import AWRConfig

assert _global_registry.contains(TRAINABLE_CLASS, "QWR")
""",
        before="",
    )
    assert result.returncode == 0, result.stderr
