"""One FP32 stage to an engine for ONNX Runtime: the optimised graph as bytes, and its weights as a table of extents in one file.

The weights are mapped at run time and handed over by name, so that opening a plan copies nothing that is not repacked for the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from ...runtime.artefact.spec import DTYPES, TENSOR_NAME
from ...runtime.errors import BuildFailedError, FathomError, OutOfMemoryError, missing_package, tells_of_no_memory
from ...runtime.onnxruntime.optimisers import DISABLED
from ...runtime.onnxruntime.threads import threads_asked
from ..graph.inner_graphs import all_names, rename
from ..graph.onnx_weights import EXTERNAL_FROM_NBYTES, WeightsWriter, point_outside, read_array
from .rewrites import rewrite


def load_onnxruntime():
    """The ``onnxruntime`` package.

    Raises:
        EnvironmentMismatchError: if it is missing.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise missing_package("onnxruntime", "build", "ONNX Runtime optimises and runs the graphs") from error
    return onnxruntime


def refusal(was: str, error: Exception) -> FathomError:
    """The error for whatever ONNX Runtime raised: its own kinds share no base class, and none says that memory ran out.

    Args:
        was: what did not go, as a clause.
    """
    words = " ".join(str(error).split())[:600]
    if tells_of_no_memory(error):
        return OutOfMemoryError(f"{was}: no memory is left ({words})", fix="free memory, or use a machine with more")
    return BuildFailedError(f"{was} ({words})")


def optimise(request: dict[str, Any], send: Callable[..., None]) -> dict[str, Any]:
    """Optimise one stage offline, as far as that does not depend on the processor.

    Args:
        request: ``stage``, ``source`` (ONNX), ``target`` (graph to write), ``weights`` (file to write; the graph calls it by its base
            name), ``scratch`` (folder), ``cuda`` (for the CUDA provider: the graph stays as it is, because what ONNX Runtime makes
            of it for a CPU suits no GPU, FP16 least of all, and the provider optimises it when it is opened).
        send: sends one event to the parent.

    Returns:
        ``version``, ``initializers`` (name, dtype, shape, offset) and ``rewrites`` (how often each pass of ``rewrites`` did something).

    Raises:
        BuildFailedError, OutOfMemoryError: if ONNX Runtime refuses the graph.
    """
    stage, source, scratch = request["stage"], Path(request["source"]), Path(request["scratch"])
    ort = load_onnxruntime()
    send("progress", what=f"{stage}: reading the graph", done=0.0)
    model = onnx.load(str(source), load_external_data=False)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads_asked()
    if request.get("cuda"):
        rewrites, optimised = {}, source
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    else:
        rewrites, optimised = rewrite(model), scratch / "optimised.onnx"
        # Beyond this level, weights take this processor's layout.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(optimised)
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False
    for key, value in (
        ("session.disable_prepacking", "1"),
        ("session.model_external_initializers_file_folder_path", str(source.parent.resolve())),
        ("session.optimized_model_external_initializers_file_name", "optimised.data"),
        ("session.optimized_model_external_initializers_min_size_in_bytes", str(EXTERNAL_FROM_NBYTES)),
    ):
        options.add_session_config_entry(key, value)
    send("progress", what=f"{stage}: optimising", done=0.2)
    try:
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"], disabled_optimizers=DISABLED)
    except Exception as error:
        raise refusal(f"stage {stage}: ONNX Runtime refuses the graph", error) from error
    send("progress", what=f"{stage}: writing", done=0.7)
    table = _store(optimised, Path(request["target"]), Path(request["weights"]))
    send("progress", what=f"{stage}: written", done=1.0)
    return {"version": ort.__version__, "initializers": table, "rewrites": rewrites}


def _store(optimised: Path, target: Path, weights: Path) -> list[dict[str, Any]]:
    """Move the larger initialisers out of the graph, tensor by tensor."""
    model = onnx.load(str(optimised), load_external_data=False)
    table = []
    kinds = {dtype: name for name, dtype in DTYPES.items()}
    taken = all_names(model.graph)
    with WeightsWriter(weights) as writer:
        for index, tensor in enumerate(model.graph.initializer):
            values = read_array(tensor, optimised.parent)
            if values.nbytes < EXTERNAL_FROM_NBYTES or values.dtype not in kinds or values.ndim > 8:
                if tensor.data_location == onnx.TensorProto.EXTERNAL:
                    tensor.CopyFrom(onnx.numpy_helper.from_array(values.copy(), tensor.name))
                continue
            if not TENSOR_NAME.fullmatch(tensor.name):
                old, tensor.name = tensor.name, _free_name(f"weight_{index}", taken)
                rename(model.graph, old, tensor.name)
            extent = writer.add(values)
            point_outside(tensor, weights.name, extent)
            table.append({"name": tensor.name, "dtype": kinds[values.dtype], "shape": list(values.shape), "offset": extent.offset})
    for item in [model, model.graph, *model.graph.node]:
        item.ClearField("doc_string")
    target.write_bytes(model.SerializeToString(deterministic=True))
    return table


def _free_name(name: str, taken: set[str]) -> str:
    """``name``, or what comes nearest to it and is not taken yet; taken from now on."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name
