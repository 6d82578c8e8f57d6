"""``python -m qwr_rllib.cli`` is the command ``rllib``."""

from qwr_rllib.cli import rllib

rllib(prog_name="rllib")
