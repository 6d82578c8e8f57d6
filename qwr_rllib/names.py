"""Keys and names that a user wrote: an unknown one is refused with the nearest that is known."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields
from typing import Any


def did_you_mean(word: str, known: Collection[str], most: int = 2) -> str:
    """``"; did you mean 'that'?"``, or nothing when no known word is near."""
    by_lower_case = {name.lower(): name for name in known}
    matches = difflib.get_close_matches(word.lower(), by_lower_case, most)
    names = " or ".join(repr(by_lower_case[match]) for match in matches)
    return f"; did you mean {names}?" if names else ""


def from_mapping(cls: Any, values: Mapping[str, Any], where: str) -> Any:
    """A dataclass from the part of a config that is called ``where``.

    Raises:
        ValueError: for what is no mapping, an unknown key or one that is missing.
    """
    known = [field.name for field in fields(cls)]
    required = [field.name for field in fields(cls) if field.default is MISSING]
    if not isinstance(values, Mapping):
        example = f"{{{required[0]}: ...}}"
        raise ValueError(f"{where} must be a mapping such as {example}, got {values!r}")
    for key in values:
        if key not in known:
            raise ValueError(f"unknown {where} key {key!r}{did_you_mean(str(key), known)}")
    for name in required:
        if name not in values:
            raise ValueError(f"{where}.{name} is missing")
    return cls(**values)
