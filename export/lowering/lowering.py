"""A graph for the ONNX parser of TensorRT 8.5 and 8.6: opset 17, and only the operators, types and limits that it reads."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from ...calibration.graph.stage_graph import StageGraph, opset_of
from ...runtime.artefact.spec import StageSpec, TensorSpec
from ...runtime.errors import BuildFailedError
from ...trt_plugins.functions import add_functions, without_bodies
from ..graph.onnx_weights import EXTERNAL_FROM_NBYTES, Constants, WeightsWriter, external_extent, point_outside, safe_data_path
from ..graph.set_nodes import set_nodes
from .operator_checks import unreadable
from .rules.editor import Editor, initialiser
from .rules.rules import RULES

OPSET, IR_VERSION = 17, 8
NARROW = {"int64": "int32"}  # TensorRT 8 has no INT64: its engines take and give INT32


@dataclass(frozen=True)
class LoweredStage:
    """What lowering did to one stage.

    Args:
        graph: what the parser reads; its weights lie beside it.
        spec: the stage with the types that its boundary tensors now have.
        fp32: names of the nodes that must compute in FP32 whatever the precision plan says.
        origin: node made by a rule -> the node it replaces.
        rewrites: operator -> how many of it were rewritten.
    """

    graph: Path
    spec: StageSpec
    fp32: frozenset[str]
    origin: dict[str, str]
    rewrites: dict[str, int]


def lower_stage(source: Path, folder: Path, spec: StageSpec, release: str) -> LoweredStage:
    """Write the form of a stage that TensorRT 8 reads.

    Args:
        source: an FP32 graph, with Q/DQ where INT8 is wanted; opset 20 at most, and converted first where it is older than 17.
        folder: empty; the graph goes there, with a copy of the weights of ``source``.
        spec: of the stage.
        release: ``8.5`` or ``8.6``: whose operator table must hold.

    Raises:
        BuildFailedError: if a node has no form for that parser, naming it; if the written graph is not valid ONNX.
    """
    model = onnx.load(str(source), load_external_data=False)
    if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for node in model.graph.node for a in node.attribute):
        raise BuildFailedError(f"stage {spec.name}: the graph holds control flow (If, Loop or Scan)", fix="use TensorRT 10.3 or later")
    if opset_of(model) < OPSET:  # a graph made elsewhere
        older = StageGraph(model, source.parent)
        older.modernise(OPSET)
        model = older.model
    _know_every_tensor(model)
    editor, rewrites = Editor(model, Constants(model, source.parent)), Counter()
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        replaced = rule(node, editor) if rule else None
        rewrites[node.op_type] += replaced is not None
        nodes += [node] if replaced is None else replaced
    set_nodes(model.graph, nodes)
    _narrow_boundaries(model)
    graph = folder / f"{spec.name}.onnx"
    _write(model, editor, source.parent, graph)
    model = onnx.load(str(graph), load_external_data=False)
    problems = unreadable(model, Constants(model, folder), release)
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise BuildFailedError(
            f"stage {spec.name}: TensorRT {release} does not read the graph: {problems[0]}{more}",
            wanted=f"what onnx-tensorrt lists for {release}",
            fix="change that part of the network, use TensorRT 10.3 or later, or --backend onnxruntime",
        )
    sides = (tuple(TensorSpec(t.name, NARROW.get(t.dtype, t.dtype), t.shape) for t in side) for side in (spec.inputs, spec.outputs))
    return LoweredStage(graph, StageSpec(spec.name, *sides), frozenset(editor.fp32), editor.origin, {op: n for op, n in sorted(rewrites.items()) if n})


def _know_every_tensor(model: onnx.ModelProto) -> None:
    known = {value.name for value in [*model.graph.value_info, *model.graph.input, *model.graph.output] if value.type.tensor_type.HasField("shape")}
    if any(name not in known for node in model.graph.node for name in node.output if name):
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
        del model.graph.value_info[:]
        model.graph.value_info.extend(inferred.graph.value_info)


def _narrow_boundaries(model: onnx.ModelProto) -> None:
    """INT64 inputs and outputs become INT32, with a cast inside."""
    graph, before, after = model.graph, [], []
    for value in [*graph.input, *graph.output]:
        if value.type.tensor_type.elem_type != TensorProto.INT64:
            continue
        inner, outside = f"{value.name}:int64", any(value.name == tensor.name for tensor in graph.input)
        for node in graph.node:
            side = node.input if outside else node.output
            for place, name in enumerate(side):
                if name == value.name:
                    side[place] = inner
            if not outside:  # all other readers of the output read the FP32 one
                for place, name in enumerate(node.input):
                    if name == value.name:
                        node.input[place] = inner
        value.type.tensor_type.elem_type = TensorProto.INT32
        ends = ([value.name], [inner]) if outside else ([inner], [value.name])
        cast = helper.make_node("Cast", *ends, name=f"{value.name}.narrow", to=TensorProto.INT64 if outside else TensorProto.INT32)
        (before if outside else after).append(cast)
    if before or after:
        set_nodes(graph, [*before, *graph.node, *after])


def _write(model: onnx.ModelProto, editor: Editor, source: Path, graph: Path) -> None:
    """The graph with the initialisers that are read; old weights as they are, new ones in a file of their own."""
    read = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    for location in sorted({extent[0] for tensor in kept if (extent := external_extent(tensor))}):
        shutil.copyfile(safe_data_path(source, location, "weights"), graph.parent / location)  # the ONNX checker takes no links
    fresh, data = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept], Path(f"{graph}.new")
    for tensor in fresh:  # inference of shapes calculates with whole numbers, and reads them inside the file only
        if tensor.data_type in (TensorProto.INT32, TensorProto.INT64) and external_extent(tensor):
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(graph.parent))
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]
    with WeightsWriter(data) as writer:
        for name, values in editor.made.items():
            if name not in read:
                continue
            if values.nbytes < EXTERNAL_FROM_NBYTES:
                fresh.append(initialiser(name, values))
                continue
            tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(values.dtype), dims=list(values.shape))
            point_outside(tensor, data.name, writer.add(values))
            fresh.append(tensor)
        nbytes = writer.nbytes
    if not nbytes:
        data.unlink()
    del model.graph.initializer[:]
    model.graph.initializer.extend(fresh)
    known = {value.name: value.type.tensor_type.shape for value in model.graph.value_info}
    del model.graph.value_info[:]
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", OPSET))
    without_bodies(model)
    add_functions(model)  # of this opset; the parser gets the graph without them
    model.ir_version = min(model.ir_version, IR_VERSION)
    try:
        typed = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        _keep_names_of_sizes(typed, known)
        graph.write_bytes(typed.SerializeToString(deterministic=True))
        onnx.checker.check_model(str(graph))
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        words = " ".join(str(error).split())[:400]
        raise BuildFailedError(f"stage {graph.stem}: the graph for TensorRT 8 is not valid ONNX of opset {OPSET} ({words})") from error


def _keep_names_of_sizes(model: onnx.ModelProto, known: dict[str, onnx.TensorShapeProto]) -> None:
    """Where inference knows of a size no more than that it is free, it keeps what the graph called it: the batch is called the same everywhere."""
    for value in model.graph.value_info:
        found, before = value.type.tensor_type.shape.dim, known.get(value.name)
        if before is not None and len(before.dim) == len(found):
            for dim, old in zip(found, before.dim, strict=True):
                if not dim.HasField("dim_value"):
                    dim.CopyFrom(old)
