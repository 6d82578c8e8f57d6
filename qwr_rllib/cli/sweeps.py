"""Sweeps: search spaces, searchers, schedulers and limits of an experiment."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ray import tune
from ray.tune.error import TuneError
from ray.tune.schedulers import SCHEDULER_IMPORT, TrialScheduler
from ray.tune.search import SEARCH_ALG_IMPORT, Searcher
from ray.tune.search.sample import Domain

from qwr_rllib.cli.errors import ConfigError, check_keys
from qwr_rllib.validation import did_you_mean

SWEEP_KEYS = {
    "metric",
    "mode",
    "scheduler",
    "search_alg",
    "max_concurrent_trials",
    "reuse_actors",
}
SPACES: dict[str, Callable[..., Domain]] = {
    name: getattr(tune, name)
    for name in (
        "choice",
        "uniform",
        "quniform",
        "loguniform",
        "qloguniform",
        "randint",
        "qrandint",
        "lograndint",
        "qlograndint",
        "randn",
        "qrandn",
    )
}
EVALUATION = "evaluation/"


def with_spaces(config: Any, where: str) -> Any:
    """Replaces spaces such as ``{uniform: [0, 1]}`` by Tune's, here ``tune.uniform(0, 1)``.

    Raises:
        ConfigError: Tune does not accept the arguments.
    """
    if isinstance(config, list):
        return [with_spaces(value, where) for value in config]
    if not isinstance(config, dict):
        return config
    if len(config) == 1:
        [(name, arguments)] = config.items()
        if isinstance(name, str) and (space := SPACES.get(name)):
            if not isinstance(arguments, list):
                raise ConfigError(f"{where}: {name} must be a list, got {arguments!r}")
            try:
                return space(arguments) if name == "choice" else space(*arguments)
            except (TypeError, ValueError, ZeroDivisionError) as error:
                raise ConfigError(f"{where}: {name} {arguments}: {error}") from error
    return {key: with_spaces(value, f"{where}: {key}") for key, value in config.items()}


def searched(config: Any) -> bool:
    """Returns whether a value of the config is drawn from a space."""
    if isinstance(config, Mapping):
        return any(map(searched, config.values()))
    return isinstance(config, Domain)


@dataclass(frozen=True)
class Sweep:
    """The settings that choose an experiment's trials and how many run at a time."""

    metric: str | None = None
    """The result that schedulers and searchers compare: ``env_runners/episode_return_mean``."""
    mode: str = "max"
    scheduler: str = "FIFO"
    scheduler_config: dict[str, Any] = field(default_factory=dict)
    search_alg: str | None = None
    search_config: dict[str, Any] = field(default_factory=dict)
    max_concurrent_trials: int | None = None
    reuse_actors: bool = False

    def make_scheduler(self) -> TrialScheduler:
        """Makes the scheduler; refuses unknown arguments, which Tune itself would drop.

        Raises:
            ConfigError: There is no such scheduler, or it does not accept the arguments.
        """
        return self._make("scheduler", self.scheduler, self.scheduler_config)

    def make_searcher(self, config: dict[str, Any]) -> Searcher | None:
        """Makes the search algorithm for the spaces in ``config``; ``None`` without one.

        Raises:
            ConfigError: There is no such search algorithm, it is not installed, or it does not
                accept the arguments or the spaces.
        """
        if self.search_alg is None:
            return None
        if not searched(config):
            raise ConfigError("search_alg: no value of the config is a space, such as `uniform`")
        searcher: Searcher = self._make("search_alg", self.search_alg, self.search_config)
        # Optuna's own logger reports every study.
        logging.getLogger("optuna").setLevel(logging.WARNING)
        try:
            searcher.set_search_properties(None, None, config)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"search_alg {self.search_alg}: {error}") from error
        return searcher

    def _make(self, what: str, name: str, arguments: dict[str, Any]) -> Any:
        made, parameters = _find(what, name)
        check_keys(arguments, parameters, what)
        goal = {"metric": self.metric, "mode": self.mode} if self.metric else {}
        goal = {key: value for key, value in goal.items() if key in parameters}
        try:
            return made(**goal | arguments)
        except AssertionError as error:
            # Tune's searchers raise this if their library is missing.
            hint = "; pip install 'qwr-rllib[search]'" if name == "optuna" else ""
            raise ConfigError(f"{what} {name}: {error}{hint}") from error
        except (ImportError, TypeError, ValueError, TuneError) as error:
            raise ConfigError(f"{what} {name}: {error}") from error

    def check(self, evaluation_interval: int | None) -> None:
        """Checks what can be checked before a trial has reported.

        Raises:
            ConfigError: The metric is missing, or will not be in every result.
        """
        for what, name, arguments in (
            ("scheduler", self.scheduler, self.scheduler_config),
            ("search_alg", self.search_alg, self.search_config),
        ):
            if name is None or "metric" not in _find(what, name)[1]:
                continue
            metric = arguments.get("metric", self.metric)
            if not metric:
                raise ConfigError(f"metric is missing: the result that {name} goes by")
            if str(metric).startswith(EVALUATION) and evaluation_interval != 1:
                raise ConfigError(
                    f"evaluation_interval must be 1 where {name} goes by {metric}, "
                    f"got {evaluation_interval}"
                )


