"""What a plan for TensorRT or TensorRT-RTX cannot do here, and what goes wrong on the way, on a fake GPU: refused or told, and nothing left."""

import dataclasses
import sys

import fake_plans
import fake_tensorrt
import kernel_host
import numpy as np
import pytest
from fake_tensorrt import nothing_left
from noise_photos import photo

from fathom.runtime.artefact.plan import PlanFile
from fathom.runtime.errors import AccuracyError, DeviceLostError, EnvironmentMismatchError, FathomError, InputError, OutOfMemoryError
from fathom.runtime.pipeline import Pipeline
from fathom.runtime.tensorrt.backend import TensorRTBackend


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_a_plan_for_another_machine_is_refused_before_anything_is_deserialised(gpu, tiny, tmp_path, monkeypatch, backend):
    def refused(plan):
        with pytest.raises(EnvironmentMismatchError) as caught:
            Pipeline.open(plan)
        assert gpu.trt[backend].deserialised == 0
        nothing_left(gpu)
        return str(caught.value)

    words = refused(fake_plans.gpu_plan(tiny, tmp_path / "x.plan", backend, release="10.3.0" if backend == "tensorrt" else "1.6.1"))
    assert f"built with {backend} 1" in words and "installed here" in words and "pip install" in words and "depth-build" in words
    words = refused(fake_plans.gpu_plan(tiny, tmp_path / "x.plan", backend, targets=("sm89", "sm120")))
    assert "built for sm89, sm120" in words and "is sm86" in words
    assert ("--target sm86" if backend == "tensorrt-rtx" else "on this machine") in words
    fake_tensorrt.install(monkeypatch, gpu, backend == "tensorrt-rtx", cuda=13)
    gpu.driver = 12040
    words = refused(fake_plans.gpu_plan(tiny, tmp_path / "x.plan", backend))
    assert "knows CUDA 12.4" in words and "needs CUDA 13" in words and "580" in words and "cu12" in words


def test_rtx_judges_the_header_before_it_reads_the_engine(gpu, tiny, tmp_path):
    plan = fake_plans.gpu_plan(tiny, tmp_path / "x.plan", "tensorrt-rtx", targets=("sm86",))
    with PlanFile.open(plan) as file:
        manifest = dataclasses.replace(file.manifest, backend_version="1.7.1.999")  # same release, another build: our own check lets it pass
        fake = gpu.trt["tensorrt-rtx"]
        fake.Runtime.get_engine_validity = lambda self, header: (fake.EngineValidity.INVALID, 3)
        file.manifest = manifest
        with pytest.raises(EnvironmentMismatchError, match=r"stage encoder .*cannot run here \(diagnostics 3\)"):
            TensorRTBackend(file)
    assert fake.deserialised == 0
    nothing_left(gpu)


def test_a_gpu_that_rtx_does_not_list(gpu, tiny, tmp_path):
    gpu.capability = (9, 0)
    plan = fake_plans.gpu_plan(tiny, tmp_path / "x.plan", "tensorrt-rtx")
    with pytest.raises(EnvironmentMismatchError, match="does not list sm90"):
        Pipeline.open(plan)


@pytest.mark.parametrize("version", ["8.4.3.1", "9.3.0", "10.0.1", "10.2.0"])
def test_a_tensorrt_of_no_tier(gpu, tiny, tmp_path, monkeypatch, version):
    fake_tensorrt.install(monkeypatch, gpu, version=version)
    with pytest.raises(EnvironmentMismatchError, match=r"8\.5 or 8\.6 \(JetPack 5\), or 10\.3 and later"):
        Pipeline.open(fake_plans.gpu_plan(tiny, tmp_path / "x.plan"))


def test_no_tensorrt(gpu, tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EnvironmentMismatchError, match="pip install"):
        Pipeline.open(fake_plans.gpu_plan(tiny, tmp_path / "x.plan"))
    nothing_left(gpu)


