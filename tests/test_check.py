"""`rllib check` on environments that are fit, odd and broken."""

import json
import re

import gymnasium as gym
import numpy as np
import pytest
import ray
from click.testing import CliRunner
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete
from ray.tune.registry import register_env

from qwr_rllib.cli import checking, qwr, rllib
from qwr_rllib.envs.atari import ATARI


class Fit(gym.Env):
    """Episodes of 20 steps with a reward of 0 to 1."""

    observation_space: gym.Space = Box(-1, 1, (2,))
    action_space: gym.Space = Box(-2, 6, (1,))
    length = 20

    def __init__(self, config=None):
        assert not config

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.observation(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.t += 1
        return self.observation(), self.reward(), False, self.t >= self.length, {}

    def observation(self):
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)

    def reward(self):
        return float(self.np_random.uniform())


class Image(Fit):
    observation_space = Box(0, 1, (36, 36, 3))
    action_space = Discrete(9)

    def observation(self):
        return self.np_random.uniform(0, 1, (36, 36, 3)).astype(np.float32)


class Parts(Fit):
    observation_space = Dict(goal=Discrete(3), picture=Box(0, 255, (4, 4, 1), np.uint8))

    def observation(self):
        return {"goal": int(self.np_random.integers(3)), "picture": np.zeros((4, 4, 1), np.uint8)}


class Endless(Fit):
    length = 10**9


class Long(Fit):
    length = 700


class Sparse(Fit):
    def reward(self):
        return 0.0


class Loud(Fit):
    def reward(self):
        return 5000 * super().reward()


class Strays(Fit):
    def observation(self):
        return super().observation() * (100 if self.t > 5 else 1)


class Nan(Fit):
    def observation(self):
        return super().observation() * (np.nan if self.t == 7 else 1)


class NanReward(Fit):
    def reward(self):
        return np.nan if self.t == 3 else 1.0


class ArrayReward(Fit):
    def reward(self):
        return np.ones(1) if self.t > 3 else 1.0


class Shape(Fit):
    def observation(self):
        return np.zeros(3 if self.t == 9 else 2, np.float32)


class Crash(Fit):
    def reward(self):
        return 1 / (11 - self.t)


class Unseeded(Fit):
    def observation(self):
        return np.random.default_rng().uniform(-1, 1, 2).astype(np.float32)


class Combinations(Fit):
    action_space = MultiDiscrete([2, 3])


class Integers(Fit):
    action_space = Box(0, 5, (2,), np.int32)


class Stranger:
    observation_space = Fit.observation_space
    action_space = Fit.action_space

    def close(self):
        pass


def check(env, *arguments, group=rllib):
    """Runs `check`; returns its exit code and its output with single spaces."""
    if isinstance(env, type):
        register_env("checked", lambda config: env(config) if env is not Stranger else env())
        env = "checked"
    result = CliRunner().invoke(group, ["check", env, *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, re.sub(r"\s+", " ", result.output)


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    monkeypatch.setattr(checking, "MOST_SECONDS", np.inf)  # the machine may be busy
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("started a Ray"))
    yield
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ("Pendulum-v1", ["vectors of 3 numbers, normalised by their running mean",
                         "by 1 number, scaled from [-1, 1] to the bounds and clipped there",
                         "5 with random actions, of 200 to 200 steps",
                         "an iteration of 1000 steps is 5.0 episodes",
                         "time limit 200 steps", "[256, 256] for actor and critic, 200962 param"]),
        ("CartPole-v1", ["by 2 discrete actions, all of them weighed", "time limit 500 steps",
                         "Note: every reward was 1"]),
        (Image, ["images of 36 x 36 with 3 channels, in [0, 1]",
                 "by 9 discrete actions, 8 of them sampled",
                 "convolutions [[16, 8, 4], [32, 4, 2]], then [256]", "time limit none"]),
        (Parts, ["vectors of 19 numbers, flattened, discrete parts one-hot",
                 "Note: the image in the observations is flattened"]),
        (Fit, ["rewards 0.00", "steps/s alone; the 1000 of an iteration take"]),
        (Endless, ["Note: no episode ended within 1000 steps and there is no time limit",
                   "gymnasium.wrappers.TimeLimit"]),
        (Sparse, ["Note: every reward was 0: random actions tell nothing"]),
        (Loud, ["Note: rewards are of the order of 2e+03", "TransformReward"]),
        (Strays, ["observations are not in the observation space (its bounds or its dtype)"]),
    ],
)  # fmt: skip
def test_what_qwr_does_with_it_is_said(env, said):
    code, output = check(env)
    assert code == 0, output
    assert output.endswith("No problem found. ")
    for text in said:
        assert text in output


