"""CPU threads for a loop of small steps."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch

STEPS_ALONE = 20
"""Number of first steps, which measure the time of one thread."""
PATIENCE_S = 0.02
"""Seconds by which steps with more threads may fall behind one thread. Shorter delays are
ignored: the machine may have paused."""
T = TypeVar("T")


class AdaptiveThreads:
    """A context in which PyTorch uses several threads for a loop of steps, while that is faster.

    The threads of an operation wait for each other about every 100 microseconds. If another
    program uses one of their cores, a step can take fifty times as long as with one thread. So the
    first steps are timed with one thread. The others use all threads until they are slower.

    At its end, the context restores PyTorch's number of threads.

    Args:
        threads: number of threads while faster; 1 leaves PyTorch's number unchanged.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._alone = 0.0  # seconds of a step with one thread
        self._steps = 0
        self._seconds = 0.0

    def __enter__(self) -> AdaptiveThreads:
        self._before = torch.get_num_threads()
        if self._threads > 1:
            torch.set_num_threads(1)
        return self

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self._before)

    def over(self, minibatches: Iterable[T]) -> Iterator[T]:
        """Yields the minibatches, and times the loop's body to choose the number of threads."""
        for each in minibatches:
            started = time.perf_counter()
            yield each
            if self._threads > 1:
                self._steps += 1
                self._seconds += time.perf_counter() - started
                self._decide()

    def _decide(self) -> None:
        if self._alone:
            if self._seconds > self._steps * self._alone + PATIENCE_S:
                self._threads = 1
                torch.set_num_threads(1)
        elif self._steps == STEPS_ALONE:
            self._alone = self._seconds / self._steps
            torch.set_num_threads(self._threads)
