"""Explicit INT8: QuantizeLinear and DequantizeLinear where TensorRT fuses them, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from ..graph.stage_graph import StageGraph
from ..ranges.observers import LEVELS
from ..ranges.table import TensorRange

ALSO = ("residual-adds", "attention-products")
QUANTISABLE = ("Conv", "ConvTranspose", "MatMul", "Gemm")
OPSET = 19  # the first in which a scale may be FP16, which the high-precision side of a typed stage is
LEAST_ACTIVATION_SCALE = 2.0**-14  # the smallest normal FP16 number
LEAST_WEIGHT_SCALE = 2.0**-20
FLOAT, INT8 = TensorProto.FLOAT, TensorProto.INT8


@dataclass(frozen=True)
class Quantized:
    """What quantising did to a stage.

    Args:
        nodes: names of the nodes that now compute in INT8.
        activations: tensors that are quantised, once each however many nodes read them.
        weights: names of the weights that are stored as INT8.
        left: node -> why it stays as it was, among those that were asked for.
    """

    nodes: tuple[str, ...]
    activations: tuple[str, ...]
    weights: tuple[str, ...]
    left: dict[str, str]


def activation_inputs(graph: StageGraph, also: tuple[str, ...] = ()) -> dict[str, tuple[int, ...]]:
    """Which inputs of which nodes INT8 needs a range for.

    Conv, ConvTranspose, MatMul and Gemm with a constant weight read one activation. ``attention-products`` read two;
    ``residual-adds`` fuse with the convolution before them where both inputs are quantised. Both stay in high precision unless
    ``also`` names them.

    Returns:
        node name -> positions of the activations.
    """
    found: dict[str, tuple[int, ...]] = {}
    for node in graph.model.graph.node:
        if node.op_type in QUANTISABLE:
            constant = len(node.input) > 1 and node.input[1] in graph.constants
            if constant and node.input[0] not in graph.constants:
                found[node.name] = (0,)
            elif "attention-products" in also and node.op_type == "MatMul" and not any(name in graph.constants for name in node.input):
                found[node.name] = (0, 1)
    if "residual-adds" in also:
        for node in graph.model.graph.node:
            makers = [maker for name in node.input if (maker := graph.maker.get(name)) is not None]
            flowing = not any(name in graph.constants for name in node.input)
            if node.op_type == "Add" and flowing and any(maker.name in found and maker.op_type.startswith("Conv") for maker in makers):
                found[node.name] = (0, 1)
    return found


def weight_axis(graph: StageGraph, node: onnx.NodeProto) -> int | None:
    """Axis of the output channels of a node's weight, along which it has a scale each; None for one scale.

    A grouped transposed convolution has its output channels spread over two axes, a stack of matrices has none that TensorRT takes.
    """
    shape = tuple(graph.constants[node.input[1]].dims)
    facts = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1 if facts.get("group", 1) == 1 else None
    if node.op_type == "Gemm":
        return 0 if facts.get("transB", 0) else 1
    return 1 if len(shape) == 2 else None


def weight_scales(weight: np.ndarray, axis: int | None) -> np.ndarray:
    """Scale per output channel (or one), float32, such that the greatest weight becomes 127; a channel of zeros gets 1."""
    others = tuple(i for i in range(weight.ndim) if i != axis) if axis is not None else None
    amax = np.maximum(weight.max(axis=others), -weight.min(axis=others)).astype(np.float32)
    scales = np.where(amax > 0, np.maximum(amax / np.float32(LEVELS), np.float32(LEAST_WEIGHT_SCALE)), np.float32(1))
    return _as_fp16_upwards(scales)


def activation_scale(amax: float) -> np.ndarray:
    """Scale of a tensor whose magnitude ``amax`` becomes 127, float32 scalar that FP16 holds exactly."""
    return _as_fp16_upwards(np.asarray(max(amax / LEVELS, LEAST_ACTIVATION_SCALE), np.float32)).reshape(())


def _as_fp16_upwards(scales: np.ndarray) -> np.ndarray:
    """The next FP16 number that is not smaller: the same scale then serves FP32 and FP16 graphs, and 127 still suffices."""
    with np.errstate(over="ignore"):
        half = scales.astype(np.float16)
    up = np.where(half.astype(np.float32) < scales, np.nextafter(half, np.float16(np.inf)), half).astype(np.float32)
    return np.where(np.isfinite(up), up, scales).astype(np.float32)


def quantize_weight(weight: np.ndarray, scales: np.ndarray, axis: int | None) -> np.ndarray:
    """int8 values of a weight: rounded half to even as QuantizeLinear does, within -127 .. 127."""
    shape = [1] * weight.ndim
    if axis is not None:
        shape[axis] = -1
    return np.clip(np.rint(np.asarray(weight, np.float32) / scales.reshape(shape)), -LEVELS, LEVELS).astype(np.int8)


def quantize(graph: StageGraph, ranges: dict[str, TensorRange], nodes: Iterable[str], *, stored: bool = True, also: tuple[str, ...] = ()) -> Quantized:
    """Put Q/DQ pairs before the activations and weights of some nodes, in place.

    One pair per tensor serves all quantised readers; other readers (a residual addition, a norm) keep the original. Biases stay
    as they are. The node between DQ and DQ is what TensorRT fuses into an INT8 kernel.

    Args:
        graph: FP32 stage, opset 18 or later; becomes opset 19.
        ranges: of the activations; a node without one is left alone.
        nodes: names of the nodes that shall compute in INT8.
        stored: weights are stored as INT8 with a DequantizeLinear; otherwise they stay FP32 and are quantised in the graph, which
            needs no memory and gives the same numbers.
        also: see ``activation_inputs``.

    Raises:
        BuildFailedError: if the graph has an opset before 18.
    """
    wanted = set(nodes)
    inputs = activation_inputs(graph, also)
    if wanted:
        graph.raise_opset(OPSET)
    work = _Placement(graph, stored)
    done, left = [], {}
    for node in list(graph.model.graph.node):
        reason = ""
        if node.name in wanted:
            if node.name not in inputs:
                reason = "no operator with a constant weight" if node.op_type in QUANTISABLE else f"{node.op_type} is not computed in INT8"
            elif missing := [node.input[p] for p in inputs[node.name] if node.input[p] not in ranges]:
                reason = f"no range is known for {missing[0]}"
            else:
                for position in inputs[node.name]:
                    node.input[position] = work.activation(node.input[position], ranges[node.input[position]].amax, node)
                if node.op_type in QUANTISABLE and len(node.input) > 1 and node.input[1] in graph.constants:
                    node.input[1] = work.weight(node)
                done.append(node.name)
        if reason:
            left[node.name] = reason
        work.nodes.append(node)
    graph.replace_nodes(work.nodes)
    if stored:
        graph.drop_unused_constants()
    return Quantized(tuple(done), tuple(work.activations), tuple(work.weights), left)


class _Placement:
    """New nodes and constants, each made once."""

    def __init__(self, graph: StageGraph, stored: bool):
        self.graph, self.stored = graph, stored
        self.nodes: list[onnx.NodeProto] = []
        self.activations: dict[str, str] = {}
        self.weights: dict[str, str] = {}
        self._by_axis: dict[tuple[str, int | None], str] = {}
        self._count = 0

    def activation(self, name: str, amax: float, reader: onnx.NodeProto) -> str:
        if name not in self.activations:
            scale = self.graph.add_constant(f"{name}:scale", activation_scale(amax if amax > 0 else 1.0))
            zero = self.graph.add_constant("int8_zero", np.zeros((), np.int8))
            self._add("QuantizeLinear", [name, scale, zero], f"{name}:int8", INT8, reader)
            self.activations[name] = self._add("DequantizeLinear", [f"{name}:int8", scale, zero], f"{name}:dequantized", FLOAT, reader)
        return self.activations[name]

    def weight(self, node: onnx.NodeProto) -> str:
        graph, name, axis = self.graph, node.input[1], weight_axis(self.graph, node)
        if (name, axis) in self._by_axis:
            return self._by_axis[name, axis]
        stem = name if name not in self.weights else f"{name}:axis{axis}"
        values = graph.array(name)
        scales = weight_scales(values, axis)
        scale = graph.add_constant(f"{stem}:scale", scales.reshape(-1) if axis is not None else scales.reshape(()))
        zero = graph.add_constant(f"{stem}:zero", np.zeros(scales.shape if axis is not None else (), np.int8))
        attributes = {} if axis is None else {"axis": axis}
        int8 = f"{stem}:int8"
        if self.stored:
            graph.add_made_constant(int8, INT8, tuple(values.shape), lambda: quantize_weight(values, scales, axis))
        else:
            self._add("QuantizeLinear", [name, scale, zero], int8, INT8, node, **attributes)
        self.weights[name] = stem
        self._by_axis[name, axis] = self._add("DequantizeLinear", [int8, scale, zero], f"{stem}:dequantized", FLOAT, node, **attributes)
        return self._by_axis[name, axis]

    def _add(self, op: str, inputs: list[str], output: str, kind: int, beside: onnx.NodeProto, **attributes: int) -> str:
        path = beside.name.rpartition("/")[0]
        self._count += 1
        name = f"{op}_for_int8_{self._count}"
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"{path}/{name}" if path else name, **attributes))
        self.graph.add_value(output, kind)
        return output
