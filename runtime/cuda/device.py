"""The CUDA device as this runtime uses it: the driver calls it needs, on the primary context.

``open_device.open_device`` gives a ``Device`` of one of two bindings (cuda-bindings, pycuda). All calls are made inside ``with device:``, which makes
the primary context current for the thread, so that PyTorch, ONNX Runtime and others can share it. What a call creates is owned by an
object of ``resources.py``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np

from ..errors import DeviceLostError, FathomError


class Device(ABC):
    """One GPU. Use as a context manager around every use; ``close()`` releases what is still open.

    Attributes:
        index: number of the device, as CUDA counts.
        name: of the product.
        capability: compute capability, major and minor.
        driver: greatest CUDA version that the driver knows, major and minor.
        total_nbytes: memory of the device.
        binding: name of the Python package that makes the calls.
        used_nbytes, peak_nbytes: device memory allocated through this object now, and at most so far.
        supports_graphs: whether ``Stream.capture`` works with this binding.
        any_thread: whether this binding may be used from several threads.
        lost: True after an error from which the context does not recover.
    """

    binding = ""
    supports_graphs = False
    any_thread = False
    index: int
    name: str
    capability: tuple[int, int]
    driver: tuple[int, int]
    total_nbytes: int

    def __init__(self) -> None:
        self.lost = self.closed = False
        self._loss = ""
        self.peak_nbytes = self.used_nbytes = 0
        self.resources: dict[int, Resource] = {}

    @property
    def target(self) -> str:
        """The compute capability as a build target, such as ``sm86``."""
        return f"sm{self.capability[0]}{self.capability[1]}"

    def __enter__(self) -> Device:
        if self.closed:
            raise FathomError(f"GPU {self.index} is closed already")
        if self.lost:
            raise DeviceLostError(f"GPU {self.index} was lost earlier ({self._loss})", wanted="a working GPU", fix="start the program again")
        self.push()
        return self

    def __exit__(self, *_: object) -> None:
        if not self.lost:
            self.pop()
            return
        with suppress(FathomError):  # device loss was already reported
            self.pop()

    def close(self) -> None:
        """Free everything that is still open, newest first, then let the context go. May be called twice.

        Raises:
            FathomError: the last call that failed; everything else is freed all the same.
        """
        if self.closed:
            return
        with ExitStack() as stack:
            stack.callback(self.release_context)
            stack.callback(self._forget)
            if not self.lost:
                stack.enter_context(self)
                for resource in self.resources.values():
                    stack.callback(resource.close)

    def _forget(self) -> None:
        self.resources.clear()
        self.closed = True

    def failed(self, error: FathomError) -> FathomError:
        """Note a lost device; returns the error, to be raised."""
        if isinstance(error, DeviceLostError) and not self.lost:
            self.lost, self._loss = True, error.was
        return error

    @abstractmethod
    def push(self) -> None:
        """Make the primary context current for this thread."""

    @abstractmethod
    def pop(self) -> None:
        """Pop the context."""

    @abstractmethod
    def release_context(self) -> None:
        """Release the primary context."""

    @abstractmethod
    def memory(self) -> tuple[int, int]:
        """Free and total bytes of the device."""

    @abstractmethod
    def allocate(self, nbytes: int) -> tuple[Any, int]:
        """Device memory: handle and address."""

    @abstractmethod
    def free(self, handle: Any) -> None:
        """Release device memory of ``allocate``."""

    @abstractmethod
    def allocate_pinned(self, nbytes: int) -> tuple[Any, np.ndarray]:
        """Page-locked host memory: handle, and its bytes as uint8 [nbytes]."""

    @abstractmethod
    def free_pinned(self, handle: Any) -> None:
        """Free page-locked memory."""

    @abstractmethod
    def create_stream(self) -> tuple[Any, int]:
        """A stream that does not wait for the default stream: handle, and its address for TensorRT."""

    @abstractmethod
    def destroy_stream(self, handle: Any) -> None:
        """Destroy a stream."""

    @abstractmethod
    def synchronize(self, handle: Any) -> None:
        """Wait until all work of a stream is done."""

    @abstractmethod
    def upload(self, address: int, source: np.ndarray, stream: Any) -> None:
        """Copy a contiguous array to the device, in stream order."""

    @abstractmethod
    def download(self, target: np.ndarray, address: int, stream: Any) -> None:
        """Copy from the device into a contiguous array, in stream order."""

    @abstractmethod
    def copy(self, target: int, source: int, nbytes: int, stream: Any) -> None:
        """Copy between two addresses on the device, in stream order."""

    @abstractmethod
    def create_event(self) -> Any:
        """An event that keeps time, and whose waiting threads sleep."""

    @abstractmethod
    def destroy_event(self, handle: Any) -> None:
        """Destroy an event."""

    @abstractmethod
    def record(self, event: Any, stream: Any) -> None:
        """Record an event in a stream."""

    @abstractmethod
    def wait_event(self, event: Any) -> None:
        """Put this thread to sleep until an event is reached."""

    @abstractmethod
    def wait_in_stream(self, stream: Any, event: Any) -> None:
        """Let what is sent to a stream from now on wait until an event is reached."""

    @abstractmethod
    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Milliseconds between two events that were reached."""

    @abstractmethod
    def load_module(self, image: bytes) -> Any:
        """Load a fatbin, cubin or PTX text."""

    @abstractmethod
    def unload_module(self, handle: Any) -> None:
        """Unload a module."""

    @abstractmethod
    def function(self, module: Any, name: str) -> Any:
        """A kernel of a module."""

    @abstractmethod
    def launch(self, function: Any, grid: tuple[int, int, int], block: tuple[int, int, int], parameters: np.ndarray, stream: Any) -> None:
        """Start a kernel whose only parameter is one struct, given as its bytes (uint8)."""

    @abstractmethod
    def begin_capture(self, stream: Any) -> None:
        """Record what this thread sends to a stream instead of running it."""

    @abstractmethod
    def end_capture(self, stream: Any) -> Any:
        """Stop recording; returns the graph, ready to launch, or None if the recording broke."""

    @abstractmethod
    def launch_graph(self, graph: Any, stream: Any) -> None:
        """Run a graph in stream order."""

    @abstractmethod
    def destroy_graph(self, graph: Any) -> None:
        """Destroy a graph."""


class Resource:
    """Something on the device with one owner. ``close()`` may be called twice; on a lost device it only forgets."""

    def __init__(self, device: Device, handle: Any):
        self.device, self.handle, self.closed = device, handle, False
        device.resources[id(self)] = self

    def close(self) -> None:
        """Destroy the handle."""
        if self.closed:
            return
        self.closed = True
        self.device.resources.pop(id(self), None)
        if not (self.device.lost or self.device.closed):
            self._release()
        self.handle = None

    def _release(self) -> None:
        raise AssertionError

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
