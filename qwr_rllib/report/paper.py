"""Published scores that a report shows beside ours, each with its source."""

from __future__ import annotations

import re
from typing import NamedTuple

SOURCE = (
    "Kozakowski, Kaiser, Michalewski, Mohiuddin, Kańska: Q-Value Weighted Regression: "
    "Reinforcement Learning with Limited Data, arXiv 2102.06782"
)
STEPS = 100_000
"""Environment steps behind the paper's scores."""


class Score(NamedTuple):
    """A mean over seeds and the number after ±; ``None`` if the paper gives no such number."""

    mean: float
    spread: float | None = None

    def __str__(self) -> str:
        return f"{self.mean:g}" + ("" if self.spread is None else f" ± {self.spread:g}")


TABLE_1_SOURCE = f"Table 1 of {SOURCE}; MuJoCo, 100K interactions, mean ± standard deviation"
TABLE_1: dict[str, dict[str, Score]] = {
    "QWR-LSE": {
        "HalfCheetah": Score(2323, 332),
        "Walker2d": Score(1301, 445),
        "Hopper": Score(1758, 735),
        "Humanoid": Score(511, 57),
    },
    "QWR-MAX": {
        "HalfCheetah": Score(2250, 254),
        "Walker2d": Score(1019, 1185),
        "Hopper": Score(1187, 345),
        "Humanoid": Score(503, 49),
    },
    "QWR-AVG": {
        "HalfCheetah": Score(1691, 682),
        "Walker2d": Score(1052, 231),
        "Hopper": Score(420, 65),
        "Humanoid": Score(455, 41),
    },
    "AWR": {
        "HalfCheetah": Score(-0.4, 0),
        "Walker2d": Score(67, 11),
        "Hopper": Score(110, 81),
        "Humanoid": Score(500, 4),
    },
    "SAC": {
        "HalfCheetah": Score(5492, 8),
        "Walker2d": Score(493, 6),
        "Hopper": Score(1197, 175),
        "Humanoid": Score(645, 27),
    },
    "PPO": {
        "HalfCheetah": Score(51, 41),
        "Walker2d": Score(-14, 98),
        "Hopper": Score(15, 75),
        "Humanoid": Score(72, 18),
    },
}

_GAMES = ("Boxing", "Breakout", "Freeway", "Gopher", "Pong", "Seaquest")


def _games(*means: float) -> dict[str, Score]:
    return {game: Score(mean) for game, mean in zip(_GAMES, means, strict=True)}


TABLE_2_SOURCE = f"Table 2 of {SOURCE}; Atari, 100K interactions"
TABLE_2: dict[str, dict[str, Score]] = {
    "QWR-LSE": _games(4.6, 8, 21.2, 776, -7.6, 308),
    "QWR-MAX": _games(-1.8, 0.8, 16.8, 580, -2, 252),
    "QWR-AVG": _games(-0.8, 1.4, 19.2, 548, -9, 296),
    "PPO": _games(-3.9, 5.9, 8, 246, -20.5, 370),
    "OTRainbow": _games(2.5, 1.9, 27.9, 349.5, -19.3, 354.1),
    "SimPLe": _games(9.1, 16.4, 20.3, 845.6, 12.8, 683.3),
    "Random": _games(0.1, 1.7, 0, 257.6, -20.7, 68.4),
}

HUMAN_SOURCE = (
    "random and human scores of the Atari 100k benchmark: Mnih et al., Human-level control "
    "through deep reinforcement learning, Nature 2015; Kaiser et al., Model-Based Reinforcement "
    "Learning for Atari, 2020"
)
HUMAN = dict(zip(_GAMES, (12.1, 30.5, 29.6, 2412.5, 14.6, 42054.7), strict=True))
RANDOM = {game: score.mean for game, score in TABLE_2["Random"].items()}

VARIANTS = {"logsumexp": "QWR-LSE", "max": "QWR-MAX", "mean": "QWR-AVG"}
"""The paper's names of QWR's variants, by ``backup``."""


def task(env: str) -> str:
    """Returns the paper's name of an environment: ``Walker2d`` for ``Walker2d-v5``.

    Returns ``Pong`` for ``ale_py:ALE/Pong-v5`` and for ``PongNoFrameskip-v4``.
    """
    name = re.split(r"[/:]", env)[-1]
    return re.sub(r"(NoFrameskip|Deterministic)?(-v\d+)?$", "", name)


def table_of(task_name: str) -> tuple[dict[str, dict[str, Score]], str] | None:
    """Returns the paper's table with the task, and its source; ``None`` if no table has it."""
    for table, source in ((TABLE_1, TABLE_1_SOURCE), (TABLE_2, TABLE_2_SOURCE)):
        if task_name in table["QWR-LSE"]:
            return table, source
    return None


def human_normalized(game: str, score: float) -> float:
    """Returns ``(score - random) / (human - random)``: 0 is random play, 1 is a human's."""
    return (score - RANDOM[game]) / (HUMAN[game] - RANDOM[game])
