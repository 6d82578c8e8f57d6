"""Settings of every test process."""

import os
import sys

import pytest
import torch
from hypothesis import settings

# A Ray of their own is what many tests start with, on machines that have other work too.
os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")

# The tensors here are tiny: threads would only wait for each other.
torch.set_num_threads(1)

# The same examples each time, and no failure for a machine that is busy.
settings.register_profile("steady", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("steady")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Registers the algorithms again: each module's Ray took the names with it when it ended."""
    if "ray" in sys.modules:
        import qwr_rllib

        qwr_rllib.register()
