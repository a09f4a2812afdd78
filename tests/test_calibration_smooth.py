"""SmoothQuant: the same function in FP32, the published factors, fewer INT8 errors with an outlier channel."""

import numpy as np
import pytest

from fathom.calibration.graph.session import StageSession
from fathom.calibration.int8.quantize import quantize
from fathom.calibration.int8.smooth import smooth, smoothable
from fathom.calibration.ranges.table import TensorRange

NODES = ["blocks.0.ff.0/MatMul_0", "blocks.0.ff.2/MatMul_0"]


@pytest.fixture
def encoder(calibration_bundles, tmp_path):
    return lambda **faults: calibration_bundles.load_graph(tmp_path / "g", calibration_bundles.token_models(**faults)[0])


@pytest.fixture(scope="module")
def image():
    return {"image": np.random.default_rng(0).normal(size=(1, 3, 32, 48)).astype(np.float32)}


def test_what_a_norm_feeds_can_be_smoothed_and_what_a_relu_feeds_cannot(encoder):
    assert {name: [n.name for n in nodes] for name, nodes in smoothable(encoder(), NODES).items()} == {"n": NODES[:1]}
    assert smoothable(encoder(), NODES[1:]) == {}


def test_the_function_stays_and_the_factors_are_those_of_the_paper(encoder, image):
    graph = encoder()
    before = StageSession(graph).run(image)["features"]
    channels = np.linspace(0.5, 40, 16)
    weight = np.abs(graph.array("blocks.0.ff.0.weight")).max(axis=1)
    factors = smooth(graph, NODES, {"n": channels}, 0.5)["n"]
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
        left = channels / smooth(stage, NODES[:1], {"n": channels}, alpha)["n"] if alpha else channels
        quantize(stage, {"n": TensorRange(float(left.max()), "max", float(left.max()))}, NODES[:1])
        errors[alpha] = np.abs(StageSession(stage).run(image)["features"] - before).mean()
    assert errors[0.5] < errors[0.0] / 5
