"""Some rows of what every layer reads, gathered from all pictures that are looked at."""

from __future__ import annotations

import math
import zlib

import numpy as np

from ..graph.stage_graph import StageGraph
from ..quantisation.layer_error import Samples, sample_key
from ..quantisation.layer_rows import Geometry, geometry_of, greatest_rows, sample_rows

RARE = 0.25


def sample_layers(
    samples: Samples,
    origins: dict[str, np.ndarray],
    graph: StageGraph,
    names: list[str],
    values: dict[str, np.ndarray],
    share: float,
    window: tuple[int, int],
    fold: int = 0,
) -> None:
    """Add this window's share to the samples of the layers that read some tensors, in place: most taken at random, and besides, ``RARE`` as many, those
    with the greatest magnitudes, because chance hardly meets what a narrow range clips.

    Which rows are taken follows from the tensor's name and the window alone: an interrupted observation takes the same again.

    Args:
        origins: fold of every row of the samples, in place as well.
        names: of the tensors.
        share: of the whole sample, one over the number of windows.
        window: number of the photo, and of the window in it.
        fold: of the photo.
    """
    for name in names:
        for geometry in {found.key: found for node, place in graph.readers[name] if place == 0 and (found := geometry_of(graph, node)) is not None}.values():
            for key, most in ((sample_key(name, geometry), geometry.rows), (sample_key(name, geometry, greatest=True), math.ceil(geometry.rows * RARE))):
                count = min(most - len(origins.get(key, ())), math.ceil(most * share))
                if count > 0:
                    random = np.random.default_rng([zlib.crc32(key.encode()), *window])
                    rows = _rows(geometry, values[name], count, random if most == geometry.rows else None)
                    samples[key] = np.concatenate([samples[key], rows]) if key in samples else rows
                    origins[key] = np.concatenate([origins.get(key, np.zeros(0, np.int64)), np.full(len(rows), fold)])


def _rows(geometry: Geometry, values: np.ndarray, count: int, random: np.random.Generator | None) -> np.ndarray:
    return greatest_rows(geometry, values, count) if random is None else sample_rows(geometry, values, count, random)
