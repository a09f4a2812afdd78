"""Centred activations: what is mostly positive, as behind ReLU, SiLU or GELU, wastes half of a symmetric range; its channels are shifted to lie around zero.

Shifted channel by channel as in Wei et al. 2023 (Outlier Suppression+, arXiv 2304.09145, section 4.1), for convolutions with their padding too.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, helper

from ..graph.stage_graph import StageGraph
from .correct import add_to_bias, bias_place
from .formats import Format
from .layer_rows import Geometry, geometry_of, layer_output, weight_matrix
from .quantize import rounded_weight
from .smooth import CENTRED, SMOOTHING


def centrable(graph: StageGraph, nodes: Iterable[str]) -> dict[str, list[onnx.NodeProto]]:
    """Activations read by convolutions among ``nodes``, with those readers, which pad alike (their shift has to be the same, and zeros stay zeros), or by
    products with one matrix of weights that have a bias."""
    wanted = set(nodes)
    found: dict[str, list[onnx.NodeProto]] = {}
    for name, readers in graph.readers.items():
        able = [node for node, position in readers if position == 0 and node.name in wanted and name not in graph.constants]
        reads = [(node, geometry) for node in able if (geometry := _geometry(graph, node)) is not None]
        if len({(geometry.kind, geometry.pads) for _, geometry in reads}) == 1:
            found[name] = [node for node, _ in reads]
    return found


def limits_of(lows: np.ndarray, highs: np.ndarray, factors: np.ndarray | None = None, padded: bool = True) -> tuple[np.ndarray, float]:
    """The middle of every channel [C], before any factors, and the magnitude that the centred tensor reaches.

    Args:
        lows, highs: least and greatest value per channel [C].
        factors: what the tensor is divided by (SmoothQuant's), [C].
        padded: whether 0 has to be held as well, as a convolution's padding adds it.
    """
    low, high = (np.asarray(values, np.float64) for values in (lows, highs))
    if padded:
        low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    return (high + low) / 2, float(((high - low) / 2 / (1.0 if factors is None else factors)).max())


def centre(graph: StageGraph, name: str, layers: list[onnx.NodeProto], middles: np.ndarray, form: Format) -> str:
    """Let layers (``centrable``) read a tensor less ``middles`` [C], in place; returns the name of what they read now.

    Their biases take the shift back, by their weights as the format rounds them, so that it adds no error. A convolution's padding becomes a node of its own
    in front of the shift, because a padded zero has to be shifted too. Compilers fuse the shift with the pointwise work before it and the quantising
    behind it; whether they fuse the padding is theirs to decide, and the cost model counts it as a pass.
    """
    middles = np.asarray(middles, np.float32)
    target, source, nodes = f"{name}{CENTRED}", name, []
    path = layers[0].name.rpartition("/")[0]

    def label(op: str) -> str:
        return f"{path}/{op}_{SMOOTHING}_{name}" if path else f"{op}_{SMOOTHING}_{name}"

    geometry = geometry_of(graph, layers[0])
    if any(geometry.pads):
        top, left, bottom, right = geometry.pads
        sizes = graph.add_constant(f"{target}:pads", np.array([0, 0, top, left, 0, 0, bottom, right], np.int64))
        source = f"{name}:padded"
        nodes.append(helper.make_node("Pad", [name, sizes], [source], name=label("Pad"), mode="constant"))
        graph.add_value(source, TensorProto.FLOAT)
    shift = graph.add_constant(f"{target}:shift", -middles.reshape((1, -1, 1, 1) if geometry.kind == "patches" else -1))
    nodes.append(helper.make_node("Add", [source, shift], [target], name=label("Add")))
    graph.add_value(target, TensorProto.FLOAT)
    readers = {node.name for node in layers}
    placed, waiting = [], nodes
    for node in graph.model.graph.node:
        if node.name in readers:
            placed += waiting
            waiting = []
            _give_back(graph, node, middles, form)
            node.input[0] = target
            if any(geometry.pads):
                _unpad(node)
        placed.append(node)
    graph.replace_nodes(placed)
    graph.index()
    return target


def _give_back(graph: StageGraph, node: onnx.NodeProto, middles: np.ndarray, form: Format) -> None:
    geometry = geometry_of(graph, node)
    weight = rounded_weight(graph, node, np.asarray(graph.array(node.input[1]), np.float32), form)
    row = np.repeat(middles.astype(np.float64), geometry.width // len(middles))[None]  # a patch has its channels first
    moved = layer_output(row, weight_matrix(graph, node, weight, geometry)).reshape(-1)
    add_to_bias(graph, bias_place(graph, node), moved, f"{node.name}:centred_bias")


def _unpad(node: onnx.NodeProto) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name != "pads"]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute("pads", [0, 0, 0, 0])])


def _geometry(graph: StageGraph, node: onnx.NodeProto) -> Geometry | None:
    """How a layer reads its input, if it is a convolution or a product whose bias is known or can be given; else None."""
    geometry, place = geometry_of(graph, node), bias_place(graph, node)
    if geometry is None or geometry.kind == "pixels" or place is None:
        return None
    bias = place[0].input[place[1] : place[1] + 1]
    return geometry if not any(bias) or bias[0] in graph.constants else None
