"""Stages on ONNX Runtime. The weights of a plan are handed over where they lie in the mapped file.

Memory, measured with full-size LLM-MDE (0.81 GiB of weights) and EVP (3.3 GiB), ONNX Runtime 1.32, two threads, peaks in GiB:

- handing weights over and nothing else: 2.1 and 10.7
- dropping mapped pages once they are copied (``page_dropper``): 1.34 and 7.6, in the same time
- no memory patterns besides (one block for all tensors of a stage, for good): 1.13 and 5.4, in the same time
- no arena besides: 1.10 and 4.1, but a tenth slower, so arenas stay
- a slow stage's arena given back when it is done (``SLOW_S``), so that it is not held beside the next stage's: 4.9 instead of 5.7 (EVP, on another
  processor than the lines above), in the same time

Prepacked weights stay too: without them every run takes up to a tenth longer.

Every stage has threads of its own. Left alone they go on spinning when it is done and keep the processors from the next stage: evp-tiny took
118 ms with it and 49 ms without (two threads on two cores; PyTorch 54 ms).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from ..artefact.manifest import BundleManifest, PlanManifest
from ..artefact.spec import DTYPES, StageSpec, TensorSpec, largest_tensor
from ..errors import EnvironmentMismatchError, FathomError, InputError, OutOfMemoryError, PrecisionError, missing_package, tells_of_no_memory
from ..free_memory import give_back_free_memory
from ..sequences import zip_equal
from .cuda import RECORD, cuda_provider, left_on_cpu, load_cuda, require_cuda
from .optimisers import DISABLED, EXACT_INT8, SUMS_IN_FP16
from .page_dropper import PageDropper

if TYPE_CHECKING:
    from ..artefact.bundle import BundleDirectory
    from ..artefact.plan import PlanFile

ORT_TYPES = {f"tensor({word})": name for name, word in zip_equal(DTYPES, ("float", "float16", "int64", "int32", "uint8", "bool"))}
SHRINK = "memory.enable_memory_arena_shrinkage"  # a run's option: which devices' arenas give back what is free at its end
SLOW_S = 0.1  # new pages for the next run cost a few milliseconds
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
        PrecisionError: if this processor would compute FP16 graphs worse than the GPU they are for.
        EnvironmentMismatchError: if ONNX Runtime is missing, lacks the provider, or cannot execute a graph.
        InputError: if a graph is broken.
        OutOfMemoryError: if the weights do not fit.
    """

    def __init__(self, artefact: PlanFile | BundleDirectory, device: str = "cpu", threads: int | None = None, index: int = 0):
        self._ort = _import_onnxruntime()
        _require_good_sums(artefact.manifest, device)
        self.stages: tuple[StageSpec, ...] = artefact.manifest.specs()
        self.concurrent, self.remarks = 1, _remarks(artefact.manifest, device)
        self._device, self._threads, self._index = device, threads, index
        self._said = load_cuda(self._ort) if device == "cuda" else ""
        self._sessions: list[Any] = []
        self._views: list[memoryview] = []  # weights that sessions read from the mapped plan
        self._options: Any = None
        self._interrupted = False
        self._quick: set[str] = set()  # stages that took less than SLOW_S when they last ran
        self._last_use = {tensor.name: index for index, stage in enumerate(self.stages) for tensor in stage.inputs}
        self._made = frozenset(tensor.name for stage in self.stages for tensor in stage.outputs)
        self._inputs = {tensor.name: tensor for stage in self.stages for tensor in stage.inputs if tensor.name not in self._made}
        self._ends = self._made - set(self._last_use)
        try:
            for stage in artefact.manifest.stages:
                self._sessions.append(self._open(artefact, stage))
                give_back_free_memory()  # ONNX Runtime leaves the heap full of holes when it has rewritten the weights
        except BaseException:
            self.close()
            raise

    def _open(self, artefact: PlanFile | BundleDirectory, stage: Any) -> Any:
        ort, options = self._ort, self._ort.SessionOptions()
        options.log_severity_level = 4  # every failure is an exception that we report
        options.enable_mem_pattern = False
        options.add_session_config_entry(*EXACT_INT8)
        options.add_session_config_entry("session.force_spinning_stop", "1")  # threads of one stage must not spin while the next one works
        if self._threads:
            options.intra_op_num_threads = self._threads
        providers: list[Any] = ["CPUExecutionProvider"]
        if self._device == "cuda":
            providers.insert(0, cuda_provider(self._index))
            options.add_session_config_entry(RECORD, "1")
        try:
            if isinstance(artefact.manifest, BundleManifest):
                session = ort.InferenceSession(str(artefact.path(stage.file)), options, providers=providers, enable_fallback=0, disabled_optimizers=DISABLED)
            else:
                if stage.weights:
                    self._add_weights(artefact, stage, options)
                graph = artefact.view(stage.engine)
                self._views.append(graph)
                with PageDropper(artefact, stage.weights) if stage.weights else nullcontext():
                    session = ort.InferenceSession(bytes(graph), options, providers=providers, enable_fallback=0, disabled_optimizers=DISABLED)
        except FathomError:
            raise
        except MemoryError as error:
            raise OutOfMemoryError(f"no memory is left for stage {stage.spec.name}", fix="free memory") from error
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise self._cannot_open(stage.spec.name, error) from error
        if self._device == "cuda":
            require_cuda(session, self._said)
            if left := left_on_cpu(session):
                self.remarks += (f"warning: stage {stage.spec.name}: ONNX Runtime computes {', '.join(left)} on the CPU, not on the GPU",)
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
        if tells_of_no_memory(error):
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
        return self._run_all(inputs, keep, lambda stage, seconds: None)

    def stage_times_ms(self, inputs: dict[str, np.ndarray], runs: int) -> dict[str, list[float]]:
        """How long each stage takes by the clock of the host, run after run; arguments as in ``run``."""
        times_ms: dict[str, list[float]] = {stage.name: [] for stage in self.stages}
        for _ in range(runs):
            self._run_all(inputs, self._made, lambda stage, seconds: times_ms[stage].append(1e3 * seconds))
        return times_ms

    def run_stage(self, name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One stage alone.

        Args:
            inputs: every tensor that it takes, by name.

        Returns:
            every tensor that it makes.

        Raises:
            ValueError: if there is no such stage, or an input is missing or of another shape.
            FathomError: see ``backend.Backend.run``.
        """
        for stage, session in zip_equal(self.stages, self._sessions):
            if stage.name == name:
                symbols: dict[str, int] = {}
                feed = self._bind({tensor.name: tensor for tensor in stage.inputs}, inputs, symbols)
                made = self._run_stage(stage, session, [tensor.name for tensor in stage.outputs], feed, frozenset(), self._new_options(), symbols)
                for tensor, value in zip_equal(stage.outputs, made):
                    _check_made(name, tensor, value, symbols)
                return {tensor.name: value.numpy() for tensor, value in zip_equal(stage.outputs, made)}
        raise ValueError(f"there is no stage {name!r}")

    def _run_all(self, inputs: dict[str, np.ndarray], keep: frozenset[str], on_stage: Callable[[str, float], None]) -> dict[str, np.ndarray]:
        if not self._sessions:
            raise ValueError("the backend is closed")
        if not keep <= self._made:
            raise ValueError(f"no stage makes {sorted(keep - self._made)}")
        keep = keep or self._ends
        symbols: dict[str, int] = {}
        values = self._bind(self._inputs, inputs, symbols)
        result: dict[str, np.ndarray] = {}
        for index, (stage, session) in enumerate(zip_equal(self.stages, self._sessions)):
            feed = {tensor.name: values[tensor.name] for tensor in stage.inputs}
            wanted = [tensor for tensor in stage.outputs if tensor.name in keep or self._last_use.get(tensor.name, -1) > index]
            if not wanted:
                continue
            later = frozenset(t.name for t in wanted if self._last_use.get(t.name, -1) > index)
            self._options = options = self._new_options()
            if self._device == "cpu" and stage.name not in self._quick:
                options.add_run_config_entry(SHRINK, "cpu:0")
            start = time.perf_counter()
            made = self._run_stage(stage, session, [t.name for t in wanted], feed, later, options, symbols)
            seconds = time.perf_counter() - start
            (self._quick.add if seconds < SLOW_S else self._quick.discard)(stage.name)
            on_stage(stage.name, seconds)
            for tensor, value in zip_equal(wanted, made):
                _check_made(stage.name, tensor, value, symbols)
                if tensor.name in keep:
                    result[tensor.name] = value.numpy()
                if tensor.name in later:
                    values[tensor.name] = value
            for name in [name for name in values if self._last_use[name] <= index]:
                del values[name]
        return result

    def _new_options(self) -> Any:
        options = self._ort.RunOptions()
        options.log_severity_level = 4
        options.terminate = self._interrupted
        return options

    def _bind(self, specs: dict[str, TensorSpec], inputs: dict[str, np.ndarray], symbols: dict[str, int]) -> dict[str, Any]:
        if set(inputs) != set(specs):
            raise ValueError(f"inputs {sorted(inputs)}, wanted exactly {sorted(specs)}")
        values = {}
        for name, array in inputs.items():
            spec = specs[name]
            if array.dtype != DTYPES[spec.dtype]:
                raise ValueError(f"tensor {name} is {array.dtype}, wanted {spec.dtype}")
            spec.bind(array.shape, symbols)
            values[name] = self._ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self._device, self._index)
        return values

    def _run_stage(
        self, stage: StageSpec, session: Any, names: list[str], feed: dict[str, Any], later: frozenset[str], options: Any, symbols: dict[str, int]
    ) -> list[Any]:
        """Outputs of one stage; what later stages take stays on the device, the rest comes to the host."""
        binding = session.io_binding()
        try:
            for name, value in feed.items():
                binding.bind_ortvalue_input(name, value)
            for name in names:
                binding.bind_output(name, *((self._device, self._index) if name in later else ("cpu", 0)))
            session.run_with_iobinding(binding, options)
            return list(binding.get_outputs())
        except Exception as error:
            words = _short(error)
            if tells_of_no_memory(error):
                was = f"no memory is left in stage {stage.name} ({words}); the largest tensor at its ends is {largest_tensor(stage.tensors, symbols)}"
                raise OutOfMemoryError(was, fix="use a smaller --batch, or free memory") from error
            raise FathomError(f"stage {stage.name} failed in ONNX Runtime {self._ort.__version__} ({words})") from error

    def interrupt(self) -> None:
        """See ``backend.Backend.interrupt``."""
        self._interrupted = True
        if self._options is not None:
            self._options.terminate = True

    def close(self) -> None:
        """See ``backend.Backend.close``."""
        self._sessions.clear()
        while self._views:
            with suppress(BufferError):  # an array still uses this memory, which is released with the array
                self._views.pop().release()
        give_back_free_memory()


def _require_good_sums(manifest: BundleManifest | PlanManifest, device: str) -> None:
    if SUMS_IN_FP16 and device == "cpu" and isinstance(manifest, PlanManifest) and manifest.targets == ("cuda",) and manifest.precision == "fp16":
        raise PrecisionError(
            "this plan holds FP16 graphs for CUDA, and on this processor ONNX Runtime adds up in FP16 what a GPU adds up in FP32: depths were 1 % off",
            wanted="a plan for the CPU",
            fix="depth-build --backend onnxruntime --precision fp32; or run it with --device cuda",
        )


def _remarks(manifest: BundleManifest | PlanManifest, device: str) -> tuple[str, ...]:
    """What runs where, if that is anything but FP32 on the CPU."""
    if isinstance(manifest, BundleManifest):
        return (f"ONNX Runtime, fp32, on {device}",) if device != "cpu" else ()
    words = f"ONNX Runtime, {manifest.precision}, on {device}"
    if manifest.simulated:
        return (f"{words}: FP16 is simulated in FP32; for FP16 sums on a GPU, depth-build --precision fp16 --target cuda",)
    if manifest.targets == ("cuda",) and device == "cpu":
        return (f"{words}: built for CUDA; this CPU has no FP16 kernels, so that it takes longer and rounds less",) if manifest.precision == "fp16" else ()
    return (words,) if device != "cpu" else ()


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_package("onnxruntime", "", "ONNX Runtime, which executes this artefact") from error
    return onnxruntime


def _check_session(session: Any, spec: StageSpec) -> None:
    """Check that the graph's inputs and outputs are those of the manifest."""
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


def _short(error: Exception) -> str:
    words = " ".join(str(error).split())
    return words if len(words) <= 400 else words[:400] + "…"
