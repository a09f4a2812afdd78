"""Bias correction: the mean error that INT8 makes in a layer's output is taken from its bias."""

from __future__ import annotations

import numpy as np
import onnx

from ..graph.stage_graph import StageGraph


def bias_place(graph: StageGraph, node: onnx.NodeProto) -> tuple[onnx.NodeProto, int] | None:
    """Where a layer's bias is, as (node, input position): its third input, there or not, or that of the one Add behind a product; None if it has none."""
    if node.op_type in ("Conv", "ConvTranspose"):
        return node, 2
    if node.op_type == "Gemm":
        return (node, 2) if len(node.input) > 2 and node.input[2] in graph.constants else None
    readers = graph.readers.get(node.output[0], [])
    if node.op_type != "MatMul" or len(readers) != 1 or node.output[0] in graph.outputs or readers[0][0].op_type != "Add":
        return None
    add, position = readers[0]
    other = add.input[1 - position]
    vector = other in graph.constants and len(graph.constants[other].dims) == 1
    return (add, 1 - position) if vector else None


def output_of(graph: StageGraph, node: onnx.NodeProto) -> str:
    """The tensor a layer makes, its bias added."""
    place = bias_place(graph, node)
    return place[0].output[0] if place else node.output[0]


def correct(graph: StageGraph, shifts: dict[str, np.ndarray]) -> None:
    """Take ``shifts`` (node name -> mean error of its output channels, [O]) from the biases of layers, in place (Nagel et al. 2019, section 4.2)."""
    for node in list(graph.model.graph.node):
        if node.name not in shifts or (place := bias_place(graph, node)) is None:
            continue
        add_to_bias(graph, place, -np.asarray(shifts[node.name], np.float64), f"{node.name}:corrected_bias")
    graph.drop_unused_constants()


def add_to_bias(graph: StageGraph, place: tuple[onnx.NodeProto, int], values: np.ndarray, name: str) -> None:
    """Give a layer a bias of its own, called ``name``: the one at ``place`` (see ``bias_place``), or zeros, plus ``values`` [O]."""
    reader, position = place
    had = reader.input[position] if len(reader.input) > position and reader.input[position] else ""
    bias = np.asarray(graph.array(had), np.float64) if had else np.zeros(len(values))
    made = graph.add_constant(name, (bias + values).astype(np.float32))
    if len(reader.input) > position:
        reader.input[position] = made
    else:
        reader.input.append(made)
