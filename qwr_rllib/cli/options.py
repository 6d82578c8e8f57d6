"""Options of several commands; imports nothing slow."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import click

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def with_options(options: Sequence[Decorator]) -> Decorator:
    """Returns a decorator that adds options to a command; its help shows them in this order."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


class JsonObject(click.ParamType):
    """The type of an option whose value is a JSON object: ``{"training_iteration": 10}``."""

    name = "JSON"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, Any]:
        try:
            parsed = value if isinstance(value, dict) else json.loads(value)
        except json.JSONDecodeError as error:
            self.fail(f"not JSON: {error}", param, ctx)
        if not isinstance(parsed, dict):
            self.fail(f'expected an object such as {{"key": 1}}, got {value}', param, ctx)
        return parsed
