"""Q-Value Weighted Regression on Ray RLlib.

Importing this package registers its algorithms with Tune, so that ``run: QWR`` resolves, and its
environments with RLlib. Without Ray the formulas, networks, learner, replay storage and view can
still be imported.
"""

__version__ = "0.1.0"
__all__ = ["AWAC", "AWR", "QWR", "AWACConfig", "AWRConfig", "QWRConfig", "register"]

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

    def register() -> None:
        """Makes the algorithms known to Tune and the environments to RLlib by their names.

        Importing this package does it. Ray forgets it with ``ray.shutdown()``: who starts Ray a
        second time in a process calls this again.
        """
        for algorithm in (QWR, AWR, AWAC):
            register_trainable(algorithm.__name__, algorithm)
        register_env(ATARI, make_atari)

    register()
