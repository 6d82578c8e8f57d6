"""Loggers of an experiment (TensorBoard, W&B, MLflow): its key ``loggers``."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from ray.tune.logger import LoggerCallback

from qwr_rllib.cli.errors import ConfigError, check_keys
from qwr_rllib.validation import did_you_mean

LOGGERS = {
    "tensorboard": "ray.tune.logger.tensorboardx:TBXLoggerCallback",
    "wandb": "ray.air.integrations.wandb:WandbLoggerCallback",
    "mlflow": "ray.air.integrations.mlflow:MLflowLoggerCallback",
}
"""Ray's classes by their names in a file. Tune adds TensorBoard's by itself."""
NAME_OF_EXPERIMENT = {"wandb": "project", "mlflow": "experiment_name"}


def make_loggers(spec: Mapping[str, Any], experiment: str) -> list[LoggerCallback]:
    """Makes the callbacks of an experiment's ``loggers``.

    Each item is a name, or a mapping with the name at ``type`` and the arguments of Ray's class.
    W&B's project and MLflow's experiment have the experiment's name by default.

    Raises:
        ConfigError: There is no such logger, it is not installed, or it does not take these
            arguments.
    """
    listed = spec.get("loggers") or []
    if not isinstance(listed, list):
        raise ConfigError(f"{experiment}: loggers must be a list, got {listed!r}")
    return [_make(entry, experiment) for entry in listed]


def check_loggers(callbacks: list[LoggerCallback], experiment: str) -> None:
    """Connects the loggers, to find a missing key or a wrong address before training.

    Raises:
        ConfigError: A logger cannot be used.
    """
    for callback in callbacks:
        try:
            callback.setup()
        except Exception as error:
            name = type(callback).__name__.removesuffix("LoggerCallback").lower()
            raise ConfigError(f"{experiment}: loggers: {name}: {error}") from error


def _make(entry: Any, experiment: str) -> LoggerCallback:
    arguments = dict(entry) if isinstance(entry, dict) else {"type": entry}
    name = arguments.pop("type", None)
    if not isinstance(name, str) or name not in LOGGERS:
        hint = did_you_mean(name, LOGGERS) if isinstance(name, str) else ""
        known = ", ".join(LOGGERS)
        raise ConfigError(
            f"{experiment}: loggers: unknown {name!r}{hint or f', expected one of {known}'}"
        )
    module, _, attribute = LOGGERS[name].partition(":")
    made = getattr(importlib.import_module(module), attribute)
    parameters = inspect.signature(made).parameters
    if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters.values()):
        check_keys(arguments, parameters, f"{experiment}: loggers: {name}")
    if key := NAME_OF_EXPERIMENT.get(name):
        arguments.setdefault(key, experiment)
    try:
        callback: LoggerCallback = made(**arguments)
    except (ImportError, RuntimeError) as error:
        # RuntimeError: Ray's W&B callback raises it if the package is missing.
        raise ConfigError(
            f"{experiment}: loggers: {name} is not installed: pip install 'qwr-rllib[{name}]'"
        ) from error
    except TypeError as error:
        raise ConfigError(f"{experiment}: loggers: {name}: {error}") from error
    return callback
