"""Explicit quantisation: QuantizeLinear and DequantizeLinear where TensorRT fuses them, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from ..graph.stage_graph import StageGraph
from ..ranges.table import TensorRange
from .formats import INT8, Format, activation_scale, block_scales, quantize_blocks, quantize_weight, weight_scales

ALSO = ("residual-adds", "attention-products")
QUANTISABLE = ("Conv", "ConvTranspose", "MatMul", "Gemm")


@dataclass(frozen=True)
class Quantized:
    """What quantising did to a stage.

    Args:
        nodes: names of the nodes that are quantised now.
        activations: tensors that are quantised, once each however many nodes read them.
        weights: names of the weights that are stored in fewer bits.
        left: node -> why it stays as it was, among those that were asked for.
    """

    nodes: tuple[str, ...]
    activations: tuple[str, ...]
    weights: tuple[str, ...]
    left: dict[str, str]


def activation_inputs(graph: StageGraph, also: tuple[str, ...] = ()) -> dict[str, tuple[int, ...]]:
    """Which inputs of which nodes INT8 and FP8 need a range for.

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


def rounded_weight(graph: StageGraph, node: onnx.NodeProto, weight: np.ndarray, form: Format) -> np.ndarray:
    """What a format with a scale per output channel gives back of a node's weight, float32."""
    axis = weight_axis(graph, node)
    scales = weight_scales(weight, axis, form)
    shape = [-1 if place == axis else 1 for place in range(weight.ndim)]
    return quantize_weight(weight, scales, axis, form).astype(np.float32) * scales.reshape(shape)


def unsuited(graph: StageGraph, node: onnx.NodeProto, form: Format) -> str:
    """Why a format is not for a node that INT8 would be for; empty if it is."""
    if not form.activations:
        return _not_in_blocks(graph, node, form)
    if not form.most_taps or node.op_type not in ("Conv", "ConvTranspose"):
        return ""
    if next((a.i for a in node.attribute if a.name == "group"), 1) != 1:
        return f"TensorRT has no {form.name} kernels for grouped convolutions"
    taps = int(np.prod(graph.constants[node.input[1]].dims[2:]))
    return f"TensorRT has no {form.name} kernels for convolutions of {taps} places, at most {form.most_taps}" if taps > form.most_taps else ""


def _not_in_blocks(graph: StageGraph, node: onnx.NodeProto, form: Format) -> str:
    """Why a node's weight cannot be stored in blocks; empty if it can: a matrix whose input channels are whole blocks."""
    if node.op_type not in ("MatMul", "Gemm") or len(node.input) < 2 or node.input[1] not in graph.constants:
        return f"{form.name} is for weights of matrix products"
    shape = tuple(graph.constants[node.input[1]].dims)
    if len(shape) != 2:
        return f"{form.name} is for weights of matrix products"
    channels = shape[block_axis(node)]
    return f"its {channels} input channels are not a multiple of {form.block}" if channels % form.block else ""


def block_axis(node: onnx.NodeProto) -> int:
    """Axis of the input channels of a matrix product's weight, along which blocks lie."""
    return 1 if any(a.name == "transB" and a.i for a in node.attribute) else 0


def quantisable(graph: StageGraph, form: Format, also: tuple[str, ...] = ()) -> set[str]:
    """Names of the nodes that a format suits."""
    able = activation_inputs(graph, also)
    return {node.name for node in graph.model.graph.node if (node.name in able or not form.activations) and not unsuited(graph, node, form)}


