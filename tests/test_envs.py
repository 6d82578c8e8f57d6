"""The Atari-100k protocol on the real games, and their steps in a rollout worker."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import AtariPreprocessing
from ray.rllib.policy.sample_batch import SampleBatch

from qwr_rllib import QWRConfig
from qwr_rllib.algorithms.policy import NEXT_INFOS, QWRTorchPolicy
from qwr_rllib.envs.atari import (
    LIFE_LOST,
    LifeLoss,
    frame_stack_of,
    make_atari,
    require_observation_shape,
)
from qwr_rllib.sampling.worker import fragments_of


def play(env, steps, seed=0):
    """Plays random actions; returns all results of the steps, and the first observation."""
    observation, _ = env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    given = [env.step(rng.integers(env.action_space.n)) for _ in range(steps)]
    return observation, given


def settings(env):
    """Returns the keyword arguments of the wrappers and of the game itself."""
    found = dict(env.spec.kwargs)
    while isinstance(env, gym.Wrapper):
        found |= getattr(env, "_saved_kwargs", {})
        env = env.env
    return found


def test_the_protocol():
    env = make_atari({"game": "breakout"})
    assert env.observation_space == gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    assert env.action_space.n == 4
    made = settings(env)
    assert made["repeat_action_probability"] == 0
    assert (made["frameskip"], made["frame_skip"], made["noop_max"]) == (1, 4, 30)
    assert made["grayscale_obs"]
    assert not made["terminal_on_life_loss"]  # it would reset the game at each lost life
    assert made["max_episode_steps"] == 2000
    evaluation = make_atari({"game": "breakout", "evaluation": True})
    assert settings(evaluation)["max_episode_steps"] == 27_000
    # ALE's own limit is the same: 27,000 interactions of 4 frames.
    assert settings(evaluation)["max_num_frames_per_episode"] == 108_000


def test_settings_of_the_protocol_are_keys():
    env = make_atari(
        {
            "game": "pong",
            "sticky_actions": 0.25,
            "full_action_space": True,
            "frame_skip": 2,
            "screen_size": 42,
            "frame_stack": 2,
            "noop_max": 0,
            "max_episode_steps": 10,
        }
    )
    assert env.observation_space.shape == (2, 42, 42)
    assert env.action_space.n == 18
    made = settings(env)
    assert (made["repeat_action_probability"], made["frame_skip"]) == (0.25, 2)
    _, given = play(env, 10)
    assert [truncated for *_, truncated, _ in given] == [False] * 9 + [True]


def test_without_sticky_actions_the_same_actions_give_the_same_game():
    games = [play(make_atari({"game": "pong", "noop_max": 0}), 30)[1] for _ in range(2)]
    for one, other in zip(*games, strict=True):
        np.testing.assert_array_equal(one[0], other[0])


def test_a_lost_life_is_said_and_the_game_goes_on():
    env = make_atari({"game": "breakout"})
    _, given = play(env, 300)
    lives = [info["lives"] for *_, info in given]
    lost = [info[LIFE_LOST] for *_, info in given]
    expected = [after < before for before, after in zip([5, *lives], lives, strict=False)]
    assert lost == expected
    assert sum(lost) >= 2
    over = [terminated for _, _, terminated, _, _ in given]
    assert over.index(True) > lost.index(True)
    evaluation = make_atari({"game": "breakout", "evaluation": True})
    assert LIFE_LOST not in play(evaluation, 1)[1][0][-1]


@pytest.mark.parametrize(
    ("env_config", "parts"),
    [
        ({}, ["env_config.game", "missing"]),
        ({"game": "pung"}, ["pung", "'pong'"]),
        ({"game": "pong", "stiky_actions": 0.25}, ["stiky_actions", "'sticky_actions'"]),
        ({"game": "pong", "sticky_actions": 1.5}, ["sticky_actions", "1.5", "[0, 1)"]),
        ({"game": "pong", "frame_stack": 0}, ["frame_stack", "0", ">= 1"]),
        ({"game": "pong", "max_episode_steps": "long"}, ["max_episode_steps", "'long'"]),
        ({"game": "pong", "terminal_on_life_loss": 1}, ["terminal_on_life_loss", "1", "true"]),
    ],
)
def test_bad_settings_are_named(env_config, parts):
    with pytest.raises(ValueError, match="env_config") as error:
        make_atari(env_config)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize("package", ["ale_py", "cv2"])
def test_a_missing_package_is_named_with_what_installs_it(package, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(ModuleNotFoundError, match="pip install"):
        make_atari({"game": "pong"})


def test_config_knows_the_frames_of_its_environments():
    atari = QWRConfig().environment("Atari100k", env_config={"game": "pong"})
    assert frame_stack_of(atari) == 4
    assert frame_stack_of(atari.copy().environment(env_config={"frame_stack": 2})) == 2
    assert frame_stack_of(QWRConfig().environment("Hopper-v5")) == 1
    assert frame_stack_of(QWRConfig().environment("Mine-v0").training(frame_stack=3)) == 3


def test_evaluation_has_the_evaluation_protocol():
    config = QWRConfig().environment("Atari100k", env_config={"game": "pong", "noop_max": 3})
    config.evaluation(evaluation_config={"explore": False, "env_config": {"noop_max": 5}})
    evaluation = config.get_evaluation_config_object()
    assert evaluation.env_config == {"game": "pong", "noop_max": 5, "evaluation": True}
    assert config.env_config == {"game": "pong", "noop_max": 3}


def policy_for(observation_shape, **training):
    config = QWRConfig().environment("Some-v0").training(frame_stack=2, **training)
    space = gym.spaces.Box(0, 255, observation_shape, np.uint8)
    return QWRTorchPolicy(space, gym.spaces.Discrete(3), config.to_dict() | {"worker_index": 1})


def batch_of(frames, rewards, lost=()):
    """Returns the steps of an episode through the frames; the first stack repeats its frame."""
    stacks = np.stack([np.stack([frames[max(t - 1, 0)], frames[t]]) for t in range(len(frames))])
    steps = len(rewards)
    return SampleBatch(
        {
            SampleBatch.OBS: stacks[:-1],
            SampleBatch.NEXT_OBS: stacks[1:],
            SampleBatch.ACTIONS: np.arange(steps) % 3,
            SampleBatch.REWARDS: np.array(rewards, np.float32),
            SampleBatch.TERMINATEDS: np.zeros(steps, bool),
            SampleBatch.TRUNCATEDS: np.zeros(steps, bool),
            SampleBatch.ENV_ID: np.full(steps, 7),
            SampleBatch.T: np.arange(steps),
            SampleBatch.ACTION_DIST_INPUTS: np.arange(3 * steps, dtype=np.float32).reshape(-1, 3),
            NEXT_INFOS: [{LIFE_LOST: t in lost} for t in range(steps)],
        }
    )


def test_fragments_keep_each_frame_once_and_end_with_a_life():
    policy = policy_for((2, 20, 20), reward_clip=1.0)
    frames = np.arange(7, dtype=np.uint8)[:, None, None] * np.ones((20, 20), np.uint8)
    batch = batch_of(frames, [0, 5, -3, 0.5, 0, 1], lost=[2])
    first, second = fragments_of(policy, batch)
    assert (first.start, len(first), first.terminated, first.done) == (0, 3, True, True)
    assert (second.start, len(second), second.terminated, second.done) == (3, 3, False, False)
    assert first.obs[:, 0, 0].tolist() == [0, 1, 2]
    assert first.context[:, 0, 0].tolist() == [0]
    assert second.obs[:, 0, 0].tolist() == [3, 4, 5, 6]
    assert second.context[:, 0, 0].tolist() == [2]
    assert first.rewards.tolist() == [0, 1, -1]
    assert second.rewards.tolist() == [0.5, 0, 1]
    assert first.episode == second.episode
    # Another process with the same seed may give an episode the same number.
    [other, _] = fragments_of(policy_for((2, 20, 20)), batch)
    assert other.episode != first.episode
    assert second.action_dist_inputs[:3].tolist() == [[9, 10, 11], [12, 13, 14], [15, 16, 17]]


def test_observations_that_are_no_stacks_are_refused():
    policy = policy_for((2, 20, 20))
    batch = batch_of(np.zeros((4, 20, 20), np.uint8), [0, 0, 0])
    batch[SampleBatch.OBS][1, 0] = 9
    with pytest.raises(ValueError, match="frame_stack is 2"):
        fragments_of(policy, batch)


def test_life_loss_counts_from_each_reset():
    class Game(gym.Env):
        observation_space, action_space = gym.spaces.Discrete(2), gym.spaces.Discrete(2)
        lives = 3

        def reset(self, *, seed=None, options=None):
            return 0, {"lives": self.lives}

        def step(self, action):
            self.lives -= int(action)
            return 0, 0.0, False, False, {"lives": self.lives}

    env = LifeLoss(Game())
    env.reset()
    assert [env.step(action)[-1][LIFE_LOST] for action in (0, 1, 0)] == [False, True, False]
    env.unwrapped.lives = 3
    env.reset()
    assert not env.step(0)[-1][LIFE_LOST]


def test_preprocessing_is_gymnasiums():
    env = make_atari({"game": "pong"})
    wrappers = []
    while isinstance(env, gym.Wrapper):
        wrappers.append(type(env))
        env = env.env
    assert AtariPreprocessing in wrappers


class Shapes(gym.Env):
    """An environment with observations of the given shapes, in order."""

    observation_space = gym.spaces.Box(-1, 1, (2, 2))
    action_space = gym.spaces.Discrete(2)

    def __init__(self, *shapes):
        self.shapes = list(shapes)

    def reset(self, *, seed=None, options=None):
        return np.zeros(self.shapes.pop(0)), {}

    def step(self, action):
        return np.zeros(self.shapes.pop(0)).tolist(), 0.0, False, False, {}


def test_an_observation_of_another_shape_than_its_space_is_named():
    named = r"environment Shapes of rollout worker 3: "
    env = require_observation_shape(Shapes((2, 2), (2, 2), (4,)), 3)
    assert type(env) is Shapes  # no wrapper, which would hide the environment's own attributes
    env.reset()
    env.step(0)
    with pytest.raises(ValueError, match=named + r"step .*shape \(4,\), .* has \(2, 2\)"):
        env.step(0)
    with pytest.raises(ValueError, match=named + r"reset .*shape \(2,\), .* has \(2, 2\)"):
        require_observation_shape(Shapes((2,)), 3).reset()
