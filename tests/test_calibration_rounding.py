"""FP16 and BF16 simulated on an FP32 graph, against NumPy's own half and ml_dtypes' bfloat16."""

import ml_dtypes
import numpy as np
import pytest

from fathom.calibration.graph.session import StageSession, check_finite
from fathom.calibration.precision.fp32_rules import takes_bf16
from fathom.calibration.precision.rounding import fp16_overflows, round_through, stays_fp32
from fathom.runtime.errors import AccuracyError


@pytest.fixture
def encoder(calibration_bundles, tmp_path):
    return lambda **faults: calibration_bundles.load_graph(tmp_path / "g", calibration_bundles.token_models(**faults)[0])


@pytest.fixture(scope="module")
def image():
    return {"image": np.random.default_rng(0).normal(size=(1, 3, 32, 48)).astype(np.float32)}


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", np.float16), ("bf16", ml_dtypes.bfloat16), ("int8", np.float16)])
def test_a_convolution_loses_what_the_type_loses(encoder, image, precision, dtype):
    graph = encoder()
    x, w, b = image["image"], graph.array("patch.weight"), graph.array("patch.bias")

    def low(values):
        return np.asarray(values, np.float32).astype(dtype).astype(np.float64)

    patches = np.lib.stride_tricks.sliding_window_view(low(x), (4, 4), axis=(2, 3))[:, :, ::4, ::4]
    wanted = low(np.einsum("nchwij,ocij->nohw", patches, low(w)) + low(b).reshape(1, -1, 1, 1))
    round_through(graph, {"patch/Conv_0": precision}, {})
    found = StageSession(watch(graph, "p")).run(image)["p"] if "p:fp16" not in graph.maker else None
    name = next(n for n in (f"p:{'bf16' if precision == 'bf16' else 'fp16'}",) if n in graph.maker)
    found = StageSession(watch(graph, name)).run(image)[name]
    step = 2.0**-10 if dtype == np.float16 else 2.0**-7
    assert np.abs(found - wanted).max() <= step * np.abs(wanted).max()  # sums in another order may fall on the other side of a half
    assert np.mean(np.isclose(found, wanted, rtol=1e-6)) > 0.99


def watch(graph, name):
    from onnx import TensorProto, helper

    graph = graph.copy()
    graph.model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return graph


def test_fp32_nodes_are_not_touched(encoder, image):
    graph = encoder()
    before = StageSession(graph).run(image)["features"]
    assert round_through(graph, dict.fromkeys([n.name for n in graph.model.graph.node], "fp32"), {}) == 0
    assert (StageSession(graph).run(image)["features"] == before).all()


def test_the_casts_are_not_optimised_away(encoder, image):
    graph = encoder()
    before = StageSession(graph).run(image)["features"]
    round_through(graph, {n.name: "fp16" for n in graph.model.graph.node}, stays_fp32(graph))
    after = StageSession(graph).run(image)["features"]
    assert 1e-5 < np.abs(after - before).max() < 5e-2


def test_beyond_65504_is_infinite_and_found(encoder, image):
    graph = encoder(norm_scale=1e5)
    assert np.isfinite(StageSession(graph).run(image)["features"]).all()
    round_through(graph, {n.name: "fp16" for n in graph.model.graph.node}, stays_fp32(graph))
    with pytest.raises(AccuracyError, match=r"stage encoder: the output features holds .* NaN or infinite"):
        check_finite("encoder", StageSession(graph).run(image))


def test_bf16_holds_it(encoder, image):
    plain, graph = encoder(), encoder(norm_scale=1e5)
    before = StageSession(plain).run(image)["features"]
    round_through(graph, {n.name: "bf16" for n in graph.model.graph.node}, stays_fp32(graph))
    assert np.abs(StageSession(graph).run(image)["features"] - before).max() < 0.1 * np.abs(before).max()


def test_norms_stay_fp32(encoder):
    assert stays_fp32(encoder())["blocks.0.norm/LayerNormalization_0"] == "norm"


def test_boundaries_are_rounded(encoder, image):
    graph = encoder()
    plain = StageSession(graph).run(image)["features"]
    round_through(graph, {}, {}, {"features": "float16"})
    assert (StageSession(graph).run(image)["features"] == plain.astype(np.float16).astype(np.float32)).all()


def test_overflows_are_sorted():
    assert list(fp16_overflows({"a": 7e4, "b": 3.0, "c": 1e9})) == ["c", "a"]


def test_constant_output_is_a_failure():
    with pytest.raises(AccuracyError, match="is 3 everywhere"):
        check_finite("x", {"y": np.full((2, 2), 3, np.float32)})


def test_an_operator_without_bf16_computes_in_fp32(calibration_bundles, tmp_path):
    """TensorRT-RTX cannot compile a transposed convolution in BF16; what follows it in the same region is BF16 all the same."""
    graph = calibration_bundles.load_graph(tmp_path / "g", calibration_bundles.token_models()[1])
    round_through(graph, dict.fromkeys(["deconv/ConvTranspose_0", "deconv/Relu_0"], "bf16"), {})
    assert "u:bf16" in graph.maker and graph.maker["u:bf16:bits1"].input[0] == "u"  # the reader rounds, the maker does not
    assert takes_bf16("Conv") and takes_bf16("MatMul") and not takes_bf16("ConvTranspose") and not takes_bf16("HardSwish") and not takes_bf16("Unheard")
