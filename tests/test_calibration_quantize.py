"""Q/DQ placement and numbers, against NumPy by hand."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fathom.calibration.graph.session import StageSession
from fathom.calibration.graph.stage_graph import StageGraph
from fathom.calibration.quantisation.formats import activation_scale, quantize_weight, weight_scales
from fathom.calibration.quantisation.quantize import activation_inputs, quantize, weight_axis
from fathom.calibration.ranges.observers import LEVELS
from fathom.calibration.ranges.table import TensorRange


def graph_of(nodes, weights, inputs, outputs, opset=18):
    values = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in side.items()] for side in (inputs, outputs)]
    initializers = [numpy_helper.from_array(v, k) for k, v in weights.items()]
    model = helper.make_model(helper.make_graph(nodes, "g", *values, initializers), opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return StageGraph(model, None or __import__("pathlib").Path("."))


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def fake(values, scale):
    return np.clip(np.rint(values.astype(np.float64) / scale), -128, 127) * scale


def test_a_linear_layer_computes_what_numpy_computes(rng, tmp_path):
    weight, x = rng.normal(size=(6, 5)).astype(np.float32), rng.normal(size=(4, 6)).astype(np.float32)
    bias = rng.normal(size=5).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"], name="fc/MatMul_0"), helper.make_node("Add", ["m", "b"], ["y"], name="fc/Add_0")]
    graph = graph_of(nodes, {"w": weight, "b": bias}, {"x": [4, 6]}, {"y": [4, 5]})
    done = quantize(graph, {"x": TensorRange(2.0, "max", 3.0)}, ["fc/MatMul_0"])
    scale = activation_scale(2.0)
    scales = weight_scales(weight, 1)
    assert np.all(scales >= np.abs(weight).max(0) / 127) and np.allclose(scales, np.abs(weight).max(0) / 127, rtol=1e-3)
    wanted = fake(x, scale) @ (quantize_weight(weight, scales, 1) * scales.astype(np.float64)) + bias
    graph.save(tmp_path / "g.onnx")
    onnx.checker.check_model(str(tmp_path / "g.onnx"), full_check=True)
    for real in (False, True):
        assert np.allclose(StageSession(graph, real_int8=real).run({"x": x})["y"], wanted, atol=2e-6 if not real else 2e-5)
    assert done.nodes == ("fc/MatMul_0",) and done.activations == ("x",) and done.weights == ("w",)
    held = {tensor.name: tensor.data_type for tensor in graph.model.graph.initializer}
    assert held["w:int8"] == TensorProto.INT8 and "w" not in held and held["b"] == TensorProto.FLOAT  # the bias is not quantised


@pytest.mark.parametrize("stored", [True, False])
def test_stored_and_computed_weights_are_the_same(rng, stored):
    weight, x = rng.normal(size=(8, 3, 3, 3)).astype(np.float32), rng.normal(size=(1, 3, 9, 9)).astype(np.float32)
    graph = graph_of([helper.make_node("Conv", ["x", "w"], ["y"], name="c")], {"w": weight}, {"x": [1, 3, 9, 9]}, {"y": [1, 8, 7, 7]})
    quantize(graph, {"x": TensorRange(3.0, "max", 4.0)}, ["c"], stored=stored)
    scales = weight_scales(weight, 0)
    w = quantize_weight(weight, scales, 0) * scales.reshape(-1, 1, 1, 1).astype(np.float64)
    patches = np.lib.stride_tricks.sliding_window_view(fake(x, activation_scale(3.0)), (3, 3), axis=(2, 3))
    assert np.allclose(StageSession(graph).run({"x": x})["y"], np.einsum("nchwij,ocij->nohw", patches, w), atol=1e-5)


def test_scales_are_per_output_channel(rng):
    nodes = [
        helper.make_node("Conv", ["x", "conv"], ["a"], name="conv"),
        helper.make_node("ConvTranspose", ["x", "up"], ["b"], name="up"),
        helper.make_node("ConvTranspose", ["x", "grouped"], ["c"], name="grouped", group=2),
        helper.make_node("Gemm", ["x", "gemm"], ["d"], name="gemm"),
        helper.make_node("Gemm", ["x", "gemm_t"], ["e"], name="gemm_t", transB=1),
        helper.make_node("MatMul", ["x", "product"], ["f"], name="product"),
        helper.make_node("MatMul", ["x", "stack"], ["g"], name="stack"),
    ]
    shapes = {"conv": (8, 4, 3, 3), "up": (4, 8, 2, 2), "grouped": (4, 8, 2, 2), "gemm": (4, 8), "gemm_t": (8, 4), "product": (4, 8), "stack": (2, 4, 8)}
    graph = graph_of(nodes, {k: np.ones(s, np.float32) for k, s in shapes.items()}, {"x": [1]}, {"a": [1]})
    axes = {node.name: weight_axis(graph, node) for node in graph.model.graph.node}
    assert axes == {"conv": 0, "up": 1, "grouped": None, "gemm": 1, "gemm_t": 0, "product": 1, "stack": None}


def test_only_what_was_asked_for_is_quantised(rng):
    """A residual addition and a norm keep the original tensor; one pair serves both convolutions; products of activations stay."""
    weight = rng.normal(size=(4, 4, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="a"),
        helper.make_node("Conv", ["x", "w"], ["b"], name="b"),
        helper.make_node("MatMul", ["a", "b"], ["p"], name="p"),
        helper.make_node("Add", ["x", "p"], ["y"], name="residual"),
    ]
    graph = graph_of(nodes, {"w": weight}, {"x": [1, 4, 6, 6]}, {"y": [1, 4, 6, 6]})
    assert activation_inputs(graph) == {"a": (0,), "b": (0,)}
    assert activation_inputs(graph, ("attention-products",))["p"] == (0, 1)
    assert "residual" not in activation_inputs(graph, ("residual-adds",))  # neither input is a convolution's
    ranges = {name: TensorRange(2.0, "max", 4.0) for name in "xab"}
    done = quantize(graph, ranges, ["a", "b", "p", "residual"])
    assert done.nodes == ("a", "b") and set(done.left) == {"p", "residual"}
    ops = [node.op_type for node in graph.model.graph.node]
    assert ops.count("QuantizeLinear") == 1 and ops.count("DequantizeLinear") == 2  # one activation, one weight
    by_name = {node.name: node for node in graph.model.graph.node}
    assert by_name["residual"].input[0] == "x" and by_name["p"].input[0] == "a"
    assert graph.opset == 19


def test_a_node_without_a_range_is_left_alone(rng):
    graph = graph_of([helper.make_node("MatMul", ["x", "w"], ["y"], name="m")], {"w": np.ones((2, 2), np.float32)}, {"x": [1, 2]}, {"y": [1, 2]})
    assert "no range" in quantize(graph, {}, ["m"]).left["m"]


def test_extreme_weights_survive(rng):
    weight = np.array([[0, 1e-30, 1e-9, 1.0, 6e4]], np.float32)
    scales = weight_scales(weight, 1)
    back = quantize_weight(weight, scales, 1) * scales
    assert np.isfinite(scales).all() and (scales > 0).all()
    assert back[0, 0] == 0 and abs(back[0, 3] - 1) < 1e-2 and abs(back[0, 4] - 6e4) < 6e4 / LEVELS
    assert (scales.astype(np.float16).astype(np.float32) == scales).all()  # the FP16 side of a typed graph holds the same numbers


@pytest.mark.parametrize("amax", [1e-12, 1e-3, 0.7, 5.0, 1e4])
def test_activation_scales_reach_the_range_and_fit_fp16(amax):
    scale = activation_scale(amax)
    assert scale * 127 >= np.float32(amax) and np.float32(np.float16(scale)) == scale and scale >= 2.0**-14


def test_residual_additions_are_quantised_when_asked(rng):
    weight = rng.normal(size=(4, 4, 1, 1)).astype(np.float32)
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"], name="a"), helper.make_node("Add", ["x", "a"], ["y"], name="residual")]
    graph = graph_of(nodes, {"w": weight}, {"x": [1, 4, 6, 6]}, {"y": [1, 4, 6, 6]})
    also = ("residual-adds",)
    assert activation_inputs(graph, also) == {"a": (0,), "residual": (0, 1)}
    x = rng.normal(size=(1, 4, 6, 6)).astype(np.float32)
    plain = StageSession(graph).run({"x": x})["y"]
    reach = {name: float(np.abs(values).max()) for name, values in (("x", x), ("a", plain - x))}
    quantize(graph, {name: TensorRange(amax, "max", amax) for name, amax in reach.items()}, ["a", "residual"], also=also)
    by_name = {node.name: node for node in graph.model.graph.node}
    assert by_name["residual"].input[0] == by_name["a"].input[0] == "x:int8:dequantized"  # one pair serves both
    assert 0 < np.abs(StageSession(graph).run({"x": x})["y"] - plain).max() < 0.3


def test_large_changed_weights_go_to_onnx_runtime_beside_the_graph(rng, tmp_path):
    weight, x = rng.normal(size=(300, 200)).astype(np.float32), rng.normal(size=(4, 300)).astype(np.float32)
    shift = rng.normal(size=200).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])]
    graph = graph_of(nodes, {"w": np.zeros((1, 1), np.float32), "b": shift}, {"x": [4, 300]}, {"y": [4, 200]})
    graph.add_made_constant("w", TensorProto.FLOAT, weight.shape, lambda: 2 * weight)
    graph.add_made_constant("b", TensorProto.FLOAT, shift.shape, lambda: -shift)
    model, large = graph.with_large_apart()
    assert [*large] == ["w"] and len(model.SerializeToString()) < 5000  # protobuf writes no message of 2 GiB
    assert np.allclose(StageSession(graph).run({"x": x})["y"], x @ (2 * weight) - shift, atol=1e-3)
    graph.save(tmp_path / "g.onnx")
    onnx.checker.check_model(str(tmp_path / "g.onnx"), full_check=True)
