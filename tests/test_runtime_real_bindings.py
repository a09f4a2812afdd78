"""The real cuda-bindings and the real pycuda, called by the runtime, over a driver that computes on the host."""

import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import fake_plans
import host_driver
import kernel_host
import pytest

SCRIPT = """
import ctypes, gc, sys
sys.path.insert(0, {tests!r})
import numpy as np, pytest
import fake_tensorrt
from fathom.runtime.cuda.open_device import open_device
from fathom.runtime.cuda.resources import DeviceBuffer, Event, Graph, PinnedBuffer, Stream
from fathom.runtime.errors import EnvironmentMismatchError, FathomError, OutOfMemoryError
from fathom.runtime.pipeline import Pipeline

driver = ctypes.CDLL("libcuda.so.1")
device = open_device(0)
assert (device.binding, device.name, device.capability, device.driver) == ({binding!r}, "Host GPU", (8, 6), (13, 0)), device.name
with pytest.raises(EnvironmentMismatchError, match="INVALID_DEVICE"):
    open_device(5)
with device:
    assert device.memory() == (1 << 30, 1 << 30)
    with pytest.raises(OutOfMemoryError, match="2048 MiB were asked for"):
        DeviceBuffer(device, 2 << 30)
    stream, other, a, b = Stream(device), Stream(device), DeviceBuffer(device, 400), DeviceBuffer(device, 400)
    source, target = (PinnedBuffer(device, (100,), np.dtype(np.float32)) for _ in range(2))
    start, end = Event(device), Event(device)
    def work():
        stream.upload(source.array, a)
        stream.copy(a.address, b.address, 400)
        stream.download(b, target.array)
    source.array[:] = np.arange(100)
    start.record(stream); work(); end.record(stream); other.wait_for(end); end.wait(); stream.synchronize()
    assert end.since_ms(start) > 0 and np.array_equal(source.array, target.array)
    if device.supports_graphs:
        graph = stream.capture(work)
        source.array[:] = 7
        assert target.array[5] == 5
        graph.launch(stream)
        stream.synchronize()
        assert (target.array == 7).all()
        del graph
    del source, target, a, b, start, end, stream, other, work
device.close()
gc.collect()
assert driver.host_driver_alive() == 0, driver.host_driver_alive()
with pytest.raises(FathomError), device:
    pass


class HostMachine:
    capability, execute, lock = (8, 6), None, None
    def enter(self, call): pass
    def stream_of(self, address): return address
    def send(self, stream, work): work()
    def view(self, address, nbytes): return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))

patch = pytest.MonkeyPatch()
fake_tensorrt.install(patch, HostMachine())
photos = [np.random.default_rng(k).integers(0, 256, (50 + k, 90, 3), dtype=np.uint8) for k in range(5)]
with Pipeline.open({cpu_plan!r}, threads=1) as pipeline:
    wanted = pipeline.predict_batch(photos) + [pipeline.predict(photos[0], "windows")]
for streams in (1, 2):
    with Pipeline.open({plan!r}, streams=streams) as pipeline:
        assert not any("shaped on the CPU" in remark for remark in pipeline.remarks), pipeline.remarks
        got = [pipeline.submit(one) for one in photos]
        got = [one.result() for one in got] + [pipeline.predict(photos[0], "windows")]
    for one, other in zip(got, wanted):
        np.testing.assert_allclose(one.depth_m, other.depth_m, atol=1e-3)
gc.collect()
assert driver.host_driver_alive() == 0, driver.host_driver_alive()
print("all is well")
"""


@pytest.mark.skipif(not kernel_host.compiler(), reason="no C++ compiler")
@pytest.mark.parametrize(("binding", "module"), [("cuda-bindings", "cuda"), ("pycuda", "pycuda")])
def test_every_call_reaches_the_driver_as_it_is_meant(tiny, tmp_path, binding, module):
    spec = importlib.util.find_spec(module)
    if spec is None or (binding == "cuda-bindings" and importlib.util.find_spec("cuda.bindings") is None):
        pytest.skip(f"{binding} is not installed")
    also = []
    if binding == "pycuda":
        also = [name for library in Path(spec.submodule_search_locations[0]).glob("_driver*.so") for name in host_driver.wanted_by(library)]
    folder = host_driver.build(tmp_path, also)
    # Kernels run inline here, so a graph of foreign engines cannot be recorded: with pycuda there is none anyway, else the batch is free.
    plan = fake_plans.gpu_plan(tiny, tmp_path / "x.plan", batch=(1, 1, 2))
    script = textwrap.dedent(SCRIPT).format(tests=str(Path(__file__).parent), binding=binding, plan=str(plan), cpu_plan=str(tiny.plan))
    environment = os.environ | {"LD_LIBRARY_PATH": f"{folder}:{os.environ.get('LD_LIBRARY_PATH', '')}", "FATHOM_CUDA": binding}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0 and done.stdout.strip() == "all is well", done.stdout + done.stderr
