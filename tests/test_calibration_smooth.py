"""SmoothQuant: the same function in FP32, the published factors, fewer INT8 errors with an outlier channel."""

import numpy as np
import pytest

from fathom.calibration.graph.session import StageSession
from fathom.calibration.quantisation.quantize import quantize
from fathom.calibration.quantisation.smooth import folds, smooth, smoothable
from fathom.calibration.ranges.table import TensorRange

NODES = ["blocks.0.ff.0/MatMul_0", "blocks.0.ff.2/MatMul_0"]


@pytest.fixture
def encoder(calibration_bundles, tmp_path):
    return lambda **faults: calibration_bundles.load_graph(tmp_path / "g", calibration_bundles.token_models(**faults)[0])


@pytest.fixture(scope="module")
def image():
    return {"image": np.random.default_rng(0).normal(size=(1, 3, 32, 48)).astype(np.float32)}


def test_a_norm_takes_the_division_and_a_relu_gets_a_product_behind_it(encoder):
    graph = encoder()
    found = smoothable(graph, NODES)
    assert {name: [n.name for n in nodes] for name, nodes in found.items()} == {"n": NODES[:1], "r0": NODES[1:]}
    assert folds(graph, "n", found["n"]) and not folds(graph, "r0", found["r0"])
    assert not folds(encoder(), "tokens", smoothable(encoder(), NODES).get("tokens", []))


def test_the_function_stays_and_the_factors_are_those_of_the_paper(encoder, image):
    graph = encoder()
    before = StageSession(graph).run(image)["features"]
    channels = np.linspace(0.5, 40, 16)
    weight = np.abs(graph.array("blocks.0.ff.0.weight")).max(axis=1)
    factors = smooth(graph, NODES, {"n": channels}, 0.5)["n"].factors
    paper = channels**0.5 / weight**0.5
    assert np.allclose(factors, paper / np.exp(np.log(paper).mean()))  # up to a common factor, which INT8 does not see
    after = StageSession(graph).run(image)["features"]
    assert np.allclose(after, before, atol=1e-5 * np.abs(before).max())
    assert np.allclose(graph.array(next(n.input[1] for n in graph.model.graph.node if n.op_type == "LayerNormalization")), 1 / factors)


def test_an_outlier_channel_is_handled_by_smoothing_and_not_by_max(calibration_bundles, tmp_path, image):
    """The norm's gain makes one channel a hundred times larger, the weights undo it."""
    models = calibration_bundles.token_models()
    from onnx import numpy_helper

    for tensor in models[0].graph.initializer:
        if tensor.name in ("blocks.0.norm.weight", "blocks.0.ff.0.weight"):
            values = numpy_helper.to_array(tensor).copy()
            values[5] = values[5] * (200 if "norm" in tensor.name else 1 / 200)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    graph = calibration_bundles.load_graph(tmp_path / "outlier", models[0])
    before = StageSession(graph).run(image)["features"]
    watched = graph.copy()
    from onnx import TensorProto, helper

    watched.model.graph.output.append(helper.make_tensor_value_info("n", TensorProto.FLOAT, None))
    seen = StageSession(watched).run(image)["n"]
    channels = np.abs(seen).max(axis=(0, 1))
    errors = {}
    for alpha in (0.0, 0.5):
        stage = graph.copy()
        left = channels / smooth(stage, NODES[:1], {"n": channels}, alpha)["n"].factors if alpha else channels
        quantize(stage, {"n": TensorRange(float(left.max()), "max", float(left.max()))}, NODES[:1])
        errors[alpha] = np.abs(StageSession(stage).run(image)["features"] - before).mean()
    assert errors[0.5] < errors[0.0] / 5


def test_a_convolution_behind_unequal_channels_is_smoothed_by_a_product_of_its_own(tmp_path, calibration_bundles):
    """Channels from 0.01 to 10 after a Sigmoid gate, which another node reads as well: the other one's values stay."""
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    gain = np.geomspace(0.01, 10, 8, dtype=np.float32).reshape(1, 8, 1, 1)
    weight = (random.normal(size=(4, 8, 3, 3)) / gain.reshape(1, 8, 1, 1) / 9).astype(np.float32)
    nodes = [
        helper.make_node("Mul", ["x", "gain"], ["g"], name="a/Mul_0"),
        helper.make_node("Conv", ["g", "w"], ["y"], name="b.conv/Conv_0", pads=[1] * 4),
        helper.make_node("Abs", ["g"], ["z"], name="c/Abs_0"),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, c, 12, 12]) for n, c in (("x", 8), ("y", 4), ("z", 8))]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [numpy_helper.from_array(gain, "gain"), numpy_helper.from_array(weight, "w")])
    stage = calibration_bundles.load_graph(tmp_path / "c", helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9))
    x = {"x": random.normal(size=(1, 8, 12, 12)).astype(np.float32)}
    before = StageSession(stage).run(x)
    channels = np.abs(x["x"] * gain).max(axis=(0, 2, 3))
    errors = {}
    for alpha in (0.0, 0.9):
        tried = stage.copy()
        target, left = "g", channels
        if alpha:
            ((target, done),) = smooth(tried, ["b.conv/Conv_0"], {"g": channels}, alpha).items()
            left = channels / done.factors
            assert target != "g" and done.tensor == "g"
            plain = StageSession(tried).run(x)
            assert np.allclose(plain["y"], before["y"], atol=1e-5) and (plain["z"] == before["z"]).all()
        quantize(tried, {target: TensorRange(float(left.max()), "max", float(left.max()))}, ["b.conv/Conv_0"])
        errors[alpha] = np.abs(StageSession(tried).run(x)["y"] - before["y"]).mean()
    assert errors[0.9] < errors[0.0] / 5
