"""Resources of a trial: CPU threads, memory, the replay actor's place."""

from __future__ import annotations

import logging
import os
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from qwr_rllib.replay.actor import ReplayActor
from qwr_rllib.replay.layout import memory_bytes
from qwr_rllib.specs import Spec

logger = logging.getLogger("ray.rllib.qwr")


def learner_threads(config: Any) -> int:
    """Returns the learner's number of CPU threads, at least 1, for a ``QWRConfig``'s dict."""
    threads = config["learner_threads"]
    if threads == "auto":
        runners = config["num_env_runners"] * config["num_cpus_per_env_runner"]
        runners *= not config["overlap_sampling"]
        threads = int(config["num_cpus_for_main_process"] + runners)
    return max(1, min(threads, _num_cpus()))


def _num_cpus() -> int:
    """Returns the number of CPUs that this process may use; on macOS and Windows, of all CPUs."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def check_memory(spec: Spec, replay_capacity: int) -> None:
    """Logs the memory that the replay and its view take.

    Raises:
        ValueError: with both figures, if it exceeds the memory of this node.
    """
    needed = 2 * memory_bytes(spec, replay_capacity)
    rows = f"{replay_capacity} rows of {spec.obs_shape} observations"
    logger.info("Replay and view of %s take %.1f MB.", rows, needed / 1e6)
    node_id = ray.get_runtime_context().get_node_id()
    for node in ray.nodes():
        memory = node["Resources"].get("memory")
        if node["NodeID"] == node_id and memory is not None and needed > memory:
            raise ValueError(
                f"replay_capacity must fit the memory: {rows} take {needed / 1e9:.1f} GB in "
                f"replay and view, this node has {memory / 1e9:.1f} GB"
            )


def start_replay(spec: Spec, replay_capacity: int) -> ActorHandle:
    """Starts a replay actor beside the learner, inside the trial's resources if there are any."""
    group = ray.util.get_current_placement_group()
    strategy: Any
    if group is not None:
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
    else:
        node_id = ray.get_runtime_context().get_node_id()
        strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ReplayActor.options(scheduling_strategy=strategy).remote(spec, replay_capacity)
