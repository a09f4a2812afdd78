"""Flying pixels: depths between a near and a far surface where there is neither."""

from __future__ import annotations

import numpy as np

STEP = 1.03  # of depth from one pixel to the next; a floor reaches it only within 1/0.03 = 33 rows of the horizon


def flying(depth_m: np.ndarray) -> np.ndarray:
    """bool [H, W], True where depth climbs or falls by 3 % and more on both sides of a pixel, along its row or its column.

    A clean jump between two surfaces has such a step on one side only, and stays.

    Args:
        depth_m: float32 [H, W], above 0 where known, else 0.
    """
    grown, found = depth_m * np.float32(STEP), np.zeros(depth_m.shape, bool)
    known = depth_m > 0
    for axis in (0, 1):
        before, after = (np.s_[:-1], np.s_[1:]) if axis == 0 else (np.s_[:, :-1], np.s_[:, 1:])
        middle = np.s_[1:-1] if axis == 0 else np.s_[:, 1:-1]
        both = known[before] & known[after]
        rises, falls = (depth_m[after] > grown[before]) & both, (depth_m[before] > grown[after]) & both
        twice = np.logical_or(rises[before] & rises[after], falls[before] & falls[after])
        found[middle] = np.logical_or(found[middle], twice)
    return found
