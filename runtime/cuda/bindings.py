"""The driver calls through NVIDIA's cuda-bindings: stream-ordered allocation, and graphs by thread-local capture."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np

from ..errors import EnvironmentMismatchError, missing_package
from .device import Device
from .errors import cuda_error

POOLS_SUPPORTED = "CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED"


class CudaBindingsDevice(Device):
    """See ``device.Device``.

    Raises:
        EnvironmentMismatchError: if cuda-bindings, the driver or the device is missing.
    """

    binding = "cuda-bindings"
    supports_graphs = True
    any_thread = True

    def __init__(self, index: int = 0):
        super().__init__()
        self.index, self._driver = index, import_driver()
        initialise(self._driver)
        self._device = self._call("cuDeviceGet", index)
        self.name = self._call("cuDeviceGetName", 256, self._device).split(b"\0")[0].decode(errors="replace")
        major, minor = (self._attribute(f"CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{part}") for part in ("MAJOR", "MINOR"))
        self.capability = (major, minor)
        version = self._call("cuDriverGetVersion")
        self.driver = (version // 1000, version % 1000 // 10)
        self.total_nbytes = int(self._call("cuDeviceTotalMem", self._device))
        self._pools = bool(self._attribute(POOLS_SUPPORTED))
        self._context = self._call("cuDevicePrimaryCtxRetain", self._device)

    def _call(self, name: str, *arguments: Any, detail: str = "") -> Any:
        """Call a driver function, check its result, and return what it gives."""
        code, *values = getattr(self._driver, name)(*arguments)
        if int(code) != 0:
            raise self.failed(cuda_error(result_name(self._driver, code), name, detail))
        return values[0] if values else None

    def _attribute(self, name: str) -> int:
        return int(self._call("cuDeviceGetAttribute", getattr(self._driver.CUdevice_attribute, name), self._device))

    def push(self) -> None:
        """See ``device.Device.push``."""
        self._call("cuCtxPushCurrent", self._context)

    def pop(self) -> None:
        """See ``device.Device.pop``."""
        self._call("cuCtxPopCurrent")

    def release_context(self) -> None:
        """See ``device.Device.release_context``."""
        if not self.lost:
            self._call("cuDevicePrimaryCtxRelease", self._device)

    def memory(self) -> tuple[int, int]:
        """See ``device.Device.memory``."""
        code, free, total = self._driver.cuMemGetInfo()
        if int(code) != 0:
            raise self.failed(cuda_error(result_name(self._driver, code), "cuMemGetInfo"))
        return int(free), int(total)

    def allocate(self, nbytes: int) -> tuple[Any, int]:
        """See ``device.Device.allocate``. From the device's pool where it has one, on the default stream, which is then waited for."""
        free, total = self.memory()
        detail = f"{nbytes >> 20} MiB were asked for, {free >> 20} of {total >> 20} MiB are free"
        if not self._pools:
            handle = self._call("cuMemAlloc", nbytes, detail=detail)
        else:
            handle = self._call("cuMemAllocAsync", nbytes, 0, detail=detail)
            try:
                self._call("cuStreamSynchronize", 0)
            except BaseException:
                self._driver.cuMemFreeAsync(handle, 0)
                raise
        return handle, int(handle)

    def free(self, handle: Any) -> None:
        """See ``device.Device.free``."""
        if self._pools:
            self._call("cuMemFreeAsync", handle, 0)
            self._call("cuStreamSynchronize", 0)  # gives the memory back to the system
        else:
            self._call("cuMemFree", handle)

    def allocate_pinned(self, nbytes: int) -> tuple[Any, np.ndarray]:
        """See ``device.Device.allocate_pinned``."""
        import ctypes

        address = int(self._call("cuMemHostAlloc", nbytes, 0, detail=f"{nbytes >> 20} MiB of page-locked host memory were asked for"))
        return address, np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))

    def free_pinned(self, handle: Any) -> None:
        """See ``device.Device.free_pinned``."""
        self._call("cuMemFreeHost", handle)

    def create_stream(self) -> tuple[Any, int]:
        """See ``device.Device.create_stream``."""
        stream = self._call("cuStreamCreate", int(self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING))
        return stream, int(stream)

    def destroy_stream(self, handle: Any) -> None:
        """See ``device.Device.destroy_stream``."""
        self._call("cuStreamDestroy", handle)

    def synchronize(self, handle: Any) -> None:
        """See ``device.Device.synchronize``."""
        self._call("cuStreamSynchronize", handle)

    def upload(self, address: int, source: np.ndarray, stream: Any) -> None:
        """See ``device.Device.upload``."""
        self._call("cuMemcpyHtoDAsync", address, source.ctypes.data, source.nbytes, stream)

    def download(self, target: np.ndarray, address: int, stream: Any) -> None:
        """See ``device.Device.download``."""
        self._call("cuMemcpyDtoHAsync", target.ctypes.data, address, target.nbytes, stream)

    def copy(self, target: int, source: int, nbytes: int, stream: Any) -> None:
        """See ``device.Device.copy``."""
        self._call("cuMemcpyDtoDAsync", target, source, nbytes, stream)

    def create_event(self) -> Any:
        """See ``device.Device.create_event``."""
        return self._call("cuEventCreate", int(self._driver.CUevent_flags.CU_EVENT_BLOCKING_SYNC))

    def destroy_event(self, handle: Any) -> None:
        """See ``device.Device.destroy_event``."""
        self._call("cuEventDestroy", handle)

    def record(self, event: Any, stream: Any) -> None:
        """See ``device.Device.record``."""
        self._call("cuEventRecord", event, stream)

    def wait_event(self, event: Any) -> None:
        """See ``device.Device.wait_event``."""
        self._call("cuEventSynchronize", event)

    def wait_in_stream(self, stream: Any, event: Any) -> None:
        """See ``device.Device.wait_in_stream``."""
        self._call("cuStreamWaitEvent", stream, event, 0)

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """See ``device.Device.elapsed_ms``."""
        return float(self._call("cuEventElapsedTime", start, end))

    def load_module(self, image: bytes) -> Any:
        """See ``device.Device.load_module``."""
        text = np.frombuffer(image + b"\0", np.uint8)  # PTX is text and ends with a zero
        return self._call("cuModuleLoadData", text.ctypes.data)

    def unload_module(self, handle: Any) -> None:
        """See ``device.Device.unload_module``."""
        self._call("cuModuleUnload", handle)

    def function(self, module: Any, name: str) -> Any:
        """See ``device.Device.function``."""
        return self._call("cuModuleGetFunction", module, name.encode())

    def launch(self, function: Any, grid: tuple[int, int, int], block: tuple[int, int, int], parameters: np.ndarray, stream: Any) -> None:
        """See ``device.Device.launch``."""
        pointers = np.array([parameters.ctypes.data], np.uint64)  # the driver copies the struct before it returns
        self._call("cuLaunchKernel", function, *grid, *block, 0, stream, pointers.ctypes.data, 0)

    def begin_capture(self, stream: Any) -> None:
        """See ``device.Device.begin_capture``."""
        self._call("cuStreamBeginCapture", stream, self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)

    def end_capture(self, stream: Any) -> Any:
        """See ``device.Device.end_capture``."""
        code, graph = self._driver.cuStreamEndCapture(stream)
        name = result_name(self._driver, code)
        if name.startswith("CUDA_ERROR_STREAM_CAPTURE") or name == "CUDA_ERROR_NOT_SUPPORTED":
            return None
        if name != "CUDA_SUCCESS":
            raise self.failed(cuda_error(name, "cuStreamEndCapture"))
        try:
            replay = self._call("cuGraphInstantiate", graph, 0)
        finally:
            with suppress(Exception):  # a few bytes on the host; a lost device is noted
                self._call("cuGraphDestroy", graph)
        return replay

    def launch_graph(self, graph: Any, stream: Any) -> None:
        """See ``device.Device.launch_graph``."""
        self._call("cuGraphLaunch", graph, stream)

    def destroy_graph(self, graph: Any) -> None:
        """See ``device.Device.destroy_graph``."""
        self._call("cuGraphExecDestroy", graph)


def import_driver() -> Any:
    """``cuda.bindings.driver``.

    Raises:
        EnvironmentMismatchError: if it is not installed.
    """
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise missing_package("cuda-bindings", "cuda", "NVIDIA's Python binding of the CUDA driver") from error
    return driver


def initialise(driver: Any) -> None:
    """``cuInit``.

    Raises:
        EnvironmentMismatchError: if there is no driver or no device.
    """
    try:
        (code,) = driver.cuInit(0)
    except (RuntimeError, OSError) as error:  # newer releases raise where libcuda is missing, older ones return an error
        raise EnvironmentMismatchError("no NVIDIA driver was found: libcuda cannot be loaded", fix="install the NVIDIA driver") from error
    if int(code) != 0:
        raise cuda_error(result_name(driver, code), "cuInit")


def result_name(driver: Any, code: Any) -> str:
    """``CUDA_ERROR_…`` of a result."""
    name = getattr(code, "name", None)
    return name if name else str(driver.CUresult(int(code)).name)
