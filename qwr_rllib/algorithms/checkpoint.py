"""Atomic replacement of a checkpoint's files in a folder; other files are not touched.

A checkpoint is first written into a temporary folder inside its folder. One rename makes it valid;
then its files are moved to where RLlib looks for them. If the process is killed during the move,
the next process that opens or writes the checkpoint completes it.
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
# RLlib and `rllib evaluate` recognise a checkpoint by these: they are removed first, moved last.
MARKERS = ("algorithm_state.pkl", "rllib_checkpoint.json")
NAMES = {"policies", REPLAY_FILE, *MARKERS}
VALID = ".valid-checkpoint"


@contextlib.contextmanager
def replaced(place: Path) -> Iterator[Path]:
    """Yields a folder to write a checkpoint into; it replaces the one in ``place`` at the end.

    After an exception, or if the process is killed, the earlier checkpoint is still complete.
    Waits while another process writes to the same place.

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
            shutil.rmtree(stale)  # left by a process that was killed while it wrote
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
    """Yields the absolute path of a checkpoint; errors in the block are raised with this path.

    Raises:
        ValueError: if there is no checkpoint, or a file of it is missing, truncated or invalid.
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
    """Completes the move of a process that was killed, see :func:`replaced`."""
    if (place / VALID).exists():
        with _locked(place):
            _move(place)


def read_replay(checkpoint: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of the checkpoint's replay, by name.

    Raises:
        ValueError: if an array is not of numbers, or the file is no archive of arrays.
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
    """Waits until no other process writes to ``place``; yields False if it cannot be locked."""
    if fcntl is None:
        yield False
        return
    folder = os.open(place, os.O_RDONLY)  # the lock ends when this or the process ends
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
    """Moves the files of the valid checkpoint, if there is one, over those of the previous one."""
    valid = place / VALID
    if not valid.exists():
        return
    files = sorted(path.relative_to(valid) for path in valid.rglob("*") if path.is_file())
    markers = [Path(name) for name in MARKERS if Path(name) in files]
    for name in reversed(markers):  # or a mix of old and new files would look complete
        (place / name).unlink(missing_ok=True)
    for name in [*(name for name in files if name not in markers), *markers]:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(valid / name, place / name)
    shutil.rmtree(valid)
