"""SmoothQuant: move the outliers of an activation into the weights that read it, by a factor per channel."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, helper

from ..graph.stage_graph import StageGraph

LEAST_FACTOR, GREATEST_FACTOR = 2.0**-10, 2.0**10


def smoothable(graph: StageGraph, nodes: Iterable[str]) -> dict[str, list[onnx.NodeProto]]:
    """Activations read by matrix products alone, whose maker can take the division: a layer norm, a linear layer, or its bias.

    Returns:
        tensor -> the matrix products that read it; all of them must be among ``nodes``.
    """
    wanted = set(nodes)
    found: dict[str, list[onnx.NodeProto]] = {}
    for name, readers in graph.readers.items():
        products = [node for node, position in readers if _linear(graph, node) and position == 0 and node.name in wanted]
        if products and len(products) == len(readers) and name not in graph.outputs and _divisors(graph, name):
            found[name] = products
    return found


def smooth(graph: StageGraph, nodes: Iterable[str], channels: dict[str, np.ndarray], alpha: float) -> dict[str, np.ndarray]:
    """Divide the channels of smoothable activations and multiply the rows of the weights that read them, in place.

    Xiao et al. 2023 (SmoothQuant), equation 4: ``s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)``. In FP32 the stage computes the same
    as before.

    Args:
        nodes: names of the nodes that shall compute in INT8.
        channels: tensor -> greatest magnitude per channel [C].
        alpha: 0 leaves the difficulty with the activation, 1 moves all of it to the weight.

    Returns:
        tensor -> factors [C] that it was divided by.
    """
    done: dict[str, np.ndarray] = {}
    for name, products in smoothable(graph, nodes).items():
        if name not in channels:
            continue
        rows = [_rows(graph, node) for node in products]
        weight_amax = np.max([np.abs(np.asarray(values)).max(axis=1 - axis) for values, axis in rows], axis=0)
        activation_amax = np.asarray(channels[name], np.float64)
        if weight_amax.shape != activation_amax.shape:
            continue
        usable = (activation_amax > 0) & (weight_amax > 0)
        factors = np.where(usable, np.maximum(activation_amax, 1e-12) ** alpha / np.maximum(weight_amax, 1e-12) ** (1 - alpha), 1.0)
        factors = factors / np.exp(np.mean(np.log(factors)))  # a common factor changes nothing in INT8, and would cost FP16 range
        factors = np.clip(factors, LEAST_FACTOR, GREATEST_FACTOR)
        for constant, axis in _divisors(graph, name):
            _scale(graph, constant, axis, 1 / factors)
        for node, (_, axis) in zip(products, rows, strict=True):
            _scale_input(graph, node, 1, axis, factors)
        graph.index()
        done[name] = factors
    graph.drop_unused_constants()
    return done


def _linear(graph: StageGraph, node: onnx.NodeProto) -> bool:
    constant = len(node.input) > 1 and node.input[1] in graph.constants and len(graph.constants[node.input[1]].dims) == 2
    return node.op_type in ("MatMul", "Gemm") and constant and not _attributes(node).get("transA", 0)


def _attributes(node: onnx.NodeProto) -> dict:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _rows(graph: StageGraph, node: onnx.NodeProto) -> tuple[np.ndarray, int]:
    """Weight of a matrix product and the axis of its input channels."""
    return graph.array(node.input[1]), 1 if node.op_type == "Gemm" and _attributes(node).get("transB", 0) else 0


def _divisors(graph: StageGraph, name: str) -> list[tuple[tuple[onnx.NodeProto, int], int]]:
    """The constants, as (node, input position) and axis, whose division divides the channels of a tensor; empty if there are none."""
    maker = graph.maker.get(name)
    if maker is None:
        return []
    if maker.op_type == "LayerNormalization" and _attributes(maker).get("axis", -1) in (-1,):
        places = [position for position in (1, 2) if len(maker.input) > position and maker.input[position]]
        return [((maker, position), -1) for position in places] if all(maker.input[p] in graph.constants for p in places) else []
    if _linear(graph, maker):
        out = 0 if maker.op_type == "Gemm" and _attributes(maker).get("transB", 0) else 1
        found = [((maker, 1), out)]
        if maker.op_type == "Gemm" and len(maker.input) > 2 and maker.input[2]:
            found = found + [((maker, 2), -1)] if maker.input[2] in graph.constants else []
        return found
    if maker.op_type == "Add":  # the bias of a linear layer
        for bias, inner in ((0, 1), (1, 0)):
            other = graph.maker.get(maker.input[inner])
            vector = maker.input[bias] in graph.constants and len(graph.constants[maker.input[bias]].dims) == 1
            if vector and other is not None and other.op_type == "MatMul" and _linear(graph, other) and len(graph.readers[maker.input[inner]]) == 1:
                return [((other, 1), 1), ((maker, bias), -1)]
    return []


def _scale(graph: StageGraph, place: tuple[onnx.NodeProto, int], axis: int, factors: np.ndarray) -> None:
    _scale_input(graph, *place, axis, factors)


def _scale_input(graph: StageGraph, node: onnx.NodeProto, position: int, axis: int, factors: np.ndarray) -> None:
    """Give a node its own copy of a constant, scaled along an axis: others may read the original."""
    source = node.input[position]
    values = graph.array(source)
    shape = [1] * values.ndim
    shape[axis] = -1

    def scaled(values=values, factors=factors, shape=tuple(shape)):
        return (np.asarray(values, np.float64) * factors.reshape(shape)).astype(np.float32)

    target = f"{source}:smooth"
    while target in graph.constants:
        target += "_"
    graph.add_made_constant(target, TensorProto.FLOAT, tuple(values.shape), scaled)
    node.input[position] = target
