"""FP16 and BF16 as they act on numbers, on a graph that stays FP32: what a typed stage would lose, without a card."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from ..graph.captures import reconnect
from ..graph.stage_graph import StageGraph
from ..quantisation.formats import FORMATS
from .fp32_rules import fp32_nodes, takes_bf16
from .operator_types import operator_types, opsets

FLOAT = TensorProto.FLOAT
LOW = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
QDQ = ("QuantizeLinear", "DequantizeLinear")


def stays_fp32(graph: StageGraph, islands: tuple[str, ...] = ()) -> dict[str, str]:
    """Names of the nodes that compute in FP32 in every typed stage, each with its reason (see ``fp32_rules``)."""
    kinds, _ = graph.types_and_shapes()
    floats = {name for name, kind in kinds.items() if kind == FLOAT}
    constants = {name: graph.array(name) for name in graph.constants}
    return fp32_nodes(graph.model, floats, constants, islands)


def round_through(graph: StageGraph, precisions: dict[str, str], stays: dict[str, str], boundaries: dict[str, str] | None = None) -> int:
    """Round every tensor where a typed stage would store or read it in fewer bits, in place; returns how many casts were added.

    A tensor is rounded to the type of the node that makes it, and to that of the node that reads it; sums inside a node stay FP32,
    as they do in tensor cores. Beyond 65504 an FP16 rounding gives infinity, as the cast in the typed stage does. ONNX Runtime would
    compute a truly typed graph partly in FP32 on a CPU and so hide what is to be found here. A result of this is ``graph-only``.

    Args:
        graph: FP32 stage, with or without Q/DQ.
        precisions: node name -> one of ``PRECISIONS`` (the high-precision side of INT8, FP8 and INT4 is FP16); others are ``fp32``.
        stays: see ``stays_fp32``.
        boundaries: input or output tensor -> ``float16`` where neighbouring stages meet in it.
    """
    kinds, _ = graph.types_and_shapes()
    floats = {name for name, kind in kinds.items() if kind == FLOAT}
    work = _Rounding(graph, floats, {name: "fp16" for name, kind in (boundaries or {}).items() if kind == "float16"})
    for node in graph.model.graph.node:
        precision = precisions.get(node.name, "fp32")
        if node.name in stays or node.op_type in QDQ or (precision == "bf16" and not takes_bf16(node.op_type)):
            precision = "fp32"
        elif precision in FORMATS:
            precision = "fp16"
        work.node(node, precision)
    graph.replace_nodes(work.nodes)
    return work.casts


class _Rounding:
    """One pass in running order; each rounding of a tensor is made once and shared by its readers."""

    def __init__(self, graph: StageGraph, floats: set[str], boundaries: dict[str, str]):
        self.graph, self.floats, self.boundaries, self.versions = graph, floats, boundaries, opsets(graph.model)
        self.nodes: list[onnx.NodeProto] = []
        self.casts = 0
        self._seen: dict[tuple[str, str], str] = {}
        for name in graph.inputs:
            if boundaries.get(name):
                self._seen[name, "made"] = self._round(name, boundaries[name])

    def node(self, node: onnx.NodeProto, precision: str) -> None:
        wide = operator_types(node, self.versions, self.floats).wide_inputs
        for position, name in enumerate(node.input):
            if name in self.floats:
                low = precision if position not in wide else "fp32"
                node.input[position] = self._read(name, low)
        reconnect(node, self.floats, lambda name: self._read(name, "fp32"))
        outputs = [(position, name) for position, name in enumerate(node.output) if name in self.floats]
        self.nodes.append(node)
        for position, name in outputs:
            low = precision if precision in LOW else ""
            if name in self.graph.outputs:
                kinds = [kind for kind in (low, self.boundaries.get(name, "")) if kind]
                if kinds:  # the graph's output keeps its name: the node gets another one
                    node.output[position] = f"{name}:unrounded"
                    last = node.output[position]
                    for number, kind in enumerate(kinds):
                        last = self._round(last, kind, name if number == len(kinds) - 1 else "")
            elif low:
                self._seen[name, "made"] = self._round(name, low)

    def _read(self, name: str, low: str) -> str:
        made = self._seen.get((name, "made"), name)
        if low not in LOW:
            return made
        if made.endswith(f":{low}"):
            return made
        if (name, low) not in self._seen:
            self._seen[name, low] = self._round(made, low)
        return self._seen[name, low]

    def _round(self, name: str, low: str, target: str = "") -> str:
        target = target or f"{name}:{low}"
        self.casts += 1
        narrow = f"{name}:{low}:bits{self.casts}"
        self.nodes.append(helper.make_node("Cast", [name], [narrow], name=f"round_{self.casts}", to=LOW[low]))
        self.nodes.append(helper.make_node("Cast", [narrow], [target], name=f"back_{self.casts}", to=FLOAT))
        return target


def fp16_overflows(peaks: dict[str, float], limit: float = float(np.finfo(np.float16).max)) -> dict[str, float]:
    """Tensors whose greatest magnitude FP16 cannot hold, the worst first."""
    return dict(sorted(((name, peak) for name, peak in peaks.items() if peak > limit), key=lambda item: -item[1]))
