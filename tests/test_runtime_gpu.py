"""What only a GPU can tell. ``pytest -m gpu``; each test says which package it lacks if it cannot run."""

import importlib.util
import json
import resource
import threading

import fake_plans
import fake_tensorrt
import numpy as np
import pytest
import test_trt_plugins_kernels as kernel_tests
import torch_engines

from fathom.runtime.artefact.plan import PlanFile
from fathom.runtime.commands import doctor, doctor_trial
from fathom.runtime.cuda.open_device import open_device
from fathom.runtime.cuda.resources import DeviceBuffer, Event, PinnedBuffer, Stream
from fathom.runtime.errors import FathomError, OutOfMemoryError
from fathom.runtime.kernels.antialias import antialias_record, filter_table, passes
from fathom.runtime.kernels.device_kernels import (
    NOTHING_FOUND,
    DeviceKernels,
    launch_antialias,
    launch_inspect,
    launch_postprocess,
    launch_preprocess,
    read_inspection,
)
from fathom.runtime.kernels.records import WINDOW, gather_of, postprocess_record, preprocess_record
from fathom.runtime.photo.postprocess import way_back
from fathom.runtime.photo.preprocess import windows_of
from fathom.runtime.pipeline import Pipeline
from fathom.runtime.tensorrt.backend import TensorRTBackend

pytestmark = pytest.mark.gpu
TINY = ("evp-tiny", "evp-refer-tiny", "vpd-tiny", "depthclip-tiny", "moa-depthclip-tiny", "depthblip2-tiny", "llm-mde-tiny")
FRAMES = 10_000


@pytest.fixture(params=["cuda-bindings", "pycuda"])
def device(request):
    if importlib.util.find_spec("pycuda" if request.param == "pycuda" else "cuda") is None:
        pytest.skip(f"{request.param} is not installed")
    device = open_device(0, request.param)
    yield device
    device.close()


def test_facts_and_memory(device):
    assert device.total_nbytes > 1 << 30 and device.capability >= (7, 5)
    with device:
        free, total = device.memory()
        assert 0 < free <= total
        buffer = DeviceBuffer(device, 64 << 20)
        assert buffer.address % 256 == 0
        assert device.memory()[0] <= free - (60 << 20)
        buffer.close()
        assert device.memory()[0] >= free - (4 << 20)
        with pytest.raises(OutOfMemoryError, match="are free"):
            DeviceBuffer(device, total * 2)
        DeviceBuffer(device, 1024).close()


def test_copies_events_and_graphs(device):
    with device:
        stream, a, b = Stream(device), DeviceBuffer(device, 4 << 20), DeviceBuffer(device, 4 << 20)
        source, target = (PinnedBuffer(device, (1 << 20,), np.dtype(np.float32)) for _ in range(2))
        start, end = Event(device), Event(device)

        def work():
            stream.upload(source.array, a)
            stream.copy(a.address, b.address, 4 << 20)
            stream.download(b, target.array)

        source.array[:] = np.arange(1 << 20)
        start.record(stream)
        work()
        end.record(stream)
        end.wait()
        assert end.since_ms(start) > 0
        assert np.array_equal(source.array, target.array)
        if device.supports_graphs:
            graph = stream.capture(work)
            for value in range(3):
                source.array[:] = value
                graph.launch(stream)
                stream.synchronize()
                assert (target.array == value).all()


def on_device(device, stream, array):
    buffer = DeviceBuffer(device, max(array.nbytes, 1))
    stream.upload(np.ascontiguousarray(array), buffer)
    return buffer


