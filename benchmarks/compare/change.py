"""Better, same, worse or cannot tell, from samples.

Three designs, each with its own way of being fooled:

- *pairs*: the same image through both sides. Student's t on the differences.
- *one session*: two subjects that took turns. The ratio of each round is a sample; neighbouring rounds are disturbed together, so the
  rounds are cut into a few long batches, and Student's t is taken on their medians.
- *two sessions*: two files. Besides the above, a whole session may be faster or slower than the other for reasons that are in neither file
  (another job, another layout in memory). It is granted to be off by as much as its own batches are. Whatever disturbs a round makes it
  longer, so times are compared by a low quantile of each batch; on a machine that others kept busy this found a planted wait in 94 of 100
  pairs of sessions where medians found it in 58, with fewer false words. Ratios are disturbed both ways and keep the median.

Where several quantities are judged together, the chance of one false word among all of them is what ``ALPHA`` bounds (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..record.statistics import BATCHES, LEAST, batch_quantiles, t_quantile

ALPHA = 0.05
TIME_MARGIN, ACCURACY_MARGIN = 0.03, 0.001
CALM, MIDDLE = 0.15, 0.5  # quantiles of a batch


@dataclass(frozen=True)
class Change:
    """A relative change and where it lies.

    Args:
        change: B / A - 1.
        low, high: with confidence 1 - alpha; None if nothing can be said.
        word: ``better``, ``same``, ``worse`` or ``cannot tell``.
        reason: for ``cannot tell``.
    """

    change: float | None
    low: float | None
    high: float | None
    word: str
    reason: str = ""


def unknown(reason: str, change: float | None = None) -> Change:
    """Nothing can be told."""
    return Change(change, None, None, "cannot tell", reason)


def pairs(a: Sequence[float], b: Sequence[float], quantities: int, margin: float = ACCURACY_MARGIN, larger_is_better: bool = False) -> Change:
    """The mean of paired samples.

    Args:
        quantities: that are judged together with this one.
        margin: a smaller relative change counts as none.
    """
    if len(a) != len(b):
        return unknown(f"{len(a)} and {len(b)} images")
    if len(a) < LEAST:
        return unknown(f"{len(a)} images, at least {LEAST} are wanted")
    base = float(np.mean(a))
    if base == 0:
        return unknown("the mean of A is 0")
    moved = (np.asarray(b, np.float64) - np.asarray(a, np.float64)) / base
    half = t_quantile(1 - ALPHA / quantities / 2, moved.size - 1) * float(np.std(moved, ddof=1)) / math.sqrt(moved.size)
    return _judged(float(np.mean(moved)), half, margin, larger_is_better)


def one_session(base: Sequence[float], other: Sequence[float], quantities: int, margin: float = TIME_MARGIN) -> Change:
    """Times of two subjects that took turns."""
    if len(base) != len(other):
        return unknown(f"{len(base)} and {len(other)} rounds")
    if len(base) < 2 * BATCHES:
        return unknown(f"{len(base)} rounds, at least {2 * BATCHES} are wanted")
    medians = batch_quantiles(np.log(other) - np.log(base), MIDDLE)
    half = t_quantile(1 - ALPHA / quantities / 2, BATCHES - 1) * float(np.std(medians, ddof=1)) / math.sqrt(BATCHES)
    return _from_log(float(np.mean(medians)), half, margin)


def two_sessions(a: Sequence[float], b: Sequence[float], quantities: int, margin: float = TIME_MARGIN, share: float = CALM) -> Change:
    """Times of one subject in two sessions, or its ratios to another subject of both.

    Args:
        share: quantile of a batch that stands for it: ``CALM`` for times, ``MIDDLE`` for ratios.
    """
    least = min(len(a), len(b))
    if least < 2 * BATCHES:
        return unknown(f"{least} rounds, at least {2 * BATCHES} are wanted")
    first, second = batch_quantiles(np.log(a), share), batch_quantiles(np.log(b), share)
    spread = math.sqrt((float(np.var(first, ddof=1)) + float(np.var(second, ddof=1))) * (1 + 1 / BATCHES))
    half = t_quantile(1 - ALPHA / quantities / 2, 2 * BATCHES - 2) * spread
    return _from_log(float(np.mean(second) - np.mean(first)), half, margin)


def _from_log(middle: float, half: float, margin: float) -> Change:
    return _word(math.expm1(middle), math.expm1(middle - half), math.expm1(middle + half), margin, False)


def _judged(change: float, half: float, margin: float, larger_is_better: bool) -> Change:
    return _word(change, change - half, change + half, margin, larger_is_better)


def _word(change: float, low: float, high: float, margin: float, larger_is_better: bool) -> Change:
    """The whole interval within the margin is ``same``; one side of 0, and by more than the margin, is a change."""
    if -margin <= low and high <= margin:
        return Change(change, low, high, "same")
    if (low > 0 or high < 0) and abs(change) > margin:
        return Change(change, low, high, "better" if (change > 0) == larger_is_better else "worse")
    return Change(change, low, high, "cannot tell", "the samples scatter too much")
