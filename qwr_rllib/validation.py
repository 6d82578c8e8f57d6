"""Checks of user input: names, and values of settings. Does not import Ray.

A :class:`Rule` states which values are allowed and tests a value. The fields of a dataclass carry
their rules (:func:`setting`), and :func:`check_settings` applies them.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, field, fields
from typing import Any, NamedTuple, get_args


class Rule(NamedTuple):
    """A condition on a value, in words and as a function."""

    allowed: str
    """Completes "must be ..."."""
    holds: Callable[[Any], bool]

    def check(self, name: str, value: Any) -> None:
        """Raises ``ValueError`` with the name, the value and what is allowed."""
        if not self.holds(value):
            raise ValueError(f"{name} must be {self.allowed}, got {value!r}")

    def __or__(self, other: Any) -> Rule:
        """Returns a rule that also allows one other value."""
        return Rule(
            f"{self.allowed} or {other!r}",
            lambda value: (type(value) is type(other) and value == other) or self.holds(value),
        )


def is_integer(value: Any) -> bool:
    """Returns whether a value is an integer; a boolean is not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Returns whether a value is a number; a boolean is not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def integer(low: int) -> Rule:
    """Returns the rule for integers of at least ``low``."""
    return Rule(f"an integer >= {low}", lambda value: is_integer(value) and value >= low)


def number(low: float, high: float) -> Rule:
    """Returns the rule for numbers from ``low`` to ``high``, both included."""
    return Rule(
        f"a number in [{low}, {high}]", lambda value: is_number(value) and low <= value <= high
    )


def one_of(literal: Any) -> Rule:
    """Returns the rule for the values of a ``Literal``."""
    values = get_args(literal)
    return Rule(f"one of {', '.join(map(repr, values))}", lambda value: value in list(values))


POSITIVE = Rule("a number > 0", lambda value: is_number(value) and 0 < value < math.inf)
BOOLEAN = Rule("true or false", lambda value: isinstance(value, bool))
ANYTHING = Rule("anything", lambda value: True)


def setting(default: Any, rule: Rule) -> Any:
    """Returns a dataclass field with a default and a rule."""
    return field(default=default, metadata={"rule": rule})


def required(rule: Rule) -> Any:
    """Returns a dataclass field with a rule and without a default."""
    return field(metadata={"rule": rule})


def check_settings(settings: Any, where: str = "") -> None:
    """Checks the fields of a dataclass by their rules.

    Args:
        settings: an instance.
        where: prefix of each name in the message, such as ``"offline."``.

    Raises:
        ValueError: naming the field, its value and what is allowed.
    """
    for each in fields(settings):
        each.metadata["rule"].check(where + each.name, getattr(settings, each.name))


def did_you_mean(word: str, known: Collection[str], most: int = 2) -> str:
    """Returns ``"; did you mean 'that'?"``, or an empty string if no known word is close."""
    by_lower_case = {name.lower(): name for name in known}
    matches = difflib.get_close_matches(word.lower(), by_lower_case, most)
    names = " or ".join(repr(by_lower_case[match]) for match in matches)
    return f"; did you mean {names}?" if names else ""


def from_mapping(cls: Any, values: Mapping[str, Any], where: str) -> Any:
    """Builds a dataclass from ``values``, the part of a config that is called ``where``.

    Raises:
        ValueError: if ``values`` is no mapping, has an unknown key or lacks a required one.
    """
    known = [each.name for each in fields(cls)]
    needed = [each.name for each in fields(cls) if each.default is MISSING]
    if not isinstance(values, Mapping):
        example = f"{{{needed[0]}: ...}}"
        raise ValueError(f"{where} must be a mapping such as {example}, got {values!r}")
    for key in values:
        if key not in known:
            raise ValueError(f"unknown {where} key {key!r}{did_you_mean(str(key), known)}")
    for name in needed:
        if name not in values:
            raise ValueError(f"{where}.{name} is missing")
    return cls(**values)
