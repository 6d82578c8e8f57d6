"""A cluster of two nodes on this machine: placement, and the effect of the loss of a node."""

import json
import os
import re
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

ABLATION = Path(__file__).parents[1] / "tuned_examples" / "qwr-ablation-halfcheetah.yaml"

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


def nodes_of_actors(cluster):
    """Returns the nodes of each class of actors, also of jobs that have ended, and all nodes."""
    ray.init(address=cluster.address, log_to_driver=False)
    where = {}
    for actor in ray._private.state.state.actor_table(None).values():
        where.setdefault(actor["ActorClassName"], set()).add(actor["Address"]["NodeID"])
    both = {node["NodeID"] for node in ray.nodes()}
    assert len(both) == 2
    return where, both


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
    where, both = nodes_of_actors(cluster)
    assert where["QWR"] | where["RolloutWorker"] == both
    assert where["Replay"] == where["QWR"]


def test_cells_of_the_ablation_on_both_nodes_killed_and_resumed(cluster, tmp_path):
    cells = {"backup": "max", "margin": {"grid_search": [1, 3, 7]}}
    config = TINY | cells | {"n_interactions": 40, "n_action_samples": 2, "seed": 0}
    config["evaluation_interval"] = None
    stop = {"num_env_steps_sampled_lifetime": 30 * config["n_interactions"]}
    command = [sys.executable, "-m", "qwr_rllib.cli", "train", "file", str(ABLATION)]
    command += ["--ray-address", cluster.address, "--storage-path", str(tmp_path / "results")]
    command += ["--config", json.dumps(config), "--stop", json.dumps(stop)]
    command += ["--checkpoint-freq", "1"]
    killed = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    for line in killed.stdout:
        if re.search(r"^ *0000\d +10 ", line):
            break
    killed.kill()
    killed.communicate()

    resumed = subprocess.run(
        [*command, "--resume"], capture_output=True, text=True, cwd=tmp_path, timeout=500
    )
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    went_on = re.findall(r"goes on after iteration (\d+),", resumed.stdout)
    assert went_on
    assert all(0 < int(iteration) < 30 for iteration in went_on)
    found = set()
    for path in Path(tmp_path, "results").glob("*/QWR_*/result.json"):
        *_, last = map(json.loads, path.read_text().splitlines())
        assert last["num_env_steps_sampled_lifetime"] == 30 * config["n_interactions"]
        found.add(last["config"]["margin"])
    assert found == {1, 3, 7}
    where, both = nodes_of_actors(cluster)
    assert where["QWR"] == both
