"""The cells of benchmarks/reproduce.py; one cell is run, kept and not run again."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def reproduce(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import reproduce as script

    return lambda *arguments: CliRunner().invoke(script.main, list(map(str, arguments)))


def test_campaigns_have_the_papers_cells(reproduce, tmp_path):
    counts = {("--table", 1): 20, ("--table", 2): 24, ("--figure", 1): 24, ("--figure", 2): 9}
    for campaign, count in counts.items():
        found = reproduce(*campaign, "--seeds", 1, "--results", tmp_path, "--dry-run").stdout
        assert f"0 of {count} cells are done" in found
        names = [line for line in found.splitlines() if line.startswith("missing: ")]
        assert len(set(names)) == count


def test_what_does_not_belong_to_a_campaign_is_named(reproduce):
    result = reproduce("--table", 2, "--env", "Hopper-v5", "--dry-run")
    assert result.exit_code == 2
    assert "--env of table 2 is one of boxing, breakout" in result.stderr
    assert reproduce("--steps", 1000).exit_code == 2


def test_a_cell_is_run_kept_and_not_run_again(reproduce, tmp_path):
    config = {"n_critic_steps": 1, "n_actor_steps": 1, "n_interactions": 30, "compile": False}
    config |= {"evaluation_duration": 1}
    arguments = [
        *("--variant", "awr", "--env", "Hopper-v5", "--seeds", 1, "--in-process", "cpu"),
        *("--steps", 90, "--config", json.dumps(config), "--results", tmp_path / "kept"),
        *("--storage-path", tmp_path / "storage", "--jobs", 1),
    ]
    first = reproduce(*arguments)
    assert first.exit_code == 0, first.stdout + first.stderr
    place = tmp_path / "kept" / "awr" / "AWR_Hopper-v5_seed0" / "result.json"
    rows = [json.loads(line) for line in place.read_text().splitlines()]
    assert [row["num_env_steps_sampled_lifetime"] for row in rows] == [30, 60, 90]
    assert rows[-1]["config"]["critic_type"] == "v"
    assert len(rows[-1]["evaluation"]["env_runners"]["hist_stats"]["episode_reward"]) == 1
    assert "--variant awr" in (place.parents[1] / "commands.txt").read_text()
    assert "1 of 1 cells are done" in reproduce(*arguments).stdout


def test_sigterm_stops_the_cells_too(tmp_path):
    config = {"n_critic_steps": 1, "n_actor_steps": 1, "n_interactions": 30, "compile": False}
    command = [
        *(sys.executable, str(BENCHMARKS / "reproduce.py"), "--variant", "awr", "--seeds", "2"),
        *("--env", "Hopper-v5", "--in-process", "cpu", "--jobs", "1", "--steps", "10000000"),
        *("--config", json.dumps(config), "--results", str(tmp_path / "kept")),
        *("--storage-path", str(tmp_path / "storage")),
    ]
    first, second = (tmp_path / "storage" / f"awr-Hopper-v5-{seed}" for seed in (0, 1))
    result = first / "in_process" / "result.json"
    with subprocess.Popen(command) as process:
        try:
            for _ in range(600):
                if result.exists():
                    break
                time.sleep(0.2)
        finally:
            process.terminate()
    assert process.returncode == 128 + signal.SIGTERM
    lines = result.read_text()
    time.sleep(1)
    assert result.read_text() == lines  # an iteration takes hundredths of a second
    assert not second.exists()


def test_a_column_of_the_seed_table_is_the_nearest_evaluation(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import seed_table

    def result(steps, score):
        evaluation = {"env_runners": {"episode_return_mean": score}}
        return {
            "num_env_steps_sampled_lifetime": steps,
            "evaluation": evaluation,
            "env_runners": {"hist_stats": {"episode_reward": [*range(100), *[7.0] * 10]}},
        }

    rows = [result(10_000, 1), result(15_000, 2), result(19_000, 3), result(20_480, 4)]
    rows += [result(22_000, 8)]
    rows += [{**result(30_000, 5), "evaluation": {}}, result(33_000, 6)]
    place = tmp_path / "awr" / "AWR_Hopper-v5_seed3"
    place.mkdir(parents=True)
    (place / "result.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (found,) = seed_table.table(tmp_path)
    assert (found["variant"], found["environment"], found["seed"]) == ("awr", "Hopper-v5", 3)
    assert [found[column] for column in ("10K", "20K", "30K", "40K")] == [1, 4, "", ""]
    assert found["training"] == 7
