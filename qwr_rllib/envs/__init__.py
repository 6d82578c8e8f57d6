"""Environments: spaces and Atari."""

from qwr_rllib.envs.atari import (
    ATARI,
    LIFE_LOST,
    AtariConfig,
    atari_config,
    frame_stack_of,
    make_atari,
)

__all__ = [
    "ATARI",
    "LIFE_LOST",
    "AtariConfig",
    "atari_config",
    "frame_stack_of",
    "make_atari",
]
