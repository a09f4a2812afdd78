"""SmoothQuant: move the outliers of an activation into the weights that read it, by a factor per channel."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from ..graph.stage_graph import StageGraph

SMOOTHED, SMOOTHING = ":smooth:", "for_smoothing"  # in the name of a divided tensor, and in that of the product that makes it
CENTRED = ":centred"  # at the end of the name of a tensor that was shifted (``centre``)
LEAST_FACTOR, GREATEST_FACTOR = 2.0**-10, 2.0**10


def smoothable(graph: StageGraph, nodes: Iterable[str]) -> dict[str, list[onnx.NodeProto]]:
    """Activations read by matrix products and ungrouped convolutions among ``nodes``, with those readers, which take in as many channels each."""
    wanted = set(nodes)
    found: dict[str, list[onnx.NodeProto]] = {}
    for name, readers in graph.readers.items():
        layers = [node for node, position in readers if position == 0 and node.name in wanted and (_linear(graph, node) or _convolution(graph, node))]
        widths = {graph.constants[node.input[1]].dims[input_axis(node)] for node in layers}
        kinds = {node.op_type == "Conv" for node in layers}
        if layers and len(widths) == len(kinds) == 1 and name not in graph.constants:
            found[name] = layers
    return found


def folds(graph: StageGraph, name: str, layers: list[onnx.NodeProto]) -> bool:
    """Whether the maker of a tensor can take the division (a layer norm, a linear layer, or its bias), because nobody else reads it."""
    alone = len(layers) == len(graph.readers[name]) and name not in graph.outputs
    return alone and all(_linear(graph, node) for node in layers) and bool(_divisors(graph, name))


def divided(graph: StageGraph, name: str, layers: list[onnx.NodeProto]) -> str:
    """Name of the tensor that the layers read once it is smoothed: its own where its maker divides, else that of a product of its own."""
    return name if folds(graph, name, layers) else f"{name}{SMOOTHED}{layers[0].name}"


def source_of(name: str) -> str:
    """The tensor that was divided, from what ``divided`` says."""
    return name.removesuffix(CENTRED).partition(SMOOTHED)[0]


@dataclass(frozen=True, eq=False)
class Smoothed:
    """A tensor that was divided: its name before, the layers that read the result, and the factors [C]."""

    tensor: str
    layers: tuple[str, ...]
    factors: np.ndarray


def smooth(graph: StageGraph, nodes: Iterable[str], channels: dict[str, np.ndarray], alpha: float) -> dict[str, Smoothed]:
    """Divide the channels of smoothable activations and multiply the weights that read them, in place.

    Xiao et al. 2023 (SmoothQuant), equation 4: ``s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)``. Where the maker cannot take the division, the layers read
    a product with ``1 / s_j``, which compilers fuse with the pointwise work before it and with the quantising behind it. In FP32 the stage computes
    the same as before.

    Args:
        nodes: names of the nodes that shall compute in INT8.
        channels: tensor -> greatest magnitude per channel [C].
        alpha: 0 leaves the difficulty with the activation, 1 moves all of it to the weight.

    Returns:
        name of what the layers read now -> what was done.
    """
    done: dict[str, Smoothed] = {}
    for name, found in smoothable(graph, nodes).items():
        if name not in channels:
            continue
        here = {node.name: node for node in graph.model.graph.node}  # a division before this one made the graph's nodes anew
        layers = [here[node.name] for node in found]
        factors = factors_of(graph, layers, channels[name], alpha)
        if factors is None:
            continue
        target = divided(graph, name, layers)
        if target == name:
            for constant, axis in _divisors(graph, name):
                _scale_input(graph, *constant, axis, 1 / factors)
        else:
            _divide(graph, name, target, layers, factors)
        for node in layers:
            _scale_input(graph, node, 1, input_axis(node), factors)
        graph.index()
        done[target] = Smoothed(name, tuple(node.name for node in layers), factors)
    graph.drop_unused_constants()
    return done


def factors_of(graph: StageGraph, layers: list[onnx.NodeProto], channels: np.ndarray, alpha: float) -> np.ndarray | None:
    """SmoothQuant's factors [C] for the layers that read a tensor; None if the channels do not fit their weights."""
    amax = []
    for node in layers:
        values, axis = np.asarray(graph.array(node.input[1])), input_axis(node)
        amax.append(np.abs(values).max(axis=tuple(place for place in range(values.ndim) if place != axis)))
    weight_amax, activation_amax = np.max(amax, axis=0), np.asarray(channels, np.float64)
    if weight_amax.shape != activation_amax.shape:
        return None
    usable = (activation_amax > 0) & (weight_amax > 0)
    factors = np.where(usable, np.maximum(activation_amax, 1e-12) ** alpha / np.maximum(weight_amax, 1e-12) ** (1 - alpha), 1.0)
    factors = factors / np.exp(np.mean(np.log(factors)))  # a common factor changes nothing in INT8, and would cost FP16 range
    return np.clip(factors, LEAST_FACTOR, GREATEST_FACTOR)


