"""Metrics of a run for Prometheus and the Ray dashboard; see ``docs/metrics.md``.

Each metric is a number of the algorithm's result; its name contains the unit. Ray adds the prefix
``ray_`` to every name and the suffix ``_total`` to a counter's.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ray.util.metrics import Counter, Gauge

TAGS = ("trial", "environment")
REFRESH_S = 5.0  # below Ray's export interval of 10 s


@dataclass(frozen=True)
class Metric:
    """A number of the result that is exported."""

    name: str
    path: str
    """Its place in the result: keys joined by ``/``."""
    description: str
    kind: Literal["gauge", "lifetime", "per_iteration"] = "gauge"
    """A counter adds either the growth of a lifetime sum or the value of each iteration."""
    scale: float = 1.0
    """Factor from the result's unit to the unit in the name."""

    @property
    def exported_name(self) -> str:
        """The name in Prometheus."""
        return f"ray_{self.name}" + ("" if self.kind == "gauge" else "_total")


METRICS = (
    Metric("qwr_env_steps", "num_env_steps_sampled_lifetime", "Environment steps.", "lifetime"),
    Metric("qwr_episode_return", "env_runners/episode_return_mean", "Mean undiscounted return."),
    Metric("qwr_episode_length_steps", "env_runners/episode_len_mean", "Mean episode length."),
    Metric("qwr_rollout_workers", "num_healthy_workers", "Rollout workers that answer."),
    Metric("qwr_replay_rows", "replay/num_rows", "Rows (environment steps) held."),
    Metric("qwr_replay_trajectories", "replay/num_episodes", "Trajectories held."),
    Metric("qwr_replay_size_bytes", "replay/num_bytes", "Allocated for the store's columns."),
    Metric("qwr_rows_inserted", "replay/num_rows_inserted_lifetime", "Rows stored.", "lifetime"),
    Metric("qwr_rows_refused", "replay/num_rows_refused_lifetime", "Rows refused.", "lifetime"),
    Metric(
        "qwr_replay_restarts",
        "replay/num_restarts_lifetime",
        "Replay actors that were replaced.",
        "lifetime",
    ),
    Metric(
        "qwr_replay_blocked_seconds",
        "replay/blocked_s",
        "Rollout workers' time spent waiting for the replay, summed over workers.",
        "per_iteration",
    ),
    Metric(
        "qwr_samples_per_insert_ratio",
        "replay/samples_per_insert",
        "Rows that started a critic slice, per row inserted, over the run.",
    ),
    Metric(
        "qwr_policy_age_updates",
        "replay/policy_age",
        "Actor updates since the policy that collected a row, mean over the replay.",
    ),
    Metric(
        "qwr_new_rows_policy_age_updates",
        "replay/policy_age_new",
        "The same over the iteration's new rows.",
    ),
    Metric("qwr_critic_loss", "learner/critic_loss", "Mean squared error of Q / q_scale."),
    Metric("qwr_actor_loss", "learner/actor_loss", "Weighted negative log-likelihood, nats."),
    Metric("qwr_q_mean", "learner/q_mean", "Mean predicted Q, in units of return."),
    Metric("qwr_target_mean", "learner/target_mean", "Mean target of Q, in units of return."),
    Metric(
        "qwr_weight_ess_actions",
        "learner/weight_ess",
        "Effective sample size of the actor's weights.",
    ),
    Metric("qwr_weight_clip_ratio", "learner/weight_clip_fraction", "Share of clipped weights."),
    Metric("qwr_weight_max", "learner/weight_max", "Largest weight of the iteration."),
    Metric(
        "qwr_critic_updates",
        "learner/num_critic_updates_lifetime",
        "Minibatches of the critic.",
        "lifetime",
    ),
    Metric(
        "qwr_actor_updates",
        "learner/num_actor_updates_lifetime",
        "Minibatches of the actor.",
        "lifetime",
    ),
    Metric(
        "qwr_critic_updates_per_second",
        "learner/critic_updates_per_s",
        "Critic minibatches per second of the critic phase.",
    ),
    Metric(
        "qwr_actor_updates_per_second",
        "learner/actor_updates_per_s",
        "Actor minibatches per second of the actor phase.",
    ),
    Metric(
        "qwr_sample_seconds",
        "timers/sample_time_ms",
        "Time in which the learner waited for rows, mean of recent iterations.",
        scale=1e-3,
    ),
    Metric(
        "qwr_update_view_seconds",
        "timers/update_view_time_ms",
        "Time to bring the learner's view up to date, mean of recent iterations.",
        scale=1e-3,
    ),
    Metric(
        "qwr_iteration_seconds",
        "timers/training_iteration_time_ms",
        "Time of an iteration, mean of recent iterations.",
        scale=1e-3,
    ),
)


class RunMetrics:
    """The exported metrics of one run, until :meth:`stop`.

    Ray drops a gauge that was not set since the last export, and an iteration takes longer than an
    export interval. Therefore a thread keeps setting the gauges.

    Args:
        trial: names the run.
        environment: its environment's name.
    """

    def __init__(self, trial: str, environment: str) -> None:
        self._tags = dict(zip(TAGS, (trial, environment), strict=True))
        self._gauges = {
            metric: Gauge(metric.name, metric.description, TAGS)
            for metric in METRICS
            if metric.kind == "gauge"
        }
        self._counters = {
            metric: Counter(metric.name, metric.description, TAGS)
            for metric in METRICS
            if metric.kind != "gauge"
        }
        self._counted: dict[Metric, float] = {}
        self._shown: dict[Gauge, float] = {}
        self._stopped = threading.Event()
        threading.Thread(target=self._keep_shown, name="qwr-metrics", daemon=True).start()

    def _keep_shown(self) -> None:
        while not self._stopped.wait(REFRESH_S):
            for gauge, value in list(self._shown.items()):
                gauge.set(value, self._tags)

    def stop(self) -> None:
        """Stops exporting the last result."""
        self._stopped.set()

    def report(self, result: Mapping[str, Any]) -> None:
        """Exports the numbers of a result; a missing or non-finite one keeps its last value."""
        for metric, gauge in self._gauges.items():
            if (value := _value(result, metric)) is not None:
                gauge.set(value, self._tags)
                self._shown[gauge] = value
        for metric, counter in self._counters.items():
            if (value := _value(result, metric)) is None:
                continue
            growth = value
            if metric.kind == "lifetime":
                # Negative after a restore of an earlier state: nothing is added.
                growth -= self._counted.get(metric, 0.0)
                self._counted[metric] = value
            if growth > 0:
                counter.inc(growth, self._tags)


def _value(result: Mapping[str, Any], metric: Metric) -> float | None:
    found: Any = result
    for key in metric.path.split("/"):
        if key not in found:
            return None
        found = found[key]
    value = float(found) * metric.scale
    return value if math.isfinite(value) else None
