"""``qwr export``: a checkpoint's policy in one file, for use without Ray and this package."""

from __future__ import annotations

import pickle
from pathlib import Path

import click
import torch
from ray.rllib.policy.policy import PolicySpec

from qwr_rllib.algorithms.policy import spec_of
from qwr_rllib.algorithms.qwr import QWR
from qwr_rllib.cli.errors import ConfigError
from qwr_rllib.cli.evaluation import find_checkpoint, read_algorithm
from qwr_rllib.cli.experiments import read_file
from qwr_rllib.deployment import FORMATS, DeployedPolicy, describe, read
from qwr_rllib.envs.atari import frame_stack_of


def read_policy(checkpoint: Path) -> DeployedPolicy:
    """Reads the policy of a file, or of a checkpoint of QWR, QWRPlus, AWR or AWAC; starts no Ray.

    Raises:
        ConfigError: The policy cannot be read, or is of another algorithm.
    """
    if checkpoint.suffix == ".safetensors":
        try:
            return read(checkpoint)
        except ValueError as error:
            raise ConfigError(error) from error
    algorithm, config, state = read_algorithm(checkpoint)
    if not issubclass(algorithm, QWR):
        raise ConfigError(
            f"{checkpoint} is of {algorithm.__name__}: only policies of QWR, QWRPlus, AWR and AWAC "
            "can be exported"
        )
    config = config.get_evaluation_config_object() or config
    try:
        with open(checkpoint / "policies" / "default_policy" / "policy_state.pkl", "rb") as file:
            policy = pickle.load(file)
        spaces = PolicySpec.deserialize(policy["policy_spec"])
        observation_space, action_space = spaces.observation_space, spaces.action_space
        spec = spec_of(observation_space, action_space, frame_stack_of(config))
        env_steps = int(state["counters"]["num_env_steps_sampled"])
        about = describe(
            spec, observation_space, action_space, config, env_steps, algorithm.__name__
        )
        weights = {name: torch.as_tensor(value) for name, value in policy["weights"].items()}
        return DeployedPolicy(weights, about)
    except Exception as error:
        raise ConfigError(
            f"cannot load checkpoint {checkpoint}: {type(error).__name__}: {error}"
        ) from error


def export(checkpoint: Path, kind: str, out: Path, modules_file: Path | None) -> None:
    """Runs ``qwr export``."""
    if modules_file:
        read_file(modules_file)
    exported = checkpoint.suffix == ".safetensors"
    policy = read_policy(checkpoint if exported else find_checkpoint(checkpoint))
    try:
        FORMATS[kind](policy, out)
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise
        raise ConfigError(
            "--format onnx needs the package onnx: pip install 'qwr-rllib[export]'"
        ) from error
    about = policy.about
    click.echo(
        f"{about['algorithm']} on {about['env']}, {about['env_steps']} steps: {out} "
        f"({out.stat().st_size / 1e3:.0f} kB)"
    )
