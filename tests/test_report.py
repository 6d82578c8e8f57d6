"""Reports of synthetic result folders, whose statistics are known by separate arithmetic."""

from __future__ import annotations

import html
import io
import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from matplotlib import image
from matplotlib.figure import Figure
from matplotlib.text import Text

from qwr_rllib import offline
from qwr_rllib.cli import qwr
from qwr_rllib.offline import OfflineConfig
from qwr_rllib.report import figures, groups, paper, statistics, tables, trials
from qwr_rllib.report.page import write

STOP = {"training_iteration": 4}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def write_trial(
    experiment: Path,
    number: int,
    returns: Sequence[float] = (10, 20, 30, 40),
    status: str | None = "TERMINATED",
    steps: int = 1000,
    evaluated: Sequence[int] = (2, 4),
    first: int = 1,
    **settings: Any,
) -> Path:
    """Writes a trial's folder as Tune does; evaluations are 1000 above training returns.

    Args:
        experiment: The experiment's folder.
        number: The number in its id.
        returns: The training return of each iteration.
        status: The status in Tune's state file; ``None`` for a trial that is not in it.
        steps: Environment steps of an iteration.
        evaluated: The iterations with an evaluation.
        first: The first iteration.
        settings: Keys of the config.
    """
    settings = {"env": "Walker2d-v5", "seed": 0, "backup": "max", "gamma": 0.99} | settings
    folder = experiment / f"QWR_{number:05d}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps(settings))
    with open(folder / "result.json", "a") as file:
        for iteration, value in enumerate(returns, first):
            line = {
                "training_iteration": iteration,
                "num_env_steps_sampled_lifetime": steps * iteration,
                "time_total_s": float(iteration),
                "env_runners": {
                    "episode_return_mean": value,
                    # The mean of the last 10 episodes is value + 0.5.
                    "hist_stats": {"episode_reward": [-1e6, value] + [value, value + 1] * 5},
                },
                "config": settings | {"callbacks": f"<class 'X' at 0x{number:08x}>"},
                "trial_id": f"{number:05d}",
                "date": f"2021-01-{number + 1:02d}",
                "done": status == "TERMINATED" and iteration == len(returns),
            }
            if iteration in evaluated:
                played = {"episode_reward": [value + 1000] * 10}
                line["evaluation"] = {
                    "env_runners": {"episode_return_mean": value + 1000, "hist_stats": played}
                }
            file.write(json.dumps(line) + "\n")
    if status:
        write_state(experiment, {folder.name: (status, settings)})
    return folder


def write_state(
    experiment: Path, added: dict[str, tuple[str, dict[str, Any]]], stop: dict[str, Any] = STOP
) -> None:
    """Adds trials to Tune's state file."""
    file = experiment / "experiment_state-2021-01-01_00-00-00.json"
    state = json.loads(file.read_text()) if file.exists() else {"trial_data": []}
    for name, (status, settings) in added.items():
        entry = {
            "relative_logdir": name,
            "trial_id": name.removeprefix("QWR_"),
            "status": status,
            "trainable_name": "QWR",
            "stopping_criterion": stop,
            "config": settings,
        }
        state["trial_data"].append([json.dumps(entry), "{}"])
    file.write_text(json.dumps(state))


def only(found: Sequence[Any]) -> Any:
    [one] = found
    return one


# --- Statistics ----------------------------------------------------------------------------


def test_iqm_cuts_a_quarter_at_each_end() -> None:
    assert statistics.iqm([100, 2, 1, 3]) == 2.5
    assert statistics.iqm([-50, 1, 2, 3, 100]) == 2.0
    assert statistics.iqm([1, 2, 9]) == 4.0  # too few to cut any
    assert statistics.iqm([7]) == 7
    assert statistics.iqm([[0, 1, 2, 99], [0, 5, 5, 5]], axis=1).tolist() == [1.5, 5.0]


def test_interval_is_that_of_all_resamples() -> None:
    scores = [1.0, 2.0, 4.0, 8.0]
    means = [np.mean(drawn) for drawn in itertools.product(scores, repeat=4)]
    expected = np.percentile(means, [2.5, 97.5])
    found = statistics.interval([scores], np.mean)
    assert found is not None
    np.testing.assert_allclose(found, expected, atol=0.26)  # one step of the means


def test_interval_redraws_within_tasks() -> None:
    # Drawn over tasks, the mean would lie anywhere between 0 and 1000.
    found = statistics.interval([[0.0, 6.0], [1000.0, 1000.0, 1000.0]], np.mean)
    assert found == (600.0, 602.4)


