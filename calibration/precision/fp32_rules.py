"""Which nodes of a graph compute in FP32 although the stage is typed FP16, and why."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import onnx

from ..graph.captures import has_subgraph
from .operator_types import OUR_DOMAIN, operator_types, opsets

FP16_MAX = 65504.0
BF16_OPSET = 19
FP16_MIN_NORMAL = 2.0**-14
NORMS = ("InstanceNormalization", "LayerNormalization", "GroupNormalization", "BatchNormalization", "RMSNormalization", "LRN", "LpNormalization")
NORMS += ("MeanVarianceNormalization",)
SUMMING = ("ReduceMean", "ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp", "ReduceProd", "CumSum", "GlobalAveragePool")
CURVED = ("Pow", "Exp", "Log", "Softplus", "Reciprocal", "Sqrt", "LogSoftmax")
INTEGER_SUMS = ("ConvInteger", "MatMulInteger")
SCATTERS = ("ScatterElements", "ScatterND")
MOVING = ("Reshape", "Transpose", "Concat", "Slice", "Split", "Gather", "Squeeze", "Unsqueeze", "Expand", "Flatten", "Identity", "Tile")
MOVING += ("DepthToSpace", "SpaceToDepth")
ELEMENTWISE = ("Add", "Sub", "Mul", "Div", "Sqrt", "Reciprocal", "Pow", "Max", "Min", "Clip", "Neg", "Abs")


def fp32_nodes(model: onnx.ModelProto, floats: set[str], constants: dict[str, np.ndarray], islands: tuple[str, ...]) -> dict[str, str]:
    """Names of the nodes that stay FP32, each with the reason.

    Our own operators never do: they compute in FP32 whatever they read. For all others the rules, in this order: what ONNX forbids
    (operators that take or give no FP16, that make floats from nothing of that type, that hold control flow, or that are unknown),
    ``islands`` (regular expressions over module paths), norms with their scale and shift, softmax, sums and curved functions with what is
    computed from them alone (the mean and the variance of a norm that was written out), constants that FP16 cannot hold, and cheap nodes
    between FP32 nodes. An FP32 softmax between two FP16 matrix products does not break the compiler's attention kernel: TensorRT-RTX
    1.7.1 needs 19 MB of activations for 8 heads of 4096 tokens either way, and 824 MB once the product before it is FP32 too.

    Args:
        model: the graph; every node has a name.
        floats: names of the floating-point tensors.
        constants: values of the initialisers that can be looked at; large ones may be mapped files.
        islands: see ``Stage.fp32_islands``.
    """
    versions = opsets(model)
    graph = _Graph(model, floats, constants, versions)
    reasons: dict[str, str] = {}
    patterns = [re.compile(pattern) for pattern in islands]
    for node in graph.nodes:
        if node.domain == OUR_DOMAIN:  # reads and writes FP16, computes in FP32: what islands and the rules below are for
            continue
        if obstacle := _obstacle(node, floats, versions):
            reasons[node.name] = obstacle
        elif pattern := next((p for p in patterns if _on_island(node.name, p)), None):
            reasons[node.name] = f"island {pattern.pattern}"
        elif node.op_type in NORMS:
            reasons[node.name] = "norm"
        elif node.op_type in ("Softmax", "Attention"):
            reasons[node.name] = "softmax"
        elif node.op_type in SCATTERS and any(attribute.name == "reduction" and attribute.s != b"none" for attribute in node.attribute):
            reasons[node.name] = f"{node.op_type} adds up"
        elif node.op_type in SUMMING + CURVED:
            reasons[node.name] = f"{node.op_type} loses too much in FP16"
        elif worst := graph.unfit_constant(node):
            reasons[node.name] = worst
    _integer_sums(model.graph.node, reasons)
    _scale_and_shift(graph, reasons)
    _written_out_norms(graph, reasons)
    _between(graph, reasons)
    return reasons


def _integer_sums(nodes: Iterable[onnx.NodeProto], reasons: dict[str, str]) -> None:
    """Sums of integers run to millions before a tiny factor makes numbers of them: FP16 holds neither."""
    makers = {name: node for node in nodes for name in node.output if name}
    for node in nodes:
        if node.op_type != "Mul":
            continue
        sides = [makers.get(name) for name in node.input]
        cast = next((side for side in sides if side and side.op_type == "Cast" and getattr(makers.get(side.input[0]), "op_type", "") in INTEGER_SUMS), None)
        if cast is not None:
            for part in (node, *(side for side in sides if side and side.op_type in ("Cast", "Mul"))):
                reasons.setdefault(part.name, "sum of integers")


def _obstacle(node: onnx.NodeProto, floats: set[str], versions: dict[str, int]) -> str:
    """Why ONNX does not allow the node in FP16, or an empty string."""
    if has_subgraph(node):
        return f"{node.op_type} holds graphs of its own"
    if obstacle := operator_types(node, versions, floats).obstacle:
        return obstacle
    made_of_nothing = not any(name in floats for name in node.input) and node.op_type not in ("Cast", "Constant")
    if made_of_nothing and not any(attribute.type == onnx.AttributeProto.TENSOR for attribute in node.attribute):
        return f"the type that {node.op_type} gives is set by an attribute or by default"
    return ""


@lru_cache(maxsize=1024)
def takes_bf16(op_type: str) -> bool:
    """Whether an operator may compute in BF16; others of a BF16 region compute in FP32.

    What ONNX allows up to opset 19, which TensorRT 10.3 reads, and convolutions, which ONNX allows from opset 22 and TensorRT takes in any.
    TensorRT-RTX 1.7.1 cannot compile a transposed convolution in BF16.
    """
    if op_type == "Conv":
        return True
    try:
        schema = onnx.defs.get_schema(op_type, BF16_OPSET)
    except onnx.defs.SchemaError:
        return False
    kinds = [set(constraint.allowed_type_strs) for constraint in schema.type_constraints]
    return all("tensor(bfloat16)" in allowed for allowed in kinds if "tensor(float16)" in allowed)


def module_path(node_name: str) -> str:
    """The module a node belongs to: what stands before the last slash of its name."""
    return node_name.rpartition("/")[0]


@lru_cache(maxsize=65536)
def _ancestors(path: str) -> tuple[str, ...]:
    parts = path.split(".") if path else []
    return tuple(".".join(parts[:n]) for n in range(len(parts) + 1))


def _on_island(name: str, pattern: re.Pattern) -> bool:
    return pattern.fullmatch(name) is not None or any(pattern.fullmatch(path) for path in _ancestors(module_path(name)))


class _Graph:
    """Who makes and who reads each floating-point tensor."""

    def __init__(self, model: onnx.ModelProto, floats: set[str], constants: dict[str, np.ndarray], versions: dict[str, int]):
        self.floats, self.constants, self.versions = floats, constants, versions
        self.nodes = [node for node in model.graph.node if any(name in floats for name in [*node.input, *node.output])]
        self.maker = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                if name in floats:
                    self.readers[name].append(node)
        self._limits: dict[str, str] = {}

    def flowing(self, node: onnx.NodeProto) -> list[str]:
        """Its floating-point inputs that are computed, not constant."""
        return [name for name in node.input if name in self.floats and name not in self.constants]

    def unfit_constant(self, node: onnx.NodeProto) -> str:
        """Why a constant of the node does not fit FP16, or an empty string."""
        wide = operator_types(node, self.versions, self.floats).wide_inputs
        for index, name in enumerate(node.input):
            if name in self.constants and name in self.floats and index not in wide:
                if name not in self._limits:
                    self._limits[name] = _unfit(self.constants[name])
                if self._limits[name]:
                    return f"constant {name} {self._limits[name]}"
        return ""


def _unfit(values: np.ndarray) -> str:
    """Why an array cannot be FP16: too large, or a single number so small that FP16 loses or blurs it."""
    if not values.size:
        return ""
    greatest = max(abs(float(values.max())), abs(float(values.min())))
    if not np.isfinite(greatest):  # a mask: what it hides may stay infinite
        finite = values[np.isfinite(values)]
        greatest = float(np.abs(finite).max()) if finite.size else 0.0
    if greatest > FP16_MAX:
        return f"reaches {greatest:.3g}, beyond {FP16_MAX:.0f}"
    if 0 < greatest < FP16_MIN_NORMAL and values.size == 1:
        return f"is {greatest:.3g}, below the smallest normal FP16 number"
    return ""


def _scale_and_shift(graph: _Graph, reasons: dict[str, str]) -> None:
    """The reshape, scale and shift that follow a norm."""
    for node in graph.nodes:
        if node.op_type not in ("Mul", "Add", "Reshape") or node.name in reasons:
            continue
        flowing = graph.flowing(node)
        source = graph.maker.get(flowing[0]) if len(flowing) == 1 else None
        if source is not None and reasons.get(source.name) in ("norm", "scale and shift of a norm") and len(graph.readers[flowing[0]]) == 1:
            reasons[node.name] = "scale and shift of a norm"


def _written_out_norms(graph: _Graph, reasons: dict[str, str]) -> None:
    """Elementwise work on a statistic (mean, variance, its root) belongs to the norm that was written out."""
    statistics: set[str] = set()
    for node in graph.nodes:
        flowing = graph.flowing(node)
        if node.op_type.startswith("Reduce"):
            statistics.update(node.output)
        elif node.op_type in ELEMENTWISE + MOVING and flowing:
            touched = [name for name in flowing if name in statistics]
            if touched and node.op_type in ELEMENTWISE:
                reasons.setdefault(node.name, "part of a norm that was written out")
            if len(touched) == len(flowing):
                statistics.update(node.output)


def _between(graph: _Graph, reasons: dict[str, str]) -> None:
    """Cheap nodes that come from FP32 nodes only and go to FP32 nodes only: anything else would cast twice."""
    for node in reversed(graph.nodes):
        if node.op_type not in MOVING + ELEMENTWISE or node.name in reasons:
            continue
        makers = [graph.maker.get(name) for name in graph.flowing(node)]
        readers = [reader for name in node.output for reader in graph.readers[name]]
        fed = bool(makers) and all(m is not None and (m.name in reasons or m.op_type in MOVING) for m in makers)
        if fed and any(m.name in reasons for m in makers) and readers and all(reader.name in reasons for reader in readers):
            reasons[node.name] = "between FP32 nodes"
