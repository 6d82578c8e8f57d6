"""Experiments from YAML files, Python files and options; checked before Ray starts."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.registry import ALGORITHMS
from ray.rllib.env.env_context import EnvContext
from ray.rllib.utils.error import EnvError
from ray.train.constants import DEFAULT_STORAGE_PATH
from ray.tune import CheckpointConfig, PlacementGroupFactory
from ray.tune.error import TuneError
from ray.tune.experiment import Experiment as TuneExperiment
from ray.tune.logger import LoggerCallback
from ray.tune.registry import ENV_CREATOR, TRAINABLE_CLASS, _global_registry, get_trainable_cls
from ray.tune.search.variant_generator import format_vars, generate_variants
from ray.tune.utils import flatten_dict

import qwr_rllib
from qwr_rllib.algorithms.qwr import QWRConfig
from qwr_rllib.cli.errors import ConfigError, check_keys, require_file, require_folder
from qwr_rllib.cli.loggers import check_loggers, make_loggers
from qwr_rllib.cli.sweeps import SWEEP_KEYS, Sweep, read_sweep, with_spaces
from qwr_rllib.cli.user_modules import UserModules
from qwr_rllib.learning.config import LearnerConfig
from qwr_rllib.validation import did_you_mean

CHECKPOINT_KEYS = {f.name for f in dataclasses.fields(CheckpointConfig) if f.name[0] != "_"}
TUNE_KEYS = set(inspect.signature(TuneExperiment).parameters) - {"name", "local_dir"}
EXPERIMENT_KEYS = TUNE_KEYS | SWEEP_KEYS | {"env", "loggers"}
DATA_KEYS = (
    *("env", "env_config", "frame_stack", "normalize_actions"),
    *("offline", "replay_capacity", "margin", "reward_clip"),
)
"""Settings that decide whether logged data can be loaded."""


@dataclass(frozen=True)
class Overrides:
    """Options of the command line, which override an experiment's file."""

    env: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    """Settings; a mapping such as ``env_config`` overrides the file's key by key."""
    stop: dict[str, Any] = field(default_factory=dict)
    storage_path: str | None = None
    checkpoint_config: dict[str, Any] = field(default_factory=dict)
    log_level: str | None = None
    sweep: dict[str, Any] = field(default_factory=dict)
    """``scheduler``, ``scheduler_config`` and ``max_concurrent_trials``, if given."""


@dataclass(frozen=True)
class Experiment:
    """A checked experiment."""

    name: str
    stop: dict[str, float]
    """Flat stop criteria: ``{"env_runners/episode_return_mean": 100}``."""
    storage_path: str
    resources: dict[str, float]
    """Resources of its most demanding trial, such as ``{"CPU": 2.0}``."""
    num_trials: int
    tune_spec: dict[str, Any]
    """The specification that Tune's ``Experiment.from_json`` takes."""
    sweep: Sweep
    gpu_if_any: bool
    """Whether ``num_gpus`` is "auto": 1 if Ray has a GPU, else 0."""
    loggers: list[LoggerCallback]

    @property
    def path(self) -> str:
        return f"{self.storage_path}/{self.name}"

    def spec_where(self, gpus: float) -> dict[str, Any]:
        """Returns its ``tune_spec`` for a Ray with ``gpus`` GPUs."""
        config = self.tune_spec["config"]
        if self.gpu_if_any and gpus:
            config = config | {"num_gpus": 1}
        return self.tune_spec | {"config": config}


