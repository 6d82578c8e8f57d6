"""Training in one process without Ray."""

import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from qwr_rllib.learning.config import defaults_of, steps_per_result
from qwr_rllib.learning.networks import QWRNetworks
from qwr_rllib.local import LocalTrainer, Runner
from qwr_rllib.local import trainer as local
from qwr_rllib.replay.layout import Slot

FEW = {"n_interactions": 30, "n_critic_steps": 3, "n_actor_steps": 3, "train_batch_size": 8}


class Counting(gym.Env):
    """Observation (episode, step); reward 1; even episodes end at 7, odd ones are cut at 5."""

    def __init__(self, action_space, limit=None):
        self.action_space, self.limit = action_space, limit
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.taken, self.episode = [], -1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.episode = 0, self.episode + 1
        return np.array([self.episode, 0], np.float32), {}

    def step(self, action):
        self.taken.append(action)
        self.t += 1
        cut = self.episode % 2 == 1 and self.t == 5
        return np.array([self.episode, self.t], np.float32), 1.0, self.t == 7, cut, {}


BOX = gym.spaces.Box(np.array([-2, 0], np.float32), np.array([2, 10], np.float32))


def trainer(monkeypatch, action_space, **changes):
    monkeypatch.setattr(local, "make_env", lambda config, evaluation=False: Counting(action_space))
    return LocalTrainer(defaults_of("QWR") | {"env": "x", "seed": 1, **FEW, **changes})


@pytest.mark.parametrize("space", [BOX, gym.spaces.Discrete(3)], ids=["box", "discrete"])
def test_rows_are_those_of_the_environment(monkeypatch, space):
    trained = trainer(monkeypatch, space)
    trained.train()
    columns = trained.storage.columns
    rows = np.flatnonzero(columns["kind"] == Slot.ROW)
    # Episodes have 7 and 5 steps in turn: 7 + 5 + 7 + 5, and 6 of the next.
    assert sorted(map(tuple, columns["obs"][rows].astype(int).tolist())) == [
        (episode, t) for episode, steps in enumerate([7, 5, 7, 5, 6]) for t in range(steps)
    ]
    ends = columns["obs"][rows][columns["terminateds"][rows]].astype(int).tolist()
    assert sorted(ends) == [[0, 6], [2, 6]]
    assert trained.num_env_steps == 30
    assert list(trained.runner.returns) == [7, 5, 7, 5]
    assert all(space.contains(action) for action in trained.runner.env.taken)


def test_an_iteration_may_be_one_episode(monkeypatch):
    trained = trainer(monkeypatch, BOX, batch_mode="complete_episodes")
    steps = []
    for _ in range(3):
        trained.train()
        steps.append(trained.num_env_steps)
    assert steps == [7, 12, 19]


def test_rewards_are_clipped_in_the_replay_alone(monkeypatch):
    trained = trainer(monkeypatch, BOX, reward_clip=0.25)
    trained.train()
    rows = trained.view.rows
    assert set(trained.view.columns["rewards"][rows].tolist()) == {0.25}
    assert list(trained.runner.returns) == [7, 5, 7, 5]


def test_actions_are_scaled_to_the_environments_range():
    env = Counting(BOX)
    spec = local.spec_of(env, {"frame_stack": 1, "env": "x"})
    networks = QWRNetworks(spec, hiddens=(8,))
    with torch.no_grad():
        networks.actor.head.weight.zero_()
        networks.actor.head.bias.copy_(torch.tensor([0.5, -3.0]))
    runner = Runner(env, networks, spec, 0)
    assert runner.evaluate(1) == [7]
    np.testing.assert_allclose(env.taken[0], [1.0, 0.0])  # the second is clipped


