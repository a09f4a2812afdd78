"""Plans whose networks hold our operators: as plain operators in ONNX Runtime, as kernel stages between engines, as plugins inside them."""

import hashlib
import json
import shutil

import fake_cuda
import fake_tensorrt
import fake_tensorrt10_builder
import kernel_host
import numpy as np
import onnx
import operator_network
import pytest
import torch
from onnx import helper, numpy_helper
from test_export_tensorrt10 import VERSION, run_here

from fathom.export.commands import build_command
from fathom.export.operators.choice import parse_choices
from fathom.export.operators.rewritten_bundle import rewrite_bundle
from fathom.export.operators.split import split_stage
from fathom.runtime.artefact.bundle import BundleDirectory
from fathom.runtime.artefact.engine_layers import read_layers_file
from fathom.runtime.artefact.operator_use import OperatorUse, PluginLibrary
from fathom.runtime.artefact.plan import PlanFile
from fathom.runtime.artefact.spec import StageSpec, TensorSpec
from fathom.runtime.commands import inspection
from fathom.runtime.errors import ChecksumError, EnvironmentMismatchError
from fathom.runtime.pipeline import Pipeline
from fathom.runtime.tensorrt.operators.plugins import load_plugins

ALL = "BinsExpectation,GroupNormSilu,CrossAttention"


@pytest.fixture
def bundle(operator_bundle):
    return operator_bundle


@pytest.fixture
def gpu(monkeypatch, tmp_path, host):
    """A fake GPU that runs the kernels as C++, with a TensorRT 10 that builds."""
    machine = fake_cuda.Machine(devices=1, host=host)
    fake_cuda.install(monkeypatch, machine)
    monkeypatch.setenv("FATHOM_CACHE_DIR", str(tmp_path / "cache"))
    machine.trt = fake_tensorrt10_builder.add_builder(fake_tensorrt.install(monkeypatch, machine), VERSION)
    run_here(monkeypatch, machine)
    return machine


PICTURE = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)


def truth():
    image = (torch.from_numpy(PICTURE / np.float32(255)).permute(2, 0, 1)[None] - 0.5) / 0.25
    network = operator_network.OperatorNetwork()
    return network.boundaries({"image": image})["depth"][0, 0].numpy()


def built(bundle, target, *more):
    assert build_command.main([str(bundle), "-o", str(target), "--force", *more]) == 0
    with PlanFile.open(target) as plan:
        return plan.manifest


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_onnx_runtime_gives_the_same_depth(bundle, tmp_path, precision, capsys):
    manifest = built(bundle, tmp_path / "x.plan", "--operators", ALL, "--precision", precision)
    assert manifest.operators.counts == operator_network.OPERATORS and manifest.operators.runs_as == "bodies"
    with Pipeline.open(tmp_path / "x.plan") as pipeline:
        np.testing.assert_allclose(pipeline.predict(PICTURE).depth_m, truth(), rtol=1e-4 if precision == "fp32" else 1e-2)
    assert "encoder: 2 GroupNormSilu, 1 CrossAttention; head: 1 BinsExpectation" in inspection.describe(manifest)


@pytest.mark.skipif(not kernel_host.compiler(), reason="no C++ compiler")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_kernels_run_between_the_engines_that_were_built_around_them(gpu, bundle, tmp_path, precision, capsys):
    layers = tmp_path / "layers.json"
    manifest = built(bundle, tmp_path / "x.plan", "--operators", ALL, "--backend", "tensorrt", "--precision", precision, "--layers", str(layers))
    told = capsys.readouterr().err
    assert "right on Fake GPU (sm86)" in told
    assert set(read_layers_file(layers, manifest)) == {stage.spec.name for stage in manifest.stages if not stage.engine.endswith(".kernel.json")}
    names = [stage.spec.name for stage in manifest.stages]
    kernels = [name.partition("_")[2].partition("_")[2] for name, stage in zip(names, manifest.stages, strict=True) if stage.engine.endswith(".kernel.json")]
    assert kernels == ["group_norm_silu", "cross_attention", "group_norm_silu", "bins_expectation"]
    assert {stage.precision for stage in manifest.stages if stage.engine.endswith(".kernel.json")} == {precision}
    assert {item.tensor.name for item in manifest.goldens} == {tensor.name for stage in manifest.stages for tensor in stage.spec.tensors}
    with Pipeline.open(tmp_path / "x.plan") as pipeline:
        np.testing.assert_allclose(pipeline.predict(PICTURE).depth_m, truth(), rtol=1e-4 if precision == "fp32" else 1e-2)
    assert gpu.leaks() == {}
    assert json.loads(json.dumps(manifest.operators.to_json()))["runs_as"] == "kernel-stages"


