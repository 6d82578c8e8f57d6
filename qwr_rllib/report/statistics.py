"""Statistics over seeds: interquartile means, stratified bootstrap intervals, curves.

After Agarwal et al., Deep Reinforcement Learning at the Edge of the Statistical Precipice, 2021
(rliable), with SciPy's bootstrap. Each task is a separate sample, so that seeds are redrawn within
each task: this is the stratified bootstrap.
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
    """Returns the interquartile mean: the mean without the lowest and the highest quarter.

    A quarter is rounded down to whole scores: fewer than four scores give their mean.
    """
    return stats.trim_mean(scores, 0.25, axis=axis)


def interval(
    samples: Sequence[Sequence[float]], statistic: Statistic = iqm, num: int = NUM_RESAMPLES
) -> Interval | None:
    """Returns the 95 % stratified bootstrap interval (percentiles) of a statistic of all scores.

    Args:
        samples: The scores of each task's seeds.
        statistic: A function of scores along an axis, such as :func:`iqm` or ``numpy.mean``.
        num: The number of resamples.

    Returns:
        The interval; ``None`` if a task has fewer than two seeds, which do not show how seeds
        differ.
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
        # A fixed seed: the same results give the same report.
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(float(found.low), float(found.high))


class Curve(NamedTuple):
    """A learning curve over seeds; the band is NaN if there is only one seed."""

    steps: np.ndarray
    middle: np.ndarray
    low: np.ndarray
    high: np.ndarray


def curve(series: Sequence[tuple[np.ndarray, np.ndarray]], kind: str = "iqr") -> Curve:
    """Returns the middle and the spread of several seeds' returns over environment steps.

    Returns at different steps are interpolated linearly, from the first to the last step that all
    seeds cover.

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
