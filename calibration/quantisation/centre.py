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
from .formats import Format, quantize_weight, weight_scales
from .layer_rows import geometry_of
from .quantize import weight_axis
from .smooth import CENTRED, SMOOTHING, input_axis


def centrable(graph: StageGraph, nodes: Iterable[str]) -> dict[str, list[onnx.NodeProto]]:
    """Activations read by convolutions among ``nodes``, with those readers, which pad alike (their shift has to be the same, and zeros stay zeros), or by
    products with one matrix of weights that have a bias."""
    wanted = set(nodes)
    found: dict[str, list[onnx.NodeProto]] = {}
    for name, readers in graph.readers.items():
        able = [node for node, position in readers if position == 0 and node.name in wanted and name not in graph.constants]
        layers = [node for node in able if _convolution(graph, node) or _product(graph, node)]
        if layers and len({(node.op_type == "Conv", _pads(node)) for node in layers}) == 1:
            found[name] = layers
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

    pads = _pads(layers[0])
    if any(pads):
        top, left, bottom, right = pads
        sizes = graph.add_constant(f"{target}:pads", np.array([0, 0, top, left, 0, 0, bottom, right], np.int64))
        source = f"{name}:padded"
        nodes.append(helper.make_node("Pad", [name, sizes], [source], name=label("Pad"), mode="constant"))
        graph.add_value(source, TensorProto.FLOAT)
    shift = graph.add_constant(f"{target}:shift", -middles.reshape((1, -1, 1, 1) if layers[0].op_type == "Conv" else -1))
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
            if any(pads):
                _unpad(node)
        placed.append(node)
    graph.replace_nodes(placed)
    graph.index()
    return target


def _give_back(graph: StageGraph, node: onnx.NodeProto, middles: np.ndarray, form: Format) -> None:
    weight, axis = np.asarray(graph.array(node.input[1]), np.float32), weight_axis(graph, node)
    scales = weight_scales(weight, axis, form)
    shape = [-1 if place == axis else 1 for place in range(weight.ndim)]
    rounded = quantize_weight(weight, scales, axis, form).astype(np.float64) * scales.reshape(shape).astype(np.float64)
    if node.op_type == "Conv":
        groups = _attributes(node).get("group", 1)
        taps = rounded.sum(axis=(2, 3)).reshape(groups, len(weight) // groups, -1)  # [groups, outputs, inputs of a group]
        moved = np.einsum("goi,gi->go", taps, middles.astype(np.float64).reshape(groups, -1)).reshape(-1)
    else:
        moved = np.tensordot(middles.astype(np.float64), rounded, (0, input_axis(node)))
    add_to_bias(graph, bias_place(graph, node), moved, f"{node.name}:centred_bias")


def _unpad(node: onnx.NodeProto) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name != "pads"]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute("pads", [0, 0, 0, 0])])


def _product(graph: StageGraph, node: onnx.NodeProto) -> bool:
    geometry = geometry_of(graph, node)
    return geometry is not None and geometry.kind == "rows" and bias_place(graph, node) is not None


def _convolution(graph: StageGraph, node: onnx.NodeProto) -> bool:
    constant = len(node.input) > 1 and node.input[1] in graph.constants and len(graph.constants[node.input[1]].dims) == 4
    known = len(node.input) < 3 or not node.input[2] or node.input[2] in graph.constants
    return node.op_type == "Conv" and constant and known and _attributes(node).get("auto_pad", b"NOTSET") in (b"NOTSET", b"")


def _pads(node: onnx.NodeProto) -> tuple[int, ...]:
    return tuple(_attributes(node).get("pads", (0, 0, 0, 0)))


def _attributes(node: onnx.NodeProto) -> dict:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}
