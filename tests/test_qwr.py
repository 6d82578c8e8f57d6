"""The Algorithm on a real local Ray: counts, determinism, checkpoints, failures, bad input."""

import os
import random
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import ray
import torch
from gymnasium.envs.classic_control import PendulumEnv
from ray import cloudpickle
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.policy.policy import Policy
from ray.rllib.policy.sample_batch import convert_ma_batch_to_sample_batch
from ray.tune.registry import register_env

from qwr_rllib import QWR, QWRConfig
from qwr_rllib.algorithms.policy import QWRTorchPolicy
from qwr_rllib.algorithms.qwr import RefusedRowsError
from qwr_rllib.replay.actor import Receipt
from qwr_rllib.sampling.collector import Collector, RolloutWorkers

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

SMALL = {
    "n_interactions": 200,
    "n_critic_steps": 20,
    "n_actor_steps": 20,
    "target_update_freq": 10,
    "train_batch_size": 32,
    "replay_capacity": 1000,
    "learner_threads": 1,
}


@pytest.fixture
def build():
    algos = []

    def build(env="Pendulum-v1", num_env_runners=0, num_envs=1, evaluation=None, **training):
        config = (
            QWRConfig()
            .environment(env)
            .env_runners(num_env_runners=num_env_runners, num_envs_per_env_runner=num_envs)
            .debugging(seed=3)
            .evaluation(**(evaluation or {}))
            .training(**SMALL | training)
        )
        algos.append(config.build_algo())
        return algos[-1]

    yield build
    for algo in algos:
        algo.stop()


def weights(algo):
    return {name: value.clone() for name, value in algo.learner.networks.state_dict().items()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=0)


def test_an_iteration_makes_exactly_what_the_config_says(build):
    algo = build(
        num_env_runners=2,
        num_envs=2,
        evaluation={"evaluation_interval": 2, "evaluation_duration": 2},
    )
    for iteration in (1, 2):
        result = algo.train()
        learner, replay = result["learner"], result["replay"]
        assert result["num_env_steps_sampled_lifetime"] == 200 * iteration
        assert replay["num_rows_inserted_lifetime"] == replay["num_rows"] == 200 * iteration
        assert learner["num_critic_updates_lifetime"] == 20 * iteration
        assert learner["num_actor_updates_lifetime"] == 20 * iteration
        assert learner["num_target_updates_lifetime"] == 2 * iteration
        assert np.isfinite(list(learner.values())).all()
        assert 1 <= learner["weight_ess"] <= 8
    assert algo.view.num_rows == 400
    evaluation = result["evaluation"]["env_runners"]
    assert evaluation["num_episodes"] == 2
    assert -2000 < evaluation["episode_return_mean"] < 0
    # Two workers with two environments each: four unfinished episodes of 200 steps.
    assert replay["num_episodes"] == 4


@pytest.mark.parametrize("num_env_runners", [0, 2])
def test_an_iteration_may_be_a_whole_episode_of_each_worker(build, num_env_runners):
    class Lengths(gym.Env):
        """Episodes of 3, 4, 5, ... steps."""

        observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

        def __init__(self, config=None):
            self.limit = 2

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.t, self.limit = 0, self.limit + 1
            return np.zeros(2, np.float32), {}

        def step(self, action):
            self.t += 1
            return np.zeros(2, np.float32), 1.0, self.t == self.limit, False, {}

    register_env("lengths", Lengths)
    config = (
        QWRConfig()
        .environment("lengths")
        .env_runners(num_env_runners=num_env_runners, batch_mode="complete_episodes")
        .training(**SMALL | {"n_interactions": 7})
    )
    algo = config.build_algo()
    workers, steps = max(1, num_env_runners), []
    for _ in range(3):
        steps.append(algo.train()["num_env_steps_sampled_lifetime"])
    # 3, then 4, then 5 steps of each; RLlib's check of the environment may use the first episode.
    lengths = np.diff([0, *steps]) / workers
    assert list(lengths) == [lengths[0], lengths[0] + 1, lengths[0] + 2]
    assert algo.view.columns["terminateds"][algo.view.rows].sum() == 3 * workers
    algo.stop()
    with pytest.raises(ValueError, match="num_envs_per_env_runner must be 1 with batch_mode"):
        config.copy(copy_frozen=False).env_runners(num_envs_per_env_runner=2).validate()


def test_the_normaliser_sees_each_collected_row_once(build):
    algo = build()
    algo.train()
    algo.train()
    normalizer = algo.learner.networks.normalizer
    obs = algo.view.columns["obs"][algo.view.rows]
    assert normalizer.count.item() == 400
    torch.testing.assert_close(normalizer.mean, obs.mean(0), rtol=1e-4, atol=1e-5)