@pytest.mark.parametrize("samples", [[], [[1.0]], [[1.0, 2.0], [3.0]]])
def test_no_interval_from_one_seed(samples: list[list[float]]) -> None:
    assert statistics.interval(samples) is None


def test_curve_of_quartiles() -> None:
    steps = np.array([1.0, 2.0])
    series = [(steps, np.array([value, -value])) for value in (0.0, 10.0, 20.0, 30.0, 1000.0)]
    found = statistics.curve(series)
    assert found.middle.tolist() == [20, -20]
    assert found.low.tolist() == [10, -30]
    assert found.high.tolist() == [30, -10]


def test_curve_interpolates_where_all_seeds_are() -> None:
    first = (np.array([0.0, 10.0, 20.0]), np.array([0.0, 100.0, 200.0]))
    second = (np.array([5.0, 15.0]), np.array([1.0, 3.0]))
    found = statistics.curve([first, second], "mean-ci")
    assert found.steps.tolist() == [5, 10, 15]
    assert found.middle.tolist() == [25.5, 51.0, 76.5]
    assert found.low.tolist() == [1.0, 2.0, 3.0]
    assert found.high.tolist() == [50.0, 100.0, 150.0]


@pytest.mark.parametrize("kind", ["iqr", "mean-ci"])
def test_curve_of_one_seed_has_no_band(kind: str) -> None:
    found = statistics.curve([(np.array([1.0, 2.0]), np.array([3.0, 4.0]))], kind)
    assert found.middle.tolist() == [3, 4]
    assert np.isnan([found.low, found.high]).all()


# --- The paper -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "task"),
    [
        ("Walker2d-v5", "Walker2d"),
        ("HalfCheetah-v2", "HalfCheetah"),
        ("ale_py:ALE/Pong-v5", "Pong"),
        ("Atari100k/Pong", "Pong"),
        ("BreakoutNoFrameskip-v4", "Breakout"),
        ("Pendulum-v1", "Pendulum"),
    ],
)
def test_tasks_by_the_papers_names(env: str, task: str) -> None:
    assert paper.task(env) == task
    assert (paper.table_of(task) is None) == (task == "Pendulum")


def test_human_normalized() -> None:
    assert paper.human_normalized("Pong", -20.7) == 0
    assert paper.human_normalized("Pong", 14.6) == 1
    assert paper.human_normalized("Breakout", 8) == pytest.approx(6.3 / 28.8)
    games = paper.TABLE_2["QWR-LSE"].items()
    mean = np.mean([paper.human_normalized(game, score.mean) for game, score in games])
    assert mean == pytest.approx(0.3213, abs=1e-4)


# --- Reading -------------------------------------------------------------------------------


def test_statuses(tmp_path: Path) -> None:
    write_trial(tmp_path / "a", 0)
    write_trial(tmp_path / "a", 1, returns=[1, 2], status="RUNNING")
    failed = write_trial(tmp_path / "a", 2, returns=[1], status="ERROR")
    (failed / "error.txt").write_text("Traceback\n  ...\nArithmeticError: one leg too few\n\n")
    write_trial(tmp_path / "a", 3, returns=[1, 2, 3])  # a scheduler ended it
    write_state(tmp_path / "a", {"QWR_00004": ("PENDING", {"env": "Walker2d-v5"})})
    write_trial(tmp_path / "a", 5, returns=[], status="RUNNING")
    found = {int(trial.trial_id): trial for trial in trials.read([tmp_path])}
    assert [found[number].status for number in range(6)] == [
        "finished", "unfinished", "failed", "stopped early", "unfinished", "unfinished",
    ]  # fmt: skip
    assert found[2].reason == "ArithmeticError: one leg too few"
    assert "training_iteration 4" in found[3].reason
    assert found[4].reason == "not started"
    assert found[5].reason == "no result yet"
    assert found[0].env_steps == 4000
    assert found[0].evaluation_score == 1040
    assert found[0].training_score == 40.5
    assert found[0].evaluation_episodes == 10
    # The folder of a trial, of an experiment, of several experiments, and a folder given twice.
    assert only(trials.read([tmp_path / "a" / "QWR_00003"])).status == "stopped early"
    assert len(trials.read([tmp_path / "a", tmp_path, tmp_path / "a" / "QWR_00003"])) == 6


def test_without_tunes_state_the_results_say_how_it_ended(tmp_path: Path) -> None:
    write_trial(tmp_path, 0, status=None)
    broken = write_trial(tmp_path, 1, status=None)
    (broken / "error.txt").write_text("KeyError: 'x'\n")
    last = json.loads((tmp_path / "QWR_00000/result.json").read_text().splitlines()[-1])
    assert last["done"] is False
    found = trials.read([tmp_path])
    assert [trial.status for trial in found] == ["unfinished", "failed"]
    with open(tmp_path / "QWR_00000/result.json", "a") as file:
        file.write(json.dumps(last | {"done": True, "training_iteration": 5}) + "\n")
    assert trials.read([tmp_path])[0].status == "finished"


