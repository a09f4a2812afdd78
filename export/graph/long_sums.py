"""How a sum over a long span is split in two, so that FP32 stays exact: one pass over a million numbers loses the fifth digit."""

from __future__ import annotations

LONGEST_PLAIN = 1 << 16  # numbers; up to here one pass is exact to a few 1e-6, and faster
LONGEST_ROW = 4096


def row_length(length: int) -> int:
    """How many numbers of a span are summed first, before the sums of these rows are: a divisor of ``length``; all of a short span.

    Args:
        length: numbers in the span, at least 1.
    """
    return length if length <= LONGEST_PLAIN else max(size for size in range(1, LONGEST_ROW + 1) if length % size == 0)
