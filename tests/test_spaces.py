"""The supported spaces: actions stay inside their space, observations become boxes."""

import functools
import importlib
import re

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import (
    Box,
    Dict,
    Discrete,
    MultiBinary,
    MultiDiscrete,
    Sequence,
    Text,
    Tuple,
    flatten,
    flatten_space,
    unflatten,
)
from gymnasium.wrappers import ClipAction, FlattenObservation, TransformAction
from ray.rllib.evaluation.rollout_worker import RolloutWorker
from ray.tune.registry import register_env

from qwr_rllib import QWR, QWRConfig
from qwr_rllib.algorithms.policy import QWRTorchPolicy
from qwr_rllib.cli.evaluation import find_checkpoint, load_checkpoint, play
from qwr_rllib.cli.experiments import make_env
from qwr_rllib.envs.spaces import fitted, spec_of
from qwr_rllib.learning.networks import QWRNetworks
from qwr_rllib.local import trainer as local
from qwr_rllib.specs import Spec

VECTOR = Box(-1, 1, (3,))
INTEGERS = Box(0, 5, (2,), np.int32)
HALF_BOUNDED = Box(np.array([-1, 0], np.float32), np.array([1, np.inf], np.float32))


class Watched(gym.Env):
    """Episodes of 10 steps; counts all actions and the actions outside the space."""

    def __init__(self, action_space=Box(-1, 1, (1,)), observation_space=VECTOR):  # noqa: B008
        self.action_space = action_space
        self.observation_space = observation_space
        self.observation_space.seed(0)
        self.seen, self.outside = [], []

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        (self.seen if self.action_space.contains(action) else self.outside).append(action)
        self.t += 1
        return self.observation_space.sample(), 1.0, self.t == 10, False, {}


def rounded(env):
    return TransformAction(
        env, lambda action: np.rint(action).astype(np.int32), Box(0, 5, (2,), np.float32)
    )


def shifted(env):
    return TransformAction(env, lambda action: action + 1, Discrete(3))


def numbered(env):
    shape = env.action_space.nvec
    return TransformAction(
        env, lambda action: np.array(np.unravel_index(action, shape)), Discrete(shape.prod())
    )


def one_box(env):
    space = env.action_space
    return TransformAction(env, functools.partial(unflatten, space), flatten_space(space))


ACTORS = {
    "bounds on one side of 0": (Box(0, 5, (2,)), None, {}),
    "bounds of each dimension": (Box(np.float32([-3, 0]), np.float32([-1, 9])), None, {}),
    "float64": (Box(-0.1, 0.3, (2, 2), np.float64), None, {}),
    "clipped": (Box(-1, 3, (2,)), None, {"normalize_actions": False, "clip_actions": True}),
    "unbounded": (Box(-np.inf, np.inf, (2,)), None, {}),
    "discrete": (Discrete(4), None, {}),
    # The remedies that error messages name.
    "half-bounded, ClipAction": (HALF_BOUNDED, ClipAction, {}),
    "integers, TransformAction": (INTEGERS, rounded, {}),
    "from 1, TransformAction": (Discrete(3, start=1), shifted, {}),
    "MultiDiscrete, TransformAction": (MultiDiscrete([2, 3]), numbered, {}),
    "Dict, TransformAction": (Dict(a=Box(0, 1, (1,)), b=Box(-3, 3, (2,))), one_box, {}),
}  # fmt: skip


def small(env, **training):
    config = QWRConfig().environment(env).env_runners(num_env_runners=0).debugging(seed=1)
    return config.training(
        n_interactions=1000,
        n_critic_steps=2,
        n_actor_steps=2,
        target_update_freq=1,
        learner_threads=1,
        **training,
    )


def collected(env, config):
    """Returns what RLlib's rollout worker samples in an iteration, without Ray."""
    worker = RolloutWorker(
        env_creator=lambda _: fitted(env),
        default_policy_class=QWRTorchPolicy,
        config=config.copy(),
    )
    return worker.sample().policy_batches["default_policy"]


@pytest.mark.parametrize("name", ACTORS)
def test_each_of_1000_actions_is_one_of_the_space(name):
    space, wrapper, settings = ACTORS[name]
    env = Watched(space)
    wrapped = wrapper(env) if wrapper else env
    config = small("watched").environment(**settings)
    config.check_spaces(wrapped.observation_space, wrapped.action_space)
    assert len(collected(wrapped, config)) == 1000
    assert len(env.seen) >= 1000  # RLlib checks an environment first
    assert env.outside == []
    if isinstance(space, Discrete):
        assert len(set(map(int, env.seen))) == space.n


