"""The masks of COCO's ``instances.json``: polygons and run lengths to pixels, as the COCO tools draw them.

A polygon's outline is walked on a grid five times as fine; where it crosses the centre line of a pixel column, everything below changes sides
(format and drawing rule: ``cocodataset/cocoapi``, ``common/maskApi.h``).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FINE = 5  # steps to a pixel, of the outline
MAX_PIXELS = 1 << 28


def referred_mask(segmentation: object, height: int, width: int) -> np.ndarray:
    """The pixels of one annotation, as the published loaders of the RefCOCO family see them.

    They add up the parts and keep the pixels that lie in exactly one: where two polygons of an object overlap there is no mask.

    Args:
        segmentation: list of polygons (x, y, x, y, …), run lengths (``{"size": [h, w], "counts": …}``), or a list of those.

    Returns:
        bool [H, W].

    Raises:
        ValueError: for anything else.
    """
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise ValueError(f"a mask of {width}x{height} pixels")
    parts = [segmentation] if isinstance(segmentation, dict) else segmentation
    if not isinstance(parts, list) or not parts:
        raise ValueError("a segmentation is a list of polygons or run lengths")
    total = np.zeros((height, width), np.uint16)
    for part in parts:
        total += _runs(part, height, width) if isinstance(part, dict) else polygon(part, height, width)
    return total == 1


def polygon(corners: Sequence[float], height: int, width: int) -> np.ndarray:
    """The pixels inside a polygon.

    Args:
        corners: x, y, x, y, … in pixels, 0, 0 being the upper left corner of the upper left pixel.

    Returns:
        bool [H, W].

    Raises:
        ValueError: if these are not three or more corners of finite coordinates.
    """
    try:
        points = np.asarray(corners, np.float64).reshape(-1, 2)
    except (TypeError, ValueError):
        points = np.empty((0, 2))
    if len(points) < 3 or not np.isfinite(points).all() or np.abs(points).max() > 1 << 20:
        raise ValueError("a polygon has three or more corners x, y in pixels")
    fine = (FINE * points + 0.5).astype(np.int64)
    outline = np.concatenate([_edge(*start, *end) for start, end in zip(fine, np.roll(fine, -1, 0), strict=True)])
    before, after = outline[:-1], outline[1:]
    crossing = before[:, 0] != after[:, 0]
    before, after = before[crossing], after[crossing]
    column = (np.where(after[:, 0] < before[:, 0], after[:, 0], after[:, 0] - 1) + 0.5) / FINE - 0.5
    row = np.ceil(np.clip((np.minimum(before[:, 1], after[:, 1]) + 0.5) / FINE - 0.5, 0, height))
    inside = (column == np.floor(column)) & (column >= 0) & (column <= width - 1)
    changes = np.bincount((column[inside] * height + row[inside]).astype(np.int64), minlength=height * width + 1)
    return (np.cumsum(changes[: height * width]) % 2 == 1).reshape(width, height).T


def _edge(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    """Grid points from one corner to the next, both included, one for each step along the longer side; int64 [n, 2]."""
    across, down = abs(x1 - x0), abs(y1 - y0)
    if across >= down:
        backward = x0 > x1
        (xs, ys), (xe, ye) = ((x1, y1), (x0, y0)) if backward else ((x0, y0), (x1, y1))
        steps = np.arange(across + 1)
        found = np.stack([xs + steps, (ys + (ye - ys) / max(across, 1) * steps + 0.5).astype(np.int64)], 1)
    else:
        backward = y0 > y1
        (xs, ys), (xe, ye) = ((x1, y1), (x0, y0)) if backward else ((x0, y0), (x1, y1))
        steps = np.arange(down + 1)
        found = np.stack([(xs + (xe - xs) / down * steps + 0.5).astype(np.int64), ys + steps], 1)
    return found[::-1] if backward else found


def _runs(part: dict, height: int, width: int) -> np.ndarray:
    if part.get("size") != [height, width]:
        raise ValueError(f"run lengths of size {part.get('size')!r} for a picture of {[height, width]}")
    counts = part.get("counts")
    if isinstance(counts, str):
        counts = _letters(counts)
    if not isinstance(counts, list) or not all(isinstance(count, int) and 0 <= count <= height * width for count in counts):
        raise ValueError("run lengths are whole numbers")
    if sum(counts) != height * width:
        raise ValueError(f"run lengths of {sum(counts)} pixels for a picture of {height * width}")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(width, height).T


def _letters(text: str) -> list[int]:
    """Run lengths out of COCO's letters: five bits each from the lowest, a sixth says that more follow; from the fourth on, differences to the one
    before the last."""
    counts: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError("run lengths hold a character that COCO's encoding does not use")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("run lengths are cut short")
    return counts
