"""Training in one process without Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwr_rllib.local.trainer import LocalTrainer, Runner

__all__ = ["LocalTrainer", "Runner"]


def __getattr__(name: str) -> Any:
    """Imports the trainer on first access: the theorem's experiment needs no Gymnasium."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from qwr_rllib.local import trainer

    return getattr(trainer, name)
