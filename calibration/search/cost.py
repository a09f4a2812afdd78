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
from ..quantisation.formats import FORMATS
from ..quantisation.quantize import ALSO, quantisable
from .attention import find_attention
from .cards import CARDS, DEFAULT_CARD, Card

WEIGHTED = ("Conv", "ConvTranspose", "MatMul", "Gemm")
NBYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "fp8": 1}
WEIGHT_NBYTES = NBYTES | {"int4": 0.5 + 2 / 64}  # with an FP16 scale for every block of 64
FREE = ("Constant", "Shape", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten", "Cast")
FUSED = ("Relu", "Clip", "Sigmoid", "Tanh", "Gelu", "Erf", "Add", "Mul", "Sub", "Div", "LeakyRelu", "HardSwish", "Neg", "Where")
NORMS = ("LayerNormalization", "InstanceNormalization", "GroupNormalization")
CONVOLUTIONS = ("Conv", "ConvTranspose")
EIGHT_BITS = ("int8", "fp8")
NOTHING: frozenset[str] = frozenset()


@dataclass(frozen=True)
class NodeWork:
    """Work of one node: multiply-adds, elements it reads by tensor, elements written by tensor, elements of constant weights."""

    macs: int
    read: dict[str, int]
    written: dict[str, int]
    weights: int
    weighted: bool


class CostModel:
    """Modelled milliseconds of a stage whose nodes compute in any mixture of precisions.

    A weighted node takes the longer of its arithmetic and its memory traffic; pointwise work fuses with the weighted node before it; an attention
    whose two products are FP16 or BF16 is one kernel that keeps its scores on the chip; everything else is traffic. Where INT8 begins, a tensor is
    quantised by a pass of its own, once for all its readers, unless a norm, a pointwise node or an INT8 node writes it as INT8 at once. Where
    an INT8 convolution feeds one in more bits, its layout is changed by another pass.
    Where activations are centred, their padding is a pass, too. FP8 goes like INT8, at the rate of its own tensor cores; an INT4
    weight is read in INT4 and computed with in FP16. Launch times are left out, so small networks look faster than they are.

    Args:
        graph: the FP32 stage.
        batch: size of its free dimensions.
        card: whose peak rates count.
    """

    def __init__(self, graph: StageGraph, batch: int = 1, card: Card = CARDS[DEFAULT_CARD]):
        self.card, self._graph = card, graph
        _, self._shapes = graph.types_and_shapes(batch)
        self.work = {node.name: self._node(node) for node in graph.model.graph.node}
        self._nodes = {node.name: node for node in graph.model.graph.node}
        self.attention = find_attention(graph)
        self._suited = {form.name: quantisable(graph, form, ALSO) for form in FORMATS.values()}

    def _size(self, name: str) -> int:
        shape = self._shapes.get(name)
        return int(np.prod(shape, dtype=np.int64)) if shape is not None else 0

    def _node(self, node: onnx.NodeProto) -> NodeWork:
        constants = self._graph.constants
        read = {name: self._size(name) for name in node.input if name and name not in constants}
        written = {name: self._size(name) for name in node.output if name}
        weights = sum(self._size(name) for name in node.input if name in constants)
        return NodeWork(macs(node, self._shapes), read, written, weights, node.op_type in WEIGHTED)

    def node_ms(self, name: str, precision: str, writes: str = "", on_chip: frozenset[str] = NOTHING) -> float:
        """Time of the kernel of one node.

        Args:
            precision: what it computes in.
            writes: what it writes; its own precision if not told, FP16 if that is a quantised one.
            on_chip: tensors that need no memory.
        """
        work, op = self.work[name], self._nodes[name].op_type
        if op in FREE:
            return 0.0
        read = sum(size for tensor, size in work.read.items() if tensor not in on_chip)
        written = sum(size for tensor, size in work.written.items() if tensor not in on_chip)
        if not work.weighted:
            wide = NBYTES["fp16" if precision in FORMATS else precision]
            return (0 if op in FUSED else read + written) * wide / self.card.nbytes_per_ms
        computes = "fp16" if precision == "int4" else precision
        writes = writes or ("fp16" if precision in FORMATS else precision)
        nbytes = written * NBYTES[writes] + read * NBYTES[computes] + work.weights * WEIGHT_NBYTES[precision]
        return max(work.macs / self.card.macs_per_ms[computes], nbytes / self.card.nbytes_per_ms)

    def region_macs(self, region: Region) -> int:
        """Multiply-adds of a region."""
        return sum(self.work[name].macs for name in region.nodes)

    def precisions(self, choices: dict[Region, Choice], quantised: set[str]) -> dict[str, str]:
        """What every node computes in: of a quantised region what cannot be quantised is FP16, of a BF16 one what cannot be BF16 is FP32."""
        found = {name: choice.precision for region, choice in choices.items() for name in region.nodes}
        for name, precision in found.items():
            if precision in FORMATS and not (name in quantised and name in self._suited[precision]):
                found[name] = "fp16"
            elif precision == "bf16" and not takes_bf16(self._nodes[name].op_type):
                found[name] = "fp32"
        return found

    def total_ms(self, choices: dict[Region, Choice], quantised: set[str]) -> float:
        """Time of the stage, or of some regions of it alone.

        Args:
            choices: of all its regions, or of some.
            quantised: names of the nodes that can be quantised.
        """
        return sum(self.times_ms(choices, quantised).values())

    def times_ms(self, choices: dict[Region, Choice], quantised: set[str]) -> dict[str, float]:
        """The same by what the nodes compute in; the passes where INT8 or FP8 begins and ends count as that."""
        precisions = self.precisions(choices, quantised)
        half = ("fp16", "bf16")
        whole = [found for found in self.attention if all(precisions.get(name) in half for name in found.products)]
        on_chip = frozenset().union(*(found.scores for found in whole)) if whole else NOTHING
        found: dict[str, float] = {}
        for name, precision in precisions.items():
            writes = precision if precision in EIGHT_BITS and self._read_in(name, precision, precisions) else ""
            found[precision] = found.get(precision, 0.0) + self.node_ms(name, precision, writes, on_chip)
        for low in EIGHT_BITS:
            if low in found:
                found[low] += self._edges_ms(low, precisions)
        if "int8" in found:
            centred = {name for region, choice in choices.items() if choice.centred for name in region.nodes if precisions[name] == "int8"}
            found["int8"] += sum(self._padding_ms(name) for name in centred)
        return found

    def _padding_ms(self, name: str) -> float:
        """Time of the pass that pads a centred tensor in front of a convolution, as if no compiler fused it."""
        node = self._nodes[name]
        padded = node.op_type == "Conv" and any(a.name == "pads" and any(a.ints) for a in node.attribute)
        return self._size(node.input[0]) * 2 * NBYTES["int8"] / self.card.nbytes_per_ms if padded else 0.0

    def weights_nbytes(self, choices: dict[Region, Choice], quantised: set[str]) -> float:
        """Bytes of the weights of matrix products and convolutions, with the scales of blocks."""
        return sum(self.work[name].weights * WEIGHT_NBYTES[p] for name, p in self.precisions(choices, quantised).items() if self.work[name].weighted)

    def _edges_ms(self, low: str, precisions: dict[str, str]) -> float:
        """Time of the passes where INT8 (or FP8) begins and ends."""
        nbytes = 0
        begun: set[str] = set()
        for name, precision in precisions.items():
            node = self._nodes[name]
            if precision == low:
                for tensor in node.input[:1] if self.work[name].weighted else node.input:
                    if tensor not in begun and tensor not in self._graph.constants and not self._made_in(tensor, low, precisions):
                        nbytes += self._size(tensor) * (NBYTES["fp16"] + NBYTES[low])
                        begun.add(tensor)
                if node.op_type in CONVOLUTIONS and self._feeds_wide_convolution(name, low, precisions):
                    nbytes += sum(self.work[name].written.values()) * 2 * NBYTES["fp16"]
        return nbytes / self.card.nbytes_per_ms

    def _made_in(self, tensor: str, low: str, precisions: dict[str, str]) -> bool:
        """Whether a tensor comes, through pointwise work alone, from a node of that precision or a norm, which can write it at once."""
        for _ in range(8):
            maker = self._graph.maker.get(tensor)
            if maker is None:
                return False
            if precisions.get(maker.name) == low or maker.op_type in NORMS:
                return True
            if maker.op_type not in FUSED + FREE:
                return False
            tensor = maker.input[0]
        return False

    def _readers(self, name: str) -> list[onnx.NodeProto] | None:
        """The nodes that read an output through pointwise work; None if the stage puts it out or there are too many steps to tell."""
        waiting, found, seen = [self._nodes[name].output[0]], [], 0
        while waiting:
            tensor, seen = waiting.pop(), seen + 1
            readers = [reader for reader, _ in self._graph.readers.get(tensor, [])]
            if seen > 16 or not readers or tensor in self._graph.outputs:
                return None
            for reader in readers:
                if reader.op_type in FUSED + FREE and not self.work[reader.name].weighted:
                    waiting.append(reader.output[0])
                else:
                    found.append(reader)
        return found

    def _read_in(self, name: str, low: str, precisions: dict[str, str]) -> bool:
        """Whether the output goes, through pointwise work alone, to nodes of that precision only."""
        readers = self._readers(name)
        return bool(readers) and all(precisions.get(reader.name) == low and self.work[reader.name].weighted for reader in readers)

    def _feeds_wide_convolution(self, name: str, low: str, precisions: dict[str, str]) -> bool:
        readers = self._readers(name) or []
        return any(reader.op_type in CONVOLUTIONS and precisions.get(reader.name, low) != low for reader in readers)


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
