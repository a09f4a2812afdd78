"""Typing a stage: precision as a property of the ONNX graph, by explicit types and casts, never by a builder flag."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper

from ...calibration.graph.captures import has_subgraph, reconnect
from ...calibration.graph.stage_graph import stored_bytes
from ...calibration.precision.fp32_rules import fp32_nodes, takes_bf16
from ...calibration.precision.operator_types import operator_types, opsets
from ...runtime.artefact.spec import StageSpec, TensorSpec
from ..graph.onnx_weights import EXTERNAL_FROM_NBYTES, Constants, WeightsWriter, point_outside

FP32, FP16, BF16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
NUMPY = {FP32: np.dtype(np.float32), FP16: np.dtype(np.float16), BF16: np.dtype(ml_dtypes.bfloat16)}
WORDS = {FP32: "fp32", FP16: "fp16", BF16: "bf16"}


@dataclass(frozen=True)
class TypedStage:
    """What typing did.

    Args:
        spec: the stage with the types its boundary tensors now have.
        fp32: node name -> why it stays FP32.
        casts: how many Cast nodes were added.
        nodes: floating-point nodes by type.
        weights_nbytes: size of the new weights file.
    """

    spec: StageSpec
    fp32: dict[str, str]
    casts: int
    nodes: dict[str, int]
    weights_nbytes: int


def boundary_types(specs: tuple[StageSpec, ...], output: str, keep: tuple[str, ...] = ()) -> dict[str, str]:
    """The dtype of every tensor between stages when they are typed FP16.

    Tensors that pass from stage to stage become float16, which halves what flows through memory; what comes from outside, the
    network's output and the tensors in ``keep`` stay as they are.
    """
    made = {tensor.name for spec in specs for tensor in spec.outputs}
    read = {tensor.name for spec in specs for tensor in spec.inputs}
    inner = (made & read) - {output, *keep}
    tensors = {tensor.name: tensor for spec in specs for tensor in spec.inputs + spec.outputs}
    return {name: "float16" if name in inner and tensor.dtype == "float32" else tensor.dtype for name, tensor in tensors.items()}


def type_stage(
    source: Path,
    target: Path,
    spec: StageSpec,
    *,
    islands: tuple[str, ...] = (),
    boundaries: dict[str, str] | None = None,
    precisions: dict[str, str] | None = None,
) -> TypedStage:
    """Write the FP16 form of an FP32 stage: FP16 weights, casts around the nodes that stay FP32.

    Initialisers are read from a map of the source's weights file and written one at a time; both sets are never in memory.

    Args:
        source: the FP32 graph.
        target: the graph to write; its weights go to ``<target>.data``.
        spec: of the FP32 stage.
        islands: see ``Stage.fp32_islands``.
        boundaries: dtype of each input and output (see ``boundary_types``); without it they stay float32.
        precisions: node name -> ``fp32`` or ``bf16`` where a precision plan wants that instead of FP16.

    What cannot be typed stays FP32 and is named among the reasons: operators that ONNX does not let compute in FP16, control flow, and
    what touches a tensor whose type is not known. If the typed graph is invalid all the same, the whole stage stays FP32.
    """
    model = onnx.load(str(source), load_external_data=False)
    plain_constants(model)
    types = tensor_types(model)
    floats = {name for name, kind in types.items() if kind == FP32}
    constants = Constants(model, source.parent)
    reasons = fp32_nodes(model, floats, constants, islands)
    reasons = {**{name: "precision plan" for name, kind in (precisions or {}).items() if kind == "fp32"}, **reasons}
    for node in model.graph.node:
        if unknown := next((name for name in (*node.input, *node.output) if name and not types.get(name)), None):
            reasons[node.name] = f"the type of {unknown} is not known"
    made = _type(model, types, constants, reasons, boundaries or {}, precisions or {}, target)
    bf16 = "bf16" in (precisions or {}).values()  # TensorRT takes BF16 convolutions, which ONNX allows from opset 22 only
    if not bf16 and (invalid := _complaint(target, source)):
        for node in model.graph.node:
            reasons.setdefault(node.name, f"the stage typed FP16 would be invalid: {invalid}")
        made = _type(model, types, constants, reasons, boundaries or {}, {}, target)
    typed, nbytes = made
    where = boundaries or {}
    inputs, outputs = (tuple(TensorSpec(t.name, where.get(t.name, t.dtype), t.shape) for t in side) for side in (spec.inputs, spec.outputs))
    return TypedStage(StageSpec(spec.name, inputs, outputs), reasons, typed.casts, dict(typed.counted), nbytes)


def _type(
    source: onnx.ModelProto,
    types: dict[str, int],
    constants: Mapping[str, np.ndarray],
    reasons: dict[str, str],
    boundaries: dict[str, str],
    precisions: dict[str, str],
    target: Path,
) -> tuple[_Typing, int]:
    """Type a copy of ``source`` and write it; returns what was done and the size of its weights file."""
    model = onnx.ModelProto.FromString(source.SerializeToString())
    floats = {name for name, kind in types.items() if kind == FP32}
    bf16 = {name for name, kind in precisions.items() if kind == "bf16"}
    typed = _Typing(model, floats, set(constants), reasons, boundaries, bf16)
    typed.rewrite()
    _write_types(model, types, typed.stored)
    return typed, _write(model, typed.initialisers, constants, target)


def _complaint(typed: Path, source: Path) -> str:
    """The error of ONNX's strict shape inference on a typed graph, in one line; nothing where it objects to the FP32 graph as well."""

    def judge(file: Path) -> str:
        try:
            onnx.shape_inference.infer_shapes(onnx.load(str(file), load_external_data=False), check_type=True, strict_mode=True)
        except Exception as error:  # RuntimeError and its kin, by version
            return " ".join(str(error).split())[:300]
        return ""

    found = judge(typed)
    return found if found and not judge(source) else ""


