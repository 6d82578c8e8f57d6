"""Q-Value Weighted Regression on Ray RLlib.

Importing this package registers its algorithms with Tune, so that ``run: QWR`` resolves.
"""

from importlib.metadata import version

from ray.tune.registry import register_trainable

from qwr_rllib.qwr import QWR, QWRConfig

__all__ = ["QWR", "QWRConfig"]
__version__ = version("qwr-rllib")

register_trainable("QWR", QWR)