def library(folder, release="10.13", salt=b""):
    """What a plugin library looks like from outside."""
    file = folder / "libfathom_plugins.so"
    file.write_bytes(b"\x7fELF" + salt + f"fathom plugins for TensorRT {release}\0".encode() + b"code")
    return file


def test_plugins_are_loaded_once_and_taken_away_after_the_last_engine(gpu, bundle, tmp_path, monkeypatch, capsys):
    file = library(tmp_path)
    asked = ["--operators", ALL, "--backend", "tensorrt", "--precision", "fp16", "--plugins", str(file)]
    manifest = built(bundle, tmp_path / "x.plan", *asked)
    assert "right on Fake GPU (sm86)" in capsys.readouterr().err and gpu.trt.registry.libraries == []
    assert [stage.spec.name for stage in manifest.stages] == ["encoder", "head"] and manifest.operators.counts == operator_network.OPERATORS
    assert manifest.operators.library.sha256 == hashlib.sha256(file.read_bytes()).hexdigest() and manifest.operators.library.tensorrt == "10.13"
    before = gpu.trt.registry.loads
    with Pipeline.open(tmp_path / "x.plan") as first, Pipeline.open(tmp_path / "x.plan") as second:
        assert gpu.trt.registry.loads == before + 1
        np.testing.assert_allclose(first.predict(PICTURE).depth_m, truth(), rtol=1e-2)
        second.close()
        second.close()
        assert len(gpu.trt.registry.libraries) == 1
        np.testing.assert_allclose(first.predict(PICTURE).depth_m, truth(), rtol=1e-2)
    assert gpu.trt.registry.libraries == [] and gpu.leaks() == {}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    file.rename(elsewhere / file.name)
    with pytest.raises(EnvironmentMismatchError, match=r"libfathom_plugins\.so is not there"):
        Pipeline.open(tmp_path / "x.plan")
    for told in (elsewhere, elsewhere / file.name):
        monkeypatch.setenv("FATHOM_PLUGINS", str(told))
        Pipeline.open(tmp_path / "x.plan").close()
    before = gpu.trt.registry.loads
    library(elsewhere, salt=b"changed")
    with pytest.raises(ChecksumError, match="SHA-256") as caught:
        Pipeline.open(tmp_path / "x.plan")
    assert "copy that library here" in caught.value.fix and gpu.trt.registry.loads == before, "nothing in it may run"
    library(elsewhere)
    with Pipeline.open(tmp_path / "x.plan"):
        other = PluginLibrary("b.so", "0" * 64, "10.13")
        with pytest.raises(EnvironmentMismatchError, match="loaded already"):
            load_plugins(gpu.trt, elsewhere / file.name, other)
    gpu.trt.fail["library"] = True
    with pytest.raises(EnvironmentMismatchError, match="does not take the library"):
        Pipeline.open(tmp_path / "x.plan")
    assert gpu.leaks() == {}


@pytest.mark.parametrize(
    ("release", "words", "code"),
    [("8.6", "compiled for TensorRT 8.6", 6), ("11.1", "compiled for TensorRT 11.1", 6), ("ten", "does not say which TensorRT", 3), ("", "cannot be read", 3)],
)
def test_a_library_for_something_else_is_refused(gpu, bundle, tmp_path, capsys, release, words, code):
    file = library(tmp_path, release) if release else tmp_path / "none.so"
    asked = ["--operators", "BinsExpectation", "--backend", "tensorrt", "--plugins", str(file)]
    assert build_command.main([str(bundle), "-o", str(tmp_path / "x.plan"), *asked]) == code
    assert words in capsys.readouterr().err and not (tmp_path / "x.plan").exists() and gpu.trt.registry.loads == 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--operators", "Wings"], "no operator 'Wings'"),
        (["--operators", "GroupNormSilu,GroupNormSilu"], "named twice"),
        (["--operators", "cellar:GroupNormSilu"], "no stage 'cellar'"),
        (["--operators", "head:GroupNormSilu"], "stage head has no place for GroupNormSilu"),
        *((["--operators", "BinsExpectation", "--precision", kind], f"--precision {kind}: a calibration knows nothing") for kind in ("int8", "fp8", "int4")),
        (["--operators", "BinsExpectation", "--plugins", "x.so"], "takes no plugins"),
        (["--plugins", "x.so"], "--plugins without --operators"),
    ],
)
def test_what_cannot_be_is_said_before_any_work(bundle, tmp_path, capsys, more, words):
    assert build_command.main([str(bundle), "-o", str(tmp_path / "x.plan"), *more]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "x.plan").exists()


