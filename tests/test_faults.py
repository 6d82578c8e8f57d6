"""What the kill of a process loses, and what it does not: SIGKILL in the middle of runs."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import ray
from ledger import Ledger, held, written
from ray import tune
from ray.tune.registry import register_env

from qwr_rllib import QWR, QWRConfig
from qwr_rllib.replay.actor import Receipt
from qwr_rllib.replay.client import ReplayClient
from qwr_rllib.replay.layout import Slot
from qwr_rllib.replay.recovery import store_arrays
from qwr_rllib.replay.replica import ReplayView
from qwr_rllib.replay.storage import ReplayStorage
from qwr_rllib.sampling.worker import collect, resend
from qwr_rllib.specs import Spec

pytestmark = pytest.mark.ray

TINY = {
    "n_interactions": 100,
    "n_critic_steps": 10,
    "n_actor_steps": 10,
    "target_update_freq": 10,
    "train_batch_size": 16,
    "replay_capacity": 1000,
    "learner_threads": 1,
}


@pytest.fixture(scope="module", autouse=True)
def cluster():
    patch = pytest.MonkeyPatch()
    # Workers and drivers of the cluster import modules of this folder.
    patch.setenv("PYTHONPATH", os.path.dirname(__file__), prepend=os.pathsep)
    context = ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    register_env("ledger", Ledger)
    yield context
    ray.shutdown()
    patch.undo()


def tiny(
    folder: Path, num_env_runners: int = 0, sample_timeout_s: float = 600, **training
) -> QWRConfig:
    return (
        QWRConfig()
        .environment("ledger", env_config={"folder": str(folder)})
        .env_runners(num_env_runners=num_env_runners, sample_timeout_s=sample_timeout_s)
        .debugging(seed=3)
        .training(**TINY | training)
    )


@pytest.fixture
def build(tmp_path):
    algos = []

    def build(num_env_runners=0, **training):
        algos.append(tiny(tmp_path, num_env_runners, **training).build_algo())
        return algos[-1]

    yield build
    for algo in algos:
        algo.stop()


def pid_of(actor) -> int:
    return ray.get(actor.__ray_call__.remote(lambda self: os.getpid()))


def state(algo) -> dict[str, np.ndarray]:
    return ray.get(algo.replay.state_arrays.remote())


def assert_same_rows(lost: dict[str, np.ndarray], refilled: dict[str, np.ndarray]) -> None:
    """Checks that two stores have the same arrays, except for the order of free slots."""
    assert lost.keys() == refilled.keys()
    for name in lost.keys() - {"free"}:
        np.testing.assert_array_equal(lost[name], refilled[name], err_msg=name)
    np.testing.assert_array_equal(np.sort(lost["free"]), np.sort(refilled["free"]))


def assert_ends(arrays: dict[str, np.ndarray]) -> None:
    """Checks that odd episodes terminate at their last step and even ones are truncated there."""
    rows = arrays["column_kind"] == Slot.ROW
    episodes, times = arrays["column_obs"][rows].T
    assert {0, 1} == set(episodes[times == 29] % 2)
    np.testing.assert_array_equal(
        arrays["column_terminateds"][rows], (times == 29) & (episodes % 2 == 1)
    )


def assert_nothing_lost(algo, folder: Path, environments: int = 1) -> None:
    """Checks that the replay has each step once, except the one that RLlib makes in advance."""
    arrays = state(algo)
    rows, steps = held(arrays), written(folder)
    assert_ends(arrays)
    assert len(set(rows)) == len(rows)
    assert set(rows) < set(steps)
    assert len(steps) == len(rows) + environments


def test_the_replay_is_refilled_row_by_row(build):
    algo = build(replay_capacity=250)  # the third iteration evicts
    for _ in range(3):
        algo.train()
    lost, first = state(algo), algo.replay
    os.kill(pid_of(first), signal.SIGKILL)
    algo.replay_client.call("metrics")
    assert algo.replay != first
    assert_same_rows(lost, state(algo))
    result = algo.train()
    assert result["replay"]["num_restarts_lifetime"] == 1
    assert result["num_env_steps_sampled_lifetime"] == 400
    # The observation statistics count each row once.
    assert algo.learner.networks.normalizer.count.item() == 400


def test_rows_that_the_view_lacks_are_sent_again(build, tmp_path):
    algo = build()
    algo.train()
    algo._collect()  # 100 more rows, which only the replay and the worker have
    lost = state(algo)
    os.kill(pid_of(algo.replay), signal.SIGKILL)
    algo._update_view()
    assert algo.view.num_rows == 200
    assert_same_rows(lost, state(algo))
    assert_nothing_lost(algo, tmp_path)
    # The next round's rows are not mixed with these.
    assert algo.train()["replay"]["num_rows"] == 300
    assert_nothing_lost(algo, tmp_path)


@pytest.mark.parametrize("overlap", [False, True])
def test_the_replay_is_killed_and_an_environment_hangs(build, tmp_path, caplog, overlap):
    """The replay dies while workers sample; two iterations later an environment hangs."""
    algo = build(num_env_runners=2, overlap_sampling=overlap, sample_timeout_s=10)
    algo.train()
    (tmp_path / "kill").write_text(str(pid_of(algo.replay)))
    for iteration in (2, 3):
        result = algo.train()
        assert result["num_env_steps_sampled_lifetime"] == 100 * iteration
        assert result["replay"]["num_rows"] == 100 * iteration
    assert not (tmp_path / "kill").exists()
    assert result["replay"]["num_restarts_lifetime"] == 1
    assert len(held(state(algo))) == (400 if overlap else 300)  # the fourth iteration's rows
    assert_nothing_lost(algo, tmp_path, environments=2)

    # Kill the worker together with its environment: only rows that it had not sent are lost.
    (tmp_path / "hang").touch()
    for iteration in (4, 5):
        result = algo.train()
        assert result["num_env_steps_sampled_lifetime"] == 100 * iteration
    assert not (tmp_path / "hang").exists()
    assert "no answer within sample_timeout_s (10 s)" in caplog.text
    rows = held(state(algo))
    assert len(rows) == len(set(rows)) >= 500
    assert set(rows) <= set(written(tmp_path))


def test_the_only_rollout_worker_killed_while_it_samples(build, tmp_path):
    algo = build(num_env_runners=1)
    algo.train()
    (tmp_path / "kill").write_text("")
    for iteration in (2, 3):
        result = algo.train()
        assert result["num_env_steps_sampled_lifetime"] == 100 * iteration
    rows = held(state(algo))
    assert len(rows) == len(set(rows)) == 300
    assert set(rows) <= set(written(tmp_path))


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ("doomed", r"brought no rows in 2 rounds \(worker 1: its process died\)"),
        ("stillborn", r"died in 2 restarts \(worker 1: its process died\)"),
    ],
)
def test_an_environment_that_always_ends_its_process_ends_the_run(
    build, tmp_path, monkeypatch, order, message
):
    monkeypatch.setattr("qwr_rllib.sampling.collector.MAX_ROUNDS_WITHOUT_ROWS", 2)
    algo = build(num_env_runners=1)
    algo.train()
    (tmp_path / order).touch()
    (tmp_path / "kill").touch()
    with pytest.raises(RuntimeError, match=message + r".*worker-\*\.err in the logs of Ray's"):
        algo.train()


def test_environments_of_one_folder_number_their_episodes_as_one(tmp_path):
    ledgers = [Ledger({"folder": tmp_path}) for _ in range(2)]
    episodes = [int(ledger.reset()[0][0]) for _ in range(20) for ledger in ledgers]
    assert len(set(episodes)) == 40


def test_a_worker_waits_for_the_replay_and_says_how_long(build):
    # A class of a function is sent whole: its process need not import this module and RLlib.
    class Slow:
        """A slow replay that records how many adds ran at the same time."""

        def __init__(self):
            self.now = self.most = 0

        async def add(self, fragments, worker):
            self.now += 1
            self.most = max(self.most, self.now)
            await asyncio.sleep(0.2)
            self.now -= 1
            return Receipt(len(fragments), [])

        async def most_at_once(self):
            return self.most

    worker = build().env_runner
    slow = ray.remote(num_cpus=0, max_concurrency=8)(Slow).remote()
    receipts = [collect(worker, slow, round_number=0, policy_version=0) for _ in range(3)]
    assert all(receipt.blocked_s >= 0.2 for receipt in receipts)
    assert ray.get(slow.most_at_once.remote()) == 1
    # The worker keeps the rows of this round only.
    again = resend(worker, slow, round_number=0)
    assert again.num_rows_stored == sum(receipt.num_rows_stored for receipt in receipts)
    assert resend(worker, slow, round_number=1).num_rows_stored == 0


def test_a_replay_that_keeps_dying_ends_the_run():
    class Mortal:
        """A replay that dies at its first call."""

        def update(self, uid, since):
            os._exit(1)

    spec = Spec((2,), "float32", 1, False)
    replay = ReplayClient(
        ray.remote(num_cpus=0)(Mortal).remote, ReplayView(spec, 10), lambda actor: None
    )
    with pytest.raises(RuntimeError, match="died 4 times within an iteration"):
        replay.update_view()
    assert replay.num_restarts == 3


def test_a_restore_with_overlapped_rows_neither_loses_nor_repeats_them(build, tmp_path):
    """The checkpoint already has the next iteration's rows; they are collected once."""
    algo = build(num_env_runners=1, overlap_sampling=True)
    algo.train()
    algo.save(str(tmp_path / "checkpoint"))
    restored = build(num_env_runners=1, overlap_sampling=True)
    restored.restore(str(tmp_path / "checkpoint"))
    assert held(state(restored)) == held(state(algo))
    result = restored.train()
    assert result["num_env_steps_sampled_lifetime"] == 200
    assert result["replay"]["policy_age"] == 10
    # The learner saw 200 rows, each once.
    assert restored.learner.networks.normalizer.count.item() == 200


