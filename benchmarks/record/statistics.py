"""What samples say and how surely: bootstrap intervals, batch means, Student's t. NumPy is all they need."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

LEVEL, RESAMPLES, SEED = 0.95, 1000, 0
BATCHES = 6
LEAST = 6  # images or sentences: fewer do not show how much they differ


def _draws(count: int) -> np.ndarray:
    """Which samples each resample holds, [RESAMPLES, count]; the same for all of one length, so that intervals are repeatable."""
    return np.random.default_rng(SEED).integers(0, count, (RESAMPLES, count))


def _ends(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, [50 * (1 - LEVEL), 50 * (1 + LEVEL)], axis=0)
    return float(low), float(high)


def interval_of_median(samples: Sequence[float]) -> tuple[float, float]:
    """Where the median lies, by the percentile bootstrap; the sample itself where there is only one.

    Raises:
        ValueError: if there is no sample.
    """
    values = _filled(samples)
    return _ends(np.median(values[_draws(values.size)], axis=1))


def interval_of_mean(samples: Sequence[float]) -> tuple[float, float] | None:
    """Where the mean lies, by the percentile bootstrap; None of fewer than ``LEAST`` samples.

    Raises:
        ValueError: if there is no sample.
    """
    values = _filled(samples)
    return _ends(values[_draws(values.size)].mean(axis=1)) if values.size >= LEAST else None


def interval_of_ratio(samples: Sequence[float], base: Sequence[float]) -> tuple[float, float]:
    """Where the median of the ratios of paired samples lies.

    Raises:
        ValueError: if there is no sample, or they are not pairs.
    """
    values, others = _paired(samples, base)
    return interval_of_median(values / others)


def interval_of_relative_change(samples: Sequence[float], base: Sequence[float]) -> tuple[float, float] | None:
    """Where mean(samples) / mean(base) - 1 lies when pairs are drawn together; None of fewer than ``LEAST`` pairs, and if a mean of the base is 0.

    Raises:
        ValueError: if there is no sample, or they are not pairs.
    """
    values, others = _paired(samples, base)
    if values.size < LEAST:
        return None
    draws = _draws(values.size)
    below = others[draws].mean(axis=1)
    if not (below != 0).all():
        return None
    return _ends(values[draws].mean(axis=1) / below - 1)


def interval_of_correlation(samples: Sequence[float], others: Sequence[float]) -> tuple[float, float] | None:
    """Where Pearson's correlation of pairs lies, by the percentile bootstrap; None of fewer than ``LEAST`` pairs, and if a resample has no spread.

    Raises:
        ValueError: if there is no sample, or they are not pairs.
    """
    pairs = _paired(samples, others)
    if pairs.shape[1] < LEAST:
        return None
    drawn = pairs[:, _draws(pairs.shape[1])]  # [2, RESAMPLES, pairs]
    off = drawn - drawn.mean(axis=-1, keepdims=True)
    spreads = np.sqrt((off * off).sum(axis=-1))
    return _ends((off[0] * off[1]).sum(axis=-1) / (spreads[0] * spreads[1])) if spreads.all() else None


def _paired(samples: Sequence[float], others: Sequence[float]) -> np.ndarray:
    ours, theirs = _filled(samples), _filled(others)
    if ours.size != theirs.size:
        raise ValueError(f"{ours.size} and {theirs.size} samples are no pairs")
    return np.stack([ours, theirs])


def _filled(samples: Sequence[float]) -> np.ndarray:
    values = np.asarray(samples, np.float64)
    if not values.size:
        raise ValueError("no sample")
    return values


def batch_quantiles(samples: Sequence[float], share: float, batches: int = BATCHES) -> np.ndarray:
    """A quantile of each of so many runs of samples in their order, of equal length but for one.

    A machine that warms up or is disturbed for a while moves neighbours together: they are not independent, and batches longer than the
    disturbance nearly are.

    Raises:
        ValueError: if there are fewer than two samples for each batch.
    """
    values = _filled(samples)
    if values.size < 2 * batches:
        raise ValueError(f"{values.size} samples, at least {2 * batches} were wanted")
    return np.array([np.quantile(part, share) for part in np.array_split(values, batches)])


def t_quantile(probability: float, freedom: float) -> float:
    """Student's t: the value that is not exceeded with this probability (0.5 to 1), by bisection of its distribution."""
    low, high = 0.0, 1.0
    while t_probability(high, freedom) < probability and high < 1e9:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if t_probability(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def t_probability(value: float, freedom: float) -> float:
    """Student's t: probability of not exceeding a value of 0 or more."""
    x = freedom / (freedom + value * value)
    return 1 - 0.5 * _incomplete_beta(x, freedom / 2, 0.5)


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """Regularised, by its continued fraction (Abramowitz and Stegun 26.5.8) with Lentz' method."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(1 - x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    tiny = 1e-300
    c, d = 1.0, 1 / max(tiny, 1 - (a + b) * x / (a + 1))
    found = d
    for m in range(1, 300):
        for numerator in (m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)), -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))):
            d = 1 / (1 + numerator * d or tiny)
            c = 1 + numerator / c or tiny
            found *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return front * found
