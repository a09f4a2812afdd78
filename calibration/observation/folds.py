"""The photos that are observed, in a few folds of whole scenes: what was read from some of them is judged on another."""

from __future__ import annotations

from collections.abc import Iterable

from .photo import Photo

MOST_FOLDS = 4  # every fold has a histogram of its own for every tensor: 32 KiB


def folds_of(photos: Iterable[Photo]) -> dict[int, int]:
    """Number of a photo -> its fold, from 0. No scene is in two folds, and folds hold about as many photos; photos of a single scene each count as one."""
    scenes: dict[str, list[int]] = {}
    for photo in photos:
        scenes.setdefault(photo.scene, []).append(photo.number)
    groups = list(scenes.values()) if len(scenes) > 1 else [[number] for numbers in scenes.values() for number in numbers]
    folds: list[list[int]] = [[] for _ in range(min(MOST_FOLDS, len(groups)))]
    for numbers in sorted(groups, key=lambda some: (-len(some), min(some))):
        min(folds, key=len).extend(numbers)
    return {number: place for place, numbers in enumerate(folds) for number in numbers}
