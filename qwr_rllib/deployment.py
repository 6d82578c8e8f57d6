"""A trained policy in one file: raw observations in, the environment's actions out.

Knows neither Ray nor Gymnasium. What is in a file is said by its metadata, a JSON object under
:data:`METADATA_KEY`: see :func:`describe`.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from qwr_rllib.learner import LearnerConfig
from qwr_rllib.specs import Spec
from qwr_rllib.versions import versions

METADATA_KEY = "qwr_rllib"
# What `networks_of` reads; RLlib calls lambda_ "lambda".
LEARNER_DEFAULTS = {
    name.rstrip("_"): field.default for name, field in LearnerConfig.__dataclass_fields__.items()
}
NETWORK_KEYS = ("action_std", "normalize_observations", "critic_post_gate_layer")
MODEL_KEYS = ("fcnet_hiddens", "fcnet_activation", "conv_filters", "post_fcnet_hiddens")


def describe(
    spec: Spec,
    observation_space: Any,
    action_space: Any,
    config: Any,
    env_steps: int,
    algorithm: str | None = None,
) -> dict[str, Any]:
    """What is known of a policy, as plain values that JSON can hold.

    Args:
        spec: the shapes that its networks were made for.
        observation_space: the environment's, a Box.
        action_space: the environment's, Box or Discrete.
        config: the ``QWRConfig`` that it was trained with, or its dict.
        env_steps: environment steps that it was trained for.
        algorithm: ``"QWR"``, ``"AWR"`` or ``"AWAC"``; by default what the config's parts make.
    """
    if algorithm is None:
        parts = config["critic_type"], config["actor_actions"]
        algorithm = {("v", "replay"): "AWR", ("q", "replay"): "AWAC"}.get(parts, "QWR")
    env = config["env"]
    action: dict[str, Any] = {
        "shape": list(action_space.shape),
        "dtype": np.dtype(action_space.dtype).name,
    }
    if spec.discrete:
        action["n"] = spec.action_dim
    else:
        bounded = bool(np.isfinite(action_space.low).all() and np.isfinite(action_space.high).all())
        # As RLlib's connectors in an evaluation.
        action["scaled"] = bool(config["normalize_actions"]) and bounded
        action["clipped"] = bool(config["clip_actions"])
        action["low"], action["high"] = action_space.low.tolist(), action_space.high.tolist()
    return {
        "algorithm": algorithm,
        "env": env if isinstance(env, str) or env is None else env.__qualname__,
        "env_config": json.loads(json.dumps(dict(config["env_config"]), default=str)),
        "env_steps": env_steps,
        "seed": config["seed"],
        "observation": {
            "shape": list(observation_space.shape),
            "dtype": np.dtype(observation_space.dtype).name,
        },
        "action": action,
        "spec": dataclasses.asdict(spec),
        "config": {
            **{name: config[name] for name in (*LEARNER_DEFAULTS, *NETWORK_KEYS)},
            **{name: config[name] for name in ("n_interactions", "replay_capacity")},
            "model": {name: config["model"][name] for name in MODEL_KEYS},
        },
        "versions": versions(),
    }


def save(path: Path, state: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Writes a policy as safetensors: the tensors that acting needs, and the metadata.

    Args:
        path: the file.
        state: :meth:`~qwr_rllib.networks.QWRNetworks.acting_state`.
        about: :func:`describe`.
    """
    # The learner's tensors are views into one vector.
    own = {
        name: value.clone(memory_format=torch.contiguous_format) for name, value in state.items()
    }
    path.write_bytes(safetensors.torch.save(own, {METADATA_KEY: json.dumps(about)}))
