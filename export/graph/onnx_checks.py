"""Checks of an exported graph: what must hold before a bundle is written."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx import TensorProto, helper
from torch import nn

from ...runtime.artefact.spec import StageSpec, TensorSpec
from ...runtime.errors import BuildFailedError
from .inner_graphs import all_nodes

NORM_OPS = ("InstanceNormalization", "LayerNormalization", "GroupNormalization", "BatchNormalization", "RMSNormalization")
BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)
MAX_OPSET = 20


def refusals(model: onnx.ModelProto) -> list[str]:
    """Nodes that no TensorRT of 10.3 and later compiles, those of branches and loops included, each with its reason; empty if there is none."""
    found = []
    for node in all_nodes(model.graph):
        facts = {a.name: helper.get_attribute_value(a) for a in node.attribute if a.type != onnx.AttributeProto.GRAPH}
        reason = _refusal(node, facts)
        if reason:
            found.append(f"{node.name or node.op_type} ({node.op_type}): {reason}")
    return found


def _refusal(node: onnx.NodeProto, facts: dict) -> str:
    if node.domain not in ("", "ai.onnx"):
        return f"TensorRT does not know operators of the domain {node.domain}"
    if node.op_type in ("NonZero", "DFT", "STFT", "Det", "RoiAlign", "NonMaxSuppression", "Unique", "QLinearConv", "QLinearMatMul"):
        return "TensorRT does not compile this operator without a plugin"
    if node.op_type == "Attention":
        return "the fused operator of opset 23 fails or crashes in TensorRT; plain MatMul and Softmax are fused there"
    if node.op_type == "Resize" and facts.get("antialias"):
        return "TensorRT's resize has no antialiasing; resize outside the graph"
    if node.op_type in ("ScatterElements", "ScatterND") and facts.get("reduction", b"none") not in (b"none", "none"):
        return "TensorRT's scatter has no reduction"
    if node.op_type in ("SequenceAt", "SplitToSequence", "SequenceConstruct", "ConcatFromSequence"):
        return "TensorRT has no sequences"
    return ""


def check_graph(file: Path, spec: StageSpec) -> None:
    """ONNX's own checker, inputs and outputs as in the spec, opset, no float64, nothing TensorRT refuses.

    Raises:
        BuildFailedError: naming the stage and the first node or tensor at fault.
    """
    where = f"stage {spec.name}"
    try:
        onnx.checker.check_model(str(file))  # by path: a graph with its weights may be larger than a protobuf message
    except onnx.checker.ValidationError as error:
        raise BuildFailedError(f"{where}: the ONNX checker refuses the graph ({str(error).splitlines()[0]})") from error
    model = onnx.load(str(file), load_external_data=False)
    opset = {entry.domain: entry.version for entry in model.opset_import}
    if opset.get("", 0) > MAX_OPSET:
        raise BuildFailedError(f"{where}: the graph has opset {opset.get('')}", wanted=f"at most {MAX_OPSET}, which TensorRT 10.3 reads")
    for wanted, got in ((spec.inputs, model.graph.input), (spec.outputs, model.graph.output)):
        found = tuple(map(tensor_spec, got))
        if found != wanted:
            raise BuildFailedError(f"{where}: the graph has {', '.join(map(_words, found))}", wanted=", ".join(map(_words, wanted)))
    wide = [value.name for value in model.graph.value_info if value.type.tensor_type.elem_type == TensorProto.DOUBLE]
    wide += [tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.DOUBLE]
    if wide:
        raise BuildFailedError(f"{where}: {wide[0]} is float64", wanted="float32", fix="keep Python floats and NumPy arrays out of the forward pass")
    refused = refusals(model)
    if refused:
        more = f" and {len(refused) - 1} more" if len(refused) > 1 else ""
        raise BuildFailedError(f"{where}: {refused[0]}{more}")


def _words(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.dtype} [{', '.join(map(str, spec.shape))}]"


def tensor_spec(value: onnx.ValueInfoProto) -> TensorSpec:
    """Name, dtype and shape of a graph input or output.

    Raises:
        ValueError: if it is no tensor of a kind that can cross a stage boundary.
    """
    tensor = value.type.tensor_type
    sizes = [dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or f"free{axis}") for axis, dim in enumerate(tensor.shape.dim)]
    return TensorSpec(value.name, helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, tuple(sizes))


def check_norms(graph: ir.Graph, module: nn.Module, stage: str) -> dict[str, int]:
    """Every norm layer of the module tree must be one recognised operator per call: a decomposed one overflows in FP16.

    Batch norms may vanish into the convolution before them. Returns the count by operator.

    Raises:
        BuildFailedError: naming the module whose norm was decomposed.
    """
    nodes: dict[str, list[str]] = {}
    for node in graph:
        nodes.setdefault(node.name.rpartition("/")[0], []).append(node.op_type)
    counted: Counter[str] = Counter()
    for ops in nodes.values():
        counted.update(op for op in ops if op in NORM_OPS)
    for path, layer in module.named_modules():
        if "Norm" not in type(layer).__name__ or isinstance(layer, BATCH_NORMS) or next(layer.children(), None) is not None:
            continue
        ops = nodes.get(path, [])
        if any(op.startswith("Reduce") for op in ops) and not any(op in NORM_OPS for op in ops):
            raise BuildFailedError(
                f"stage {stage}: the norm {path} ({type(layer).__name__}) became {', '.join(ops)}",
                wanted=f"one of {', '.join(NORM_OPS[:2])}",
                fix="write it with torch.nn.functional.layer_norm or group_norm",
            )
    return dict(sorted(counted.items()))
