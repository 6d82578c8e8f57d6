"""Q-Value Weighted Regression on Ray RLlib.

Importing this package registers its algorithms with Tune, so that ``run: QWR`` resolves, and its
environments with RLlib. Without
Ray the formulas, networks, learner, replay storage and view can still be imported.
"""

__version__ = "0.1.0"
__all__ = ["AWAC", "AWR", "QWR", "AWACConfig", "AWRConfig", "QWRConfig"]

try:
    from ray.tune.registry import register_env, register_trainable

    from qwr_rllib.awac import AWAC, AWACConfig
    from qwr_rllib.awr import AWR, AWRConfig
    from qwr_rllib.envs import ATARI, make_atari
    from qwr_rllib.qwr import QWR, QWRConfig
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "ray":
        raise
else:
    register_trainable("QWR", QWR)
    register_trainable("AWR", AWR)
    register_trainable("AWAC", AWAC)
    register_env(ATARI, make_atari)