def test_truncated_lines_are_counted_and_left_out(tmp_path: Path) -> None:
    folder = write_trial(tmp_path, 0, status="RUNNING")
    lines = (folder / "result.json").read_text().splitlines(keepends=True)
    lines[1] = lines[1][:100] + "\n"
    (folder / "result.json").write_text("".join(lines)[:-50])
    trial = only(trials.read([tmp_path]))
    assert trial.rows.iteration.tolist() == [1, 3]
    assert trial.notes == ["2 unreadable lines in result.json (2, 4)"]
    write([tmp_path], tmp_path / "out")
    text = (tmp_path / "out/report.md").read_text()
    assert f"Left out: {tmp_path.name}/00000: 2 unreadable lines in result.json (2, 4)." in text
    assert "1 trial, 0 of them finished, 1 group." in text


def test_a_half_written_state_is_passed_over(tmp_path: Path) -> None:
    write_trial(tmp_path, 0)
    (tmp_path / "experiment_state-2022-01-01_00-00-00.json").write_text('{"trial_data": [["{')
    assert only(trials.read([tmp_path])).status == "finished"


def test_of_an_iteration_done_again_the_last_counts(tmp_path: Path) -> None:
    write_trial(tmp_path, 0, returns=[1, 2, 3, 4, 5], status=None)
    write_trial(tmp_path, 0, returns=[30, 40], first=3, status="RUNNING")  # from a checkpoint
    assert only(trials.read([tmp_path])).rows.training_return.tolist() == [1, 2, 30, 40]
    write_trial(tmp_path, 0, returns=[100], status=None)  # from the beginning
    assert only(trials.read([tmp_path])).rows.training_return.tolist() == [100]


def test_nothing_to_report_on(tmp_path: Path) -> None:
    with pytest.raises(trials.NoResultsError, match="nowhere: no such folder"):
        trials.read([tmp_path / "nowhere"])
    with pytest.raises(trials.NoResultsError, match="no results of Tune"):
        trials.read([tmp_path])
    write_trial(tmp_path, 0, returns=[], status="RUNNING")
    with pytest.raises(trials.NoResultsError, match="no trial has results"):
        trials.read([tmp_path])


def test_results_of_something_else(tmp_path: Path) -> None:
    folder = tmp_path / "other" / "trial"
    folder.mkdir(parents=True)
    line = {"training_iteration": 1, "accuracy": 0.9, "config": {"lr": 1}, "done": True}
    (folder / "result.json").write_text(json.dumps(line) + "\n")
    with pytest.raises(trials.NoResultsError, match="not the results of an RLlib algorithm"):
        trials.read([tmp_path])
    write_trial(tmp_path / "ours", 0)
    foreign, ours = sorted(trials.read([tmp_path]), key=lambda trial: len(trial.rows))
    assert foreign.status == "failed"
    assert ours.status == "finished"


def test_no_episode_has_ended_yet(tmp_path: Path) -> None:
    write_trial(tmp_path, 0, returns=[float("nan")] * 2, evaluated=(), status="RUNNING")
    trial = only(trials.read([tmp_path]))
    assert trial.status == "unfinished"
    assert len(trial.rows) == 2
    summary = write([tmp_path], tmp_path / "out")
    assert summary.num_finished == 0
    # The paper has a score of this task; its line would cross the text that replaces the curves.
    [drawing] = figures.draw(groups.group([trial]), "iqr")
    [axes] = drawing.figure.axes
    assert [text.get_text() for text in axes.texts] == ["no return yet"]
    assert not axes.lines


def test_without_an_evaluation_nothing_is_empty(tmp_path: Path) -> None:
    for seed in range(2):
        write_trial(tmp_path, seed, seed=seed, evaluated=())
    found = trials.read([tmp_path])
    cells = groups.group(found)
    for table in (tables.final_scores(cells), tables.all_trials(found)):
        assert not [name for name in table.text.columns if "evaluation" in name]
        assert not (table.text == "-").all().any()
    assert not (tables.final_scores(cells).text == "-").any(axis=None)
    assert tables.beside_the_paper(cells) is None
    drawing = figures.draw(cells, "iqr")[0]
    [axes] = drawing.figure.axes
    assert "training" in axes.get_title()
    assert axes.lines