def quantize(
    graph: StageGraph, ranges: dict[str, TensorRange], nodes: Iterable[str], *, form: Format = INT8, stored: bool = True, also: tuple[str, ...] = ()
) -> Quantized:
    """Put Q/DQ pairs before the activations and weights of some nodes, in place.

    One pair per tensor serves all quantised readers; other readers (a residual addition, a norm) keep the original. Biases stay
    as they are. The node between DQ and DQ is what TensorRT fuses into a kernel of fewer bits. A format for weights alone leaves activations as they are.

    Args:
        graph: FP32 stage, opset 18 or later; becomes that of the format.
        ranges: of the activations; a node without one is left alone.
        nodes: names of the nodes that shall be quantised.
        form: to what.
        stored: weights are stored quantised with a DequantizeLinear; otherwise they stay FP32 and are quantised in the graph, which
            needs no memory and gives the same numbers.
        also: see ``activation_inputs``.

    Raises:
        BuildFailedError: if the graph has an opset before 18, or operators that mean something else in the format's opset.
    """
    wanted = set(nodes)
    inputs = activation_inputs(graph, also)
    if wanted:
        graph.raise_opset(form.opset)
    work = _Placement(graph, form, stored)
    done, left = [], {}
    for node in list(graph.model.graph.node):
        reason = ""
        if node.name in wanted:
            if form.activations and node.name not in inputs:
                reason = "no operator with a constant weight" if node.op_type in QUANTISABLE else f"{node.op_type} is not computed in {form.name}"
            elif why := unsuited(graph, node, form):
                reason = why
            elif form.activations and (missing := [node.input[p] for p in inputs[node.name] if node.input[p] not in ranges]):
                reason = f"no range is known for {missing[0]}"
            if not reason:
                for position in inputs[node.name] if form.activations else ():
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

    def __init__(self, graph: StageGraph, form: Format, stored: bool):
        self.graph, self.form, self.stored = graph, form, stored
        self.nodes: list[onnx.NodeProto] = []
        self.activations: dict[str, str] = {}
        self.weights: dict[str, str] = {}
        self._by_axis: dict[tuple[str, int | None], str] = {}
        self._count = 0

    def activation(self, name: str, amax: float, reader: onnx.NodeProto) -> str:
        if name not in self.activations:
            form = self.form
            scale = self.graph.add_constant(f"{name}:{form.name}:scale", activation_scale(amax if amax > 0 else 1.0, form))
            zero = self.graph.add_constant(f"{form.name}_zero", np.zeros((), form.dtype))
            low = f"{name}:{form.name}"
            self._add("QuantizeLinear", [name, scale, zero], low, form.kind, reader)
            self.activations[name] = self._add("DequantizeLinear", [low, scale, zero], f"{low}:dequantized", TensorProto.FLOAT, reader)
        return self.activations[name]

    def weight(self, node: onnx.NodeProto) -> str:
        graph, form, name = self.graph, self.form, node.input[1]
        axis = block_axis(node) if form.block else weight_axis(graph, node)
        if (name, axis) in self._by_axis:
            return self._by_axis[name, axis]
        stem = name if name not in self.weights else f"{name}:axis{axis}"
        values, low = graph.array(name), f"{stem}:{form.name}"
        if form.block:
            scales = block_scales(values, axis, form)
            attributes = {"axis": axis, "block_size": form.block}
        else:
            scales = weight_scales(values, axis, form)
            scales = scales.reshape(-1) if axis is not None else scales.reshape(())
            attributes = {} if axis is None else {"axis": axis}
        tensors = [graph.add_constant(f"{low}:scale", scales)]
        if not form.block:  # the type of the result follows from the zero point where there is one
            tensors.append(graph.add_constant(f"{low}:zero", np.zeros(scales.shape, form.dtype)))
        if self.stored:
            round_all = quantize_blocks if form.block else quantize_weight
            graph.add_made_constant(low, form.kind, tuple(values.shape), lambda: round_all(values, scales, axis, form))
        else:
            told = {"output_dtype": form.kind} if form.block else {}
            self._add("QuantizeLinear", [name, *tensors], low, form.kind, node, **attributes, **told)
        self.weights[name] = stem
        self._by_axis[name, axis] = self._add("DequantizeLinear", [low, *tensors], f"{low}:dequantized", TensorProto.FLOAT, node, **attributes)
        return self._by_axis[name, axis]

    def _add(self, op: str, inputs: list[str], output: str, kind: int, beside: onnx.NodeProto, **attributes: int) -> str:
        path = beside.name.rpartition("/")[0]
        self._count += 1
        name = f"{op}_for_{self.form.name}_{self._count}"
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"{path}/{name}" if path else name, **attributes))
        self.graph.add_value(output, kind)
        return output
