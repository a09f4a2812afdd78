"""A GPU that is not there: driver calls of cuda-bindings and of pycuda, carried out on NumPy memory.

It is stricter than a real one. Streams do nothing until somebody waits, so a result that is read too early is wrong, and memory that is
freed too early is gone; every address is checked against what is allocated; a call without a current context fails; everything that was
made is counted. Addresses are addresses of host memory, so kernels compiled for the host can run on them.
"""

import enum
import importlib.machinery
import sys
import threading
import types

import numpy as np

from fathom.runtime.kernels.antialias import ANTIALIAS
from fathom.runtime.kernels.operators import BINS_EXPECTATION, CROSS_ATTENTION, GROUP_NORM, TOKENS
from fathom.runtime.kernels.records import INSPECT, POSTPROCESS, PREPROCESS

ALIGNMENT = 256
STRUCTS = {
    "fathom_antialias": ANTIALIAS,
    "fathom_preprocess": PREPROCESS,
    "fathom_postprocess": POSTPROCESS,
    "fathom_inspect": INSPECT,
    "fathom_bins_expectation": BINS_EXPECTATION,
    **{f"fathom_cross_attention_{most}": CROSS_ATTENTION for most in TOKENS},
    "fathom_group_norm_silu": GROUP_NORM,
    "fathom_group_norm_partial": GROUP_NORM,
    "fathom_group_norm_apply": GROUP_NORM,
}
WITHOUT_VALUE = {
    *("cuInit", "cuDevicePrimaryCtxRelease", "cuCtxPushCurrent", "cuMemFree", "cuMemFreeAsync", "cuMemFreeHost", "cuStreamDestroy", "cuStreamSynchronize"),
    *("cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuMemcpyDtoDAsync", "cuEventDestroy", "cuEventRecord", "cuEventSynchronize", "cuStreamWaitEvent"),
    *("cuModuleUnload", "cuLaunchKernel", "cuStreamBeginCapture", "cuGraphDestroy", "cuGraphExecDestroy", "cuGraphLaunch"),
}
CODES = {
    "CUDA_SUCCESS": 0,
    "CUDA_ERROR_INVALID_VALUE": 1,
    "CUDA_ERROR_OUT_OF_MEMORY": 2,
    "CUDA_ERROR_NO_DEVICE": 100,
    "CUDA_ERROR_INVALID_DEVICE": 101,
    "CUDA_ERROR_INVALID_IMAGE": 200,
    "CUDA_ERROR_INVALID_CONTEXT": 201,
    "CUDA_ERROR_NO_BINARY_FOR_GPU": 209,
    "CUDA_ERROR_INVALID_HANDLE": 400,
    "CUDA_ERROR_NOT_FOUND": 500,
    "CUDA_ERROR_NOT_READY": 600,
    "CUDA_ERROR_ILLEGAL_ADDRESS": 700,
    "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED": 900,
    "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED": 901,
}
Result = enum.IntEnum("Result", CODES)
DESCRIPTIONS = {2: "out of memory", 100: "no CUDA-capable device is detected", 101: "invalid device ordinal", 700: "an illegal memory access was encountered"}


class Failure(Exception):
    """A call that failed, by the name of its result."""

    def __init__(self, name):
        super().__init__(name)
        self.result = Result[name]


class Handle:
    """Something the driver made."""

    def __init__(self, **facts):
        self.__dict__.update(facts)

    def __int__(self):
        return id(self)


