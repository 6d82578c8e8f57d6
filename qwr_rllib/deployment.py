"""A trained policy in one file: raw observations in, the environment's actions out.

Imports neither Ray nor Gymnasium. A file's metadata, a JSON object under :data:`METADATA_KEY`,
describes its content: see :func:`describe`.

    onnx         a graph for ONNX Runtime, which needs neither torch nor this package to act
    torchscript  the same for ``torch.jit.load``, in Python or C++
    safetensors  the tensors alone, from which :func:`read` rebuilds the policy
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from qwr_rllib.learning.config import LearnerConfig
from qwr_rllib.learning.networks import networks_of
from qwr_rllib.specs import Spec
from qwr_rllib.versions import versions

METADATA_KEY = "qwr_rllib"
OBSERVATION, ACTION, BATCH = "observation", "action", "batch"
"""Names of a graph's input, its output, and their first axis."""
OPSET = 17
"""Default version of the ONNX operators, supported since ONNX Runtime 1.12."""
# The keys that `networks_of` reads; RLlib calls lambda_ "lambda".
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
    env_steps: int | None,
    algorithm: str | None = None,
) -> dict[str, Any]:
    """Returns the description of a policy, in plain values for JSON.

    Args:
        spec: the shapes of its networks.
        observation_space: the environment's Box.
        action_space: the environment's Box or Discrete.
        config: the ``QWRConfig`` of its training, or its dict.
        env_steps: environment steps of its training; ``None`` if unknown.
        algorithm: ``"QWR"``, ``"AWR"`` ...; by default it follows from the config.
    """
    if algorithm is None:
        algorithm = "QWR" if config.get("samples_from", "mu") == "mu" else "QWRPlus"
        if config["actor_actions"] == "replay":
            algorithm = "AWR" if config["critic_type"] == "v" else "AWAC"
    env = config["env"]
    action: dict[str, Any] = {
        "shape": list(action_space.shape),
        "dtype": np.dtype(action_space.dtype).name,
    }
    if spec.discrete:
        action["n"] = spec.action_dim
    else:
        bounded = bool(np.isfinite(action_space.low).all() and np.isfinite(action_space.high).all())
        # As RLlib's connectors do in an evaluation.
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


class DeployedPolicy(nn.Module):
    """A policy that acts as in evaluation: normalises, takes the mode, scales and clips.

    Args:
        state: see :meth:`~qwr_rllib.learning.networks.QWRNetworks.acting_state`.
        about: see :func:`describe`.
    """

    low: Tensor
    high: Tensor

    def __init__(self, state: dict[str, Tensor], about: dict[str, Any]) -> None:
        super().__init__()
        self.about = about
        shape = tuple(about["spec"]["obs_shape"])
        spec = Spec(**about["spec"] | {"obs_shape": shape})
        self.networks = networks_of(spec, LEARNER_DEFAULTS | about["config"], with_critic=False)
        self.networks.load_state_dict(state)
        self._action = action = about["action"]
        self._dtype = getattr(torch, action["dtype"])
        for bound in ("low", "high"):
            self.register_buffer(bound, torch.tensor(action.get(bound, ()), dtype=self._dtype))
        self.eval().requires_grad_(False)

    def forward(self, observation: Tensor) -> Tensor:
        """Returns actions ``(k, *action_shape)`` for raw observations ``(k, *obs_shape)``."""
        return self.to_env(self.networks.actor.mode(self.params(observation)))

    def params(self, observation: Tensor) -> Tensor:
        """Returns the parameters of ``pi(.|s)``; they are finite even if the observation is not."""
        return self.networks.dist_inputs(observation).nan_to_num()

    def to_env(self, actions: Tensor) -> Tensor:
        """Converts the policy's actions to the environment's, as RLlib's connectors do."""
        if "n" in self._action:
            return actions.to(self._dtype)
        actions = actions.reshape(-1, *self._action["shape"])
        if self._action["scaled"]:
            actions = self.low + (actions + 1.0) * (self.high - self.low) / 2.0
        if self._action["scaled"] or self._action["clipped"]:
            actions = actions.clamp(self.low, self.high)
        return actions.to(self._dtype)

    def example(self) -> Tensor:
        """Returns two observations of zeros."""
        observation = self.about["observation"]
        return torch.zeros(2, *observation["shape"], dtype=getattr(torch, observation["dtype"]))


def save(path: Path, state: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Writes a policy as safetensors.

    Args:
        path: the file.
        state: see :meth:`~qwr_rllib.learning.networks.QWRNetworks.acting_state`.
        about: see :func:`describe`.
    """
    # The learner's tensors are views into one vector.
    own = {name: tensor.clone().contiguous() for name, tensor in state.items()}
    path.write_bytes(safetensors.torch.save(own, {METADATA_KEY: json.dumps(about)}))


def read(path: Path) -> DeployedPolicy:
    """Reads a policy that :func:`save` wrote.

    Raises:
        OSError: if there is no such file.
        ValueError: if the file is not such a policy, or of an incompatible release.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file, or not whole: {error}") from error
    if METADATA_KEY not in metadata:
        raise ValueError(
            f"{path} is no policy of this package: its metadata have no {METADATA_KEY!r}"
        )
    try:
        return DeployedPolicy(state, json.loads(metadata[METADATA_KEY]))
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is a policy that this release cannot read: {error}") from error


def save_safetensors(policy: DeployedPolicy, path: Path) -> None:
    """Writes the policy's tensors and metadata, without a graph."""
    save(path, policy.networks.acting_state(), policy.about)


def save_torchscript(policy: DeployedPolicy, path: Path) -> None:
    """Writes a traced module, with the metadata as the extra file :data:`METADATA_KEY`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        traced = torch.jit.trace(policy, policy.example())
        torch.jit.save(traced, path, {METADATA_KEY: json.dumps(policy.about)})


def save_onnx(policy: DeployedPolicy, path: Path, opset: int = OPSET) -> None:
    """Writes an ONNX graph for any batch size, with the metadata in the model's properties.

    Raises:
        ModuleNotFoundError: if the package onnx is missing.
    """
    import onnx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            policy,
            (policy.example(),),
            str(path),
            input_names=[OBSERVATION],
            output_names=[ACTION],
            dynamic_axes={name: {0: BATCH} for name in (OBSERVATION, ACTION)},
            opset_version=opset,
            # The other exporter needs onnxscript, takes ten times as long and makes the same graph.
            dynamo=False,
        )
    model = onnx.load(path)
    model.producer_name = METADATA_KEY
    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(policy.about)})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


FORMATS: dict[str, Callable[[DeployedPolicy, Path], None]] = {
    "onnx": save_onnx,
    "torchscript": save_torchscript,
    "safetensors": save_safetensors,
}
