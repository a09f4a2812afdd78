"""Plans for TensorRT 8.5 and 8.6 whose engines call our operators as plugins: lowered, checked, held to their types, built and run on a stand-in."""

import hashlib
from pathlib import Path
from types import SimpleNamespace

import kernel_host
import numpy as np
import onnx
import operator_network
import pytest
from fake_tensorrt8_builder import Layer, Tensor
from onnx import TensorProto, helper
from test_export_operators_in_plans import ALL, PICTURE, library, truth
from test_export_tensorrt8 import building_gpu

from fathom.export.commands import build_command
from fathom.export.lowering.lowering import lower_stage
from fathom.export.lowering.plugin_checks import plugin_problem
from fathom.export.operators.split import Piece
from fathom.export.operators.typed_cuts import type_pieces
from fathom.export.tensorrt.constrained_build import constrain
from fathom.runtime.artefact.plan import PlanFile
from fathom.runtime.artefact.spec import StageSpec, TensorSpec
from fathom.runtime.commands import doctor, inspection
from fathom.runtime.errors import BuildFailedError, ChecksumError, EnvironmentMismatchError
from fathom.runtime.pipeline import Pipeline

VERSIONS = ("8.5.2.2", "8.6.1.6")


@pytest.fixture
def bundle(operator_bundle):
    return operator_bundle


@pytest.fixture
def gpu(request, monkeypatch, tmp_path):
    return building_gpu(monkeypatch, tmp_path, request.param)


@pytest.mark.skipif(not kernel_host.compiler(), reason="no C++ compiler")
@pytest.mark.parametrize(("version", "precision"), [("8.5.2.2", "fp16"), ("8.6.1.6", "fp32")])
def test_without_a_library_kernels_run_between_constrained_engines(monkeypatch, bundle, host, tmp_path, capsys, version, precision):
    gpu = building_gpu(monkeypatch, tmp_path, version, devices=1, host=host)
    asked = [str(bundle), "--backend", "tensorrt", "--precision", precision, "--operators", ALL, "-o", str(tmp_path / "x.plan")]
    assert build_command.main(asked) == 0, capsys.readouterr().err
    assert f"right on Fake GPU (sm86), TensorRT {version}" in capsys.readouterr().err and gpu.trt.registry.loads == 0
    with PlanFile.open(tmp_path / "x.plan") as plan:
        manifest = plan.manifest
    kernels = [stage for stage in manifest.stages if stage.engine.endswith(".kernel.json")]
    assert len(kernels) == 4 and {stage.precision for stage in kernels} == {precision} and manifest.operators.runs_as == "kernel-stages"
    kind = "float16" if precision == "fp16" else "float32"
    assert {tensor.dtype for stage in kernels for tensor in stage.spec.tensors} == {kind}
    constants = {stage.spec.name.split("_", 2)[2]: sorted(item.tensor.dtype for item in stage.initializers) for stage in kernels}
    assert constants == {"group_norm_silu": ["float32"] * 2, "cross_attention": [kind] * 2, "bins_expectation": []}  # scale and shift; keys and values
    assert {item.tensor.name for item in manifest.goldens} == {tensor.name for stage in manifest.stages for tensor in stage.spec.tensors}
    for network, config in gpu.trt.built:
        assert (gpu.trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS in config.flags) == (precision == "fp16")
        wide = {tensor.name for tensor in [*network.inputs, *network.outputs] if tensor.dtype.name == "FLOAT"}
        assert precision == "fp32" or wide <= {"image"}
    with Pipeline.open(tmp_path / "x.plan") as pipeline:
        np.testing.assert_allclose(pipeline.predict(PICTURE).depth_m, truth(), rtol=1e-4 if precision == "fp32" else 1e-2)
    gpu.trt.built.clear()
    assert gpu.leaks() == {} and sorted(path.name for path in tmp_path.iterdir()) == ["cache", "x.plan"]


def pieces_of(values=1.0, made="y"):
    """An engine and a norm behind it."""
    shape = ("batch", 4, 6, 6)
    x, cut, y = (TensorSpec(name, "float32", shape) for name in ("x", "cut", made))
    constants = {name: np.full(4, values, np.float32) for name in ("scale", "shift")}
    norm = Piece(StageSpec("s_2", (cut,), (y,)), None, 0, "GroupNormSilu", ("cut", "scale", "shift"), (made,), {}, constants)
    return Piece(StageSpec("s_1", (x,), (cut,)), Path("s_1.onnx")), norm


