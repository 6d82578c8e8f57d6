"""Modules of release 0.1 under their old names.

Checkpoints and scripts of that release refer to these names. Importing an old name gives a module
with the attributes of the new one, and warns.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# Old name -> modules that now hold its contents, searched in this order.
MOVED: dict[str, tuple[str, ...]] = {
    "qwr": ("algorithms.qwr", "algorithms.resources"),
    "awr": ("algorithms.awr",),
    "awac": ("algorithms.awac",),
    "qwr_torch_policy": ("algorithms.policy",),
    "checkpoint": ("algorithms.checkpoint",),
    "unused_keys": ("algorithms.unused_keys",),
    "metrics": ("prometheus",),
    "collection": ("sampling.collector",),
    "rollouts": ("sampling.worker",),
    "learner": ("learning.learner", "learning.config", "learning.evaluation"),
    "losses": ("learning.losses",),
    "networks": ("learning.networks", "learning.config"),
    "steps": ("learning.update", "learning.accel.threads"),
    "gradients": ("learning.accel.gradients",),
    "kernels": ("learning.accel.kernels",),
    "products": ("learning.accel.gemm",),
    "settings": ("learning.config", "learning.networks"),
    "theorem": ("local.theorem",),
    "spaces": ("envs.spaces",),
    "names": ("validation",),
    "replay.view": ("replay.replica",),
    "replay.refill": ("replay.recovery",),
    "replay.supervisor": ("replay.client",),
    "report.estimates": ("report.statistics",),
}
PACKAGE = __package__ or "qwr_rllib"


class _OldName(Loader):
    def __init__(self, old: str, new: Sequence[str]) -> None:
        self._old, self._new = old, new

    def exec_module(self, module: ModuleType) -> None:
        modules = [importlib.import_module(f"{PACKAGE}.{name}") for name in self._new]
        warnings.warn(
            f"{PACKAGE}.{self._old} is now {modules[0].__name__}", DeprecationWarning, stacklevel=2
        )

        def find(name: str) -> object:
            for each in modules:
                if hasattr(each, name):
                    return getattr(each, name)
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        module.__getattr__ = find  # type: ignore[method-assign]


class _OldNames(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: object = None, target: object = None
    ) -> ModuleSpec | None:
        package, _, old = fullname.partition(".")
        if package != PACKAGE or old not in MOVED:
            return None
        return ModuleSpec(fullname, _OldName(old, MOVED[old]))


def install() -> None:
    """Adds a finder of the old names to ``sys.meta_path``, after all others."""
    if not any(isinstance(each, _OldNames) for each in sys.meta_path):
        sys.meta_path.append(_OldNames())