def test_many_environments_have_a_small_panel_each(tmp_path: Path) -> None:
    envs = ["Walker2d-v5", "Hopper-v5", "HalfCheetah-v5", "Humanoid-v5", "Pendulum-v1"]
    for number, (env, backup) in enumerate(itertools.product(envs, ["max", "mean"])):
        evaluated = () if env == "Pendulum-v1" else (2, 4)
        write_trial(tmp_path, number, env=env, backup=backup, evaluated=evaluated)
    cells = groups.group(trials.read([tmp_path]))
    drawing = figures.draw(cells, "iqr")[0]
    assert drawing.name == "overview"
    drawing.figure.savefig(io.BytesIO(), format="png", dpi=100)
    assert_readable(drawing.figure)
    titles = [axes.get_title() for axes in drawing.figure.axes]
    assert titles == sorted([*envs[:4], "Pendulum-v1 (training)"])
    widths = {round(axes.get_position().width, 3) for axes in drawing.figure.axes}
    assert len(widths) == 1
    [legend] = drawing.figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["backup=max", "backup=mean", "paper, QWR-LSE at 100K"]
    few = [cell for cell in cells if cell.env in envs[:2]]
    assert "overview" not in [each.name for each in figures.draw(few, "iqr")]


# --- Grouping ------------------------------------------------------------------------------


def test_groups_are_what_differs_in_the_seed_alone(tmp_path: Path) -> None:
    for number, (backup, seed) in enumerate(itertools.product(["max", "logsumexp"], range(3))):
        write_trial(tmp_path, number, backup=backup, seed=seed, learner_threads=1 + seed)
    found = groups.group(trials.read([tmp_path]))
    assert [group.label for group in found] == ["backup=logsumexp", "backup=max"]
    assert [group.variant for group in found] == ["QWR-LSE", "QWR-MAX"]
    assert [[trial.seed for trial in group.trials] for group in found] == [[0, 1, 2], [0, 1, 2]]


def test_environments_and_algorithms_are_never_mixed(tmp_path: Path) -> None:
    write_trial(tmp_path / "a", 0)
    write_trial(tmp_path / "b", 1, env="Hopper-v5")
    other = write_trial(tmp_path / "c", 2, status=None)
    other.rename(tmp_path / "c" / "PPO_00002")
    found = groups.group(trials.read([tmp_path]))
    kinds = [(group.algorithm, group.env, len(group.trials)) for group in found]
    assert kinds == [("QWR", "Hopper-v5", 1), ("PPO", "Walker2d-v5", 0), ("QWR", "Walker2d-v5", 1)]
    assert found[1].label == "PPO"


def test_a_mapping_in_some_trials_is_a_setting(tmp_path: Path) -> None:
    logged = {"dataset": "none/such-v0", "iterations": 2}
    write_trial(tmp_path, 0, offline=None, env_config={})
    write_trial(tmp_path, 1, offline=logged, env_config={}, seed=1)
    write_trial(tmp_path, 2, offline=None, env_config={"healthy_reward": 0}, seed=2)
    found = groups.group(trials.read([tmp_path]))
    assert [len(cell.trials) for cell in found] == [1, 1, 1]
    assert found[0].settings.keys() == {"env_config", "offline"}
    assert logged in [cell.settings["offline"] for cell in found]


def test_shorter_training_on_logged_data_is_left_out(tmp_path: Path) -> None:
    logged = {"offline": {"dataset": "none/such-v0"}}
    write_trial(tmp_path, 0, steps=0, **logged)
    write_trial(tmp_path, 1, steps=0, returns=range(8), seed=1, **logged)
    cell = only(groups.group(trials.read([tmp_path])))
    assert [trial.seed for trial in cell.trials] == [1]
    assert only(cell.others).reason == "ended at 4 iterations, others at 8"


def test_logged_data_is_a_kind_of_its_own(tmp_path: Path) -> None:
    logged = {"offline": {"dataset": "none/such-v0", "num_episodes": 5}}
    write_trial(tmp_path, 0)
    for seed in (0, 1):
        write_trial(tmp_path, 1 + seed, steps=0, seed=seed, **logged)
    online = {"dataset": "none/such-v0", "iterations": 2}
    write_trial(tmp_path, 3, steps=500, offline=online)
    found = groups.group(trials.read([tmp_path]))
    assert [(cell.offline, len(cell.trials)) for cell in found] == [(False, 1), (True, 2)]
    assert [cell.budget for cell in found] == ["4 000", "4 iterations on logged data"]
    # The paper's Table 1 has no results on logged data.
    beside = tables.beside_the_paper(found)
    assert beside is not None
    assert list(beside.frame.env_steps) == [4000]


