"""Stages on ONNX Runtime. The weights of a plan are handed over where they lie in the mapped file.

Measured with 315 MB of weights, half of them in MatMul and half in Conv (ONNX Runtime 1.31, one thread): memory that is not
file-backed settles at 340 MB, all of it ONNX Runtime's own packed copies, and peaks 170 MB lower than with weights given tensor by tensor. Without
packing it would be 180 MB, but every run takes a tenth longer, so packing stays on.
"""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from ..artefact.manifest import BundleManifest
from ..artefact.spec import DTYPES, StageSpec, TensorSpec
from ..errors import EnvironmentMismatchError, FathomError, InputError, OutOfMemoryError, missing_package
from ..sequences import zip_equal

if TYPE_CHECKING:
    from ..artefact.bundle import BundleDirectory
    from ..artefact.plan import PlanFile

ORT_TYPES = {f"tensor({word})": name for name, word in zip_equal(DTYPES, ("float", "float16", "int64", "int32", "uint8", "bool"))}
WEIGHTS = "weights"  # what graphs in plans call the file of their weights; its base name is understood too
BROKEN_GRAPH = ("InvalidGraph", "InvalidProtobuf", "NoSuchFile", "InvalidArgument")


class OnnxRuntimeBackend:
    """See ``backend.Backend``.

    Args:
        artefact: an open plan for ``onnxruntime``, or a bundle.
        device: ``cpu``, or ``cuda`` for ONNX Runtime's CUDA provider.
        threads: CPU threads of one operator; None for all cores.
        index: which GPU.

    Raises:
        EnvironmentMismatchError: if ONNX Runtime is missing, lacks the provider, or cannot execute a graph.
        InputError: if a graph is broken.
        OutOfMemoryError: if the weights do not fit.
    """

    def __init__(self, artefact: PlanFile | BundleDirectory, device: str = "cpu", threads: int | None = None, index: int = 0):
        self._ort = _import_onnxruntime()
        self.stages: tuple[StageSpec, ...] = artefact.manifest.specs()
        self.concurrent, self.remarks = 1, ()
        self._device, self._threads, self._index = device, threads, index
        self._sessions: list[Any] = []
        self._views: list[memoryview] = []  # weights that sessions read from the mapped plan
        self._options: Any = None
        self._interrupted = False
        self._last_use = {tensor.name: index for index, stage in enumerate(self.stages) for tensor in stage.inputs}
        self._made = {tensor.name for stage in self.stages for tensor in stage.outputs}
        self._ends = frozenset(self._made - set(self._last_use))
        try:
            for stage in artefact.manifest.stages:
                self._sessions.append(self._open(artefact, stage))
                _give_back_free_memory()
        except BaseException:
            self.close()
            raise

    def _open(self, artefact: PlanFile | BundleDirectory, stage: Any) -> Any:
        ort, options = self._ort, self._ort.SessionOptions()
        options.log_severity_level = 4  # every failure is an exception that we report
        if self._threads:
            options.intra_op_num_threads = self._threads
        providers: list[Any] = ["CPUExecutionProvider"]
        if self._device == "cuda":
            if "CUDAExecutionProvider" not in ort.get_available_providers():
                raise EnvironmentMismatchError(
                    f"ONNX Runtime {ort.__version__} here has no CUDA provider (it has {', '.join(ort.get_available_providers())})",
                    wanted="a build of ONNX Runtime for CUDA",
                    fix="pip install onnxruntime-gpu, or leave out --device cuda",
                )
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": str(self._index)}))
        try:
            if isinstance(artefact.manifest, BundleManifest):
                session = ort.InferenceSession(str(artefact.path(stage.file)), options, providers=providers)
            else:
                if stage.weights:
                    self._add_weights(artefact, stage, options)
                graph = artefact.view(stage.engine)
                self._views.append(graph)
                session = ort.InferenceSession(bytes(graph), options, providers=providers)
        except FathomError:
            raise
        except MemoryError as error:
            raise OutOfMemoryError(f"no memory is left for stage {stage.spec.name}", fix="free memory") from error
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise self._cannot_open(stage.spec.name, error) from error
        if self._device == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
            raise EnvironmentMismatchError(
                "ONNX Runtime could not start its CUDA provider and fell back to the CPU", wanted="a working CUDA installation", fix="leave out --device cuda"
            )
        _check_session(session, stage.spec)
        return session

    def _add_weights(self, plan: PlanFile, stage: Any, options: Any) -> None:
        """Let the session read its weights from the mapped plan."""
        view = plan.view(stage.weights)
        self._views.append(view)
        if hasattr(options, "add_external_initializers_from_files_in_memory"):
            options.add_session_config_entry("session.use_external_initializer_file_buffers_directly", "1")
            names = [WEIGHTS, PurePosixPath(stage.weights).name]
            options.add_external_initializers_from_files_in_memory(names, [view] * 2, [len(view)] * 2)
            return
        names, values = [], []  # releases before that: tensor by tensor
        for item in stage.initializers:
            count = int(np.prod(item.tensor.shape, dtype=np.int64))
            array = np.frombuffer(view, DTYPES[item.tensor.dtype], count, item.offset).reshape(item.tensor.shape)
            names.append(item.tensor.name)
            values.append(self._ort.OrtValue.ortvalue_from_numpy(array))
        options.add_external_initializers(names, values)

    def _cannot_open(self, stage: str, error: Exception) -> FathomError:
        words = _short(error)
        if _is_out_of_memory(words):
            return OutOfMemoryError(f"no memory is left for stage {stage} ({words})", fix="free memory")
        if type(error).__name__ in BROKEN_GRAPH:
            return InputError(f"the graph of stage {stage} is broken ({words})", fix="build or export it again")
        return EnvironmentMismatchError(
            f"ONNX Runtime {self._ort.__version__} cannot load stage {stage} ({words})",
            wanted="an ONNX Runtime that knows its operators",
            fix="pip install -U onnxruntime",
        )

    def run(self, inputs: dict[str, np.ndarray], keep: frozenset[str] = frozenset()) -> dict[str, np.ndarray]:
        """See ``backend.Backend.run``."""
        if not self._sessions:
            raise ValueError("the backend is closed")
        if not keep <= self._made:
            raise ValueError(f"no stage makes {sorted(keep - self._made)}")
        keep = keep or self._ends
        symbols: dict[str, int] = {}
        values = self._bind_inputs(inputs, symbols)
        result: dict[str, np.ndarray] = {}
        self._options = self._ort.RunOptions()
        self._options.log_severity_level = 4
        self._options.terminate = self._interrupted
        for index, (stage, session) in enumerate(zip_equal(self.stages, self._sessions)):
            feed = {tensor.name: values[tensor.name] for tensor in stage.inputs}
            wanted = [tensor for tensor in stage.outputs if tensor.name in keep or self._last_use.get(tensor.name, -1) > index]
            if not wanted:
                continue
            for tensor, value in zip_equal(wanted, self._run_stage(stage.name, session, [t.name for t in wanted], feed)):
                _check_made(stage.name, tensor, value, symbols)
                if tensor.name in keep:
                    result[tensor.name] = value.numpy()
                if self._last_use.get(tensor.name, -1) > index:
                    values[tensor.name] = value
            for name in [name for name in values if self._last_use[name] <= index]:
                del values[name]
        return result

    def _bind_inputs(self, inputs: dict[str, np.ndarray], symbols: dict[str, int]) -> dict[str, Any]:
        specs = {tensor.name: tensor for stage in self.stages for tensor in stage.inputs if tensor.name not in self._made}
        if set(inputs) != set(specs):
            raise ValueError(f"inputs {sorted(inputs)}, wanted exactly {sorted(specs)}")
        values = {}
        for name, array in inputs.items():
            spec = specs[name]
            if array.dtype != DTYPES[spec.dtype]:
                raise ValueError(f"tensor {name} is {array.dtype}, wanted {spec.dtype}")
            spec.bind(array.shape, symbols)
            values[name] = self._ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
        return values

    def _run_stage(self, stage: str, session: Any, names: list[str], feed: dict[str, Any]) -> list[Any]:
        try:
            return session.run_with_ort_values(names, feed, self._options)
        except Exception as error:
            words = _short(error)
            if _is_out_of_memory(words):
                raise OutOfMemoryError(f"no memory is left in stage {stage} ({words})", fix="use a smaller --batch, or free memory") from error
            raise FathomError(f"stage {stage} failed in ONNX Runtime {self._ort.__version__} ({words})") from error

    def interrupt(self) -> None:
        """See ``backend.Backend.interrupt``."""
        self._interrupted = True
        if self._options is not None:
            self._options.terminate = True

    def close(self) -> None:
        """See ``backend.Backend.close``."""
        self._sessions.clear()
        while self._views:
            with suppress(BufferError):  # an array still looks at it; it goes with the array
                self._views.pop().release()
        _give_back_free_memory()


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_package("onnxruntime", "", "ONNX Runtime, which executes this artefact") from error
    return onnxruntime