@pytest.mark.parametrize(
    ("lies", "words"),
    [
        ({"head": {"inputs": ["feature_map"], "dtypes": {"feature_map": "FLOAT", "depth": "FLOAT"}}}, r"stage head takes \['feature_map'\]"),
        ({"head": {"dtypes": {"features": "HALF", "depth": "FLOAT"}}}, "float16 in tensor features"),
        ({"head": {"dtypes": {"features": "BF16", "depth": "FLOAT"}}}, "unknown in tensor features"),
        ({"encoder": {"shapes": {"image": [-1, 3, 40, 64], "features": [-1, 8, 24, 32]}}}, r"shape \(-1, 3, 40, 64\) in tensor image"),
        ({"encoder": {"batch": [1, 1, 2]}}, "batches of 1 to 4"),
    ],
)
def test_engines_that_are_not_what_the_manifest_says(gpu, tiny, tmp_path, lies, words):
    with pytest.raises(InputError, match=words):
        Pipeline.open(fake_plans.gpu_plan(tiny, tmp_path / "x.plan", lies=lies))
    nothing_left(gpu)


def test_memory_that_runs_out(gpu, tiny, tmp_path):
    plan = fake_plans.gpu_plan(tiny, tmp_path / "x.plan", lies={"encoder": {"activation_nbytes": 1 << 30}})
    with pytest.raises(OutOfMemoryError, match="1024 MiB were asked for"):
        Pipeline.open(plan)
    nothing_left(gpu)
    plan = fake_plans.gpu_plan(tiny, tmp_path / "x.plan")
    for call in ("deserialize", "context"):
        gpu.trt["tensorrt"].fail[call] = "Error Code 2: OutOfMemory (Requested size was 73400320 bytes.)"
        with pytest.raises(OutOfMemoryError, match="OutOfMemory"):
            Pipeline.open(plan)
        nothing_left(gpu)


@pytest.mark.skipif(not kernel_host.compiler(), reason="no C++ compiler")
def test_a_photo_that_memory_does_not_suffice_for(gpu, tiny, tmp_path):
    with Pipeline.open(fake_plans.gpu_plan(tiny, tmp_path / "x.plan")) as pipeline:
        pipeline.predict(photo())
        gpu.nbytes = gpu.used()
        with pytest.raises(OutOfMemoryError):
            pipeline.predict(photo(2000, 3000))
        gpu.nbytes = 1 << 28
        pipeline.predict(photo())  # it goes on
    nothing_left(gpu)


def test_an_engine_that_cannot_be_loaded_or_run(gpu, tiny, tmp_path):
    plan = fake_plans.gpu_plan(tiny, tmp_path / "x.plan")
    gpu.trt["tensorrt"].fail["deserialize"] = "Assertion serializationVersion failed"
    with pytest.raises(EnvironmentMismatchError, match=r"stage encoder cannot be loaded \(Assertion"):
        Pipeline.open(plan)
    nothing_left(gpu)
    with Pipeline.open(plan) as pipeline:
        wanted = pipeline.predict(photo()).depth_m
        gpu.trt["tensorrt"].fail["execute"] = "Cask convolution execution"
        with pytest.raises(FathomError, match=r"stage encoder failed \(Cask"):
            pipeline.predict(photo())
        np.testing.assert_allclose(pipeline.predict(photo()).depth_m, wanted, rtol=1e-6)  # one error does not spoil the next
    nothing_left(gpu)


def test_a_device_that_is_lost_in_the_middle(gpu, tiny, tmp_path):
    plan = fake_plans.gpu_plan(tiny, tmp_path / "x.plan")
    pipeline = Pipeline.open(plan)
    pipeline.predict(photo())
    gpu.fail_next["cuEventRecord"] = "CUDA_ERROR_ILLEGAL_ADDRESS"
    with pytest.raises(DeviceLostError):
        pipeline.predict(photo())
    for future in [pipeline.submit(photo()) for _ in range(3)]:
        with pytest.raises(DeviceLostError):
            future.result()
    pipeline.close()
    pipeline.close()


def test_nan_is_traced_to_its_stage(gpu, make_artefacts, tmp_path):
    made = make_artefacts(poison=np.nan)
    with Pipeline.open(fake_plans.gpu_plan(made, tmp_path / "x.plan")) as pipeline:
        with pytest.raises(AccuracyError, match=r"stage encoder puts out .* in tensor features"):
            pipeline.predict(photo())
        assert gpu.launches > 0 or gpu.host is None
    nothing_left(gpu)
