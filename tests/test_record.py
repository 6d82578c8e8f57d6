"""``qwr record`` writes data that ``offline`` reads."""

import gymnasium as gym
import numpy as np
import pytest
import ray
from click.testing import CliRunner

from qwr_rllib import QWRConfig
from qwr_rllib.cli import qwr
from qwr_rllib.envs.spaces import spec_of
from qwr_rllib.offline import MU_KEY, OfflineConfig, load

pytestmark = pytest.mark.ray

minari = pytest.importorskip("minari")


@pytest.fixture(autouse=True)
def _store(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint of an untrained policy on Pendulum."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    config = (
        QWRConfig()
        .environment("Pendulum-v1")
        .env_runners(num_env_runners=0)
        .training(replay_capacity=2000)
    )
    algo = config.build_algo()
    path = algo.save(str(tmp_path_factory.mktemp("checkpoint"))).checkpoint.path
    algo.stop()
    ray.shutdown()
    return path


def invoke(*arguments):
    return CliRunner().invoke(qwr, ["record", *map(str, arguments)])


@pytest.mark.parametrize("explore", [False, True])
def test_what_it_writes_offline_reads(checkpoint, explore):
    flags = ["--explore"] if explore else []
    result = invoke(checkpoint, "--episodes", 2, "--dataset-id", "pendulum/qwr-v0", *flags)
    assert result.exit_code == 0, result.output
    assert "2 episodes, 400 steps" in result.output
    dataset = minari.load_dataset("pendulum/qwr-v0")
    assert dataset.total_episodes == 2
    assert dataset.env_spec.id == "Pendulum-v1"
    for i, episode in enumerate(dataset.iterate_episodes()):
        assert episode.infos[MU_KEY].shape == (201, 1)
        assert episode.truncations[-1]
        assert not episode.terminations.any()
        # Repeat the episode from its seed and actions.
        env = gym.make("Pendulum-v1")
        observation, _ = env.reset(seed=i)
        np.testing.assert_array_equal(observation, episode.observations[0])
        for t in range(200):
            observation, reward, *_ = env.step(episode.actions[t])
            np.testing.assert_array_equal(observation, episode.observations[t + 1])
            assert reward == pytest.approx(episode.rewards[t])
        # Torques are in [-2, 2], means in [-1, 1]; the noise around the mean has std 0.4.
        noise = episode.actions / 2 - episode.infos[MU_KEY][:-1]
        if explore:
            assert 0.3 < noise.std() < 0.5
        else:
            np.testing.assert_allclose(noise, 0, atol=1e-6)

    env = gym.make("Pendulum-v1")
    spec = spec_of(env.observation_space, env.action_space)
    storage = load(OfflineConfig("pendulum/qwr-v0"), env, spec, 2000)
    assert storage.num_rows == 400
    kept = storage.columns["action_dist_inputs"][storage.columns["kind"] == 1]
    recorded = [episode.infos[MU_KEY][:-1] for episode in dataset.iterate_episodes()]
    np.testing.assert_allclose(np.sort(kept, 0), np.sort(np.concatenate(recorded), 0))


def test_a_taken_or_impossible_name_is_refused_before_playing(checkpoint):
    arguments = (checkpoint, "--episodes", 1, "--dataset-id", "pendulum/qwr-v0")
    assert invoke(*arguments).exit_code == 0
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "there is a data set 'pendulum/qwr-v0' already" in result.stderr
    result = invoke(checkpoint, "--dataset-id", "no version")
    assert result.exit_code == 2
    assert "--dataset-id" in result.stderr


def test_what_cannot_be_recorded_is_refused(checkpoint, tmp_path, monkeypatch):
    for arguments, message in (
        ([tmp_path / "nothing"], "no checkpoint at"),
        ([checkpoint, "--algo", "PPO"], "is of QWR, not PPO"),
        ([checkpoint, "--env", "CartPole-v1"], "CartPole-v1 has"),
        ([checkpoint, "--episodes", "0"], "0 is not in the range"),
    ):
        result = invoke(*arguments, "--dataset-id", "pendulum/other-v0")
        assert result.exit_code == 2, result.output
        assert message in result.stderr
    monkeypatch.setitem(__import__("sys").modules, "minari.storage", None)
    result = invoke(checkpoint, "--dataset-id", "pendulum/other-v0")
    assert result.exit_code == 2
    assert "pip install 'qwr-rllib[offline]'" in result.stderr


def test_a_failed_write_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    from minari.dataset._storages.hdf5_storage import HDF5Storage

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(HDF5Storage, "update_episodes", fail)
    result = invoke(checkpoint, "--episodes", 1, "--dataset-id", "pendulum/qwr-v0")
    assert result.exit_code == 1
    assert not (tmp_path / "minari" / "pendulum" / "qwr-v0").exists()
    monkeypatch.undo()
