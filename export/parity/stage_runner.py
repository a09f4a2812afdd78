"""Runs the stages of a bundle with ONNX Runtime, one session at a time, and compares every tensor with the golden one.

In the child process: opening a session on a converted graph is one of the places where native code has crashed, and a process that
ends gives all its memory back.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ...runtime.certificate.comparison import compare_output, find_problem
from ...runtime.certificate.probes import StageProbes, pack_probes
from ...runtime.errors import AccuracyError
from ...runtime.onnxruntime.optimisers import DISABLED, EXACT_INT8
from ...runtime.onnxruntime.threads import threads_asked
from ..onnxruntime.build import load_onnxruntime, refusal
from ..onnxruntime.half_sums import sum_in_fp32
from ..onnxruntime.rewrites import GATE_PASSES, rewrite
from .weight_probes import probe_stage


def run_stages(request: dict[str, Any], send: Callable[..., None]) -> dict[str, Any]:
    """Run all stages, chained (their own inputs) and isolated (golden inputs).

    Args:
        request: ``stages`` ({``name``, ``file`` (path of the graph, its weights beside it), ``inputs``, ``outputs``} in running order;
            inputs and outputs are {``name``, ``dtype``}), ``golden`` (safetensors file), ``output`` (name of the depth tensor),
            ``isolated`` (False: the chain only), ``engines`` (True: the graphs are ONNX Runtime engines, run as they will be run),
            ``save`` (``""``, or a file for the chained tensors), ``probes`` (``""``, or a file for what 1 % of every weight does).
        send: sends one event to the parent.

    Returns:
        ``rows`` (see ``parity.ParityRow``), ``depth`` (see ``compare_output``) and the ONNX Runtime ``version``.

    Raises:
        BuildFailedError, OutOfMemoryError: if ONNX Runtime refuses or fails to run a stage.
        AccuracyError: if a golden tensor is missing, not finite or constant.
    """
    from safetensors.numpy import load_file, save_file

    ort = load_onnxruntime()
    golden = load_file(request["golden"])
    made = {tensor["name"] for stage in request["stages"] for tensor in stage["outputs"]}
    own: dict[str, np.ndarray] = {}
    rows: list[dict[str, Any]] = []
    probes: dict[str, StageProbes] = {}
    for number, stage in enumerate(request["stages"]):
        name = stage["name"]
        send("progress", what=f"{name}: comparing", done=number / len(request["stages"]))
        _check_golden(golden, stage)
        session = _session(ort, Path(stage["file"]), name, request["engines"])
        inputs = {tensor["name"]: golden[tensor["name"]] for tensor in stage["inputs"]}
        chained = _run(session, stage, {key: own.get(key, value) for key, value in inputs.items()})
        if request["isolated"]:
            fed = any(key in made for key in inputs)
            alone = _run(session, stage, inputs) if fed else chained
            rows += [_row(name, "isolated", key, value, golden[key]) for key, value in alone.items()]
        rows += [_row(name, "chained", key, value, golden[key]) for key, value in chained.items()]
        del session
        if request["probes"]:
            send("progress", what=f"{name}: trying its weights", done=(number + 0.5) / len(request["stages"]))
            feeds = {tensor["name"]: np.ascontiguousarray(inputs[tensor["name"]], tensor["dtype"]) for tensor in stage["inputs"]}
            outputs = [tensor["name"] for tensor in stage["outputs"] if np.dtype(tensor["dtype"]).kind == "f"]
            if (found := probe_stage(ort, Path(stage["file"]), feeds, outputs)) is not None:
                probes[name] = found
        own.update(chained)
        wanted = {t["name"] for later in request["stages"][number + 1 :] for t in later["inputs"]} | {request["output"]}
        own = own if request["save"] else {key: value for key, value in own.items() if key in wanted}
    if request["save"]:
        save_file(own, request["save"])
    if probes:
        Path(request["probes"]).write_bytes(pack_probes(probes))
    return {"rows": rows, "depth": compare_output(own[request["output"]], golden[request["output"]]), "version": ort.__version__}


def first_run(request: dict[str, Any], send: Callable[..., None]) -> dict[str, Any]:
    """Run a network that was made elsewhere once, as it is, and keep its output as golden tensor: what our own passes make of it is held against that.

    Args:
        request: ``stage``, ``file``, ``golden`` (safetensors file that holds the input; the output is added), ``output`` (its name).
        send: sends one event to the parent.

    Returns:
        ``shape`` of the output.

    Raises:
        BuildFailedError, OutOfMemoryError: if ONNX Runtime cannot run the graph.
        AccuracyError: if the output is not finite or constant.
    """
    from safetensors.numpy import load_file, save_file

    ort = load_onnxruntime()
    send("progress", what="running it once", done=0.5)
    tensors = load_file(request["golden"])
    inputs = [{"name": name, "dtype": values.dtype.name} for name, values in tensors.items()]
    stage = {"name": request["stage"], "inputs": inputs, "outputs": [{"name": request["output"]}]}
    values = _run(_session(ort, Path(request["file"]), request["stage"], False, passes=()), stage, tensors)[request["output"]]
    if problem := find_problem(values):
        raise AccuracyError(f"the output {request['output']} is {problem}", wanted="finite numbers that differ", fix="check the file and its contract")
    save_file({**tensors, request["output"]: values}, request["golden"])
    return {"shape": list(values.shape)}


def inner_tensors(request: dict[str, Any], send: Callable[..., None]) -> dict[str, Any]:
    """Keep what a graph gives inside for the golden inputs.

    Args:
        request: ``stage``, ``file``, ``golden``, ``inputs`` ({``name``, ``dtype``}), ``tensors`` (name to keep it under -> name in the graph), ``save``.
        send: sends one event to the parent.

    Returns:
        ``nbytes`` of all of them.

    Raises:
        BuildFailedError, OutOfMemoryError: if ONNX Runtime refuses or fails to run the graph.
    """
    from safetensors.numpy import load_file, save_file

    ort, file = load_onnxruntime(), Path(request["file"])
    send("progress", what=f"{request['stage']}: tensors at the cuts", done=0.5)
    model = onnx.load(str(file), load_external_data=False)
    names = sorted(set(request["tensors"].values()))
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    opened = file.with_name(f"{file.stem}.inner.onnx")
    opened.write_bytes(model.SerializeToString())
    stage = {"name": request["stage"], "inputs": request["inputs"], "outputs": [{"name": name} for name in names]}
    found = _run(_session(ort, opened, request["stage"], False), stage, load_file(request["golden"]))
    kept = {name: found[inner] for name, inner in request["tensors"].items()}
    save_file(kept, request["save"])
    return {"nbytes": sum(values.nbytes for values in kept.values())}


def compare(got: np.ndarray, wanted: np.ndarray) -> dict[str, float | str]:
    """``max_abs``, ``rmse``, ``relative`` (max_abs over the largest absolute golden value) and ``problem`` (``""`` if there is none)."""
    if got.shape != wanted.shape:
        return {"max_abs": 0.0, "rmse": 0.0, "relative": 0.0, "problem": f"shape {list(got.shape)}, wanted {list(wanted.shape)}"}
    problem = find_problem(got)
    if problem.startswith("not finite"):
        return {"max_abs": 0.0, "rmse": 0.0, "relative": 0.0, "problem": problem}
    difference = got.astype(np.float64) - wanted.astype(np.float64)
    greatest = float(np.abs(difference).max()) if difference.size else 0.0
    scale = float(np.abs(wanted.astype(np.float64)).max()) if wanted.size else 0.0
    relative = greatest / scale if scale else (0.0 if greatest == 0 else 1e30)
    return {"max_abs": greatest, "rmse": float(np.sqrt(np.mean(difference**2))) if difference.size else 0.0, "relative": relative, "problem": problem}


def _check_golden(golden: dict[str, np.ndarray], stage: dict[str, Any]) -> None:
    for tensor in stage["inputs"] + stage["outputs"]:
        if tensor["name"] not in golden:
            raise AccuracyError(f"stage {stage['name']}: the network's boundaries lack the tensor {tensor['name']}", wanted="every boundary tensor")
    for tensor in stage["outputs"]:
        if problem := find_problem(golden[tensor["name"]]):
            raise AccuracyError(f"stage {stage['name']}: already in PyTorch {tensor['name']} is {problem}", fix="check the weights")


def _session(ort, file: Path, stage: str, engine: bool, passes=GATE_PASSES):
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads_asked()
    options.log_severity_level = 3
    options.add_session_config_entry(*EXACT_INT8)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(file.parent.resolve()))
    if not engine:
        options.enable_cpu_mem_arena = False  # an arena keeps the largest attention map for good
        options.enable_mem_pattern = False
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.add_session_config_entry("session.disable_prepacking", "1")  # the weights stay mapped instead of being copied
    try:
        model = onnx.ModelProto.FromString(file.read_bytes())
        if not engine:
            rewrite(model, passes)
        apart = ["ConstantFolding"] if sum_in_fp32(model) else []  # it would keep every FP16 weight in FP32 as well
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"], disabled_optimizers=[*DISABLED, *apart])
    except Exception as error:
        raise refusal(f"stage {stage}: ONNX Runtime refuses the graph", error) from error


def _run(session, stage: dict[str, Any], inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    feed = {tensor["name"]: np.ascontiguousarray(inputs[tensor["name"]], dtype=tensor["dtype"]) for tensor in stage["inputs"]}
    names = [tensor["name"] for tensor in stage["outputs"]]
    try:
        return dict(zip(names, session.run(names, feed), strict=True))
    except Exception as error:
        raise refusal(f"stage {stage['name']}: ONNX Runtime cannot run the graph", error) from error


def _row(stage: str, mode: str, tensor: str, got: np.ndarray, wanted: np.ndarray) -> dict[str, Any]:
    return {"stage": stage, "mode": mode, "tensor": tensor, **compare(got, wanted)}
