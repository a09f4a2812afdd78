"""What rounding does to a typed stage: to its weights, which is the same in every engine, and to its activations, which hangs on the engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from ...runtime.artefact.spec import StageSpec, TensorSpec
from ...runtime.certificate.probes import StageProbes, pack_probes, sample, unpack_probes
from ...runtime.errors import BuildFailedError
from ...runtime.onnxruntime.threads import threads_asked
from ..child.child import Progress, run_child
from ..graph.inner_graphs import inner_graphs
from ..onnxruntime.build import load_onnxruntime, refusal

FP32 = TensorProto.FLOAT
NARROW = {TensorProto.FLOAT16: 2.0**-11, TensorProto.BFLOAT16: 2.0**-8}  # and the share of a number that rounding takes at most
STORED = (1.0, 0.6, 0.4, 0.2)  # shares of a graph's tensors that engines store: the others stay inside operators they join
CASES = 4  # inputs on which each of them is tried
JITTER = 0.01  # by which the inputs differ, over their root mean square: no rounding falls as before


def write_typed_probes(
    graphs: dict[str, tuple[StageSpec, Path]], golden: dict[str, np.ndarray], probes: Path, target: Path, on_progress: Progress | None = None
) -> None:
    """Write the probes of a plan: its bundle's, with what rounding does to its typed graphs.

    Args:
        graphs: spec and typed graph of each stage.
        golden: what the plan's stages are held against (see ``golden_tensors``).
        probes: the bundle's file.
        target: file to write; the golden tensors are beside it for a while.
        on_progress: see ``run_child``.

    Raises:
        BuildFailedError, OutOfMemoryError: if the child fails.
    """
    from safetensors.numpy import save_file

    case = target.with_name(f"{target.name}.golden")
    save_file(golden, str(case))
    stages = [{"name": name, "file": str(file), "inputs": _told(spec.inputs), "outputs": _told(spec.outputs)} for name, (spec, file) in graphs.items()]
    request = {"task": "rounding", "stages": stages, "golden": str(case), "probes": str(probes), "target": str(target)}
    try:
        run_child(request, what="what rounding does", on_progress=on_progress)
    finally:
        case.unlink(missing_ok=True)


def _told(tensors: tuple[TensorSpec, ...]) -> list[dict[str, str]]:
    return [{"name": tensor.name, "dtype": tensor.dtype} for tensor in tensors]


def measure_rounding(request: dict[str, Any], send: Callable[..., None]) -> dict[str, Any]:
    """Give the probes of an FP32 bundle what is expected of typed graphs; the task ``rounding`` of a child process.

    Args:
        request: ``stages`` ({``name``, ``file`` (the typed graph), ``inputs``, ``outputs``}; those are {``name``, ``dtype``} of that graph),
            ``golden`` (safetensors file with what the plan's stages are held against), ``probes`` (the bundle's), ``target`` (file to write).
        send: sends one event to the parent.

    Returns:
        ``measured``: names of the stages of which it is known now. The others keep what they had: control flow, or a graph that ONNX Runtime does not run.
    """
    from safetensors.numpy import load_file

    ort, golden = load_onnxruntime(), load_file(request["golden"])
    probes = unpack_probes(Path(request["probes"]).read_bytes())
    stages = [stage for stage in request["stages"] if stage["name"] in probes]
    measured = []
    for number, stage in enumerate(stages):
        send("progress", what=f"{stage['name']}: what rounding does", done=number / len(stages))
        inputs = {tensor["name"]: np.ascontiguousarray(golden[tensor["name"]], dtype=tensor["dtype"]) for tensor in stage["inputs"]}
        outputs = {tensor["name"]: golden[tensor["name"]] for tensor in stage["outputs"] if np.dtype(tensor["dtype"]).kind == "f"}
        try:
            found = with_rounding(ort, onnx.load(stage["file"]), inputs, outputs, probes[stage["name"]])
        except BuildFailedError:
            found = None
        if found is not None:
            probes[stage["name"]] = found
            measured.append(stage["name"])
    Path(request["target"]).write_bytes(pack_probes(probes))
    return {"measured": measured}


def with_rounding(ort: Any, typed: onnx.ModelProto, inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray], probes: StageProbes) -> StageProbes | None:
    """The probes of a stage for its typed graph; None if that graph cannot be looked at so.

    Args:
        ort: the package ``onnxruntime``.
        typed: the graph, its weights in it.
        inputs: golden, in the types of the graph.
        outputs: what the stage is held against, by name in the order of its spec.
        probes: of the FP32 stage.

    Raises:
        BuildFailedError, OutOfMemoryError: if ONNX Runtime refuses or fails to run the graph in FP32.
    """
    if any(inner_graphs(node) for node in typed.graph.node):
        return None
    rng = np.random.default_rng(0)
    cases = [inputs, *({name: _moved(value, rng) for name, value in inputs.items()} for _ in range(CASES - 1))]
    exact = _run(ort, widened(typed), cases, outputs)
    noises = []
    for share in STORED:
        noises += [one - true for one, true in zip(_run(ort, widened(typed, share, rng), cases, outputs), exact, strict=True)]
    lines = np.stack([exact[0], *noises])
    kinds = {tensor.data_type for tensor in typed.graph.initializer} & NARROW.keys()
    rounding = max((NARROW[kind] for kind in kinds), default=0.0) / NARROW[TensorProto.FLOAT16]
    return probes.measured(lines[0], lines[1:], rounding) if np.isfinite(lines).all() and lines.shape[1] == probes.lines.shape[1] else None


def widened(typed: onnx.ModelProto, share: float = 0.0, rng: np.random.Generator | None = None, anew: float = 0.0) -> onnx.ModelProto:
    """A typed graph that computes in FP32 with the weights it has.

    Args:
        typed: its weights in it.
        share: of the tensors that are FP16 or BF16, rounded to it all the same.
        rng: chooses them.
        anew: share of the weights that are rounded once more.
    """
    model = onnx.ModelProto.FromString(typed.SerializeToString())
    graph = model.graph
    values = [*graph.input, *graph.output, *graph.value_info]
    kinds = {value.name: value.type.tensor_type.elem_type for value in values}
    for value in values:
        if value.type.tensor_type.elem_type in NARROW:
            value.type.tensor_type.elem_type = FP32
    for tensor in graph.initializer:
        if tensor.data_type in NARROW:
            array = numpy_helper.to_array(tensor).astype(np.float32)
            if rng is not None and array.size > 1 and rng.random() < anew:
                array = np.float32(array * (1 + NARROW[tensor.data_type] * rng.uniform(-1, 1, array.shape)))
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    kept, after = {value.name for value in graph.output}, []
    renamed: dict[str, str] = {}
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = renamed.get(name, name)
        _widen_attributes(node)
        after.append(node)
        for name in node.output:
            if rng is not None and name not in kept and kinds.get(name) in NARROW and rng.random() < share:
                renamed[name] = f"{name}:rounded"
                after.append(helper.make_node("Cast", [name], [f"{name}:narrow"], to=kinds[name]))
                after.append(helper.make_node("Cast", [f"{name}:narrow"], [renamed[name]], to=FP32))
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in after]
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def _widen_attributes(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.name in ("to", "dtype", "output_dtype") and attribute.i in NARROW:
            attribute.i = FP32
        elif attribute.type == AttributeProto.TENSOR and attribute.t.data_type in NARROW:
            attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float32), attribute.t.name))


def _moved(value: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An input a little different; integers and single numbers as they are."""
    if value.dtype.kind != "f" or value.size == 1:
        return value
    size = JITTER * float(np.sqrt(np.mean(value.astype(np.float64) ** 2)))
    return (value.astype(np.float32) + np.float32(size) * rng.standard_normal(value.shape, np.float32)).astype(value.dtype)


def _run(ort: Any, model: onnx.ModelProto, cases: list[dict[str, np.ndarray]], outputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """What ``sample`` gives for each case."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads_asked()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # it would join operators and leave roundings out
    options.enable_cpu_mem_arena = False
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        wide = {value.name: np.float32 if value.type == "tensor(float)" else None for value in session.get_inputs()}
        found = []
        for case in cases:
            feeds = {name: np.ascontiguousarray(value, dtype=wide[name]) for name, value in case.items() if name in wide}
            found.append(sample(session.run(list(outputs), feeds), list(outputs.values())))
        return found
    except Exception as error:
        raise refusal("ONNX Runtime does not run a typed graph in FP32", error) from error
