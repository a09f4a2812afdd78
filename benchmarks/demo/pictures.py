"""Maps as pictures: one scale of metres for a row, one scale of errors for all, and the words that go below them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from ...datasets.depth_metrics import depth_errors
from ...runtime.outputs.colormap import colorize

WORST = 0.5  # error maps go from right (dark) to half the truth off (bright)
COARSE = {"depthclip-tiny": "6x8 cells", "depthblip2-tiny": "8x8 cells", "moa-depthclip-tiny": "12x12 cells"}  # their published heads say depth per cell


@dataclass(frozen=True)
class Map:
    """What one network says of one photo.

    Args:
        values: float32 [H, W]; metres, or numbers without a unit.
        metric: whether they are metres.
    """

    values: np.ndarray
    metric: bool


@dataclass(frozen=True)
class Row:
    """One photo.

    Args:
        title: below the photo.
        photo: RGB.
        truth_m: float32 [H, W], 0 where unknown; None if there is no truth.
        maps: one for every column.
    """

    title: str
    photo: Image.Image
    truth_m: np.ndarray | None
    maps: tuple[Map, ...]


def row_range(row: Row) -> tuple[float, float]:
    """Metres that the two ends of a row's colours stand for: of the truth (2nd to 98th percentile), else of the first map in metres."""
    if row.truth_m is not None:
        return ends(row.truth_m)
    return next((ends(found.values) for found in row.maps if found.metric), (0.0, 1.0))


def said(found: Map, truth_m: np.ndarray | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """A map as it is drawn, and what is written below it: its range, and how far it is off where the truth is known.

    A map without metres is multiplied to the truth's median.
    """
    values = found.values
    if truth_m is None:
        return values, (span(values),) if found.metric else ("order only, no metres",)
    known = (truth_m > 0) & np.isfinite(values) & (values > 0)
    if not found.metric:
        values = values * np.float32(np.median(truth_m[known]) / np.median(values[known]))
    errors = depth_errors(values[known], truth_m[known])
    fit = "" if found.metric else ", fitted"
    return values, (span(values) + fit, f"abs_rel {errors['abs_rel']:.3f}   delta1 {errors['delta1']:.2f}")


def drawn(found: Map, row: Row) -> Image.Image:
    """A map in the colours of its row; in colours of its own if it has no metres and the row no truth."""
    values, _ = said(found, row.truth_m)
    low, high = row_range(row) if found.metric or row.truth_m is not None else ends(values)
    return coloured(values, values > 0, low, high)


def error_map(found: Map, truth_m: np.ndarray) -> Image.Image:
    """|depth - truth| / truth, dark where right, bright from ``WORST`` on, grey where the truth is not known."""
    values, _ = said(found, truth_m)
    known = (truth_m > 0) & np.isfinite(values) & (values > 0)
    error = np.abs(values - truth_m) / np.where(known, truth_m, 1)
    return Image.fromarray(colorize(np.where(known, error, 0).astype(np.float32), known, 0.0, WORST, "magma", reverse=False))


def coloured(values: np.ndarray, known: np.ndarray, low: float, high: float) -> Image.Image:
    """Warm is near, cold is far, grey is unknown."""
    known = known & np.isfinite(values)
    return Image.fromarray(colorize(np.where(known, values, 0).astype(np.float32), known, low, high, "turbo", reverse=True))


def ends(values: np.ndarray) -> tuple[float, float]:
    """2nd and 98th percentile of what is known, never equal."""
    known = values[np.isfinite(values) & (values > 0)]
    low, high = (float(v) for v in np.percentile(known, [2, 98])) if known.size else (0.0, 1.0)
    return low, high if high > low else low + 1e-3


def span(values: np.ndarray) -> str:
    """Least, greatest and middle value in words."""
    known = values[np.isfinite(values) & (values > 0)]
    return f"{known.min():.1f} to {known.max():.1f} m, median {np.median(known):.1f}" if known.size else "nothing"


def fitting(image: Image.Image, width: int, height: int) -> Image.Image:
    """As large as fits, enlarged too, as maps of small photos are small."""
    scale = min(width / image.width, height / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BILINEAR)
