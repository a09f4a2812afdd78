"""FP8 and INT4: their grids against tables made by hand, graphs with them in ONNX Runtime, a search that may use them, and what TensorRT-RTX makes of it."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fathom.calibration.calibrate import Settings, add_to_bundle, calibrate
from fathom.calibration.graph.session import StageSession
from fathom.calibration.graph.stage_graph import StageGraph
from fathom.calibration.observation.images import Chosen
from fathom.calibration.observation.sample_layers import Place, sample_layers
from fathom.calibration.observation.stage_observation import StageObservation
from fathom.calibration.precision.precision_plan import Choice
from fathom.calibration.precision.quantised_stage import ranges_for
from fathom.calibration.precision.regions import Region
from fathom.calibration.quantisation.formats import FP8, INT4, activation_scale
from fathom.calibration.quantisation.quantize import quantize
from fathom.calibration.ranges.observers import Histogram
from fathom.calibration.ranges.table import TensorRange
from fathom.calibration.search.cards import CARDS
from fathom.calibration.search.cost import CostModel
from fathom.calibration.search.objective import Budget
from fathom.export.onnxruntime.build import optimise
from fathom.export.plan.build import build_plan
from fathom.export.plan.build_options import BuildOptions
from fathom.export.precision.calibrated import planned_boundaries, require_calibration, type_by_plan
from fathom.runtime.artefact.bundle import BundleDirectory
from fathom.runtime.errors import UsageError
from fathom.runtime.pipeline import Pipeline

WIDE = Budget(0.2, 0.2, 0.2)
pytestmark = pytest.mark.usefixtures("rooms_once")


def e4m3():
    """Every finite number of E4M3 (OCP 8-bit floating point, table 1), from its bits: bias 7, no infinity, S.1111.111 is NaN."""
    found = []
    for code in range(127):
        exponent, mantissa = code >> 3, code & 7
        found.append(mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))
    return np.array(sorted({-v for v in found} | set(found)))


def nearest(values, grid):
    """The nearest number of a grid; values half-way between two are not asked for."""
    return grid[np.abs(values[..., None] - grid).argmin(axis=-1)]


def matrix_graph(calibration_bundles, folder, weight, opset=18):
    """``y = x @ w`` with a large weight, which lies in a file."""
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 5, size]) for n, size in zip("xy", weight.shape, strict=True)]
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="fc/MatMul_0")
    graph = helper.make_graph([node], "g", values[:1], values[1:], [onnx.numpy_helper.from_array(weight, "w")])
    return calibration_bundles.load_graph(folder, helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9))


def test_fp8_is_the_nearest_number_of_e4m3_and_never_more_than_448():
    grid = e4m3()
    assert len(grid) == 253 and grid.max() == 448
    values = np.random.default_rng(0).normal(size=4000).astype(np.float32) * 10.0 ** np.random.default_rng(1).uniform(-4, 4, 4000).astype(np.float32)
    found = FP8.on_grid(values, np.float32(1))
    np.testing.assert_array_equal(found, nearest(values.astype(np.float64), grid).astype(np.float32))


@pytest.mark.parametrize("stored", [True, False])
def test_an_fp8_product_is_what_the_grid_gives(calibration_bundles, tmp_path, stored):
    random = np.random.default_rng(2)
    weight, x = random.normal(size=(48, 40)).astype(np.float32) * np.geomspace(0.1, 10, 40, dtype=np.float32), random.normal(size=(2, 5, 48)).astype(np.float32)
    graph = matrix_graph(calibration_bundles, tmp_path / "g", weight)
    done = quantize(graph, {"x": TensorRange(2.5, "max", 4.0)}, ["fc/MatMul_0"], form=FP8, stored=stored)
    assert done.nodes == ("fc/MatMul_0",) and graph.opset == 19
    scale, grid = float(activation_scale(2.5, FP8)), e4m3()
    assert 2.5 / 448 <= scale < 2.502 / 448
    scales = np.abs(weight).max(axis=0) / 448
    scales = np.where(np.float16(scales) < scales, np.nextafter(np.float16(scales), np.float16(np.inf)), np.float16(scales)).astype(np.float64)
    wanted = (nearest(x / scale, grid) * scale) @ (nearest(weight / scales, grid) * scales)
    if stored:
        graph.save(tmp_path / "fp8.onnx")
        graph = StageGraph.load(tmp_path / "fp8.onnx")
        assert graph.constants["w:fp8"].data_type == TensorProto.FLOAT8E4M3FN and (tmp_path / "fp8.onnx.data").stat().st_size == weight.size
        onnx.checker.check_model(str(tmp_path / "fp8.onnx"), full_check=True)
    found = StageSession(graph).run({"x": x})["y"]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("gate", ["Relu", "Clip"])
def test_what_stands_before_an_fp8_layer_is_not_left_out(calibration_bundles, tmp_path, gate):
    """ONNX Runtime 1.32 fuses both into QuantizeLinear as if FP8's zero were its least number; a plan opens with the same care."""
    weight = np.random.default_rng(5).normal(size=(48, 40)).astype(np.float32)
    x = np.random.default_rng(6).normal(size=(2, 5, 48)).astype(np.float32)
    graph = matrix_graph(calibration_bundles, tmp_path / "g", weight)
    bounds = [graph.add_constant(name, np.float32(value)) for name, value in (("low", 0), ("high", 1.5))]
    node = helper.make_node(gate, ["x", *(bounds if gate == "Clip" else [])], ["gated"], name="gate")
    product = graph.model.graph.node[0]
    product.input[0] = "gated"
    graph.replace_nodes([node, product])
    quantize(graph, {"gated": TensorRange(2.5, "max", 4.0)}, ["fc/MatMul_0"], form=FP8, stored=True)
    graph.save(tmp_path / "fp8.onnx")
    scale, scales = float(activation_scale(2.5, FP8)), np.float32(np.abs(weight).max(axis=0) / 448)
    scales = np.where(np.float16(scales) < scales, np.nextafter(np.float16(scales), np.float16(np.inf)), np.float16(scales)).astype(np.float64)
    gated = np.clip(x, 0, 1.5 if gate == "Clip" else None)
    wanted = (nearest(gated / scale, e4m3()) * scale) @ (nearest(weight / scales, e4m3()) * scales)
    request = {"stage": "g", "source": tmp_path / "fp8.onnx", "target": tmp_path / "e.onnx", "weights": tmp_path / "e.data", "scratch": tmp_path}
    optimise(request, lambda *args, **facts: None)
    assert [n.op_type for n in onnx.load(tmp_path / "e.onnx", load_external_data=False).graph.node].count(gate) == 1
    found = StageSession(StageGraph.load(tmp_path / "fp8.onnx")).run({"x": x})["y"]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("stored", [True, False])