def test_rollout_workers_get_the_trained_actor_and_no_critic(build):
    algo = build(num_env_runners=1)
    algo.train()
    (remote,) = algo.env_runner_group.foreach_env_runner(
        lambda worker: worker.get_policy().get_weights(), local_env_runner=False
    )
    own = algo.get_policy().get_weights()
    assert own.keys() == remote.keys()
    assert not any("critic" in name for name in remote)
    for name, value in own.items():
        np.testing.assert_array_equal(remote[name], value)


def test_the_same_seed_gives_the_same_weights(build):
    runs = []
    for _ in range(2):
        algo = build()
        algo.train()
        algo.train()
        runs.append(weights(algo))
    assert_equal(*runs)
    other = build().config.copy(copy_frozen=False).debugging(seed=4).build_algo()
    other.train()
    other.train()
    name = "actor.head.weight"
    assert not torch.equal(weights(other)[name], runs[0][name])
    other.stop()


def test_evaluation_and_exploration_actions(build):
    policy = build().get_policy()
    obs = np.array([0.1, 0.2, 0.3], np.float32)
    mode, _, extra = policy.compute_single_action(obs, explore=False)
    np.testing.assert_array_equal(mode, extra["action_dist_inputs"])
    samples = [policy.compute_single_action(obs, explore=True)[0] for _ in range(300)]
    np.testing.assert_allclose(np.std(samples), 0.4, rtol=0.15)
    np.testing.assert_allclose(np.mean(samples), mode, atol=0.1)


@pytest.mark.parametrize("actions", [3, "all", 8])
def test_discrete_actions(build, actions):
    result = build("Acrobot-v1", n_action_samples=actions).train()
    assert result["num_env_steps_sampled_lifetime"] == 200
    assert np.isfinite(result["learner"]["actor_loss"])


class Matrices(gym.Env):
    """Observations and actions that are matrices; episodes of 7 steps."""

    observation_space = gym.spaces.Box(-1, 1, (2, 3))
    action_space = gym.spaces.Box(-2, 2, (2, 2))

    def __init__(self, config):
        self.bad = config.get("bad", 0)
        self.count = 0

    def _obs(self):
        obs = np.full((2, 3), self.t / 10, np.float32)
        return obs * np.nan if self.bad and self.count % self.bad == 0 else obs

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return self._obs(), {}

    def step(self, action):
        assert action.shape == (2, 2)
        assert not (np.abs(action) > 2).any()
        self.t += 1
        self.count += 1
        return self._obs(), 1.0, self.t == 7, False, {}


class Timed(gym.Env):
    """Episodes of given lengths; the last length repeats. RLlib resets twice before the first."""

    observation_space = gym.spaces.Box(-1, 1, (3,))
    action_space = gym.spaces.Box(-1, 1, (1,))

    def __init__(self, *lengths):
        self.lengths = [lengths[0], *lengths]

    def reset(self, *, seed=None, options=None):
        self.t = 0
        self.length = self.lengths.pop(0) if len(self.lengths) > 1 else self.lengths[0]
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.zeros(3, np.float32), 1.0, self.t == self.length, False, {}


@pytest.fixture(scope="module", autouse=True)
def environments(local_ray):
    register_env("matrices", Matrices)
    register_env("long", lambda config: Timed(130))
    register_env(
        "endless and short",
        lambda config: Timed(20) if config.vector_index else Timed(110, 10**6),
    )
    register_env("rarely-bad", lambda config: Matrices({"bad": 100}))
    register_env("often-bad", lambda config: Matrices({"bad": 10}))


def test_observations_and_actions_of_any_shape(build):
    algo = build("matrices")
    result = algo.train()
    assert result["env_runners"]["episode_return_mean"] == 7
    assert result["env_runners"]["episode_len_mean"] == 7
    # 200 = 28 episodes of 7 and an unfinished one.
    assert result["replay"]["num_episodes"] == 29


def test_bad_rows_are_refused_and_the_rest_goes_on(build, caplog):
    result = build("rarely-bad").train()
    # The observation of the first reset, the states after steps 100 and 200, and the step before
    # each of these two states.
    assert result["replay"]["num_rows_refused_lifetime"] == 1 + 2 + 1
    assert result["replay"]["num_rows"] == 196
    assert result["num_env_steps_sampled_lifetime"] == 200
    assert "obs has a NaN or infinite value" in caplog.text
    assert "episode" in caplog.text


def test_too_many_bad_rows_end_the_run(build):
    algo = build("often-bad")
    # Every tenth state, as above; those after steps 70 and 140 begin an episode.
    with pytest.raises(
        RefusedRowsError, match=r"38 of 200 rows were refused.*max_refused_fraction 0.1"
    ):
        algo.train()


