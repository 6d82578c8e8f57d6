"""Statistics over seeds: interquartile means, stratified bootstrap intervals, curves.

After Agarwal et al., Deep Reinforcement Learning at the Edge of the Statistical Precipice, 2021
(rliable), with SciPy's bootstrap: each task is a sample of its own there, so that its seeds are
redrawn within it, which is the stratified bootstrap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

NUM_RESAMPLES = 10_000
CONFIDENCE = 0.95

Statistic = Callable[..., Any]


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


def iqm(scores: Any, axis: int | None = None) -> Any:
    """The interquartile mean: without the lowest and the highest quarter, rounded down.

    Of fewer than four scores it is their mean.
    """
    return stats.trim_mean(scores, 0.25, axis=axis)


def interval(
    samples: Sequence[Sequence[float]], statistic: Statistic = iqm, num: int = NUM_RESAMPLES
) -> Interval | None:
    """The 95 % stratified bootstrap interval (percentiles) of a statistic of all scores.

    Args:
        samples: The scores of each task's seeds.
        statistic: Of scores along an axis, as :func:`iqm` or ``numpy.mean``.
        num: How often the seeds are drawn anew.

    Returns:
        The interval, or ``None`` where some task has one seed only: nothing is known then of how
        seeds differ.
    """
    if not samples or min(map(len, samples)) < 2:
        return None

    def of_all(*drawn: np.ndarray, axis: int) -> Any:
        return statistic(np.concatenate(drawn, axis), axis=axis)

    found = stats.bootstrap(
        [np.asarray(sample, float) for sample in samples],
        of_all,
        vectorized=True,
        n_resamples=num,
        confidence_level=CONFIDENCE,
        method="percentile",
        # The same report from the same results.
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(float(found.low), float(found.high))


class Curve(NamedTuple):
    """A learning curve over seeds; the band is NaN where there is one seed only."""

    steps: np.ndarray
    middle: np.ndarray
    low: np.ndarray
    high: np.ndarray


def curve(series: Sequence[tuple[np.ndarray, np.ndarray]], kind: str = "iqr") -> Curve:
    """The middle and the spread of several seeds' returns over environment steps.

    Where seeds have returns at different steps they are interpolated linearly, between the first
    and the last step that all of them have.

    Args:
        series: Steps (increasing) and returns of each seed, without NaN.
        kind: "iqr" is the median and the interquartile range, as in the paper; "mean-ci" the mean
            and its 95 % bootstrap interval.
    """
    grid = np.unique(np.concatenate([steps for steps, _ in series]))
    first = max(steps[0] for steps, _ in series)
    last = min(steps[-1] for steps, _ in series)
    grid = grid[(grid >= first) & (grid <= last)]
    returns = np.stack([np.interp(grid, *pair) for pair in series])
    nothing = np.full(len(grid), np.nan)
    if kind == "iqr":
        low, middle, high = np.percentile(returns, [25, 50, 75], axis=0)
    elif kind == "mean-ci":
        middle = returns.mean(0)
        low = high = nothing
        if len(series) > 1 and len(grid):
            low, high = stats.bootstrap(
                (returns,),
                np.mean,
                vectorized=True,
                axis=0,
                n_resamples=2000,
                confidence_level=CONFIDENCE,
                method="percentile",
                rng=np.random.default_rng(0),
            ).confidence_interval
    else:
        raise ValueError(f"kind must be iqr or mean-ci, got {kind!r}")
    if len(series) == 1:
        low = high = nothing
    return Curve(grid, middle, low, high)
