"""Advantage-weighted actor-critic: QWR's critic, AWR's actor."""

from __future__ import annotations

from ray.rllib.utils.annotations import override

from qwr_rllib.algorithms.qwr import QWR, QWRConfig
from qwr_rllib.learning.config import ALGORITHMS


class AWACConfig(QWRConfig):
    """Configures :class:`AWAC`.

    Minimises two losses in turn (after Nair et al., 2020, https://arxiv.org/abs/2006.09359):

        critic:  E[(Q(s, a) - R)^2],  as QWR
        actor:  -E[w log pi(a|s)],  w = exp((Q(s, a) - V(s)) / beta),  a the action in the replay

    ``V(s)`` is the mean of ``Q`` over actions of the stored mu; Nair et al. use actions of the
    current policy. AWAC therefore differs from QWR only in the actor's action. Everything else is
    as in :class:`~qwr_rllib.algorithms.qwr.QWRConfig`.
    """

    _own_defaults = ALGORITHMS["AWAC"]

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or AWAC)


class AWAC(QWR):
    """Advantage-weighted actor-critic; see :class:`AWACConfig`."""

    @classmethod
    @override(QWR)
    def get_default_config(cls) -> AWACConfig:
        return AWACConfig()
