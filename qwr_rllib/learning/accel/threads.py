"""CPU threads for a loop of small steps. Knows torch only."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch

STEPS_ALONE = 20
"""Steps whose time tells what one thread needs."""
PATIENCE_S = 0.02
"""Seconds that shared steps may be slower than that before threads are given up. A pause of the
machine is not a reason."""
T = TypeVar("T")


class AdaptiveThreads:
    """Shares PyTorch's operations among threads during a loop of steps, while that is faster.

    The threads of an operation wait for each other, every 100 microseconds. Where a core has other
    work to do as well, a step can take fifty times as long as with one thread. So the first steps
    are timed with one; the others are shared, until they have fallen behind that.

    Used as a context, at whose end PyTorch has as many threads as before.

    Args:
        threads: as many, or one.
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
        """The minibatches, while whose steps are made; what comes between is shared too."""
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
