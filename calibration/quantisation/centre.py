"""Centred activations: what is mostly positive, as behind ReLU or SiLU, wastes half of a symmetric range; its channels are shifted to lie around zero."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, helper

from ..graph.stage_graph import StageGraph
from .formats import Format, quantize_weight, weight_scales
from .smooth import CENTRED, SMOOTHING


def centrable(graph: StageGraph, nodes: Iterable[str]) -> dict[str, list[onnx.NodeProto]]:
    """Activations read by convolutions among ``nodes``, with those readers, which pad alike (their shift has to be the same, and zeros stay zeros)."""
    wanted = set(nodes)
    found: dict[str, list[onnx.NodeProto]] = {}
    for name, readers in graph.readers.items():
        layers = [node for node, position in readers if position == 0 and node.name in wanted and _convolution(graph, node)]
        if layers and name not in graph.constants and len({_pads(node) for node in layers}) == 1:
            found[name] = layers
    return found


def limits_of(lows: np.ndarray, highs: np.ndarray, factors: np.ndarray | None = None) -> tuple[np.ndarray, float]:
    """The middle of every channel [C], before any factors, and the magnitude that the centred tensor reaches.

    Args:
        lows, highs: least and greatest value per channel [C]; a convolution's padding adds 0.
        factors: what the tensor is divided by (SmoothQuant's), [C].
    """
    low, high = np.minimum(lows, 0.0).astype(np.float64), np.maximum(highs, 0.0).astype(np.float64)
    return (high + low) / 2, float(((high - low) / 2 / (1.0 if factors is None else factors)).max())


def centre(graph: StageGraph, name: str, layers: list[onnx.NodeProto], middles: np.ndarray, form: Format) -> str:
    """Let convolutions read a tensor less ``middles`` [C], in place; returns the name of what they read now.

    Their biases take the shift back, by their weights as the format rounds them, so that it adds no error. Padding becomes a node of its own in front of
    the shift, because a padded zero has to be shifted too. Compilers fuse the shift with the pointwise work before it and the quantising behind
    it; whether they fuse the padding is theirs to decide, and the cost model counts it as a pass.
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
    shift = graph.add_constant(f"{target}:shift", -middles.reshape(1, -1, 1, 1))
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
            _unpad(node)
        placed.append(node)
    graph.replace_nodes(placed)
    graph.index()
    return target


def _give_back(graph: StageGraph, node: onnx.NodeProto, middles: np.ndarray, form: Format) -> None:
    weight = np.asarray(graph.array(node.input[1]), np.float32)
    scales = weight_scales(weight, 0, form)
    rounded = quantize_weight(weight, scales, 0, form).astype(np.float32) * scales.reshape(-1, 1, 1, 1)
    groups = _attributes(node).get("group", 1)
    taps = rounded.sum(axis=(2, 3), dtype=np.float64).reshape(groups, len(weight) // groups, -1)  # [groups, outputs, inputs of a group]
    moved = np.einsum("goi,gi->go", taps, middles.astype(np.float64).reshape(groups, -1)).reshape(-1)
    had = node.input[2] if len(node.input) > 2 and node.input[2] else ""
    bias = np.asarray(graph.array(had), np.float64) if had else np.zeros(len(weight))
    name = graph.add_constant(f"{node.name}:centred_bias", (bias + moved).astype(np.float32))
    if len(node.input) > 2:
        node.input[2] = name
    else:
        node.input.append(name)


def _unpad(node: onnx.NodeProto) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name != "pads"]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute("pads", [0, 0, 0, 0])])


def _convolution(graph: StageGraph, node: onnx.NodeProto) -> bool:
    constant = len(node.input) > 1 and node.input[1] in graph.constants and len(graph.constants[node.input[1]].dims) == 4
    known = len(node.input) < 3 or not node.input[2] or node.input[2] in graph.constants
    return node.op_type == "Conv" and constant and known and _attributes(node).get("auto_pad", b"NOTSET") in (b"NOTSET", b"")


def _pads(node: onnx.NodeProto) -> tuple[int, ...]:
    return tuple(_attributes(node).get("pads", (0, 0, 0, 0)))


def _attributes(node: onnx.NodeProto) -> dict:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}
