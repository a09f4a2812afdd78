"""Bundles to plans: every backend that compiles here, and every way in which a compiler can fail."""

import json
import os
import shutil
import signal
import sys
import threading
import time
import zipfile

import numpy as np
import onnx
import pytest

from fathom.export.child import child
from fathom.export.child.child import run_child
from fathom.export.graph.product_types import products_by_type
from fathom.export.plan.build import BuildOptions, build_plan
from fathom.runtime.artefact.manifest import BundleManifest, FileFacts
from fathom.runtime.artefact.manifest_json import manifest_bytes, manifest_from_bytes
from fathom.runtime.artefact.plan import PlanFile
from fathom.runtime.errors import AccuracyError, BuildFailedError, ChecksumError, InputError, OutOfMemoryError, PrecisionError, UsageError
from fathom.runtime.files import sha256_of
from fathom.runtime.pipeline import Pipeline


def _nothing_left(folder):
    return [entry.name for entry in folder.iterdir()] == []


def _rewritten(bundle, target, change):
    """A copy of a bundle whose first stage was changed, with a manifest that fits it."""
    shutil.copytree(bundle, target)
    file = target / "stages/encoder.onnx"
    model = onnx.load(str(file), load_external_data=False)
    change(model)
    file.write_bytes(model.SerializeToString())
    manifest = manifest_from_bytes((target / "bundle.json").read_bytes(), BundleManifest, "x")
    manifest.files["stages/encoder.onnx"] = FileFacts(file.stat().st_size, sha256_of(file))
    (target / "bundle.json").write_bytes(manifest_bytes(manifest))
    return target


def test_onnxruntime_plans_give_what_the_network_gives(small_bundle, small_network, tmp_path):
    report = build_plan(small_bundle, tmp_path / "x.plan", BuildOptions())
    assert report.parity.output_error < 1e-5 and report.manifest.targets == ("cpu",) and not report.parity.failures
    picture = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    network = small_network.SmallNetwork()
    with Pipeline.open(tmp_path / "x.plan") as pipeline:
        got = pipeline.predict(picture).depth_m
    import torch

    image = (torch.from_numpy(picture / np.float32(255)).permute(2, 0, 1)[None] - 0.5) / 0.25
    wanted = torch.nn.functional.interpolate(network(image), size=(32, 48), mode="bilinear", align_corners=False)[0, 0].numpy()
    np.testing.assert_allclose(got, wanted, rtol=1e-4)
    assert [p.name for p in tmp_path.iterdir()] == ["x.plan"]


def test_the_same_bundle_gives_the_same_plan(small_bundle, tmp_path):
    for name in "ab":
        build_plan(small_bundle, tmp_path / f"{name}.plan", BuildOptions())
    assert (tmp_path / "a.plan").read_bytes() == (tmp_path / "b.plan").read_bytes()


@pytest.fixture(scope="module")
def rtx():
    return pytest.importorskip("tensorrt_rtx")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_rtx_engines_hold_the_precision_that_was_asked_for(rtx, small_bundle, tmp_path, precision):
    said = []
    report = build_plan(small_bundle, tmp_path / "x.plan", BuildOptions("tensorrt-rtx", precision, ("sm86", "sm89", "sm120")), on_message=said.append)
    layers = {stage.name: stage.layers for stage in report.stages}
    if precision == "fp16":
        assert layers == {"encoder": {"half": 7}, "decoder": {"half": 1, "float": 1}}  # the head's 1x1 convolution is an FP32 island
        assert report.parity.label == "graph-only" and "graph-only" in said[0]
    else:
        assert layers == {"encoder": {"float": 7}, "decoder": {"float": 2}}
    with PlanFile.open(tmp_path / "x.plan") as plan:
        manifest = plan.manifest
        assert manifest.backend == "tensorrt-rtx" and manifest.targets == ("sm86", "sm89", "sm120") and manifest.backend_version == rtx.__version__
        latent = manifest.stages[0].spec.outputs[0]
        assert latent.shape[0] == 1 and latent.dtype == ("float16" if precision == "fp16" else "float32")
        assert all(stage.precision == precision and manifest.files[stage.engine].size > 10_000 for stage in manifest.stages)
    with zipfile.ZipFile(tmp_path / "x.plan") as archive:
        assert archive.namelist() == ["plan.json", "engines/decoder.engine", "engines/encoder.engine", "goldens/case.bin"]


