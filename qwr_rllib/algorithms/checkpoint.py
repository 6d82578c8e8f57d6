"""A checkpoint's files in a folder: replaced all or none, and nothing else in it is touched.

A checkpoint is written into a folder of its own inside its place. One rename makes it the valid
one; then its files are moved to where RLlib looks for them. Whoever opens or writes the checkpoint
next finishes what a killed process left of the moving.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import secrets
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

REPLAY_FILE = "replay.npz"
# By these RLlib and `rllib evaluate` know a checkpoint, so they leave first and arrive last.
MARKERS = ("algorithm_state.pkl", "rllib_checkpoint.json")
NAMES = {"policies", REPLAY_FILE, *MARKERS}
VALID = ".valid-checkpoint"


@contextlib.contextmanager
def replaced(place: Path) -> Iterator[Path]:
    """Gives a folder to write a checkpoint into, which replaces that in ``place`` at the end.

    After an exception, or when the process is killed, the one that was there before is whole.
    Another process that writes to the same place is waited for.

    Args:
        place: an existing folder.

    Raises:
        FileExistsError: if the folder has something else under a name that a checkpoint uses.
    """
    with _locked(place) as locked:
        _move(place)
        taken = sorted(NAMES & set(os.listdir(place)))
        if taken and MARKERS[-1] not in taken:
            raise FileExistsError(
                f"{place} must be a checkpoint or have no {', '.join(taken)}, which a checkpoint "
                "would replace: save into another folder"
            )
        for stale in place.glob(".partial-*") if locked else []:
            shutil.rmtree(stale)  # of a process that was killed while it wrote
        partial = place / f".partial-{secrets.token_hex(4)}"
        partial.mkdir()
        try:
            yield partial
            os.replace(partial, place / VALID)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        _move(place)


@contextlib.contextmanager
def opened(checkpoint: Path) -> Iterator[Path]:
    """Gives the absolute path of a checkpoint, and names it in what reading it raises.

    Raises:
        ValueError: if there is none, or if a file of it is missing, truncated or of something else.
    """
    checkpoint = checkpoint.absolute()
    if not checkpoint.is_dir():
        raise ValueError(f"there is no checkpoint at {checkpoint}")
    try:
        finish(checkpoint)
        yield checkpoint
    except (EOFError, OSError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise ValueError(f"checkpoint {checkpoint} is incomplete: {error}") from error
    except KeyError as error:
        raise ValueError(
            f"checkpoint {checkpoint} lacks {error}: it is of another version or algorithm"
        ) from error
    except ValueError as error:
        raise ValueError(f"checkpoint {checkpoint}: {error}") from error


def finish(place: Path) -> None:
    """Moves what a killed process did not come to move, see :func:`replaced`."""
    if (place / VALID).exists():
        with _locked(place):
            _move(place)


def read_replay(checkpoint: Path) -> dict[str, np.ndarray]:
    """The arrays of the checkpoint's replay.

    Raises:
        ValueError: if an array is not plain, or if the file is no archive of arrays.
        OSError, zipfile.BadZipFile: if the file is missing or truncated.
    """
    try:
        file = np.load(checkpoint / REPLAY_FILE, allow_pickle=False)
    except ValueError:  # NumPy takes it for a pickle
        file = None
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise ValueError(f"{REPLAY_FILE} must be arrays as numpy.savez writes them, and is not")
    arrays = {}
    with file:
        for name in file.files:
            try:
                arrays[name] = file[name]
                plain = arrays[name].dtype.kind in "biuf"
            except ValueError:
                plain = False
            if not plain:
                raise ValueError(f"{REPLAY_FILE} must have arrays of numbers, {name!r} is another")
    return arrays


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[bool]:
    """Waits until no other process writes to ``place``; gives whether the system can tell."""
    if fcntl is None:
        yield False
        return
    folder = os.open(place, os.O_RDONLY)  # closing it, also by dying, ends the lock
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            locked = True
        except OSError:  # some network file systems lock no folders
            locked = False
        yield locked
    finally:
        os.close(folder)


def _move(place: Path) -> None:
    """Moves the files of the valid checkpoint, if there is one, over those of the last."""
    valid = place / VALID
    if not valid.exists():
        return
    files = sorted(path.relative_to(valid) for path in valid.rglob("*") if path.is_file())
    markers = [Path(name) for name in MARKERS if Path(name) in files]
    for name in reversed(markers):  # else old and new files would pass for one checkpoint
        (place / name).unlink(missing_ok=True)
    for name in [*(name for name in files if name not in markers), *markers]:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(valid / name, place / name)
    shutil.rmtree(valid)