class Machine:
    """One or more equal GPUs, and what was made on them.

    Args:
        nbytes: memory of a device.
        capability, name, driver, devices, pools: what they say about themselves.
        host: compiled kernels (``kernel_host.HostKernels``), or None: then no module fits.
    """

    def __init__(self, nbytes=1 << 28, capability=(8, 6), name="Fake GPU", driver=13000, devices=1, pools=True, host=None):
        self.nbytes, self.capability, self.name, self.driver, self.devices, self.pools, self.host = nbytes, capability, name, driver, devices, pools, host
        self.lock = threading.RLock()
        self.memory, self.pinned, self.keep = {}, {}, {}
        self.live = {kind: set() for kind in ("stream", "event", "graph", "module")}
        self.made = dict.fromkeys((*self.live, "memory", "pinned"), 0)
        self.contexts = {}  # thread -> stack
        self.retained = self.clock = self.launches = self.graph_launches = 0
        self.sticky = None
        self.fail_next = {}  # call -> name of the result
        self.threads = {}  # that made CUDA calls -> which
        self.calls = 0
        self.failed_call = ""
        self.fail_at = None  # (number of a call, exception or name of a result): made to fail in its place
        self.capturing = {}  # thread -> stream
        self.execute = None  # engines run in ONNX Runtime

    # --- what went wrong, what is left

    def leaks(self):
        """Everything that was made and not freed."""
        left = {kind: len(items) for kind, items in self.live.items()} | {"memory": len(self.memory), "pinned": len(self.pinned), "context": self.retained}
        left["stack"] = sum(map(len, self.contexts.values()))
        return {kind: count for kind, count in left.items() if count}

    def enter(self, call, context=True):
        """What every call begins with."""
        self.threads.setdefault(threading.get_ident(), set()).add(call)
        self.calls += 1
        if self.fail_at is not None and self.calls == self.fail_at[0]:
            self.failed_call, what = call, self.fail_at[1]
            if isinstance(what, BaseException):
                raise what
            self.fail_next[call] = what
        if name := self.fail_next.pop(call, None):
            if name == "CUDA_ERROR_ILLEGAL_ADDRESS":
                self.sticky = name
            raise Failure(name)
        if self.sticky:
            raise Failure(self.sticky)
        if context and not self.contexts.get(threading.get_ident()):
            raise Failure("CUDA_ERROR_INVALID_CONTEXT")

    # --- memory

    def _place(self, nbytes):
        raw = np.full(nbytes + ALIGNMENT, 0xCD, np.uint8)
        start = -raw.ctypes.data % ALIGNMENT
        return raw[start : start + nbytes], raw

    def used(self):
        """Bytes in use on the device."""
        return sum(len(view) for view in self.memory.values())

    def allocate(self, nbytes, pinned=False):
        """Memory full of rubbish; its address."""
        if not pinned and self.used() + nbytes > self.nbytes:
            raise Failure("CUDA_ERROR_OUT_OF_MEMORY")
        view, raw = self._place(nbytes)
        (self.pinned if pinned else self.memory)[view.ctypes.data] = view
        self.keep[view.ctypes.data] = raw
        self.made["pinned" if pinned else "memory"] += 1
        return view.ctypes.data

    def release(self, address, pinned=False):
        """Free it; what is in there is spoilt at once."""
        view = (self.pinned if pinned else self.memory).pop(int(address), None)
        if view is None:
            raise Failure("CUDA_ERROR_INVALID_VALUE")
        view[:] = 0xDD
        del self.keep[int(address)]

    def view(self, address, nbytes, pools=None):
        """The bytes at an address; an address that is not allocated loses the device."""
        for base, view in (self.memory if pools is None else pools).items():
            if base <= address and address + nbytes <= base + len(view):
                return view[address - base : address - base + nbytes]
        self.sticky = "CUDA_ERROR_ILLEGAL_ADDRESS"
        raise Failure(self.sticky)

    def host_array(self, address, nbytes):
        """Bytes of pinned memory, or None if the address is ordinary memory."""
        for base, view in self.pinned.items():
            if base <= address < base + len(view):
                return view[address - base : address - base + nbytes]
        return None

    # --- streams

    def send(self, stream, work):
        """Put work at the end of a stream, or into the graph that is being recorded."""
        (stream.recording if stream.recording is not None else stream.work).append(work)

    def drain(self, stream):
        """Do what a stream was given."""
        if stream.recording is not None:
            stream.broken = True
            raise Failure("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED")
        while stream.work:
            stream.work.pop(0)()
        if self.sticky:
            raise Failure(self.sticky)

    def make(self, kind, **facts):
        """Count and return something new."""
        handle = Handle(**facts)
        self.live[kind].add(handle)
        self.made[kind] += 1
        return handle

    def destroy(self, kind, handle):
        """Uncount it."""
        if handle not in self.live[kind]:
            raise Failure("CUDA_ERROR_INVALID_HANDLE")
        self.live[kind].remove(handle)

    def stream_of(self, address):
        """The stream with this address."""
        for stream in self.live["stream"]:
            if int(stream) == int(address):
                return stream
        raise Failure("CUDA_ERROR_INVALID_HANDLE")

    def upload(self, address, host, nbytes, stream):
        """Pinned memory is read when the stream gets there, other memory now."""
        source = self.host_array(host, nbytes)
        if source is None:
            import ctypes

            source = np.frombuffer(ctypes.string_at(host, nbytes), np.uint8)
        self.send(stream, lambda: self.view(address, nbytes).__setitem__(slice(None), source))

    def download(self, host, address, nbytes, stream):
        """The host sees it when the stream gets there."""
        import ctypes

        target = self.host_array(host, nbytes)
        target = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(host)) if target is None else target
        self.send(stream, lambda: target.__setitem__(slice(None), self.view(address, nbytes)))

    def launch(self, name, grid, block, parameters, stream):
        """Run a kernel that was compiled for the host."""
        self.launches += 1
        self.send(stream, lambda: self.host.launch(name, grid, block, parameters))

    def load(self, image):
        """A module, if it looks like one."""
        if not (image[:4] == b"\x50\xed\x55\xba" or b".version" in image[:200]):
            raise Failure("CUDA_ERROR_INVALID_IMAGE")
        if self.host is None:
            raise Failure("CUDA_ERROR_NO_BINARY_FOR_GPU")
        return self.make("module", image=image)

    def event_reached(self, event):
        """Let time pass: a stream that somebody waits for gets on with its work."""
        if event.at is None and event.stream is not None:
            self.drain(event.stream)
        if self.sticky:
            raise Failure(self.sticky)

    def record(self, event, stream):
        """Mark a place in a stream."""
        event.at, event.stream, event.mark = None, stream, (mark := types.SimpleNamespace(reached=False))

        def reach():
            self.clock += 1
            event.at, mark.reached = self.clock, True

        self.send(stream, reach)

    def wait_in_stream(self, stream, event):
        """What comes after waits for the place that is marked now."""
        source, mark = event.stream, event.mark
        self.send(stream, lambda: mark.reached or self.drain(source))


