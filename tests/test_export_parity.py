"""The gate: what passes, what does not, and that nothing is left when it does not."""

import json
import math
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.numpy import load_file, save_file

from fathom.export.bundle.bundle import write_bundle
from fathom.export.bundle.bundle_files import GOLDEN
from fathom.export.onnxruntime import build
from fathom.export.parity import stage_runner
from fathom.export.parity.parity import ParityReport, ParityRow, Tolerances, measure_parity
from fathom.export.parity.stage_runner import compare, compare_output, find_problem
from fathom.export.parity.weight_probes import probe_stage
from fathom.runtime.artefact.bundle import BundleDirectory
from fathom.runtime.artefact.manifest import BundleManifest
from fathom.runtime.errors import AccuracyError, BuildFailedError, InputError, OutOfMemoryError


def _stages(bundle):
    manifest = BundleDirectory.open(bundle).manifest
    return tuple((stage.spec, bundle / stage.file) for stage in manifest.stages)


def test_compare_is_what_the_words_say():
    got, wanted = np.array([1.0, 2.0, 3.5], np.float32), np.array([1.0, 2.0, 4.0], np.float32)
    assert compare(got, wanted) == {"max_abs": 0.5, "rmse": pytest.approx(0.5 / math.sqrt(3)), "relative": 0.125, "problem": ""}
    assert compare_output(got, wanted) == {"abs_rel": pytest.approx(0.125 / 3), "max_abs": 0.5}
    assert compare(got[:2], wanted)["problem"].startswith("shape")


def test_masks_are_compared_by_the_pixels_that_change_their_class():
    wanted = np.array([[[[0.0, 1.0], [2.0, 3.0]], [[1.0, 0.0], [2.1, 0.0]]]], np.float32)  # object, background, object, background
    got = wanted.copy()
    got[0, 0, 1, 0] = 2.2  # one of four pixels becomes background; the nearly equal logits differ little
    assert compare_output(got, wanted) == {"changed_pixels": 0.25, "max_abs": pytest.approx(0.2)}
    assert compare_output(wanted * 1.1, wanted)["changed_pixels"] == 0.0


def test_sick_tensors_are_named():
    assert find_problem(np.array([1.0, np.nan, np.inf], np.float32)) == "not finite in 2 of 3 places"
    assert find_problem(np.full(100, 7, np.float32)) == "the same number 7 everywhere"
    assert find_problem(np.array([7.0], np.float32)) == "" == find_problem(np.full(100, 7, np.int64))


def _report(relative=0.0, problem="", abs_rel=0.0, mode="isolated"):
    row = ParityRow("unet", mode, "f64", 0.1, 0.1, relative, problem)
    return ParityReport((row,), abs_rel, 0.0, Tolerances(), "PyTorch", "ONNX Runtime")


@pytest.mark.parametrize(
    ("report", "words"),
    [
        (_report(relative=2e-4), "stage unet, f64 .isolated.: relative error 2.00e-04, at most 1e-04"),
        (_report(relative=2e-4, mode="chained"), "f64 .chained."),
        (_report(problem="not finite in 1 of 3 places"), "not finite"),
        (_report(abs_rel=2e-3), "abs_rel 2.00e-03, at most 1e-03"),
        (_report(abs_rel=math.nan), "abs_rel nan"),
    ],
)
def test_each_limit_fails_by_itself_and_says_so(report, words):
    with pytest.raises(AccuracyError, match=words) as caught:
        report.require()
    assert caught.value.exit_code == 4 and report.to_json()["passed"] is False


def test_within_the_limits_it_passes():
    report = _report(relative=9e-5, abs_rel=9e-4)
    report.require()
    assert report.to_json()["passed"] and "unet" in report.table()


@pytest.mark.parametrize("value", [0, 1, -1, math.nan])
def test_tolerances_are_fractions(value):
    with pytest.raises(ValueError, match="isolated_relative"):
        Tolerances(isolated_relative=value)


