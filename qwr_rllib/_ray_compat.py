"""All uses of Ray beyond its public interface: an update of Ray may break them."""

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
    """Makes Ray start its processes in a new session, outside this process's group.

    Otherwise a signal to the group (``timeout``, Ctrl-C, SLURM) would end Ray, and with it the
    run, before checkpoints are written. Ray's processes still end with this process, by Linux's
    parent death signal.
    """
    popen = services.ConsolePopen
    services.ConsolePopen = functools.partial(popen, start_new_session=True)
    try:
        yield
    finally:
        services.ConsolePopen = popen


def bootstrap_address(address: str) -> str:
    """Returns a cluster's ``host:port``; ``auto`` finds the cluster on this machine.

    Raises:
        OSError, ValueError: if there is no cluster.
    """
    found: str = services.canonicalize_bootstrap_address_or_die(address)
    return found


def newest_experiment_state(path: str, files: Any) -> str | None:
    """Returns the newest file below ``path`` with Tune's state of an experiment's trials."""
    newest: str | None = _find_newest_experiment_checkpoint(path, files)
    return newest


def worker_handles(group: EnvRunnerGroup) -> dict[int, ActorHandle]:
    """Returns the remote rollout workers by their indices, healthy or not."""
    handles: dict[int, ActorHandle] = group._worker_manager.actors()
    return handles


def unanswered(group: EnvRunnerGroup, tag: str) -> list[int]:
    """Returns the workers that have not answered asynchronous calls with this tag."""
    return list(group._worker_manager._filter_calls_by_tag(tag)[1])


def mark_unhealthy(group: EnvRunnerGroup, worker: int) -> None:
    """Makes the group ignore a worker until it answers again."""
    group._worker_manager.set_actor_state(worker, healthy=False)


def num_restarts(handle: ActorHandle) -> int:
    """Returns how often Ray has restarted an actor."""
    return int(actors(handle._actor_id.hex())["NumRestarts"])
