"""Exported policies act as their checkpoints do in evaluation."""

import contextlib
import json
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import onnxruntime
import pytest
import ray
import torch
from click.testing import CliRunner, Result
from ray.rllib.algorithms.ppo import PPO, PPOConfig
from ray.rllib.utils.spaces.space_utils import clip_action, unsquash_action
from safetensors import safe_open

import qwr_rllib
from qwr_rllib import QWR, AWRConfig, QWRConfig
from qwr_rllib.algorithms.policy import spec_of
from qwr_rllib.cli import qwr
from qwr_rllib.cli.evaluation import load_checkpoint, load_exported, make_env
from qwr_rllib.deployment import FORMATS, METADATA_KEY, DeployedPolicy, describe, read
from qwr_rllib.learning.networks import networks_of

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[1]
FEW = {"n_critic_steps": 2, "n_actor_steps": 2, "n_interactions": 50}
KINDS: dict[str, QWRConfig] = {
    "continuous": QWRConfig().environment("Pendulum-v1"),
    "discrete": AWRConfig().environment("CartPole-v1"),
    "image": QWRConfig().environment("Atari100k", env_config={"game": "pong"}),
}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(qwr, [str(each) for each in arguments])


def resets(kind: str, agent: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first observations of 40 episodes, and an agent's actions there."""
    config = KINDS[kind]
    observations, actions = [], []
    with contextlib.closing(make_env(config.algo_class, config)) as env:
        for seed in range(40):
            observation, _ = env.reset(seed=seed)
            observations.append(np.asarray(observation))
            if agent:
                agent.reset(observation)
                actions.append(agent.act())
    return np.stack(observations), np.array(actions)


def algorithm_of(config: Any) -> QWR:
    config.env_runners(num_env_runners=0).debugging(seed=3).training(**FEW, train_batch_size=8)
    return config.build_algo()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """A checkpoint of each kind, whose policy uses both actions or both ends of the range."""
    ray.init(address="local", num_cpus=1, include_dashboard=False)
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, config in KINDS.items():
        algo = algorithm_of(config.copy(copy_frozen=False))
        algo.train()
        policy = algo.get_policy()
        if name != "image":
            params = policy.dist_inputs(resets(name)[0])
            weights = policy.get_weights()
            scale = 2 / params.std()  # moves means or logits beyond [-1, 1]
            weights["actor.head.weight"] = weights["actor.head.weight"] * scale
            weights["actor.head.bias"] = (weights["actor.head.bias"] - params.mean(0)) * scale
            policy.set_weights(weights)
        algo.save(str(folder / name))
        if name == "continuous":
            algo.export_policy_model(str(folder / "by_rllib"), onnx=17)
            policy.export_model(str(folder / "by_rllib"))
        algo.stop()
    ray.shutdown()
    qwr_rllib.register()  # `ray.shutdown()` cleared the names
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def exported(checkpoints, tmp_path_factory) -> dict[tuple[str, str], Path]:
    """Every checkpoint in every format, exported without Ray."""
    folder = tmp_path_factory.mktemp("exported")
    made = {}
    for kind in KINDS:
        for form in FORMATS:
            made[kind, form] = out = folder / f"{kind}.{form}"
            result = run("export", checkpoints[kind], "--format", form, "--out", out)
            assert result.exit_code == 0, result.output
            assert str(out) in result.output
    assert not ray.is_initialized()
    return made


@pytest.fixture(scope="module")
def played(checkpoints) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Observations, and the actions of the checkpoint in evaluation."""
    return {kind: resets(kind, load_checkpoint(checkpoints[kind])[2]) for kind in KINDS}


def acts(path: Path, form: str, observations: np.ndarray) -> tuple[np.ndarray, dict]:
    """Returns the actions of an exported policy, and its metadata."""
    if form == "onnx":
        session = onnxruntime.InferenceSession(path)
        [actions] = session.run(["action"], {"observation": observations})
        return actions, json.loads(session.get_modelmeta().custom_metadata_map[METADATA_KEY])
    if form == "torchscript":
        extra = {METADATA_KEY: ""}
        module = torch.jit.load(path, _extra_files=extra)
        return module(torch.as_tensor(observations)).numpy(), json.loads(extra[METADATA_KEY])
    policy = read(path)
    return policy(torch.as_tensor(observations)).numpy(), policy.about


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_policy_acts_as_the_checkpoint_in_evaluation(exported, played, kind, form):
    observations, expected = played[kind]
    actions, about = acts(exported[kind, form], form, observations)
    assert actions.dtype == expected.dtype
    np.testing.assert_allclose(actions, expected, rtol=1e-5, atol=1e-5)
    one, _ = acts(exported[kind, form], form, observations[5:6])
    np.testing.assert_allclose(one, expected[5:6], rtol=1e-5, atol=1e-5)
    config = KINDS[kind]
    assert about["algorithm"] == config.algo_class.__name__
    assert (about["env"], about["env_steps"], about["seed"]) == (config.env, 50, 3)
    assert about["observation"] == {
        "shape": list(observations.shape[1:]),
        "dtype": observations.dtype.name,
    }
    assert about["versions"]["qwr-rllib"]


def test_the_observations_tell_policies_apart(played):
    continuous = played["continuous"][1]
    assert abs(continuous).max() == 2, "some actions are clipped"
    assert abs(continuous).min() < 2
    assert len(np.unique(played["discrete"][1])) == 2


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
def test_a_file_is_evaluated_and_exported_as_its_checkpoint(checkpoints, exported, kind, tmp_path):
    outputs = []
    for source in checkpoints[kind], exported[kind, "safetensors"]:
        result = run("evaluate", source, "--episodes", 2)
        assert result.exit_code == 0, result.output
        outputs.append(result.output)
    assert outputs[0] == outputs[1]
    out = tmp_path / "again.onnx"
    result = run("export", exported[kind, "safetensors"], "--format", "onnx", "--out", out)
    assert result.exit_code == 0, result.output
    assert out.read_bytes() == exported[kind, "onnx"].read_bytes()


def test_a_file_is_evaluated_in_the_environment_of_evaluations(exported):
    config = load_exported(exported["image", "safetensors"])[1]
    assert config.env_config == {"game": "pong", "evaluation": True}


def test_rllibs_own_export_writes_the_same(checkpoints, played):
    observations, expected = played["continuous"]
    for name, form in ("model.onnx", "onnx"), ("model.pt", "torchscript"):
        actions, about = acts(checkpoints["by_rllib"] / name, form, observations)
        np.testing.assert_allclose(actions, expected, rtol=1e-5, atol=1e-5)
        assert about["env_steps"] == (50 if form == "onnx" else None)


def test_the_example_of_the_documentation_needs_neither_ray_nor_torch_nor_us(exported, tmp_path):
    [example] = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "deployment.md").read_text(), re.DOTALL
    )
    (tmp_path / "policy.onnx").write_bytes(exported["continuous", "onnx"].read_bytes())
    after = 'import sys\nassert not {"ray", "torch", "qwr_rllib"} & set(sys.modules)\n'
    result = subprocess.run(
        [sys.executable, "-c", example + after],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(r"Pendulum-v1 -\d+\.\d+\n", result.stdout)


@pytest.mark.parametrize(
    ("space", "settings"),
    [
        (gym.spaces.Box(-2, 6, (2, 3), np.float32), {}),
        (gym.spaces.Box(np.array([-1.0, 0.1]), np.array([3.0, 0.3]), dtype=np.float64), {}),
        (gym.spaces.Box(-np.inf, np.inf, (3,), np.float32), {}),
        (gym.spaces.Box(-2, 6, (3,), np.float32), {"normalize_actions": False}),
        (
            gym.spaces.Box(-0.5, 0.5, (3,), np.float32),
            {"normalize_actions": False, "clip_actions": True},
        ),
    ],
)
def test_actions_are_scaled_and_clipped_as_rllib_does(space, settings):
    config = QWRConfig().environment("Pendulum-v1", **settings)
    observations = gym.spaces.Box(-1, 1, (2,), np.float32)
    spec = spec_of(observations, space)
    state = networks_of(spec, config, with_critic=False).acting_state()
    policy = DeployedPolicy(state, describe(spec, observations, space, config, 0))
    actions = 2 * torch.randn(20, spec.action_dim)
    expected = actions.reshape(-1, *space.shape).numpy()
    if config.normalize_actions:
        expected = unsquash_action(expected, space)
    if config.clip_actions:
        expected = clip_action(expected, space)
    made = policy.to_env(actions).numpy()
    assert made.dtype == space.dtype
    np.testing.assert_array_equal(made, expected.astype(space.dtype))


def test_an_observation_with_nan_gets_an_action(exported):
    actions, _ = acts(exported["continuous", "onnx"], "onnx", np.full((1, 3), np.nan, np.float32))
    assert actions.tolist() == [[0.0]]


def test_what_cannot_be_exported_is_named(checkpoints, exported, tmp_path, monkeypatch):
    checkpoint, out = checkpoints["continuous"], tmp_path / "policy.onnx"

    def error(*arguments: object) -> str:
        result = run("export", *arguments)
        assert result.exit_code == 2
        assert not out.exists()
        return result.output

    assert "no checkpoint at" in error(tmp_path / "none", "--format", "onnx", "--out", out)
    unknown = error(checkpoint, "--format", "pickle", "--out", out)
    assert "'pickle' is not one of 'onnx', 'torchscript', 'safetensors'" in unknown
    nowhere = error(checkpoint, "--format", "onnx", "--out", tmp_path / "no" / "policy.onnx")
    assert "no such folder" in nowhere
    monkeypatch.setitem(sys.modules, "onnx", None)
    missing = error(checkpoint, "--format", "onnx", "--out", out)
    assert "pip install 'qwr-rllib[export]'" in missing


def test_a_checkpoint_of_another_algorithm_is_refused(tmp_path, monkeypatch):
    from qwr_rllib.cli import exporting

    monkeypatch.setattr(exporting, "find_checkpoint", lambda path: path)
    monkeypatch.setattr(exporting, "read_algorithm", lambda path: (PPO, PPOConfig(), {}))
    result = run("export", tmp_path, "--format", "onnx", "--out", tmp_path / "policy.onnx")
    assert result.exit_code == 2
    assert "is of PPO: only policies of QWR, QWRPlus, AWR and AWAC can be exported" in result.output


def test_a_file_that_is_no_policy_is_named(exported, tmp_path):
    path = tmp_path / "policy.safetensors"
    path.write_bytes(exported["continuous", "safetensors"].read_bytes()[:1000])
    with pytest.raises(
        ValueError, match=r"policy.safetensors is no safetensors file, or not whole"
    ):
        read(path)
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="is no policy of this package"):
        read(path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """The policy of a training of two iterations without Ray."""
    path = tmp_path_factory.mktemp("saved") / "policy.safetensors"
    few = ("--iterations", "2", "--config", json.dumps(FEW | {"compile": False}))
    command = ["benchmarks/in_process.py", "Pendulum-v1", *few, "--seed", "7", "--save", str(path)]
    subprocess.run(
        [sys.executable, *command], cwd=ROOT, check=True, capture_output=True, timeout=300
    )
    return path


def test_training_without_ray_saves_what_acting_needs_and_says_what_it_is(saved):
    with safe_open(saved, "pt") as file:
        about = json.loads(file.metadata()[METADATA_KEY])
        names = set(file.keys())
        assert file.get_tensor("normalizer.count") == 100
    assert not any(name.startswith("critic") for name in names)
    assert {"normalizer.mean", "actor.body.0.weight", "actor.head.bias"} <= names
    assert (about["algorithm"], about["env"], about["seed"]) == ("QWR", "Pendulum-v1", 7)
    assert about["env_steps"] == 100
    assert (about["action"]["low"], about["action"]["high"]) == ([-2.0], [2.0])
    assert about["config"]["n_critic_steps"] == 2
    assert saved.stat().st_mode & stat.S_IRGRP, "as readable as other files"
