"""Learning through Q/DQ: its gradients by hand, its numbers against ONNX Runtime, and a bundle that learned."""

import contextlib
import io
import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

from fathom.calibration.artefact import model_fingerprint
from fathom.calibration.calibrate import PLAN, Calibrated, add_to_bundle
from fathom.calibration.graph.chain import prepare
from fathom.calibration.graph.session import StageSession
from fathom.calibration.graph.stage_graph import StageGraph
from fathom.calibration.precision.precision_plan import Choice, PrecisionPlan, RegionPlan
from fathom.calibration.precision.regions import find_regions
from fathom.calibration.quantisation.formats import FORMATS, FP8, INT4, INT8, block_scales
from fathom.calibration.quantisation.formats import weight_scales as stored_scales
from fathom.calibration.quantisation.layer_rows import geometry
from fathom.calibration.quantisation.quantize import activation_inputs, quantisable, quantize
from fathom.calibration.quantisation.smooth import divided, smoothable
from fathom.calibration.ranges.table import CalibrationTable, TensorRange
from fathom.export.commands.train_command import main
from fathom.export.plan.build import build_plan
from fathom.export.plan.build_options import BuildOptions
from fathom.export.precision.calibrated import require_calibration
from fathom.export.quantised_training import learn
from fathom.export.quantised_training.operators import run_node
from fathom.export.quantised_training.reconstruct import Layer, _Rows, reconstruct
from fathom.export.quantised_training.stages import LearningStage
from fathom.export.quantised_training.straight_through import fp16_upwards, on_grid, weight_scales
from fathom.export.quantised_training.torch_graph import TorchGraph, learnable
from fathom.models.training import train_command
from fathom.runtime.artefact.bundle import BundleDirectory
from fathom.runtime.errors import UsageError
from fathom.runtime.pipeline import Pipeline

DATA = "rooms:12:3:32x48"


def test_gradients_pass_straight_through_rounding_and_stop_where_it_clips():
    """With v / s = (-200, -1.3, 0.4, 2.5, 127.2): INT8 gives (-128, -1, 0, 2, 127). Straight through, d(q s)/dv is 1 inside and 0 beyond."""
    scale = torch.tensor(0.25)
    values = torch.tensor([-50.0, -0.325, 0.1, 0.625, 31.8], requires_grad=True)
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    found = on_grid(values, scale, INT8) * scale
    np.testing.assert_allclose(found.detach(), [-32, -0.25, 0, 0.5, 31.75], atol=1e-6)
    (found * weights).sum().backward()
    np.testing.assert_allclose(values.grad, [0, 2, 3, 4, 0], atol=1e-6)


def test_scales_are_those_that_are_stored():
    random = np.random.default_rng(0)
    weight = (random.normal(size=(128, 24)) * np.geomspace(1e-7, 1e4, 24)).astype(np.float32)
    weight[:, 3] = 0
    for form in (INT8, FP8):
        np.testing.assert_array_equal(weight_scales(torch.from_numpy(weight), 1, form).numpy()[0], stored_scales(weight, 1, form))
        assert float(weight_scales(torch.from_numpy(weight), None, form)) == float(stored_scales(weight, None, form))
    np.testing.assert_array_equal(weight_scales(torch.from_numpy(weight), 0, INT4).numpy(), np.repeat(block_scales(weight, 0), 64, 0))
    assert fp16_upwards(torch.tensor([1.0, 1.0001, 1e6])).tolist() == [1.0, 1 + 2.0**-10, 1e6]


def test_fp8_rounds_to_the_numbers_that_ml_dtypes_has():
    values = np.random.default_rng(4).normal(size=2000).astype(np.float32) * np.geomspace(1e-3, 600, 2000, dtype=np.float32)
    found = on_grid(torch.from_numpy(values), torch.tensor(1.0), FP8).numpy()
    np.testing.assert_allclose(found, FP8.on_grid(values, np.float32(1)), rtol=1e-6)


def graph_of(tmp_path, nodes, inputs, outputs, constants=()):
    """A prepared stage graph of some nodes, read back from a file."""
    values = [[helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in side] for side in (inputs, outputs)]
    graph = helper.make_graph(nodes, "g", *values, [numpy_helper.from_array(np.asarray(v), name) for name, v in constants])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "g.onnx")
    graph = StageGraph.load(tmp_path / "g.onnx")
    prepare(graph)
    return graph


