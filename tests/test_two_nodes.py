"""A cluster of two nodes on this machine: placement, and the effect of the loss of a node."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import ray
import yaml
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from qwr_rllib import QWRConfig

pytestmark = pytest.mark.ray

TINY = {
    "n_interactions": 200,
    "n_critic_steps": 10,
    "n_actor_steps": 10,
    "target_update_freq": 10,
    "train_batch_size": 16,
    "replay_capacity": 1000,
    "learner_threads": 1,
}


@pytest.fixture
def cluster():
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False}
    )
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_workers_on_both_nodes_and_one_node_lost(cluster):
    ray.init(address=cluster.address, log_to_driver=False)
    head, other = cluster.head_node.node_id, next(iter(cluster.worker_nodes)).node_id

    class Taken:  # defined here, so that Ray sends it by value
        """An actor that occupies its resources."""

    # Outside Tune nothing is reserved for the learner: occupy one CPU of its node for it.
    at_head = NodeAffinitySchedulingStrategy(head, soft=False)
    learner_cpu = ray.remote(Taken).options(num_cpus=1, scheduling_strategy=at_head).remote()
    ray.get(learner_cpu.__ray_ready__.remote())
    algo = (
        QWRConfig()
        .environment("Pendulum-v1")
        .env_runners(num_env_runners=2)
        .training(**TINY)
        .build_algo()
    )
    nodes = algo.placement()
    print(json.dumps(nodes, indent=2))
    assert nodes["learner"] == nodes["replay"] == head
    assert {nodes["rollout worker 1"], nodes["rollout worker 2"]} == {head, other}
    assert algo.train()["replay"]["num_rows"] == 200

    (lost,) = cluster.worker_nodes
    (raylet,) = lost.all_processes["raylet"]
    os.kill(raylet.process.pid, signal.SIGKILL)
    for iteration in (2, 3):
        result = algo.train()
        assert result["num_env_steps_sampled_lifetime"] == 200 * iteration
        assert result["replay"]["num_rows"] == 200 * iteration
    assert set(algo.placement().values()) == {head}
    algo.stop()


def test_the_command_line_trains_on_both_nodes(cluster, tmp_path):
    """``rllib train file`` runs on a cluster; a trial of three CPUs needs both nodes."""
    file = tmp_path / "two-nodes.yaml"
    config = TINY | {"num_env_runners": 2}
    experiment = {"run": "QWR", "env": "Pendulum-v1", "config": config}
    experiment["stop"] = {"training_iteration": 2}
    file.write_text(yaml.safe_dump({"two-nodes": experiment}))
    command = [sys.executable, "-m", "qwr_rllib.cli", "train", "file", str(file)]
    command += ["--ray-address", cluster.address, "--storage-path", str(tmp_path / "results")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (lines,) = Path(tmp_path, "results").glob("two-nodes/*/result.json")
    last = json.loads(lines.read_text().splitlines()[-1])
    assert last["num_env_steps_sampled_lifetime"] == 400
    # The actors' table outlives the job.
    ray.init(address=cluster.address, log_to_driver=False)
    actors = ray._private.state.state.actor_table(None).values()
    where = {}
    for actor in actors:
        where.setdefault(actor["ActorClassName"], set()).add(actor["Address"]["NodeID"])
    print(where)
    both = {node["NodeID"] for node in ray.nodes()}
    assert len(both) == 2
    assert where["QWR"] | where["RolloutWorker"] == both
    assert where["Replay"] == where["QWR"]