def input_axis(node: onnx.NodeProto) -> int:
    """Axis of the input channels in the weight of a matrix product or an ungrouped convolution."""
    return 1 if node.op_type == "Conv" or (node.op_type == "Gemm" and _attributes(node).get("transB", 0)) else 0


def _convolution(graph: StageGraph, node: onnx.NodeProto) -> bool:
    constant = len(node.input) > 1 and node.input[1] in graph.constants and len(graph.constants[node.input[1]].dims) == 4
    return node.op_type == "Conv" and constant and _attributes(node).get("group", 1) == 1


def _divide(graph: StageGraph, name: str, target: str, layers: list[onnx.NodeProto], factors: np.ndarray) -> None:
    """Let the layers read the tensor times ``1 / factors``, by a node of its own in front of the first of them."""
    shape = (1, -1, 1, 1) if layers[0].op_type == "Conv" else (-1,)
    constant = graph.add_constant(f"{target}:factors", (1 / factors).astype(np.float32).reshape(shape))
    path = layers[0].name.rpartition("/")[0]
    label = f"Mul_{SMOOTHING}_{name}"
    product = helper.make_node("Mul", [name, constant], [target], name=f"{path}/{label}" if path else label)
    readers = {node.name for node in layers}
    nodes = []
    for node in graph.model.graph.node:
        if node.name in readers:
            if product is not None:
                nodes.append(product)
                product = None
            node.input[0] = target
        nodes.append(node)
    graph.replace_nodes(nodes)
    graph.add_value(target, TensorProto.FLOAT)
    graph.index()
    by_name = {node.name: node for node in graph.model.graph.node}
    layers[:] = [by_name[node.name] for node in layers]


def _linear(graph: StageGraph, node: onnx.NodeProto) -> bool:
    constant = len(node.input) > 1 and node.input[1] in graph.constants and len(graph.constants[node.input[1]].dims) == 2
    return node.op_type in ("MatMul", "Gemm") and constant and not _attributes(node).get("transA", 0)


def _attributes(node: onnx.NodeProto) -> dict:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


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


def _scale_input(graph: StageGraph, node: onnx.NodeProto, position: int, axis: int, factors: np.ndarray) -> None:
    """Give a node its own copy of a constant, scaled along an axis: others may read the original."""
    source = node.input[position]
    values = graph.array(source)
    shape = [1] * values.ndim
    shape[axis] = -1

    def scaled(values=values, factors=factors, shape=tuple(shape)):
        return (np.asarray(values, np.float64) * factors.reshape(shape)).astype(np.float32)

    target = f"{source}:scaled"
    while target in graph.constants:
        target += "_"
    graph.add_made_constant(target, TensorProto.FLOAT, tuple(values.shape), scaled)
    node.input[position] = target
