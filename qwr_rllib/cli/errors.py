"""Errors about what a user wrote: one line that names it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import click

from qwr_rllib.validation import did_you_mean


class ConfigError(click.ClickException):
    """Something the user wrote cannot be run: one line, exit code 2."""

    exit_code = 2

    def __init__(self, message: object) -> None:
        super().__init__(" ".join(str(message).split()))


def check_keys(keys: Collection[Any], known: Collection[str], where: str) -> None:
    """Raises ``ConfigError`` naming the first key that is not known, and the nearest known."""
    for key in keys:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}{did_you_mean(str(key), known)}")


def require_folder_of(path: Path | None) -> None:
    """Before long work: that there is a folder to write the file ``path`` into, if one is given.

    Raises:
        ConfigError: There is none.
    """
    if path and not path.resolve().parent.is_dir():
        raise ConfigError(f"cannot write {path}: no such folder")


def require_file(path: Path) -> None:
    """Before long imports: that there is a file to read.

    Raises:
        ConfigError: There is none.
    """
    if not path.is_file():
        raise ConfigError(f"cannot read {path}: no such file")


def require_folder(path: Path, what: str) -> None:
    """Before long imports: that there is a folder with ``what``.

    Raises:
        ConfigError: There is none.
    """
    if not path.is_dir():
        raise ConfigError(f"no {what} at {path.resolve()}: no such folder")
