"""A small experiment for Theorem 1; ``qwr theorem`` gives the numbers in the documentation."""

from __future__ import annotations

import csv
import math
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from qwr_rllib.cli import qwr
from qwr_rllib.cli.theorem import table
from qwr_rllib.local.theorem import (
    HORIZON,
    Outcome,
    Reach,
    Trial,
    log_episodes,
    run_trial,
    second_actions,
    trials,
)

SMALL = Trial("AWR", True, 0, num_episodes=6, iterations=4, steps=120)


def share_with_two_actions(fragments):
    """Returns the share of distinct states with more than one action."""
    actions: dict[bytes, set[bytes]] = {}
    for each in fragments:
        for state, action in zip(each.obs, each.actions, strict=False):
            actions.setdefault(state.tobytes(), set()).add(np.asarray(action).tobytes())
    return sum(len(each) > 1 for each in actions.values()) / len(actions)


@pytest.mark.parametrize("discrete", [True, False])
def test_the_replay_is_built_as_it_says(discrete):
    env, rng = Reach(discrete), np.random.default_rng(0)
    logged = log_episodes(env, rng, 20)
    assert sum(map(len, logged)) == 20 * HORIZON
    assert share_with_two_actions(logged) == 0
    for share in (0.25, 1.0):
        fragments = logged + second_actions(env, rng, logged, share)
        states = 20 * HORIZON
        assert sum(map(len, fragments)) == states * (1 + share)
        # The next states are new states; the last state of each fragment has no action.
        left = {state.tobytes() for each in fragments for state in each.obs[:-1]}
        assert len(left) == states
        assert share_with_two_actions(fragments) == pytest.approx(share)


def test_the_environment_is_deterministic_and_pays_for_coming_closer():
    env = Reach(discrete=True)
    state = np.array([[0.6, 0, 0.8, 0, 0.3]], np.float32)
    after, reward = env.step(state, np.array([6]))  # the third axis, backwards
    np.testing.assert_allclose(after, [[0.6, 0, 0.5, 0, 0.4]], atol=1e-6)
    np.testing.assert_allclose(reward, [1 - math.hypot(0.6, 0.5)], atol=1e-6)
    np.testing.assert_array_equal(env.step(state, np.array([6]))[0], after)
    np.testing.assert_allclose(Reach(True, -1.0).step(state, np.array([6]))[1], -reward)
    moved, _ = Reach(discrete=False).step(state, np.array([[2.0, -0.5, 0, 0]], np.float32))
    np.testing.assert_allclose(moved, [[0.9, -0.15, 0.8, 0, 0.4]], atol=1e-6)


@pytest.mark.parametrize("discrete", [True, False], ids=["discrete", "Gaussian"])
def test_awr_clones_whatever_the_rewards_and_qwr_improves(discrete):
    base = replace(SMALL, discrete=discrete)
    awr = run_trial(base)
    opposite = run_trial(replace(base, sign=-1.0))
    # Q needs more rows than a clone: with 60 of them QWR is often worse than the logged policy.
    qwr = run_trial(replace(base, algorithm="QWR", num_episodes=40))
    for cloned in (awr, opposite):
        assert cloned.cloning[-1] > (0.8 if discrete else 0.6)
        assert np.all(np.diff(cloned.cloning) > (-0.02 if discrete else -0.1))
    assert abs(awr.policy_return - awr.logged_return) < 0.25
    assert awr.logged_return == opposite.logged_return
    assert qwr.cloning[-1] < awr.cloning[0] + 0.2
    assert qwr.policy_return > qwr.logged_return + 0.3
    assert qwr.policy_return <= qwr.greedy_return + 1e-6


def test_a_second_action_lets_awr_choose():
    outcome = run_trial(replace(SMALL, share=1.0, num_episodes=8))
    assert outcome.prefers_better > 0.6
    assert math.isnan(outcome.cloning[-1])


def test_the_plan_is_whole():
    planned = trials(2, (0.0, 1.0), SMALL)
    assert len(planned) == len(set(planned)) == 2 * 2 * (2 * 2 + 1)
    assert {each.num_episodes for each in planned} == {6}


def test_the_tables_numbers():
    def outcome(seed, value):
        return Outcome(Trial("QWR", True, seed), (0.1, value), math.nan, -1.0, value, 2.0)

    assert table([outcome(0, 0.5), outcome(1, 1.5)])[-1] == (
        "| discrete | 0% | QWR | true | 1.00 |  | 1.00 ± 0.50 | -1.00 | 2.00 |"
    )


def test_the_command(tmp_path):
    numbers, picture = tmp_path / "numbers.csv", tmp_path / "picture.png"
    arguments = f"theorem --seeds 1 --share 0 --episodes 2 --iterations 1 --csv {numbers}"
    result = CliRunner().invoke(qwr, [*arguments.split(), "--plot", str(picture)])
    assert result.exit_code == 0, result.output
    assert "| Gaussian | 0% | AWR | opposite |" in result.output
    with open(numbers) as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert {"algorithm", "sign", "policy_return", "cloning_0", "cloning_1"} <= rows[0].keys()
    assert picture.stat().st_size > 10_000


def test_bad_options():
    for arguments in (
        ["--share", "2"],
        ["--seeds", "0"],
        ["--csv", "/nowhere/at/all.csv"],
        ["--plot", "picture.docs"],
    ):
        result = CliRunner().invoke(qwr, ["theorem", *arguments])
        assert result.exit_code == 2, result.output
