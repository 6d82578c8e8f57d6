"""What the user wrote and cannot be run: one line that names it."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import Any

import click


class ConfigError(click.ClickException):
    """Something the user wrote cannot be run: one line, exit code 2."""

    exit_code = 2

    def __init__(self, message: object) -> None:
        super().__init__(" ".join(str(message).split()))


def nearest(word: str, known: Collection[str]) -> str:
    """``"; did you mean 'that'?"``, or nothing when no known word is near."""
    by_lower_case = {name.lower(): name for name in known}
    matches = difflib.get_close_matches(word.lower(), by_lower_case, n=2)
    names = " or ".join(repr(by_lower_case[match]) for match in matches)
    return f"; did you mean {names}?" if names else ""


def check_keys(keys: Collection[Any], known: Collection[str], where: str) -> None:
    """Raises ``ConfigError`` naming the first key that is not known, and the nearest known."""
    for key in keys:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}{nearest(str(key), known)}")
