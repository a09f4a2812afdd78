"""From a calibrated bundle to typed stages and plans: the numbers of the plan, TensorRT-RTX and ONNX Runtime, refusals."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from safetensors.numpy import load_file

from fathom.calibration.calibrate import PLAN, add_to_bundle
from fathom.calibration.observation.images import Chosen
from fathom.calibration.search.objective import Budget
from fathom.export.commands.build_command import main
from fathom.export.plan.build import build_plan
from fathom.export.plan.build_options import BuildOptions
from fathom.export.plan.plan_file import write_plan
from fathom.export.plan.stage_builder import StageBuilder
from fathom.export.plan.time_stages import int8_everywhere
from fathom.export.precision.calibrated import planned_boundaries, require_calibration, type_by_plan
from fathom.runtime.artefact.bundle import BundleDirectory
from fathom.runtime.artefact.plan import PlanFile
from fathom.runtime.certificate.comparison import difference
from fathom.runtime.certificate.goldens import read_goldens
from fathom.runtime.errors import ChecksumError, UsageError
from fathom.runtime.pipeline import Pipeline

pytestmark = pytest.mark.usefixtures("rooms_once")


def with_calibration(path, calibrated):
    add_to_bundle(BundleDirectory.open(path), calibrated(path, budget=Budget(0.05, 0.05)))
    return path


@pytest.fixture(scope="module")
def bundle(token_bundle, calibrated):
    return with_calibration(token_bundle(), calibrated)


@pytest.fixture(scope="module")
def overflowing(token_bundle, calibrated):
    return with_calibration(token_bundle(norm_scale=1e5), calibrated)


@pytest.fixture(scope="module")
def photo():
    return Chosen("rooms:1:9:48x64").source[0].rgb


@pytest.fixture(scope="module")
def rtx():
    return pytest.importorskip("tensorrt_rtx")


def test_the_typed_stage_holds_int8_weights_and_fp16_scales(bundle, tmp_path):
    opened = BundleDirectory.open(bundle)
    calibration = require_calibration(opened)
    types = planned_boundaries(opened, calibration)
    typed, int8 = type_by_plan(opened, opened.manifest.stages[0], calibration, tmp_path / "e.onnx", precision="int8", boundaries=types)
    assert "blocks.0.ff.0/MatMul_0" in int8 and typed.nodes["float16"] > typed.nodes["float32"]
    onnx.checker.check_model(str(tmp_path / "e.onnx"), full_check=True)
    model = onnx.load(tmp_path / "e.onnx")
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    maker = {name: node for node in model.graph.node for name in node.output}
    product = next(node for node in model.graph.node if node.name == "blocks.0.ff.0/MatMul_0")
    activation, weight = (maker[name] for name in product.input)
    assert (activation.op_type, weight.op_type) == ("DequantizeLinear", "DequantizeLinear")
    assert held[weight.input[0]].data_type == TensorProto.INT8 and list(held[weight.input[0]].dims) == [16, 64]
    assert held[weight.input[1]].data_type == held[activation.input[1]].data_type == TensorProto.FLOAT16
    bias = next(node for node in model.graph.node if node.name == "blocks.0.ff.0/Add_0").input[1]
    assert held[bias].data_type == TensorProto.FLOAT16 and "blocks.0.ff.0.weight" not in held
    assert list(tmp_path.glob("*.wide*")) == []


def test_onnxruntime_runs_int8_close_to_fp32(bundle, tmp_path, photo):
    maps = {}
    for precision in ("fp32", "int8"):
        report = build_plan(bundle, tmp_path / f"{precision}.plan", BuildOptions("onnxruntime", precision))
        with Pipeline.open(tmp_path / f"{precision}.plan") as pipeline:
            maps[precision] = pipeline.predict(photo).values
    assert report.manifest.precision == "int8" and report.manifest.stages[0].precision == "int8"
    moved = np.abs(maps["int8"] - maps["fp32"]) / maps["fp32"]
    assert 0 < moved.mean() < 0.02


def test_tensorrt_rtx_compiles_int8_and_holds_it(bundle, rtx, tmp_path):
    report = build_plan(bundle, tmp_path / "x.plan", BuildOptions("tensorrt-rtx", "int8", ("sm86", "sm89", "sm120")))
    plan = require_calibration(BundleDirectory.open(bundle)).plan
    assert report.stages[0].layers["int8"] >= 2
    assert report.stages[0].stored["int8"] == (2, 2)  # the feed-forward's, byte for byte; the patch embedding has three channels
    assert [stage.precision for stage in report.manifest.stages] == [plan.precision("encoder"), plan.precision("head")]


def test_an_int8_plan_is_held_to_what_its_own_numbers_give(small_bundle, rtx, tmp_path):
    """Else the error of quantisation, which was chosen, would hide one of the compiler."""
    source = BundleDirectory.open(small_bundle)
    pytorch, kept = load_file(str(source.path(source.manifest.goldens[0]))), {}
    for precision, calibration in (("fp16", None), ("int8", int8_everywhere(source))):
        (folder := tmp_path / precision).mkdir()
        builder = StageBuilder(source, BuildOptions("tensorrt-rtx", precision, ("sm86",)), folder, lambda what, done: None, calibration)
        builder.type_stages()
        write_plan(tmp_path / "x.plan", *builder.plan(builder.build_all()), force=True)
        with PlanFile.open(tmp_path / "x.plan") as plan:
            kept[precision] = read_goldens(plan)
    moved = {precision: {name: difference(array, pytorch[name]).rms for name, array in found.items()} for precision, found in kept.items()}
    assert moved["fp16"]["image"] == moved["int8"]["image"] == moved["fp16"]["depth"] == 0 and 0 < moved["fp16"]["latent"] < 5e-4
    assert moved["int8"]["latent"] > 1e-3 and moved["int8"]["depth"] > 1e-3


def test_a_network_whose_norm_overflows_is_built_with_that_part_wide(overflowing, rtx, tmp_path, photo):
    """Plain FP16 typing knows nothing of the magnitudes; the plan does."""
    report = build_plan(overflowing, tmp_path / "x.plan", BuildOptions("tensorrt-rtx", "fp16", ("sm86",)))
    assert report.stages[0].layers.get("bf16", 0) + report.stages[0].layers.get("float", 0) >= 2
    report = build_plan(overflowing, tmp_path / "y.plan", BuildOptions("tensorrt-rtx", "int8", ("sm86",)))
    assert report.stages[0].layers.get("bf16", 0) + report.stages[0].layers.get("float", 0) >= 2


def test_int8_of_an_uncalibrated_bundle_is_refused_and_the_command_named(token_bundle, tmp_path, capsys):
    path = token_bundle()
    with pytest.raises(UsageError, match="depth-calibrate"):
        build_plan(path, tmp_path / "x.plan", BuildOptions("onnxruntime", "int8"))
    assert main([str(path), "--precision", "int8", "-o", str(tmp_path / "x.plan")]) == 2
    assert "depth-calibrate" in capsys.readouterr().err and not (tmp_path / "x.plan").exists()


def test_export_calibrates_and_builds_in_one_command(calibration_bundles, tmp_path, capsys):
    """A network made elsewhere, one ONNX file: export, calibration and INT8 plan at once."""
    from fathom.export.commands.export_command import main as export

    values = [onnx.helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", c, 32, 48]) for n, c in (("image", 3), ("depth", 1))]
    weights = {"w": np.random.default_rng(0).normal(size=(1, 3, 3, 3)).astype(np.float32), "three": np.float32(3)}
    nodes = [
        onnx.helper.make_node("Conv", ["image", "w"], ["c"], name="conv/Conv_0", pads=[1] * 4),
        onnx.helper.make_node("Sigmoid", ["c"], ["s"], name="conv/Sigmoid_0"),
        onnx.helper.make_node("Add", ["s", "three"], ["depth"], name="conv/Add_0"),
    ]
    initializers = [onnx.numpy_helper.from_array(v, k) for k, v in weights.items()]
    graph = onnx.helper.make_graph(nodes, "one", values[:1], values[1:], initializers)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9), tmp_path / "one.onnx")
    (tmp_path / "one.json").write_text(json.dumps(calibration_bundles.small_contract().to_json()))
    common = ["--onnx", str(tmp_path / "one.onnx"), "--contract", str(tmp_path / "one.json"), "-o", str(tmp_path / "one.plan"), "--precision", "int8"]
    assert export(common) == 2 and "needs images" in capsys.readouterr().err
    assert export([*common, "--data", "rooms:4:0:48x64", "--budget", "abs_rel=10%,delta1=10pp"]) == 0
    assert "no photographs" in capsys.readouterr().err
    with Pipeline.open(tmp_path / "one.plan") as pipeline:
        assert pipeline.manifest.precision == "int8"
    assert list(tmp_path.glob(".*")) == []


def test_a_plan_that_was_changed_is_refused(token_bundle, calibrated, tmp_path):
    path = with_calibration(token_bundle(), calibrated)
    data = json.loads((path / PLAN).read_text())
    data["regions"][0]["precision"] = "fp16"
    (path / PLAN).write_text(json.dumps(data))
    with pytest.raises(ChecksumError):
        build_plan(path, tmp_path / "x.plan", BuildOptions("onnxruntime", "int8"))
