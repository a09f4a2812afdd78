"""FP16 by explicit types: which nodes stay FP32, that the graph is well typed, and that it still computes the same."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from fathom.export.precision.typed import boundary_types, type_stage
from fathom.runtime.artefact.spec import StageSpec, TensorSpec

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def _session(file):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return ort.InferenceSession(str(file), options)


def _graph(tmp_path, nodes, constants, shape_in=("batch", 8), shape_out=("batch", 8)):
    """A graph x -> y made by hand."""
    initialisers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    x, y = helper.make_tensor_value_info("x", FLOAT, shape_in), helper.make_tensor_value_info("y", FLOAT, shape_out)
    for index, node in enumerate(nodes):
        node.name = node.name or f"{node.op_type}_{index}"
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], initialisers), opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    file = tmp_path / "g.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(model), file)
    return file, StageSpec("g", (TensorSpec("x", "float32", shape_in),), (TensorSpec("y", "float32", shape_out),))


@pytest.fixture(scope="module")
def typed(small_bundle, small_network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("typed")
    stages = small_network.SmallNetwork().stages()
    types = boundary_types(tuple(stage.spec for stage in stages), "depth")
    made = {}
    for stage in stages:
        source = small_bundle / "stages" / f"{stage.spec.name}.onnx"
        target = folder / source.name
        made[stage.spec.name] = (stage, source, target, type_stage(source, target, stage.spec, islands=stage.fp32_islands, boundaries=types))
    return made


def test_boundaries_between_stages_are_half_and_the_ends_stay(typed):
    assert [t.dtype for t in typed["encoder"][3].spec.inputs + typed["encoder"][3].spec.outputs] == ["float32", "float16"]
    assert [t.dtype for t in typed["decoder"][3].spec.inputs + typed["decoder"][3].spec.outputs] == ["float16", "float32"]


def test_boundaries_named_to_be_kept_stay():
    a, b, c = (TensorSpec(name, "float32", (1,)) for name in "abc")
    specs = (StageSpec("one", (a,), (b,)), StageSpec("two", (b,), (c,)))
    assert boundary_types(specs, "c") == {"a": "float32", "b": "float16", "c": "float32"}
    assert boundary_types(specs, "c", keep=("b",))["b"] == "float32"


def test_the_typed_graphs_are_valid_and_compute_the_same(typed, tmp_path):
    rng = np.random.default_rng(0)
    for stage, source, target, made in typed.values():
        onnx.checker.check_model(str(target))
        onnx.shape_inference.infer_shapes_path(str(target), str(tmp_path / "inferred.onnx"), strict_mode=True, check_type=True)
        x = rng.standard_normal((2, *stage.spec.inputs[0].shape[1:])).astype(np.float32)
        name = stage.spec.inputs[0].name
        (wanted,) = _session(source).run(None, {name: x})
        (got,) = _session(target).run(None, {name: x.astype(made.spec.inputs[0].dtype)})
        assert got.dtype == made.spec.outputs[0].dtype
        assert np.abs(got - wanted).max() < 4e-3 * np.abs(wanted).max()


def test_norms_softmax_and_islands_stay_fp32_and_products_do_not(typed):
    reasons = typed["encoder"][3].fp32
    assert reasons["norm/InstanceNormalization_0"] == reasons["attn.norm/LayerNormalization_0"] == "norm"
    assert reasons["norm/Mul_0"] == reasons["norm/Add_0"] == "scale and shift of a norm"
    assert reasons["attn/Softmax_0"] == "softmax"
    assert not {"conv_in/Conv_0", "attn/MatMul_0", "attn/MatMul_1", "attn.qkv/MatMul_0", "shared/Conv_0"} & set(reasons)
    decoder = typed["decoder"][3].fp32
    assert decoder["logits/Conv_0"] == "island logits" and "up/ConvTranspose_0" not in decoder
    assert decoder["Mul_2"] == "between FP32 nodes"  # softmax and sum around it are FP32: no casts between


def test_weights_are_half_and_half_as_large_except_on_islands(typed):
    stage, source, target, made = typed["encoder"]
    model = onnx.load(str(target))
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert types["conv_in.weight"] == types["attn.qkv.weight"] == HALF and types["attn.norm.weight"] == types["norm.weight"] == FLOAT
    found = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    np.testing.assert_array_equal(found["shared.weight"], stage.module.shared.weight.numpy().astype(np.float16))
    assert made.weights_nbytes < 0.6 * source.with_name(source.name + ".data").stat().st_size
    assert {t.name: t.data_type for t in onnx.load(str(typed["decoder"][2])).graph.initializer}["logits.weight"] == FLOAT


def test_no_cast_is_made_twice_or_undone(typed):
    for _, _, target, _ in typed.values():
        model = onnx.load(str(target), load_external_data=False)
        casts = [(node.input[0], node.attribute[0].i) for node in model.graph.node if node.op_type == "Cast"]
        assert len(set(casts)) == len(casts)
        made = {node.output[0] for node in model.graph.node if node.op_type == "Cast"}
        assert not made & {source for source, _ in casts}


def test_constants_that_fp16_cannot_hold_keep_their_node_fp32(tmp_path):
    nodes = [helper.make_node("Mul", ["x", "large"], ["a"]), helper.make_node("Add", ["a", "tiny"], ["b"]), helper.make_node("Mul", ["b", "fine"], ["y"])]
    file, spec = _graph(tmp_path, nodes, {"large": np.full(8, 1e6, np.float32), "tiny": np.float32(1e-7), "fine": np.full(8, 1e-5, np.float32)})
    made = type_stage(file, tmp_path / "t.onnx", spec)
    assert "beyond 65504" in made.fp32["Mul_0"] and "below the smallest" in made.fp32["Add_1"] and "Mul_2" not in made.fp32
    x = np.full((1, 8), 1e-3, np.float32)
    (got,) = _session(tmp_path / "t.onnx").run(None, {"x": x})
    np.testing.assert_allclose(got, (x * 1e6 + 1e-7) * 1e-5, rtol=2e-3)


def test_masks_of_minus_infinity_do_not_make_an_island(tmp_path):
    mask = np.where(np.arange(8) < 6, 0, -np.inf).astype(np.float32)
    file, spec = _graph(tmp_path, [helper.make_node("Add", ["x", "mask"], ["a"]), helper.make_node("Softmax", ["a"], ["y"])], {"mask": mask})
    made = type_stage(file, tmp_path / "t.onnx", spec)
    assert set(made.fp32) == {"Softmax_1"}


def test_a_norm_that_was_written_out_stays_fp32_as_a_whole(tmp_path):
    axes, two, eps = np.array([1], np.int64), np.float32(2), np.float32(1e-6)
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"]),
        helper.make_node("Sub", ["x", "mean"], ["d"]),
        helper.make_node("Pow", ["d", "two"], ["p"]),
        helper.make_node("ReduceMean", ["p", "axes"], ["var"]),
        helper.make_node("Add", ["var", "eps"], ["e"]),
        helper.make_node("Sqrt", ["e"], ["s"]),
        helper.make_node("Div", ["d", "s"], ["n"]),
        helper.make_node("MatMul", ["n", "weight"], ["y"]),
    ]
    file, spec = _graph(tmp_path, nodes, {"axes": axes, "two": two, "eps": eps, "weight": np.eye(8, dtype=np.float32)})
    made = type_stage(file, tmp_path / "t.onnx", spec)
    assert set(made.fp32) == {f"{node.op_type}_{index}" for index, node in enumerate(nodes[:-1])}
    x = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32) * 1000  # squares beyond FP16
    (got,) = _session(tmp_path / "t.onnx").run(None, {"x": x})
    np.testing.assert_allclose(got, (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True), atol=2e-3)


def test_an_initialiser_read_in_both_types_is_stored_in_both(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["a"], name="body/MatMul_0"),
        helper.make_node("MatMul", ["a", "weight"], ["y"], name="head/MatMul_0"),
    ]
    weight = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    file, spec = _graph(tmp_path, nodes, {"weight": weight})
    type_stage(file, tmp_path / "t.onnx", spec, islands=("head",))
    types = {t.name: t.data_type for t in onnx.load(str(tmp_path / "t.onnx")).graph.initializer}
    assert types == {"weight": HALF, "weight:fp32": FLOAT}
    _session(tmp_path / "t.onnx")


def test_what_is_read_in_three_types_has_three_names(tmp_path):
    """A plan with BF16 in it: one tensor and one weight go to an FP16, a BF16 and an FP32 product."""
    nodes = [helper.make_node("MatMul", ["x", "weight"], ["a"], name="first/MatMul_0")]
    nodes += [helper.make_node("MatMul", ["a", "weight"], [kind], name=f"{kind}/MatMul_0") for kind in ("half", "brain", "full")]
    nodes += [helper.make_node("Sum", ["half", "brain", "full"], ["y"], name="last/Sum_0")]
    weight = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    file, spec = _graph(tmp_path, nodes, {"weight": weight})
    type_stage(file, tmp_path / "t.onnx", spec, precisions={"brain/MatMul_0": "bf16", "full/MatMul_0": "fp32"})
    model = onnx.load(str(tmp_path / "t.onnx"))
    onnx.checker.check_model(model)
    onnx.shape_inference.infer_shapes(model, strict_mode=True, check_type=True)
    assert {t.name: t.data_type for t in model.graph.initializer} == {"weight": HALF, "weight:bf16": TensorProto.BFLOAT16, "weight:fp32": FLOAT}
    products = {node.name.split("/")[0]: list(node.input) for node in model.graph.node if node.op_type == "MatMul"}
    assert products["brain"] == ["a:bf16", "weight:bf16"] and products["full"] == ["a:fp32", "weight:fp32"] and products["half"] == ["a", "weight"]


def test_islands_are_paths_not_substrings(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["a"], name="header.fc/MatMul_0"),
        helper.make_node("MatMul", ["a", "weight"], ["y"], name="head.fc/MatMul_0"),
    ]
    file, spec = _graph(tmp_path, nodes, {"weight": np.eye(8, dtype=np.float32)})
    assert set(type_stage(file, tmp_path / "t.onnx", spec, islands=("head",)).fp32) == {"head.fc/MatMul_0"}


def test_resize_scales_stay_float32(tmp_path):
    nodes = [helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="linear")]
    file, spec = _graph(tmp_path, nodes, {"scales": np.array([1, 1, 2, 2], np.float32)}, ("batch", 1, 4, 4), ("batch", 1, 8, 8))
    made = type_stage(file, tmp_path / "t.onnx", spec)
    assert not made.fp32 and {t.name: t.data_type for t in onnx.load(str(tmp_path / "t.onnx")).graph.initializer} == {"scales": FLOAT}
    _session(tmp_path / "t.onnx")
