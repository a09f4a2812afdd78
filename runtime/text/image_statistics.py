"""Statistics of a picture, for prompts that describe it (LLM-MDE's adaptive prompt generation)."""

from __future__ import annotations

import numpy as np

from ..photo.interpolate import resize


def shrink(window: np.ndarray, size: int) -> np.ndarray:
    """A normalised window [3, H, W] resampled to [3, size, size] without filtering; ``size`` 0 leaves it as it is."""
    if not size:
        return window
    return resize(np.ascontiguousarray(window.transpose(1, 2, 0)), size, size, "bilinear").transpose(2, 0, 1)


def positions(picture: np.ndarray) -> dict[str, int]:
    """Where along each axis the extremes and the median lie, as LLM-MDE's published code counts them.

    For every line of pixels along an axis, in every channel, the index of its largest, smallest and median value is taken (the first of
    equals; the lower median). Over all lines, the largest values give their smallest index, the smallest values their largest index, and
    the medians the lower median of their indices.

    Args:
        picture: [3, H, W], normalised.

    Returns:
        ``max_x``, ``min_x``, ``median_x`` (0 to W-1) and ``max_y``, ``min_y``, ``median_y`` (0 to H-1).
    """
    found = {}
    for name, axis in (("x", 2), ("y", 1)):
        middle = (picture.shape[axis] - 1) // 2
        medians = np.take(np.argsort(picture, axis=axis, kind="stable"), middle, axis=axis).ravel()
        found[f"max_{name}"] = int(picture.argmax(axis=axis).min())
        found[f"min_{name}"] = int(picture.argmin(axis=axis).max())
        found[f"median_{name}"] = int(np.sort(medians)[(medians.size - 1) // 2])
    return found


def most_frequent(picture: np.ndarray) -> float:
    """The value that occurs most often in [3, H, W]; of equally frequent ones the smallest."""
    values, counts = np.unique(picture, return_counts=True)
    return float(values[counts.argmax()])


def levels(picture: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """The 8-bit levels [3, H, W] (int64, 0 to 255) that a normalised picture stands for."""
    shape = (-1, 1, 1)
    scaled = (picture.astype(np.float64) * np.reshape(std, shape) + np.reshape(mean, shape)) * 255
    return np.clip(np.rint(scaled), 0, 255).astype(np.int64)


def level_statistics(found: np.ndarray) -> dict[str, int]:
    """``min``, ``max`` and (lower) ``median`` of 8-bit levels."""
    flat = np.sort(found, axis=None)
    return {"min": int(flat[0]), "max": int(flat[-1]), "median": int(flat[(flat.size - 1) // 2])}


def fullest_interval(found: np.ndarray, tops: tuple[float, ...]) -> float:
    """The top of the interval that holds most levels: interval *i* reaches from above ``tops[i-1]`` to ``tops[i]``."""
    index = np.minimum(np.searchsorted(np.asarray(tops), found, side="left"), len(tops) - 1)
    return float(tops[int(np.bincount(index.ravel(), minlength=len(tops)).argmax())])