def test_a_range_of_batches_is_built_and_recorded(rtx, small_bundle, tmp_path):
    report = build_plan(small_bundle, tmp_path / "x.plan", BuildOptions("tensorrt-rtx", "fp16", ("sm86",), (1, 2, 4)))
    assert report.manifest.batch == (1, 2, 4) and report.manifest.stages[0].spec.inputs[0].shape[0] == "batch"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "fp4"}, "no precision"),
        ({"backend": "openvino"}, "no backend"),
        ({"targets": ("sm86",)}, "--target sm86 goes with tensorrt-rtx"),
        ({"backend": "tensorrt", "targets": ("sm86",)}, "--target goes with tensorrt-rtx"),
        ({"targets": ("cpu", "cuda")}, "wanted: cpu or cuda"),
        ({"targets": ("cuda",), "precision": "int8"}, "INT8 kernels for few operators"),
        ({"backend": "tensorrt-rtx", "targets": ("sm75",)}, "Turing"),
        ({"backend": "tensorrt-rtx", "targets": ("sm87",)}, "Jetson Orin"),
        ({"backend": "tensorrt-rtx", "targets": ("sm42",)}, "not among the targets"),
        ({"backend": "tensorrt-rtx", "targets": ("sm86", "sm86")}, "twice"),
        ({"batch": (2, 1, 4)}, "batch"),
    ],
)
def test_what_does_not_go_together_is_refused_with_a_reason(options, words):
    with pytest.raises(UsageError, match=words):
        BuildOptions(**options)


def test_an_operator_that_the_compiler_lacks_is_reported_with_stage_and_node(rtx, small_bundle, tmp_path):
    def change(model):
        for node in model.graph.node:
            if node.name == "Sigmoid_0":  # Sigmoid(x) is replaced by something of the same shape and type that TensorRT lacks
                node.CopyFrom(onnx.helper.make_node("Bernoulli", list(node.input), list(node.output), name="strange/Bernoulli_0"))

    bundle = _rewritten(small_bundle, tmp_path / "bundle", change)
    (tmp_path / "out").mkdir()
    with pytest.raises(BuildFailedError, match=r"stage encoder: .*node strange/Bernoulli_0 \(Bernoulli\)"):
        build_plan(bundle, tmp_path / "out/x.plan", BuildOptions("tensorrt-rtx", "fp32", ("sm86",)))
    assert _nothing_left(tmp_path / "out")


def test_a_graph_of_another_type_than_was_promised_is_not_honoured(rtx, small_bundle, tmp_path):
    file = small_bundle / "stages/encoder.onnx"
    ((kind, full),) = products_by_type(file).items()
    assert kind == onnx.TensorProto.FLOAT and len(full) == 7
    request = {"task": "tensorrt", "stage": "encoder", "backend": "tensorrt-rtx", "source": str(file), "target": str(tmp_path / "e"), "targets": ["sm86"]}
    request |= {"batch": [1, 1, 1], "precision": "fp16", "fp16": full, "fp32": []}
    with pytest.raises(PrecisionError, match=r"stage encoder: .*conv_in/Conv_0 computes in float"):
        run_child(request, what="stage encoder")
    assert _nothing_left(tmp_path)


@pytest.mark.parametrize("options", [BuildOptions("tensorrt-rtx", "fp16", ("sm86",)), BuildOptions("onnxruntime", "fp16")], ids=lambda options: options.backend)
def test_fp16_that_ruins_the_depth_is_refused(rtx, small_bundle, tmp_path, options):
    def change(model):
        for tensor in model.graph.initializer:
            if tensor.name == "conv_in.bias":  # activations beyond what FP16 holds; FP32 would not mind
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(16, 3e9, np.float32), tensor.name))

    bundle = _rewritten(small_bundle, tmp_path / "bundle", change)
    (tmp_path / "out").mkdir()
    with pytest.raises(AccuracyError, match="stage encoder"):
        build_plan(bundle, tmp_path / "out/x.plan", options)
    assert _nothing_left(tmp_path / "out")