def test_an_int4_weight_has_a_scale_for_every_64_input_channels_and_half_a_byte_each(calibration_bundles, tmp_path, stored):
    random = np.random.default_rng(3)
    weight, x = random.normal(size=(128, 40)).astype(np.float32), random.normal(size=(2, 5, 128)).astype(np.float32)
    weight[64:] *= 20
    graph = matrix_graph(calibration_bundles, tmp_path / "g", weight)
    done = quantize(graph, {}, ["fc/MatMul_0"], form=INT4, stored=stored)
    assert done.nodes == ("fc/MatMul_0",) and done.activations == ()
    blocks = weight.reshape(2, 64, 40).astype(np.float64)
    scales = np.abs(blocks).max(axis=1, keepdims=True) / 7
    scales = np.where(np.float16(scales) < scales, np.nextafter(np.float16(scales), np.float16(np.inf)), np.float16(scales)).astype(np.float64)
    wanted = x @ (np.clip(np.rint(blocks / scales), -8, 7) * scales).reshape(128, 40)
    if stored:
        graph.save(tmp_path / "int4.onnx")
        assert (tmp_path / "int4.onnx.data").stat().st_size == weight.size // 2
        onnx.checker.check_model(str(tmp_path / "int4.onnx"), full_check=True)
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.disable_quant_qdq", "1")  # its fused kernel quantises the activation as well
        ran = onnxruntime.InferenceSession(str(tmp_path / "int4.onnx"), options).run(None, {"x": x})[0]
    else:
        ran = StageSession(graph).run({"x": x})["y"]
    np.testing.assert_allclose(ran, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


def test_int4_leaves_what_has_no_whole_blocks_and_refuses_what_a_newer_opset_would_change(calibration_bundles, tmp_path):
    weight = np.ones((48, 64), np.float32)
    assert "48 input channels" in quantize(matrix_graph(calibration_bundles, tmp_path / "a", weight), {}, ["fc/MatMul_0"], form=INT4).left["fc/MatMul_0"]
    graph = calibration_bundles.load_graph(tmp_path / "b", calibration_bundles.token_models()[0])
    assert "matrix products" in quantize(graph, {}, ["patch/Conv_0"], form=INT4).left["patch/Conv_0"]


@pytest.fixture(scope="module")
def calibrated(token_bundle, tmp_path_factory):
    """The two-stage network, calibrated with FP8 and INT4 among the candidates."""
    folder = tmp_path_factory.mktemp("formats")
    made = {}
    for low in ("fp8", "int4"):
        path = token_bundle()
        bundle = BundleDirectory.open(path)
        settings = Settings(WIDE, ("fp32", "fp16", low), card=CARDS["rtx4090"])
        add_to_bundle(bundle, calibrate(bundle, Chosen("rooms:6:1:48x64"), settings, folder / f"{low}.journal"))
        made[low] = path
    return made


@pytest.fixture(scope="module")
def photo():
    return Chosen("rooms:1:9:48x64").source[0].rgb


@pytest.mark.parametrize("low", ["fp8", "int4"])
def test_the_search_takes_it_where_the_budget_allows_and_a_plan_shows_its_depth_on_a_cpu(calibrated, low, photo, tmp_path):
    path = calibrated[low]
    plan = require_calibration(BundleDirectory.open(path), low).plan
    held = [region for region in plan.regions if region.choice.precision == low]
    assert held and any(low in region.evidence or any(words.startswith(low) for words in region.evidence) for region in held)
    maps = {}
    for precision in ("fp32", low):
        report = build_plan(path, tmp_path / f"{precision}.plan", BuildOptions("onnxruntime", precision))
        with Pipeline.open(tmp_path / f"{precision}.plan") as pipeline:
            maps[precision] = pipeline.predict(photo).values
    assert report.manifest.precision == low and low in {stage.precision for stage in report.manifest.stages}
    moved = float((np.abs(maps[low] - maps["fp32"]) / maps["fp32"]).mean())
    assert 1e-4 < moved < 0.05  # beyond FP16's rounding
    if low == "int4":
        assert any("MB with FP16 for INT4" in text for text in plan.verdicts.values())


def test_typed_stages_hold_what_the_plan_says(calibrated, tmp_path):
    for low, kind in (("fp8", TensorProto.FLOAT8E4M3FN), ("int4", TensorProto.INT4)):
        opened = BundleDirectory.open(calibrated[low])
        calibration, stage = require_calibration(opened, low), opened.manifest.stages[0]
        target, types = tmp_path / f"{low}.onnx", planned_boundaries(opened, calibration)
        _, quantised = type_by_plan(opened, stage, calibration, target, precision=low, boundaries=types)
        assert quantised["blocks.0.ff.2/MatMul_0"] == low
        onnx.checker.check_model(str(target), full_check=True)
        held = {tensor.name: tensor.data_type for tensor in onnx.load(target).graph.initializer}
        assert held[f"blocks.0.ff.2.weight:{low}"] == kind and held[f"blocks.0.ff.2.weight:{low}:scale"] == TensorProto.FLOAT16


def test_tensorrt_rtx_compiles_fp8_for_ada_and_blackwell_and_holds_its_weights(calibrated, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    report = build_plan(calibrated["fp8"], tmp_path / "x.plan", BuildOptions("tensorrt-rtx", "fp8", ("sm89", "sm120")))
    assert sum(stage.layers.get("fp8", 0) for stage in report.stages) >= 2
    found, looked_for = report.stages[0].stored["float8_e4m3fn"]
    assert found == looked_for >= 1
    report = build_plan(calibrated["int4"], tmp_path / "y.plan", BuildOptions("tensorrt-rtx", "int4", ("sm86",)))
    assert report.stages[0].layers["int4"] >= 1


def convolutions():
    """A chain: 3x3, depthwise 3x3, 7x7 and a 2x2 transposed convolution; all of them are for INT8."""
    shapes = {"plain": (4, 4, 3, 3), "depthwise": (4, 1, 3, 3), "wide": (4, 4, 7, 7), "up": (4, 2, 2, 2)}
    rng = np.random.default_rng(5)
    weights = [numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name) for name, shape in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["x", "plain"], ["a"], name="plain", pads=[1] * 4),
        helper.make_node("Conv", ["a", "depthwise"], ["b"], name="depthwise", pads=[1] * 4, group=4),
        helper.make_node("Conv", ["b", "wide"], ["c"], name="wide", pads=[3] * 4),
        helper.make_node("ConvTranspose", ["c", "up"], ["y"], name="up", strides=[2, 2]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", [1, 4, 8, 8]), ("y", [1, 2, 16, 16])))
    return StageGraph(helper.make_model(helper.make_graph(nodes, "g", [x], [y], weights), opset_imports=[helper.make_opsetid("", 19)], ir_version=9), None)


def test_fp8_leaves_convolutions_that_tensorrt_has_no_kernels_for():
    """Its release notes name groups and kernels of more than 32 places; INT8 has neither bound."""
    ranges = {name: TensorRange(4.0, "max", 4.0) for name in "xabc"}
    done = quantize(convolutions(), ranges, ["plain", "depthwise", "wide", "up"], form=FP8)
    assert done.nodes == ("plain", "up")
    assert "grouped" in done.left["depthwise"] and "49 places, at most 32" in done.left["wide"]
    assert len(quantize(convolutions(), ranges, ["plain", "depthwise", "wide", "up"]).nodes) == 4


def test_what_fp8_leaves_is_not_smoothed_has_no_range_and_costs_fp16():
    graph = convolutions()
    choice = Choice("fp8", "max", smooth=0.5)
    seen = StageObservation()
    for name in "xabc":
        seen.histograms[name] = Histogram()
        seen.histograms[name].add(np.ones(8, np.float32))
        seen.channels[name] = np.array([1.0, 2.0, 3.0, 4.0])
    ranges = ranges_for(graph, {("plain", "depthwise", "wide", "up"): choice}, seen)
    assert {name.split(":")[0] for name in ranges} == {"x", "c"}
    region = Region("g", "all", "block", ("plain", "depthwise", "wide", "up"))
    model = CostModel(graph, card=CARDS["l4"])
    precisions = model.precisions({region: choice}, set(region.nodes))
    assert precisions == {"plain": "fp8", "depthwise": "fp16", "wide": "fp16", "up": "fp8"}


def test_an_observer_suits_the_layers_that_a_format_suits():
    """What only a layer reads that FP8 leaves out needs no observer in FP8."""
    graph, random = convolutions(), np.random.default_rng(2)
    seen = StageObservation()
    for fold in range(2):
        values = {name: random.normal(size=(1, 4, 8, 8)).astype(np.float32) for name in "xabc"}
        for name, tensor in values.items():
            seen.look(fold, name, tensor)
        sample_layers(seen.samples, seen.origins, graph, list("xabc"), values, (fold, 0), Place(fold, 0, 1, 2))
    seen.suit(graph)
    seen.suit(graph, FP8)
    assert {name for form, name in seen.suited if form == "int8"} == set("xabc")
    assert {name for form, name in seen.suited if form == "fp8"} == set("xc")


def test_fp8_is_refused_where_no_tensor_core_has_it(calibrated, tmp_path):
    with pytest.raises(UsageError, match="sm86 has no FP8 tensor cores"):
        BuildOptions("tensorrt-rtx", "fp8", ("sm89", "sm86"))
    with pytest.raises(UsageError, match=r"Orin Nano.* has no FP8"):
        Settings(precisions=("fp32", "fp8"), card=CARDS["orin-nano"])
    with pytest.raises(UsageError, match="holds FP8 too"):
        build_plan(calibrated["fp8"], tmp_path / "x.plan", BuildOptions("onnxruntime", "int8"))
    with pytest.raises(UsageError, match="holds no FP8"):
        build_plan(calibrated["int4"], tmp_path / "x.plan", BuildOptions("onnxruntime", "fp8"))


def test_the_cost_of_fp8_and_int4_by_hand(calibration_bundles, tmp_path):
    """A product of [1, 5, 4096] by [4096, 4096] reads little but its weight: bytes over bandwidth, whatever the tensor cores could do."""
    graph = matrix_graph(calibration_bundles, tmp_path / "g", np.ones((4096, 4096), np.float32))
    model = CostModel(graph, card=CARDS["rtx4090"])
    tokens = 2 * 5 * 4096  # bytes of either activation in FP16
    for precision, nbytes in (("fp16", 2 * 4096**2 + 2 * tokens), ("fp8", 4096**2 + 1.5 * tokens), ("int4", (0.5 + 2 / 64) * 4096**2 + 2 * tokens)):
        assert model.node_ms("fc/MatMul_0", precision) == pytest.approx(nbytes / 1008e6, rel=1e-6)
