"""The settings beside the learner's, their defaults, and what they ask for. Knows no Ray."""

from __future__ import annotations

from typing import Any

from qwr_rllib.learner import LearnerConfig
from qwr_rllib.networks import QWRNetworks
from qwr_rllib.specs import Spec

# Of collection, replay and networks; the learner's are in `LearnerConfig`.
DEFAULTS: dict[str, Any] = {
    "n_interactions": 1000,
    "batch_mode": "truncate_episodes",
    "action_std": 0.4,
    "replay_capacity": 5000,
    "normalize_observations": True,
    "critic_post_gate_layer": False,
    "image_network": "mnih2013",
    "frame_stack": "auto",
    "reward_clip": None,
}
MODEL: dict[str, Any] = {"fcnet_hiddens": [256, 256], "fcnet_activation": "relu"}
# What an algorithm has otherwise; docs/algorithm.md says why.
ALGORITHMS: dict[str, dict[str, Any]] = {
    "QWR": {},
    "AWR": {
        "critic_type": "v",
        "actor_actions": "replay",
        "margin": 60,
        "replay_capacity": 50_000,
    },
    "AWAC": {"actor_actions": "replay"},
}


def defaults_of(algorithm: str) -> dict[str, Any]:
    """The defaults of ``"QWR"``, ``"AWR"`` or ``"AWAC"``, as in the dict of its config."""
    fields = LearnerConfig.__dataclass_fields__.items()
    model = {**MODEL, "conv_filters": None, "post_fcnet_hiddens": []}
    return {
        **{name.rstrip("_"): field.default for name, field in fields},
        **DEFAULTS,
        # RLlib's own.
        **{"env_config": {}, "seed": None, "normalize_actions": True, "clip_actions": False},
        "model": model,
        **ALGORITHMS[algorithm],
    }


def networks_of(spec: Spec, config: Any, with_critic: bool = True) -> QWRNetworks:
    """The networks that a :class:`~qwr_rllib.qwr.QWRConfig` or its dict asks for."""
    model = config["model"]
    return QWRNetworks(
        spec,
        hiddens=model["fcnet_hiddens"],
        activation=model["fcnet_activation"],
        gamma=learner_config(config).gamma_at(0),
        action_std=config["action_std"],
        normalize_observations=config["normalize_observations"],
        critic_post_gate_layer=config["critic_post_gate_layer"],
        critic_type=config["critic_type"],
        with_critic=with_critic,
        image_network=config.get("image_network", "mnih2013"),  # all that earlier releases had
        conv_filters=model["conv_filters"],
        conv_hiddens=model["post_fcnet_hiddens"],
    )


def learner_config(config: Any) -> LearnerConfig:
    """The learner's part of a :class:`~qwr_rllib.qwr.QWRConfig` or its dict."""
    # RLlib's dict form calls lambda_ "lambda"; a trial of an earlier release lacks later settings.
    keys = {name: name.rstrip("_") for name in LearnerConfig.__dataclass_fields__}
    return LearnerConfig(**{name: config[key] for name, key in keys.items() if key in config})
