"""What a :class:`~qwr_rllib.qwr.QWRConfig` or its dict asks for. Knows no Ray."""

from __future__ import annotations

from typing import Any

from qwr_rllib.learner import LearnerConfig
from qwr_rllib.networks import QWRNetworks
from qwr_rllib.specs import Spec


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
        image_network=config["image_network"],
        conv_filters=model["conv_filters"],
        conv_hiddens=model["post_fcnet_hiddens"],
    )


def learner_config(config: Any) -> LearnerConfig:
    """The learner's part of a :class:`~qwr_rllib.qwr.QWRConfig` or its dict."""
    # RLlib's dict form calls lambda_ "lambda".
    names = LearnerConfig.__dataclass_fields__
    return LearnerConfig(**{name: config[name.rstrip("_")] for name in names})
