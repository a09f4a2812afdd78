"""ONNX Runtime on CUDA: what is asked of it, with a stand-in that records the questions and computes on the CPU."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from fathom.export.plan.build import BuildOptions, build_plan
from fathom.runtime.artefact.plan import PlanFile
from fathom.runtime.backend import open_backend
from fathom.runtime.commands import run
from fathom.runtime.commands.inspection import describe
from fathom.runtime.errors import EnvironmentMismatchError
from fathom.runtime.onnxruntime import backend as module

CUDA = "CUDAExecutionProvider"


class Part:
    """Nodes of one provider, as the session tells them."""

    def __init__(self, ep_name, *kinds):
        self.ep_name, self._nodes = ep_name, [type("Node", (), {"op_type": kind})() for kind in kinds]

    def get_nodes(self):
        return self._nodes


class StandIn:
    """ONNX Runtime with a CUDA provider that is the CPU; ``log`` tells what happened, in order."""

    def __init__(self, starts=True, preload=True, parts=()):
        self.log, self.bound, self.starts, self.parts = [], [], starts, parts
        if preload:
            self.preload_dlls = self._preload

    def __getattr__(self, name):
        return getattr(onnxruntime, name)

    def get_available_providers(self):
        return [CUDA, "CPUExecutionProvider"]

    def _preload(self):
        self.log.append("preload")
        print("Failed to load libcudnn.so.9: no such file")

    def InferenceSession(self, graph, options, providers, **kwargs):
        self.log.append(("session", providers, kwargs))
        return Session(self, onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"]))

    @property
    def OrtValue(self):
        outer = self

        class Values:
            @staticmethod
            def ortvalue_from_numpy(array, device="cpu", index=0):
                outer.bound.append(("upload", device, index))
                return onnxruntime.OrtValue.ortvalue_from_numpy(array)

        return Values


class Session:
    """One session of the stand-in."""

    def __init__(self, outer, inner):
        self.outer, self.inner = outer, inner

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def get_providers(self):
        return [CUDA, "CPUExecutionProvider"] if self.outer.starts else ["CPUExecutionProvider"]

    def get_provider_graph_assignment_info(self):
        return self.outer.parts

    def io_binding(self):
        return Binding(self.outer, self.inner.io_binding())

    def run_with_iobinding(self, binding, options):
        self.inner.run_with_iobinding(binding.inner, options)


class Binding:
    """Where the tensors of one run were to lie."""

    def __init__(self, outer, inner):
        self.outer, self.inner = outer, inner

    def bind_ortvalue_input(self, name, value):
        self.outer.bound.append(("input", name, id(value)))
        self.inner.bind_ortvalue_input(name, value)

    def bind_output(self, name, device, index):
        self.outer.bound.append(("output", name, device, index))
        self.inner.bind_output(name, "cpu", 0)

    def get_outputs(self):
        self.made = self.inner.get_outputs()
        self.outer.bound.append(("made", *map(id, self.made)))
        return self.made


@pytest.fixture
def stand_in(monkeypatch):
    def install(**how):
        found = StandIn(**how)
        monkeypatch.setattr(module, "_import_onnxruntime", lambda: found)
        return found

    return install


def image(n=1):
    return np.random.default_rng(0).normal(size=(n, 3, 48, 64)).astype(np.float32)


def test_libraries_first_then_sessions_in_full_fp32(tiny, stand_in, capsys):
    ort = stand_in()
    with PlanFile.open(tiny.plan) as plan:
        backend = open_backend(plan, device="cuda:1")
        assert ort.log[0] == "preload" and capsys.readouterr().out == ""  # results go there
        for _, providers, kwargs in ort.log[1:]:
            assert providers == [(CUDA, {"device_id": "1", "use_tf32": "0"}), "CPUExecutionProvider"]
            assert kwargs["enable_fallback"] == 0
        assert len(ort.log) == 3 and backend.remarks == ("ONNX Runtime, fp32, on cuda",)
        backend.close()


def test_tensors_between_stages_stay_on_the_device(tiny, stand_in):
    ort = stand_in()
    with PlanFile.open(tiny.plan) as plan:
        backend = open_backend(plan, device="cuda:1")
        depth = backend.run({"image": image()})["depth"]
        np.testing.assert_allclose(depth, tiny.expected(tiny.kernel, image()), rtol=1e-5)
        upload, first_in, first_out, made, second_in, second_out, _ = ort.bound
        assert upload == ("upload", "cuda", 1) and first_in[1] == "image"
        assert first_out == ("output", "features", "cuda", 1) and second_out == ("output", "depth", "cpu", 0)
        assert second_in[1:] == ("features", made[1])  # the very value, not a copy
        ort.bound.clear()
        both = backend.run({"image": image()}, frozenset({"features", "depth"}))
        assert ("output", "features", "cuda", 1) in ort.bound and both["features"].shape == (1, 8, 24, 32)
        backend.close()


def test_a_provider_that_gives_up_is_an_error(tiny, stand_in):
    stand_in(starts=False)
    with PlanFile.open(tiny.plan) as plan, pytest.raises(EnvironmentMismatchError, match=r"fell back to the CPU \(Failed to load libcudnn"):
        open_backend(plan, device="cuda")


def test_heavy_nodes_on_the_cpu_are_told(tiny, stand_in):
    stand_in(preload=False, parts=[Part(CUDA, "Conv"), Part("CPUExecutionProvider", "Shape", "Gather", "Resize", "Resize", "Softmax")])
    with PlanFile.open(tiny.plan) as plan:
        backend = open_backend(plan, device="cuda")
        assert backend.remarks[1] == "warning: stage encoder: ONNX Runtime computes 2 Resize, 1 Softmax on the CPU, not on the GPU"
        backend.close()


@pytest.fixture(scope="module")
def plans(small_bundle, tmp_path_factory):
    """FP16 for CUDA and for the CPU, with what was said while they were built."""
    folder, said, reports = tmp_path_factory.mktemp("plans"), {}, {}
    for target in ("cuda", "cpu"):
        said[target] = []
        reports[target] = build_plan(small_bundle, folder / f"{target}.plan", BuildOptions("onnxruntime", "fp16", (target,)), on_message=said[target].append)
    return folder, said, reports


def test_fp16_for_cuda_is_a_typed_graph(plans):
    folder, said, reports = plans
    kinds = {}
    for target in ("cuda", "cpu"):
        with PlanFile.open(folder / f"{target}.plan") as plan:
            assert plan.manifest.targets == (target,) and plan.manifest.simulated == (target == "cpu")
            models = [onnx.load_from_string(bytes(plan.view(stage.engine))) for stage in plan.manifest.stages]
            kinds[target] = {tensor.data_type for model in models for tensor in model.graph.initializer}
            assert any(t.dtype == "float16" for stage in plan.manifest.stages for t in stage.spec.outputs) == (target == "cuda")
            words = describe(plan.manifest)
            assert ("FP16 is real" in words) == (target == "cuda") and ("FP16 is simulated" in words) == (target == "cpu")
    half = onnx.TensorProto.FLOAT16
    assert half in kinds["cuda"] and half not in kinds["cpu"]
    assert any("simulated" in text for text in said["cpu"]) and not any("simulated" in text for text in said["cuda"])
    assert reports["cuda"].parity.label == "graph-only"


def test_a_plan_for_cuda_asks_for_cuda(plans, stand_in):
    folder, _, _ = plans
    with PlanFile.open(folder / "cuda.plan") as plan:
        if CUDA not in onnxruntime.get_available_providers():
            with pytest.raises(EnvironmentMismatchError, match=r"no CUDA provider.*or --device cpu"):
                open_backend(plan)
        ort = stand_in()
        backend = open_backend(plan)
        assert ort.log[1][1][0][0] == CUDA and backend.remarks == ("ONNX Runtime, fp16, on cuda",)
        backend.close()
    with PlanFile.open(folder / "cpu.plan") as plan:
        backend = open_backend(plan, device="cuda")
        assert "FP16 is simulated" in backend.remarks[0] and "--target cuda" in backend.remarks[0]
        backend.close()


def test_results_say_what_computed_them(plans, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, "SUMS_IN_FP16", False)
    folder, _, _ = plans
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    precisions = {}
    for target in ("cuda", "cpu"):
        out = str(tmp_path / target)
        assert run.main(["--engine", str(folder / f"{target}.plan"), str(tmp_path / "a.png"), "-o", out, "--device", "cpu", "--json", "--save", "npy"]) == 0
        printed = capsys.readouterr()
        precisions[target] = json.loads(printed.out)["precision"]
        assert ("built for CUDA" in printed.err) == (target == "cuda")
    assert precisions == {"cuda": "fp16", "cpu": "fp16-simulated"}
    maps = [np.load(next((tmp_path / target).glob("*.npy")), allow_pickle=False) for target in ("cuda", "cpu")]
    np.testing.assert_allclose(*maps, rtol=2e-2)


def test_a_cpu_that_adds_up_in_fp16_refuses_graphs_for_cuda(plans, tmp_path, capsys, monkeypatch):
    """ARM: depths of a ViT-B/32 were 1 % off, so an error is better. What a GPU computes, or FP32 does, is none of it."""
    monkeypatch.setattr(module, "SUMS_IN_FP16", True)
    folder, _, _ = plans
    Image.fromarray(np.zeros((64, 96, 3), np.uint8)).save(tmp_path / "a.png")
    arguments = ["--engine", str(folder / "cuda.plan"), str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), "--device", "cpu"]
    assert run.main(arguments) == 5
    words = capsys.readouterr().err
    assert "adds up in FP16" in words and "depth-build --backend onnxruntime --precision fp32" in words and not (tmp_path / "out").exists()
    with PlanFile.open(folder / "cpu.plan") as plan:
        open_backend(plan).close()
