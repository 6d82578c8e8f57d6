"""Advantage-Weighted Regression: QWR with a V critic and the replay's actions."""

from __future__ import annotations

from ray.rllib.utils.annotations import override

from qwr_rllib.algorithms.qwr import QWR, QWRConfig
from qwr_rllib.learning.config import ALGORITHMS


class AWRConfig(QWRConfig):
    """Configures :class:`AWR`.

    Minimises two losses in turn (Peng et al., 2019, https://arxiv.org/abs/1910.00177; Algorithm 1
    of Kozakowski et al., 2021, https://arxiv.org/abs/2102.06782):

        critic:  E[(V(s) - R)^2],  R the TD(lambda) return of the trajectory in the replay
        actor:  -E[w log pi(a|s)],  w = exp((R - V(s)) / beta),  a the action in the replay

    AWR evaluates logged actions only. In a replay with one action per state it can only clone
    them (``docs/theorem.md``).

    The return is truncated after ``margin`` steps; Peng et al. use the whole trajectory. Steps
    beyond the default of 60 have a weight of ``lambda^60``, less than 5 %. As in Peng et al., the
    replay holds 50 000 steps, and 200 critic and 1000 actor steps follow each 2048 interactions:
    from few data with one action per state, more steps learn the noise. Everything else is as in
    :class:`~qwr_rllib.algorithms.qwr.QWRConfig`.
    """

    _own_defaults = ALGORITHMS["AWR"]

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or AWR)


class AWR(QWR):
    """Advantage-Weighted Regression; see :class:`AWRConfig`."""

    @classmethod
    @override(QWR)
    def get_default_config(cls) -> AWRConfig:
        return AWRConfig()