def test_a_good_bundle_is_close_alone_and_in_the_chain(small_bundle):
    report = measure_parity(_stages(small_bundle), small_bundle / GOLDEN, "depth", reference="PyTorch")
    assert {(row.stage, row.mode) for row in report.rows} == {(stage, mode) for stage in ("encoder", "decoder") for mode in ("isolated", "chained")}
    assert all(row.relative < 1e-5 and not row.problem for row in report.rows) and report.output_error < 1e-5
    stored = BundleDirectory.open(small_bundle).manifest.parity
    assert stored["passed"] and len(stored["rows"]) == 4 and stored["reference"].startswith("PyTorch")


def test_the_goldens_are_pytorchs(small_bundle, small_network):
    tensors = load_file(small_bundle / GOLDEN)
    network = small_network.SmallNetwork()
    truth = network.boundaries({"image": torch.from_numpy(tensors["image"])})
    assert set(tensors) == {"image", *truth}
    for name, tensor in truth.items():
        np.testing.assert_array_equal(tensors[name], tensor.numpy())


def test_a_stage_that_differs_fails_where_it_differs(small_bundle, tmp_path):
    tensors = load_file(small_bundle / GOLDEN)
    tensors["latent"] = tensors["latent"] * 1.001  # as if the encoder were a thousandth off
    save_file(tensors, tmp_path / "g.safetensors")
    report = measure_parity(_stages(small_bundle), tmp_path / "g.safetensors", "depth", reference="PyTorch")
    assert "stage encoder, latent (isolated)" in report.failures[0]
    assert [row.relative < 1e-4 for row in report.rows if row.stage == "decoder" and row.mode == "chained"] == [True]


def test_golden_tensors_that_are_missing_or_sick_are_refused(small_bundle, tmp_path):
    tensors = load_file(small_bundle / GOLDEN)
    for change, words in (({"latent": None}, "lack the tensor latent"), ({"depth": np.full_like(tensors["depth"], 3)}, "already in PyTorch depth")):
        changed = {name: values for name, values in {**tensors, **change}.items() if values is not None}
        save_file(changed, tmp_path / "g.safetensors")
        with pytest.raises(AccuracyError, match=words):
            measure_parity(_stages(small_bundle), tmp_path / "g.safetensors", "depth", reference="PyTorch")


def test_a_graph_that_is_none_is_reported_with_its_stage(small_bundle, tmp_path):
    (tmp_path / "encoder.onnx").write_bytes((small_bundle / "stages/decoder.onnx").read_bytes()[:2000])
    (spec, _), *rest = _stages(small_bundle)
    with pytest.raises(BuildFailedError, match="stage encoder"):
        measure_parity(((spec, tmp_path / "encoder.onnx"), *rest), small_bundle / GOLDEN, "depth", reference="PyTorch")


class FullMemory:
    """ONNX Runtime on a machine whose memory is full after some sessions were opened or run."""

    def __init__(self, opened, ran):
        self._left = {"open": opened, "run": ran}

    def __getattr__(self, name):
        return getattr(onnxruntime, name)

    def _take(self, what):
        self._left[what] -= 1
        if self._left[what] < 0:
            raise RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer of size 4294967296")

    def InferenceSession(self, *arguments, **options):
        self._take("open")
        session = onnxruntime.InferenceSession(*arguments, **options)

        def run(*feeds):
            self._take("run")
            return session.run(*feeds)

        return SimpleNamespace(get_inputs=session.get_inputs, run=run)


