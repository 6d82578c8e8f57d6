"""Q-Value Weighted Regression on Ray RLlib.

Importing this package registers its algorithms with Tune, so that ``run: QWR`` works, and its
environments with RLlib. The formulas, networks, learner, replay storage and view can be imported
without Ray.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from qwr_rllib import _moved

if TYPE_CHECKING:
    from qwr_rllib.algorithms.awac import AWAC, AWACConfig
    from qwr_rllib.algorithms.awr import AWR, AWRConfig
    from qwr_rllib.algorithms.qwr import QWR, QWRConfig
    from qwr_rllib.algorithms.qwr_plus import QWRPlus, QWRPlusConfig

_moved.install()

__version__ = "0.2.0"
__all__ = [
    "AWAC", "AWR", "QWR", "AWACConfig", "AWRConfig", "QWRConfig", "QWRPlus", "QWRPlusConfig",
    "register",
]  # fmt: skip

_ALGORITHMS = {"QWR": "qwr", "QWRPlus": "qwr_plus", "AWR": "awr", "AWAC": "awac"}
_MODULES = {
    name: f"qwr_rllib.algorithms.{module}"
    for algorithm, module in _ALGORITHMS.items()
    for name in (algorithm, f"{algorithm}Config")
}


def __getattr__(name: str) -> Any:
    """Imports an algorithm or its config on first access (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _is_ray_worker():
        register()
    return _imported(name)


def _imported(name: str) -> Any:
    return getattr(importlib.import_module(_MODULES[name]), name)


def register() -> None:
    """Registers the algorithms with Tune and the environments with RLlib, by their names.

    Importing this package calls this, in Ray's worker processes the first use of an algorithm or
    config does. ``ray.shutdown()`` clears the names: call this again before starting Ray a second
    time in the same process.
    """
    from ray.tune.registry import register_env, register_trainable

    from qwr_rllib.envs.atari import ATARI, make_atari

    for name in _ALGORITHMS:
        register_trainable(name, _imported(name))
    register_env(ATARI, make_atari)


def _is_command() -> bool:
    """Returns whether this process is one of our commands, which register when they need Ray.

    Importing Ray, torch and pandas takes seconds, which would delay ``rllib --help``.
    """
    program = os.path.basename(sys.argv[0]).removesuffix(".exe")
    return program in ("rllib", "qwr") or (program == "-m" and "qwr_rllib.cli" in sys.orig_argv)


def _is_ray_worker() -> bool:
    """Returns whether Ray started this process, for tasks or an actor.

    Its driver has registered the names. The replay actor does not need RLlib, whose import takes
    seconds and much memory.
    """
    return os.path.basename(sys.argv[0]) == "default_worker.py"


if not _is_command() and not _is_ray_worker():
    try:
        register()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "ray":
            raise
