"""Pillow's filtered resizes as tables of whole numbers, and the struct of the kernel that carries them out in two passes."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import PIL

PILLOW = int(PIL.__version__.split(".")[0])
PRECISION_BITS = 22  # of a weight; a byte, a weight and the sum of a few fit into 32 bits
ANTIALIAS = np.dtype(
    [*((name, "<u8") for name in ("source", "target", "table")), *((name, "<i4") for name in ("source_row", "height", "width", "taps", "across"))], align=True
)


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


def _cubic(x: np.ndarray) -> np.ndarray:
    """R. Keys, 1981, with a = -0.5."""
    x = np.abs(x)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


FILTERS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {"bilinear-antialias": (_triangle, 1.0), "bicubic-antialias": (_cubic, 2.0)}


@lru_cache(maxsize=64)
def filter_table(size: int, wanted: int, interpolation: str) -> np.ndarray:
    """Which source positions make up each of ``wanted`` positions, when ``size`` are resized.

    Args:
        interpolation: one of ``FILTERS``.

    Returns:
        int32 [wanted, 2 + taps]: first position, count, and as many weights in steps of 1 / 2^22; their sum is 1 up to rounding.
    """
    weigh, reach = FILTERS[interpolation]
    scale = size / wanted
    stretch = max(scale, 1.0)  # a picture that grows is not filtered further than the filter reaches
    support = reach * stretch
    center = (np.arange(wanted) + 0.5) * scale
    first = np.maximum((center - support + 0.5).astype(np.int64), 0)
    count = np.minimum((center + support + 0.5).astype(np.int64), size) - first
    taps = int(count.max())
    place = np.arange(taps)
    weights = np.where(place < count[:, None], weigh((place + first[:, None] - center[:, None] + 0.5) / stretch), 0)
    weights /= weights.sum(axis=1, keepdims=True)
    scaled = weights * (1 << PRECISION_BITS)
    table = np.concatenate([first[:, None], count[:, None], np.trunc(scaled + np.copysign(0.5, scaled))], axis=1).astype(np.int32)
    table.flags.writeable = False
    return table


def passes(before: tuple[int, int], after: tuple[int, int]) -> list[tuple[bool, tuple[int, int]]]:
    """The one-dimensional passes of a resize in the order of the installed Pillow: (across?, height and width after it).

    Widths come first. From Pillow 13 on heights do, where more than twice as many rows as columns go away: fewer sums, and the bytes between the
    passes are rounded differently.
    """
    rows_first = PILLOW >= 13 and before[0] - after[0] > max(0, 2 * (before[1] - after[1]))
    size, found = before, []
    for across in (rows_first, not rows_first):
        changed = (after[0], size[1]) if across else (size[0], after[1])
        if changed != size:
            found.append((across, changed))
        size = changed
    return found


def antialias_record(source: int, source_row: int, target: int, size: tuple[int, int], table: int, taps: int, across: bool) -> np.ndarray:
    """The struct for one pass: the source at one address, rows ``source_row`` bytes apart, to [height, width, 3] = ``size`` at another.

    Args:
        table: address of a ``filter_table`` with ``taps`` weights.
        across: resize the height instead of the width.
    """
    record = np.zeros((), ANTIALIAS)
    record["source"], record["target"], record["table"], record["source_row"] = source, target, table, source_row
    record["height"], record["width"] = size
    record["taps"], record["across"] = taps, across
    return record
