"""What the comparison of quantisers counts: multiply-adds in 8 bits, what TensorRT reads, and how sure a mean over scenes is."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fathom.benchmarks.peers.judge import ahead, bounds, summary
from fathom.benchmarks.peers.low_share import low_share, tensorrt_reads


def two_convolutions(path, zero):
    """x -> Q/DQ -> 3x3 convolution of 2 to 4 channels in 8 bits -> 1x1 convolution of 4 to 3 channels in FP32, on 8x8 pixels."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w8", "s", "w0"], ["w"]),
        helper.make_node("Conv", ["d", "w"], ["m"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["m", "v"], ["y"]),
    ]
    held = [numpy_helper.from_array(np.float32(0.1), "s"), numpy_helper.from_array(zero, "z"), numpy_helper.from_array(np.int8(0), "w0")]
    held += [numpy_helper.from_array(np.ones((4, 2, 3, 3), np.int8), "w8"), numpy_helper.from_array(np.ones((3, 4, 1, 1), np.float32), "v")]
    x, y = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 8, 8]), helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 8, 8])
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [x], [y], held), opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


@pytest.mark.parametrize(("zero", "kinds", "reads"), [(np.int8(0), ["int8"], True), (np.uint8(3), ["int8", "uint8"], False), (np.int8(5), ["int8"], False)])
def test_the_share_is_that_of_multiply_adds(tmp_path, zero, kinds, reads):
    facts = low_share(two_convolutions(tmp_path / "m.onnx", zero))
    low, wide = 64 * 4 * 2 * 9, 64 * 3 * 4
    assert facts["macs"] == low + wide and facts["share"] == pytest.approx(low / (low + wide)) and facts["types"] == kinds
    assert tensorrt_reads(facts) is reads


def test_shapes_may_come_from_the_network_before(tmp_path):
    """ONNX Runtime's own operators have no shapes that ONNX could infer."""
    model = onnx.load(two_convolutions(tmp_path / "m.onnx", np.int8(0)))
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    for number, node in enumerate(convolutions):
        node.name = f"c{number}"
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    onnx.save(plain, tmp_path / "plain.onnx")
    for node in convolutions:
        node.op_type, node.domain = "FusedConv", "com.microsoft"
    onnx.save(model, tmp_path / "fused.onnx")
    assert low_share(tmp_path / "fused.onnx", tmp_path / "plain.onnx") == low_share(tmp_path / "m.onnx")


def test_bounds_draw_scenes_and_not_photos():
    """Two scenes of one value each: the mean of two draws is 0, 1/2 or 1, so the outer bounds are 0 and 1 however many photos a scene has."""
    values = {f"a{n}": 0.0 for n in range(20)} | {f"b{n}": 1.0 for n in range(20)}
    assert bounds(values, {name: name[0] for name in values}) == [0.0, 1.0]
    assert bounds(dict.fromkeys(values, 0.25), {name: name for name in values}) == [0.25, 0.25]


def test_an_arm_is_compared_photo_by_photo_over_its_seeds():
    scenes = {"p": "p", "nyu_q": "q"}
    row = lambda moved: {name: {"moved": moved, "abs_rel": 0.2, "delta1": 0.5} for name in scenes}  # noqa: E731
    base = {name: {"moved": 0.0, "abs_rel": 0.1, "delta1": 1.0} for name in scenes}
    found = summary([row(0.01), row(0.03)], base, scenes)
    assert found["moved"] == pytest.approx(0.02) and found["moved_by_seed"] == pytest.approx([0.01, 0.03])
    assert found["abs_rel_change"] == pytest.approx(1.0) and found["delta1_change"] == pytest.approx(-0.5) and found["nyu"]["moved"] == pytest.approx(0.02)
    assert ahead([row(0.01)], [row(0.02), row(0.04)], scenes)["less"] == pytest.approx(0.02)
