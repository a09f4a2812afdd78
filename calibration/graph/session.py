"""Running a stage graph in ONNX Runtime, on a CUDA card where there is one, with what was changed in it and the weights where they lie."""

from __future__ import annotations

import os

import numpy as np

from ...runtime.errors import AccuracyError, BuildFailedError, FathomError
from ...runtime.onnxruntime.optimisers import DISABLED, EXACT_INT8
from ...runtime.onnxruntime.threads import threads_asked
from .softmax import spread_softmax
from .stage_graph import StageGraph

FOLD_BELOW_NBYTES = 256 << 20  # folding constants of larger stages would hold their weights twice


class StageSession:
    """A stage that runs.

    Args:
        graph: the stage; outputs can be added to it before.
        real_int8: let ONNX Runtime use its INT8 kernels; otherwise Q/DQ only rounds, and the sums are FP32.
        optimise: let it fuse; off, every tensor is what its node computes.
        as_written: run the nodes in the order of the graph.

    Raises:
        BuildFailedError: if ONNX Runtime refuses the graph.
    """

    def __init__(self, graph: StageGraph, *, real_int8: bool = False, optimise: bool = True, as_written: bool = False):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads_asked()
        level = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_EXTENDED if optimise else level.ORT_ENABLE_BASIC
        if as_written:
            options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
        options.enable_cpu_mem_arena = False  # an arena keeps its peak for ever
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.path.realpath(graph.folder))
        options.add_session_config_entry(*(EXACT_INT8 if real_int8 else ("session.disable_quant_qdq", "1")))
        disabled = [*DISABLED, *(["ConstantFolding"] if graph.weights_nbytes() > FOLD_BELOW_NBYTES else [])]
        try:
            model, large = graph.with_large_apart()
            self._large = [onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(make())) for make in large.values()]  # read where they are
            options.add_external_initializers([*large], self._large)
            if (on := providers()) == ["CPUExecutionProvider"]:
                spread_softmax(model)
            self._session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=on, disabled_optimizers=disabled)
        except FathomError:
            raise
        except Exception as error:  # ONNX Runtime raises many kinds
            raise BuildFailedError(f"ONNX Runtime refuses the stage {graph.model.graph.name}: {str(error).splitlines()[0][:400]}") from error
        self.inputs = [value.name for value in self._session.get_inputs()]
        self.outputs = [value.name for value in self._session.get_outputs()]

    def run(self, feeds: dict[str, np.ndarray], outputs: list[str] | None = None) -> dict[str, np.ndarray]:
        """Values of some outputs (all by default) for a dict that holds at least the inputs."""
        names = outputs or self.outputs
        try:
            values = self._session.run(names, {name: feeds[name] for name in self.inputs})
        except Exception as error:
            raise BuildFailedError(f"ONNX Runtime could not run a stage: {str(error).splitlines()[0][:400]}") from error
        return dict(zip(names, values, strict=True))


def providers() -> list:
    """What runs the stages: a CUDA card in true FP32 (no TF32) if this ONNX Runtime has its provider, and the CPU."""
    import onnxruntime

    cuda = [("CUDAExecutionProvider", {"use_tf32": "0"})] if "CUDAExecutionProvider" in onnxruntime.get_available_providers() else []
    return [*cuda, "CPUExecutionProvider"]


def check_finite(stage: str, tensors: dict[str, np.ndarray], photo: str = "") -> None:
    """Refuse what no working stage puts out.

    Args:
        photo: name of the one that went in, for the message.

    Raises:
        AccuracyError: naming the stage, the photo and the first tensor with NaN or infinity in it, or that is the same number everywhere.
    """
    shown = f" (photo {photo})" if photo else ""
    for name, values in tensors.items():
        if not np.issubdtype(values.dtype, np.floating):
            continue
        low, high = float(values.min()), float(values.max())
        if not np.isfinite(low) or not np.isfinite(high):
            bad = int(values.size - np.isfinite(values).sum())
            was = f"stage {stage}: the output {name} holds {bad} NaN or infinite values of {values.size}{shown}"
            raise AccuracyError(was, wanted="finite numbers everywhere")
        if low == high and values.size > 1:
            raise AccuracyError(f"stage {stage}: the output {name} is {low:g} everywhere{shown}", wanted="values that depend on the picture")