def plain_constants(model: onnx.ModelProto) -> None:
    """Constant nodes that hold Python-like floats hold a tensor instead, in place: its type can be changed."""
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name in ("value_float", "value_floats"):
            (attribute,) = node.attribute
            values = np.float32(attribute.f) if attribute.name == "value_float" else np.array(attribute.floats, np.float32)
            attribute.CopyFrom(helper.make_attribute("value", onnx.numpy_helper.from_array(np.asarray(values, np.float32))))


def _write_types(model: onnx.ModelProto, types: dict[str, int], stored: dict[str, int]) -> None:
    """Write the type of every tensor into the graph: later readers (``products_by_type``) need not infer it."""
    told = {value.name for value in [*model.graph.input, *model.graph.output, *model.graph.value_info]}
    for name in (name for node in model.graph.node for name in node.output):
        if name and name not in told and (kind := stored.get(name) or types.get(name)):
            model.graph.value_info.append(helper.make_tensor_value_info(name, kind, None))
            told.add(name)


def tensor_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor of a graph whose type is written in it or can be inferred; 0 for what is no tensor."""
    graph = model.graph
    known = {value.name: value.type.tensor_type.elem_type for value in [*graph.input, *graph.output, *graph.value_info]}
    known |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    wanted = {name for node in graph.node for name in node.output if name}
    if wanted - set(known):  # graphs made elsewhere carry no types; weights are not needed to infer them
        try:
            inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
        except Exception:  # what it fails on stays without a type, and so in FP32
            inferred = model
        known |= {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info if value.type.tensor_type.elem_type}
    return known


class _Typing:
    """One pass over the graph in running order. A tensor is stored in one type; readers of the other type share one cast."""

    def __init__(self, model: onnx.ModelProto, floats: set[str], constants: set[str], fp32: dict[str, str], boundaries: dict[str, str], bf16: set[str]):
        self.bf16 = bf16
        self.model, self.floats, self.constants, self.fp32, self.boundaries = model, floats, constants, fp32, boundaries
        self.initialisers: dict[tuple[str, int], str] = {}  # (source name, type) -> name in the new graph
        self.casts, self.counted = 0, Counter()
        self.stored: dict[str, int] = {}
        self._versions = opsets(model)
        self._cast: dict[tuple[str, int], str] = {}
        self._new: list[onnx.NodeProto] = []

    def rewrite(self) -> None:
        graph = self.model.graph
        for value in graph.input:
            if value.name in self.floats:
                self.stored[value.name] = self._boundary(value.name)
                value.type.tensor_type.elem_type = self.stored[value.name]
        wanted = {value.name: self._boundary(value.name) for value in graph.output if value.name in self.floats}
        for node in graph.node:
            self._node(node, wanted)
        for value in graph.output:
            if value.name in wanted:
                value.type.tensor_type.elem_type = wanted[value.name]
        del graph.node[:]
        graph.node.extend(self._new)
        for value in graph.value_info:
            if value.name in self.stored:
                value.type.tensor_type.elem_type = self.stored[value.name]

    def _boundary(self, name: str) -> int:
        return FP16 if self.boundaries.get(name, "float32") == "float16" else FP32

    def _node(self, node: onnx.NodeProto, wanted: dict[str, int]) -> None:
        kind = FP32 if node.name in self.fp32 else BF16 if node.name in self.bf16 else FP16
        kind = FP32 if kind == BF16 and not takes_bf16(node.op_type) else kind
        touches = [name for name in [*node.input, *node.output] if name in self.floats]
        if touches:
            self.counted[{FP32: "float32", FP16: "float16", BF16: "bfloat16"}[kind]] += 1
        if node.op_type != "Cast":
            wide = operator_types(node, self._versions, self.floats).wide_inputs
            for index, name in enumerate(node.input):
                if name in self.floats:
                    node.input[index] = self._read(name, FP32 if index in wide else kind)
        elif node.input[0] in self.floats:  # else it makes floats of integers or doubles
            node.input[0] = self._read(node.input[0], self.stored.get(node.input[0], FP32))
        if has_subgraph(node):
            reconnect(node, self.floats, lambda name: self._read(name, FP32))
        else:
            _retype_attributes(node, kind)
        tail = []
        for index, name in enumerate(node.output):
            if name not in self.floats:
                continue
            self.stored[name] = kind
            if name in wanted and wanted[name] != kind:
                inner = f"{name}:{WORDS[kind]}"
                node.output[index] = inner
                self.stored[name] = wanted[name]
                self._cast[name, kind] = inner
                tail.append(self._make_cast(inner, name, wanted[name]))
        self._new.extend([node, *tail])

    def _read(self, name: str, kind: int) -> str:
        target = f"{name}:{WORDS[kind]}"
        if name in self.constants:
            taken = any(source == name for source, _ in self.initialisers)
            return self.initialisers.setdefault((name, kind), target if taken else name)
        if self.stored[name] == kind:
            return name
        if (name, kind) not in self._cast:
            self._new.append(self._make_cast(name, target, kind))
            self._cast[name, kind] = target
        return self._cast[name, kind]

    def _make_cast(self, source: str, target: str, kind: int) -> onnx.NodeProto:
        self.casts += 1
        path = source.rpartition("/")[0]
        return helper.make_node("Cast", [source], [target], name=f"{path}/TypeCast_{self.casts}" if path else f"TypeCast_{self.casts}", to=kind)


def _retype_attributes(node: onnx.NodeProto, kind: int) -> None:
    for attribute in node.attribute:
        if node.op_type in ("Cast", "RandomNormalLike", "RandomUniformLike", "EyeLike") and attribute.name in ("to", "dtype") and attribute.i == FP32:
            attribute.i = kind
        elif attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == FP32:
            values = onnx.numpy_helper.to_array(attribute.t).astype(NUMPY[kind])
            attribute.t.CopyFrom(onnx.numpy_helper.from_array(values, attribute.t.name))


def _write(model: onnx.ModelProto, wanted: dict[tuple[str, int], str], constants: Mapping[str, np.ndarray], target: Path) -> int:
    """The initialisers in the types that are read, then the graph."""
    graph = model.graph
    sources = {tensor.name: tensor for tensor in graph.initializer}
    others = [tensor.name for tensor in graph.initializer if tensor.name not in {name for name, _ in wanted} and tensor.data_type != FP32]
    jobs = sorted([(name, new, kind) for (name, kind), new in wanted.items()] + [(name, name, 0) for name in others], key=lambda job: job[1])
    data = Path(f"{target}.data")
    fresh = []
    with WeightsWriter(data) as writer:
        for name, new, kind in jobs:
            with np.errstate(over="ignore"):  # what overflows was found before and stays FP32; masks of -inf may overflow to -inf
                values = np.asarray(constants[name]).astype(NUMPY[kind], copy=False) if kind else np.asarray(constants[name])
            if values.nbytes < EXTERNAL_FROM_NBYTES:
                fresh.append(onnx.numpy_helper.from_array(np.asarray(values, order="C"), new))
                continue
            tensor = TensorProto(name=new, data_type=kind or sources[name].data_type, dims=list(values.shape))
            point_outside(tensor, data.name, writer.add(stored_bytes(values, tensor.data_type)))
            fresh.append(tensor)
        nbytes = writer.nbytes
    if not nbytes:
        data.unlink()
    del graph.initializer[:]
    graph.initializer.extend(fresh)
    names = {tensor.name for tensor in fresh}
    keep = [value for value in graph.value_info if value.name not in sources or value.name in names]
    for value in keep:
        if value.name in names:
            value.type.tensor_type.elem_type = next(t.data_type for t in fresh if t.name == value.name)
    keep = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in keep]
    del graph.value_info[:]
    graph.value_info.extend(keep)
    target.write_bytes(model.SerializeToString(deterministic=True))
    return nbytes
