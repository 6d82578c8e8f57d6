"""Logged data for training: finds, reads and checks data sets."""

from qwr_rllib.offline.config import OfflineConfig
from qwr_rllib.offline.episodes import MU_KEY
from qwr_rllib.offline.loader import load, mean_return, open_dataset
from qwr_rllib.offline.minari import NO_MINARI
from qwr_rllib.offline.noise import logged_mu

__all__ = [
    "MU_KEY",
    "NO_MINARI",
    "OfflineConfig",
    "load",
    "logged_mu",
    "mean_return",
    "open_dataset",
]
