"""How sure a mean over photos is, when photos of one scene resemble each other."""

from __future__ import annotations

import numpy as np

DRAWS = 2000


def bootstrap_errors(values: np.ndarray, scenes: list[str], seed: int = 0) -> np.ndarray | None:
    """Standard errors of the means of ``values`` [photos, k] over photos drawn scene by scene: float64 [k]; None for a single photo, of which nothing is known.

    Whole scenes are drawn with replacement (Davison and Hinkley 1997, section 3.8), with the factor ``n / (n - 1)`` that the variance lacks for ``n`` of
    them. Photos of a single scene are drawn one by one.
    """
    names = list(dict.fromkeys(scenes))
    groups = [np.flatnonzero([scene == name for scene in scenes]) for name in names] if len(names) > 1 else [np.array([k]) for k in range(len(values))]
    if len(groups) < 2:
        return None
    sums = np.stack([values[group].sum(axis=0) for group in groups])  # [scenes, k]
    sizes = np.array([len(group) for group in groups], np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(groups), (DRAWS, len(groups)))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)[:, None]  # [draws, k]
    return means.std(axis=0) * np.sqrt(len(groups) / (len(groups) - 1))