@pytest.mark.parametrize(("opened", "ran"), [(0, 9), (9, 0)])
def test_memory_that_runs_out_in_onnx_runtime_is_no_fault_of_the_graph(small_bundle, tmp_path, monkeypatch, opened, ran):
    spec, file = _stages(small_bundle)[0]
    golden = load_file(small_bundle / GOLDEN)
    inputs, outputs = ([{"name": tensor.name, "dtype": tensor.dtype} for tensor in side] for side in (spec.inputs, spec.outputs))
    stage = {"name": spec.name, "file": str(file), "inputs": inputs, "outputs": outputs}
    request = {"stages": [stage], "golden": str(small_bundle / GOLDEN), "isolated": True, "engines": False, "save": "", "probes": ""}
    monkeypatch.setattr(stage_runner, "load_onnxruntime", lambda: FullMemory(opened, ran))
    with pytest.raises(OutOfMemoryError, match=f"stage {spec.name}.*no memory is left"):
        stage_runner.run_stages({**request, "output": spec.outputs[0].name}, lambda *_, **__: None)
    monkeypatch.setattr(build, "load_onnxruntime", lambda: FullMemory(opened, ran))
    request = {"stage": spec.name, "source": str(file), "scratch": str(tmp_path), "target": str(tmp_path / "e.onnx"), "weights": str(tmp_path / "w")}
    if not opened:
        with pytest.raises(OutOfMemoryError, match=f"stage {spec.name}"):
            build.optimise(request, lambda *_, **__: None)
    feeds = {tensor["name"]: golden[tensor["name"]] for tensor in inputs}
    with pytest.raises(OutOfMemoryError):  # not a bundle without proof of its weights
        probe_stage(FullMemory(opened, ran + 3 if opened else 9), file, feeds, [tensor["name"] for tensor in outputs])


def test_only_the_chain_is_run_on_request(small_bundle):
    report = measure_parity(_stages(small_bundle), small_bundle / GOLDEN, "depth", reference="PyTorch", isolated=False)
    assert {row.mode for row in report.rows} == {"chained"} and not report.failures


def _crooked(small_network, **changes):
    """A network whose unfolded form and stages do not agree."""

    class Crooked(small_network.SmallNetwork):
        def boundaries(self, inputs):
            return {**super().boundaries(inputs), **{name: change(super(Crooked, self).boundaries(inputs)[name]) for name, change in changes.items()}}

    return Crooked()


def test_a_network_whose_stages_differ_leaves_no_bundle(small_network, tmp_path):
    network = _crooked(small_network, depth=lambda depth: depth * 1.01)
    said = []
    with pytest.raises(AccuracyError, match="the stages do not give what PyTorch"):
        write_bundle(network, tmp_path / "bundle", on_message=said.append)
    assert "decoder" in said[0] and not list(tmp_path.iterdir())


def test_a_network_that_gives_nan_leaves_no_bundle(small_network, tmp_path):
    network = _crooked(small_network, depth=lambda depth: depth * float("nan"))
    with pytest.raises(AccuracyError, match="PyTorch itself gives NaN"):
        write_bundle(network, tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


def test_interruption_leaves_nothing(small_network, tmp_path):
    def interrupt(what, done):
        if "comparing" in what:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_bundle(small_network.SmallNetwork(), tmp_path / "bundle", on_progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_the_bundle_says_what_is_in_it(small_bundle, small_network):
    bundle = BundleDirectory.open(small_bundle)
    manifest = bundle.manifest
    assert isinstance(manifest, BundleManifest) and manifest.network.untrained and manifest.network.config == {"channels": 16}
    assert manifest.network.parameters == sum(p.numel() for p in small_network.SmallNetwork().parameters())
    assert set(manifest.files) == {GOLDEN, *(f"stages/{name}" for name in ("encoder.onnx", "encoder.onnx.data", "decoder.onnx", "decoder.onnx.data"))}
    assert manifest.stages[1].fp32_islands == ("logits",) and {"fathom", "torch", "onnx", "onnxruntime"} <= set(manifest.made_with)
    raw = (small_bundle / "bundle.json").read_bytes()
    assert json.loads(raw) and b"/tmp" not in raw


def test_an_existing_bundle_is_replaced_only_by_force(small_network, tmp_path):
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "mine").write_text("precious")
    for force in (False, True):
        with pytest.raises(InputError):
            write_bundle(small_network.SmallNetwork(), path, force=force)
    assert (path / "mine").read_text() == "precious"


def test_released_weights_are_gone_afterwards(small_network, tmp_path):
    network = small_network.SmallNetwork()
    write_bundle(network, tmp_path / "bundle", release=True)
    assert all(parameter.is_meta for parameter in network.parameters())