class Once(gym.Env):
    """Observation ``(t, 0)``, of which one value or reward is bad; the episode never ends."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,))
    action_space = gym.spaces.Box(-1, 1, (1,))

    def __init__(self, bad: str):
        self.bad = bad

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.t += 1
        obs, reward = np.array([self.t, 0], np.float32), 1.0
        if self.t == 57:
            obs[1] = {"obs": np.nan}.get(self.bad, 0)
            reward = {"rewards": np.nan}.get(self.bad, 1.0)
        return obs, reward, False, False, {}


@pytest.mark.parametrize(
    ("bad", "refused"),
    # The reward is that of row 56. A bad state 57 also spoils row 56, which led to it.
    [("obs", [56, 57]), ("rewards", [56]), ("actions", [57]), ("action_dist_inputs", [56, 57])],
)
def test_one_bad_value_does_not_end_a_run(build, bad, refused):
    register_env("once", lambda config: Once(bad))
    algo = build("once")
    policy, compute = algo.get_policy(), algo.get_policy().compute_actions_from_input_dict

    def spoiled(input_dict, **kwargs):
        actions, state, extra = compute(input_dict, **kwargs)
        if input_dict["obs"][0][0] == 57:
            if bad == "actions":
                actions = actions * np.nan
            elif bad == "action_dist_inputs":
                extra[bad] = extra[bad] * np.nan
        return actions, state, extra

    policy.compute_actions_from_input_dict = spoiled
    results = [algo.train(), algo.train()]
    for number, result in enumerate(results, 1):
        assert result["replay"]["num_rows_refused_lifetime"] == len(refused)
        assert result["replay"]["num_rows"] == 200 * number - len(refused)
        assert np.isfinite(list(result["learner"].values())).all()
    columns = algo.view.columns
    rows = algo.view.rows.numpy()
    times = columns["obs"][:, 0].numpy()
    assert sorted(times[rows]) == [t for t in range(400) if t not in refused]
    # The state after each row is the next state: no trajectory spans the gap.
    np.testing.assert_array_equal(times[algo.view.next.numpy()[rows]], times[rows] + 1)


def test_an_observation_of_another_shape_ends_the_run_and_is_named(build):
    class Misshapen(gym.Env):  # defined here, so that rollout workers get it by value
        """An environment in which an episode's last observation has another shape."""

        observation_space = gym.spaces.Box(-1, 1, (2,))
        action_space = gym.spaces.Box(-1, 1, (1,))

        def reset(self, *, seed=None, options=None):
            self.t = 0
            return np.zeros(2), {}

        def step(self, action):
            self.t += 1
            last = self.t == 10
            return np.zeros(2 - last), 1.0, False, last, {}

    register_env("misshapen", lambda config: Misshapen())
    algo = build("misshapen", num_env_runners=1)
    message = r"environment Misshapen of rollout worker 1: step returned .* \(1,\), .* has \(2,\)"
    with pytest.raises(RuntimeError, match=message):
        algo.train()


def test_a_killed_rollout_worker_does_not_end_the_run(build):
    algo = build(num_env_runners=2)
    algo.train()
    (pid, _) = algo.env_runner_group.foreach_env_runner(
        lambda worker: os.getpid(), local_env_runner=False
    )
    os.kill(pid, signal.SIGKILL)
    result = algo.train()
    assert result["num_env_steps_sampled_lifetime"] == 400


def test_a_restored_run_goes_on_where_the_saved_one_was(build, tmp_path):
    algo = build()
    algo.train()
    algo.train()
    algo.save(str(tmp_path / "checkpoint"))
    results, trained = [], []
    for _ in range(2):
        restored = QWR.from_checkpoint(tmp_path / "checkpoint")
        assert_equal(weights(restored), weights(algo))
        saved, loaded = (each.learner.state_dict() for each in (algo, restored))
        torch.testing.assert_close(saved, loaded, rtol=0, atol=0)
        saved, loaded = (ray.get(each.replay.state_arrays.remote()) for each in (algo, restored))
        np.testing.assert_equal(saved, loaded)
        torch.testing.assert_close(algo.view.rows, restored.view.rows)
        results.append(restored.train())
        trained.append(weights(restored))
        restored.stop()
    assert results[0]["training_iteration"] == 3
    assert results[0]["num_env_steps_sampled_lifetime"] == 600
    assert results[0]["learner"]["num_target_updates_lifetime"] == 6
    assert_equal(*trained)
    # The normaliser has not counted the restored rows a second time.
    assert trained[0]["normalizer.count"] == 600


def draws():
    return {"python": random.random(), "numpy": np.random.random(), "torch": torch.rand(1).item()}


def change(file: Path, keys: list[str]) -> None:
    """Removes an entry, found through these keys, from a pickled dictionary of dictionaries."""
    inner = state = cloudpickle.loads(file.read_bytes())
    for key in keys[:-1]:
        inner = inner[key]
    del inner[keys[-1]]
    file.write_bytes(cloudpickle.dumps(state))