F32, I64 = TensorProto.FLOAT, TensorProto.INT64
CASES = {  # node words -> shape of x, other constants, attributes
    "Conv": ((2, 4, 9, 8), [("w", (6, 2, 3, 3)), ("b", (6,))], {"strides": [2, 1], "pads": [0, 1, 1, 2], "group": 2}),
    "ConvTranspose": ((2, 4, 5, 4), [("w", (4, 3, 2, 3))], {"strides": [2, 2], "pads": [0, 1, 0, 1], "output_padding": [1, 0]}),
    "AveragePool": ((1, 2, 7, 6), [], {"kernel_shape": [2, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    "Gemm": ((3, 5), [("w", (7, 5)), ("b", (7,))], {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    "LayerNormalization": ((2, 3, 8), [("s", (8,)), ("b", (8,))], {"epsilon": 1e-3}),
    "InstanceNormalization": ((2, 3, 8), [("s", (3,)), ("b", (3,))], {"epsilon": 1e-3}),
    "ReduceMean": ((2, 3, 4), [("axes", np.array([-1, 0]))], {"keepdims": 0}),
    "ReduceMax": ((2, 3, 4), [("axes", np.array([1]))], {}),
    "Slice": ((4, 9), [("starts", np.array([-7])), ("ends", np.array([1 << 40])), ("axes", np.array([1])), ("steps", np.array([3]))], {}),
    "Gather": ((4, 5, 3), [("index", np.array([[0, -1], [2, 2]]))], {"axis": 1}),
    "Reshape": ((2, 3, 4), [("shape", np.array([0, -1, 2]))], {}),
    "Expand": ((3, 1), [("shape", np.array([2, 1, 4]))], {}),
    "Unsqueeze": ((3, 4), [("axes", np.array([0, -1]))], {}),
    "Clip": ((5, 5), [("low", np.float32(-0.5)), ("high", np.float32(0.7))], {}),
}


@pytest.mark.parametrize("op", CASES)
def test_operators_give_what_onnx_runtime_gives(tmp_path, op):
    shape, others, attributes = CASES[op]
    random = np.random.default_rng(1)
    constants = [(name, random.normal(size=v).astype(np.float32) if isinstance(v, tuple) else v) for name, v in others]
    node = helper.make_node(op, ["x", *(name for name, _ in constants)], ["y"], **attributes)
    graph = graph_of(tmp_path, [node], [("x", F32, shape)], [("y", F32, None)], constants)
    x = random.normal(size=shape).astype(np.float32)
    wanted = StageSession(graph).run({"x": x})["y"]
    np.testing.assert_allclose(TorchGraph(graph)({"x": torch.from_numpy(x)})["y"], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("mode", "rule", "size"),
    [("nearest", "asymmetric", (10, 9)), ("nearest", "half_pixel", (10, 12)), ("linear", "align_corners", (7, 9)), ("linear", "half_pixel", (3, 9))],
)
def test_resizes_give_what_onnx_runtime_gives(tmp_path, mode, rule, size):
    attributes = {"mode": mode, "coordinate_transformation_mode": rule} | ({"nearest_mode": "floor"} if rule == "asymmetric" else {})
    node = helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], **attributes)
    graph = graph_of(tmp_path, [node], [("x", F32, (1, 2, 5, 6))], [("y", F32, None)], [("sizes", np.array([1, 2, *size]))])
    x = np.random.default_rng(2).normal(size=(1, 2, 5, 6)).astype(np.float32)
    np.testing.assert_allclose(TorchGraph(graph)({"x": torch.from_numpy(x)})["y"], StageSession(graph).run({"x": x})["y"], rtol=1e-5, atol=1e-6)


def test_an_operator_that_is_not_known_is_named():
    with pytest.raises(UsageError, match="MaxRoiPool"):
        run_node("MaxRoiPool", [torch.zeros(1)], {}, 1)
    with pytest.raises(UsageError, match="two nearest pixels"):
        run_node("Resize", [torch.zeros(1, 1, 4, 4), None, None, torch.tensor([1, 1, 6, 6])], {"mode": b"nearest"}, 1)


def stage_graphs(path):
    """Every stage of a bundle: name, prepared graph, golden inputs, and the greatest magnitude of every activation that can be quantised."""
    bundle = BundleDirectory.open(path)
    golden = load_file(str(bundle.path(bundle.manifest.goldens[0])))
    for entry in bundle.manifest.stages:
        graph = StageGraph.load(bundle.path(entry.file))
        prepare(graph)
        watched = graph.copy()
        nodes = {node.name: node for node in graph.model.graph.node}
        names = {nodes[name].input[place] for name, places in activation_inputs(graph).items() for place in places}
        watched.model.graph.output.extend(helper.make_tensor_value_info(name, F32, None) for name in sorted(names - set(graph.inputs) - set(graph.outputs)))
        watched.index()
        values = {**golden, **StageSession(watched).run(golden)}
        yield entry.spec.name, graph, golden, {name: float(np.abs(values[name]).max()) for name in names}


def test_a_graph_in_pytorch_gives_what_onnx_runtime_gives(small_bundle):
    """With Q/DQ a sum that differs in its last bit may round to another step, and so on through the layers: a tenth of the rounding's own effect."""
    for name, graph, golden, peaks in stage_graphs(small_bundle):
        feeds = {key: torch.from_numpy(values) for key, values in golden.items()}
        exact = StageSession(graph).run(golden)
        for key, values in TorchGraph(graph)(feeds).items():
            np.testing.assert_allclose(values, exact[key], rtol=0, atol=1e-5 * np.abs(exact[key]).max(), err_msg=f"{name} {key}")
        for form in FORMATS.values():
            quantised = graph.copy()
            ranges = {key: TensorRange(peak, "max", peak) for key, peak in peaks.items()}
            quantize(quantised, ranges, quantisable(quantised, form), form=form, stored=False)
            wanted, learned = StageSession(quantised).run(golden), TorchGraph(quantised, learnable(graph))
            found = learned(feeds)
            for key, values in found.items():
                apart, effect = np.abs(values.detach().numpy() - wanted[key]).mean(), np.abs(exact[key] - wanted[key]).mean()
                assert apart <= 0.1 * effect + 1e-6 * np.abs(exact[key]).mean(), (name, form.name, key)
            sum(values.square().mean() for values in found.values()).backward()
            assert all(tensor.grad is not None for tensor in learned.weights.values())


def calibrated(source, path, observer_share):
    """A copy of a bundle, calibrated by hand: INT8 everywhere, every range cut to a share of what was seen."""
    shutil.copytree(source, path)
    bundle = BundleDirectory.open(path)
    ranges, regions = {}, []
    for name, graph, _, peaks in stage_graphs(path):
        ranges[name] = {key: TensorRange(observer_share * peak, "mse", peak) for key, peak in peaks.items()}
        regions += [RegionPlan(name, r.path, r.kind, r.nodes, Choice("int8", "mse"), "a test", {}) for r in find_regions(name, graph)]
    model = model_fingerprint(bundle.manifest)
    budget = {"abs_rel": 0.005, "delta1": 0.002, "moved": 0.02}
    table = CalibrationTable(model, {"kind": "rooms"}, "single-image", 1, 1, (), ranges)
    plan = PrecisionPlan(model, budget, "ground truth", {"kind": "modelled"}, tuple(regions), (), {}, (), ())
    add_to_bundle(bundle, Calibrated(table, plan, 0))
    return path


@pytest.fixture(scope="module")
def learned(small_bundle, tmp_path_factory):
    """A bundle whose ranges clip, the one that learned to live with INT8, and what the command said."""
    folder = tmp_path_factory.mktemp("learned")
    source, target = calibrated(small_bundle, folder / "source", 0.6), folder / "target"
    words = ["--quantise", str(source / PLAN), "--data", DATA, "--steps", "60", "--lr", "1e-4", "--threads", "1", "-o", str(target), "--json", "--quiet"]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main(words) == 0
    return source, target, json.loads(said.getvalue())


def test_learning_gives_back_what_int8_moves_on_rooms_it_never_saw(learned):
    _, _, said = learned
    assert said["before"]["disagreement"] > 0.01
    assert said["after"]["disagreement"] < 0.2 * said["before"]["disagreement"]
    assert said["photos"] == {"learned": 9, "proved": 3} and said["loss"]["last"] < 2 * said["loss"]["first"]


def test_what_was_learned_is_a_calibrated_bundle_that_builds_and_gives_that_depth(learned, tmp_path):
    source, target, said = learned
    with BundleDirectory.open(target) as bundle:
        found = require_calibration(bundle)
        assert bundle.manifest.network.weights["kind"] == "random-init" and "layers were fitted" in bundle.manifest.network.weights["warnings"][-1]
    choices = {region.choice for region in found.plan.regions}
    assert choices == {Choice("int8", "mse")} and found.plan.proof["score"] == said["after"] and found.table.data["learned"]["steps"] == 60 * said["distilled"]
    with BundleDirectory.open(source) as bundle:
        before = require_calibration(bundle)
    assert found.table.stages == before.table.stages  # ranges stay: zeros behind a ReLU lie on their grid
    photo = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    depths = {}
    for path, precision in ((source, "fp32"), (target, "int8")):
        build_plan(path, tmp_path / f"{precision}.plan", BuildOptions("onnxruntime", precision))
        with Pipeline.open(tmp_path / f"{precision}.plan") as pipeline:
            depths[precision] = pipeline(photo).depth_m
    assert np.abs(depths["int8"] / depths["fp32"] - 1).mean() < 0.7 * said["before"]["disagreement"]


def test_steps_that_do_harm_are_taken_back(small_bundle, tmp_path, capsys):
    source = calibrated(small_bundle, tmp_path / "source", 1.0)
    words = ["--quantise", str(source / PLAN), "--data", DATA, "--steps", "3", "--lr", "0.05", "-o", str(tmp_path / "out"), "--quiet", "--json"]
    assert main(words) == 0
    said = json.loads(capsys.readouterr().out)
    assert not said["distilled"] and said["fitted_layers"] > 0 and said["after"]["disagreement"] < said["before"]["disagreement"]


def test_weights_make_up_for_each_other_only_where_the_network_gains(small_bundle, tmp_path, capsys, monkeypatch):
    """Whichever way of rounding is spoiled, the other one is kept."""
    source, fit = calibrated(small_bundle, tmp_path / "source", 1.0), learn.reconstruct
    for bad in (False, True):

        def spoil(teacher, student, photos, compensate, bad=bad):
            fitted = fit(teacher, student, photos, False)
            if compensate is bad:
                for graph in student:
                    graph.set_weights({name: 1.5 * tensor for name, tensor in graph.copied_weights().items()})
            return fitted

        monkeypatch.setattr(learn, "reconstruct", spoil)
        words = ["--quantise", str(source / PLAN), "--data", DATA, "--steps", "2", "--lr", "1e-6", "-o", str(tmp_path / f"out-{bad}"), "--quiet", "--json"]
        assert main(words) == 0
        assert json.loads(capsys.readouterr().out)["compensated"] is not bad


def test_learning_that_does_not_help_writes_nothing(small_bundle, tmp_path, capsys, monkeypatch):
    def spoil(teacher, student, photos, compensate):
        for graph in student:
            graph.set_weights({name: 1.5 * tensor for name, tensor in graph.copied_weights().items()})
        return 0

    monkeypatch.setattr(learn, "reconstruct", spoil)
    source = calibrated(small_bundle, tmp_path / "source", 1.0)
    words = ["--quantise", str(source / PLAN), "--data", DATA, "--steps", "2", "--lr", "1e-6", "-o", str(tmp_path / "out"), "--quiet"]
    assert main(words) == 4
    assert "before" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_what_cannot_learn_is_refused(small_bundle, tmp_path, capsys):
    plan = str(calibrated(small_bundle, tmp_path / "source", 1.0) / PLAN)
    assert main(["--quantise", plan, "--data", DATA, "--model", "evp-tiny", "-o", str(tmp_path / "out")]) == 2
    assert "--model with --quantise" in capsys.readouterr().err
    assert main(["--quantise", str(small_bundle / PLAN), "--data", DATA, "-o", str(tmp_path / "out")]) == 3
    assert "no precision plan of a bundle" in capsys.readouterr().err
    assert main(["--quantise", plan, "--data", DATA, "--lr", "2", "-o", str(tmp_path / "out")]) == 2
    with pytest.raises(SystemExit):
        train_command.main(["--quantise", plan, "--data", DATA, "-o", str(tmp_path / "out")])


def test_smoothing_becomes_part_of_the_graph(small_bundle):
    name, graph, golden, peaks = next(stage_graphs(small_bundle))
    nodes = tuple(activation_inputs(graph))
    watched = graph.copy()
    watched.model.graph.output.extend(helper.make_tensor_value_info(key, F32, None) for key in sorted(set(peaks) - set(graph.inputs) - set(graph.outputs)))
    watched.index()
    values = {**golden, **StageSession(watched).run(golden)}
    ranges = {key: TensorRange(peak, "max", peak) for key, peak in peaks.items()}
    for key, layers in smoothable(graph, nodes).items():
        axes = (0, 2, 3) if layers[0].op_type == "Conv" else tuple(range(values[key].ndim - 1))
        channels = tuple(map(float, np.abs(values[key]).max(axis=axes)))
        ranges[divided(graph, key, layers)] = TensorRange(peaks[key], "max", peaks[key], channels)
    regions = (RegionPlan(name, "all", "block", nodes, Choice("int8", "max", 0.5), "", {}),)
    stage = LearningStage(graph, regions, CalibrationTable("0" * 64, {}, "x", 1, 1, (), {name: ranges}), name)
    assert len(stage.graph.model.graph.node) > len(graph.model.graph.node)  # divisions that no layer could take
    assert set(stage.choices.values()) == {Choice("int8", "max")} and not any(found.channels for found in stage.ranges.values())
    (wanted,), (found,) = StageSession(graph).run(golden).values(), StageSession(stage.graph).run(golden).values()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


LAYERS = {  # words of a layer -> shape of x, of its weight, attributes
    "Conv": ((2, 4, 9, 8), (6, 2, 3, 3), {"strides": [2, 1], "pads": [0, 1, 1, 2], "group": 2}),
    "Conv dilated": ((2, 3, 9, 9), (5, 3, 3, 3), {"dilations": [2, 2], "pads": [2, 2, 2, 2]}),
    "Gemm": ((6, 5), (7, 5), {"transB": 1}),
    "MatMul": ((2, 6, 5), (5, 7), {}),
}


@pytest.mark.parametrize("words", LAYERS)
def test_a_layer_is_a_product_of_rows(words):
    """What a layer gives is its rows times its matrix, group by group."""
    shape, weight_shape, attributes = LAYERS[words]
    random = torch.Generator().manual_seed(1)
    x, weight = torch.randn(shape, generator=random), torch.randn(weight_shape, generator=random)
    op = words.split()[0]
    node = helper.make_node(op, ["x", "w"], ["y"], **attributes)
    (y,) = run_node(op, [x, weight], attributes, 1)
    rows = _Rows(Layer(node, attributes, geometry(node, weight_shape), node, "w", "", False), weight)
    some_x, some_y = rows.of(x, y, random)
    np.testing.assert_allclose(some_x @ rows.matrix(weight), some_y, atol=1e-4)
    assert some_x.shape[1] == y.numel() // (rows.groups * rows.outputs) and torch.equal(rows.shaped(rows.matrix(weight), weight), weight)


def test_layers_fitted_to_rounded_inputs_halve_the_error_on_photos_they_never_saw(tmp_path):
    """Sixteen channels hold two signals and the rounding of all sixteen: most of it lies where no signal is. A weight that two layers read stays."""
    random = np.random.default_rng(0)
    mix, first, second = random.normal(size=(2, 16)), random.normal(size=(16, 12)), random.normal(size=(12, 12))
    nodes = [helper.make_node("MatMul", ["x", "a"], ["xa"], name="one"), helper.make_node("Add", ["xa", "b"], ["h"], name="add")]
    nodes += [helper.make_node("MatMul", ["h", "c"], ["hc"], name="two"), helper.make_node("MatMul", ["hc", "c"], ["y"], name="three")]
    constants = [(name, values.astype(np.float32)) for name, values in (("a", first), ("b", random.normal(size=12)), ("c", second))]
    graph = graph_of(tmp_path, nodes, [("x", F32, [1, 40, 16])], [("y", F32, [1, 40, 12])], constants)

    def photos(count):
        return [[{"x": torch.from_numpy((random.normal(size=(1, 40, 2)) @ mix).astype(np.float32))}] for _ in range(count)]

    ranges = {name: TensorRange(amax, "max", amax) for name, amax in (("x", 90.0), ("h", 90.0), ("hc", 400.0))}  # wide: coarse steps
    quantised = graph.copy()
    quantize(quantised, ranges, quantisable(quantised, INT8), form=INT8, stored=False)
    teacher, student = TorchGraph(graph), TorchGraph(quantised, learnable(graph))

    def error(seen):
        with torch.no_grad():
            return sum(float((student(feeds)["y"] - teacher(feeds)["y"]).square().mean()) for (feeds,) in seen) ** 0.5

    unseen, shared = photos(20), student.weights["c"].clone()
    before = error(unseen)
    assert reconstruct([teacher], [student], photos(40), False) == 1  # the first; the second reads what the third reads
    assert error(unseen) < 0.5 * before and torch.equal(student.weights["c"], shared)