def _check_session(session: Any, spec: StageSpec) -> None:
    """The graph must take and make what the manifest says."""
    for what, nodes, tensors in (("takes", session.get_inputs(), spec.inputs), ("makes", session.get_outputs(), spec.outputs)):
        found = {node.name: ORT_TYPES.get(node.type, node.type) for node in nodes}
        wanted = {tensor.name: tensor.dtype for tensor in tensors}
        if found != wanted:
            differing = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
            name = differing[0]
            more = f", and {len(differing) - 1} more differ" if len(differing) > 1 else ""
            was = f"the graph of stage {spec.name} {what} {name} as {found.get(name, 'nothing')}{more}"
            raise InputError(was, wanted=f"{wanted.get(name, 'nothing')}, as the manifest says", fix="build or export it again")


def _check_made(stage: str, tensor: TensorSpec, value: Any, symbols: dict[str, int]) -> None:
    try:
        tensor.bind(tuple(value.shape()), symbols)
    except ValueError as error:
        raise InputError(f"stage {stage}: {error}", wanted="what the manifest says", fix="build or export it again") from error


def _is_out_of_memory(words: str) -> bool:
    return any(sign in words.lower() for sign in ("bad_alloc", "bad allocation", "failed to allocate", "out of memory", "cannot allocate"))


def _short(error: Exception) -> str:
    words = " ".join(str(error).split())
    return words if len(words) <= 400 else words[:400] + "…"


def _give_back_free_memory() -> None:
    """ONNX Runtime leaves the heap full of holes when it has rewritten the weights: half of what it holds. glibc can return them."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
