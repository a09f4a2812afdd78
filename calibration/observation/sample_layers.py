"""Some rows of what every layer reads, gathered from all pictures that are looked at."""

from __future__ import annotations

import math
import zlib

import numpy as np

from ..graph.stage_graph import StageGraph
from ..quantisation.layer_error import Samples, sample_key
from ..quantisation.layer_rows import geometry_of, sample_rows


def sample_layers(samples: Samples, graph: StageGraph, names: list[str], values: dict[str, np.ndarray], share: float, window: tuple[int, int]) -> None:
    """Add this window's share to the samples of the layers that read some tensors, in place.

    Which rows are taken follows from the tensor's name and the window alone: an interrupted observation takes the same again.

    Args:
        names: of the tensors.
        share: of the whole sample, one over the number of windows.
        window: number of the photo, and of the window in it.
    """
    for name in names:
        for geometry in {found.key: found for node, place in graph.readers[name] if place == 0 and (found := geometry_of(graph, node)) is not None}.values():
            key = sample_key(name, geometry)
            have = samples.get(key)
            missing = geometry.rows - (0 if have is None else len(have))
            if missing <= 0:
                continue
            random = np.random.default_rng([zlib.crc32(key.encode()), *window])
            rows = sample_rows(geometry, values[name], min(missing, math.ceil(geometry.rows * share)), random)
            samples[key] = rows if have is None else np.concatenate([have, rows])
