"""The choice of the number of threads of a loop's operations, with a simulated clock."""

from types import SimpleNamespace

import pytest
import torch

from qwr_rllib.learning.accel import threads as steps
from qwr_rllib.learning.accel.threads import AdaptiveThreads


@pytest.fixture
def clock(monkeypatch):
    made = SimpleNamespace(now=1.0)
    monkeypatch.setattr(steps.time, "perf_counter", lambda: made.now)
    monkeypatch.setattr(steps, "STEPS_ALONE", 2)
    return made


def threads_of(sharing, clock, seconds):
    """Returns PyTorch's number of threads at each step; the steps take ``seconds``."""
    used = []
    for each in sharing.over(seconds):
        used.append(torch.get_num_threads())
        clock.now += each
    return used


def test_the_first_steps_have_one_thread_and_the_others_all(clock):
    with AdaptiveThreads(2) as sharing:
        assert threads_of(sharing, clock, [1.0, 1.0, 0.6]) == [1, 1, 2]
        assert torch.get_num_threads() == 2  # for the preparation of the next steps
        clock.now += 10
        assert threads_of(sharing, clock, [0.6, 0.6]) == [2, 2]
    assert torch.get_num_threads() == 1


def test_what_falls_behind_one_thread_goes_on_with_one(clock):
    with AdaptiveThreads(2) as sharing:
        threads_of(sharing, clock, [1.0, 1.2])  # 1.1 on average
        # Slower than with one thread after the third step: 0.5 + 1.1 + 1.8 > 3 * 1.1.
        assert threads_of(sharing, clock, [0.5, 1.1, 1.8, 0.1]) == [2, 2, 2, 1]
        assert threads_of(sharing, clock, [0.1]) == [1]
    with AdaptiveThreads(2) as next_phase:
        assert threads_of(next_phase, clock, [1.0, 1.0, 0.5]) == [1, 1, 2]


def test_a_moment_behind_is_forgiven(clock):
    with AdaptiveThreads(2) as sharing:
        threads_of(sharing, clock, [0.001, 0.001])
        assert threads_of(sharing, clock, [0.0205, 0.0005, 0.003, 0.0005]) == [2, 2, 2, 1]


def test_with_one_thread_pytorchs_number_is_not_touched(clock):
    torch.set_num_threads(2)
    try:
        with AdaptiveThreads(1) as sharing:
            assert threads_of(sharing, clock, [1.0, 1.0, 3.0, 3.0]) == [2, 2, 2, 2]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_threads_are_as_before_after_an_error(clock):
    def fail():
        with AdaptiveThreads(2) as sharing:
            threads_of(sharing, clock, [1.0, 1.0])
            for _ in sharing.over([1.0]):
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.get_num_threads() == 1
