"""The driver calls through pycuda, for ``FATHOM_CUDA=pycuda`` and where no cuda-bindings is: no graphs, and everything from the thread that opened the device.

pycuda ties every object to the context stack of one thread, so ``pycuda.autoinit`` and contexts of its own are not used: the primary
context is pushed around each piece of work and popped after it.
"""

from __future__ import annotations

import importlib.util
import threading
from typing import Any

import numpy as np

from ..errors import EnvironmentMismatchError, FathomError, missing_package
from .device import Device
from .errors import cuda_error

NON_BLOCKING, BLOCKING_SYNC = 1, 1  # flags of a stream and of an event


class PyCudaDevice(Device):
    """See ``device.Device``.

    Raises:
        EnvironmentMismatchError: if pycuda, the driver or the device is missing.
    """

    binding = "pycuda"

    def __init__(self, index: int = 0):
        super().__init__()
        self.index, self._pycuda, self._thread = index, _import_pycuda(), threading.get_ident()
        self._call("cuInit", self._pycuda.init)
        self._device = self._call("cuDeviceGet", self._pycuda.Device, index)
        self.name, self.capability = self._device.name(), tuple(self._device.compute_capability())
        version = self._pycuda.get_driver_version()
        self.driver = (version // 1000, version % 1000 // 10)
        self.total_nbytes = int(self._device.total_memory())
        self._context = self._call("cuDevicePrimaryCtxRetain", self._device.retain_primary_context)

    def _call(self, name: str, function: Any, *arguments: Any, detail: str = "") -> Any:
        try:
            return function(*arguments)
        except self._pycuda.Error as error:
            call, found, words = str(error).partition(" failed: ")
            raise self.failed(cuda_error((words if found else str(error)).split(" - ")[0], call if found else name, detail)) from error

    def push(self) -> None:
        """See ``device.Device.push``."""
        if threading.get_ident() != self._thread:
            raise FathomError("a pycuda device was used from another thread than the one that opened it")
        self._call("cuCtxPushCurrent", self._context.push)

    def pop(self) -> None:
        """See ``device.Device.pop``."""
        self._call("cuCtxPopCurrent", self._pycuda.Context.pop)

    def release_context(self) -> None:
        """See ``device.Device.release_context``."""
        context, self._context = self._context, None
        if context is not None and not self.lost:
            self._call("cuDevicePrimaryCtxRelease", context.detach)

    def memory(self) -> tuple[int, int]:
        """See ``device.Device.memory``."""
        return tuple(map(int, self._call("cuMemGetInfo", self._pycuda.mem_get_info)))

    def allocate(self, nbytes: int) -> tuple[Any, int]:
        """See ``device.Device.allocate``."""
        free, total = self.memory()
        detail = f"{nbytes >> 20} MiB were asked for, {free >> 20} of {total >> 20} MiB are free"
        handle = self._call("cuMemAlloc", self._pycuda.mem_alloc, nbytes, detail=detail)
        return handle, int(handle)

    def free(self, handle: Any) -> None:
        """See ``device.Device.free``."""
        self._call("cuMemFree", handle.free)

    def allocate_pinned(self, nbytes: int) -> tuple[Any, np.ndarray]:
        """See ``device.Device.allocate_pinned``."""
        array = self._call("cuMemHostAlloc", self._pycuda.pagelocked_empty, nbytes, np.uint8)
        return array.base, array

    def free_pinned(self, handle: Any) -> None:
        """See ``device.Device.free_pinned``."""
        self._call("cuMemFreeHost", handle.free)

    def create_stream(self) -> tuple[Any, int]:
        """See ``device.Device.create_stream``."""
        stream = self._call("cuStreamCreate", self._pycuda.Stream, NON_BLOCKING)
        return stream, int(stream.handle)

    def destroy_stream(self, handle: Any) -> None:
        """pycuda destroys it with the last reference, which the owner drops now."""

    def synchronize(self, handle: Any) -> None:
        """See ``device.Device.synchronize``."""
        self._call("cuStreamSynchronize", handle.synchronize)

    def upload(self, address: int, source: np.ndarray, stream: Any) -> None:
        """See ``device.Device.upload``."""
        self._call("cuMemcpyHtoDAsync", self._pycuda.memcpy_htod_async, address, source, stream)

    def download(self, target: np.ndarray, address: int, stream: Any) -> None:
        """See ``device.Device.download``."""
        self._call("cuMemcpyDtoHAsync", self._pycuda.memcpy_dtoh_async, target, address, stream)

    def copy(self, target: int, source: int, nbytes: int, stream: Any) -> None:
        """See ``device.Device.copy``."""
        self._call("cuMemcpyDtoDAsync", self._pycuda.memcpy_dtod_async, target, source, nbytes, stream)

    def create_event(self) -> Any:
        """See ``device.Device.create_event``."""
        return self._call("cuEventCreate", self._pycuda.Event, BLOCKING_SYNC)

    def destroy_event(self, handle: Any) -> None:
        """pycuda destroys it with the last reference, which the owner drops now."""

    def record(self, event: Any, stream: Any) -> None:
        """See ``device.Device.record``."""
        self._call("cuEventRecord", event.record, stream)

    def wait_event(self, event: Any) -> None:
        """See ``device.Device.wait_event``."""
        self._call("cuEventSynchronize", event.synchronize)

    def wait_in_stream(self, stream: Any, event: Any) -> None:
        """See ``device.Device.wait_in_stream``."""
        self._call("cuStreamWaitEvent", stream.wait_for_event, event)

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """See ``device.Device.elapsed_ms``."""
        return float(self._call("cuEventElapsedTime", end.time_since, start))

    def load_module(self, image: bytes) -> Any:
        """See ``device.Device.load_module``."""
        return self._call("cuModuleLoadData", self._pycuda.module_from_buffer, image + b"\0")

    def unload_module(self, handle: Any) -> None:
        """pycuda unloads it with the last reference, which the owner drops now."""

    def function(self, module: Any, name: str) -> Any:
        """See ``device.Device.function``."""
        return self._call("cuModuleGetFunction", module.get_function, name)

    def launch(self, function: Any, grid: tuple[int, int, int], block: tuple[int, int, int], parameters: np.ndarray, stream: Any) -> None:
        """See ``device.Device.launch``."""
        self._call("cuLaunchKernel", lambda: function(parameters, grid=grid, block=block, stream=stream))  # an array goes by value

    def begin_capture(self, stream: Any) -> None:
        """pycuda cannot capture; ``supports_graphs`` says so."""
        raise FathomError("pycuda has no CUDA graphs", fix="FATHOM_CUDA=cuda-bindings")

    def end_capture(self, stream: Any) -> Any:
        """Nothing was recorded."""
        return None

    def launch_graph(self, graph: Any, stream: Any) -> None:
        """There is no graph to launch."""
        raise FathomError("pycuda has no CUDA graphs", fix="FATHOM_CUDA=cuda-bindings")

    def destroy_graph(self, graph: Any) -> None:
        """There is no graph to destroy."""


def _import_pycuda() -> Any:
    if importlib.util.find_spec("pycuda") is None:
        raise missing_package("pycuda", "pycuda", "the binding of the CUDA driver that FATHOM_CUDA=pycuda asks for, and the only one for Python 3.8")
    try:
        import pycuda.driver
    except ImportError as error:
        words = " ".join(str(error).split())
        raise EnvironmentMismatchError(f"pycuda cannot be loaded ({words})", wanted="the NVIDIA driver", fix="install the NVIDIA driver") from error
    return pycuda.driver
