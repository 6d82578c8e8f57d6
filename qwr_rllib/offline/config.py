"""The keys of a config's ``offline``. This module does not import Ray."""

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
    """Id of a data set in Minari's local store, its path, or a folder or file of RLlib's recorded
    output (JSON or Parquet)."""
    iterations: int | None = setting(None, integer(0) | None)
    """Number of iterations on the data alone. Later iterations also collect ``n_interactions``
    steps. ``None`` never collects."""
    num_episodes: int | None = setting(None, integer(1) | None)
    """Number of episodes to use, from the first; ``None`` uses all."""
    mu: Mu = setting("recorded", one_of(Mu))
    """``"recorded"`` uses the recorded parameters of ``mu``, and the taken action if there are
    none. ``"taken"`` always uses the taken action."""
    mu_std: float | Literal["auto"] = setting("auto", POSITIVE | "auto")
    """Standard deviation of ``mu`` for continuous actions, while nothing is collected. ``"auto"``
    estimates it from the data: see :func:`~qwr_rllib.offline.noise.logged_mu`."""
    smoothing: float = setting(0.1, Rule("a number in (0, 1]", _is_share))
    """Share of the uniform distribution in a ``mu`` made from a discrete taken action."""
    check_env: bool = setting(True, BOOLEAN)
    """Whether to refuse data that names another environment; spaces must match in any case."""

    def __post_init__(self) -> None:
        check_settings(self, "offline.")
