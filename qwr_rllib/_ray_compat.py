"""Everything that is used of Ray beyond its public interface: what an update of Ray may break."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

from ray._private import services
from ray._private.state import actors
from ray.actor import ActorHandle
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.tune.execution.experiment_state import _find_newest_experiment_checkpoint


@contextlib.contextmanager
def own_session() -> Iterator[None]:
    """Has Ray start its processes in a session of their own, out of this one's process group.

    A signal to the group (``timeout``, Ctrl-C, SLURM) would end Ray at once, and the run with it,
    until the checkpoints are written. Ray's processes still die with this one, by Linux's parent
    death signal.
    """
    popen = services.ConsolePopen
    services.ConsolePopen = functools.partial(popen, start_new_session=True)
    try:
        yield
    finally:
        services.ConsolePopen = popen


def bootstrap_address(address: str) -> str:
    """A cluster's ``host:port``; ``auto`` finds the one that runs on this machine.

    Raises:
        OSError, ValueError: if there is none.
    """
    found: str = services.canonicalize_bootstrap_address_or_die(address)
    return found


def newest_experiment_state(path: str, files: Any) -> str | None:
    """The newest file below ``path`` in which Tune keeps the state of an experiment's trials."""
    newest: str | None = _find_newest_experiment_checkpoint(path, files)
    return newest


def worker_handles(group: EnvRunnerGroup) -> dict[int, ActorHandle]:
    """The remote rollout workers by their indices, healthy or not."""
    handles: dict[int, ActorHandle] = group._worker_manager.actors()
    return handles


def unanswered(group: EnvRunnerGroup, tag: str) -> list[int]:
    """Workers whose answers to asynchronous calls of a tag have not come."""
    return list(group._worker_manager._filter_calls_by_tag(tag)[1])


def mark_unhealthy(group: EnvRunnerGroup, worker: int) -> None:
    """Has the group leave a worker out until it answers again."""
    group._worker_manager.set_actor_state(worker, healthy=False)


def num_restarts(handle: ActorHandle) -> int:
    """Counts how often Ray has started an actor again."""
    return int(actors(handle._actor_id.hex())["NumRestarts"])
