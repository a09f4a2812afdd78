"""Graphs for the parsers of TensorRT 8.5 and 8.6: every rule against PyTorch or NumPy, and the published operator tables."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from fathom.export.lowering import operator_checks
from fathom.export.lowering.lowering import LoweredStage, lower_stage
from fathom.export.lowering.operator_checks import operator_table, unreadable
from fathom.export.lowering.rules.rules import RULES
from fathom.runtime.artefact.spec import StageSpec, TensorSpec
from fathom.runtime.errors import BuildFailedError

RNG = np.random.default_rng(5)
NAMES = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int64): TensorProto.INT64}


def numbers(*shape, scale=1.0, shift=0.0):
    return (RNG.normal(size=shape) * scale + shift).astype(np.float32)


def graph_of(nodes, x, y, constants=(), opset=20):
    """A model of one input ``x`` and one output ``y`` (arrays or (dtype, shape))."""
    sides = [helper.make_tensor_value_info(name, NAMES[a.dtype], ["batch", *a.shape[1:]]) for name, a in (("x", x), ("y", y))]
    inits = [numpy_helper.from_array(np.asarray(values), name) for name, values in dict(constants).items()]
    graph = helper.make_graph(nodes, "stage", [sides[0]], [sides[1]], inits)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def lowered(tmp_path, model, x, y, release="8.5") -> LoweredStage:
    source, folder = tmp_path / "source.onnx", tmp_path / f"lowered{release}"
    folder.mkdir()
    onnx.save(model, source)
    sides = [(TensorSpec(name, array.dtype.name, ("batch", *array.shape[1:])),) for name, array in (("x", x), ("y", y))]
    return lower_stage(source, folder, StageSpec("stage", *sides), release)


def run(path, x):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def check(tmp_path, op, inputs, wanted, constants=(), opset=20, **attributes):
    """Lower one node and compare what it computes with an independent truth; returns the new operators."""
    x = inputs if isinstance(inputs, np.ndarray) else inputs[0]
    names = ["x", *dict(constants)]
    node = helper.make_node(op, [n if n != "none" else "" for n in names], ["y"], name="layer/node", **attributes)
    made = lowered(tmp_path, graph_of([node], x, wanted, {k: v for k, v in dict(constants).items() if k != "none"}, opset), x, wanted)
    np.testing.assert_allclose(run(made.graph, x), wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())
    model = onnx.load(made.graph)
    assert model.opset_import[0].version == 17 and model.ir_version <= 8
    assert all(node.name.startswith("layer/node") for node in model.graph.node)
    return [node.op_type for node in model.graph.node], made


def test_layer_norm_is_pytorchs(tmp_path):
    x, scale, shift = numbers(2, 7, 24, scale=300, shift=5), numbers(24), numbers(24)
    wanted = torch.nn.functional.layer_norm(torch.from_numpy(x), (24,), torch.from_numpy(scale), torch.from_numpy(shift), 1e-5).numpy()
    ops, made = check(tmp_path, "LayerNormalization", x, wanted, {"scale": scale, "shift": shift}, axis=-1, epsilon=1e-5)
    assert "LayerNormalization" not in ops and ops.count("ReduceMean") == 2
    assert len(made.fp32) == len(ops)  # squares of 300 overflow FP16: all of it is an FP32 island


def test_layer_norm_without_shift_over_two_axes(tmp_path):
    x, scale = numbers(2, 3, 4, 6), numbers(4, 6)
    wanted = torch.nn.functional.layer_norm(torch.from_numpy(x), (4, 6), torch.from_numpy(scale)).numpy()
    check(tmp_path, "LayerNormalization", x, wanted, {"scale": scale}, axis=2, epsilon=1e-5)


def test_layer_norm_whose_other_outputs_are_left_out(tmp_path):
    """Its empty outputs are not what other nodes leave out of their inputs."""
    x, scale = numbers(2, 3, 24), numbers(24)
    wanted = torch.nn.functional.layer_norm(torch.from_numpy(x), (24,), torch.from_numpy(scale)).clamp(max=1).numpy()
    nodes = [
        helper.make_node("LayerNormalization", ["x", "scale"], ["normed", "", ""], name="layer/node", axis=-1),
        helper.make_node("Clip", ["normed", "", "most"], ["y"], name="layer/clip"),
    ]
    made = lowered(tmp_path, graph_of(nodes, x, wanted, {"scale": scale, "most": np.float32(1)}), x, wanted)
    np.testing.assert_allclose(run(made.graph, x), wanted, atol=1e-5)


@pytest.mark.parametrize("spatial", [(30,), (5, 6), (2, 3, 4), (300, 400)])  # the last one is summed in two steps
def test_instance_norm_is_pytorchs(tmp_path, spatial):
    x = numbers(2, 3, *spatial, shift=20 if len(spatial) == 2 else 0)
    scale, shift = numbers(3), numbers(3)
    wanted = torch.nn.functional.instance_norm(torch.from_numpy(x).double(), None, None, torch.from_numpy(scale).double(), torch.from_numpy(shift).double())
    ops, made = check(tmp_path, "InstanceNormalization", x, wanted.float().numpy(), {"scale": scale, "shift": shift}, epsilon=1e-5)
    assert ops.count("ReduceMean") == (4 if spatial == (300, 400) else 2) and len(made.fp32) == len(ops)


@pytest.mark.parametrize("opset", [18, 21])
def test_group_norm_is_pytorchs(tmp_path, opset):
    x, groups = numbers(2, 8, 5, 6, shift=3), 4
    scale, shift = numbers(8), numbers(8)
    if opset == 18:  # one number a group
        scale, shift = scale[:groups], shift[:groups]
    wide = [np.repeat(v, 8 // v.size) for v in (scale, shift)]
    wanted = torch.nn.functional.group_norm(torch.from_numpy(x), groups, *map(torch.from_numpy, wide), 1e-5).numpy()
    ops, _ = check(tmp_path, "GroupNormalization", x, wanted, {"scale": scale, "shift": shift}, opset=opset, num_groups=groups, epsilon=1e-5)
    assert "GroupNormalization" not in ops


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_is_pytorchs(tmp_path, approximate):
    x = numbers(2, 50, scale=3)
    check(tmp_path, "Gelu", x, torch.nn.functional.gelu(torch.from_numpy(x), approximate=approximate).numpy(), approximate=approximate)


def test_mish_is_pytorchs(tmp_path):
    x = numbers(2, 50, scale=3)
    check(tmp_path, "Mish", x, torch.nn.functional.mish(torch.from_numpy(x)).numpy())


@pytest.mark.parametrize(("op", "truth"), [("ReduceMean", np.mean), ("ReduceMax", np.max), ("ReduceMin", np.min), ("ReduceProd", np.prod)])
@pytest.mark.parametrize("axes", [[1], [-1, 1]])
def test_reductions_take_axes_as_an_attribute(tmp_path, op, truth, axes):
    x = numbers(2, 3, 4)
    ops, made = check(tmp_path, op, x, truth(x, axis=tuple(axes), keepdims=True), {"axes": np.array(axes)}, keepdims=1)
    (node,) = onnx.load(made.graph).graph.node
    assert ops == [op] and len(node.input) == 1 and list(next(a for a in node.attribute if a.name == "axes").ints) == axes


def test_a_reduction_of_nothing_is_the_tensor_itself(tmp_path):
    x = numbers(2, 3)
    assert check(tmp_path, "ReduceMean", x, x, {"axes": np.zeros(0, np.int64)}, noop_with_empty_axes=1)[0] == ["Identity"]


@pytest.mark.parametrize(("coordinates", "mode", "corners"), [("half_pixel", "bilinear", False), ("align_corners", "bilinear", True)])
@pytest.mark.parametrize("how", ["sizes", "scales"])
def test_resize_of_some_axes_is_pytorchs(tmp_path, coordinates, mode, corners, how):
    x = numbers(2, 3, 4, 6)
    wanted = torch.nn.functional.interpolate(torch.from_numpy(x), size=(8, 9), mode=mode, align_corners=corners).numpy()
    constants = {"scales": np.array([2, 1.5], np.float32)} if how == "scales" else {"sizes": np.array([8, 9])}
    names = ["x", "", "scales"] if how == "scales" else ["x", "", "", "sizes"]
    facts = {"mode": "linear", "coordinate_transformation_mode": coordinates, "axes": [2, 3], "antialias": 0}
    node = helper.make_node("Resize", names, ["y"], name="layer/node", **facts)
    made = lowered(tmp_path, graph_of([node], x, wanted, constants), x, wanted)
    np.testing.assert_allclose(run(made.graph, x), wanted, atol=1e-5)
    (left,) = onnx.load(made.graph).graph.node
    assert not {"axes", "antialias", "keep_aspect_ratio_policy"} & {a.name for a in left.attribute}


@pytest.mark.parametrize(("size", "new"), [(7, 31), (11, 26), (14, 518), (37, 480), (61, 37)])
def test_resize_with_a_free_batch_gives_exactly_the_sizes(tmp_path, size, new):
    """A size is the old one times a scale in float32, rounded down."""
    x = numbers(1, 1, size, 2)
    wanted = torch.nn.functional.interpolate(torch.from_numpy(x), size=(new, 3), mode="bilinear").numpy()
    node = helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], name="layer/node", mode="linear", axes=[2, 3])
    made = lowered(tmp_path, graph_of([node], x, wanted, {"sizes": np.array([new, 3])}), x, wanted)
    np.testing.assert_allclose(run(made.graph, x), wanted, atol=1e-4)
    (scales,) = [numpy_helper.to_array(t) for t in onnx.load(made.graph).graph.initializer if t.data_type == TensorProto.FLOAT]
    assert np.floor(scales.astype(np.float64) * x.shape).tolist() == list(wanted.shape)


@pytest.mark.parametrize("more", [(), ("",), ("", "")])
def test_pad_without_value_and_axes(tmp_path, more):
    x = numbers(2, 3, 4, 6)
    wanted = np.pad(x, ((0, 0), (0, 0), (1, 0), (3, 0)))
    node = helper.make_node("Pad", ["x", "pads", *more], ["y"], name="layer/node")
    made = lowered(tmp_path, graph_of([node], x, wanted, {"pads": np.array([0, 0, 1, 3, 0, 0, 0, 0])}), x, wanted)
    np.testing.assert_array_equal(run(made.graph, x), wanted)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_pad_of_some_axes_is_numpys(tmp_path, mode):
    x = numbers(2, 3, 4, 6)
    wanted = np.pad(x, ((0, 0), (0, 0), (1, 2), (3, 0)), mode=mode)
    check(tmp_path, "Pad", x, wanted, {"pads": np.array([1, 3, 2, 0]), "none": np.zeros(0), "axes": np.array([2, -1])}, mode=mode)


@pytest.mark.parametrize("size", [6, 7])
def test_split_into_parts_is_numpys(tmp_path, size):
    x = numbers(2, size)
    node = helper.make_node("Split", ["x"], ["a", "b", "c"], name="layer/node", axis=1, num_outputs=3)
    join = helper.make_node("Concat", ["c", "a", "b"], ["y"], name="layer/join", axis=1)
    wide = -(-size // 3)
    wanted = np.concatenate([x[:, 2 * wide :], x[:, :wide], x[:, wide : 2 * wide]], 1)
    made = lowered(tmp_path, graph_of([node, join], x, wanted), x, wanted)
    np.testing.assert_array_equal(run(made.graph, x), wanted)


@pytest.mark.parametrize(
    ("start", "end", "wanted"), [(0, 1, [2]), (1, None, [3, 4]), (-1, None, [4]), (0, -1, [2, 3]), (None, None, [2, 3, 4]), (1, 9, [3, 4])]
)
def test_a_part_of_a_shape_is_cut_out_of_the_whole(tmp_path, start, end, wanted):
    """The real parsers would read ``start`` and ``end`` and give the whole shape without a word."""
    x, facts = numbers(2, 3, 4), {k: v for k, v in (("start", start), ("end", end)) if v is not None}
    node = helper.make_node("Shape", ["x"], ["shape"], name="layer/node", **facts)
    wide = helper.make_node("Cast", ["shape"], ["y"], name="layer/wide", to=TensorProto.FLOAT)
    model = graph_of([node, wide], x, numbers(len(wanted)))
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = len(wanted)
    made = lowered(tmp_path, model, x, numbers(len(wanted)))
    np.testing.assert_array_equal(run(made.graph, x), np.array(wanted, np.float32))
    assert not any(a.name in ("start", "end") for n in onnx.load(made.graph).graph.node if n.op_type == "Shape" for a in n.attribute)


def test_grid_sample_is_pytorchs(tmp_path):
    x, grid = numbers(1, 2, 5, 6), RNG.uniform(-1.1, 1.1, (1, 3, 4, 2)).astype(np.float32)
    wanted = torch.nn.functional.grid_sample(torch.from_numpy(x), torch.from_numpy(grid), align_corners=False).numpy()
    check(tmp_path, "GridSample", x, wanted, {"grid": grid}, mode="linear", padding_mode="zeros", align_corners=0)


@pytest.mark.parametrize(("low", "high"), [(-2, 3), (None, 3), (-2, None)])
def test_whole_numbers_are_clipped_by_max_and_min(tmp_path, low, high):
    x = RNG.integers(-9, 9, (3, 7))
    bounds = {name: np.array(value) for name, value in (("low", low), ("high", high)) if value is not None}
    node = helper.make_node("Clip", ["x", *(name if name in bounds else "" for name in ("low", "high"))], ["y"], name="layer/node")
    made = lowered(tmp_path, graph_of([node], x, x, bounds), x, x)
    np.testing.assert_array_equal(run(made.graph, x.astype(np.int32)), np.clip(x, low, high))
    assert "Clip" not in {node.op_type for node in onnx.load(made.graph).graph.node}


def test_newer_attributes_that_say_nothing_are_dropped(tmp_path):
    x = numbers(2, 3, 6, 8)
    wanted = torch.nn.functional.avg_pool2d(torch.from_numpy(x), 2).numpy()
    facts = {"kernel_shape": [2, 2], "strides": [2, 2]}
    _, made = check(tmp_path, "AveragePool", x, wanted, dilations=[1, 1], **facts)
    assert "dilations" not in {a.name for node in onnx.load(made.graph).graph.node for a in node.attribute}
    spread = graph_of([helper.make_node("AveragePool", ["x"], ["y"], name="layer/odd", dilations=[2, 2], **facts)], x, numbers(2, 3, 2, 3))
    with pytest.raises(BuildFailedError, match=r"layer/odd \(AveragePool\).*its attribute dilations is \[2, 2\]"):
        lowered(tmp_path, spread, x, numbers(2, 3, 2, 3), "8.6")


def test_int8_weights_become_fp32_ones_that_the_graph_quantises(tmp_path):
    # larger ones overflow in ONNX Runtime's own sums of INT8 products where the processor has no VNNI
    weight, scale = RNG.integers(-64, 65, (8, 3)).astype(np.int8), RNG.uniform(0.001, 0.1, 8).astype(np.float32)
    x, step = numbers(4, 3), np.float32(0.02)
    wanted = np.clip(np.rint(x / step), -128, 127) * step @ (weight * scale[:, None]).T
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["xq"], name="q"),
        helper.make_node("DequantizeLinear", ["xq", "step"], ["xd"], name="dq"),
        helper.make_node("DequantizeLinear", ["weight", "scale"], ["wd"], name="wdq", axis=0),
        helper.make_node("Gemm", ["xd", "wd"], ["y"], name="gemm", transB=1),
    ]
    constants = {"step": step, "zero": np.int8(0), "weight": weight, "scale": scale}
    made = lowered(tmp_path, graph_of(nodes, x, wanted.astype(np.float32), constants), x, wanted.astype(np.float32))
    np.testing.assert_allclose(run(made.graph, x), wanted, atol=1e-5)
    model = onnx.load(made.graph)
    linear = [node for node in model.graph.node if node.op_type.endswith("Linear")]
    assert [node.op_type for node in linear] == ["QuantizeLinear", "DequantizeLinear", "QuantizeLinear", "DequantizeLinear"]
    assert all(len(node.input) == 3 for node in linear)
    zeros = {node.input[2] for node in linear}
    assert all(tensor.data_type == TensorProto.FLOAT or tensor.name in zeros for tensor in model.graph.initializer)


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        ([("QuantizeLinear", ["x", "step"], "q"), ("DequantizeLinear", ["q", "step"], "y")], {}),  # without a zero point: UINT8
        ([("DequantizeLinear", ["stored", "step"], "y")], {"stored": np.arange(250, 255, dtype=np.uint8)}),
        ([("DequantizeLinear", ["stored", "step"], "y")], {"stored": np.arange(998, 1003, dtype=np.int32)}),
    ],
)
def test_what_is_quantised_to_another_type_is_refused(tmp_path, nodes, constants):
    x = numbers(5)
    made = [helper.make_node(op, inputs, [output], name=f"layer/{op}") for op, inputs, output in nodes]
    with pytest.raises(BuildFailedError, match=r"layer/.*not to INT8"):
        lowered(tmp_path, graph_of(made, x, x, {"step": np.float32(0.1), **constants}), x, x)


def test_a_computed_zero_point_is_refused(tmp_path):
    x = numbers(5)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["zeros"], name="layer/first"),
        helper.make_node("Gather", ["zeros", "place"], ["greatest"], name="layer/greatest"),
        helper.make_node("QuantizeLinear", ["x", "step", "greatest"], ["q"], name="layer/second"),
        helper.make_node("DequantizeLinear", ["q", "step", "greatest"], ["y"], name="layer/back"),
    ]
    with pytest.raises(BuildFailedError, match=r"layer/second.*zero point is computed"):
        lowered(tmp_path, graph_of(nodes, x, x, {"step": np.float32(0.1), "zero": np.int8(0), "place": np.array(0)}), x, x)


@pytest.mark.parametrize("opset", [7, 9])
def test_graphs_older_than_17_are_converted_first(tmp_path, opset):
    """Upsample went with opset 10, and Softmax changed its meaning with 13: both are what their own opset says."""
    x = numbers(2, 3, 5, 4)
    scales = {"scales": [1.0, 1.0, 2.0, 2.0]} if opset == 7 else {}
    constants = {} if opset == 7 else {"scales": np.array([1, 1, 2, 2], np.float32)}
    flat = np.exp(x - x.max((1, 2, 3), keepdims=True))
    wanted = (flat / flat.sum((1, 2, 3), keepdims=True)).repeat(2, 2).repeat(2, 3)
    nodes = [
        helper.make_node("Softmax", ["x"], ["p"], name="share"),
        helper.make_node("Upsample", ["p", *constants], ["y"], name="grow", mode="nearest", **scales),
    ]
    made = lowered(tmp_path, graph_of(nodes, x, wanted, constants, opset), x, wanted)
    np.testing.assert_allclose(run(made.graph, x), wanted, rtol=1e-5)
    assert onnx.load(made.graph).opset_import[0].version == 17


def test_int64_inputs_become_int32(tmp_path):
    x, table = RNG.integers(0, 9, (2, 5)), numbers(9, 4)
    made = lowered(tmp_path, graph_of([helper.make_node("Gather", ["table", "x"], ["y"], name="g")], x, table[x], {"table": table}), x, table[x])
    assert made.spec.inputs[0].dtype == "int32"
    np.testing.assert_array_equal(run(made.graph, x.astype(np.int32)), table[x])


def test_large_weights_lie_outside_and_come_along(tmp_path):
    x, weight = numbers(2, 64), numbers(64, 32)
    model = graph_of([helper.make_node("MatMul", ["x", "weight"], ["y"], name="m")], x, x @ weight, {"weight": weight})
    onnx.save(model, tmp_path / "source.onnx", save_as_external_data=True, location="source.onnx.data", size_threshold=1024)
    folder = tmp_path / "low"
    folder.mkdir()
    spec = StageSpec("s", (TensorSpec("x", "float32", ("batch", 64)),), (TensorSpec("y", "float32", ("batch", 32)),))
    made = lower_stage(tmp_path / "source.onnx", folder, spec, "8.6")
    assert sorted(p.name for p in folder.iterdir()) == ["s.onnx", "source.onnx.data"]
    np.testing.assert_allclose(run(made.graph, x), x @ weight, rtol=1e-4, atol=1e-4)


REFUSED = [
    ("Resize", ["x", "", "scales"], {"mode": "linear", "antialias": 1}, "antialiased"),
    ("Resize", ["x", "", "scales"], {"mode": "cubic"}, "its mode is cubic"),
    ("Resize", ["x", "", "scales"], {"mode": "linear", "coordinate_transformation_mode": "half_pixel_symmetric"}, "half_pixel_symmetric"),
    ("Pad", ["x", "pads"], {"mode": "wrap"}, "wraps around"),
    ("IsInf", ["x"], {}, "its list|bool"),
    ("HardSwish", ["x"], {}, "the operator is not in its list"),
    ("GridSample", ["x", "grid"], {"mode": "cubic"}, "its mode is bicubic"),
]


@pytest.mark.parametrize(("op", "inputs", "facts", "words"), REFUSED)
def test_what_the_parser_does_not_read_is_refused_with_its_name(tmp_path, op, inputs, facts, words):
    x = numbers(1, 2, 4, 4)
    constants = {"scales": np.array([1, 1, 2, 2], np.float32), "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "grid": numbers(1, 4, 4, 2)}
    size = 8 if op == "Resize" else 6 if op == "Pad" else 4
    nodes = [helper.make_node(op, inputs, ["z"], name="layer/odd", **facts), helper.make_node("Cast", ["z"], ["y"], name="layer/cast", to=1)]
    model = graph_of(nodes, x, numbers(1, 2, size, size), {k: v for k, v in constants.items() if k in inputs})
    with pytest.raises(BuildFailedError, match="layer/odd.*(" + words + ")"):
        lowered(tmp_path, model, x, numbers(1, 2, size, size))


def test_hardswish_came_with_8_6(tmp_path):
    x = numbers(2, 9, scale=3)
    model = graph_of([helper.make_node("HardSwish", ["x"], ["y"], name="layer/h")], x, x)
    assert lowered(tmp_path, model, x, x, "8.6").rewrites == {}
    with pytest.raises(BuildFailedError, match=r"TensorRT 8\.5 does not read .*HardSwish"):
        lowered(tmp_path, model, x, x, "8.5")


def test_the_tables_are_the_published_ones():
    """Counts, and what 8.6 brought, as the two pages of onnx-tensorrt say it."""
    old, new = operator_table("8.5"), operator_table("8.6")
    assert (len(old.operators), len(new.operators)) == (139, 145) and (old.opset, new.opset) == (17, 17)
    assert set(new.operators) - set(old.operators) == {"GroupNormalization", "HardSwish", "IsInf", "LayerNormalization", "Mod", "OneHot"}
    changed = {op for op in old.operators if old.operators[op] != new.operators[op]}
    assert changed == {"ArgMax", "ArgMin", "Cast", "ReverseSequence", "TopK"}
    assert old.operators["Conv"] == ("FP32", "FP16", "INT8") and old.operators["Not"] == ("BOOL",) and old.operators["ConstantOfShape"] == ("FP32",)
    assert "rank:3-5" in old.limits["InstanceNormalization"] and "InstanceNormalization" not in new.limits
    with pytest.raises(ValueError, match=r"8\.4"):
        operator_table("8.4")


@pytest.mark.parametrize("release", operator_checks.RELEASES)
def test_the_data_is_sound(release):
    table = operator_table(release)
    assert {kind for kinds in table.operators.values() for kind in kinds} <= set(operator_checks.KINDS.values())
    assert {limit.partition(":")[0] for limits in table.limits.values() for limit in limits} <= set(operator_checks.LIMITS)
    assert set(table.limits) <= set(table.operators)
    raw = json.loads((Path(operator_checks.__file__).parent / f"operators_{release.replace('.', '_')}.json").read_text())
    assert f"release/{release}-GA" in raw["source"]


def problems(nodes, x, y, constants=(), opset=17):
    model = onnx.shape_inference.infer_shapes(graph_of(nodes, x, y, constants, opset), data_prop=True)
    return unreadable(model, {k: np.asarray(v) for k, v in dict(constants).items()}, "8.5")


def test_the_checker_names_node_and_reason():
    x = numbers(2, 3, 4)
    assert problems([helper.make_node("Abs", ["x"], ["y"], name="n")], x, x) == []
    (said,) = problems([helper.make_node("Abs", ["x"], ["y"], name="n")], x, x, opset=18)
    assert said == "the graph has opset 18, wanted 17 at most"
    gates, two_ways = {"w": numbers(2, 12, 4), "r": numbers(2, 12, 4)}, {"hidden_size": 4, "direction": "bidirectional"}
    cases = [
        ([helper.make_node("Shape", ["x"], ["s"], name="n", start=1), helper.make_node("Cast", ["s"], ["y"], to=1)], {}, "passed over"),
        ([helper.make_node("Unsqueeze", ["x", "a"], ["y"], name="n")], {"a": np.array([0])}, ""),
        (
            [helper.make_node("Erf", ["i"], ["e"], name="n"), helper.make_node("Cast", ["x"], ["i"], name="c", to=6)][::-1],
            {},
            "tensor i is INT32, wanted FP32, FP16",
        ),
        ([helper.make_node("Einsum", ["x"], ["y"], name="n", equation="...i->...")], {}, "equation"),
        ([helper.make_node("Einsum", ["x", "a"], ["y"], name="n", equation="bij,jk->bik")], {"a": numbers(4, 4)}, ""),
        ([helper.make_node("Einsum", ["x", "a"], ["y"], name="n", equation="bij,bjk->bik")], {"a": numbers(2, 1, 4)}, "broadcast along j"),
        ([helper.make_node("GRU", ["x", *gates], ["g", "y"], name="n", **two_ways, activations=["Sigmoid", "Tanh"] * 2)], gates, ""),
        ([helper.make_node("GRU", ["x", *gates], ["g", "y"], name="n", **two_ways, activations=["Sigmoid", "Tanh", "Sigmoid", "Relu"])], gates, "directions"),
        ([helper.make_node("Gather", ["x", "i"], ["y"], name="n", axis=1)], {"i": np.array([1 << 40])}, "beyond INT32"),
    ]
    for nodes, constants, words in cases:
        found = problems(nodes, x, x, constants)
        assert any(words in one and "node n " in one for one in found) if words else found == [], (words, found)
    foreign = onnx.shape_inference.infer_shapes(graph_of([helper.make_node("Abs", ["x"], ["y"], name="n")], x, x, opset=17))
    foreign.graph.node[0].domain = "com.microsoft"
    assert unreadable(foreign, {}, "8.5") == ["node n (Abs): operators of the domain com.microsoft are not known"]


def test_every_rule_stands_for_an_operator_that_changed_or_is_missing():
    """What opset 17 writes otherwise, or 8.5 does not know, or reads wrongly; nothing else is touched."""
    misread = {"InstanceNormalization", "Shape"} | {"Clip"}  # Clip: no whole numbers
    missing = set(RULES) - set(operator_table("8.5").operators)
    for op in RULES:
        newer = onnx.defs.get_schema(op, 21).since_version > 17
        assert newer or op in misread | missing, op
