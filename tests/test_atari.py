"""Iterations on a real Atari game, its checkpoint, and videos of its evaluation."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from moviepy import VideoFileClip

from qwr_rllib import QWR, QWRConfig
from qwr_rllib.cli import rllib
from qwr_rllib.replay.layout import Slot

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

SMALL = {
    "n_critic_steps": 4,
    "n_actor_steps": 4,
    "target_update_freq": 2,
    "train_batch_size": 8,
    "learner_threads": 1,
}


@pytest.fixture(scope="module")
def breakout():
    """An algorithm after 600 interactions: some games, with lost lives."""
    game = {"game": "breakout", "evaluation_max_episode_steps": 40}
    config = (
        QWRConfig()
        .environment("Atari100k", env_config=game)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=2)
        .training(**SMALL, n_interactions=300, replay_capacity=2000, reward_clip=0.5)
        .evaluation(evaluation_interval=2, evaluation_duration=1)
        .debugging(seed=1)
    )
    algo = config.build_algo()
    algo.train()
    yield algo, algo.train()
    algo.stop()


def test_an_iteration_on_frames(breakout):
    algo, result = breakout
    assert result["num_env_steps_sampled_lifetime"] == result["replay"]["num_rows"] == 600
    assert np.isfinite(list(result["learner"].values())).all()
    assert algo.view.columns["obs"].shape[1:] == (84, 84)
    assert algo.view.observations(algo.view.rows[:5]).shape == (5, 4, 84, 84)


def test_lives_end_trajectories_and_games_end_episodes(breakout):
    algo, result = breakout
    view = algo.view
    rows = view.rows
    terminated = int(view.columns["terminateds"][rows].sum())
    games = len(result["env_runners"]["hist_stats"]["episode_reward"])
    assert terminated >= 5 * games >= 5
    # Each trajectory stores the three frames before it.
    assert int((view.kind == Slot.CONTEXT).sum()) == 3 * result["replay"]["num_episodes"]


def test_rewards_are_clipped_in_the_replay_and_not_in_the_returns(breakout):
    algo, result = breakout
    rewards = algo.view.columns["rewards"][algo.view.rows]
    assert set(rewards.tolist()) == {0.0, 0.5}
    # The return is that of the whole game, its number of bricks, although lives were lost.
    returns = result["env_runners"]["hist_stats"]["episode_reward"]
    assert returns
    assert all(each == int(each) for each in returns)
    assert max(returns) >= 1


def test_the_evaluation_has_its_own_limit(breakout):
    _, result = breakout
    assert result["evaluation"]["env_runners"]["episode_len_mean"] == 40


def test_frames_are_restored(breakout, tmp_path):
    algo, _ = breakout
    algo.save(str(tmp_path))
    restored = QWR.from_checkpoint(tmp_path)
    rows = algo.view.rows
    np.testing.assert_array_equal(restored.view.rows, rows)
    np.testing.assert_array_equal(
        restored.view.observations(rows[::7]), algo.view.observations(rows[::7])
    )
    restored.stop()


def evaluate(algo, tmp_path, *options):
    algo.save(str(tmp_path / "checkpoint"))
    out = tmp_path / "out.json"
    arguments = ["evaluate", tmp_path / "checkpoint", "--out", out, *options]
    result = CliRunner().invoke(rllib, [str(each) for each in arguments])
    assert result.exit_code == 0, result.output
    return json.loads(out.read_text())["episodes"]


def assert_shows(path, size, frames):
    """Checks that a video has these frames and that something moves in it."""
    clip = VideoFileClip(str(path))
    assert tuple(clip.size) == size
    shown = [frame.astype(int) for frame in clip.iter_frames()]
    assert abs(len(shown) - frames) <= 2  # the container rounds the duration
    assert np.ptp(shown[0]) > 50
    assert max(np.abs(frame - shown[0]).max() for frame in shown) > 20
    clip.close()


def test_video_of_a_game(breakout, tmp_path):
    algo, _ = breakout
    episodes = evaluate(algo, tmp_path, "--episodes", 2, "--video", tmp_path / "videos")
    assert [each["length"] for each in episodes] == [40, 40]
    videos = sorted((tmp_path / "videos").glob("*.mp4"))
    assert len(videos) == 2
    for video in videos:
        assert_shows(video, (160, 210), 41)


def test_video_of_mujoco(tmp_path):
    config = (
        QWRConfig()
        .environment("Hopper-v5")
        .env_runners(num_env_runners=0)
        .training(**SMALL, n_interactions=20)
    )
    algo = config.build_algo()
    algo.train()
    algo.save(str(tmp_path / "checkpoint"))
    algo.stop()
    arguments = ["evaluate", tmp_path / "checkpoint", "--episodes", 1, "--video", tmp_path]
    result = CliRunner().invoke(rllib, [str(each) for each in arguments])
    if "cannot be rendered" in result.output:
        assert result.exit_code == 2
        pytest.skip("no OpenGL here: " + result.output)
    assert result.exit_code == 0, result.output
    [video] = tmp_path.glob("*.mp4")
    clip = VideoFileClip(str(video))
    assert tuple(clip.size) == (480, 480)
    clip.close()


def test_an_environment_that_cannot_be_rendered_is_named(breakout, tmp_path, monkeypatch):
    algo, _ = breakout
    monkeypatch.setattr("ale_py.env.AtariEnv.render", lambda self: 1 / 0)
    algo.save(str(tmp_path))
    arguments = ["evaluate", tmp_path, "--episodes", 1, "--video", tmp_path]
    result = CliRunner().invoke(rllib, [str(each) for each in arguments])
    assert result.exit_code == 2
    assert "cannot be rendered" in result.output