def test_a_restore_sets_each_random_state_back(build, tmp_path, caplog):
    algo = build()
    algo.train()
    algo.save(str(tmp_path))
    expected = draws()
    algo.restore(str(tmp_path))
    assert draws() == expected
    QWR.from_checkpoint(str(tmp_path)).stop()
    assert draws() == expected
    assert "random states" not in caplog.text
    # Random states that a checkpoint lacks stay as they are, with a warning.
    change(tmp_path / "algorithm_state.pkl", ["random_states", "torch"])
    algo.restore(str(tmp_path))
    drawn = draws()
    assert drawn.pop("torch") != expected["torch"]
    assert drawn.items() <= expected.items()
    assert "lacks the random states of torch: their numbers begin anew" in caplog.text
    change(tmp_path / "algorithm_state.pkl", ["random_states"])
    algo.restore(str(tmp_path))
    assert "random states of numpy, python, torch" in caplog.text
    algo.train()


@pytest.mark.parametrize(
    ("file", "keys"),
    [
        ("algorithm_state.pkl", ["num_steps_in_view"]),
        ("algorithm_state.pkl", ["config"]),
        ("policies/default_policy/policy_state.pkl", ["learner", "actor_optimizer"]),
        ("policies/default_policy/policy_state.pkl", ["learner"]),
    ],
)
def test_what_a_checkpoint_lacks_is_named_and_nothing_restored(saved, tmp_path, file, keys):
    algo, checkpoint = saved
    place = shutil.copytree(checkpoint, tmp_path / "place")
    change(place / file, keys)
    before = weights(algo)
    lacked = "actor_optimizer, .*target_critic" if keys == ["learner"] else keys[-1]
    message = rf"checkpoint {place}.* lacks .*{lacked}.*of another version or algorithm"
    for restore in (algo.restore, QWR.from_checkpoint):
        with pytest.raises(ValueError, match=message) as error:
            restore(str(place))
        assert "\n" not in str(error.value)
    assert_equal(weights(algo), before)


@pytest.fixture(scope="module")
def saved(local_ray, tmp_path_factory):
    """An algorithm after two iterations, and its checkpoint after the first."""
    place = tmp_path_factory.mktemp("saved")
    config = QWRConfig().environment("Pendulum-v1").env_runners(num_env_runners=0)
    algo = config.debugging(seed=3).training(**SMALL).build_algo()
    algo.train()
    algo.save(str(place))
    algo.train()
    yield algo, place
    algo.stop()


def test_a_checkpoint_is_found_by_any_path_and_its_neighbours_stay(saved, tmp_path, monkeypatch):
    algo, _ = saved
    place = tmp_path / "place"
    place.mkdir()
    (place / "notes.txt").write_text("mine")
    (tmp_path / "link").symlink_to(place)
    monkeypatch.chdir(place)
    for path in (".", str(tmp_path / "link"), "../place/"):
        algo.restore(algo.save(path))
        algo.restore(path)
        assert (place / "notes.txt").read_text() == "mine"
    restored = QWR.from_checkpoint("../link")
    assert_equal(weights(restored), weights(algo))
    restored.stop()
    with pytest.raises(FileExistsError, match=r"notes\.txt"):
        algo.save("notes.txt")


def test_restore_into_an_algorithm_and_a_policy_alone(build, tmp_path):
    algo = build()
    algo.train()
    algo.save(str(tmp_path))
    other = build(num_env_runners=1)
    other.restore(str(tmp_path))
    assert other.train()["replay"]["num_rows"] == 400
    policy = Policy.from_checkpoint(str(tmp_path))["default_policy"]
    obs = np.ones(3, np.float32)
    expected = algo.get_policy().compute_single_action(obs, explore=False)[0]
    np.testing.assert_array_equal(policy.compute_single_action(obs, explore=False)[0], expected)


def test_a_restored_worker_takes_no_step_in_vain(build, tmp_path):
    """With the same seed as before, it would give its episodes names that are in the replay."""
    algo = build()
    algo.train()
    algo.save(str(tmp_path))
    restored = QWR.from_checkpoint(tmp_path)
    before = restored.get_policy().global_timestep
    assert restored.train()["replay"]["num_rows"] == 400
    # The worker acts once more in the state after the last row.
    assert restored.get_policy().global_timestep - before <= 201
    restored.stop()


@pytest.mark.parametrize(("env", "num_envs"), [("long", 1), ("endless and short", 2)])
@pytest.mark.parametrize("how", ["restore", "another algorithm of the same seed"])
def test_no_step_is_lost_when_python_draws_the_same_numbers_again(
    build, tmp_path, env, num_envs, how
):
    """RLlib's episode ids repeat: those of an earlier episode, or of one that still runs."""
    algo = build(env, num_envs=num_envs, replay_capacity=3000)
    for _ in range(2):
        algo.train()
        algo.save(str(tmp_path)) if algo.iteration == 1 else None
    if how == "restore":
        algo.restore(str(tmp_path))
    else:
        build(env, num_envs=num_envs)
    acted, before = algo.get_policy().global_timestep, algo.iteration
    for iteration in range(before + 1, before + 4):
        result = algo.train()
        assert result["num_env_steps_sampled_lifetime"] == 200 * iteration
        assert result["replay"]["num_rows_repeated_lifetime"] == 0
    assert algo.get_policy().global_timestep - acted == 600


def test_the_discount_follows_its_schedule_through_a_restore(build, tmp_path):
    algo = build(gamma=[[0, 0.9], [200, 0.9], [600, 0.98]])
    assert algo.learner.critic.q_scale == pytest.approx(10)
    seen = [algo.train()["learner"]["gamma"] for _ in range(2)]
    algo.save(str(tmp_path))
    restored = QWR.from_checkpoint(str(tmp_path))
    assert restored.learner.gamma == pytest.approx(0.94)
    seen += [restored.train()["learner"]["gamma"] for _ in range(2)]
    restored.stop()
    assert seen == pytest.approx([0.9, 0.94, 0.98, 0.98])


def test_a_changed_learning_rate_survives_a_restore(build, tmp_path):
    algo = build()
    algo.train()
    algo.save(str(tmp_path))
    other = build(critic_lr=1e-5)
    other.restore(str(tmp_path))
    (group,) = other.learner.state_dict()["critic_optimizer"]["param_groups"]
    assert group["lr"] == 1e-5
    assert other.get_policy().config["critic_lr"] == 1e-5


def test_training_without_the_replay_is_refused(build, tmp_path):
    algo = build()
    algo.train()
    algo.save(str(tmp_path))
    restored = Algorithm.from_checkpoint(str(tmp_path))
    with pytest.raises(RuntimeError, match=r"QWR\.from_checkpoint"):
        restored.train()
    restored.stop()


def test_an_interrupted_save_leaves_the_previous_checkpoint_whole(build, tmp_path, monkeypatch):
    algo = build()
    algo.train()
    place = tmp_path / "checkpoint"
    algo.save(str(place))
    before = weights(algo)
    algo.train()

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", interrupted)
        with pytest.raises(KeyboardInterrupt):
            algo.save(str(place))
    restored = QWR.from_checkpoint(place)
    assert_equal(weights(restored), before)
    restored.stop()
    algo.save(str(place))
    restored = QWR.from_checkpoint(place)
    assert_equal(weights(restored), weights(algo))
    restored.stop()
    assert os.listdir(tmp_path) == ["checkpoint"]
    assert not list(place.glob(".*"))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "file", ["replay.npz", "algorithm_state.pkl", "policies/default_policy/policy_state.pkl"]
)
@pytest.mark.parametrize("damage", [truncate, os.remove])
def test_a_damaged_checkpoint_is_refused_whole(build, tmp_path, file, damage):
    algo = build()
    algo.train()
    algo.save(str(tmp_path))
    damage(tmp_path / file)
    before = weights(algo)
    algo.train()
    changed = weights(algo)
    with pytest.raises(ValueError, match=r"checkpoint.*incomplete|does not seem to be valid"):
        algo.restore(str(tmp_path))
    assert not torch.equal(before["actor.head.weight"], changed["actor.head.weight"])
    assert_equal(weights(algo), changed)
    with pytest.raises(ValueError, match=r"checkpoint.*incomplete|does not seem to be valid"):
        QWR.from_checkpoint(tmp_path)


def test_a_checkpoint_of_something_else_is_refused(build, tmp_path):
    algo = build()
    algo.train()
    algo.save(str(tmp_path))
    with pytest.raises(ValueError, match=r"environment 'Pendulum-v1', not 'Acrobot-v1'"):
        build("Acrobot-v1").restore(str(tmp_path))
    other = build(critic_post_gate_layer=True)
    with pytest.raises(ValueError, match=r"another network: critic.post.0.bias has shape None"):
        other.restore(str(tmp_path))
    for changes in ({"gamma": 0.9}, {"q_scale": 10.0}):
        message = r"must divide Q by the checkpoint's number, 100, got 10 \("
        with pytest.raises(ValueError, match=message):
            build(**changes).restore(str(tmp_path))
    build(gamma=[[0, 0.99], [400, 0.995]]).restore(str(tmp_path))
    with pytest.raises(ValueError, match="there is no checkpoint at"):
        QWR.from_checkpoint(tmp_path / "nowhere")


