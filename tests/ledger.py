"""An environment that records its steps, and kills processes on request.

Each step is a line ``episode step`` in a file of its process. Files in its folder are requests:

- ``kill``: the first step that finds this file removes it and sends SIGKILL to the process that the
  file names, or to its own process.
- ``hang``: the first step that finds this file removes it and does not return.
- ``doomed``: every step that finds this file kills its own process.
- ``stillborn``: every start of an environment that finds this file kills its own process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time
from pathlib import Path

import gymnasium as gym
import numpy as np


class Ledger(gym.Env):
    """Observation ``(episode, step)``; episodes of 30 steps, odd ones terminated."""

    observation_space = gym.spaces.Box(0, 2**24, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, config):
        self.folder = Path(config["folder"])
        if (self.folder / "stillborn").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        self.pages = (self.folder / f"steps-{os.getpid()}").open("a", buffering=1)

    def _obs(self):
        return np.array([self.episode, self.t], np.float32)

    def reset(self, *, seed=None, options=None):
        self.episode = self._new_episode()
        self.t = 0
        return self._obs(), {}

    def _new_episode(self) -> int:
        """Returns a number that no other environment of the folder has: the length of a file."""
        with (self.folder / "episodes").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0, os.SEEK_END)
            file.write(b".")
            return file.tell()

    def step(self, action):
        self._obey()
        print(self.episode, self.t, file=self.pages)
        self.t += 1
        over = self.t == 30
        odd = self.episode % 2 == 1
        return self._obs(), float(self.t), over and odd, over and not odd, {}

    def _obey(self):
        if (self.folder / "doomed").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        # Only the environment that removes the file obeys it.
        with contextlib.suppress(FileNotFoundError):
            (self.folder / "hang").unlink()
            time.sleep(10_000)
        try:
            order = (self.folder / "kill").read_text()
            (self.folder / "kill").unlink()
        except FileNotFoundError:
            return
        os.kill(int(order) if order else os.getpid(), signal.SIGKILL)


def written(folder: Path) -> list[tuple[int, int]]:
    """Returns all steps ``(episode, step)`` that environments of this folder made."""
    lines = [line for path in folder.glob("steps-*") for line in path.read_text().splitlines()]
    return sorted((int(episode), int(t)) for episode, t in map(str.split, lines))


def held(arrays: dict[str, np.ndarray]) -> list[tuple[int, int]]:
    """Returns all rows that a replay's ``state_arrays`` hold."""
    rows = arrays["column_obs"][arrays["column_kind"] == 1]
    return sorted((int(episode), int(t)) for episode, t in rows)
