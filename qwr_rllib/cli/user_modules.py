"""The user's own modules, loaded in the driver and in every Ray worker."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ray import cloudpickle

# Send the functions below to the workers by value, not by name: a worker that needs only the
# user's modules should not import this package, and with it RLlib and torch.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

FILES_PACKAGE = "rllib_user_files"
"""Python files are loaded as ``rllib_user_files.<stem>``, so that they can import their
neighbours both as ``import neighbour`` and as ``from .neighbour import ...``."""


def load(name: str) -> types.ModuleType:
    """Imports a module by its name, or the Python file at an absolute path.

    Raises:
        Whatever the module raises when it is imported.
    """
    if not name.endswith(".py"):
        return importlib.import_module(name)
    path = Path(name)
    package = sys.modules.setdefault(FILES_PACKAGE, types.ModuleType(FILES_PACKAGE))
    package.__path__ = [str(path.parent)]
    # Checkpoints store a file's definitions with their code, so that they outlive the file.
    cloudpickle.register_pickle_by_value(package)
    return importlib.import_module(f"{FILES_PACKAGE}.{path.stem}")


@dataclass(frozen=True)
class UserModules:
    """Folders for ``sys.path``, and the modules or Python files to load from them."""

    folders: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def load(self) -> list[types.ModuleType]:
        """Makes the folders importable and loads the modules, in order.

        Raises:
            Whatever a module raises when it is imported.
        """
        sys.path[:0] = [folder for folder in self.folders if folder not in sys.path]
        return [load(name) for name in self.names]

    def worker_setup(self) -> Callable[[], None]:
        """Returns :meth:`load` as a function for Ray's ``worker_process_setup_hook``."""

        def load_user_modules() -> None:
            self.load()

        return load_user_modules