def _find(what: str, name: str) -> tuple[Any, Mapping[str, Any]]:
    """Returns Tune's class of a ``scheduler`` or ``search_alg``, and its parameters."""
    known: Mapping[str, Any] = SCHEDULER_IMPORT if what == "scheduler" else SEARCH_ALG_IMPORT
    found = known.get(name.lower())
    if found is None:
        raise ConfigError(f"{what}: unknown {name!r}{did_you_mean(name, known)}")
    try:
        made = found() if inspect.isfunction(found) else found
    except ImportError as error:
        raise ConfigError(f"{what} {name}: {error}") from error
    return made, inspect.signature(made).parameters


def read_sweep(spec: Mapping[str, Any], overrides: Mapping[str, Any], where: str) -> Sweep:
    """Reads the sweep of an experiment from its file's keys; command-line options override them.

    ``scheduler`` and ``search_alg`` are a name, or a mapping with the name at ``type`` and the
    arguments of Tune's class.

    Raises:
        ConfigError: A value is of the wrong type.
    """
    scheduler, scheduler_config = _named(spec, "scheduler", where)
    search_alg, search_config = _named(spec, "search_alg", where)
    if overrides.get("scheduler"):
        scheduler, scheduler_config = overrides["scheduler"], {}
    if overrides.get("scheduler_config"):
        scheduler_config = scheduler_config | overrides["scheduler_config"]
    limit = overrides.get("max_concurrent_trials") or spec.get("max_concurrent_trials")
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise ConfigError(f"{where}: max_concurrent_trials must be an integer >= 1, got {limit!r}")
    reuse_actors = spec.get("reuse_actors", False)
    if not isinstance(reuse_actors, bool):
        raise ConfigError(f"{where}: reuse_actors must be true or false, got {reuse_actors!r}")
    metric = spec.get("metric")
    if metric is not None and not isinstance(metric, str):
        raise ConfigError(f"{where}: metric must be the name of a result, got {metric!r}")
    mode = spec.get("mode", "max")
    if mode not in ("max", "min"):
        raise ConfigError(f"{where}: mode must be max or min, got {mode!r}")
    return Sweep(
        metric=metric,
        mode=mode,
        scheduler=scheduler or "FIFO",
        scheduler_config=scheduler_config,
        search_alg=search_alg,
        search_config=search_config,
        max_concurrent_trials=limit,
        reuse_actors=reuse_actors,
    )


def _named(spec: Mapping[str, Any], key: str, where: str) -> tuple[str | None, dict[str, Any]]:
    value = spec.get(key)
    arguments = dict(value) if isinstance(value, dict) else {"type": value}
    name = arguments.pop("type", None)
    if value is not None and not isinstance(name, str):
        raise ConfigError(f"{where}: {key} must be a name or have one at `type`, got {value!r}")
    return name, arguments