def test_an_environment_that_is_fit_has_no_note():
    for group in (rllib, qwr):
        code, output = check(Fit, group=group)
        assert code == 0
        assert "Note" not in output
        assert "Problem" not in output


@pytest.mark.parametrize(
    ("env", "problem"),
    [
        (Nan, "step 7 of episode 1: ValueError: the observation has a NaN or infinite value"),
        (NanReward, "step 3 of episode 1: ValueError: the reward is nan"),
        (ArrayReward, "step 4 of episode 1: ValueError: the reward must be a number, got array"),
        (Shape, "step 9 of episode 1: ValueError: environment Shape of rollout worker 0: step "
                "returned an observation of shape (3,), its observation_space has (2,)"),
        (Crash, "step 11 of episode 1: ZeroDivisionError: division by zero"),
        (Unseeded, "Gymnasium's checker: "),
        (Combinations, "QWR needs a Box or Discrete action space, got MultiDiscrete([2 3])"),
        (Integers, "QWR needs float32 or float64 actions, got integers in Box(0, 5, (2,), int32)"),
        (Stranger, "Gymnasium's checker: The environment must inherit from the gymnasium.Env"),
    ],
)  # fmt: skip
def test_what_is_broken_is_named(env, problem):
    code, output = check(env)
    assert code == 1
    assert f"Problem: {problem}" in output
    assert output.endswith("QWR cannot be trained on it as it is. ")


def test_episodes_are_held_against_the_settings():
    config = {"n_interactions": 500, "margin": 3}
    code, output = check(Long, "--config", json.dumps(config))
    assert code == 0
    assert "an episode can be longer than an iteration (500 steps)" in output
    code, output = check(Fit, "--algo", "AWR", "--steps", 40)
    assert code == 0
    assert "AWR on checked" in output
    assert "2 with random actions, of 20 to 20 steps" in output
    assert "episodes are shorter than margin 60" in output
    code, output = check(Loud, "--config", '{"reward_clip": 1}')
    assert "clipped to ±1" in output
    assert "Note" not in output


def test_settings_for_the_environment_are_used(tmp_path):
    pytest.importorskip("ale_py")
    pytest.importorskip("cv2")
    code, output = check(ATARI, "--config", '{"env_config": {"game": "pong"}}', "--steps", 50)
    assert code == 0, output
    assert "images of 84 x 84 with 4 channels, scaled from [0, 255] to [0, 1], 4 frames" in output
    assert "by 6 discrete actions, all of them weighed" in output
    assert "time limit 2000 steps" in output


def test_environments_of_ones_own(tmp_path):
    (tmp_path / "own.py").write_text(
        "import gymnasium as gym\n"
        "from gymnasium.envs.classic_control import PendulumEnv\n"
        "gym.register('Own-v0', PendulumEnv, max_episode_steps=30)\n"
    )
    (tmp_path / "run.yaml").write_text("imports: [own]\nrun:\n  run: QWR\n  env: Own-v0\n")
    code, output = check("Own-v0", "--file", tmp_path / "run.yaml", "--steps", 90)
    assert code == 0, output
    assert "time limit 30 steps" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Pendulun-v1"], "cannot make env 'Pendulun-v1'"),
        (["Pendulum-v1", "--config", '{"betta": 1}'], "unknown config key 'betta'; did you mean"),
        (["Pendulum-v1", "--config", '{"lr": 1}'], "lr has no effect, set critic_lr and actor_lr"),
        (["Pendulum-v1", "--config", "1"], "expected an object"),
        (["Pendulum-v1", "--algo", "PPO"], "'PPO' is not one of"),
        (["Pendulum-v1", "--file", "missing.yaml"], "missing.yaml"),
        ([], "Missing argument 'ENV'"),
    ],
)
def test_wrong_usage(arguments, message):
    result = CliRunner().invoke(rllib, ["check", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr
