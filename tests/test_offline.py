"""Logged data as a replay: Minari's data sets and RLlib's recorded output."""

import json
import logging
import math
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import stored
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.offline.json_writer import JsonWriter
from ray.rllib.policy.sample_batch import SampleBatch

from qwr_rllib import QWR, AWRConfig, QWRConfig
from qwr_rllib.cli.experiments import ConfigError, Overrides, check_experiment
from qwr_rllib.envs.spaces import fitted, spec_of
from qwr_rllib.learning.config import defaults_of
from qwr_rllib.learning.networks import QWRNetworks
from qwr_rllib.learning.targets import ActionSampler
from qwr_rllib.local import LocalTrainer
from qwr_rllib.offline import MU_KEY, OfflineConfig, load, logged_mu, mean_return
from qwr_rllib.offline.noise import action_noise
from qwr_rllib.replay.fragments import Fragment
from qwr_rllib.replay.replica import ReplayView, TransitionView
from qwr_rllib.replay.storage import ReplayStorage
from qwr_rllib.specs import LoggedMu

minari = pytest.importorskip("minari")
from minari.data_collector import EpisodeBuffer  # noqa: E402

ACTIONS = gym.spaces.Box(np.float32([-1, 0]), np.float32([3, 10]))


class Box(gym.Env):
    """Observations of two numbers; actions span [-1, 3] x [0, 10]."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = ACTIONS


class Keys(gym.Env):
    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Discrete(3)


@pytest.fixture(autouse=True)
def _store(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))


def episode(number, steps, end="", env=None, mu=None, **changed):
    """Returns an episode with observation (number, t), actions (t % 3, t), reward t + 1."""
    times = np.arange(steps)
    flags = np.zeros(steps, bool)
    flags[-1:] = True
    discrete = isinstance(env, Keys)
    columns = {
        "observations": np.stack([np.full(steps + 1, number), np.arange(steps + 1)], 1) * 1.0,
        "actions": times % 3 if discrete else np.stack([times % 3, times], 1).astype(np.float32),
        "rewards": list(times + 1.0),
        "terminations": flags if end == "terminated" else np.zeros(steps, bool),
        "truncations": flags if end == "truncated" else np.zeros(steps, bool),
        "infos": {} if mu is None else {MU_KEY: mu},
    }
    return EpisodeBuffer(id=number, **columns | changed)


def write(episodes, dataset="test/box-v0", env=None, **kwargs):
    env = env or Box()
    if not isinstance(env, str):
        kwargs |= {"observation_space": env.observation_space, "action_space": env.action_space}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # author, link and so on are missing
        minari.create_dataset_from_buffers(
            dataset, episodes, env=env if isinstance(env, str) else None, **kwargs
        )
    return dataset


def loaded(dataset, env=None, capacity=1000, margin=1, normalize=True, clip=None, **config):
    env = env or Box()
    spec = spec_of(env.observation_space, env.action_space)
    return load(OfflineConfig(dataset, **config), env, spec, capacity, margin, normalize, clip)


def rows(storage):
    """Returns (obs, action, mu) of each row in the order of insertion."""
    columns = storage.columns
    slots = np.flatnonzero(columns["kind"] == 1)
    slots = slots[np.argsort(columns["inserted"][slots])]
    return [
        (columns["obs"][i].tolist(), columns["actions"][i], columns["action_dist_inputs"][i])
        for i in slots
    ]


def logged_policy(noise, scale=(1.0, 1.0), constant=False, num_episodes=20, steps=200):
    """Fills a store by ``a = (s1, -s1) / 2 + noise`` on ``num_episodes`` random walks in [0, 1]^2.

    With ``constant`` an episode has one draw of the noise for all its steps.
    """
    random = np.random.default_rng(0)
    spec = spec_of(Box.observation_space, Box.action_space)
    storage = ReplayStorage(spec, num_episodes * steps)
    for number in range(num_episodes):
        obs = random.random((steps + 1, 2)).astype(np.float32)
        mean = np.stack([obs[:, 0], -obs[:, 0]], 1) / 2
        shape = (1, 2) if constant else (steps, 2)
        actions = (mean[:-1] + noise * random.standard_normal(shape)).astype(np.float32)
        rewards = np.zeros(steps, np.float32)
        flags = {"terminated": False, "done": True}
        storage.add(Fragment(number, 0, obs * np.float32(scale), mean, actions, rewards, **flags))
    return storage


@pytest.mark.parametrize("noise", [0.1, 0.3])
@pytest.mark.parametrize("scale", [(1.0, 1.0), (100.0, 0.01)])
def test_the_noise_of_actions_is_estimated(noise, scale):
    assert action_noise(logged_policy(noise, scale)) == pytest.approx(noise, rel=0.1)


@pytest.mark.parametrize(("num_episodes", "steps"), [(20, 200), (10, 10)])
def test_without_noise_the_estimate_is_small(num_episodes, steps):
    """Also where states are sparse: nearest neighbours of 100 states differ by 0.014."""
    assert action_noise(logged_policy(0.0, num_episodes=num_episodes, steps=steps)) < 0.005


def test_noise_that_an_episode_shares_is_noise():
    constant = logged_policy(0.3, constant=True, num_episodes=200, steps=20)
    assert action_noise(constant) == pytest.approx(0.3, rel=0.2)


def test_noise_of_equal_states_is_estimated():
    """All distances are 0: what changes the action is then noise, whatever its cause."""
    equal = logged_policy(0.3, scale=(0.0, 0.0))
    # The policy's mean is uniform in an interval of 1/2. Few rows are neighbours of all the others.
    assert action_noise(equal) == pytest.approx(math.hypot(0.3, 0.5 / math.sqrt(12)), rel=0.15)


def test_one_episode_says_nothing_about_noise():
    storage = logged_policy(0.1, num_episodes=1)
    assert action_noise(storage) is None
    assert logged_mu(storage, action_std=0.4).std == 0.4
    assert logged_mu(storage, action_std=0.4, std=0.7).std == 0.7


@pytest.mark.parametrize(("noise", "expected"), [(0.0, 0.05), (1.0, 0.4)])
def test_the_std_of_mu_is_bounded(noise, expected):
    assert logged_mu(logged_policy(noise), action_std=0.4).std == expected


@pytest.mark.parametrize("clipped", [True, False])
def test_samples_that_the_environment_clips_are_evaluated_clipped(clipped):
    """A critic that is the sum of the action; ``mu`` is outside of the range."""

    class Critic:
        def features(self, view, states, features):
            return states

        def q_values(self, features, actions):
            return actions.sum(-1)

    spec = spec_of(Box.observation_space, Box.action_space)
    columns = {"obs": torch.zeros(6, 2), "action_dist_inputs": torch.full((6, 2), 3.0)}
    columns |= {"actions": torch.zeros(3, 2), "rewards": torch.zeros(3)}
    columns |= {"terminateds": torch.zeros(3, dtype=torch.bool)}
    sample = ActionSampler(QWRNetworks(spec).actor, 4, torch.Generator())
    sample.logged_mu = LoggedMu(0.01, clipped)
    found = sample(Critic(), TransitionView(spec, columns), torch.arange(3))
    expected = torch.full((3, 4), 2.0 if clipped else 6.0)
    torch.testing.assert_close(found.q_values, expected, rtol=0, atol=0.1)
    assert found.actions.mean().item() == pytest.approx(3, abs=0.1)  # not what is regressed onto


# Minari


def test_actions_are_normalised_and_stand_in_for_mu():
    storage = loaded(write([episode(0, 3, "truncated")]))
    assert storage.num_rows == 3
    # (a - low) * 2 / (high - low) - 1, by hand.
    expected = [[-0.5, -1.0], [0.0, -0.8], [0.5, -0.6]]
    for t, (obs, action, mu) in enumerate(rows(storage)):
        assert obs == [0, t]
        np.testing.assert_allclose(action, expected[t], atol=1e-6)
        np.testing.assert_allclose(mu, expected[t], atol=1e-6)
    # The state after the last step has the mu of the last action.
    tail = np.flatnonzero(storage.columns["kind"] == 2)
    np.testing.assert_allclose(storage.columns["obs"][tail], [[0, 3]])
    np.testing.assert_allclose(storage.columns["action_dist_inputs"][tail], [expected[2]])


def test_actions_stay_where_the_policy_acts_in_the_environments_range():
    storage = loaded(write([episode(0, 2)]), normalize=False)
    np.testing.assert_allclose([action for _, action, _ in rows(storage)], [[0, 0], [1, 1]])


def test_the_mean_return_of_the_episodes_that_are_taken():
    dataset = write([episode(0, 2), episode(1, 4), episode(2, 9)])
    # 1 + 2 and 1 + 2 + 3 + 4.
    assert mean_return(OfflineConfig(dataset, num_episodes=2)) == 6.5


def test_terminated_and_cut_episodes_are_told_apart():
    storage = loaded(
        write([episode(0, 2, "terminated"), episode(1, 2, "truncated"), episode(2, 2)])
    )
    after = {obs[:2]: state for obs, _, _, state in stored(storage)}
    assert after[(0, 1)] is None
    assert after[(1, 1)][:2] == (1, 2)
    assert after[(2, 1)][:2] == (2, 2)  # neither flag is set: a truncation
    assert after[(0, 0)][:2] == (0, 1)


def test_recorded_parameters_are_taken_or_not():
    mu = np.arange(6, dtype=np.float32).reshape(3, 2)
    dataset = write([episode(0, 2, "truncated", mu=mu)])
    storage = loaded(dataset)
    np.testing.assert_allclose([each for *_, each in rows(storage)], mu[:2])
    tail = np.flatnonzero(storage.columns["kind"] == 2)
    np.testing.assert_allclose(storage.columns["action_dist_inputs"][tail], mu[2:])
    taken = loaded(dataset, mu="taken")
    np.testing.assert_allclose(
        [each for *_, each in rows(taken)], [action for _, action, _ in rows(taken)]
    )


def test_a_discrete_action_stands_in_with_smoothing():
    env = Keys()
    dataset = write([episode(0, 3, "terminated", env)], env=env)
    for _, action, mu in rows(loaded(dataset, env, smoothing=0.3)):
        probs = np.exp(mu)
        np.testing.assert_allclose(probs.sum(), 1, rtol=1e-6)
        np.testing.assert_allclose(probs[action], 0.8, rtol=1e-6)
        np.testing.assert_allclose(np.delete(probs, action), 0.1, rtol=1e-6)


def test_rewards_are_clipped_as_collected_ones():
    storage = loaded(write([episode(0, 4, rewards=[1.0, 2.5, -3.0, 0.0])]), clip=2.0)
    assert [row[2] for row in stored(storage)] == [1, 2, -2, 0]


class Stacks(Box):
    """Observations are stacks of the last two, the newest last."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2, 3), np.float32)


def test_stacked_frames_are_kept_once_and_seen_as_stacks():
    env = Stacks()
    frames = np.arange(5 * 3, dtype=np.float32).reshape(5, 3)
    stacks = np.stack([frames[:-1], frames[1:]], 1)
    dataset = write([episode(0, 3, observations=stacks)], env=env)
    spec = spec_of(env.observation_space, env.action_space, frame_stack=2)
    storage = load(OfflineConfig(dataset), env, spec, 100, 1, True, None)
    assert storage.columns["obs"].shape[1:] == (3,)
    view = ReplayView(spec, 100)
    view.update(storage.changes())
    in_order = view.rows[view.inserted[view.rows].argsort()]
    np.testing.assert_array_equal(view.observations(in_order), stacks[:3])


PARTS = {
    "Dict": (
        gym.spaces.Dict(place=gym.spaces.Box(-9, 9, (2, 1)), goal=gym.spaces.Discrete(3)),
        {"place": np.float32(range(8)).reshape(4, 2, 1), "goal": np.array([0, 1, 2, 0])},
        [[1, 0, 0, 0, 1], [0, 1, 0, 2, 3], [0, 0, 1, 4, 5]],
    ),
    "Tuple": (
        gym.spaces.Tuple((gym.spaces.Box(-9, 9, (1,)), gym.spaces.MultiBinary(2))),
        (np.float32([[0], [1], [2], [3]]), np.int8([[0, 1], [1, 0], [1, 1], [0, 0]])),
        [[0, 0, 1], [1, 1, 0], [2, 1, 1]],
    ),
    "Discrete": (
        gym.spaces.Discrete(2),
        np.array([0, 1, 1, 0]),
        [[1, 0], [0, 1], [0, 1]],
    ),
}


@pytest.mark.parametrize("kind", PARTS)
def test_observations_of_parts_are_flattened_as_those_of_the_environment(kind):
    space, observations, flat = PARTS[kind]
    env = Box()
    env.observation_space = space
    dataset = write([episode(0, 3, observations=observations)], env=env)
    storage = loaded(dataset, fitted(env))
    assert [obs for obs, *_ in rows(storage)] == flat
    # Data recorded from the flattened environment is the same.
    flattened = fitted(env)
    last = np.zeros((1, len(flat[0])))
    episodes = [episode(0, 3, observations=np.concatenate([flat, last]).astype(np.float32))]
    again = loaded(write(episodes, "test/flat-v0", env=flattened), flattened)
    assert [obs for obs, *_ in rows(again)] == flat


def test_a_path_and_the_first_episodes(tmp_path):
    write([episode(i, 2) for i in range(4)])
    storage = loaded(str(tmp_path / "minari" / "test" / "box-v0"), num_episodes=2)
    assert [obs for obs, *_ in rows(storage)] == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_trajectories_shorter_than_the_margin_are_named_and_taken(caplog):
    with caplog.at_level(logging.WARNING, logger="ray.rllib.qwr"):
        storage = loaded(write([episode(0, 5), episode(1, 2)]), margin=3)
    assert storage.num_rows == 7
    assert "1 of 2 trajectories" in caplog.text
    assert "episode 1" in caplog.text


# Bad data


def refused(match, dataset, **kwargs):
    with pytest.raises(ValueError, match=match) as raised:
        loaded(dataset, **kwargs)
    assert "\n" not in str(raised.value)


def test_an_unknown_data_set_is_named_with_the_nearest():
    write([episode(0, 2)])
    refused(r"no data set 'test/bax-v0'.*did you mean 'test/box-v0'", "test/bax-v0")
    refused("there is nothing at .*missing.json", "./missing.json")


def test_a_data_set_without_data_is_refused(tmp_path):
    (tmp_path / "else").mkdir()
    refused("neither a Minari data set nor RLlib's", str(tmp_path / "else"))
    refused("is empty", write([]))
    (tmp_path / "output.json").write_text("")
    refused("is empty", str(tmp_path / "output.json"))


def test_another_environment_is_refused():
    env = gym.make("Pendulum-v1")
    flat = {"observations": np.zeros((3, 3)), "actions": np.zeros((2, 1), np.float32)}
    dataset = write([episode(0, 2, **flat)], "test/other-v0", env="Pendulum-v1")
    assert loaded(dataset, env).num_rows == 2
    env.spec.id = "Pendulum-v7"
    refused("is of environment 'Pendulum-v1', not 'Pendulum-v7'", dataset, env=env)
    assert loaded(dataset, env, check_env=False).num_rows == 2


def test_other_spaces_are_refused():
    dataset = write([episode(0, 2)])
    refused("has action_space Box.*the environment has Discrete", dataset, env=Keys())
    narrower = Box()
    narrower.action_space = gym.spaces.Box(-1, 1, (2,))
    refused("has action_space", dataset, env=narrower)
    wider = Box()
    wider.observation_space = gym.spaces.Box(-np.inf, np.inf, (3,))
    refused("has observation_space", dataset, env=wider)


@pytest.mark.parametrize("column", ["observations", "actions", "rewards"])
def test_a_nan_is_named(column):
    bad = np.array(getattr(episode(1, 4), column), float)
    bad[2] = np.nan
    dataset = write([episode(0, 4), episode(1, 4, **{column: bad.astype(np.float32)})])
    refused(f"episode 1: {column[:3]}.* has a NaN or infinite value at step 2", dataset)


def test_a_truncated_file_is_refused(tmp_path):
    dataset = write([episode(i, 50) for i in range(20)])
    (file,) = (tmp_path / "minari").rglob("*.hdf5")
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    refused("data set test/box-v0.* cannot be read: ", dataset)
    file.unlink()
    refused("data set test/box-v0.* cannot be read: ", dataset)


def test_contradicting_columns_are_named():
    ends = np.array([False, True, False])
    refused("goes on after termination at step 1", write([episode(0, 3, terminations=ends)]))
    dataset = write([episode(0, 3, observations=np.zeros((3, 2)))], "test/short-v0")
    refused("3 rewards, 3 observations", dataset)


def test_a_data_set_that_does_not_fit_is_sampled_by_whole_episodes(caplog):
    dataset = write([episode(i, 10) for i in range(5)])
    assert loaded(dataset, capacity=50).num_rows == 50
    assert "drawn at random" not in caplog.text
    with caplog.at_level(logging.WARNING, logger="ray.rllib.qwr"):
        storage = loaded(dataset, capacity=49)
    assert (storage.num_rows, storage.num_episodes) == (40, 12)  # each is cut every 4 rows
    assert "has 50 rows in 5 episodes, more than replay_capacity 49 takes: 4" in caplog.text
    again = loaded(dataset, capacity=49)
    np.testing.assert_array_equal(storage.columns["obs"], again.columns["obs"])
    # An episode that is not drawn is checked too.
    drawn = {int(number) for number in storage.columns["obs"][storage.columns["kind"] == 1][:, 0]}
    [left] = set(range(5)) - drawn
    spoilt = {left: {"rewards": [float("nan")] * 10}}
    damaged = write([episode(i, 10, **spoilt.get(i, {})) for i in range(5)], "test/nan-v0")
    refused(f"episode {left}: rewards has a NaN", damaged, capacity=49)
    refused("replay_capacity 9 is too small for any episode .*: the shortest has 10", dataset,
            capacity=9)  # fmt: skip
    # 80 episodes of one step need more room than their rows, for the states after them.
    dataset = write([episode(i, 1) for i in range(80)], "test/ends-v0")
    storage = loaded(dataset, capacity=80)
    assert storage.num_rows == storage.num_episodes == 71  # 2 slots each of 80 + 64, one in reserve
    refused("data set test/ends-v0 has 80 episodes", dataset, num_episodes=81)


def test_minari_missing_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "minari", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'qwr-rllib\[offline\]'"):
        loaded("test/box-v0")


# The config


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "offline.dataset is missing"),
        ("hopper", "offline must be a mapping"),
        ({"dataset": ""}, "offline.dataset must be a data set's id or path, got ''"),
        ({"dataset": "a", "iteration": 1}, "'iteration'; did you mean 'iterations'"),
        ({"dataset": "a", "iterations": -1}, "offline.iterations must be an integer >= 0"),
        ({"dataset": "a", "num_episodes": 0}, "offline.num_episodes must be an integer >= 1"),
        ({"dataset": "a", "mu_std": 0}, "offline.mu_std must be a number > 0 or 'auto', got 0"),
        ({"dataset": "a", "smoothing": 0}, r"offline.smoothing must be a number in \(0, 1\]"),
        ({"dataset": "a", "mu": "x"}, "offline.mu must be one of 'recorded', 'taken', got 'x'"),
    ],
)
def test_impossible_settings_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        QWRConfig().environment("Pendulum-v1").training(offline=given).validate()


def test_the_command_line_checks_the_data_before_it_starts():
    spec = {"run": "QWR", "env": "Pendulum-v1", "config": {"offline": {"dataset": "x/y-v0"}}}
    with pytest.raises(ConfigError, match="no data set 'x/y-v0'"):
        check_experiment("name", spec, Overrides())


# RLlib's output


def batch(episodes, times, end="", next_obs=True, mu=None):
    count = len(times)
    episodes, times = np.array(episodes), np.array(times)
    flags = np.arange(count) == count - 1
    columns = {
        "obs": np.stack([episodes, times], 1).astype(np.float32),
        "actions": (times % 3).astype(np.int64),
        "rewards": (times + 1).astype(np.float32),
        "terminateds": flags & (end == "terminated"),
        "truncateds": flags & (end == "truncated"),
        "eps_id": episodes,
        "t": times,
    }
    if next_obs:
        columns["new_obs"] = np.stack([episodes, times + 1], 1).astype(np.float32)
    if mu is not None:
        columns["action_dist_inputs"] = np.full((count, 3), mu, np.float32)
    return SampleBatch(columns)


def written(folder, batches, compress=frozenset(["obs", "new_obs"])):
    writer = JsonWriter(str(folder), compress_columns=compress)
    for each in batches:
        writer.write(each)
    return str(folder)


@pytest.mark.parametrize("kind", ["packed", "plain", "parquet"])
def test_rllibs_output_is_joined_by_episode_and_time(tmp_path, kind):
    batches = [
        batch([7] * 3 + [8] * 2, [0, 1, 2, 0, 1]),
        batch([8] * 2, [2, 3], "truncated", mu=None),
        batch([7], [3], "terminated"),
    ]
    path = written(tmp_path / "out", batches, frozenset(["obs"] if kind == "packed" else []))
    if kind == "parquet":
        from pyarrow import Table, parquet

        (file,) = Path(path).iterdir()
        records = [json.loads(line) for line in file.read_text().splitlines()]
        parquet.write_table(Table.from_pylist(records), file.with_suffix(".parquet"))
        file.unlink()
    storage = loaded(path, Keys())
    after = {obs[:2]: state for obs, _, _, state in stored(storage)}
    assert sorted(after) == [(e, t) for e in (7, 8) for t in range(4)]
    assert after[(7, 2)][:2] == (7, 3)
    assert after[(7, 3)] is None
    assert after[(8, 3)][:2] == (8, 4)


def test_rllibs_output_without_next_observations_is_cut_before_its_last_row(tmp_path):
    batches = [batch([1] * 3, [0, 1, 2], next_obs=False)]
    storage = loaded(written(tmp_path / "out", batches), Keys())
    after = {obs[:2]: state for obs, _, _, state in stored(storage)}
    assert after.keys() == {(1, 0), (1, 1)}
    assert after[(1, 1)][:2] == (1, 2)


def test_rllibs_recorded_logits_are_taken(tmp_path):
    path = written(tmp_path / "out", [batch([1] * 2, [0, 1], "truncated", mu=4.0)])
    assert {tuple(mu) for *_, mu in rows(loaded(path, Keys()))} == {(4.0, 4.0, 4.0)}


def test_damaged_output_of_rllib_is_refused(tmp_path):
    path = written(tmp_path / "out", [batch([1] * 2, [0, 1])])
    (file,) = Path(path).iterdir()
    content = file.read_text()
    file.write_text(content[: len(content) // 2])
    refused("cannot be read: JSONDecodeError", path, env=Keys())
    file.write_text(json.dumps({"type": "SampleBatch", "obs": [[1, 2]]}))
    refused("lacks the columns actions, rewards", path, env=Keys())


# On Ray


def pendulum(steps=40):
    env = gym.make("Pendulum-v1")
    env.action_space.seed(0)
    made = []
    for number in range(2):
        observations = [env.reset(seed=number)[0]]
        actions = []
        for _ in range(steps):
            actions.append(env.action_space.sample())
            observations.append(env.step(actions[-1])[0])
        flat = {"observations": np.stack(observations), "actions": np.stack(actions)}
        made.append(episode(number, steps, "truncated", **flat))
    return write(made, "pendulum/random-v0", env="Pendulum-v1")


SMALL = {
    "n_interactions": 20,
    "n_critic_steps": 4,
    "n_actor_steps": 4,
    "train_batch_size": 8,
    "replay_capacity": 1000,
    "margin": 3,
}


@pytest.mark.ray
@pytest.mark.parametrize("kind", [QWRConfig, AWRConfig])
def test_training_offline_then_online(local_ray, kind, tmp_path):
    settings = SMALL | {"offline": {"dataset": pendulum(), "iterations": 2}}
    config = (
        kind()
        .environment("Pendulum-v1")
        .env_runners(num_env_runners=0)
        .training(**settings)
        .evaluation(evaluation_interval=1, evaluation_duration=1)
    )
    algo = config.build_algo()
    try:
        results = [algo.train() for _ in range(2)]
        assert algo.learner.logged_mu == (0.4, True)  # random actions have much noise
        for result in results:
            assert result["num_env_steps_sampled_lifetime"] == 0
            assert result["replay"]["num_rows"] == 80
            assert np.isfinite(result["evaluation"]["env_runners"]["episode_return_mean"])
        assert algo.learner.networks.normalizer.count == 80
        path = algo.save(str(tmp_path / "saved")).checkpoint.path
        result = algo.train()
        assert result["num_env_steps_sampled_lifetime"] == 20
        assert result["replay"]["num_rows"] == 100
    finally:
        algo.stop()
    minari.delete_dataset("pendulum/random-v0")  # the replay is in the checkpoint
    restored = config.algo_class.from_checkpoint(path)
    try:
        result = restored.train()
        assert result["num_env_steps_sampled_lifetime"] == 20
        assert result["replay"]["num_rows"] == 100
    finally:
        restored.stop()


def test_training_without_ray_on_logged_data():
    settings = SMALL | {"env": "Pendulum-v1", "seed": 0, "offline": {"dataset": pendulum()}}
    trainer = LocalTrainer(defaults_of("QWR") | settings)
    before = trainer.evaluate(1)
    metrics = trainer.train()
    assert trainer.evaluate(1) != before
    assert (trainer.iteration, trainer.num_env_steps, trainer.view.num_rows) == (1, 0, 80)
    assert trainer.learner.networks.normalizer.count == 80
    assert trainer.learner.logged_mu == (0.4, True)
    assert "moved" not in metrics
    settings["offline"] |= {"iterations": 1}
    with pytest.raises(ValueError, match=r"offline\.iterations must be None, got 1"):
        LocalTrainer(defaults_of("QWR") | settings)


@pytest.mark.ray
def test_the_noise_of_logged_actions_is_kept_until_rows_are_collected(local_ray, tmp_path):
    offline = {"dataset": pendulum(), "iterations": 1, "mu_std": 0.07}
    config = (
        QWRConfig()
        .environment("Pendulum-v1")
        .env_runners(num_env_runners=0)
        .training(**SMALL, offline=offline)
    )
    algo = config.build_algo()
    try:
        algo.train()
        assert algo.learner.logged_mu == (0.07, True)
        path = algo.save(str(tmp_path / "saved")).checkpoint.path
    finally:
        algo.stop()
    restored = QWR.from_checkpoint(path)
    try:
        assert restored.learner.logged_mu == (0.07, True)
        restored.train()
        assert restored.learner.logged_mu is None
    finally:
        restored.stop()


@pytest.mark.ray
def test_the_output_of_rllibs_own_algorithms_is_read(local_ray, tmp_path):
    config = (
        PPOConfig()
        .api_stack(enable_rl_module_and_learner=False, enable_env_runner_and_connector_v2=False)
        .environment("Pendulum-v1")
        .env_runners(num_env_runners=0, batch_mode="complete_episodes")
        .training(train_batch_size=64, minibatch_size=64, num_epochs=1)
        .offline_data(output=str(tmp_path / "out"))
    )
    algo = config.build_algo()
    algo.train()
    algo.stop()
    storage = loaded(str(tmp_path / "out"), gym.make("Pendulum-v1"), capacity=5000)
    assert storage.num_rows % 200 in (0, 199)  # whole episodes, truncated by a time limit
    assert storage.num_episodes == -(-storage.num_rows // 200)
    actions, mu = (np.array(part) for part in list(zip(*rows(storage), strict=True))[1:])
    # PPO's samples, with mean near 0 and std 1, unchanged and not scaled again.
    assert 0.7 < actions.std() < 1.3
    np.testing.assert_array_equal(actions, mu)  # its mean and std are not a constant-std Gaussian's