def test_the_losses_of_a_policy_by_hand(build):
    algo = build("CartPole-v1", n_action_samples="all", backup="mean")
    policy, networks = algo.get_policy(), algo.learner.networks
    batch = convert_ma_batch_to_sample_batch(algo.env_runner.sample())
    critic_loss, actor_loss = policy.loss(None, None, batch)

    def tensor(name):
        return torch.as_tensor(np.asarray(batch[name]))

    obs, next_obs = (networks.normalize(tensor(name)) for name in ("obs", "new_obs"))
    probs, next_probs = (
        tensor("action_dist_inputs").softmax(-1),
        networks.actor(next_obs).softmax(-1),
    )

    def q_values(obs):
        actions = [torch.full((len(obs),), action) for action in range(2)]
        return torch.stack([networks.critic(obs, each) for each in actions], -1) / (1 - 0.99)

    values = (next_probs * q_values(next_obs)).sum(-1)
    targets = tensor("rewards") + 0.99 * ~tensor("terminateds") * values
    taken = q_values(obs).gather(-1, tensor("actions").long()[:, None]).squeeze(-1)
    expected = ((1 - 0.99) ** 2 * (taken - targets) ** 2).mean()
    assert critic_loss.item() == pytest.approx(expected.item(), rel=1e-3)

    advantages = q_values(obs) - (probs * q_values(obs)).sum(-1, keepdim=True)
    advantages /= (probs * advantages**2).sum(-1).mean().sqrt() + 1e-5
    weights = advantages.exp().clamp(max=20)
    log_probs = networks.actor(obs).log_softmax(-1)
    expected = -(probs * weights * log_probs).sum(-1).mean()
    assert actor_loss.item() == pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize(
    ("env", "settings"),
    [
        ("CartPole-v1", {"margin": 3}),
        ("Pendulum-v1", {}),
        ("Pendulum-v1", {"critic_type": "v", "actor_actions": "replay"}),
    ],
)
def test_learning_on_a_batch_is_a_step_of_adam_along_each_loss(build, env, settings):
    algo = build(env, target_update_freq=1000, **settings)
    algo.train()
    policy, learner = algo.get_policy(), algo.learner
    batch = convert_ma_batch_to_sample_batch(algo.env_runner.sample())
    assert learner.num_target_updates == 1
    random_state = learner._generator.get_state()
    before = learner.state_dict()
    updates = learner.num_critic_updates, learner.num_actor_updates

    def gradients(loss, module):
        parameters = list(module.parameters())
        return torch.cat([each.reshape(-1) for each in torch.autograd.grad(loss, parameters)])

    def expected_step(state, gradient, lr):
        adam, clip = state["state"][0], learner.config.grad_clip
        gradient = gradient * min(1, clip / gradient.norm().item())
        step = adam["step"].item() + 1
        mean = (0.9 * adam["exp_avg"] + 0.1 * gradient) / (1 - 0.9**step)
        square = (0.999 * adam["exp_avg_sq"] + 0.001 * gradient**2) / (1 - 0.999**step)
        return -lr * mean / (square.sqrt() + learner.config.adam_epsilon)

    def flat(module):
        return torch.cat([each.detach().reshape(-1) for each in module.parameters()]).clone()

    weights = flat(learner.critic), flat(learner.actor)
    critic_loss, _ = policy.loss(None, None, batch)
    critic_step = expected_step(
        before["critic_optimizer"], gradients(critic_loss, learner.critic), learner.config.critic_lr
    )
    learner._generator.set_state(random_state)
    result = policy.learn_on_batch(batch)
    assert result["learner_stats"]["critic_loss"] == pytest.approx(critic_loss.item(), rel=1e-4)
    assert (learner.num_critic_updates, learner.num_actor_updates) == tuple(
        count + 1 for count in updates
    )
    torch.testing.assert_close(flat(learner.critic) - weights[0], critic_step, rtol=2e-2, atol=2e-7)
    assert 0 < (flat(learner.actor) - weights[1]).abs().max() < 20 * learner.config.actor_lr
    losses = [policy.learn_on_batch(batch)["learner_stats"]["critic_loss"] for _ in range(200)]
    assert losses[-1] < 0.8 * losses[0]
    assert learner.num_target_updates == 1
    assert policy.num_grad_updates == 201


def test_the_policy_of_a_rollout_worker_has_nothing_to_learn_with(build):
    algo = build()
    batch = convert_ma_batch_to_sample_batch(algo.env_runner.sample())
    config = algo.config.to_dict() | {"worker_index": 1}
    policy = QWRTorchPolicy(
        algo.get_policy().observation_space, algo.env_runner.env.action_space, config
    )
    for learn in (policy.learn_on_batch, lambda batch: policy.loss(None, None, batch)):
        with pytest.raises(ValueError, match="only the local worker's policy has a critic"):
            learn(batch)


def test_an_environment_class_is_known_by_its_name(build, tmp_path):
    def environment():
        class Own(PendulumEnv):
            def __init__(self, config):
                super().__init__()

        return Own

    algo = build(environment())
    algo.train()
    algo.save(str(tmp_path))
    # A new class with the same name, as in the next run of a script.
    build(environment()).restore(str(tmp_path))


def test_a_replay_of_other_rows_is_refused_whole(build, tmp_path):
    algo = build()
    algo.train()
    algo.save(str(tmp_path))
    with np.load(tmp_path / "replay.npz", allow_pickle=False) as file:
        arrays = dict(file)
    arrays["column_obs"] = arrays["column_obs"][:, :2]
    np.savez(tmp_path / "replay.npz", **arrays)
    other = build(gamma=[[0, 0.99], [1, 0.995]])
    before = weights(other)
    message = r"obs must be float32 \(3,\) per row, .* float32 \(2,\) for 202 slots"
    with pytest.raises(ValueError, match=message):
        other.restore(str(tmp_path))
    assert_equal(weights(other), before)


