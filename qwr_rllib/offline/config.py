"""The keys of a config's ``offline``. Knows no Ray."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from qwr_rllib.validation import (
    BOOLEAN,
    POSITIVE,
    Rule,
    check_settings,
    integer,
    is_number,
    one_of,
    required,
    setting,
)

Mu = Literal["recorded", "taken"]


def _is_share(value: Any) -> bool:
    return is_number(value) and 0 < value <= 1


@dataclass(frozen=True)
class OfflineConfig:
    """The keys of the config's ``offline``.

    Raises:
        ValueError: for an impossible value, naming the key, the value and what is allowed.
    """

    dataset: str = required(
        Rule("a data set's id or path", lambda value: isinstance(value, str) and bool(value))
    )
    """The id of a data set in Minari's local store, or the path of one, or the folder or file of
    RLlib's recorded output (JSON or Parquet)."""
    iterations: int | None = setting(None, integer(0) | None)
    """After so many iterations on the data alone, environment steps are collected too, as many
    each iteration as ``n_interactions`` says; ``None`` is never."""
    num_episodes: int | None = setting(None, integer(1) | None)
    """Takes the first so many; ``None`` takes all."""
    mu: Mu = setting("recorded", one_of(Mu))
    """True if recorded parameters of ``mu`` are taken where there are any, or the taken action
    always stands in."""
    mu_std: float | Literal["auto"] = setting("auto", POSITIVE | "auto")
    """The standard deviation of ``mu`` of continuous actions, while nothing is collected.
    ``"auto"`` estimates it from the data: see :func:`~qwr_rllib.offline.noise.mu_std`."""
    smoothing: float = setting(0.1, Rule("a number in (0, 1]", _is_share))
    """The share of a uniform distribution in a discrete action's stand-in for ``mu``."""
    check_env: bool = setting(True, BOOLEAN)
    """Refuse data that says to be of another environment; spaces must be the same anyway."""

    def __post_init__(self) -> None:
        check_settings(self, "offline.")