# --- Reading -------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """A YAML loader that reads ``5e-4`` as a number, as in YAML 1.2, and refuses repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        if repeated := {key for key in keys if keys.count(key) > 1}:
            raise yaml.constructor.ConstructorError(
                None, None, f"key {min(repeated)!r} is given twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_file(path: Path) -> tuple[dict[str, dict[str, Any]], UserModules]:
    """Reads the experiments of a YAML or a Python file and loads the user's modules.

    A YAML file is ``{experiment name: {run, env, config, stop, ...}}``; ``imports``, at the top
    level or in an experiment, lists modules. A Python file defines ``config``, an
    ``AlgorithmConfig``, and optionally a dict ``stop``. Modules are searched in the current folder
    and in the file's folder.

    Returns:
        The experiments by their name, and the modules that their workers load.

    Raises:
        ConfigError: There is no such file, it is not of this form, or a module cannot be imported.
    """
    require_file(path)
    path = path.resolve()
    folders = tuple(dict.fromkeys([os.getcwd(), str(path.parent)]))
    if path.suffix != ".py":
        specs, names = _read_yaml(path)
        modules = UserModules(folders, names)
        load_user_modules(modules)
        return specs, modules
    modules = UserModules(folders, (str(path),))
    [module] = load_user_modules(modules)
    config = getattr(module, "config", None)
    if not isinstance(config, AlgorithmConfig) or config.algo_class is None:
        raise ConfigError(f"{path}: must define `config`, an algorithm's AlgorithmConfig")
    stop = getattr(module, "stop", {})
    return {
        path.stem: {"run": config.algo_class, "config": config.to_dict(), "stop": stop}
    }, modules


def _read_yaml(path: Path) -> tuple[dict[str, dict[str, Any]], tuple[str, ...]]:
    try:
        content = yaml.load(path.read_text(), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise ConfigError(f"{place}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected `experiment-name: {{run: ..., env: ...}}`")
    imports = content.pop("imports", [])
    if not content or not all(isinstance(spec, dict) for spec in content.values()):
        raise ConfigError(
            f"{path}: expected experiments, `experiment-name: {{run: ..., env: ...}}`"
        )
    names: list[str] = []
    for listed in [imports, *(spec.pop("imports", []) for spec in content.values())]:
        if not isinstance(listed, str | list):
            raise ConfigError(f"{path}: imports must be a list of modules, got {listed!r}")
        names += [listed] if isinstance(listed, str) else map(str, listed)
    return {str(name): spec for name, spec in content.items()}, tuple(names)


def load_user_modules(modules: UserModules) -> list[ModuleType]:
    """Loads the user's modules in the driver.

    Raises:
        ConfigError: A module cannot be imported.
    """
    try:
        return modules.load()
    except Exception as error:
        names = ", ".join(modules.names)
        raise ConfigError(f"cannot import {names}: {type(error).__name__}: {error}") from error


# --- Checking ------------------------------------------------------------------------------


def resolve_algorithm(run: Any, where: str) -> type[Algorithm]:
    """Returns the algorithm by its name in RLlib or Tune, or at ``package.module:Class``.

    Raises:
        ConfigError: There is no such algorithm.
    """
    qwr_rllib.register()  # an earlier `ray.shutdown()` in this process cleared the names
    try:
        if not isinstance(run, str):
            found = run
        elif ":" in run:
            module, _, attribute = run.partition(":")
            found = getattr(importlib.import_module(module), attribute)
        else:
            found = ALGORITHMS[run]()[0] if run in ALGORITHMS else get_trainable_cls(run)
    except TuneError as error:
        known = [*ALGORITHMS, *_registered(TRAINABLE_CLASS)]
        raise ConfigError(
            f"{where}: unknown algorithm {run!r}{did_you_mean(run, known)}"
        ) from error
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{where}: cannot import {run!r}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Algorithm)):
        raise ConfigError(f"{where}: {run!r} is not an RLlib Algorithm")
    return found


def _registered(category: str) -> list[str]:
    # Before Ray starts, Tune's registry keeps the registered names here.
    names: list[str] = [key for kind, key in _global_registry._to_flush if kind == category]
    return [name for name in names if not name.startswith("__")]


def make_env(algorithm: type[Algorithm], config: AlgorithmConfig) -> Any:
    """Makes the environment as a rollout worker does.

    Raises:
        ConfigError: It cannot be made; names the package to install if gymnasium does.
    """
    if str(config.env).startswith("ALE/"):
        # If something imported ale-py, it could be made here, but not in the workers.
        raise ConfigError(
            f"cannot make env {config.env!r}: workers know it as 'ale_py:{config.env}' "
            "(pip install ale-py)"
        )
    qwr_rllib.register()
    try:
        _, creator = algorithm._get_env_id_and_creator(config.env, config)
        return creator(EnvContext(config.env_config, worker_index=0))
    except Exception as error:
        # RLlib puts a long text in front of gymnasium's error, which names what is missing.
        cause = error.__context__ if isinstance(error, EnvError) else error
        known = _registered(ENV_CREATOR)
        hint = "" if config.env in known else did_you_mean(str(config.env), known)
        raise ConfigError(f"cannot make env {config.env!r}: {cause or error}{hint}") from error