@pytest.mark.parametrize("name", kernel_tests.CASES)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_kernels_equal_the_reference(device, name, dtype):
    steps, size, more = kernel_tests.CASES[name]
    contract, protocol, placed = kernel_tests.contract_for(steps, size, **more)
    photo = np.random.default_rng(3).integers(0, 256, (*size, 3), dtype=np.uint8)
    windows, gather, half = windows_of(protocol), gather_of(placed, size), dtype == np.float16
    back, looked_at = way_back(placed, protocol, contract.input.window)
    tensor = np.random.default_rng(4).uniform(0.5, 10, (len(windows), 1, contract.input.window[0] // 2, contract.input.window[1] // 2)).astype(dtype)
    shaped = np.zeros((len(windows), 3, *contract.input.canvas), dtype)
    values, valid, found = np.zeros(size, np.float32), np.zeros(size, np.uint8), np.tile(NOTHING_FOUND, (len(windows), 1))
    with device:
        stream, kernels = Stream(device), DeviceKernels(device)
        launch = kernels.on(stream)
        photo_at, out, tensor_at = (on_device(device, stream, array) for array in (photo, shaped, tensor))
        values_at, valid_at, found_at = (on_device(device, stream, array) for array in (values, valid, found))
        looks_at = on_device(device, stream, np.array([(window.left, window.flip, window.fill) for window in windows], WINDOW).view(np.uint8))
        pixels = photo_at.address
        if gather.filtered:
            part, row, kept = pixels + gather.region[0] * size[1] * 3 + gather.region[1] * 3, size[1] * 3, []
            for across, (high, wide) in passes(gather.region[2:], gather.resized):
                table = filter_table(gather.region[2 if across else 3], high if across else wide, gather.filtered)
                table_at, target = on_device(device, stream, table.copy()), DeviceBuffer(device, high * wide * 3)
                kept += [table_at, target]
                launch_antialias(launch, antialias_record(part, row, target.address, (high, wide), table_at.address, table.shape[1] - 2, across))
                part, row = target.address, wide * 3
            pixels = part
        for number, window in enumerate(windows):
            at = out.address + number * shaped[0].nbytes
            launch_preprocess(launch, preprocess_record(gather, window, contract.input, pixels, at, half))
        places = (tensor_at.address, looks_at.address, values_at.address, valid_at.address)
        launch_postprocess(launch, postprocess_record(gather_of(back, size), looked_at, contract.output, tensor.shape, half, *places))
        launch_inspect(launch, tensor_at.address, found_at.address, len(windows), tensor[0].size, half)
        for buffer, array in ((out, shaped), (values_at, values), (valid_at, valid), (found_at, found)):
            stream.download(buffer, array)
        stream.synchronize()
    error = np.abs(shaped.astype(np.float32) - kernel_tests.pre_by_reference(photo, contract, protocol, placed))
    assert (error * np.reshape(kernel_tests.STD, (1, 3, 1, 1))).max() < 1 / 255
    wanted, wanted_valid = kernel_tests.post_by_reference(tensor, contract, protocol, placed, size)
    np.testing.assert_array_equal(valid.astype(bool), wanted_valid)
    assert np.abs(values - wanted).max() < 1e-3
    bad, least, greatest = read_inspection(found)
    assert (
        not bad.any() and np.array_equal(least, tensor.reshape(len(windows), -1).min(1)) and np.array_equal(greatest, tensor.reshape(len(windows), -1).max(1))
    )


# --- the whole runtime, with PyTorch in the place of TensorRT


@pytest.fixture
def stand_in(monkeypatch, tiny, tmp_path):
    """Callable(batch) -> plan whose engines PyTorch carries out on our stream."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch has no CUDA")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    fake_tensorrt.install(monkeypatch, torch_engines.TorchMachine())
    return lambda batch: fake_plans.gpu_plan(tiny, tmp_path / "x.plan", batch=batch, targets=())


def photo(seed=0, height=60, width=100):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("binding", ["cuda-bindings", "pycuda"])
@pytest.mark.parametrize("batch", [(1, 2, 4), (2, 2, 2)])
def test_photos_to_maps(stand_in, tiny, monkeypatch, binding, batch):
    if importlib.util.find_spec("pycuda" if binding == "pycuda" else "cuda") is None:
        pytest.skip(f"{binding} is not installed")
    monkeypatch.setenv("FATHOM_CUDA", binding)
    photos = [photo(k, 50 + k, 90 - k) for k in range(5)]
    with Pipeline.open(tiny.plan) as pipeline:
        wanted = pipeline.predict_batch(photos) + [pipeline.predict(photos[0], "windows")]
    with Pipeline.open(stand_in(batch)) as pipeline:
        got = pipeline.predict_batch(photos) + [pipeline.predict(photos[0], "windows")]
        print(pipeline.remarks)
    for one, other in zip(got, wanted, strict=True):
        np.testing.assert_allclose(one.depth_m, other.depth_m, atol=1e-3)


def test_graph_on_and_off_are_equal(stand_in):
    inputs = {"image": np.random.default_rng(0).normal(size=(2, 3, 48, 64)).astype(np.float32)}
    results = []
    with PlanFile.open(stand_in((2, 2, 2))) as plan:
        for graphs in (True, False):
            engines = TensorRTBackend(plan, graphs=graphs)
            assert any("one CUDA graph" in remark for remark in engines.remarks) == graphs
            results.append(engines.run(inputs)["depth"])
            engines.close()
    np.testing.assert_array_equal(*results)


def test_eight_threads_and_two_pipelines(stand_in, tiny):
    photos = [photo(k) for k in range(8)]
    plan = stand_in((1, 1, 1))
    with Pipeline.open(tiny.plan) as pipeline:
        wanted = [pipeline.predict(one).depth_m for one in photos]
    failures = []
    with Pipeline.open(plan, streams=2) as first, Pipeline.open(plan) as second:

        def work(k):
            for turn in range(20):
                depth = (first, second)[(k + turn) % 2].predict(photos[k]).depth_m
                if np.abs(depth - wanted[k]).max() > 1e-3:
                    failures.append((k, turn))

        threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    assert not failures


def test_many_frames_do_not_grow_memory(stand_in):
    device = open_device()
    with Pipeline.open(stand_in((1, 1, 1))) as pipeline:
        one = photo()
        for _ in range(500):
            pipeline.submit(one)
        pipeline.predict(one)
        with device:
            free, _ = device.memory()
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        futures = [pipeline.submit(one) for _ in range(FRAMES)]
        first, last = futures[0].result().depth_m, futures[-1].result().depth_m
        np.testing.assert_array_equal(first, last)
        del futures
        with device:
            assert free - device.memory()[0] < 8 << 20
        grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - host) / 1024
        assert grown_mib < 100 + FRAMES * first.nbytes * 1.3 / 2**20  # the maps themselves were kept
    device.close()


# --- TensorRT and TensorRT-RTX


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt-rtx"])
def backend(request):
    """A backend that runs an engine of one operator here; its own words if it does not."""
    outcome = doctor_trial.try_in_child(request.param)
    print(request.param, outcome)
    if not outcome["ok"]:
        pytest.skip(f"{request.param} does not run on this card: {outcome['words']}")
    return request.param


def test_the_doctor_agrees_with_the_trial():
    found = doctor.examine(trial=True)
    print(json.dumps(found, indent=1))
    assert found["gpus"]
    for name in ("tensorrt", "tensorrt-rtx"):
        assert found["backends"][name]["works"] <= found["backends"][name]["trial"]["ok"]


@pytest.fixture(scope="module", params=TINY)
def bundle(request, tmp_path_factory):
    pytest.importorskip("torch")
    from fathom.export.bundle.bundle import write_bundle
    from fathom.models import catalog

    try:
        scene = "kitchen" if "scene" in catalog.NETWORKS[request.param].options else None
        network = catalog.load(request.param, random_init=True, scene=scene)
    except FathomError as error:
        pytest.skip(str(error))
    path = tmp_path_factory.mktemp("bundles") / request.param
    write_bundle(network, path)
    return path


def goldens(path):
    from safetensors.numpy import load_file

    from fathom.runtime.artefact.bundle import BundleDirectory

    with BundleDirectory.open(path) as bundle:
        tensors = load_file(bundle.path(bundle.manifest.goldens[0]))
        specs = bundle.manifest.specs()
    made = [tensor.name for stage in specs for tensor in stage.outputs]
    inputs = {tensor.name: tensors[tensor.name] for stage in specs for tensor in stage.inputs if tensor.name not in made}
    return inputs, {name: tensors[name] for name in made}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_engines_give_the_goldens(backend, bundle, tmp_path, precision):
    """Every stage's output against PyTorch FP32, and the depth against ONNX Runtime."""
    from fathom.export.plan.build import build_plan
    from fathom.export.plan.build_options import BuildOptions

    inputs, wanted = goldens(bundle)
    size = len(next(iter(inputs.values())))
    targets = ()
    if backend == "tensorrt-rtx":
        device = open_device()
        targets = (device.target,)
        device.close()
    build_plan(bundle, tmp_path / "x.plan", BuildOptions(backend, precision, targets, (size, size, size)))
    with PlanFile.open(tmp_path / "x.plan") as plan:
        engines = TensorRTBackend(plan)
        print(engines.remarks)
        dtypes = {t.name: t.dtype for stage in plan.manifest.specs() for t in stage.inputs}
        feed = {name: array.astype(dtypes[name]) for name, array in inputs.items()}
        kept = engines.run(feed, frozenset(wanted))
        again = engines.run(feed)
        engines.close()
    for name, truth in wanted.items():
        scale = np.abs(truth).max()
        relative = np.abs(kept[name].astype(np.float32) - truth).max() / scale
        assert relative < (1e-3 if precision == "fp32" else 5e-2), (name, relative)
    for name, array in again.items():
        np.testing.assert_allclose(array, kept[name], rtol=1e-2 if precision == "fp16" else 1e-4, atol=1e-4)


def test_onnxruntime_on_the_gpu(tiny):
    ort = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has no CUDA provider")
    with Pipeline.open(tiny.plan) as pipeline:
        wanted = pipeline.predict(photo()).depth_m
    with Pipeline.open(tiny.plan, device="cuda") as pipeline:
        np.testing.assert_allclose(pipeline.predict(photo()).depth_m, wanted, rtol=1e-2)


def test_stages_are_timed_in_every_precision(backend, bundle, tmp_path):
    from fathom.export.plan.build_options import BuildOptions
    from fathom.export.plan.time_stages import time_stages

    times = time_stages(bundle, tmp_path / "times", BuildOptions(backend), on_message=print, on_progress=lambda what, done: None)
    print(times)
    assert all({"fp32", "fp16"} <= set(found) and min(found.values()) > 0 for found in times.stages.values())
    assert any("int8" in found for found in times.stages.values())