def test_a_restored_trainer_goes_on_as_it_would_have(monkeypatch, tmp_path):
    def weights(trained):
        return torch.nn.utils.parameters_to_vector(trained._networks.parameters()).detach().clone()

    first = trainer(monkeypatch, BOX, n_interactions=7)  # episodes end with the iteration
    first.train()
    first.save(tmp_path)
    saved = weights(first)
    second = trainer(monkeypatch, BOX, n_interactions=7, seed=2)
    second.restore(tmp_path)
    assert torch.equal(weights(second), saved)
    assert (second.iteration, second.num_env_steps) == (1, 7)
    assert second.storage.num_rows == second.view.num_rows == 7
    # The same rows give the same minibatches.
    assert first.learner.train(first.view)["critic_loss"] == pytest.approx(
        second.learner.train(second.view)["critic_loss"], rel=1e-6
    )
    assert torch.equal(weights(first), weights(second))
    second.train()
    assert second.storage.num_rows == 14  # episode numbers are not reused


def test_checkpoints_that_cannot_be_gone_on_from_are_named(monkeypatch, tmp_path):
    trained = trainer(monkeypatch, BOX)
    trained.train()
    trained.save(tmp_path)
    replay = (tmp_path / "replay.npz").read_bytes()
    trained.train()
    trained.save(tmp_path)
    (tmp_path / "replay.npz").write_bytes(replay)  # killed between the two files
    with pytest.raises(ValueError, match=r"incomplete: replay.npz is after 30 rows.*after 60"):
        trainer(monkeypatch, BOX).restore(tmp_path)
    trained.save(tmp_path, replay=False)
    with pytest.raises(ValueError, match=r"has no replay\.npz to go on from"):
        trainer(monkeypatch, BOX).restore(tmp_path)
    again = trainer(monkeypatch, BOX)
    again.restore(tmp_path, replay=False)
    assert again.evaluate(2) == [7, 5]


def test_the_script_evaluates_a_run_that_ended_but_does_not_train_it_without_its_replay(
    monkeypatch, tmp_path
):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import in_process

    def run(iterations):
        command = ["Pendulum-v1", "--iterations", iterations, "--config", json.dumps(FEW)]
        command += ["--episodes", 1, "--checkpoint", tmp_path / "checkpoint"]
        command += ["--out", tmp_path / "result.json"]
        return CliRunner().invoke(in_process.main, list(map(str, command)))

    assert run(1).exit_code == run(1).exit_code == 0
    lines = (tmp_path / "result.json").read_text()
    refused = run(2)
    assert refused.exit_code == 2
    assert "has no replay.npz to go on from: its run ended at 30 steps" in refused.stderr
    assert (tmp_path / "result.json").read_text() == lines


@pytest.mark.parametrize(
    ("space", "changes", "message"),
    [
        (gym.spaces.MultiBinary(3), {}, r"Box or Discrete action space, got MultiBinary\(3\)"),
        (BOX, {"normalize_actions": False}, "normalize_actions true"),
        (BOX, {"margin": 0}, "margin must be an integer >= 1, got 0"),
    ],
)
def test_what_it_does_not_take_is_named(monkeypatch, space, changes, message):
    with pytest.raises(ValueError, match=message):
        trainer(monkeypatch, space, **changes)


@pytest.mark.parametrize(("least", "steps"), [(0, 6), (6, 6), (7, 12), (14, 18)])
def test_a_result_may_be_of_several_iterations(monkeypatch, least, steps):
    several = {"n_interactions": 6, "min_sample_timesteps_per_iteration": least}
    trained = trainer(monkeypatch, BOX, **several)
    assert steps_per_result(trained.config) == steps
    for count in (1, 2):
        trained.train()
        assert (trained.iteration, trained.num_env_steps) == (count, count * steps)
    assert trained.learner.num_actor_updates == FEW["n_actor_steps"] * 2 * steps // 6


def test_it_learns_which_action_is_rewarded(monkeypatch):
    class Bandit(Counting):
        def step(self, action):
            obs, _, *others = super().step(action)
            return obs, float(action == 2), *others

    monkeypatch.setattr(
        local, "make_env", lambda config, evaluation=False: Bandit(gym.spaces.Discrete(4))
    )
    settings = {"n_critic_steps": 60, "n_actor_steps": 60, "n_interactions": 200}
    fast = {"critic_lr": 5e-3, "actor_lr": 5e-3, "train_batch_size": 64}
    trained = LocalTrainer(defaults_of("QWR") | {"env": "x", "seed": 0} | settings | fast)
    for _ in range(4):
        trained.train()
    assert trained.evaluate(2) == [7, 5]  # random actions give a quarter of this
