"""How much of an error is scale: whole maps that are too near or too far, and whether that goes with the camera's focal length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...datasets.depth_metrics import depth_errors
from ..record.statistics import LEAST, interval_of_correlation
from .evaluation import Evaluation, Pixels, compared

SPREAD = (10, 50, 90)  # percentiles of the images' factors
SAME_CAMERA = 0.01  # where all focal lengths lie within this share, they are one camera's
SHOWN = ("abs_rel", "delta1")


def map_scale(evaluation: Evaluation, image: Pixels, focal: float | None) -> dict[str, Any] | None:
    """What one map is as a whole, as JSON values; None where the evaluation fits maps or gathers images, and of a map with numbers that are no depth.

    ``factor`` is the median of prediction / truth over the counted pixels: 1 is right, more is too far. ``abs_rel`` and ``delta1`` are those of
    the map divided by it, ``focal`` is given back.

    Args:
        image: as it is scored.
        focal: focal length in widths of the photo; None if the camera is not known.
    """
    if evaluation.alignment != "none" or evaluation.min_max or evaluation.pooling != "images":
        return None
    prediction, truth = compared(evaluation, image)
    if not prediction.size or not np.isfinite(prediction).all() or prediction.min() <= 0:
        return None
    factor = float(np.median(prediction / truth))
    return {"factor": factor, **depth_errors(prediction / factor, truth, SHOWN), "focal": focal}


def scale_of_maps(maps: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    """A row's ``scale``: where the factors of its images lie, the mean errors without them, and how they go with the focal length.

    Args:
        maps: of every image, from ``map_scale``.

    Returns:
        None of fewer than six images: they do not show where those of others lie. ``with_focal`` is None where fewer tell of a camera, and where
        all tell of one.
    """
    known = [each for each in maps if each is not None]
    if len(known) < LEAST:
        return None
    low, middle, high = (float(value) for value in np.percentile([each["factor"] for each in known], SPREAD))
    fitted = {name: float(np.mean([each[name] for each in known])) for name in SHOWN}
    return {"images": len(known), "low": low, "median": middle, "high": high, **fitted, "with_focal": _with_focal(known)}


def _with_focal(maps: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Spearman's correlation of factor and focal length, which a few maps that are wholly wrong do not decide: below 0 where a network takes narrow
    views for near things."""
    told = [(each["factor"], each["focal"]) for each in maps if (each["focal"] or 0) > 0]
    if len(told) < LEAST:
        return None
    factors, focals = np.array(told).T
    if np.ptp(np.log(focals)) < SAME_CAMERA or not np.ptp(factors):
        return None
    factors, focals = _ranks(factors), _ranks(focals)
    interval = interval_of_correlation(factors, focals)
    return {"images": len(told), "rank_correlation": float(np.corrcoef(factors, focals)[0, 1]), "interval": list(interval) if interval else None}


def _ranks(values: np.ndarray) -> np.ndarray:
    """Places in the order of size; equal values share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]