def boundary(dtype):
    return StageSpec("s", *((TensorSpec(name, kind, ("batch", 4, 6, 6)),) for name, kind in (("x", "float32"), ("y", dtype))))


def types_at(half, dtype="float16", unread=(), **more):
    engine, norm = type_pieces(pieces_of(**more), boundary(dtype), half, unread)
    assert {values.dtype.name for values in norm.constants.values()} == {"float32"} and engine.spec.inputs[0].dtype == "float32"
    assert engine.spec.outputs == norm.spec.inputs
    return norm.spec.inputs[0].dtype, norm.spec.outputs[0].dtype


def test_what_flows_at_the_cuts_has_the_types_of_kernels_and_boundary():
    assert types_at(True) == ("float16", "float16") and types_at(False, "float32") == ("float32", "float32")
    assert types_at(True, "float32", {"y"}) == ("float16", "float16")  # nobody else reads it
    assert types_at(True, values=1e5) == ("float16", "float16")  # scale and shift are FP32 always
    for half, dtype in ((True, "float32"), (False, "float16")):
        with pytest.raises(BuildFailedError, match=rf"stage s cannot be cut at its boundary: y is {dtype}, and GroupNormSilu computes"):
            types_at(half, dtype)


def test_a_constant_that_fp16_does_not_hold_keeps_the_cuts_in_fp32():
    shapes = {"query": ("batch", 1, 4, 2), "attended": ("batch", 1, 4, 2), "map": ("batch", 4, 3)}
    query, attended, weights = (TensorSpec(name, "float32", shape) for name, shape in shapes.items())
    for largest, kind in ((6e4, "float16"), (7e4, "float32")):
        constants = {"keys": np.full((1, 1, 2, 3), largest, np.float32), "values": np.ones((1, 1, 3, 2), np.float32)}
        kernel = Piece(
            StageSpec("s_1", (query,), (attended, weights)), None, 0, "CrossAttention", ("query", "keys", "values"), ("attended", "map"), {}, constants
        )
        spec = StageSpec("s", (TensorSpec("query", kind, shapes["query"]),), (attended, weights))
        (typed,) = type_pieces((kernel,), spec, True, {"attended", "map"})
        assert {t.dtype for t in typed.spec.tensors} == {kind} == {values.dtype.name for values in typed.constants.values()}


def words(bundle, plan, file, precision="fp16"):
    return [str(bundle), "--backend", "tensorrt", "--precision", precision, "--operators", ALL, "--plugins", str(file), "-o", str(plan)]


@pytest.mark.parametrize(("gpu", "precision"), [("8.5.2.2", "fp16"), ("8.6.1.6", "fp16"), ("8.5.2.2", "fp32")], indirect=["gpu"])
def test_the_whole_life_of_a_plan_with_plugins(gpu, bundle, tmp_path, capsys, precision):
    file, trt = library(tmp_path, gpu.trt.__version__[:3]), gpu.trt
    assert build_command.main(words(bundle, tmp_path / "x.plan", file, precision)) == 0
    told = capsys.readouterr().err
    assert f"right on Fake GPU (sm86), TensorRT {trt.__version__}" in told and trt.registry.libraries == []
    assert f"operators of ours: 3 {'half' if precision == 'fp16' else 'float'}" in told
    assert "operators of ours: 1 float" in told  # it makes the network's output, which is FP32
    with PlanFile.open(tmp_path / "x.plan") as plan:
        manifest = plan.manifest
    assert manifest.operators.counts == operator_network.OPERATORS and manifest.operators.runs_as == "plugins"
    assert manifest.operators.library.sha256 == hashlib.sha256(file.read_bytes()).hexdigest() and manifest.operators.library.tensorrt == trt.__version__[:3]
    assert "encoder: 2 GroupNormSilu, 1 CrossAttention; head: 1 BinsExpectation (as plugins of" in inspection.describe(manifest)
    before = trt.registry.loads
    with Pipeline.open(tmp_path / "x.plan") as first, Pipeline.open(tmp_path / "x.plan") as second:
        assert trt.registry.loads == before + 1
        np.testing.assert_allclose(first.predict(PICTURE).depth_m, truth(), rtol=1e-4 if precision == "fp32" else 1e-2)
        second.close()
        assert len(trt.registry.libraries) == 1
    assert trt.registry.libraries == [] and gpu.leaks() == {}
    assert doctor.main(["--engine", str(tmp_path / "x.plan")]) == 0
    assert "right on Fake GPU" in capsys.readouterr().out
    library(tmp_path, trt.__version__[:3], salt=b"changed")
    with pytest.raises(ChecksumError, match="SHA-256"):
        Pipeline.open(tmp_path / "x.plan")
    file.unlink()
    with pytest.raises(EnvironmentMismatchError, match=r"libfathom_plugins\.so is not there"):
        Pipeline.open(tmp_path / "x.plan")


