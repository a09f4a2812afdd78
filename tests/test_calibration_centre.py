"""Centred activations: the same function, padding included, and half the noise of what is positive; for products as well."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fathom.calibration.graph.stage_graph import StageGraph
from fathom.calibration.observation.sample_layers import places, sample_layers
from fathom.calibration.observation.stage_observation import StageObservation
from fathom.calibration.precision.precision_plan import Choice
from fathom.calibration.precision.quantised_stage import make_quantised, ranges_for, shifts_for
from fathom.calibration.quantisation.centre import centrable, centre, limits_of
from fathom.calibration.quantisation.formats import INT8


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def network(tmp_path, weight, group=1, pads=(1, 2, 0, 1), strides=(1, 1), bias=None):
    """x -> Relu -> convolution."""
    nodes = [helper.make_node("Relu", ["x"], ["r"], name="a/Relu_0")]
    names = ["r", "w", "b"] if bias is not None else ["r", "w"]
    nodes.append(helper.make_node("Conv", names, ["y"], name="a/Conv_0", group=group, pads=pads, strides=strides))
    held = [numpy_helper.from_array(weight, "w")] + ([numpy_helper.from_array(bias, "b")] if bias is not None else [])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, weight.shape[1] * group, 9, 11])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, len(weight), None, None])
    graph = helper.make_graph(nodes, "stage", [x], [y], held)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "n.onnx")
    return StageGraph.load(tmp_path / "n.onnx")


def run(graph, x, tmp_path):
    graph.save(tmp_path / "out.onnx")
    return onnxruntime.InferenceSession(str(tmp_path / "out.onnx"), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def on_grid(rng, shape):
    """Weights that INT8 holds: whole numbers over 127 to 127 / 128 per output channel."""
    weight = rng.integers(-126, 127, shape).astype(np.float32) / 128
    weight.reshape(len(weight), -1)[:, 0] = 127 / 128
    return weight


@pytest.mark.parametrize(("shape", "group", "strides"), [((4, 6, 3, 3), 1, (1, 1)), ((6, 1, 3, 3), 6, (2, 2)), ((4, 3, 3, 3), 2, (1, 2))])
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_shift_changes_nothing_at_the_border_either(tmp_path, rng, shape, group, strides, with_bias):
    bias = rng.normal(size=shape[0]).astype(np.float32) if with_bias else None
    graph = network(tmp_path, on_grid(rng, shape), group, strides=strides, bias=bias)
    x = rng.normal(size=(1, shape[1] * group, 9, 11)).astype(np.float32)
    before = run(graph.copy(), x, tmp_path)
    layers = centrable(graph, ["a/Conv_0"])["r"]
    middles = rng.uniform(-1, 3, shape[1] * group)
    assert centre(graph, "r", layers, middles, INT8) == "r:centred"
    assert np.allclose(run(graph, x, tmp_path), before, atol=1e-4)


@pytest.mark.parametrize("op", ["MatMul", "Gemm", "Gemm turned"])
def test_products_with_a_bias_take_a_shift_too(tmp_path, rng, op):
    weight, bias = on_grid(rng, (5, 8)).T.copy(), rng.normal(size=5).astype(np.float32)
    if op == "MatMul":
        nodes = [helper.make_node("MatMul", ["x", "w"], ["m"], name="a/MatMul_0"), helper.make_node("Add", ["b", "m"], ["y"], name="a/Add_0")]
    else:
        nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="a/MatMul_0", transB=int("turned" in op))]
    held = [numpy_helper.from_array(weight.T.copy() if "turned" in op else weight, "w"), numpy_helper.from_array(bias, "b")]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [7, size]) for name, size in (("x", 8), ("y", 5))]
    made = helper.make_graph(nodes, "stage", ends[:1], ends[1:], held)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "n.onnx")
    graph, x = StageGraph.load(tmp_path / "n.onnx"), rng.uniform(0, 3, (7, 8)).astype(np.float32)
    layers = centrable(graph, ["a/MatMul_0"])["x"]
    centre(graph, "x", layers, rng.uniform(-1, 3, 8), INT8)
    assert {node.op_type for node in graph.model.graph.node} == {"Add", *(node.op_type for node in nodes)}  # no padding
    assert np.allclose(run(graph, x, tmp_path), x @ weight + bias, atol=1e-5)


def test_a_product_without_a_bias_is_not_centred(tmp_path, rng):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="a/MatMul_0")]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [7, size]) for name, size in (("x", 8), ("y", 5))]
    made = helper.make_graph(nodes, "stage", ends[:1], ends[1:], [numpy_helper.from_array(on_grid(rng, (5, 8)).T.copy(), "w")])
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "n.onnx")
    assert not centrable(StageGraph.load(tmp_path / "n.onnx"), ["a/MatMul_0"])


def test_limits_hold_zero_and_follow_the_factors():
    middles, reach = limits_of(np.array([0.5, -1.0]), np.array([4.0, 3.0]), np.array([2.0, 0.5]))
    assert np.allclose(middles, [2.0, 1.0])  # (0 + 4) / 2, (-1 + 3) / 2
    assert reach == pytest.approx(4.0)  # 2 / 2 and 2 / 0.5
    middles, reach = limits_of(np.array([0.5, -1.0]), np.array([4.0, 3.0]), padded=False)
    assert np.allclose(middles, [2.25, 1.0]) and reach == pytest.approx(2.0)  # nothing adds a zero


def seen_of(graph, pictures):
    seen, folds = StageObservation(), {number: number % 2 for number in range(len(pictures))}
    of_all = places([(number, 0) for number in folds], folds)
    for number, x in enumerate(pictures):
        r = np.maximum(x, 0)
        seen.look(number % 2, "r", r)
        seen.channels["r"] = np.maximum(seen.channels.get("r", 0.0), r.max(axis=(0, 2, 3)))
        seen.lows["r"], seen.highs["r"] = r.min(axis=(0, 2, 3)), np.maximum(seen.highs.get("r", 0.0), r.max(axis=(0, 2, 3)))
        sample_layers(seen.samples, seen.origins, graph, ["r"], {"r": r}, (number, 0), of_all[number, 0])
    return seen


@pytest.mark.parametrize("smooth", [0.0, 0.9])
def test_positive_activations_gain_a_bit(tmp_path, rng, smooth):
    """A uniform distribution over half of the range: centred, its step is half as wide, so the noise has a quarter of the power."""
    graph = network(tmp_path, on_grid(rng, (4, 6, 3, 3)))
    pictures = [rng.uniform(0, 2, (1, 6, 9, 11)).astype(np.float32) for _ in range(6)]
    seen, noise = seen_of(graph, pictures), {}
    wanted = run(graph.copy(), pictures[0], tmp_path)
    for centred in (False, True):
        choices = {("a/Relu_0", "a/Conv_0"): Choice("int8", "max", smooth, True, centred)}
        ranges = ranges_for(graph, choices, seen)
        assert any(found.middles for found in ranges.values()) is centred
        tried = graph.copy()
        make_quantised(tried, choices, ranges, shifts_for(graph, choices, ranges, seen), stored=centred)
        noise[centred] = float(np.square(run(tried, pictures[0], tmp_path) - wanted).mean())
    assert noise[True] < 0.5 * noise[False]


def test_what_lies_around_zero_is_left_alone(tmp_path, rng):
    graph = network(tmp_path, on_grid(rng, (4, 6, 3, 3)))
    seen = seen_of(graph, [rng.uniform(0, 2, (1, 6, 9, 11)).astype(np.float32)])
    seen.lows["r"] = -seen.highs["r"]
    ranges = ranges_for(graph, {("a/Relu_0", "a/Conv_0"): Choice("int8", "max", 0.0, False, True)}, seen)
    assert not any(found.middles for found in ranges.values())


def test_only_int8_is_centred():
    with pytest.raises(ValueError, match="centred for int8 only"):
        Choice("fp8", "max", 0.0, False, True)