def test_curves_on_logged_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def mean_return(config: OfflineConfig) -> float:
        asked.append((config.dataset, config.num_episodes))
        return 1025.0

    monkeypatch.setattr(offline, "mean_return", mean_return)
    logged = {"offline": {"dataset": "some/expert-v0", "num_episodes": 5}}
    write_trial(tmp_path, 0, steps=0, evaluated=(1, 2, 3, 4), **logged)
    figure = figures.draw(groups.group(trials.read([tmp_path])), "iqr")[0].figure
    (axes,) = figure.axes
    assert axes.get_title() == "Walker2d-v5, logged data: evaluation (mode of the policy)"
    assert axes.get_xlabel() == "iterations"
    returns, line = axes.get_lines()
    assert returns.get_xydata().tolist() == [[1, 1010], [2, 1020], [3, 1030], [4, 1040]]
    assert line.get_ydata() == [1025, 1025]
    assert asked == [("some/expert-v0", 5)]


def test_a_group_looks_the_same_in_all_environments(tmp_path: Path) -> None:
    write_trial(tmp_path, 0, backup="max")
    write_trial(tmp_path, 1, backup="mean")
    write_trial(tmp_path, 2, backup="mean", env="Hopper-v5")
    write_trial(tmp_path, 3, backup="logsumexp", env="Hopper-v5")
    figure = figures.draw(groups.group(trials.read([tmp_path])), "iqr")[0].figure
    looks: dict[str, set[tuple[str, str]]] = {}
    for part in figure.subfigs:
        (legend,) = part.legends
        for line, text in zip(legend.get_lines(), legend.get_texts(), strict=True):
            if "paper" not in text.get_text():
                look = (str(line.get_color()), str(line.get_marker()))
                looks.setdefault(text.get_text(), set()).add(look)
    assert len(looks) == 3
    assert {len(of_one) for of_one in looks.values()} == {1}
    assert len(set.union(*looks.values())) == 3


def test_curves_on_data_that_is_gone(tmp_path: Path) -> None:
    write_trial(tmp_path, 0, steps=0, offline={"dataset": "/none/such"})
    figure = figures.draw(groups.group(trials.read([tmp_path])), "iqr")[0].figure
    assert len(figure.axes[0].get_lines()) == 1


def test_what_is_not_averaged(tmp_path: Path) -> None:
    write_trial(tmp_path / "a", 0, seed=0)
    # It is at its last step, but is not known to have ended.
    write_trial(tmp_path / "a", 1, seed=1, returns=[9e9] * 4, status="RUNNING")
    write_trial(tmp_path / "a", 2, seed=2, returns=[9e9] * 4, status="ERROR")
    write_trial(tmp_path / "a", 3, seed=3, steps=500)
    write_trial(tmp_path / "b", 4, seed=0, returns=[20, 30, 40, 50])
    found = trials.read([tmp_path])
    cell = only(groups.group(found))
    assert [trial.trial_id for trial in cell.trials] == ["00004"]
    assert cell.scores("evaluation_score") == [1050]
    reasons = {trial.trial_id: trial.reason for trial in cell.others}
    assert set(reasons) == {"00000", "00001", "00002", "00003"}
    assert reasons["00000"].startswith("same seed as the later trial in ")
    assert reasons["00003"] == "ended at 2000 steps, others at 4000"
    listed = tables.left_out(found, [cell])
    assert listed is not None
    assert listed.frame.status.tolist() == ["left out", "unfinished", "failed", "left out"]
    assert "9e" not in tables.final_scores([cell]).markdown


def test_unseeded_trials_are_seeds_of_their_own(tmp_path: Path) -> None:
    for number in range(3):
        write_trial(tmp_path, number, seed=None)
    assert len(only(groups.group(trials.read([tmp_path]))).trials) == 3


def test_a_key_that_older_results_lack_is_no_difference(tmp_path: Path) -> None:
    write_trial(tmp_path, 0, seed=0)
    write_trial(tmp_path, 1, seed=1, overlap_sampling=False)
    assert len(only(groups.group(trials.read([tmp_path]))).trials) == 2


# --- Tables --------------------------------------------------------------------------------


