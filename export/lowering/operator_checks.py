"""Check a graph against the operators that the parser of TensorRT 8.5 or 8.6 reads, by onnx-tensorrt's published table; needs no TensorRT. Nodes of our
own domain are held against the plugins that the parser will ask the registry for.

The tables lie beside this file as data: operator -> types, and limits by name. INT64 counts as INT32 and float64 as FP32, as the parser casts them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from ...calibration.graph.stage_graph import opset_of
from ...trt_plugins.functions import DOMAIN
from .plugin_checks import plugin_problem

RELEASES = ("8.5", "8.6")
KINDS = {
    TensorProto.FLOAT: "FP32",
    TensorProto.DOUBLE: "FP32",
    TensorProto.FLOAT16: "FP16",
    TensorProto.INT64: "INT32",
    TensorProto.INT32: "INT32",
    TensorProto.INT8: "INT8",
    TensorProto.UINT8: "UINT8",
    TensorProto.BOOL: "BOOL",
}
COORDINATES = ("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners")
NEAREST = ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
INT32 = np.iinfo(np.int32)


@dataclass(frozen=True)
class OperatorTable:
    """What one release reads.

    Args:
        release: ``8.5`` or ``8.6``.
        opset: the latest.
        operators: operator -> types of its data.
        limits: operator -> names of ``LIMITS``.
    """

    release: str
    opset: int
    operators: dict[str, tuple[str, ...]]
    limits: dict[str, tuple[str, ...]]


@cache
def operator_table(release: str) -> OperatorTable:
    """The published table of a release.

    Raises:
        ValueError: if there is none.
    """
    if release not in RELEASES:
        raise ValueError(f"no operator table for TensorRT {release}, wanted {' or '.join(RELEASES)}")
    raw = json.loads((Path(__file__).parent / f"operators_{release.replace('.', '_')}.json").read_text())
    limits = {op: (*raw["limits"].get(op, ()), *raw["parser_limits"].get(op, ())) for op in {*raw["limits"], *raw["parser_limits"]}}
    return OperatorTable(release, raw["opset"], {op: tuple(kinds) for op, kinds in raw["operators"].items()}, limits)


class Facts:
    """One node with what is known of its tensors."""

    def __init__(self, node: onnx.NodeProto, values: Mapping[str, Any], constants: Mapping[str, np.ndarray]):
        self.node, self._values, self._constants = node, values, constants
        self.attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}

    def text(self, name: str, default: str) -> str:
        """An attribute that is a string."""
        return self.attributes.get(name, default.encode()).decode()

    def constant(self, place: int) -> np.ndarray | None:
        """The values of an input; None if it is computed or absent."""
        name = self.node.input[place] if len(self.node.input) > place else ""
        return self._constants[name] if name and name in self._constants else None

    def given(self, place: int) -> bool:
        """Whether an input is there."""
        return len(self.node.input) > place and bool(self.node.input[place])

    def kind(self, name: str) -> int:
        """ONNX element type; 0 if unknown."""
        return self._values[name].elem_type if name in self._values else 0

    def rank(self) -> int:
        """Of the first input."""
        return len(self._values[self.node.input[0]].shape.dim) if self.node.input[0] in self._values else 0

    def sizes(self, name: str) -> tuple[int | None, ...]:
        """Of a tensor; None where a size is free."""
        return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in self._values[name].shape.dim) if name in self._values else ()

    def free(self) -> bool:
        """Whether the first input has a free size."""
        return None in self.sizes(self.node.input[0])


def _constant(facts: Facts, place: str) -> str:
    return "" if not facts.given(int(place)) or facts.constant(int(place)) is not None else f"its input {place} ({facts.node.input[int(place)]}) is computed"


def _rank(facts: Facts, span: str) -> str:
    least, most = map(int, span.split("-"))
    return "" if least <= facts.rank() <= most else f"its input has rank {facts.rank()}, wanted {least} to {most}"


def _pooling_rank(facts: Facts, _: str) -> str:
    size = len(facts.attributes.get("kernel_shape", ()))
    return "" if size in (2, 3) else f"it pools over {size} dimensions, wanted 2 or 3"


def _no_indices(facts: Facts, _: str) -> str:
    return "its indices are wanted" if len([name for name in facts.node.output if name]) > 1 else ""


def _zero_point(facts: Facts, _: str) -> str:
    zero = facts.constant(2)
    return "its zero point is not zero" if zero is not None and zero.any() else ""


def _three_inputs(facts: Facts, _: str) -> str:
    return "" if facts.given(2) else "it has no zero point"


def _plain_einsum(facts: Facts, _: str) -> str:
    equation = facts.text("equation", "")
    terms = equation.replace(" ", "").split("->")[0].split(",")
    if "." in equation or any(len(set(term)) != len(term) for term in terms):
        return f"its equation is {equation}"
    sizes: dict[str, set[int]] = {}
    for term, name in zip(terms, facts.node.input, strict=True):
        for letter, size in zip(term, facts.sizes(name), strict=False):
            sizes.setdefault(letter, set()).update(() if size is None else (size,))
    wide = sorted(letter for letter, found in sizes.items() if len(found) > 1)
    return f"its inputs are broadcast along {', '.join(wide)}" if wide else ""


def _same_directions(facts: Facts, _: str) -> str:
    names, two = facts.attributes.get("activations", []), facts.text("direction", "forward") == "bidirectional"
    return "its directions have different activations" if two and names[: len(names) // 2] * 2 != names else ""


def _resize_modes(facts: Facts, _: str) -> str:
    mode, coordinates, nearest = (
        facts.text("mode", "nearest"),
        facts.text("coordinate_transformation_mode", "half_pixel"),
        facts.text("nearest_mode", NEAREST[2]),
    )
    if mode not in ("nearest", "linear"):
        return f"its mode is {mode}"
    if coordinates not in COORDINATES:
        return f"its coordinates are {coordinates}"
    return f"its nearest mode is {nearest}" if mode == "nearest" and nearest not in NEAREST else ""


def _resize_axes(facts: Facts, _: str) -> str:
    scales = facts.constant(2)
    if facts.text("mode", "nearest") != "linear" or scales is None or not scales.size:
        return ""
    return "it interpolates over more than the last three dimensions" if (scales[:-3] != 1).any() else ""


def _grid_modes(facts: Facts, _: str) -> str:
    mode = facts.text("mode", "bilinear")
    return "" if mode in ("bilinear", "nearest") else f"its mode is {mode}"


def _whole_shape(facts: Facts, _: str) -> str:
    return "its start and end are passed over" if {"start", "end"} & facts.attributes.keys() else ""


def _fixed_shape(facts: Facts, _: str) -> str:
    return "its input has a free size" if facts.free() else ""


LIMITS: dict[str, Callable[[Facts, str], str]] = {  # name -> what is wrong with a node, or nothing; what follows the colon is handed over
    "constant": _constant,
    "rank": _rank,
    "pooling-rank": _pooling_rank,
    "no-indices": _no_indices,
    "zero-point": _zero_point,
    "three-inputs": _three_inputs,
    "plain-einsum": _plain_einsum,
    "same-directions": _same_directions,
    "resize-modes": _resize_modes,
    "resize-axes": _resize_axes,
    "grid-modes": _grid_modes,
    "whole-shape": _whole_shape,
    "fixed-shape": _fixed_shape,
}


def unreadable(model: onnx.ModelProto, constants: Mapping[str, np.ndarray], release: str) -> list[str]:
    """Everything in a graph that the parser of a release does not read, each with its node and reason; empty if there is nothing.

    Args:
        model: with the types and sizes of all its tensors.
        constants: values of its initialisers.
        release: ``8.5`` or ``8.6``.
    """
    table, found = operator_table(release), []
    opset = opset_of(model)
    if opset > table.opset:
        found.append(f"the graph has opset {opset}, wanted {table.opset} at most")
    values = {value.name: value.type.tensor_type for value in [*model.graph.value_info, *model.graph.input, *model.graph.output]}
    for tensor in model.graph.initializer:
        values[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, tensor.dims).tensor_type
    for node in model.graph.node:
        reason = _reason(Facts(node, values, constants), table)
        if reason:
            found.append(f"node {node.name} ({node.op_type}): {reason}")
    return found


def _reason(facts: Facts, table: OperatorTable) -> str:
    node = facts.node
    if node.domain == DOMAIN:
        return plugin_problem(node, [facts.kind(name) for name in node.input], [facts.sizes(name) for name in node.input])
    if node.domain not in ("", "ai.onnx"):
        return f"operators of the domain {node.domain} are not known"
    if node.op_type not in table.operators:
        return "the operator is not in its list"
    known = table.operators[node.op_type]
    for name in _data(node, table.opset):
        kind = facts.kind(name)
        if KINDS.get(kind) not in known:
            return f"the tensor {name} is {TensorProto.DataType.Name(kind)}, wanted {', '.join(known)}"
    for place, name in enumerate(node.input):
        values = facts.constant(place) if facts.kind(name) == TensorProto.INT64 else None
        if values is not None and node.op_type != "Slice" and values.size and not INT32.min <= values.min() <= values.max() <= INT32.max:
            return f"the tensor {name} holds numbers beyond INT32"
    for limit in table.limits.get(node.op_type, ()):
        name, _, argument = limit.partition(":")
        if wrong := LIMITS[name](facts, argument):
            return wrong
    return ""


def _data(node: onnx.NodeProto, opset: int) -> list[str]:
    """The tensors that the types of a table speak of: inputs and outputs of the operator's first type, shapes, axes and indices left out."""
    schema = onnx.defs.get_schema(node.op_type, opset)
    if node.op_type in ("Shape", "ConstantOfShape", "Size"):
        return [node.output[0]] if node.op_type == "ConstantOfShape" else [node.input[0]]
    if node.op_type == "Where":
        return [*node.input[1:3], node.output[0]]
    if not schema.inputs:
        return list(node.output)
    first, found = schema.inputs[0].type_str, []
    for formal, actual in ((schema.inputs, node.input), (schema.outputs, node.output)):
        for place, name in enumerate(actual):
            if name and formal[min(place, len(formal) - 1)].type_str == first:
                found.append(name)
    return found
