"""Fitting a prediction to the truth before it is scored; a result always names which fit was used."""

from __future__ import annotations

import numpy as np

from ...datasets.depth_metrics import at_median

ALIGNMENTS = ("none", "median", "scale-shift", "scale-shift-inverse")


def align(prediction: np.ndarray, truth: np.ndarray, alignment: str, near_m: float) -> np.ndarray:
    """The prediction after the fit, in metres, float64 [n].

    - ``none``: as it is.
    - ``median``: times median(truth) / median(prediction).
    - ``scale-shift``: s p + t with the least squares of s p + t - g.
    - ``scale-shift-inverse``: 1 / (s p + t) with the least squares of s p + t - 1 / g, for maps that grow toward the camera.

    The two shifted fits can leave the range of depths; what falls below ``near_m`` (or has no positive inverse) is set to
    ``near_m`` (to the farthest truth), as scale-and-shift invariant evaluations do. A prediction with NaN or infinity is
    returned unfitted, so that it is counted.

    Args:
        prediction, truth: [n], n >= 1.

    Raises:
        ValueError: if the alignment is unknown.
    """
    if alignment not in ALIGNMENTS:
        raise ValueError(f"an alignment is one of {', '.join(ALIGNMENTS)}, got {alignment!r}")
    p, g = np.asarray(prediction, np.float64), np.asarray(truth, np.float64)
    if alignment == "none" or not p.size or not np.isfinite(p).all():
        return p
    if alignment == "median":
        return at_median(p, g)
    target = g if alignment == "scale-shift" else 1 / g
    scale, shift = np.linalg.lstsq(np.stack([p, np.ones_like(p)], 1), target, rcond=None)[0]
    fitted = scale * p + shift
    if alignment == "scale-shift":
        return np.maximum(fitted, near_m)
    return np.maximum(1 / np.maximum(fitted, 1 / g.max()), near_m)