def test_final_scores_by_hand(tmp_path: Path) -> None:
    for seed, last in enumerate([0, 10, 20, 30, 900]):
        write_trial(tmp_path, seed, seed=seed, returns=[1, 2, 3, last])
    found = groups.group(trials.read([tmp_path]))
    table = tables.final_scores(found)
    row = table.frame.iloc[0]
    assert row.evaluation_iqm == 1020  # the middle three of 1000, 1010, 1020, 1030, 1900
    assert row.evaluation_mean == 1192
    assert row.evaluation_std == pytest.approx(np.std([0, 10, 20, 30, 900], ddof=1))
    assert row.training_iqm == 20.5
    assert row.seeds == 5
    assert row.env_steps == 4000
    assert 1000 <= row.evaluation_low < 1020 < row.evaluation_high <= 1900
    assert "1020 [" in table.markdown
    assert "10 episodes" in table.notes[0]
    beside = tables.beside_the_paper(found)
    assert beside is not None
    assert beside.text["QWR-LSE"].tolist() == ["1301 ± 445"]
    assert beside.frame.same_in_the_paper.tolist() == ["QWR-MAX"]
    assert "Table 1" in beside.notes[0]
    assert "not 100 000" in beside.notes[1]


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    write_trial(tmp_path, 0, seed=0)
    table = tables.final_scores(groups.group(trials.read([tmp_path])))
    assert np.isnan(table.frame.evaluation_low[0])
    assert table.text["evaluation, IQM [95 %]"].tolist() == ["1040 [-]"]
    assert table.text["mean ± std"].tolist() == ["1040"]
    assert "One seed" in table.notes[-1]


def test_human_normalized_over_games(tmp_path: Path) -> None:
    # Evaluations are 1000 above these: 14.6 in Pong is 1; 30.5 and 1.7 in Breakout are 1 and 0.
    pong = {"env": "Atari100k", "env_config": {"game": "pong"}}
    write_trial(tmp_path, 0, **pong, returns=[0, 0, 0, 14.6 - 1000])
    for seed, score in enumerate([30.5, 1.7]):
        returns = [0, 0, 0, score - 1000]
        write_trial(tmp_path, 1 + seed, env="ale_py:ALE/Breakout-v5", seed=seed, returns=returns)
    table = tables.human_normalized(groups.group(trials.read([tmp_path])))
    assert table is not None
    frame = table.frame.set_index("game")
    assert frame.loc["Pong", "score_iqm"] == pytest.approx(1)
    assert frame.loc["Breakout", "score_iqm"] == pytest.approx(0.5)
    assert frame.loc["all 2 games", "score_iqm"] == pytest.approx(2 / 3)  # of three scores
    assert frame.loc["all 2 games", "mean"] == pytest.approx(0.75)  # of two games
    assert np.isnan(frame.loc["all 2 games", "score_low"])  # Pong has one seed
    theirs = table.frame[table.frame.group == "SimPLe (paper)"].iloc[0]
    assert theirs["mean"] == pytest.approx(((16.4 - 1.7) / 28.8 + (12.8 + 20.7) / 35.3) / 2)
    assert tables.human_normalized([]) is None


def test_a_game_by_two_names_is_in_the_table_twice(tmp_path: Path) -> None:
    pong = {"env": "Atari100k", "env_config": {"game": "pong"}}
    write_trial(tmp_path, 0, **pong, returns=[0, 0, 0, 14.6 - 1000])
    write_trial(tmp_path, 1, env="ale_py:ALE/Pong-v5", returns=[0, 0, 0, -20.7 - 1000])
    table = tables.human_normalized(groups.group(trials.read([tmp_path])))
    assert table is not None
    ours = table.frame[table.frame.seeds > 0]
    assert sorted(ours.score_iqm) == pytest.approx([0, 1])
    assert ours.group.nunique() == 2


# --- What comes out ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ablation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two backups, two margins, two numbers of samples, two seeds; the last cell unfinished."""
    folder = tmp_path_factory.mktemp("results") / "ablation"
    grid = itertools.product(["logsumexp", "max"], [1, 3], [2, 16], [0, 1])
    for number, (backup, margin, samples, seed) in enumerate(grid):
        write_trial(
            folder,
            number,
            backup=backup,
            margin=margin,
            n_action_samples=samples,
            seed=seed,
            returns=[10 * margin, 20 + seed, 30, 40 + samples],
            status="TERMINATED" if number < 14 else "RUNNING",
        )
    (folder / "commands.txt").write_text("rllib train file 'a & b.yaml'\n")
    return folder