@pytest.mark.parametrize("gpu", VERSIONS, indirect=True)
def test_the_parser_gets_nodes_without_bodies_and_plugins_are_held_by_their_outputs(gpu, bundle, tmp_path):
    assert build_command.main([*words(bundle, tmp_path / "x.plan", library(tmp_path, gpu.trt.__version__[:3])), "-q"]) == 0
    trt, held = gpu.trt, []
    for network, config in trt.built:
        assert trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS in config.flags
        assert not network.model.functions and {o.domain: o.version for o in network.model.opset_import} == {"": 17, "fathom": 1}
        for layer in network.layers:
            if layer.type == trt.LayerType.PLUGIN_V2:
                held.append(layer.node.op_type)
                inner = [place for place in range(layer.num_outputs) if not layer.get_output(place).is_network_output]
                assert layer.precision is None and layer.asked == dict.fromkeys(inner, trt.DataType.HALF)
    assert sorted(held) == sorted(ALL.split(",") + ["GroupNormSilu"])
    assert not [name for name in tmp_path.iterdir() if name.suffix not in (".plan", ".so") and name.name != "cache"]


def test_a_plugin_that_must_be_fp32_is_held_as_a_whole():
    trt = SimpleNamespace(DataType=SimpleNamespace(FLOAT="f", HALF="h"), LayerType=SimpleNamespace(**{n: n for n in ("PLUGIN_V2", "CONSTANT", "SHAPE")}))
    for name in ("QUANTIZE", "DEQUANTIZE", "ASSERTION"):
        setattr(trt.LayerType, name, name)
    layers = [Layer(name, "PLUGIN_V2", [Tensor("y", "f", (1,)), Tensor("z", "f", (1,))]) for name in ("wide", "narrow")]
    constrain(trt, SimpleNamespace(num_layers=2, get_layer=layers.__getitem__), [("wide", "fp32"), ("narrow", "fp16")])
    assert (layers[0].precision, layers[0].asked) == ("f", {0: "f", 1: "f"}) and (layers[1].precision, layers[1].asked) == (None, {0: "h", 1: "h"})


@pytest.mark.parametrize("gpu", ["8.5.2.2"], indirect=True)
@pytest.mark.parametrize("release", ["8.6", "10.3"])
def test_a_library_for_another_release_is_refused(gpu, bundle, tmp_path, capsys, release):
    """8.6 asks the library for entries that 8.5 does not, and the other way round."""
    assert build_command.main([*words(bundle, tmp_path / "x.plan", library(tmp_path, release)), "-q"]) == 6
    said = capsys.readouterr().err
    assert f"compiled for TensorRT {release}, and 8.5.2.2 is installed here; wanted: a library for TensorRT 8.5" in said
    assert not (tmp_path / "x.plan").exists() and gpu.trt.registry.loads == 0


@pytest.mark.parametrize("gpu", VERSIONS, indirect=True)
def test_names_that_somebody_else_holds_are_refused(gpu, bundle, tmp_path, capsys):
    gpu.trt.fail["library"] = True
    assert build_command.main([*words(bundle, tmp_path / "x.plan", library(tmp_path, gpu.trt.__version__[:3])), "-q"]) == 6
    assert "or has operators of these names already" in capsys.readouterr().err


@pytest.mark.parametrize("gpu", ["8.5.2.2"], indirect=True)
def test_a_build_that_fails_leaves_no_creator_behind(gpu, bundle, tmp_path, capsys):
    gpu.trt.fail["build"] = "no implementation obeys requested constraints"
    assert build_command.main([*words(bundle, tmp_path / "x.plan", library(tmp_path, "8.5")), "-q"]) == 8
    assert "obeys requested constraints" in capsys.readouterr().err and gpu.trt.registry.libraries == [] and gpu.trt.registry.loads == 1