def test_an_empty_store_is_refilled_too():
    spec = Spec((2,), "float32", 1, False)
    storage, view = ReplayStorage(spec, 10), ReplayView(spec, 10)
    view.update(storage.changes())
    other = ReplayStorage(spec, 10)
    other.load(store_arrays(view, storage.outline()))
    assert_same_rows(storage.state_arrays(), other.state_arrays())


def test_a_killed_trial_goes_on_from_its_checkpoint(tmp_path):
    class Ordering(tune.Callback):
        """Requests once that the trial's process be killed in its third iteration."""

        def on_trial_result(self, iteration, trials, trial, result, **info):
            results.append(result)
            if result["training_iteration"] == 2 and not (tmp_path / "ordered").exists():
                (tmp_path / "ordered").touch()
                (tmp_path / "kill").write_text("")

    # Collect the results here, not from result.json: on a restart, Ray restores its stored copy of
    # that file, which can lack lines on a busy machine.
    results = []
    (trial,) = tune.run_experiments(
        {
            "killed": {
                "run": QWR,
                "config": tiny(tmp_path).to_dict(),
                "stop": {"training_iteration": 4},
                "checkpoint_config": {"checkpoint_frequency": 1},
                "storage_path": str(tmp_path / "results"),
                "max_failures": 1,
            }
        },
        callbacks=[Ordering()],
        verbose=0,
    )
    assert not (tmp_path / "kill").exists()
    assert [each["training_iteration"] for each in results] == [1, 2, 3, 4]
    assert [each["num_env_steps_sampled_lifetime"] for each in results] == [100, 200, 300, 400]
    assert [each["replay"]["num_rows"] for each in results] == [100, 200, 300, 400]
    assert [each["learner"]["num_actor_updates_lifetime"] for each in results] == [10, 20, 30, 40]
    assert len({each["pid"] for each in results}) == 2
    # Only the steps that the dead process made after its last checkpoint are repeated.
    with np.load(Path(trial.checkpoint.path) / "replay.npz") as arrays:
        rows = held(arrays)
    assert len(set(rows)) == 400
    assert set(rows) <= set(written(tmp_path))