@pytest.fixture(scope="module")
def written(ablation: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "out"
    summary = write([ablation], out, title="A <b>title</b>")
    assert (summary.num_trials, summary.num_finished) == (16, 14)
    assert all(file.is_file() for file in summary.files)
    return out


def test_files(written: Path) -> None:
    names = {str(file.relative_to(written)) for file in written.rglob("*.*")}
    assert {
        "report.md",
        "report.html",
        "tables/final_scores.csv",
        "tables/final_scores.md",
        "tables/paper.csv",
        "tables/left_out.csv",
        "tables/trials.csv",
        "tables/results.csv",
        "figures/learning-curves.png",
        "figures/ablation-Walker2d-v5.png",
        "figures/ablation-Walker2d-v5.svg",
        "figures/final-scores-Walker2d-v5.png",
    } <= names
    text = (written / "report.md").read_text()
    assert "rllib train file 'a & b.yaml'" in text
    for place in re.findall(r"\]\(([^)]*)\)", text):
        assert (written / place).is_file(), place
    assert len((written / "tables/results.csv").read_text().splitlines()) == 1 + 16 * 4
    assert len((written / "tables/trials.csv").read_text().splitlines()) == 1 + 16


def test_the_same_results_give_the_same_files(
    ablation: Path, written: Path, tmp_path: Path
) -> None:
    write([ablation], tmp_path, title="A <b>title</b>")
    for name in ("report.md", "tables/final_scores.csv", "figures/ablation-Walker2d-v5.svg"):
        assert (tmp_path / name).read_bytes() == (written / name).read_bytes()


def test_figures_are_readable(ablation: Path) -> None:
    """All texts are inside the figure, and no two overlap."""
    cells = groups.group(trials.read([ablation]))
    for drawing in figures.draw(cells, "mean-ci"):
        drawing.figure.savefig(io.BytesIO(), format="png", dpi=100)
        assert_readable(drawing.figure)
        labels = [axes.get_xlabel() for axes in drawing.figure.axes]
        labels.append(drawing.figure.get_supxlabel())
        assert any("return" in label or "environment steps" in label for label in labels)


def assert_readable(figure: Figure) -> None:
    canvas = figure.bbox.padded(2)
    hidden = _hidden_tick_labels(figure)
    texts = [
        (text.get_text(), text.get_window_extent())
        for text in figure.findobj(Text)
        if text.get_text().strip() and text.get_visible() and text not in hidden
    ]
    assert len(texts) > 10
    for name, box in texts:
        assert canvas.x0 <= box.x0, name
        assert box.x1 <= canvas.x1, name
        assert canvas.y0 <= box.y0, name
        assert box.y1 <= canvas.y1, name
    for (one, box), (other, other_box) in itertools.combinations(texts, 2):
        assert not box.padded(-1).overlaps(other_box.padded(-1)), (one, other)


def _hidden_tick_labels(figure: Figure) -> set[Text]:
    """Returns tick labels outside an axis' limits, which matplotlib makes but does not draw."""
    return {
        label
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks() + axis.get_minor_ticks()
        for label in (tick.label1, tick.label2)
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }


def test_grid_axes(ablation: Path, tmp_path: Path) -> None:
    cells = groups.group(trials.read([ablation]))
    assert figures.grid_axes(cells) == figures.GridAxes("backup", "margin", "n_action_samples")
    for cell in cells:  # values may be lists
        cell.settings["margin"] = [cell.settings["margin"]]
    assert (
        len(figures.small_multiples("x", cells, figures.grid_axes(cells), "iqr").figure.axes) == 4
    )
    # A search is no grid because its trials share no values.
    for number in range(12):
        values = {"beta": 0.1 * 1.7**number, "critic_lr": 1e-4 + number * 1e-5}
        status = "RUNNING" if number % 3 else "TERMINATED"
        write_trial(tmp_path, number, status=status, **values)
    cells = groups.group(trials.read([tmp_path]))
    assert figures.grid_axes(cells) is None
    names = [drawing.name for drawing in figures.draw(cells, "iqr")]
    assert "parameters-Walker2d-v5" in names


def test_page_is_one_file(written: Path) -> None:
    page = (written / "report.html").read_text()
    assert "A &lt;b&gt;title&lt;/b&gt;" in page
    assert "a &amp; b.yaml" in page
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    assert "@import" not in page
    assert page.count('src="data:image/svg+xml;base64,') == 3
    for label in ("backup=logsumexp, margin=1, n_action_samples=2", "unfinished"):
        assert label in page


PROBE = """
<script>
window.addEventListener("load", () => {
  const found = {
    pictures: [...document.images].map((image) => image.complete && image.naturalWidth > 300),
    fetched: performance.getEntriesByType("resource").map((each) => each.name)
      .filter((name) => !name.startsWith("data:")),
    wide: document.documentElement.scrollWidth > window.innerWidth,
    columns: [],
  };
  for (const table of document.querySelectorAll("table")) {
    for (const button of table.querySelectorAll("th button")) {
      const sorted = [];
      for (let click = 0; click < 2; click++) {
        button.click();
        const column = button.parentElement.cellIndex;
        sorted.push([...table.tBodies[0].rows].map((row) => row.cells[column].textContent));
      }
      found.columns.push([button.textContent, ...sorted]);
    }
  }
  fetch("http://127.0.0.1:9/").then(() => { found.open = true; }, () => { found.open = false; })
    .finally(() => { document.body.textContent = "FOUND" + JSON.stringify(found) + "END"; });
});
</script>
"""


def in_a_browser(page: Path, profile: Path, *options: str) -> str:
    """Opens a page in a headless Chromium and returns the browser's output."""
    browser = next(filter(None, map(shutil.which, BROWSERS)))
    # fmt: off
    ended = subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={profile}", "--window-size=1200,2600", "--hide-scrollbars",
            "--virtual-time-budget=10000", *options, page.as_uri(),
        ],
        check=True, capture_output=True, timeout=300, text=True,
    )
    # fmt: on
    return ended.stdout


