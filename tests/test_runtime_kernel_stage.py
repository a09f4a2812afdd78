"""A stage that is one of our own kernels, between engines on the stand-in device: photo to depth through the whole pipeline."""

import dataclasses
import json

import fake_cuda
import fake_plans
import fake_tensorrt
import kernel_host
import numpy as np
import pytest
from test_trt_plugins_operators import exact_bins, fp16_steps

from fathom.export.plan.plan_file import file_facts, write_plan
from fathom.runtime.artefact.contract import Resize
from fathom.runtime.artefact.manifest import PlanStage
from fathom.runtime.artefact.plan import PlanFile
from fathom.runtime.artefact.spec import StageSpec, TensorSpec
from fathom.runtime.errors import InputError
from fathom.runtime.pipeline import Pipeline
from fathom.runtime.tensorrt.backend import TensorRTBackend

pytestmark = pytest.mark.skipif(not kernel_host.compiler(), reason="no C++ compiler")
PARAMETERS = {"alpha": 300.0, "least_temperature": 0.0212, "greatest_temperature": 50.0}
FILE = {"operator": "BinsExpectation", "inputs": ["shape", "centers", "attractors"], "outputs": ["depth"], "parameters": PARAMETERS}
WRONG = [
    {"operator": "Wings"},
    {"parameters": {**PARAMETERS, "alpha": "strong"}},
    {"parameters": {**PARAMETERS, "least_temperature": 60.0}},
    {"parameters": {"alpha": 300.0}},
    {"inputs": ["shape", "centers", "depth"]},
    {"inputs": ["shape", "centers", "nothing"]},
    {"inputs": ["shape", "centers", ["attractors"]]},
    {"more": 1},
]


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def gpu(request, monkeypatch, host, tmp_path):
    machine = fake_cuda.Machine(host=host)
    machine.backend = request.param
    fake_cuda.install(monkeypatch, machine)
    monkeypatch.setenv("FATHOM_CACHE_DIR", str(tmp_path / "cache"))
    fake_tensorrt.install(monkeypatch, machine, rtx=request.param == "tensorrt-rtx")
    machine.execute = head
    return machine


def head(context):
    """What the engine before the kernel does: numbers for the bins, made of the photo."""
    tensors = {name: context._tensor(name) for name in context.addresses}
    for name, made in bins_of(tensors["image"]).items():
        tensors[name][...] = made


def bins_of(image):
    grey = np.clip(np.nan_to_num(image), -9, 9).mean(axis=1, keepdims=True)  # a batch that is not full holds anything
    shape = np.concatenate([grey, -grey, grey * 2 - 3, 3 - grey], axis=1)[:, :, ::2, ::2]
    centers = np.linspace(0.5, 8, 64).reshape(1, 64, 1, 1) + np.abs(grey[:, :, ::8, ::8])
    return {"shape": shape.astype(np.float16), "centers": centers.astype(np.float16), "attractors": grey[:, :, ::4, ::4].astype(np.float16)}


def kernel_plan(tiny, path, backend, batch, file=FILE, dtype="float16"):
    image, depth = TensorSpec("image", "float32", ("batch", 3, 48, 64)), TensorSpec("depth", dtype, ("batch", 1, 24, 32))
    sizes = {"shape": (4, 24, 32), "centers": (64, 6, 8), "attractors": (1, 12, 16)}
    between = tuple(TensorSpec(name, "float16", ("batch", *shape)) for name, shape in sizes.items())
    head_spec, kernel_spec = StageSpec("head", (image,), between), StageSpec("expectation", between, (depth,))
    release = fake_plans.RELEASES[backend]
    sources = {"engines/head.plan": fake_tensorrt.engine_bytes(head_spec, b"", release, batch)}
    sources["engines/expectation.kernel.json"] = json.dumps(file).encode()
    with PlanFile.open(tiny.plan) as plan:
        manifest = plan.manifest
    protocol = dataclasses.replace(manifest.contract.protocols[0], steps=(Resize(48, 64, "bilinear-antialias"),))
    stages = (PlanStage(head_spec, "engines/head.plan", "fp16"), PlanStage(kernel_spec, "engines/expectation.kernel.json", "fp16"))
    facts = {"stages": stages, "files": {name: file_facts(source) for name, source in sources.items()}, "batch": batch, "targets": ("sm86",)}
    facts |= {"backend": backend, "backend_version": release, "contract": dataclasses.replace(manifest.contract, protocols=(protocol,))}
    write_plan(path, dataclasses.replace(manifest, **facts), sources)
    return path


@pytest.mark.parametrize("batch", [(1, 2, 4), (2, 2, 2)])
def test_a_kernel_runs_between_engines(gpu, tiny, tmp_path, batch):
    plan = kernel_plan(tiny, tmp_path / "x.plan", gpu.backend, batch)
    image = np.random.default_rng(1).normal(0, 1, (2, 3, 48, 64)).astype(np.float32)
    with Pipeline.open(plan) as pipeline:
        depth = pipeline.backend.run({"image": image})["depth"]
        assert fp16_steps(depth, exact_bins(*bins_of(image).values())) <= 2
        photo = np.random.default_rng(2).integers(0, 256, (60, 100, 3), dtype=np.uint8)
        found = pipeline.predict(photo).depth_m
        assert found.shape == (60, 100) and np.isfinite(found).all() and np.ptp(found) > 0
        assert gpu.graph_launches > 0 if batch[0] == batch[2] and gpu.backend == "tensorrt" else True
        assert list(pipeline.backend.stage_times_ms({"image": image}, 2)) == ["head", "expectation"]
        assert pipeline.backend.layer_times_ms({"image": image}, 1) == {"head": {"one layer": [0.5]}, "expectation": {}}
    with PlanFile.open(plan) as file:
        backend = TensorRTBackend(file, kernels=False)  # photos on the CPU; the stage is still the kernel's
        np.testing.assert_array_equal(backend.run({"image": image})["depth"], depth)
        backend.close()
    assert gpu.leaks() == {}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_file_that_names_no_kernel_is_refused(gpu, tiny, tmp_path, wrong):
    with pytest.raises(InputError, match="kernel stage expectation"):
        Pipeline.open(kernel_plan(tiny, tmp_path / "x.plan", gpu.backend, (1, 1, 1), {**FILE, **wrong}))
    assert gpu.leaks() == {}


def test_tensors_of_two_types_are_refused(gpu, tiny, tmp_path):
    with pytest.raises(InputError, match="kernel stage expectation"):
        Pipeline.open(kernel_plan(tiny, tmp_path / "x.plan", gpu.backend, (1, 1, 1), dtype="float32"))
