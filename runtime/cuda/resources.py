"""What lives on a CUDA device: streams, events, buffers, graphs, kernels. Each is owned by one object, which releases it once.

Like the calls of ``cuda.Device``, everything here is used inside ``with device:``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from .device import Device, Resource


class DeviceBuffer(Resource):
    """Device memory of ``nbytes`` bytes at ``address``, aligned to 256 bytes."""

    def __init__(self, device: Device, nbytes: int):
        if nbytes < 1:
            raise ValueError(f"a buffer has at least one byte, got {nbytes}")
        handle, self.address = device.allocate(nbytes)
        self.nbytes = nbytes
        super().__init__(device, handle)
        device.used_nbytes += nbytes
        device.peak_nbytes = max(device.peak_nbytes, device.used_nbytes)

    def _release(self) -> None:
        self.device.used_nbytes -= self.nbytes
        self.device.free(self.handle)


class PinnedBuffer(Resource):
    """Page-locked host memory; ``array`` is a view of it and must not be used after ``close()``."""

    def __init__(self, device: Device, shape: tuple[int, ...], dtype: np.dtype):
        count = int(np.prod(shape, dtype=np.int64))
        handle, raw = device.allocate_pinned(max(count * np.dtype(dtype).itemsize, 1))
        self.array = raw[: count * np.dtype(dtype).itemsize].view(dtype).reshape(shape)
        super().__init__(device, handle)

    def _release(self) -> None:
        self.array = None
        self.device.free_pinned(self.handle)


class Event(Resource):
    """A marker in a stream: reached when everything sent before it is done."""

    def __init__(self, device: Device):
        super().__init__(device, device.create_event())

    def _release(self) -> None:
        self.device.destroy_event(self.handle)

    def record(self, stream: Stream) -> None:
        """Mark this place in a stream."""
        self.device.record(self.handle, stream.handle)

    def wait(self) -> None:
        """Sleep until it is reached."""
        self.device.wait_event(self.handle)

    def since_ms(self, earlier: Event) -> float:
        """Milliseconds of device time since an earlier event; both reached."""
        return self.device.elapsed_ms(earlier.handle, self.handle)


class Graph(Resource):
    """Recorded work of a stream, launched as one."""

    def _release(self) -> None:
        self.device.destroy_graph(self.handle)

    def launch(self, stream: Stream) -> None:
        """Run it in stream order."""
        self.device.launch_graph(self.handle, stream.handle)


class Stream(Resource):
    """Work that runs in order; ``address`` is what TensorRT calls the stream handle."""

    def __init__(self, device: Device):
        handle, self.address = device.create_stream()
        super().__init__(device, handle)

    def _release(self) -> None:
        self.device.destroy_stream(self.handle)

    def wait_for(self, event: Event) -> None:
        """Let what is sent from now on wait until an event is reached."""
        self.device.wait_in_stream(self.handle, event.handle)

    def synchronize(self) -> None:
        """Block until everything sent so far is done."""
        self.device.synchronize(self.handle)

    def upload(self, source: np.ndarray, buffer: DeviceBuffer) -> None:
        """Copy an array to the start of a buffer. The array must stay untouched until the stream got there.

        Raises:
            ValueError: if it is not contiguous, or larger than the buffer.
        """
        _fits(source, buffer)
        if source.nbytes:
            self.device.upload(buffer.address, source, self.handle)

    def download(self, buffer: DeviceBuffer, target: np.ndarray) -> None:
        """Copy the start of a buffer into an array, complete once the stream got there.

        Raises:
            ValueError: if it is not contiguous, or larger than the buffer.
        """
        _fits(target, buffer)
        self.device.download(target, buffer.address, self.handle)

    def copy(self, source: int, target: int, nbytes: int) -> None:
        """Copy between two addresses on the device."""
        self.device.copy(target, source, nbytes, self.handle)

    def capture(self, work: Callable[[], bool | None]) -> Graph | None:
        """Record what ``work()`` sends to this stream; None if something in it cannot be recorded, or it returns False.

        The recording is thread-local: other threads of the process may go on using CUDA.
        """
        self.device.begin_capture(self.handle)
        try:
            done = work()
        except BaseException:
            self._drop_capture()
            raise
        try:
            graph = self.device.end_capture(self.handle)
        except BaseException:
            with suppress(Exception):  # else nothing could be freed any more
                self._drop_capture()
            raise
        if graph is None:
            return None
        recorded = Graph(self.device, graph)
        if done is False:
            recorded.close()
            return None
        return recorded

    def _drop_capture(self) -> None:
        graph = self.device.end_capture(self.handle)
        if graph is not None:
            self.device.destroy_graph(graph)


class Module(Resource):
    """Loaded kernels."""

    def __init__(self, device: Device, image: bytes):
        super().__init__(device, device.load_module(image))
        self._functions: dict[str, Any] = {}

    def _release(self) -> None:
        self._functions.clear()
        self.device.unload_module(self.handle)

    def launch(self, name: str, grid: tuple[int, int, int], block: tuple[int, int, int], parameters: np.ndarray, stream: Stream) -> None:
        """Start the kernel ``name`` with one struct, a NumPy record laid out as C does it."""
        if name not in self._functions:
            self._functions[name] = self.device.function(self.handle, name)
        self.device.launch(self._functions[name], grid, block, np.frombuffer(parameters.tobytes(), np.uint8), stream.handle)


def _fits(array: np.ndarray, buffer: DeviceBuffer) -> None:
    if not array.flags.c_contiguous:
        raise ValueError("a contiguous array was wanted")
    if array.nbytes > buffer.nbytes:
        raise ValueError(f"{array.nbytes} bytes do not fit into a buffer of {buffer.nbytes}")