def check_experiment(name: str, spec: dict[str, Any], overrides: Overrides) -> Experiment:
    """Checks an experiment, at every point of its grid, without starting Ray.

    Args:
        name: The experiment's name.
        spec: ``run``, ``env``, ``config``, ``stop``, ``checkpoint_config``, ... as in a YAML file.
        overrides: The options of the command line.

    Raises:
        ConfigError: It cannot be run: unknown or impossible settings, or an environment that
            cannot be made.
    """
    check_keys(spec, EXPERIMENT_KEYS, name)
    if not spec.get("run"):
        raise ConfigError(f"{name}: `run`, the algorithm, is missing")
    algorithm = resolve_algorithm(spec["run"], name)

    sweep = read_sweep(spec, overrides.sweep, name)
    config = _mapping(spec, "config", name)
    for key, value in overrides.config.items():
        both = isinstance(value, dict) and isinstance(config.get(key), dict)
        config = config | {key: config[key] | value if both else value}
    config = with_spaces(config, f"{name}: config")
    # Tune adds keys with "__" to the config of a trial, and so to its `result.json`.
    config = {key: value for key, value in config.items() if not key.startswith("__")}
    env = overrides.env or spec.get("env") or config.get("env")
    config |= {"env": env} if env else {}
    _mapping(config, "env_config", f"{name}: config")
    gpu_if_any = config.get("num_gpus") == "auto"
    config |= {"num_gpus": 0} if gpu_if_any else {}
    config |= {"log_level": overrides.log_level} if overrides.log_level else {}
    checkpoint_config = _mapping(spec, "checkpoint_config", name) | overrides.checkpoint_config
    check_keys(checkpoint_config, CHECKPOINT_KEYS, f"{name}: checkpoint_config")
    stop = flatten_dict(_mapping(spec, "stop", name)) | flatten_dict(overrides.stop)
    for metric, value in stop.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{name}: stop: {metric!r} must be a number, got {value!r}")
    storage_path = str(overrides.storage_path or spec.get("storage_path") or DEFAULT_STORAGE_PATH)
    if "://" not in storage_path:
        storage_path = os.path.abspath(os.path.expanduser(storage_path))
        try:
            os.makedirs(storage_path, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{name}: storage_path: {error}") from error

    try:
        CheckpointConfig(**checkpoint_config)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name}: checkpoint_config: {error}") from error
    for key in ("num_samples", "max_failures"):
        if not isinstance(spec.get(key, 0), int):
            raise ConfigError(f"{name}: {key} must be a whole number, got {spec[key]!r}")

    if (restore := spec.get("restore")) and "://" not in str(restore):
        require_folder(Path(restore).expanduser(), f"checkpoint to restore ({name})")
    sweep.make_scheduler()
    loggers = make_loggers(spec, name)
    resources, num_variants = _check_variants(name, algorithm, config, sweep)
    sweep.make_searcher(config)
    tune_spec = {key: value for key, value in spec.items() if key in TUNE_KEYS} | {
        "run": algorithm,
        "config": _own_defaults(algorithm) | config,
        "stop": stop,
        "checkpoint_config": checkpoint_config,
        "storage_path": storage_path,
    }
    num_trials = num_variants * max(1, spec.get("num_samples", 1))
    check_loggers(loggers, name)
    return Experiment(
        name, stop, storage_path, resources, num_trials, tune_spec, sweep, gpu_if_any, loggers
    )


def _own_defaults(algorithm: type[Algorithm]) -> dict[str, Any]:
    """Returns QWR's defaults, stored with a trial so that a later release resumes it unchanged."""
    defaults = algorithm.get_default_config()
    if not isinstance(defaults, QWRConfig):
        return {}
    inherited = AlgorithmConfig().to_dict().keys() - LearnerConfig.__dataclass_fields__.keys()
    return {key: value for key, value in defaults.to_dict().items() if key not in inherited}


def _mapping(spec: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    value = spec.get(key) or {}
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: {key} must be a mapping, got {value!r}")
    return value


def _check_variants(
    name: str, algorithm: type[Algorithm], config: dict[str, Any], sweep: Sweep
) -> tuple[dict[str, float], int]:
    """Checks every point of the grid, with one draw of each sampler.

    Returns:
        The resources of the most demanding trial, and the number of points.
    """
    resources: dict[str, float] = {}
    envs: dict[str, Any] = {}
    read: set[str] = set()
    num_variants = 0
    where = name
    try:
        for point, spec in generate_variants({"config": copy.deepcopy(config)}):
            num_variants += 1
            where = f"{name} ({format_vars(point)})" if point else name
            checked = _check_config(where, algorithm, spec["config"])
            sweep.check(checked.evaluation_interval)
            request = algorithm.default_resource_request(copy.deepcopy(spec["config"]))
            assert isinstance(request, PlacementGroupFactory)
            for key, amount in request.required_resources.items():
                resources[key] = max(amount, resources.get(key, 0))
            place = f"{checked.env} {checked.env_config}"
            if checked.env and place not in envs:
                envs[place] = make_env(algorithm, checked)
            if checked.env and isinstance(checked, QWRConfig):
                _check_env(checked, envs[place], read)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{where}: config: {error}") from error
    finally:
        for made in envs.values():
            made.close()
    return resources, num_variants


def _check_env(config: QWRConfig, env: Any, read: set[str]) -> None:
    """Checks spaces and logged data; ``read`` collects the data that has been checked."""
    config.check_spaces(env.observation_space, env.action_space)
    data = str([getattr(config, name) for name in DATA_KEYS])
    if data not in read:
        read.add(data)
        config.load_offline(env)  # all of it, to find errors before training


def _check_config(
    where: str, algorithm: type[Algorithm], config: dict[str, Any]
) -> AlgorithmConfig:
    checked = algorithm.get_default_config()
    known = {*vars(checked), *checked.to_dict()}
    # RLlib makes an attribute of any key: new attributes are unknown keys.
    checked.update_from_dict(copy.deepcopy(config))
    if unknown := vars(checked).keys() - known:
        check_keys(sorted(unknown), known, f"{where}: config")
    if checked.env is None and (checked.observation_space is None or checked.action_space is None):
        raise ConfigError(f"{where}: `env` is missing")
    checked.validate()
    return checked
