"""The device layer on a fake GPU, with both bindings: what is made is freed, what fails is named, graphs replay."""

import importlib.util
import inspect
import sys
import threading

import fake_cuda
import fake_pycuda
import numpy as np
import pytest

from fathom.runtime.cuda.bindings import CudaBindingsDevice
from fathom.runtime.cuda.open_device import open_device
from fathom.runtime.cuda.resources import DeviceBuffer, Event, Module, PinnedBuffer, Stream
from fathom.runtime.errors import DeviceLostError, EnvironmentMismatchError, FathomError, OutOfMemoryError, UsageError

FATBIN = b"\x50\xed\x55\xba" + bytes(60)
INSTALL = {"cuda-bindings": fake_cuda.install, "pycuda": fake_pycuda.install}


@pytest.fixture(params=INSTALL)
def machine(request, monkeypatch):
    machine = fake_cuda.Machine(devices=2, host=object())
    INSTALL[request.param](monkeypatch, machine)
    machine.binding = request.param
    return machine


@pytest.fixture
def bindings(monkeypatch):
    machine = fake_cuda.Machine()
    fake_cuda.install(monkeypatch, machine)
    return machine


def test_facts(machine):
    device = open_device(1)
    assert (device.binding, device.index, device.name, device.capability, device.driver) == (machine.binding, 1, "Fake GPU", (8, 6), (13, 0))
    assert device.target == "sm86" and device.total_nbytes == 1 << 28
    device.close()
    device.close()
    assert machine.leaks() == {}
    with pytest.raises(FathomError, match="closed"), device:
        pass


def test_data_goes_there_and_back_in_stream_order(machine):
    device = open_device()
    with device:
        stream, buffer, second = Stream(device), DeviceBuffer(device, 4000), DeviceBuffer(device, 4000)
        source, target = PinnedBuffer(device, (10, 100), np.float32), PinnedBuffer(device, (10, 100), np.float32)
        assert buffer.address % 256 == 0 and source.array.shape == (10, 100)
        source.array[:] = np.arange(1000).reshape(10, 100)
        target.array[:] = -1
        start, end = Event(device), Event(device)
        start.record(stream)
        stream.upload(source.array, buffer)
        stream.copy(buffer.address, second.address, 4000)
        stream.download(second, target.array)
        end.record(stream)
        assert (target.array == -1).all()  # nothing is done before somebody waits
        end.wait()
        assert end.since_ms(start) > 0
        assert np.array_equal(target.array, source.array)
        stream.synchronize()
        with pytest.raises(ValueError, match="do not fit"):
            stream.upload(np.zeros(1001, np.float32), buffer)
        with pytest.raises(ValueError, match="contiguous"):
            stream.upload(np.zeros((20, 20), np.float32)[:, ::2], buffer)
    device.close()
    assert machine.leaks() == {}


def test_every_resource_is_freed_once(machine):
    device = open_device()
    with device:
        made = [Stream(device), Event(device), DeviceBuffer(device, 10), PinnedBuffer(device, (3,), np.uint8), Module(device, FATBIN)]
        assert len(device.resources) == 5
        for resource in made:
            resource.close()
            resource.close()
        assert device.resources == {} and device.used_nbytes == 0 and device.peak_nbytes == 10
        with DeviceBuffer(device, 100):
            assert machine.used() == 100
        assert machine.used() == 0
        with pytest.raises(ValueError):
            DeviceBuffer(device, 0)
    del made, resource
    device.close()
    assert machine.leaks() == {}


def test_closing_the_device_frees_what_was_forgotten(machine):
    device = open_device()
    with device:
        DeviceBuffer(device, 10), PinnedBuffer(device, (3,), np.uint8), Stream(device), Event(device)
    device.close()
    assert machine.leaks() == {}


def test_memory_runs_out(machine):
    device = open_device()
    with device:
        DeviceBuffer(device, 200 << 20)
        with pytest.raises(OutOfMemoryError, match=r"100 MiB were asked for, 56 of 256 MiB are free.*--batch") as caught:
            DeviceBuffer(device, 100 << 20)
        assert caught.value.exit_code == 7
        assert not device.lost
        DeviceBuffer(device, 10).close()  # the device goes on working
    device.close()
    assert machine.leaks() == {}


def test_a_lost_device_is_named_once_and_stays_lost(machine):
    device = open_device()
    with device:
        stream, buffer = Stream(device), DeviceBuffer(device, 16)
        address = buffer.address
        buffer.close()
        device.upload(address, np.zeros(16, np.uint8), stream.handle)  # as a kernel with a wild pointer would
        with pytest.raises(DeviceLostError, match=r"ILLEGAL_ADDRESS.*start the program again") as caught:
            stream.synchronize()
        assert caught.value.exit_code == 6
    with pytest.raises(DeviceLostError, match="lost earlier"), device:
        pass
    stream.close()
    device.close()
    device.close()


def test_calls_need_the_context(machine):
    device = open_device()
    with pytest.raises(FathomError, match="INVALID_CONTEXT"):
        Stream(device)
    device.close()


def test_pycuda_stays_in_one_thread(monkeypatch):
    machine = fake_cuda.Machine()
    fake_pycuda.install(monkeypatch, machine)
    device, errors = open_device(), []

    def use():
        try:
            with device:
                pass
        except FathomError as error:
            errors.append(str(error))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert len(errors) == 1 and "another thread" in errors[0]
    assert not device.supports_graphs
    device.close()


def test_wrong_devices_and_bindings(machine, monkeypatch):
    with pytest.raises(EnvironmentMismatchError, match=r"INVALID_DEVICE.*nvidia-smi"):
        open_device(7)
    with pytest.raises(UsageError, match="cuda-bindings or pycuda"):
        open_device(0, "cupy")
    monkeypatch.setenv("FATHOM_CUDA", "cupy")
    with pytest.raises(UsageError, match="FATHOM_CUDA is 'cupy'"):
        open_device()


