"""Settings of every test process."""

import os
import sys
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# Many tests start their own Ray, which can take long on a busy machine.
os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")

# The tensors are too small for threads.
torch.set_num_threads(1)

# The same examples each time, and no time limit, so that a busy machine causes no failure.
settings.register_profile("steady", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("steady")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A Ray for the tests of a module."""
    import ray

    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts long files first, so that the test processes end at about the same time."""
    marked = [item for item in items if any(map(item.get_closest_marker, ("ray", "slow")))]
    long = Counter(item.path for item in marked)
    items.sort(key=lambda item: -long[item.path])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Registers the algorithms again: the end of a module's Ray clears their names."""
    if "ray" in sys.modules:
        import qwr_rllib

        qwr_rllib.register()