KILLED_WHILE_WRITING = """
import os, signal, sys
import numpy as np
import ray
from ray.tune.registry import register_env
from ledger import Ledger
from test_faults import tiny
from pathlib import Path

folder, address, when = sys.argv[1:]
place = Path(folder) / "checkpoint"
ray.init(address=address, log_to_driver=False)
register_env("ledger", Ledger)
algo = tiny(Path(folder)).build_algo()
algo.train()
algo.save(str(place))
(place / "notes.txt").write_text("mine")
algo.train()
replace = os.replace


def killed_writing(path, **arrays):
    Path(path).write_bytes(b"half of it")
    os.kill(os.getpid(), signal.SIGKILL)


def killed_moving(source, target):
    replace(source, target)
    if Path(target).name == "replay.npz":
        os.kill(os.getpid(), signal.SIGKILL)


if when == "writing":
    np.savez = killed_writing
else:
    os.replace = killed_moving
algo.save(str(place))
"""


@pytest.mark.parametrize(("when", "iterations"), [("writing", 1), ("moving", 2)])
def test_a_driver_killed_while_it_saves(build, tmp_path, cluster, when, iterations):
    """Until the new checkpoint is complete the old one is valid, then the new one."""
    address = cluster.address_info["address"]
    process = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_WRITING, tmp_path, address, when],
        capture_output=True,
        text=True,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    place = tmp_path / "checkpoint"
    restored = build()
    restored.restore(str(place))  # as Tune does, which knows only RLlib's files
    assert len(held(state(restored))) == 100 * iterations
    assert restored.train()["num_env_steps_sampled_lifetime"] == 100 * (iterations + 1)
    restored.save(str(place))
    names = ["algorithm_state.pkl", "notes.txt", "policies", "replay.npz", "rllib_checkpoint.json"]
    assert sorted(os.listdir(place)) == names
    assert [path.name for path in tmp_path.glob("*checkpoint*")] == ["checkpoint"]
