"""Checks of a :class:`~qwr_rllib.algorithms.qwr.QWRConfig` beyond those of single values.

The rules for single values are part of the settings, in :mod:`qwr_rllib.learning.config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ray.rllib.models import MODEL_DEFAULTS

from qwr_rllib.algorithms.unused_keys import UNUSED_MODEL, refuse
from qwr_rllib.learning.networks import ACTIVATIONS
from qwr_rllib.specs import Spec
from qwr_rllib.validation import did_you_mean, integer

if TYPE_CHECKING:
    from qwr_rllib.algorithms.qwr import QWRConfig


def check_combinations(config: QWRConfig) -> None:
    """Checks combinations of settings, and RLlib's settings that allow one value only.

    Raises:
        ValueError: one line with the key, its value and what is allowed.
    """
    if config.overlap_sampling and not config.num_env_runners and not config.in_evaluation:
        raise ValueError(
            "overlap_sampling needs num_env_runners >= 1: the main process cannot collect "
            f"while it trains; got num_env_runners {config.num_env_runners}"
        )
    if config.replay_capacity < config.n_interactions:
        raise ValueError(
            f"replay_capacity must be >= n_interactions ({config.n_interactions}), "
            f"got {config.replay_capacity}"
        )
    envs = max(1, config.num_env_runners) * config.num_envs_per_env_runner
    if config.n_interactions % envs and not (config.in_evaluation or config.whole_episodes):
        raise ValueError(
            f"n_interactions must be a multiple of the number of environments ({envs} = "
            f"rollout workers x num_envs_per_env_runner), got {config.n_interactions}"
        )
    if config.rollout_fragment_length != "auto" and not config.in_evaluation:
        raise ValueError(
            "rollout_fragment_length must be 'auto' (it follows from n_interactions), "
            f"got {config.rollout_fragment_length!r}"
        )
    if config.observation_filter != "NoFilter":
        raise ValueError(
            "observation_filter must be 'NoFilter' (normalize_observations has the effect), "
            f"got {config.observation_filter!r}"
        )
    if config.whole_episodes and config.num_envs_per_env_runner > 1:
        raise ValueError(
            "num_envs_per_env_runner must be 1 with batch_mode 'complete_episodes', where each "
            f"rollout worker collects one episode, got {config.num_envs_per_env_runner}"
        )
    if config.exploration_config != {"type": "StochasticSampling"}:
        raise ValueError(
            "exploration_config has no effect, action_std is the noise; "
            f"got {config.exploration_config!r}"
        )
    if config.is_multi_agent:
        raise ValueError(f"policies must be one policy, got {sorted(config.policies)}")
    if config.compress_observations:
        raise ValueError("compress_observations must be false: the replay keeps arrays")


def check_model(model: Mapping[str, Any]) -> None:
    """Checks the config's ``model``, from which the networks are built.

    Raises:
        ValueError: one line with the key, its value and what is allowed.
    """
    known = MODEL_DEFAULTS.keys()
    for name in model.keys() - known:
        raise ValueError(f"unknown key model.{name}{did_you_mean(name, known)}")
    for name in UNUSED_MODEL.keys() & model.keys():
        if model[name] != MODEL_DEFAULTS[name]:
            refuse(name, model[name], UNUSED_MODEL, "model.")
    for name in ("fcnet_hiddens", "post_fcnet_hiddens"):
        widths = model.get(name)
        if name == "post_fcnet_hiddens" and not widths:
            continue  # RLlib's default; the networks then use their own
        if not (isinstance(widths, (list, tuple)) and widths and all(map(_is_size, widths))):
            raise ValueError(f"model.{name} must be a list of integers > 0, got {widths!r}")
    filters = model.get("conv_filters")
    if filters and not (isinstance(filters, (list, tuple)) and all(map(_is_layer, filters))):
        raise ValueError(
            "model.conv_filters must be a list of [filters, kernel, stride], integers > 0 (the "
            f"kernel also [height, width]), got {filters!r}"
        )
    if model.get("fcnet_activation") not in list(ACTIVATIONS):
        raise ValueError(
            f"model.fcnet_activation must be one of {', '.join(ACTIVATIONS)}, "
            f"got {model.get('fcnet_activation')!r}"
        )


def check_effect(config: QWRConfig, spec: Spec) -> None:
    """Checks that every setting that the user chose has an effect in the environment.

    Raises:
        ValueError: naming the setting without effect.
    """
    default = type(config)()

    def unused(name: str, where: str, hint: str = "") -> None:
        settings, defaults = (vars(each) | each.model for each in (config, default))
        if name in config.chosen or settings[name] != defaults[name]:
            name = f"model.{name}" if name in config.model else name
            raise ValueError(f"{name} has no effect with {where}{hint}")

    if spec.discrete:
        unused("action_std", "discrete actions: they are sampled by their probabilities")
    if spec.image:
        unused("critic_precision", "images")
        unused("fcnet_hiddens", "images", ": set model.post_fcnet_hiddens")
    else:
        for name in ("conv_filters", "post_fcnet_hiddens", "image_network"):
            unused(name, "observations that are vectors", ": set model.fcnet_hiddens")
        for name in ("image_precision", "image_shift"):
            unused(name, "observations that are vectors")


_is_size = integer(1).holds


def _is_layer(value: Any) -> bool:
    """Returns whether a value is the filters, kernel and stride of a convolution."""
    if not (isinstance(value, (list, tuple)) and len(value) == 3):
        return False
    filters, kernel, stride = value
    sizes = kernel if isinstance(kernel, (list, tuple)) and len(kernel) == 2 else [kernel]
    return all(map(_is_size, [filters, *sizes, stride]))
