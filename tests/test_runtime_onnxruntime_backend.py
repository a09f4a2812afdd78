"""Stages on ONNX Runtime, against the same sums done by hand."""

import sys
import threading
import time

import numpy as np
import pytest

from fathom.runtime.artefact.bundle import BundleDirectory
from fathom.runtime.artefact.plan import PlanFile
from fathom.runtime.backend import open_backend
from fathom.runtime.errors import EnvironmentMismatchError, FathomError, InputError, UsageError
from fathom.runtime.onnxruntime.backend import OnnxRuntimeBackend


@pytest.fixture(params=["plan", "bundle"])
def opened(request, tiny):
    with PlanFile.open(tiny.plan) if request.param == "plan" else BundleDirectory.open(tiny.bundle) as artefact:
        backend = open_backend(artefact, threads=1)
        yield tiny, backend
        backend.close()


def image(n=2, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 3, 48, 64)).astype(np.float32)


@pytest.mark.parametrize("n", [1, 3])
def test_chained_stages_equal_the_sums_by_hand(opened, n):
    tiny, backend = opened
    result = backend.run({"image": image(n)})
    assert set(result) == {"depth"}
    np.testing.assert_allclose(result["depth"], tiny.expected(tiny.kernel, image(n)), rtol=1e-5)


def test_tensors_on_the_way_can_be_kept(opened):
    _, backend = opened
    result = backend.run({"image": image()}, frozenset({"features", "depth"}))
    np.testing.assert_allclose(result["features"].mean(axis=1, keepdims=True) + 1, result["depth"], rtol=1e-5)
    assert set(backend.run({"image": image()}, frozenset({"features"}))) == {"features"}


def test_an_array_that_is_not_contiguous_gives_the_same(opened):
    _, backend = opened
    straight = image()
    crooked = np.asfortranarray(straight)
    assert not crooked.flags.c_contiguous
    np.testing.assert_allclose(backend.run({"image": crooked})["depth"], backend.run({"image": straight})["depth"], rtol=1e-6)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"image": image().astype(np.float64)}, "float64, wanted float32"),
        ({"image": image()[:, :, :40]}, r"shape \(2, 3, 40, 64\)"),
        ({"picture": image()}, "wanted exactly"),
        ({}, "wanted exactly"),
    ],
)
def test_wrong_inputs_are_refused_by_name(opened, inputs, words):
    _, backend = opened
    with pytest.raises(ValueError, match=words):
        backend.run(inputs)
    with pytest.raises(ValueError, match="no stage makes"):
        backend.run({"image": image()}, frozenset({"nothing"}))


def test_closing_twice_is_fine_and_running_closed_is_not(opened):
    _, backend = opened
    backend.close()
    backend.close()
    with pytest.raises(ValueError, match="closed"):
        backend.run({"image": image()})


def test_weights_may_go_by_the_name_of_their_file(make_artefacts):
    made = make_artefacts(location="encoder.data")
    with PlanFile.open(made.plan) as plan:
        backend = open_backend(plan)
        np.testing.assert_allclose(backend.run({"image": image()})["depth"], made.expected(made.kernel, image()), rtol=1e-5)
        backend.close()


def test_older_onnxruntime_gets_weights_one_by_one(tiny, monkeypatch):
    import onnxruntime

    class Older(onnxruntime.SessionOptions):
        def __getattribute__(self, name):
            if name == "add_external_initializers_from_files_in_memory":
                raise AttributeError(name)
            return super().__getattribute__(name)

    monkeypatch.setattr(onnxruntime, "SessionOptions", Older)
    with PlanFile.open(tiny.plan) as plan:
        backend = OnnxRuntimeBackend(plan)
        np.testing.assert_allclose(backend.run({"image": image()})["depth"], tiny.expected(tiny.kernel, image()), rtol=1e-5)
        backend.close()


def test_gpu_engines_are_refused_with_honest_words(tiny):
    with PlanFile.open(tiny.gpu_plan) as plan, pytest.raises(EnvironmentMismatchError, match=r"tensorrt-rtx engines \(for sm86\).*need an NVIDIA GPU"):
        open_backend(plan)


def test_devices_and_threads(tiny):
    import onnxruntime

    with PlanFile.open(tiny.plan) as plan:
        with pytest.raises(UsageError, match="no device 'tpu'"):
            open_backend(plan, device="tpu")
        with pytest.raises(UsageError, match="0 threads"):
            open_backend(plan, threads=0)
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            with pytest.raises(EnvironmentMismatchError, match="no CUDA provider"):
                open_backend(plan, device="cuda")


def test_a_missing_onnxruntime_is_named(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with PlanFile.open(tiny.plan) as plan, pytest.raises(EnvironmentMismatchError, match="pip install onnxruntime"):
        open_backend(plan)


def test_a_graph_that_is_not_what_the_manifest_says_is_refused(make_artefacts):
    import dataclasses

    from fathom.export.plan.plan_file import file_facts, write_plan

    made = make_artefacts()
    with PlanFile.open(made.plan) as plan:
        sources = {name: bytes(plan.view(name)) for name in plan.manifest.files}
        manifest = plan.manifest
    for wrong, words in (
        (sources["engines/encoder.onnx"], "the graph of stage head takes features as nothing, and 1 more differ"),
        (b"\x08\x01garbage", "stage head"),
    ):
        changed = sources | {"engines/head.onnx": wrong}
        stages = (manifest.stages[0], dataclasses.replace(manifest.stages[1], weights="engines/encoder.data"))
        facts = {name: file_facts(source) for name, source in changed.items()}
        write_plan(made.folder / "wrong.plan", dataclasses.replace(manifest, stages=stages, files=facts), changed, force=True)
        with PlanFile.open(made.folder / "wrong.plan") as plan, pytest.raises(InputError, match=words):
            open_backend(plan)


def test_interrupting_ends_a_run_and_refuses_others(opened):
    _, backend = opened
    backend.interrupt()
    with pytest.raises(FathomError, match="stage encoder"):
        backend.run({"image": image()})


def test_a_long_run_can_be_interrupted(opened):
    _, backend = opened
    failed = []

    def loop():
        try:
            while True:
                backend.run({"image": image(16)})
        except FathomError as error:
            failed.append(error)

    thread = threading.Thread(target=loop)
    thread.start()
    time.sleep(0.1)
    backend.interrupt()
    thread.join(10)
    assert failed and not thread.is_alive()