def driver_module(machine):
    """``cuda.bindings.driver`` on this machine."""
    driver = types.ModuleType("cuda.bindings.driver")
    driver.CUresult = Result
    attribute = {"COMPUTE_CAPABILITY_MAJOR": 75, "COMPUTE_CAPABILITY_MINOR": 76, "MEMORY_POOLS_SUPPORTED": 115}
    driver.CUdevice_attribute = enum.IntEnum("CUdevice_attribute", {f"CU_DEVICE_ATTRIBUTE_{key}": value for key, value in attribute.items()})
    driver.CUstream_flags = enum.IntEnum("CUstream_flags", {"CU_STREAM_DEFAULT": 0, "CU_STREAM_NON_BLOCKING": 1})
    driver.CUevent_flags = enum.IntEnum("CUevent_flags", {"CU_EVENT_BLOCKING_SYNC": 1})
    driver.CUstreamCaptureMode = enum.IntEnum("CUstreamCaptureMode", {"CU_STREAM_CAPTURE_MODE_GLOBAL": 0, "CU_STREAM_CAPTURE_MODE_THREAD_LOCAL": 1})

    def call(name, context=True):
        def wrap(body):
            def function(*arguments):
                with machine.lock:
                    try:
                        machine.enter(name, context)
                        value = body(*arguments)
                    except Failure as failure:
                        return (failure.result,) if name in WITHOUT_VALUE else (failure.result, None)
                return (Result.CUDA_SUCCESS, *value) if isinstance(value, tuple) else (Result.CUDA_SUCCESS,)

            setattr(driver, name, function)
            return body

        return wrap

    def stack():
        return machine.contexts.setdefault(threading.get_ident(), [])

    def attribute_value(which):
        return {75: machine.capability[0], 76: machine.capability[1], 115: int(machine.pools)}[int(which)]

    def get_device(index):
        if not 0 <= index < machine.devices:
            raise Failure("CUDA_ERROR_INVALID_DEVICE" if machine.devices else "CUDA_ERROR_NO_DEVICE")
        return (index,)

    def initialise(flags):
        if not machine.devices:
            raise Failure("CUDA_ERROR_NO_DEVICE")

    def retain(device):
        machine.retained += 1
        return ("primary",)

    def release(device):
        machine.retained -= 1

    def launch(function, gx, gy, gz, bx, by, bz, shared, stream, pointers, extra):
        import ctypes

        module, name = function
        assert module in machine.live["module"]
        size = STRUCTS[name].itemsize
        (at,) = np.frombuffer(ctypes.string_at(pointers, 8), np.uint64)
        machine.launch(name, (gx, gy, gz), (bx, by, bz), np.frombuffer(ctypes.string_at(int(at), size), np.uint8), stream)

    def begin(stream, mode):
        assert mode == driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        machine.drain(stream)
        stream.recording, stream.broken = [], False
        machine.capturing[threading.get_ident()] = stream

    def get_graph(stream):
        recorded, stream.recording = stream.recording, None
        machine.capturing.pop(threading.get_ident(), None)
        if recorded is None or stream.broken:
            raise Failure("CUDA_ERROR_STREAM_CAPTURE_INVALIDATED")
        return (machine.make("graph", work=recorded),)

    def launch_graph(graph, stream):
        machine.graph_launches += 1
        machine.send(stream, lambda: [work() for work in graph.work])

    def image_at(address):
        import ctypes

        raw = ctypes.string_at(address, 4)
        if raw != b"\x50\xed\x55\xba":
            raw = ctypes.string_at(address)  # text ends with a zero
        return (machine.load(raw),)

    def get_elapsed(start, end):
        assert start.at is not None and end.at is not None, "an event was not reached"
        return (float(end.at - start.at),)

    def wait(event):
        machine.event_reached(event)

    def no_capture(body):
        def checked(*arguments):
            if threading.get_ident() in machine.capturing:
                machine.capturing[threading.get_ident()].broken = True
                raise Failure("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED")
            return body(*arguments)

        return checked

    default = Handle(work=[], recording=None, broken=False)
    stream_or_default = lambda stream: default if isinstance(stream, int) and stream == 0 else stream  # noqa: E731
    call("cuInit", False)(initialise)
    call("cuDeviceGet", False)(get_device)
    call("cuDeviceGetName", False)(lambda length, device: (machine.name.encode().ljust(length, b"\0"),))
    call("cuDeviceGetAttribute", False)(lambda which, device: (attribute_value(which),))
    call("cuDriverGetVersion", False)(lambda: (machine.driver,))
    call("cuDeviceTotalMem", False)(lambda device: (machine.nbytes,))
    call("cuDevicePrimaryCtxRetain", False)(retain)
    call("cuDevicePrimaryCtxRelease", False)(release)
    call("cuCtxPushCurrent", False)(lambda context: stack().append(context))
    call("cuCtxPopCurrent")(lambda: (stack().pop(),))
    call("cuMemAlloc")(no_capture(lambda nbytes: (machine.allocate(nbytes),)))
    call("cuMemAllocAsync")(no_capture(lambda nbytes, stream: (machine.allocate(nbytes),)))
    call("cuMemFree")(no_capture(lambda address: machine.release(address)))
    call("cuMemFreeAsync")(no_capture(lambda address, stream: machine.release(address)))
    call("cuMemHostAlloc")(no_capture(lambda nbytes, flags: (machine.allocate(nbytes, True),)))
    call("cuMemFreeHost")(no_capture(lambda address: machine.release(address, True)))
    call("cuStreamCreate")(lambda flags: (machine.make("stream", work=[], recording=None, broken=False),))
    call("cuStreamDestroy")(lambda stream: machine.destroy("stream", stream))
    call("cuStreamSynchronize")(lambda stream: machine.drain(stream_or_default(stream)))
    call("cuMemcpyHtoDAsync")(lambda address, host, nbytes, stream: machine.upload(address, host, nbytes, stream))
    call("cuMemcpyDtoHAsync")(lambda host, address, nbytes, stream: machine.download(host, address, nbytes, stream))
    call("cuMemcpyDtoDAsync")(
        lambda target, source, nbytes, stream: machine.send(stream, lambda: machine.view(target, nbytes).__setitem__(slice(None), machine.view(source, nbytes)))
    )
    call("cuEventCreate")(lambda flags: (machine.make("event", at=None, stream=None, mark=None),))
    call("cuEventDestroy")(lambda event: machine.destroy("event", event))
    call("cuEventRecord")(lambda event, stream: machine.record(event, stream))
    call("cuEventSynchronize")(wait)
    call("cuStreamWaitEvent")(lambda stream, event, flags: machine.wait_in_stream(stream, event))
    call("cuEventElapsedTime")(get_elapsed)
    call("cuModuleLoadData")(image_at)
    call("cuModuleUnload")(lambda module: machine.destroy("module", module))
    call("cuModuleGetFunction")(lambda module, name: ((module, name.decode()),))
    call("cuLaunchKernel")(launch)
    call("cuStreamBeginCapture")(begin)
    call("cuStreamEndCapture")(get_graph)
    call("cuGraphInstantiate")(lambda graph, flags: (machine.make("graph", work=graph.work),))
    call("cuGraphDestroy")(lambda graph: machine.destroy("graph", graph))
    call("cuGraphExecDestroy")(lambda graph: machine.destroy("graph", graph))
    call("cuGraphLaunch")(launch_graph)

    def memory_info():
        with machine.lock:
            try:
                machine.enter("cuMemGetInfo")
            except Failure as failure:
                return failure.result, 0, 0
            return Result.CUDA_SUCCESS, machine.nbytes - machine.used(), machine.nbytes

    driver.cuMemGetInfo = memory_info
    return driver


def install(monkeypatch, machine):
    """Let ``from cuda.bindings import driver`` give this machine, whatever is installed."""
    driver = driver_module(machine)
    bindings, cuda = types.ModuleType("cuda.bindings"), types.ModuleType("cuda")
    bindings.driver, cuda.bindings = driver, bindings
    for module in (cuda, bindings, driver):
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delenv("FATHOM_CUDA", raising=False)
    return driver
