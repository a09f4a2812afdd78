"""Colour tables of 256 steps, computed from published anchors and polynomials; no table is copied."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

# Colours at equal distances along the map; between them the table runs smoothly.
ANCHORS = {
    "viridis": "440154 472d7b 3b528b 2c728e 21918c 28ae80 5ec962 addc30 fde725",
    "magma": "000004 1d1147 51127c 832681 b73779 e75263 fc8961 fec488 fcfdbf",
    "grey": "000000 ffffff",
}
# Turbo (A. Mikhailov, Google, 2019): its published fifth-degree polynomial, one row per channel, constant term first.
TURBO = (
    (0.13572138, 4.61539260, -42.66032258, 132.13108234, -152.94239396, 59.28637943),
    (0.09140261, 2.19418839, 4.84296658, -14.18503333, 4.27729857, 2.82956604),
    (0.10667330, 12.64194608, -60.58204836, 110.36276771, -89.90310912, 27.34824973),
)
COLORMAPS = ("turbo", *ANCHORS)


@lru_cache(maxsize=8)
def table(name: str) -> np.ndarray:
    """uint8 [256, 3], from the low end to the high end.

    Raises:
        ValueError: if ``name`` is none of ``COLORMAPS``.
    """
    import numpy as np

    if name not in COLORMAPS:
        raise ValueError(f"unknown colour map {name!r}, wanted one of {', '.join(COLORMAPS)}")
    position = np.linspace(0, 1, 256)
    if name == "turbo":
        rgb = np.stack([np.polynomial.polynomial.polyval(position, row) for row in TURBO], axis=1)
    else:
        anchors = np.array([[int(word[i : i + 2], 16) / 255 for i in (0, 2, 4)] for word in ANCHORS[name].split()])
        rgb = np.stack([_smooth(position, anchors[:, c]) for c in range(3)], axis=1)
    out = (np.clip(rgb, 0, 1) * 255 + 0.5).astype(np.uint8)
    out.flags.writeable = False
    return out


def _smooth(position: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """Cubic Hermite through equally spaced anchors, slopes from the neighbours on both sides."""
    import numpy as np

    slopes = np.gradient(anchors)
    scaled = position * (len(anchors) - 1)
    low = np.minimum(scaled.astype(int), len(anchors) - 2)
    t = scaled - low
    a, b, m, n = anchors[low], anchors[low + 1], slopes[low], slopes[low + 1]
    return a * (2 * t**3 - 3 * t**2 + 1) + m * (t**3 - 2 * t**2 + t) + b * (3 * t**2 - 2 * t**3) + n * (t**3 - t**2)


def colorize(
    values: np.ndarray, valid: np.ndarray, low: float, high: float, name: str, reverse: bool, invalid: tuple[int, int, int] = (64, 64, 64)
) -> np.ndarray:
    """Colours of a map.

    Args:
        values: float32 [H, W].
        valid: bool [H, W]; elsewhere the colour is ``invalid``.
        low, high: what the two ends of the table stand for; values beyond take the end colours.
        reverse: run the table backwards.

    Returns:
        uint8 [H, W, 3].

    Raises:
        ValueError: if low is not below high.
    """
    import numpy as np

    if not low < high:
        raise ValueError(f"low < high was wanted, got {low} and {high}")
    colors = table(name)[::-1] if reverse else table(name)
    index = np.subtract(values, low, dtype=np.float32)
    index *= np.float32(255.0 / (high - low))
    index += np.float32(0.5)
    out = np.take(colors, np.clip(index, 0, 255, out=index).astype(np.uint8), axis=0)
    if not valid.all():
        out[~valid] = invalid
    return out
