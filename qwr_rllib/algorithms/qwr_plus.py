"""QWR with the current policy's actions, several critics and multi-step targets."""

from __future__ import annotations

from ray.rllib.utils.annotations import override

from qwr_rllib.algorithms.qwr import QWR, QWRConfig
from qwr_rllib.learning.config import ALGORITHMS


class QWRPlusConfig(QWRConfig):
    """Configures :class:`QWRPlus`, for continuous actions.

    Minimises QWR's two losses, but the actions are of the policy ``pi_k`` at the beginning of the
    iteration instead of the stored mu, and the actor's are moved towards larger Q:

        critic i:  E[(Q_i(s, a) - R)^2],  R a 1- to 5-step return that bootstraps from
                   mean_j min_i Q_target_i(s', a'_j),  a'_1..a'_n ~ pi_k(.|s')
        actor:    -E[sum_j w_j log pi(a_j|s)],  w_j = exp(A(s, a_j) / c),
                   a_j = b_j + d grad_b Q(s, b_j),  b_1..b_n ~ pi_k(.|s)

    with scales c and d that are the same for all states of a minibatch.

    ``docs/qwr-plus.md`` explains each part.

    A result is of 1000 environment steps or more, which are several iterations: RLlib's
    ``min_sample_timesteps_per_iteration``.
    """

    _own_defaults = ALGORITHMS["QWRPlus"]

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or QWRPlus)


class QWRPlus(QWR):
    """QWR beyond the paper; see :class:`QWRPlusConfig`."""

    @classmethod
    @override(QWR)
    def get_default_config(cls) -> QWRPlusConfig:
        return QWRPlusConfig()
