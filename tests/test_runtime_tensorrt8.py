"""Plans for TensorRT 8.5 and 8.6 through their whole life on a fake GPU whose package has that API, against the same network on ONNX Runtime."""

import fake_cuda
import fake_plans
import fake_pycuda
import fake_tensorrt
import numpy as np
import pytest
from fake_tensorrt import nothing_left

from fathom.runtime.artefact.plan import PlanFile
from fathom.runtime.errors import EnvironmentMismatchError, FathomError, OutOfMemoryError, UsageError
from fathom.runtime.pipeline import Pipeline
from fathom.runtime.tensorrt.adapters.open_adapter import open_adapter
from fathom.runtime.tensorrt.adapters.releases import tier_of
from fathom.runtime.tensorrt.backend import TensorRTBackend

VERSIONS = ["8.5.2.2", "8.6.1.6"]


@pytest.fixture(params=VERSIONS)
def gpu(request, monkeypatch, tmp_path):
    """A machine with one fake GPU and TensorRT 8."""
    machine = fake_cuda.Machine(capability=(7, 2))
    fake_cuda.install(monkeypatch, machine)
    monkeypatch.setenv("FATHOM_CACHE_DIR", str(tmp_path / "cache"))
    machine.version = request.param
    machine.trt = fake_tensorrt.install(monkeypatch, machine, version=request.param)
    return machine


def plan_for(gpu, tiny, path, **more):
    return fake_plans.gpu_plan(tiny, path, **{"release": gpu.version, "targets": ("sm72",)} | more)


def photos(count):
    return [np.random.default_rng(k).integers(0, 256, (40 + 7 * k, 90 - 5 * k, 3), dtype=np.uint8) for k in range(count)]


@pytest.mark.parametrize("batch", [(1, 2, 4), (2, 2, 2)])
def test_the_whole_life(gpu, tiny, tmp_path, batch):
    assert not hasattr(gpu.trt, "ExecutionContextAllocationStrategy")
    with Pipeline.open(tiny.plan, threads=1) as pipeline:
        wanted = pipeline.predict_batch(photos(5))
        windows = pipeline.predict(photos(1)[0], "windows")
    pipeline = Pipeline.open(plan_for(gpu, tiny, tmp_path / "x.plan", batch=batch))
    assert gpu.trt.counts == {"engine": 2, "context": 2}
    for got, depth in zip(pipeline.predict_batch(photos(5)), wanted, strict=True):
        np.testing.assert_allclose(got.depth_m, depth.depth_m, atol=1e-3)
    np.testing.assert_allclose(pipeline.predict(photos(1)[0], "windows").depth_m, windows.depth_m, atol=1e-3)
    words = " | ".join(pipeline.remarks)
    assert ("one CUDA graph over all stages" if batch == (2, 2, 2) else "without a CUDA graph") in words
    pipeline.close()
    nothing_left(gpu)


def test_memory_is_the_weights_and_the_largest_stage(gpu, tiny, tmp_path):
    lies = {"encoder": {"activation_nbytes": 3 << 20}, "head": {"activation_nbytes": 1 << 20}}
    with PlanFile.open(plan_for(gpu, tiny, tmp_path / "x.plan", batch=(1, 1, 1), lies=lies)) as file:
        engines = TensorRTBackend(file)
        assert gpu.used() == (3 << 20) + 3 * 48 * 64 * 4 + 8 * 24 * 32 * 4
        engines.close()
    nothing_left(gpu)


def test_a_range_of_batches_serves_one_stream(gpu, tiny, tmp_path):
    with pytest.raises(UsageError, match=r"one run at a time use an engine for batches of 1 to 4; .*depth-build BUNDLE --batch 2"):
        Pipeline.open(plan_for(gpu, tiny, tmp_path / "x.plan"), streams=2)
    assert gpu.trt.deserialised == 0
    with Pipeline.open(plan_for(gpu, tiny, tmp_path / "x.plan", batch=(2, 2, 2)), streams=2) as pipeline:
        pipeline.predict_batch(photos(4))
    nothing_left(gpu)


def test_what_goes_wrong_is_told(gpu, tiny, tmp_path):
    plan = plan_for(gpu, tiny, tmp_path / "x.plan")
    gpu.trt.fail["context"] = "Error Code 2: OutOfMemory"
    with pytest.raises(OutOfMemoryError):
        Pipeline.open(plan)
    with Pipeline.open(plan) as pipeline:
        gpu.trt.fail["execute"] = "Cask convolution execution"
        with pytest.raises(FathomError, match=r"stage encoder failed \(Cask"):
            pipeline.predict(photos(1)[0])
    with pytest.raises(EnvironmentMismatchError, match=r"built with tensorrt 8\.5\.1.* installed here"):
        Pipeline.open(plan_for(gpu, tiny, tmp_path / "x.plan", release="8.5.1.7"))
    nothing_left(gpu)


def test_pycuda_which_jetpack_5_has(monkeypatch, tiny, tmp_path):
    machine = fake_cuda.Machine()
    fake_pycuda.install(monkeypatch, machine)
    machine.trt = fake_tensorrt.install(monkeypatch, machine, version="8.5.2.2")
    with Pipeline.open(tiny.plan, threads=1) as pipeline:
        wanted = pipeline.predict(photos(1)[0]).depth_m
    with Pipeline.open(fake_plans.gpu_plan(tiny, tmp_path / "x.plan", release="8.5.2.2")) as pipeline:
        np.testing.assert_allclose(pipeline.predict(photos(1)[0]).depth_m, wanted, atol=1e-3)
    nothing_left(machine)


def test_a_tier_and_an_adapter_for_every_release():
    import types

    for version, tier, adapter in [
        ("8.5.1.7", "8.5", "TensorRT8"),
        ("8.5.2.2", "8.5", "TensorRT8"),
        ("8.6.1", "8.6", "TensorRT8"),
        ("10.3.0", "10.3", "TensorRT10"),
        ("10.16.2.10", "10.3", "TensorRT10"),
        ("11.4.1", "10.3", "TensorRT10"),
        ("12.0.0", "10.3", "TensorRT10"),
    ]:
        package = types.ModuleType("tensorrt")
        package.__version__ = version
        assert (tier_of(version).name, type(open_adapter(package)).__name__) == (tier, adapter), version
    for version in ("7.2.3.4", "8.0.1", "8.4.3", "9.3.0", "10.0.1", "10.2.0"):
        with pytest.raises(EnvironmentMismatchError, match="JetPack 5"):
            tier_of(version)