def size(text: str) -> float:
    """Returns the number in a cell such as "1 000" or "12.0 [10.0, 13.0]"."""
    return float(text.partition("[")[0].replace(" ", ""))


@pytest.mark.skipif(not any(map(shutil.which, BROWSERS)), reason="no Chromium on this machine")
def test_page_in_a_browser(written: Path, tmp_path: Path) -> None:
    probed = tmp_path / "probed.html"
    page = (written / "report.html").read_text()
    probed.write_text(page.replace("</body>", PROBE + "</body>"))
    dom = in_a_browser(probed, tmp_path / "profile", "--dump-dom")
    [text] = re.findall(r"FOUND(.*)END", html.unescape(dom))
    found = json.loads(text)
    assert found["pictures"] == [True] * 3
    assert found["fetched"] == []
    assert found["open"] is False
    assert not found["wide"]  # the page does not scroll sideways
    columns: dict[str, list[list[str]]] = {}
    for name, *orders in found["columns"]:
        columns.setdefault(name, []).extend(orders)
    for rising, falling in zip(*[iter(columns["evaluation, IQM [95 %]"])] * 2, strict=True):
        there = [cell for cell in rising if cell != "-"]
        assert [size(cell) for cell in there] == sorted(map(size, there))
        assert len({size(cell) for cell in there}) > 1
        # Missing values come last in both orders.
        assert rising[len(there) :] == falling[len(there) :] == ["-"] * (len(rising) - len(there))
        assert [size(cell) for cell in falling[: len(there)]] == sorted(map(size, there))[::-1]
    rising, falling = columns["group"][:2]
    assert rising == sorted(rising)
    assert falling == rising[::-1]

    picture = tmp_path / "page.png"
    in_a_browser(written / "report.html", tmp_path / "profile", f"--screenshot={picture}")
    pixels = (image.imread(picture)[..., :3] * 255).round().astype(int)
    assert pixels.shape[:2] == (2600, 1200)
    # The figures are shown: the colour of the first curve, and that of the confidence bars.
    blue = np.array([0x00, 0x72, 0xB2])
    assert (np.abs(pixels - blue).sum(-1) < 10).sum() > 200


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(qwr, [str(argument) for argument in arguments])


def test_command(ablation: Path, tmp_path: Path) -> None:
    result = invoke("report", ablation, "--out", tmp_path / "new/out", "--interval", "mean-ci")
    assert result.exit_code == 0, result.output
    assert "16 trials, 2 of them not finished" in result.stdout
    assert "mean and 95 % bootstrap interval" in (tmp_path / "new/out/report.md").read_text()


def test_command_of_one_trial_with_a_line_that_cannot_be_read(tmp_path: Path) -> None:
    folder = write_trial(tmp_path, 0)
    with open(folder / "result.json", "a") as file:
        file.write('{"training_iteration": 5, "num_env')
    result = invoke("report", tmp_path, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[:2] == [
        "1 trial, 0 of them not finished",
        f"Left out: {tmp_path.name}/00000: 1 unreadable line in result.json (5)",
    ]
    assert "1 seeds" not in (tmp_path / "out/report.md").read_text()


def test_command_refuses(ablation: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for arguments, part in (
        (["report", tmp_path, "--out", tmp_path / "out"], "no results of Tune"),
        (["report", tmp_path / "missing", "--out", tmp_path / "out"], "missing: no such folder"),
        (["report", ablation, "--out", tmp_path / "file"], "expected a folder, "),
        (["report", ablation, "--out", tmp_path / "out", "--interval", "std"], "'std'"),
        (["report", ablation], "--out"),
        (["report", "--out", tmp_path / "out"], "PATH"),
    ):
        result = invoke(*arguments)
        assert result.exit_code == 2, arguments
        assert part in result.stderr
        assert result.stderr.count("\n") == 1
        assert not (tmp_path / "out").exists()


def test_command_says_what_to_install(
    ablation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("qwr_rllib.report.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = invoke("report", ablation, "--out", tmp_path)
    assert result.exit_code == 2
    assert "matplotlib: pip install 'qwr-rllib[report]'" in result.stderr
