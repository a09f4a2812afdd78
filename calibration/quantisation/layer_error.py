"""What quantising does to a layer's output, from a sample of what it reads: which observer suits a tensor, and by how much the output shifts."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx

from ..graph.stage_graph import StageGraph
from .formats import INT8, Format, activation_scale
from .layer_rows import Geometry, by_channel, geometry_of, layer_output, weight_matrix
from .quantize import rounded_weight
from .smooth import input_axis

SURE = 2.0
ALL = slice(None)
Samples = dict[str, np.ndarray]  # sample_key -> rows [count, width]


def sample_key(tensor: str, geometry: Geometry, greatest: bool = False) -> str:
    """Name of the rows that layers of a geometry read of a tensor: of those taken at random, or of those with its greatest magnitudes."""
    return f"{tensor}|{geometry.key}" + "|greatest" * greatest


class Layer:
    """One layer with a sample of what it reads.

    Args:
        graph, node: which.
        rows: of its input, [count, width].
        geometry: see ``geometry_of``.
        factors: SmoothQuant's, per input channel [C]: the input is divided by them and the weight multiplied; None for none.
        form: what it is quantised to.
        key: name of its rows in the samples.
        middles: what is taken from every channel [C] of the input before the factors, and given back behind the layer (``centre``); None for nothing.
    """

    def __init__(
        self,
        graph: StageGraph,
        node: onnx.NodeProto,
        rows: np.ndarray,
        geometry: Geometry,
        factors: np.ndarray | None = None,
        form: Format = INT8,
        key: str = "",
        middles: np.ndarray | None = None,
    ):
        weight = np.asarray(graph.array(node.input[1]), np.float32)
        matrix = weight_matrix(graph, node, weight, geometry).astype(np.float32)
        self.wanted = layer_output(rows, matrix)  # [count, groups, outputs]
        if factors is not None:
            factors = factors.astype(np.float32)
            shape = [-1 if place == input_axis(node) else 1 for place in range(weight.ndim)]
            weight = weight * factors.reshape(shape)
            rows = rows / np.repeat(factors, rows.shape[1] // len(factors))  # a patch has its channels first
            middles = middles / factors if middles is not None else None
        self._shift: np.ndarray | float = 0.0 if middles is None else np.repeat(middles, rows.shape[1] // len(middles)).astype(np.float32)
        rows = rows - self._shift
        self._matrix = weight_matrix(graph, node, rounded_weight(graph, node, weight, form), geometry).astype(np.float32)
        self._rows, self._geometry, self._form, self.key = rows, geometry, form, key

    @property
    def rows(self) -> np.ndarray:
        """What is rounded."""
        return self._rows

    def error(self, amax: float, some: np.ndarray | slice = ALL) -> np.ndarray:
        """The output quantised, with a range for the input, less the output in FP32: [count, groups, outputs], of all rows or of some."""
        rounded = self._form.rounded(self._rows[some], activation_scale(amax if amax > 0 else 1.0, self._form))
        return layer_output(rounded + self._shift, self._matrix) - self.wanted[some]

    def noise(self, amax: float, some: np.ndarray | slice = ALL) -> float:
        """Power of the error over power of the output."""
        power = float(np.square(self.wanted[some], dtype=np.float64).sum())
        return float(np.square(self.error(amax, some), dtype=np.float64).sum()) / power if power else 0.0

    def shift(self, amax: float) -> np.ndarray:
        """Mean of the error by output channel, [O]; 0 where the sample does not tell it from 0 (two standard errors)."""
        error = self.error(amax).astype(np.float64)
        mean = error.mean(axis=0)
        doubt = error.std(axis=0) / np.sqrt(len(error))
        return by_channel(np.where(np.abs(mean) > SURE * doubt, mean, 0.0), self._geometry)


def layers_of(
    graph: StageGraph,
    tensor: str,
    samples: Samples,
    nodes: Iterable[str] | None = None,
    factors: np.ndarray | None = None,
    form: Format = INT8,
    greatest: bool = False,
    middles: np.ndarray | None = None,
) -> list[Layer]:
    """The layers that read a tensor and of whose input there is a sample.

    Args:
        nodes: names of those to take; None for all.
        factors: see ``Layer``.
        form: what they are quantised to.
        greatest: see ``sample_key``.
        middles: see ``Layer``.
    """
    wanted = None if nodes is None else set(nodes)
    found = []
    for node, position in graph.readers[tensor]:
        if position != 0 or (wanted is not None and node.name not in wanted):
            continue
        geometry = geometry_of(graph, node)
        if geometry is not None and (rows := samples.get(key := sample_key(tensor, geometry, greatest))) is not None and len(rows):
            found.append(Layer(graph, node, rows, geometry, factors, form, key, middles))
    return found


def best_on_other_scenes(layers: list[Layer], greatest: list[Layer], origins: dict[str, np.ndarray], ranges: dict[int, dict[str, float]]) -> str:
    """The observer with which the layers' outputs are least noisy on scenes that its range was not read from.

    ``max`` loses nothing that was seen, so it stands unless another one is at least as quiet on every fold of scenes, each judged with the range of the
    others, and where that fold's magnitudes are greatest, too: rows taken at random hardly meet what is clipped, and a new scene may be full of it. A fold
    that a layer has no rows of says nothing for a narrower range, and so speaks against it. Of equals the first.

    Args:
        layers, greatest: with rows taken at random, and with those of the greatest magnitudes.
        origins: ``sample_key`` -> fold of every row.
        ranges: fold -> observer -> its range on all other folds, ``max`` among them; empty if there is one fold alone, and ``max`` it is.
    """
    noise: dict[str, list[tuple[float, float]]] = {}
    for fold, candidates in ranges.items():
        parts = [[(layer, np.flatnonzero(origins[layer.key] == fold)) for layer in some] for some in (layers, greatest)]
        if not all(len(rows) for part in parts for _, rows in part):
            return "max"
        known: dict[float, tuple[float, float]] = {}
        for name, amax in candidates.items():
            if amax not in known:
                usual, rare = (sum(layer.noise(amax, rows) for layer, rows in part) for part in parts)
                known[amax] = usual, rare
            noise.setdefault(name, []).append(known[amax])
    able = [name for name, found in noise.items() if (np.array(found) <= np.array(noise["max"])).all()]
    return min(able, key=lambda name: sum(usual for usual, _ in noise[name]), default="max")