class Workers:
    """A group of rollout workers that answer with refusals only."""

    _worker_manager = SimpleNamespace(_filter_calls_by_tag=lambda tag: ([], [], []))
    asked = 0

    def foreach_env_runner_async(self, job, **_):
        self.asked += 1

    def fetch_ready_async_reqs(self, **_):
        answers = [(1, Receipt(0, ["worker 1, episode 3: rewards must be finite"]))] * self.asked
        self.asked = 0
        return answers


def test_what_is_refused_when_it_is_sent_again_is_named():
    workers = RolloutWorkers(Workers(), 1, lambda: None, 0, 1)
    replay = SimpleNamespace(
        call=lambda _: {"num_rows_inserted_lifetime": 0, "num_rows_refused_lifetime": 10}
    )
    collector = Collector(workers, replay, 10)
    workers.resend(None)
    assert collector.complete(0, 0).refusals == ["worker 1, episode 3: rewards must be finite"]
    collector.end_round()
    assert collector.complete(0, 0).refusals == []


def test_the_replay_file_is_plain_arrays(build, tmp_path):
    algo = build()
    algo.train()
    algo.save(str(tmp_path))
    with np.load(tmp_path / "replay.npz", allow_pickle=False) as file:
        # 200 rows in two trajectories of a tenth of the capacity, plus the state after each.
        assert file["column_obs"].shape == (202, 3)
        np.testing.assert_allclose(np.linalg.norm(file["column_obs"][:, :2], axis=1), 1, rtol=1e-5)


def test_a_replay_that_does_not_fit_is_refused_with_the_figure(build):
    with pytest.raises(ValueError, match=r"replay_capacity must fit the memory.* GB in replay"):
        build(replay_capacity=10**11)


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"margin": 0}, "margin must be an integer >= 1, got 0"),
        ({"n_action_samples": 0}, "n_action_samples must be an integer >= 1 or 'all', got 0"),
        ({"n_action_samples": "some"}, "n_action_samples must be .* got 'some'"),
        ({"backup": "median"}, "backup must be one of 'mean', 'max', 'logsumexp', got 'median'"),
        ({"backup_temperature": 0}, "backup_temperature must be a number > 0, got 0"),
        ({"q_spread": "iqr"}, "q_spread must be one of 'none', 'std', 'abs', got 'iqr'"),
        ({"beta": -1.0}, "beta must be a number > 0, got -1.0"),
        ({"beta": "1"}, "beta must be a number > 0, got '1'"),
        ({"gamma": 1.0}, r"gamma must be a number in \[0, 1\), or .* got 1.0"),
        ({"gamma": [[100, 0.9]]}, r"gamma must be a number .* got \[\[100, 0.9\]\]"),
        ({"lambda_": 1.1}, r"lambda_ must be a number in \[0, 1\], got 1.1"),
        ({"n_critic_steps": 1.5}, "n_critic_steps must be an integer >= 0, got 1.5"),
        ({"train_batch_size": 0}, "train_batch_size must be an integer >= 1, got 0"),
        ({"grad_clip": 0}, "grad_clip must be a number > 0 or None, got 0"),
        ({"action_std": 0.0}, "action_std must be a number > 0, got 0.0"),
        ({"action_std": float("nan")}, "action_std must be a number > 0, got nan"),
        ({"compile": "yes"}, "compile must be true, false or 'auto', got 'yes'"),
        ({"advantage_scaling": 1}, "advantage_scaling must be one of 'median', .*, got 1"),
        ({"normalize_observations": "no"}, "normalize_observations must be true or false"),
        ({"replay_capacity": 999, "n_interactions": 1000},
         r"replay_capacity must be >= n_interactions \(1000\), got 999"),
        ({"n_interactions": 0}, "n_interactions must be an integer >= 1, got 0"),
        ({"max_refused_fraction": 2}, r"max_refused_fraction must be a number in \[0, 1\], got 2"),
        ({"overlap_sampling": 1}, "overlap_sampling must be true or false, got 1"),
        ({"learner_threads": 0}, "learner_threads must be an integer >= 1 or 'auto', got 0"),
        ({"model": {"fcnet_hiddens": []}}, "model.fcnet_hiddens must be a list of integers"),
        ({"model": {"fcnet_activation": "cube"}}, "model.fcnet_activation must be one of relu"),
        ({"model": {"fcnet_activation": ["relu"]}}, "model.fcnet_activation must be one of relu"),
        ({"model": {"fcnet_hiddens": 64}}, "model.fcnet_hiddens must be a list .* got 64"),
        ({"model": {"fcnet_hidden": [64]}},
         "unknown key model.fcnet_hidden; did you mean 'fcnet_hiddens'"),
        ({"model": {"conv_filters": [[16, 8]]}}, r"model.conv_filters .* got \[\[16, 8\]\]"),
        ({"reward_clip": 0}, "reward_clip must be a number > 0 or None, got 0"),
        ({"action_std": True}, "action_std must be a number > 0, got True"),
        ({"image_network": "resnet"}, "image_network must be one of 'mnih2013', 'mnih2015'"),
        ({"image_precision": "half"}, "image_precision must be one of 'float32', 'bfloat16'"),
    ],
)  # fmt: skip
def test_impossible_values_are_named(training, message):
    with pytest.raises(ValueError, match=message) as error:
        QWRConfig().environment("Pendulum-v1").training(**training).validate()
    assert "\n" not in str(error.value)


