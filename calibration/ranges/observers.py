"""How wide an INT8 range should be: mergeable histograms of magnitudes, and the rules that read a range from one."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ...runtime.errors import AccuracyError

BINS = 4096
LEVELS = 127  # symmetric INT8: -127 .. 127
KEEP_AT_LEAST = 1 / 64  # no rule may cut below this part of the greatest magnitude


class Histogram:
    """Counts of |x| over [0, 2^exponent) in ``BINS`` equal bins, with the exact greatest magnitude.

    The range is always a power of two, so two histograms merge exactly, whatever the order they were filled in: streaming, resuming
    and sharding all give the same counts.
    """

    def __init__(self, exponent: int = -126, counts: np.ndarray | None = None, amax: float = 0.0):
        self.exponent, self.amax = exponent, amax
        self.counts = np.zeros(BINS, np.int64) if counts is None else counts.astype(np.int64, copy=True)

    def add(self, values: np.ndarray, name: str = "tensor") -> None:
        """Count the magnitudes of an array.

        Raises:
            AccuracyError: if a value is NaN or infinite; ``name`` is told.
        """
        if not values.size:
            return
        magnitudes = np.abs(np.asarray(values, np.float32)).ravel()
        amax = float(magnitudes.max())
        if not math.isfinite(amax):
            bad = int(magnitudes.size - np.isfinite(magnitudes).sum())
            raise AccuracyError(f"tensor {name} holds {bad} NaN or infinite values of {magnitudes.size}", wanted="finite numbers everywhere")
        self._widen(_exponent(amax))
        self.amax = max(self.amax, amax)
        places = np.minimum((magnitudes.astype(np.float64) * (BINS / 2.0**self.exponent)).astype(np.int32), BINS - 1)
        self.counts += np.bincount(places, minlength=BINS)

    def merge(self, other: Histogram) -> None:
        """Take in what another histogram of the same tensor has seen."""
        other = Histogram(other.exponent, other.counts, other.amax)
        self._widen(other.exponent)
        other._widen(self.exponent)
        self.counts += other.counts
        self.amax = max(self.amax, other.amax)

    def _widen(self, exponent: int) -> None:
        if exponent <= self.exponent:
            return
        step = min(exponent - self.exponent, 12)  # 2^12 = BINS: beyond that everything lies in the first bin
        folded = self.counts.reshape(BINS >> step, 1 << step).sum(1)
        self.counts = np.zeros(BINS, np.int64)
        self.counts[: len(folded)] = folded
        self.exponent = exponent

    @property
    def count(self) -> int:
        """How many values were seen."""
        return int(self.counts.sum())

    @property
    def width(self) -> float:
        """Width of one bin."""
        return 2.0**self.exponent / BINS


def _exponent(amax: float) -> int:
    return max(math.frexp(amax)[1], -126) if amax else -126  # frexp: amax < 2^e


def greatest(histogram: Histogram) -> float:
    """The greatest magnitude that was seen."""
    return histogram.amax


def percentile(histogram: Histogram, percent: float) -> float:
    """The magnitude below which ``percent`` % of all values lie, interpolated inside its bin; never above the greatest one."""
    total = histogram.count
    if not total:
        return 0.0
    wanted = total * percent / 100
    cumulated = np.cumsum(histogram.counts)
    place = int(np.searchsorted(cumulated, wanted))
    if place >= BINS:
        return histogram.amax
    before = cumulated[place - 1] if place else 0
    inside = (wanted - before) / max(int(histogram.counts[place]), 1)
    return _bounded((place + inside) * histogram.width, histogram)


def mean_squared_error(histogram: Histogram) -> float:
    """The range whose INT8 rounding and clipping, on the middle of every bin, has the least mean squared error."""
    occupied = np.flatnonzero(histogram.counts)
    if not histogram.amax:
        return 0.0
    values, weights = (occupied + 0.5) * histogram.width, histogram.counts[occupied].astype(np.float64)
    ranges = histogram.amax * np.linspace(0.1, 1.0, 181)
    errors = []
    for amax in ranges:
        step = amax / LEVELS
        errors.append(float((weights * (values - np.minimum(np.rint(values / step), LEVELS) * step) ** 2).sum()))
    best = len(errors) - 1 - int(np.argmin(errors[::-1]))  # of equals the widest
    return _bounded(float(ranges[best]), histogram)


def entropy(histogram: Histogram, levels: int = 128) -> float:
    """The range whose ``levels`` steps keep most of the distribution (least Kullback-Leibler divergence).

    Migacz, "8-bit inference with TensorRT", GTC 2017: for every cut the clipped counts go into the last bin of the reference, the
    candidate is the same cut merged to ``levels`` steps and spread evenly over its non-empty bins. The count of exact zeros, which a
    symmetric range always meets, is left out.
    """
    used = int(min(BINS, math.ceil(histogram.amax / histogram.width))) if histogram.amax else 0
    if used <= levels:
        return histogram.amax
    counts = histogram.counts[:used].astype(np.float64)
    counts[0] = 0
    if not counts.sum():
        return histogram.amax
    cuts = np.arange(levels, used + 1, max(1, used // 512))
    divergences = _divergences(counts, cuts, levels)
    best = cuts[divergences <= divergences.min() + 1e-9].max()  # of equals the widest
    return _bounded(float(best) * histogram.width, histogram)


def _divergences(counts: np.ndarray, cuts: np.ndarray, levels: int) -> np.ndarray:
    """Kullback-Leibler divergence of every cut, from sums over the bins before each one: a loop over the cuts takes a dozen times as long."""
    mass, filled, own = (np.concatenate(([0.0], np.cumsum(values))) for values in (counts, counts > 0, _xlogx(counts)))
    edges = -(-np.arange(levels + 1) * cuts[:, None] // levels)  # the first bin of each step
    steps, room = np.diff(mass[edges]), np.diff(filled[edges])
    inside, total, last = mass[cuts], mass[-1], counts[cuts - 1]
    beyond, floor = total - inside, 1e-4 / cuts  # a bin that only the reference fills costs much, not infinitely much
    spread = np.maximum(steps / (np.maximum(room, 1) * np.maximum(inside, 1)[:, None]), floor[:, None])
    reference = own[cuts - 1] + _xlogx(last + beyond)
    candidate = (steps * np.log(spread)).sum(1) + beyond * np.log(np.where(last > 0, spread[:, -1], floor))
    return np.where(inside > 0, (reference - candidate) / total - math.log(total), math.inf)


def _xlogx(counts: np.ndarray) -> np.ndarray:
    return counts * np.log(np.maximum(counts, 1))


def _bounded(amax: float, histogram: Histogram) -> float:
    return float(min(max(amax, histogram.amax * KEEP_AT_LEAST), histogram.amax))


OBSERVERS: dict[str, Callable[[Histogram], float]] = {
    "max": greatest,
    "percentile-99.9": lambda histogram: percentile(histogram, 99.9),
    "percentile-99.99": lambda histogram: percentile(histogram, 99.99),
    "percentile-99.999": lambda histogram: percentile(histogram, 99.999),
    "entropy": entropy,
    "mse": mean_squared_error,
}
LAYER_OUTPUT = "layer-output"  # not a rule of its own: for every tensor the one of the above with which the layers' outputs are least noisy
RULES = (*OBSERVERS, LAYER_OUTPUT)
