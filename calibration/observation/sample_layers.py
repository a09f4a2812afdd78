"""Some rows of what every layer reads, gathered from all pictures that are looked at."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..graph.stage_graph import StageGraph
from ..quantisation.layer_error import Samples, sample_key
from ..quantisation.layer_rows import geometry_of, greatest_rows, sample_rows

RARE = 0.25


@dataclass(frozen=True)
class Place:
    """Where a window stands among all that are looked at.

    Args:
        fold: of its photo.
        number: which window of the fold it is, from 0.
        of_fold, of_all: how many windows there are.
    """

    fold: int
    number: int
    of_fold: int
    of_all: int

    def rows(self, most: int) -> int:
        """This window's share of a sample: every fold gives as much as it has windows, at least one row, spread over all of them."""
        share = max(1, most * self.of_fold // self.of_all)
        return (self.number + 1) * share // self.of_fold - self.number * share // self.of_fold


def places(windows: Iterable[tuple[int, int]], folds: dict[int, int]) -> dict[tuple[int, int], Place]:
    """The place of every window (number of the photo, number in it), given the folds of the photos."""
    found = list(windows)
    of_fold: dict[int, list[tuple[int, int]]] = {}
    for window in found:
        of_fold.setdefault(folds[window[0]], []).append(window)
    return {window: Place(fold, number, len(some), len(found)) for fold, some in of_fold.items() for number, window in enumerate(some)}


def sample_layers(
    samples: Samples, origins: dict[str, np.ndarray], graph: StageGraph, names: list[str], values: dict[str, np.ndarray], window: tuple[int, int], place: Place
) -> None:
    """Add this window's share to the samples of the layers that read some tensors, in place: most taken at random, and besides, ``RARE`` as many, those
    with the greatest magnitudes, because chance hardly meets what a narrow range clips.

    Which rows are taken follows from the tensor's name and the window alone: an interrupted observation takes the same again.

    Args:
        origins: fold of every row of the samples, in place as well.
        names: of the tensors.
        window: number of the photo, and of the window in it.
        place: of the window.
    """
    for name in names:
        layers = {found.key: found for node, at in graph.readers[name] if at == 0 and (found := geometry_of(graph, node)) is not None}
        for geometry in layers.values():
            for greatest in (False, True):
                count = place.rows(math.ceil(geometry.rows * RARE) if greatest else geometry.rows)
                if not count:
                    continue
                key = sample_key(name, geometry, greatest)
                random = np.random.default_rng([zlib.crc32(key.encode()), *window])
                rows = greatest_rows(geometry, values[name], count) if greatest else sample_rows(geometry, values[name], count, random)
                samples[key] = np.concatenate([samples[key], rows]) if key in samples else rows
                origins[key] = np.concatenate([origins.get(key, np.zeros(0, np.int64)), np.full(len(rows), place.fold)])
