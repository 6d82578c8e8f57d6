"""The metrics endpoint of a real Ray with its dashboard, and the growth of counters."""

import re
import time
import urllib.request

import pytest
import ray

from qwr_rllib import QWRConfig
from qwr_rllib import prometheus as metrics_module
from qwr_rllib.prometheus import METRICS, RunMetrics

pytestmark = pytest.mark.ray

SAMPLE = re.compile(r"^(ray_qwr_\w+)\{(.*)\} (\S+)$", re.MULTILINE)


@pytest.fixture(scope="module")
def endpoint():
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        _node_ip_address="127.0.0.1",
        # Report every second instead of every ten.
        _system_config={"metrics_report_interval_ms": 1000},
        log_to_driver=False,
    )
    (node,) = ray.nodes()
    yield f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    ray.shutdown()


def fetch(endpoint: str, trial: str, until) -> dict[str, float]:
    """Returns the trial's metrics as soon as they satisfy ``until``."""
    deadline = time.monotonic() + 120
    while True:
        with urllib.request.urlopen(endpoint) as response:
            text = response.read().decode()
        found = {name: float(value) for name, tags, value in SAMPLE.findall(text) if trial in tags}
        if until(found):
            return found
        assert time.monotonic() < deadline, f"only {found}"
        time.sleep(0.5)


def test_an_iteration_is_found_at_the_endpoint(endpoint):
    algo = (
        QWRConfig()
        .environment("Pendulum-v1")
        .env_runners(num_env_runners=0)
        .training(
            n_interactions=200,
            n_critic_steps=20,
            n_actor_steps=10,
            target_update_freq=10,
            train_batch_size=16,
            replay_capacity=1000,
            learner_threads=1,
        )
        .build_algo()
    )
    result = algo.train()
    exported = {metric.exported_name for metric in METRICS}
    # A counter is absent until it is first increased.
    zero = {"ray_qwr_rows_refused_total", "ray_qwr_replay_restarts_total"}
    found = fetch(
        endpoint, 'environment="Pendulum-v1"', lambda found: exported - zero <= set(found)
    )
    assert set(found) == exported - zero
    assert found["ray_qwr_env_steps_total"] == found["ray_qwr_replay_rows"] == 200
    assert found["ray_qwr_critic_updates_total"] == 20
    assert found["ray_qwr_actor_updates_total"] == 10
    assert found["ray_qwr_samples_per_insert_ratio"] == 20 * 16 / 200
    assert found["ray_qwr_episode_length_steps"] == 200
    assert -2000 < found["ray_qwr_episode_return"] < 0
    assert 1 <= found["ray_qwr_weight_ess_actions"] <= 8
    assert 0 < found["ray_qwr_sample_seconds"] < found["ray_qwr_iteration_seconds"]
    assert found["ray_qwr_new_rows_policy_age_updates"] == 0
    # The same numbers as in the result.
    for name in ("critic_loss", "actor_loss", "q_mean", "target_mean", "weight_max"):
        assert found[f"ray_qwr_{name}"] == pytest.approx(result["learner"][name], rel=1e-6)
    assert found["ray_qwr_replay_size_bytes"] == result["replay"]["num_bytes"]
    algo.stop()


def test_counters_grow_by_what_is_new(endpoint):
    metrics = RunMetrics("counting", "x")
    for inserted in (100, 300, 200, 250):  # a restore went back to 200
        metrics.report({"replay": {"num_rows_inserted_lifetime": inserted, "blocked_s": 0.5}})
    metrics.report({"replay": {"num_rows": float("nan"), "blocked_s": 0.0}})
    metrics.stop()
    found = fetch(endpoint, 'trial="counting"', lambda found: len(found) == 2)
    assert found == {
        "ray_qwr_rows_inserted_total": 350,
        "ray_qwr_replay_blocked_seconds_total": 2,
    }


def test_a_gauge_is_shown_until_the_run_ends(endpoint, monkeypatch):
    monkeypatch.setattr(metrics_module, "REFRESH_S", 0.2)
    metrics = RunMetrics("lasting", "x")
    metrics.report({"replay": {"num_rows": 7}})
    time.sleep(10)  # ten of the exporter's intervals
    assert fetch(endpoint, 'trial="lasting"', len) == {"ray_qwr_replay_rows": 7}
    metrics.stop()
    fetch(endpoint, 'trial="lasting"', lambda found: not found)