@pytest.fixture
def sleepy_child(monkeypatch, tmp_path):
    """Children that do something else than ask for: a module with the given body."""

    def use(body):
        package = tmp_path / "package"
        package.mkdir(exist_ok=True)
        (package / "fake_child.py").write_text("import sys, os, json, time, signal, ctypes\nline = sys.stdin.readline()\n" + body)
        real = child.subprocess.Popen

        def popen(command, **options):
            options["env"] = {**options["env"], "PYTHONPATH": str(package)}
            return real([sys.executable, "-m", "fake_child"], **options)

        monkeypatch.setattr(child.subprocess, "Popen", popen)

    return use


@pytest.mark.parametrize(("name", "code"), [("SIGSEGV", 8), ("SIGABRT", 8), ("SIGKILL", 7)])
def test_a_crash_names_the_stage_the_signal_and_the_last_lines(sleepy_child, name, code):
    sleepy_child(f"print('tactic 42 is next', file=sys.stderr, flush=True)\nos.kill(os.getpid(), signal.{name})\n")
    with pytest.raises((BuildFailedError, OutOfMemoryError), match=f"stage unet: .*{name}.*tactic 42 is next") as caught:
        run_child({"task": "x"}, what="stage unet")
    assert caught.value.exit_code == code


def test_a_child_that_takes_too_much_memory_is_stopped_with_the_numbers(sleepy_child):
    sleepy_child("block = b'x' * (300 << 20)\ntime.sleep(60)\n")
    start = time.monotonic()
    with pytest.raises(OutOfMemoryError, match=r"stage unet: the compiler took 0\.\d+ GiB .* limit of 0\.20 GiB") as caught:
        run_child({"task": "x"}, what="stage unet", limit_nbytes=200 << 20)
    assert time.monotonic() - start < 20 and "--memory" in str(caught.value)


@pytest.mark.parametrize("jetson", [True, False])
def test_on_a_jetson_what_the_gpu_takes_counts(sleepy_child, monkeypatch, jetson):
    sleepy_child("time.sleep(60)\n" if jetson else "time.sleep(0.5)\nsys.exit(3)\n")
    free = iter([4 << 30, (4 << 30) - (100 << 20)])
    monkeypatch.setattr(child, "available_nbytes", lambda: next(free, 3 << 30))
    monkeypatch.setattr(child, "read_jetson", lambda: object() if jetson else None)
    start = time.monotonic()
    with pytest.raises(OutOfMemoryError if jetson else BuildFailedError, match=r"took 1\.00 GiB" if jetson else "exit code 3"):
        run_child({"task": "x"}, what="stage unet", limit_nbytes=500 << 20)
    assert time.monotonic() - start < 20


def test_a_child_that_says_nothing_useful_is_a_failed_build(sleepy_child):
    sleepy_child("print('not json'); print('{}'); sys.exit(3)\n")
    with pytest.raises(BuildFailedError, match="exit code 3"):
        run_child({"task": "x"}, what="stage unet")


def test_interruption_ends_the_child(sleepy_child, tmp_path):
    sleepy_child(f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)\n")

    def interrupt():
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_child({"task": "x"}, what="stage unet")
    thread.join()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_child_ends_when_its_parent_is_gone(small_bundle):
    import subprocess

    process = subprocess.Popen([sys.executable, "-m", "fathom.export.plan.build_child"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdin.write(b'{"task": "parity"')  # never finished: the parent dies while it writes
    process.stdin.close()
    assert process.wait(30) != 0
    process.stdout.close()
    process.stderr.close()


def test_changed_bytes_in_the_bundle_are_found_before_anything_is_built(small_bundle, tmp_path):
    shutil.copytree(small_bundle, tmp_path / "bundle")
    data = tmp_path / "bundle/stages/encoder.onnx.data"
    raw = bytearray(data.read_bytes())
    raw[100] ^= 1
    data.write_bytes(raw)
    with pytest.raises(ChecksumError):
        build_plan(tmp_path / "bundle", tmp_path / "x.plan", BuildOptions())


def test_an_existing_plan_is_kept_without_force(small_bundle, tmp_path):
    (tmp_path / "x.plan").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        build_plan(small_bundle, tmp_path / "x.plan", BuildOptions())
    assert (tmp_path / "x.plan").read_text() == "mine"
    build_plan(small_bundle, tmp_path / "x.plan", BuildOptions(), force=True)
    assert json.loads(zipfile.ZipFile(tmp_path / "x.plan").read("plan.json"))["format"] == "fathom-plan"
