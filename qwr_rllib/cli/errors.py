"""Errors in user input: one line that names the cause."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import click

from qwr_rllib.validation import did_you_mean


class ConfigError(click.ClickException):
    """Raised if user input cannot be run: one line, exit code 2."""

    exit_code = 2

    def __init__(self, message: object) -> None:
        super().__init__(" ".join(str(message).split()))


def check_keys(keys: Collection[Any], known: Collection[str], where: str) -> None:
    """Raises ``ConfigError`` with the first unknown key and the closest known one."""
    for key in keys:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}{did_you_mean(str(key), known)}")


def require_folder_of(path: Path | None) -> None:
    """Checks before long work that the file ``path``, if given, has a folder to be written into.

    Raises:
        ConfigError: There is no such folder.
    """
    if path and not path.resolve().parent.is_dir():
        raise ConfigError(f"cannot write {path}: no such folder")


def require_file(path: Path) -> None:
    """Checks before long imports that there is a file to read.

    Raises:
        ConfigError: There is no such file.
    """
    if not path.is_file():
        raise ConfigError(f"cannot read {path}: no such file")


def require_folder(path: Path, what: str) -> None:
    """Checks before long imports that there is a folder with ``what``.

    Raises:
        ConfigError: There is no such folder.
    """
    if not path.is_dir():
        raise ConfigError(f"no {what} at {path.resolve()}: no such folder")
