"""``pycuda.driver`` on a ``fake_cuda.Machine``: objects that free what they hold when their last reference goes, as pycuda's do."""

import importlib.machinery
import sys
import threading
import types

import fake_cuda
import numpy as np


def driver_module(machine):
    """``pycuda.driver`` on this machine."""
    driver = types.ModuleType("pycuda.driver")

    class Error(Exception):
        pass

    class MemoryError(Error):
        pass

    class LogicError(Error):
        pass

    driver.Error, driver.MemoryError, driver.LogicError = Error, MemoryError, LogicError

    def guarded(name, body, context=True):
        with machine.lock:
            try:
                machine.enter(name, context)
                return body()
            except fake_cuda.Failure as failure:
                kind = MemoryError if failure.result == fake_cuda.Result.CUDA_ERROR_OUT_OF_MEMORY else LogicError
                words = fake_cuda.DESCRIPTIONS.get(int(failure.result), failure.result.name)
                raise kind(f"{name} failed: {words}") from None

    class Context:
        def push(self):
            guarded("cuCtxPushCurrent", lambda: machine.contexts.setdefault(threading.get_ident(), []).append(self), False)

        @staticmethod
        def pop():
            guarded("cuCtxPopCurrent", lambda: machine.contexts[threading.get_ident()].pop())

        def detach(self):
            machine.retained -= 1

    class Device:
        def __init__(self, index):
            if not 0 <= index < machine.devices:
                raise LogicError("cuDeviceGet failed: invalid device ordinal")

        def name(self):
            return machine.name

        def compute_capability(self):
            return machine.capability

        def total_memory(self):
            return machine.nbytes

        def retain_primary_context(self):
            machine.retained += 1
            return Context()

    class DeviceAllocation:
        def __init__(self, address):
            self.address = address

        def __int__(self):
            return self.address

        def free(self):
            guarded("cuMemFree", lambda: machine.release(self.address))

    class Pinned:
        def __init__(self, nbytes):
            self.address = machine.allocate(nbytes, True)
            self.__array_interface__ = {"data": (self.address, False), "shape": (nbytes,), "typestr": "|u1", "version": 3}

        def free(self):
            guarded("cuMemFreeHost", lambda: machine.release(self.address, True))

    def owned(kind):
        class Owned:
            raw = None

            def __del__(self):
                if self.raw:
                    machine.destroy(kind, self.raw)

        return Owned

    class Stream(owned("stream")):
        def __init__(self, flags=0):
            assert flags == 1
            self.raw = guarded("cuStreamCreate", lambda: machine.make("stream", work=[], recording=None, broken=False))

        @property
        def handle(self):
            return int(self.raw)

        def synchronize(self):
            guarded("cuStreamSynchronize", lambda: machine.drain(self.raw))

        def wait_for_event(self, event):
            guarded("cuStreamWaitEvent", lambda: machine.wait_in_stream(self.raw, event.raw))

    class Event(owned("event")):
        def __init__(self, flags=0):
            self.raw = guarded("cuEventCreate", lambda: machine.make("event", at=None, stream=None, mark=None))

        def record(self, stream):
            guarded("cuEventRecord", lambda: machine.record(self.raw, stream.raw))

        def synchronize(self):
            guarded("cuEventSynchronize", lambda: machine.event_reached(self.raw))

        def time_since(self, start):
            return float(self.raw.at - start.raw.at)

    class Module(owned("module")):
        def __init__(self, image):
            self.raw = guarded("cuModuleLoadDataEx", lambda: machine.load(image))

        def get_function(self, name):
            def function(parameters, grid, block, stream):
                assert isinstance(parameters, np.ndarray) and self.raw
                guarded("cuLaunchKernel", lambda: machine.launch(name, grid, block, parameters.copy(), stream.raw))

            return function

    def move(target, source, nbytes):
        machine.view(target, nbytes)[:] = machine.view(source, nbytes)

    driver.Context, driver.Device, driver.Stream, driver.Event = Context, Device, Stream, Event
    driver.init = lambda: guarded("cuInit", lambda: None, False)
    driver.get_driver_version = lambda: machine.driver
    driver.mem_get_info = lambda: guarded("cuMemGetInfo", lambda: (machine.nbytes - machine.used(), machine.nbytes))
    driver.mem_alloc = lambda nbytes: guarded("cuMemAlloc", lambda: DeviceAllocation(machine.allocate(nbytes)))
    driver.module_from_buffer = Module

    def pagelocked_empty(shape, dtype):
        assert dtype == np.uint8
        return np.asarray(guarded("cuMemHostAlloc", lambda: Pinned(shape)))  # its base is what frees it, as in pycuda

    driver.pagelocked_empty = pagelocked_empty
    driver.memcpy_htod_async = lambda dest, src, stream: guarded("cuMemcpyHtoDAsync", lambda: machine.upload(dest, src.ctypes.data, src.nbytes, stream.raw))
    driver.memcpy_dtoh_async = lambda dest, src, stream: guarded("cuMemcpyDtoHAsync", lambda: machine.download(dest.ctypes.data, src, dest.nbytes, stream.raw))
    driver.memcpy_dtod_async = lambda dest, src, size, stream: guarded("cuMemcpyDtoDAsync", lambda: machine.send(stream.raw, lambda: move(dest, src, size)))
    return driver


def install(monkeypatch, machine):
    """Let ``import pycuda.driver`` give this machine, and ``FATHOM_CUDA`` ask for it."""
    driver, package = driver_module(machine), types.ModuleType("pycuda")
    package.driver = driver
    for module in (package, driver):
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setenv("FATHOM_CUDA", "pycuda")
    return driver
