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

from ...calibration.precision.fp32_rules import FLOAT32_ONLY, fp32_nodes, takes_bf16
from ...runtime.artefact.spec import StageSpec, TensorSpec
from ...runtime.errors import BuildFailedError
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
    """Write the FP16 form of an FP32 stage: half-precision weights, casts around the nodes that stay FP32.

    Initialisers are read from a map of the source's weights file and written one at a time; both sets are never in memory.

    Args:
        source: the FP32 graph.
        target: the graph to write; its weights go to ``<target>.data``.
        spec: of the FP32 stage.
        islands: see ``Stage.fp32_islands``.
        boundaries: dtype of each input and output (see ``boundary_types``); without it they stay float32.
        precisions: node name -> ``fp32`` or ``bf16`` where a precision plan wants that instead of FP16.

    Raises:
        BuildFailedError: if the graph's types cannot be told, or it holds control flow.
    """
    model = onnx.load(str(source), load_external_data=False)
    if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for node in model.graph.node for a in node.attribute):
        raise BuildFailedError(f"stage {spec.name}: the graph holds control flow (If, Loop or Scan), which cannot be typed FP16")
    types = _tensor_types(model, spec.name)
    floats = {name for name, kind in types.items() if kind == FP32}
    constants = Constants(model, source.parent)
    reasons = fp32_nodes(model, floats, constants, islands)
    reasons = {**{name: "precision plan" for name, kind in (precisions or {}).items() if kind == "fp32"}, **reasons}
    bf16 = {name for name, kind in (precisions or {}).items() if kind == "bf16"}
    typed = _Typing(model, floats, set(constants), reasons, boundaries or {}, bf16)
    typed.rewrite()
    nbytes = _write(model, typed.initialisers, constants, target)
    where = boundaries or {}
    inputs, outputs = (tuple(TensorSpec(t.name, where.get(t.name, t.dtype), t.shape) for t in side) for side in (spec.inputs, spec.outputs))
    return TypedStage(StageSpec(spec.name, inputs, outputs), reasons, typed.casts, dict(typed.counted), nbytes)


def _tensor_types(model: onnx.ModelProto, stage: str) -> dict[str, int]:
    graph = model.graph
    known = {value.name: value.type.tensor_type.elem_type for value in [*graph.input, *graph.output, *graph.value_info]}
    known |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    wanted = {name for node in graph.node for name in node.output if name}
    if wanted - set(known):  # graphs made elsewhere carry no types; weights are not needed to infer them
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
        known |= {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    missing = sorted(name for name in wanted if not known.get(name))
    if missing:
        raise BuildFailedError(f"stage {stage}: the type of the tensor {missing[0]} cannot be told", fix="convert the graph with shape inference")
    return known


class _Typing:
    """One pass over the graph in running order. A tensor is stored in one type; readers of the other type share one cast."""

    def __init__(self, model: onnx.ModelProto, floats: set[str], constants: set[str], fp32: dict[str, str], boundaries: dict[str, str], bf16: set[str]):
        self.bf16 = bf16
        self.model, self.floats, self.constants, self.fp32, self.boundaries = model, floats, constants, fp32, boundaries
        self.initialisers: dict[tuple[str, int], str] = {}  # (source name, type) -> name in the new graph
        self.casts, self.counted = 0, Counter()
        self._stored: dict[str, int] = {}
        self._cast: dict[tuple[str, int], str] = {}
        self._new: list[onnx.NodeProto] = []

    def rewrite(self) -> None:
        graph = self.model.graph
        for value in graph.input:
            if value.name in self.floats:
                self._stored[value.name] = self._boundary(value.name)
                value.type.tensor_type.elem_type = self._stored[value.name]
        wanted = {value.name: self._boundary(value.name) for value in graph.output if value.name in self.floats}
        for node in graph.node:
            self._node(node, wanted)
        for value in graph.output:
            if value.name in wanted:
                value.type.tensor_type.elem_type = wanted[value.name]
        del graph.node[:]
        graph.node.extend(self._new)
        for value in graph.value_info:
            if value.name in self._stored:
                value.type.tensor_type.elem_type = self._stored[value.name]

    def _boundary(self, name: str) -> int:
        return FP16 if self.boundaries.get(name, "float32") == "float16" else FP32

    def _node(self, node: onnx.NodeProto, wanted: dict[str, int]) -> None:
        kind = FP32 if node.name in self.fp32 else BF16 if node.name in self.bf16 else FP16
        kind = FP32 if kind == BF16 and not takes_bf16(node.op_type) else kind
        touches = [name for name in [*node.input, *node.output] if name in self.floats]
        if touches:
            self.counted[{FP32: "float32", FP16: "float16", BF16: "bfloat16"}[kind]] += 1
        if node.op_type != "Cast":
            for index, name in enumerate(node.input):
                if name in self.floats:
                    node.input[index] = self._read(name, FP32 if (node.op_type, index) in FLOAT32_ONLY else kind)
        else:
            node.input[0] = self._read(node.input[0], self._stored.get(node.input[0], FP32))
        _retype_attributes(node, kind)
        tail = []
        for index, name in enumerate(node.output):
            if name not in self.floats:
                continue
            self._stored[name] = kind
            if name in wanted and wanted[name] != kind:
                inner = f"{name}:{WORDS[kind]}"
                node.output[index] = inner
                self._stored[name] = wanted[name]
                self._cast[name, kind] = inner
                tail.append(self._make_cast(inner, name, wanted[name]))
        self._new.extend([node, *tail])

    def _read(self, name: str, kind: int) -> str:
        target = f"{name}:{WORDS[kind]}"
        if name in self.constants:
            taken = any(source == name for source, _ in self.initialisers)
            return self.initialisers.setdefault((name, kind), target if taken else name)
        if self._stored[name] == kind:
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
        if node.op_type in ("Cast", "RandomNormalLike", "EyeLike") and attribute.name in ("to", "dtype") and attribute.i == FP32:
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
            point_outside(tensor, data.name, writer.add(values.view(np.uint16) if kind == BF16 else values))
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