@pytest.mark.parametrize("space", [Box(0, 5, (2,)), Box(-2, 2, (2, 2), np.float64)])
def test_training_without_ray_keeps_them_too(space):
    env = Watched(space)
    spec = local.spec_of(env, {"frame_stack": 1})
    runner = local.Runner(env, QWRNetworks(spec), spec, 0)
    assert sum(map(len, runner.collect(1000, None))) == 1000
    assert (len(env.seen), env.outside) == (1000, [])
    assert np.std(env.seen) > 0.1


@pytest.mark.parametrize("space", [HALF_BOUNDED, INTEGERS, Box(-np.inf, np.inf, (2,))])
def test_training_without_ray_refuses_others(space):
    with pytest.raises(ValueError, match=r"got .*Box\("):
        local.spec_of(Watched(space), {"frame_stack": 1})


FINITE = Box(-1, 1, (2, 1))
REFUSED = {
    "integers": (
        Watched(INTEGERS),
        r"got integers in Box\(0, 5, \(2,\), int32\): dimension 0 is in \[0, 5\].*TransformAction",
    ),
    "float16": (Watched(Box(-2, 2, (2,), np.float16)), r"got float16 in .* is in \[-2.0, 2.0\]"),
    "half-bounded": (
        Watched(HALF_BOUNDED),
        r"finite bounds in all dimensions or with none at all, got .*: "
        r"dimension 1 is in \[0.0, inf\]; gymnasium.wrappers.ClipAction",
    ),
    "partly unbounded": (
        Watched(Box(np.float32([[-1], [-np.inf]]), np.float32([[1], [np.inf]]))),
        r"dimension \(1, 0\) is in \[-inf, inf\]",
    ),
    "without a finite width": (
        Watched(Box(-3e38, 3e38, (1,))),
        r"dimension 0 is in \[-3.* 3.*\]; gymnasium.wrappers.ClipAction",
    ),
    "from 1": (Watched(Discrete(3, start=1)), r"actions that start at 0.*TransformAction"),
    "MultiDiscrete": (
        Watched(MultiDiscrete([2, 3])),
        r"got MultiDiscrete\(\[2 3\]\); .*TransformAc",
    ),
    "MultiBinary": (
        Watched(MultiBinary(3)),
        r"got MultiBinary\(3\); gymnasium.wrappers.TransformAc",
    ),
    "Dict": (
        Watched(Dict(a=FINITE)),
        "TransformAction with gymnasium.spaces.flatten_space and unfl",
    ),
    "Text": (Watched(Text(3)), r"a Box or Discrete action space, got Text\(1, 3, .*\)$"),
    "observed sequence": (
        Watched(observation_space=Dict(a=VECTOR, b=Sequence(VECTOR))),
        r"a Box observation space, got Dict.*Sequence.*; gymnasium.wrappers.TransformObservation",
    ),
    "observed text": (Watched(observation_space=Text(3)), "gymnasium.wrappers.FlattenObservation"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_named_with_what_helps(name):
    env, message = REFUSED[name]
    env = fitted(env)
    with pytest.raises(ValueError, match=message) as error:
        small("watched").check_spaces(env.observation_space, env.action_space)
    assert "\n" not in str(error.value)
    for word in re.findall(r"gymnasium\.[\w.]+", str(error.value)):
        module, _, attribute = word.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), word


def test_actions_that_would_leave_their_bounds_by_the_settings_are_refused():
    config = small("watched").environment(normalize_actions=False)
    message = r"normalize_actions or clip_actions must be true.* Box\(-1.0, 1.0, \(2, 1\)"
    with pytest.raises(ValueError, match=message):
        config.check_spaces(VECTOR, FINITE)
    with pytest.raises(ValueError, match=message):
        QWRTorchPolicy(VECTOR, FINITE, config.to_dict() | {"worker_index": 1})
    config.check_spaces(VECTOR, Discrete(2))
    config.check_spaces(VECTOR, Box(-np.inf, np.inf, (2,)))


@pytest.mark.parametrize(("name", "value"), [("samples_from", "pi"), ("sample_ascent", 0.1)])
def test_samples_are_clipped_only_where_the_range_is_known(name, value):
    message = rf"{name} must be .*, got {value!r}: otherwise actions are clipped to \[-1, 1\]"
    config = small("watched").training(**{name: value})
    config.check_spaces(VECTOR, FINITE)
    with pytest.raises(ValueError, match=message):
        config.check_spaces(VECTOR, Box(-np.inf, np.inf, (2,)))
    with pytest.raises(ValueError, match=message):
        config.environment(normalize_actions=False, clip_actions=True).check_spaces(VECTOR, FINITE)


OBSERVED = {
    "Dict": (Dict(goal=Discrete(3), place=Box(-1, 1, (2, 2))), 7),
    "Tuple": (Tuple((Box(-1, 1, (2,), np.float64), MultiDiscrete([2, 3]))), 7),
    "nested": (Dict(a=Tuple((Box(0, 255, (4,), np.uint8), MultiBinary(2))), b=Dict(c=VECTOR)), 9),
    "Discrete": (Discrete(5), 5),
}


@pytest.mark.parametrize("name", OBSERVED)
def test_observations_of_parts_are_flattened(name):
    space, size = OBSERVED[name]
    env = Watched(observation_space=space)
    config = small("watched")
    batch = collected(env, config)
    assert batch["obs"].shape == (1000, size)
    spec = spec_of(fitted(env).observation_space, env.action_space)
    assert (spec.obs_shape, spec.image) == ((size,), False)
    env.observation_space.seed(0)
    first = [flatten(space, space.sample()) for _ in range(2)]
    # If RLlib checks the environment first, that check's reset uses the first observation.
    assert any(np.allclose(batch["obs"][0], each) for each in first)


def test_boxes_are_not_wrapped():
    env = Watched()
    assert fitted(env) is env
    env = Watched(observation_space=Text(3))
    assert fitted(env) is env


# Images of floats


@pytest.mark.parametrize(
    ("space", "image_max"),
    [
        (Box(0, 1, (24, 24, 1)), 1),
        (Box(0, 1, (3, 24, 24), np.float64), 1),
        (Box(0, 255, (24, 24, 3)), 255),
        (Box(0, 255, (24, 24, 3), np.int32), 255),
        (Box(0, 255, (24, 24, 3), np.uint8), None),
        (Box(-1, 1, (24, 24, 3)), None),
        (Box(0, 2, (24, 24, 3)), None),
        (Box(0, 1, (24, 24)), None),
    ],
)
def test_images_are_told_by_their_bounds(space, image_max):
    spec = spec_of(space, Discrete(2))
    assert spec.image_max == image_max
    assert spec.image == (image_max is not None or space.dtype == np.uint8)


def test_an_image_of_floats_is_seen_as_one_of_bytes():
    pixels = torch.randint(256, (5, 24, 24, 1), dtype=torch.uint8)
    of_bytes = QWRNetworks(Spec((24, 24, 1), "uint8", 2, True))
    expected = of_bytes.dist_inputs(pixels)
    for full in (1, 255):
        networks = QWRNetworks(spec_of(Box(0, full, (24, 24, 1)), Discrete(2)))
        networks.load_state_dict(of_bytes.state_dict())
        floats = pixels * np.float32(full / 255)
        before = floats.clone()
        torch.testing.assert_close(networks.dist_inputs(floats), expected)
        assert torch.equal(floats, before)  # the arrays belong to the environment


def test_an_image_too_small_for_convolutions_says_how_to_have_a_vector():
    board = Box(0, 1, (8, 8, 3))
    with pytest.raises(ValueError, match=r"conv_filters .* \(8, 8, 3\); gymnasium.wrappers.Flatt"):
        small("watched").check_spaces(board, Discrete(2))
    env = FlattenObservation(Watched(observation_space=board))
    small("watched").check_spaces(env.observation_space, Discrete(2))


# With a Ray


@pytest.mark.ray
@pytest.mark.parametrize("kind", ["parts", "image"])
def test_training_evaluation_and_checkpoints_agree(local_ray, tmp_path, kind):
    space = OBSERVED["nested"][0] if kind == "parts" else Box(0, 1, (24, 24, 1))
    register_env("watched", lambda _: Watched(observation_space=space))
    config = small("watched").evaluation(evaluation_interval=1, evaluation_duration=1)
    algo = config.build_algo()
    try:
        result = algo.train()
        assert result["replay"]["num_rows"] == 1000
        assert result["evaluation"]["env_runners"]["episode_return_mean"] == 10
        assert algo.view.spec.image == (kind == "image")
        algo.save(str(tmp_path))
    finally:
        algo.stop()
    restored = QWR.from_checkpoint(tmp_path)
    try:
        assert restored.train()["replay"]["num_rows"] == 2000
    finally:
        restored.stop()
    algorithm, config, agent = load_checkpoint(find_checkpoint(tmp_path))
    env = make_env(algorithm, config)
    assert env.observation_space == agent.observation_space
    (played,) = play(agent, env, 0, 1, None)
    assert played.episode_return == 10


@pytest.mark.ray
def test_an_unbounded_action_space_is_said(local_ray, caplog):
    register_env("watched", lambda _: Watched(Box(-np.inf, np.inf, (2,))))
    algo = small("watched").build_algo()
    algo.stop()
    assert "Box(-inf, inf, (2,), float32) has no bounds: actions go to the env" in caplog.text
