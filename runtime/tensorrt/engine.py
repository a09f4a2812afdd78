"""One deserialised engine, checked against its stage before anything runs."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..artefact.spec import StageSpec, TensorSpec
from ..errors import EnvironmentMismatchError, FathomError, InputError, OutOfMemoryError
from ..sequences import zip_equal
from .adapters.open_adapter import open_adapter

if TYPE_CHECKING:
    from ..cuda.resources import Stream
    from .cache import RuntimeCache

TENSORRT_DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT64": "int64", "INT32": "int32", "UINT8": "uint8", "BOOL": "bool"}
NO_MEMORY = ("out of memory", "outofmemory", "out_of_memory", "cudaerrormemoryallocation", "bad_alloc", "bad alloc", "insufficient memory")


def failure(what: str, logger: Any, fix: str = "") -> FathomError:
    """The error for a failed call of TensorRT, with the messages that TensorRT logged."""
    words = logger.errors()
    if any(sign in words.lower() for sign in NO_MEMORY):
        return OutOfMemoryError(f"{what} ({words})", fix="close other programs on this GPU, use a smaller --batch or fewer --streams, or a plan in fp16")
    return FathomError(f"{what} ({words})", fix=fix or "report this, together with the output of depth-doctor --json")


class Engine:
    """An engine of a plan on one device. ``close()`` may be called twice; contexts must be gone before.

    Attributes:
        spec: of the stage.
        adapter: how this release of TensorRT is called.
        activation_nbytes: device memory that a run needs beside the weights.
    """

    def __init__(self, trt: ModuleType, runtime: Any, logger: Any, spec: StageSpec, raw: memoryview, batch: tuple[int, int, int]):
        """Deserialise and check.

        Args:
            raw: the engine, where it lies in the mapped plan.
            batch: min, opt and max batch that the plan promises.

        Raises:
            EnvironmentMismatchError: if TensorRT refuses it.
            InputError: if it is not the engine of this stage.
            OutOfMemoryError: if its weights do not fit on the device.
        """
        self.spec, self._trt, self._logger, self.adapter = spec, trt, logger, open_adapter(trt)
        logger.forget()
        self.engine = runtime.deserialize_cuda_engine(raw)
        if self.engine is None:
            error = failure(f"the engine of stage {spec.name} cannot be loaded", logger)
            if isinstance(error, OutOfMemoryError):
                raise error
            raise EnvironmentMismatchError(error.was, wanted="an engine for this release, GPU and driver", fix="depth-build the plan again")
        try:
            self._check(batch)
        except BaseException:
            self.close()
            raise
        self.activation_nbytes = self.adapter.activation_nbytes(self.engine)

    def _check(self, batch: tuple[int, int, int]) -> None:
        spec, modes = self.spec, self._trt.TensorIOMode  # no name of its own for the engine: an error's frames would keep it
        names = [self.engine.get_tensor_name(k) for k in range(self.engine.num_io_tensors)]
        for mode, tensors, what in ((modes.INPUT, spec.inputs, "takes"), (modes.OUTPUT, spec.outputs, "makes")):
            found = {name for name in names if self.engine.get_tensor_mode(name) == mode}
            if found != (wanted := {tensor.name for tensor in tensors}):
                raise self._wrong(f"{what} {sorted(found)}", f"{sorted(wanted)}")
            for tensor in tensors:
                self._check_tensor(tensor, tuple(self.engine.get_tensor_shape(tensor.name)))
        for tensor in spec.inputs:
            if -1 in tuple(self.engine.get_tensor_shape(tensor.name)):
                self._check_profile(tensor, batch)

    def _check_tensor(self, tensor: TensorSpec, shape: tuple[int, ...]) -> None:
        dtype = TENSORRT_DTYPES.get(self.engine.get_tensor_dtype(tensor.name).name, "unknown")
        if dtype != tensor.dtype:
            raise self._wrong(f"has {dtype} in tensor {tensor.name}", tensor.dtype)
        if self.engine.get_tensor_location(tensor.name) != self._trt.TensorLocation.DEVICE:
            raise self._wrong(f"wants tensor {tensor.name} in host memory", "device memory")
        fits = len(shape) == len(tensor.shape)
        fits = fits and all(got == -1 or isinstance(size, str) or got == size for got, size in zip_equal(shape, tensor.shape))
        if not fits:
            raise self._wrong(f"has shape {shape} in tensor {tensor.name}", f"{tensor.shape}")

    def _check_profile(self, tensor: TensorSpec, batch: tuple[int, int, int]) -> None:
        min_shape, _, max_shape = map(tuple, self.engine.get_tensor_profile_shape(tensor.name, 0))
        for size, low, high in zip_equal(tensor.shape, min_shape, max_shape):
            wanted = (batch[0], batch[2]) if isinstance(size, str) else (size, size)
            if not low <= wanted[0] <= wanted[1] <= high:
                raise self._wrong(f"takes tensor {tensor.name} from {min_shape} to {max_shape}", f"{tensor.shape} with batches of {batch[0]} to {batch[2]}")

    def _wrong(self, was: str, wanted: str) -> InputError:
        return InputError(f"the engine of stage {self.spec.name} {was}", wanted=f"{wanted}, as the manifest says", fix="build the plan again")

    def create_context(self, cache: RuntimeCache | None = None, graphs: bool = True) -> Any:
        """An execution context that allocates no device memory of its own.

        Args:
            cache: TensorRT-RTX's compiled kernels, or None. An engine that does not take them compiles its own.
            graphs: TensorRT-RTX: let it capture and replay its work itself.

        Raises:
            OutOfMemoryError: if memory runs out.
            FathomError: if TensorRT cannot make one.
        """
        self._logger.forget()
        context, took = self.adapter.create_context(self.engine, cache.cache if cache is not None else None, graphs)
        if not took:
            cache.refused_by(self.spec.name)
        if context is None:
            raise failure(f"no execution context could be made for stage {self.spec.name}", self._logger)
        return context

    def execute(self, context: Any, stream: Stream) -> bool:
        """Send a run of a context to a stream; False if it does not start."""
        return context.execute_async_v3(stream.address)

    def close(self) -> None:
        """Release the engine."""
        self.engine = None