def test_no_gpu(monkeypatch):
    fake_cuda.install(monkeypatch, fake_cuda.Machine(devices=0))
    with pytest.raises(EnvironmentMismatchError, match="NO_DEVICE"):
        open_device()


@pytest.mark.parametrize(("binding", "module"), [("cuda-bindings", "cuda.bindings"), ("pycuda", "pycuda")])
def test_missing_bindings_are_named(monkeypatch, binding, module):
    monkeypatch.setitem(sys.modules, module, None)
    if binding == "pycuda":
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentMismatchError, match=f"'{binding}' is not installed.*pip install"):
        open_device(0, binding)


def test_pycuda_is_taken_where_it_alone_is_installed(monkeypatch):
    """JetPack 5: Python 3.8 has no cuda-bindings."""
    fake_pycuda.install(monkeypatch, fake_cuda.Machine())
    fake_cuda.install(monkeypatch, fake_cuda.Machine())
    for module, binding in (("", "cuda-bindings"), ("cuda.bindings", "pycuda"), ("cuda", "pycuda")):
        if module:
            monkeypatch.setitem(sys.modules, module, None)
        device = open_device()
        assert device.binding == binding
        device.close()
    monkeypatch.setitem(sys.modules, "pycuda", None)
    for version, missing in (
        ((3, 10), "'cuda-bindings' is not installed.*fathom-depth\\[cuda\\]"),
        ((3, 8), "'pycuda' is not installed.*fathom-depth\\[pycuda\\]"),
    ):
        with monkeypatch.context() as patch, pytest.raises(EnvironmentMismatchError, match=missing):
            patch.setattr(sys, "version_info", version)
            open_device()


@pytest.mark.parametrize("pools", [True, False])
def test_memory_with_and_without_pools(monkeypatch, pools):
    machine = fake_cuda.Machine(pools=pools)
    driver = fake_cuda.install(monkeypatch, machine)
    calls = []
    for name in ("cuMemAlloc", "cuMemAllocAsync", "cuMemFree", "cuMemFreeAsync"):
        function = getattr(driver, name)
        monkeypatch.setattr(driver, name, lambda *arguments, name=name, function=function: (calls.append(name), function(*arguments))[1])
    device = open_device()
    with device:
        DeviceBuffer(device, 10).close()
    device.close()
    assert calls == (["cuMemAllocAsync", "cuMemFreeAsync"] if pools else ["cuMemAlloc", "cuMemFree"])


def test_a_graph_replays(bindings):
    device = open_device()
    with device:
        stream, a, b = Stream(device), DeviceBuffer(device, 4), DeviceBuffer(device, 4)
        source, target = PinnedBuffer(device, (4,), np.uint8), PinnedBuffer(device, (4,), np.uint8)

        def work():
            stream.upload(source.array, a)
            stream.copy(a.address, b.address, 4)
            stream.download(b, target.array)

        graph = stream.capture(work)
        source.array[:] = 5
        stream.synchronize()
        assert target.array[0] != 5  # recorded, not run
        for value in (1, 2, 3):
            source.array[:] = value
            graph.launch(stream)
            stream.synchronize()
            assert (target.array == value).all()
        assert bindings.graph_launches == 3
        assert stream.capture(lambda: False) is None

        def allocates():
            with pytest.raises(FathomError, match="CAPTURE_UNSUPPORTED"):
                DeviceBuffer(device, 10)

        assert stream.capture(allocates) is None  # such work cannot be recorded
        with pytest.raises(ZeroDivisionError):
            stream.capture(lambda: 1 / 0)
        work()  # the stream works as before
        stream.synchronize()
    device.close()
    assert bindings.leaks() == {}


def test_other_threads_go_on_while_one_records(bindings):
    device = open_device()
    done = []
    with device:
        stream = Stream(device)

        def allocate():
            with device:
                done.append(DeviceBuffer(device, 10))

        def work():
            thread = threading.Thread(target=allocate)
            thread.start()
            thread.join()

        assert stream.capture(work) is not None
    assert len(done) == 1
    device.close()
    assert bindings.leaks() == {}


def real_driver():
    for name in [name for name in sys.modules if name.split(".")[0] == "cuda"]:
        if not hasattr(sys.modules[name], "__file__") and not hasattr(sys.modules[name], "__path__"):
            pytest.skip("a fake is installed")
    return pytest.importorskip("cuda.bindings.driver")


def test_the_fake_has_the_calls_of_the_real_binding(monkeypatch):
    """Every driver call of the device class exists in cuda-bindings with as many arguments as the fake takes."""
    real = real_driver()
    fake = fake_cuda.driver_module(fake_cuda.Machine())
    source = inspect.getsource(sys.modules[CudaBindingsDevice.__module__])
    for name in vars(fake):
        if name.startswith("cu"):
            assert f'"{name}"' in source or f".{name}(" in source, f"{name} is not used"
            assert hasattr(real, name)
    for kind in ("CUdevice_attribute", "CUstream_flags", "CUevent_flags", "CUstreamCaptureMode"):
        for member in getattr(fake, kind):
            if member.name != "CU_STREAM_DEFAULT":
                assert int(getattr(getattr(real, kind), member.name)) == int(member), member
    for member in fake_cuda.Result:
        assert int(getattr(real.CUresult, member.name)) == int(member)


def test_without_a_driver_the_real_binding_says_so():
    real_driver()
    try:
        device = CudaBindingsDevice(0)
    except EnvironmentMismatchError as error:
        assert "driver" in str(error) or "NO_DEVICE" in str(error)
    else:
        device.close()
        pytest.skip("there is a GPU here")
