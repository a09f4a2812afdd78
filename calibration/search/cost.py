"""What a precision buys: a model of the time a stage takes, from multiply-adds and bytes, for when no card is at hand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from ..graph.stage_graph import StageGraph
from ..precision.fp32_rules import takes_bf16
from ..precision.precision_plan import Choice
from ..precision.regions import Region

WEIGHTED = ("Conv", "ConvTranspose", "MatMul", "Gemm")
NBYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
FREE = ("Constant", "Shape", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten", "Cast")
FUSED = ("Relu", "Clip", "Sigmoid", "Tanh", "Gelu", "Erf", "Add", "Mul", "Sub", "Div", "LeakyRelu", "HardSwish", "Neg", "Where")


@dataclass(frozen=True)
class Card:
    """Peak rates of a GPU.

    Args:
        name: of the card the rates are from.
        macs_per_ms: precision -> multiply-adds per millisecond, FP16 with FP32 sums.
        nbytes_per_ms: of its memory.
    """

    name: str
    macs_per_ms: dict[str, float]
    nbytes_per_ms: float


# NVIDIA, "Ampere GA102 GPU architecture" white paper v2.1, table 9, GeForce RTX 3090: dense tensor-core rates (FP32: plain cores).
RTX_3090 = Card("GeForce RTX 3090 (published peak rates)", {"fp32": 35.6e9 / 2, "fp16": 71e9 / 2, "bf16": 71e9 / 2, "int8": 284e9 / 2}, 936e6)


@dataclass(frozen=True)
class NodeWork:
    """Work of one node: multiply-adds, elements read and written, elements of constant weights."""

    macs: int
    read: int
    written: int
    weights: int
    weighted: bool


class CostModel:
    """Modelled milliseconds of the regions of a stage.

    A weighted node takes the longer of its arithmetic and its memory traffic; pointwise work fuses with the weighted node before
    it; everything else is traffic. An INT8 node whose activation was not made by an INT8 node pays for the quantising pass, unless
    that pass fuses with a pointwise maker. Launch times are left out, so small networks look faster than they are.
    """

    def __init__(self, graph: StageGraph, batch: int = 1, card: Card = RTX_3090):
        self.card, self._graph = card, graph
        _, self._shapes = graph.types_and_shapes(batch)
        self.work = {node.name: self._node(node) for node in graph.model.graph.node}
        self._nodes = {node.name: node for node in graph.model.graph.node}

    def _size(self, name: str) -> int:
        shape = self._shapes.get(name)
        return int(np.prod(shape, dtype=np.int64)) if shape is not None else 0

    def _node(self, node: onnx.NodeProto) -> NodeWork:
        constants = self._graph.constants
        read = sum(self._size(name) for name in node.input if name and name not in constants)
        written = sum(self._size(name) for name in node.output if name)
        weights = sum(self._size(name) for name in node.input if name in constants)
        return NodeWork(macs(node, self._shapes), read, written, weights, node.op_type in WEIGHTED)

    def node_ms(self, name: str, precision: str, made_in_int8: bool = False, read_in_int8: bool = False) -> float:
        """Time of one node; the last two say whether its input comes, and its output goes on, as INT8."""
        work, op = self.work[name], self._nodes[name].op_type
        if op in FREE:
            return 0.0
        if not work.weighted:
            wide = NBYTES["fp16" if precision == "int8" else precision]
            return (0 if op in FUSED else work.read + work.written) * wide / self.card.nbytes_per_ms
        written = precision if precision != "int8" or read_in_int8 else "fp16"
        nbytes = work.written * NBYTES[written] + (work.read + work.weights) * NBYTES[precision]
        extra = 0.0
        if precision == "int8" and not made_in_int8:
            extra = work.read * (NBYTES["fp16"] + NBYTES["int8"]) / self.card.nbytes_per_ms
        return max(work.macs / self.card.macs_per_ms[precision], nbytes / self.card.nbytes_per_ms) + extra

    def region_macs(self, region: Region) -> int:
        """Multiply-adds of a region."""
        return sum(self.work[name].macs for name in region.nodes)

    def total_ms(self, choices: dict[Region, Choice], quantised: set[str]) -> float:
        """Time of the stage.

        Args:
            choices: of all its regions.
            quantised: names of the nodes that can compute in INT8.
        """
        precisions = {name: choice.precision for region, choice in choices.items() for name in region.nodes}
        for name, precision in precisions.items():
            if precision == "int8" and name not in quantised:
                precisions[name] = "fp16"
            elif precision == "bf16" and not takes_bf16(self._nodes[name].op_type):
                precisions[name] = "fp32"
        total = 0.0
        for name, precision in precisions.items():
            int8 = precision == "int8"
            total += self.node_ms(name, precision, int8 and self._made_in_int8(name, precisions), int8 and self._read_in_int8(name, precisions))
        return total

    def _made_in_int8(self, name: str, precisions: dict[str, str]) -> bool:
        """Whether the first activation comes, through pointwise work alone, from an INT8 node that can write INT8 at once."""
        tensor = self._nodes[name].input[0]
        for _ in range(8):
            maker = self._graph.maker.get(tensor)
            if maker is None:
                return False
            if precisions.get(maker.name) == "int8":
                return True
            if maker.op_type in ("LayerNormalization", "InstanceNormalization", "GroupNormalization"):
                return True  # a norm writes its result in any type
            if maker.op_type not in FUSED + FREE:
                return False
            tensor = maker.input[0]
        return False

    def _read_in_int8(self, name: str, precisions: dict[str, str]) -> bool:
        """Whether the output goes, through pointwise work alone, to INT8 nodes only."""
        waiting, seen = [self._nodes[name].output[0]], 0
        while waiting and seen < 16:
            tensor, seen = waiting.pop(), seen + 1
            readers = [reader for reader, _ in self._graph.readers.get(tensor, [])]
            if not readers or tensor in self._graph.outputs:
                return False
            for reader in readers:
                if precisions.get(reader.name) == "int8" and self.work[reader.name].weighted:
                    continue
                if reader.op_type not in FUSED + FREE or self.work[reader.name].weighted:
                    return False
                waiting.append(reader.output[0])
        return not waiting


def macs(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...] | None]) -> int:
    """Multiply-adds of one node; 0 if it has none or a shape is not known."""
    out = shapes.get(node.output[0]) if node.output else None
    weight = shapes.get(node.input[1]) if len(node.input) > 1 else None
    data = shapes.get(node.input[0]) if node.input else None
    if node.op_type not in WEIGHTED or out is None or weight is None or data is None:
        return 0
    if node.op_type == "Conv":  # [N, O, ...] x [O, I/group, ...]
        return int(np.prod(out, dtype=np.int64)) * int(np.prod(weight[1:], dtype=np.int64))
    if node.op_type == "ConvTranspose":  # [N, I, ...] x [I, O/group, ...]
        return int(np.prod(data, dtype=np.int64)) * int(np.prod(weight[1:], dtype=np.int64))
    inner = data[0] if node.op_type == "Gemm" and any(a.name == "transA" and helper.get_attribute_value(a) for a in node.attribute) else data[-1]
    return int(np.prod(out, dtype=np.int64)) * inner