def test_an_impossible_time_out_is_named():
    config = QWRConfig().environment("Pendulum-v1").env_runners(sample_timeout_s=0)
    with pytest.raises(ValueError, match="sample_timeout_s must be a number > 0, got 0"):
        config.validate()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_the_learner_has_the_cpus_of_its_process_and_acting_has_one():
    config = (
        QWRConfig()
        .environment("Pendulum-v1")
        .env_runners(num_env_runners=0)
        .resources(num_cpus_for_main_process=2)
        .training(**SMALL | {"learner_threads": "auto"})
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    algo = config.build_algo()
    try:
        assert torch.get_num_threads() == 1
        assert algo.get_policy().learner.threads == 2
    finally:
        algo.stop()
        torch.set_num_threads(threads)


def test_the_documented_settings_are_the_code_s(monkeypatch):
    """docs/settings.md equals the output of scripts/settings_table.py and has every setting."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "scripts")
    import settings_table

    assert settings_table.tables() in settings_table.PAGE.read_text(), (
        "run: python scripts/settings_table.py"
    )
    row = "| `replay_capacity` | `5000`; AWR `50000`; QWRPlus `100000` | `int` |"
    assert row in settings_table.tables()
    monkeypatch.delitem(settings_table.GROUPS, "Data")
    with pytest.raises(KeyError, match="max_refused_fraction"):
        settings_table.tables()


def test_evaluation_takes_the_mode():
    config = QWRConfig().environment("Pendulum-v1").evaluation(evaluation_interval=1)
    assert config.get_evaluation_config_object().explore is False


def test_settings_of_rllib_without_effect_are_refused():
    config = QWRConfig().environment("Pendulum-v1")
    config.env_runners(exploration_config={"type": "EpsilonGreedy"})
    with pytest.raises(ValueError, match=r"exploration_config has no effect.* got \{'type'"):
        config.validate()
    config = QWRConfig().environment("Pendulum-v1").env_runners(compress_observations=True)
    with pytest.raises(ValueError, match="compress_observations must be false"):
        config.validate()
    config = QWRConfig().environment("Pendulum-v1").multi_agent(policies={"a", "b"})
    with pytest.raises(ValueError, match=r"policies must be one policy, got \['a', 'b'\]"):
        config.validate()


def test_overlapping_needs_a_rollout_worker():
    config = QWRConfig().environment("Pendulum-v1").env_runners(num_env_runners=0)
    with pytest.raises(ValueError, match="overlap_sampling needs num_env_runners >= 1"):
        config.training(overlap_sampling=True).validate()


def test_environments_must_share_the_interactions_evenly():
    config = QWRConfig().environment("Pendulum-v1").env_runners(num_env_runners=3)
    with pytest.raises(ValueError, match=r"multiple of the number of environments \(3 .* got 1000"):
        config.validate()


@pytest.mark.parametrize(
    ("key", "hint"), [("lrr", "lr"), ("n_critic_step", "n_critic_steps"), ("zzzz", None)]
)
def test_unknown_keys_get_the_nearest_known_one(key, hint):
    message = f"unknown config key '{key}'" + (f"; did you mean '{hint}'" if hint else "$")
    with pytest.raises(ValueError, match=message):
        QWRConfig().update_from_dict({key: 1})


def test_a_config_survives_its_dict_form():
    config = QWRConfig().environment("Pendulum-v1").training(margin=7, lambda_=0.5, gamma=0.9)
    again = QWRConfig().update_from_dict(config.to_dict())
    assert (again.margin, again.lambda_, again.gamma) == (7, 0.5, 0.9)
    again.validate()


@pytest.mark.parametrize(
    ("spaces", "message"),
    [
        ((gym.spaces.Box(0, 1, (2,)), gym.spaces.MultiBinary(2)), "a Box or Discrete action space"),
        ((gym.spaces.Box(0, 1, (2,)), gym.spaces.Discrete(2, start=1)), "actions that start at 0"),
        ((gym.spaces.Discrete(2), gym.spaces.Discrete(2)), "a Box observation space"),
    ],
)
def test_other_spaces_are_named(spaces, message):
    from qwr_rllib.envs.spaces import spec_of

    with pytest.raises(ValueError, match=message):
        spec_of(*spaces)
