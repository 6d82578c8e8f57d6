"""A checkpoint's folder: what a save replaces, what it keeps, and a kill at any moment."""

import fcntl
import itertools
import os
import shutil
import stat
import threading

import numpy as np
import pytest

from qwr_rllib.algorithms.checkpoint import (
    MARKERS,
    NAMES,
    VALID,
    finish,
    opened,
    read_replay,
    replaced,
)
from qwr_rllib.cli.evaluation import find_checkpoint

FILES = ["algorithm_state.pkl", "policies/p/policy_state.pkl", "policies/p/rllib_checkpoint.json",
         "replay.npz", "rllib_checkpoint.json"]  # fmt: skip


def write(folder, text):
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def save(place, text):
    with replaced(place) as folder:
        write(folder, text)


def texts(place):
    return [(place / name).read_text() if (place / name).exists() else None for name in FILES]


def everything(place):
    return sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())


def test_only_the_checkpoint_is_replaced(tmp_path):
    save(tmp_path, "old")
    for name in ("notes.txt", "plots/a.png", "policies/mine.txt", ".hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    before = everything(tmp_path)
    save(tmp_path, "new")
    assert texts(tmp_path) == ["new"] * len(FILES)
    assert everything(tmp_path) == before
    assert (tmp_path / "policies/mine.txt").read_text() == "mine"


@pytest.mark.parametrize("name", sorted(NAMES - {MARKERS[-1]}))
def test_what_is_of_no_checkpoint_is_not_replaced(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError, match=rf"be a checkpoint or have no {name}, "):
        save(tmp_path, "new")
    assert (tmp_path / name).read_text() == "mine"
    assert os.listdir(tmp_path) == [name]


class Killed(BaseException):
    """Simulates a kill: nothing runs after it."""


@pytest.mark.parametrize("before", [None, "old"])
def test_a_death_at_any_moment_leaves_one_whole_checkpoint(tmp_path, monkeypatch, before):
    states = ([before] * len(FILES), ["new"] * len(FILES))
    seen = []
    for moment in itertools.count():
        place = tmp_path / str(moment)
        place.mkdir()
        if before:
            save(place, before)
        steps = iter(range(moment))

        def dying(call, steps=steps):
            def step(*args, **kwargs):
                if next(steps, None) is None:
                    raise Killed
                return call(*args, **kwargs)

            return step

        with monkeypatch.context() as patch:
            for name in ("replace", "mkdir", "unlink", "rmdir"):
                patch.setattr(os, name, dying(getattr(os, name)))
            patch.setattr(shutil, "rmtree", dying(shutil.rmtree))
            try:
                save(place, "new")
                break
            except Killed:
                pass
        if all((place / name).exists() for name in MARKERS):  # what RLlib would open
            assert texts(place) in states
        finish(place)
        assert texts(place) in states
        seen.append(texts(place)[0])
        save(place, "next")
        assert texts(place) == ["next"] * len(FILES)
        assert everything(place) == sorted(FILES)
    # First the old checkpoint, then the new one. The move has a step for each file.
    assert seen == sorted(seen, key=lambda text: text == "new")
    assert seen.count(before) >= 2
    assert seen.count("new") >= len(FILES)


def test_rllib_evaluate_finds_what_a_killed_process_left(tmp_path):
    write(tmp_path / VALID, "new")
    assert find_checkpoint(tmp_path) == tmp_path
    assert texts(tmp_path) == ["new"] * len(FILES)


def test_modes_follow_the_umask_and_a_folder_keeps_its_own(tmp_path):
    tmp_path.chmod(0o2775)
    before = os.umask(0o027)
    try:
        save(tmp_path, "new")
    finally:
        os.umask(before)
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in (*FILES, "policies")}
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o2775
    assert modes.pop("policies") & 0o777 == 0o750
    assert set(modes.values()) == {0o640}


def test_links_relative_paths_and_parents_that_cannot_be_written(tmp_path, monkeypatch):
    place = tmp_path / "parent" / "place"
    place.mkdir(parents=True)
    (tmp_path / "link").symlink_to(place)
    changed = place.parent.stat().st_mtime_ns
    save(tmp_path / "link", "1")
    assert texts(place) == ["1"] * len(FILES)
    monkeypatch.chdir(place)
    for path in (".", "../place", f"{place}/"):
        save(type(place)(path), path)
        assert texts(place) == [path] * len(FILES)
    assert (tmp_path / "link").is_symlink()
    assert os.path.samefile(os.getcwd(), place)
    # Nothing was created or renamed in the parent, which may be read-only or on another disk.
    assert place.parent.stat().st_mtime_ns == changed
    with opened(type(place)(".")) as folder:
        assert folder == place


def test_a_file_as_target_stays(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="file"):
        save(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "mine"


def test_another_writer_is_waited_for(tmp_path):
    with replaced(tmp_path) as folder:
        # Locks belong to open files: they hold between threads as between processes.
        other = threading.Thread(target=save, args=(tmp_path, "other"))
        other.start()
        other.join(0.3)
        assert other.is_alive()
        assert folder.is_dir()  # not removed as the rest of a killed process
        write(folder, "own")
    other.join()
    assert texts(tmp_path) == ["other"] * len(FILES)
    assert everything(tmp_path) == sorted(FILES)


def test_without_locks_no_other_writer_is_disturbed(tmp_path, monkeypatch):
    def no_locks(*args):
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with replaced(tmp_path) as other:
        save(tmp_path, "own")
        assert texts(tmp_path) == ["own"] * len(FILES)
        write(other, "other")
    assert texts(tmp_path) == ["other"] * len(FILES)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([{}], object), "must have arrays of numbers, 'slots' is another"),
        (np.array(["a"]), "must have arrays of numbers, 'slots' is another"),
    ],
)
def test_a_replay_of_objects_is_named(tmp_path, array, message):
    np.savez(tmp_path / "replay.npz", counters=np.zeros(3), slots=array)
    with pytest.raises(ValueError, match=message) as error, opened(tmp_path):
        read_replay(tmp_path)
    assert str(error.value).startswith(f"checkpoint {tmp_path}: replay.npz ")
    assert "allow_pickle" not in str(error.value)


@pytest.mark.parametrize("content", [b"hello", b"\x80\x04N."])
def test_a_replay_that_is_another_file_is_named(tmp_path, content):
    (tmp_path / "replay.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"must be arrays as numpy\.savez writes them") as error:
        read_replay(tmp_path)
    assert "pickle" not in str(error.value)
    with open(tmp_path / "replay.npz", "wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match=r"must be arrays as numpy\.savez writes them"):
        read_replay(tmp_path)