SHAPES = {
    "BinsExpectation": ((None, 4, 32, 48), (None, 64, 8, 12), (None, 16, 16, 24)),
    "GroupNormSilu": ((None, 64, 16, 24), (64,), (64,)),
    "CrossAttention": ((None, 8, 1024, 80), (1, 8, 80, 40), (1, 8, 40, 80)),
}


def problem(op, changed=None, kinds=(1, 1, 1), outputs=None, inputs=3, **attributes):
    outputs = outputs if outputs is not None else 2 if op == "CrossAttention" else 1
    node = helper.make_node(op, [f"i{k}" for k in range(inputs)], [f"o{k}" for k in range(outputs)], name="n", domain="fathom", **attributes)
    sizes = [(changed or {}).get(k, shape) for k, shape in enumerate(SHAPES.get(op, SHAPES["GroupNormSilu"]))][:inputs]
    return plugin_problem(node, kinds[:inputs], sizes)


@pytest.mark.parametrize(
    ("op", "more", "said"),
    [
        ("BinsExpectation", {}, ""),
        ("BinsExpectation", {"alpha": 100.0}, ""),
        ("BinsExpectation", {"kinds": (10, 10, 10)}, ""),
        ("BinsExpectation", {"alpha": 100}, "no field alpha of type INT"),
        ("BinsExpectation", {"beta": 1.0}, "no field beta"),
        ("BinsExpectation", {"changed": {1: (None, 63, 8, 12)}}, "63 centers"),
        ("BinsExpectation", {"changed": {1: (None, 64, 17, 12)}}, "do not grow"),
        ("BinsExpectation", {"changed": {0: (None, 4, 32)}}, "rank 4"),
        ("GroupNormSilu", {}, ""),
        ("GroupNormSilu", {"groups": 16, "kinds": (10, 1, 1)}, ""),
        ("GroupNormSilu", {"groups": 16.0}, "no field groups of type FLOAT"),
        ("GroupNormSilu", {"groups": 5}, "64 channels in 5 groups"),
        ("GroupNormSilu", {"groups": 1, "changed": {0: (None, 512, 4, 4)}}, "at most 256"),
        ("GroupNormSilu", {"kinds": (1, 10, 1)}, "i1 is neither"),
        ("GroupNormSilu", {"kinds": (7, 1, 1)}, "i0 is neither"),
        ("GroupNormSilu", {"inputs": 2}, "2 inputs"),
        ("CrossAttention", {"scale": 0.5}, ""),
        ("CrossAttention", {"changed": {1: (1, 8, 80, 129), 2: (1, 8, 129, 80)}}, "129 tokens"),
        ("CrossAttention", {"changed": {1: (1, 8, 40, 80)}}, "differ"),
        ("CrossAttention", {"outputs": 1}, "1 outputs"),
        ("Wings", {}, "no plugin of that name"),
    ],
)
def test_the_checker_says_what_a_plugin_would_refuse(op, more, said):
    found = problem(op, **more)
    assert said in found and bool(said) == bool(found)


def test_a_graph_that_a_plugin_would_refuse_is_named_before_any_compiler_sees_it(tmp_path):
    shape = ["batch", 512, 4, 4]
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
    constants = [onnx.numpy_helper.from_array(np.ones(512, np.float32), name) for name in ("scale", "shift")]
    node = helper.make_node("GroupNormSilu", ["x", "scale", "shift"], ["y"], name="up/norm", domain="fathom", groups=1)
    model = helper.make_model(helper.make_graph([node], "s", value[:1], value[1:], constants), ir_version=9)
    del model.opset_import[:]
    model.opset_import.extend([helper.make_opsetid("", 18), helper.make_opsetid("fathom", 1)])
    (tmp_path / "s.onnx").write_bytes(model.SerializeToString())
    spec = StageSpec("s", *((TensorSpec(name, "float32", tuple(shape)),) for name in "xy"))
    (tmp_path / "lowered").mkdir()
    with pytest.raises(BuildFailedError, match=r"node up/norm \(GroupNormSilu\): 512 channels in 1 groups, wanted at most 256"):
        lower_stage(tmp_path / "s.onnx", tmp_path / "lowered", spec, "8.5")