def test_an_operator_goes_into_the_stage_that_is_named(bundle, tmp_path):
    manifest = built(bundle, tmp_path / "x.plan", "--operators", "encoder:CrossAttention,head:BinsExpectation")
    assert manifest.operators.counts == {"encoder": {"CrossAttention": 1}, "head": {"BinsExpectation": 1}}


USE = {"counts": {"vae": {"GroupNormSilu": 2}}, "runs_as": "plugins", "library": {"file": "a.so", "sha256": "a" * 64, "tensorrt": "10.3"}}


@pytest.mark.parametrize(
    "wrong",
    [
        {"counts": {}},
        {"counts": {"vae": {}}},
        {"counts": {"../vae": {"GroupNormSilu": 1}}},
        {"counts": {"vae": {"Wings": 1}}},
        {"counts": {"vae": {"GroupNormSilu": 0}}},
        {"counts": {"vae": {"GroupNormSilu": True}}},
        {"counts": {"vae": [1]}},
        {"runs_as": "bodies"},
        {"library": None},
        {"library": {**USE["library"], "file": "../a.so"}},
        {"library": {**USE["library"], "sha256": "A" * 64}},
        {"library": {**USE["library"], "tensorrt": "ten"}},
        {"library": {**USE["library"], "more": 1}},
        {"more": 1},
    ],
)
def test_what_a_manifest_says_of_operators_is_read_strictly(wrong):
    assert OperatorUse.from_json(USE).to_json() == USE
    with pytest.raises(ValueError):
        OperatorUse.from_json({**USE, **wrong})


def test_a_stage_is_cut_behind_a_cast_whose_type_stands_in_the_cast_alone(tmp_path):
    """Typing puts casts between FP32 parts and FP16 ones, and writes their types nowhere else."""
    number, half = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
    shape = ["batch", 4, 6, 6]
    nodes = [
        helper.make_node("Softplus", ["x"], ["soft"]),
        helper.make_node("Cast", ["soft"], ["soft:fp16"], to=half),
        helper.make_node("GroupNormSilu", ["soft:fp16", "scale", "shift"], ["y"], domain="fathom", groups=2),
    ]
    sides = [[helper.make_tensor_value_info("x", number, shape)], [helper.make_tensor_value_info("y", half, shape)]]
    constants = [numpy_helper.from_array(np.full(4, value, np.float32), name) for name, value in (("scale", 1), ("shift", 0))]
    graph = helper.make_graph(nodes, "s", *sides, constants, value_info=[helper.make_tensor_value_info("soft", number, shape)])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("fathom", 1)]
    (tmp_path / "s.onnx").write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())
    spec = StageSpec("s", (TensorSpec("x", "float32", tuple(shape)),), (TensorSpec("y", "float16", tuple(shape)),))
    engine, kernel = split_stage(tmp_path / "s.onnx", spec)
    assert [(tensor.dtype, tensor.shape) for tensor in engine.spec.outputs] == [("float16", tuple(shape))]
    assert kernel.operator == "GroupNormSilu" and kernel.parameters["groups"] == 2 and kernel.spec.inputs == engine.spec.outputs
    onnx.checker.check_model(onnx.load(engine.graph))


def test_a_stage_of_a_network_made_elsewhere_is_cut_though_its_graph_tells_no_shapes(bundle, tmp_path):
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    manifest = json.loads((folder / "bundle.json").read_text())
    for stage in manifest["stages"]:
        file = folder / stage["file"]
        model = onnx.load(str(file), load_external_data=False)
        del model.graph.value_info[:]  # as exporters leave it
        file.write_bytes(model.SerializeToString())
        manifest["files"][stage["file"]] = {"size": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    (folder / "bundle.json").write_text(json.dumps(manifest))
    cuts = []
    for number, path in enumerate((bundle, folder)):
        with BundleDirectory.open(path) as opened:
            rewritten = rewrite_bundle(opened, parse_choices("GroupNormSilu,CrossAttention"), tmp_path / str(number))
            (stage, *_) = [stage for stage in rewritten.manifest.stages if stage.spec.name == "encoder"]
            cuts.append([piece.spec for piece in split_stage(rewritten.path(stage.file), stage.spec)])
    assert len(cuts[1]) > 3 and cuts[1] == cuts[0]
