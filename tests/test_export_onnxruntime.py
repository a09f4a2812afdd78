"""Engines for ONNX Runtime: fused attention and exact norms give the same numbers; weights are a table of extents."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from fathom.export.child.child import run_child
from fathom.export.graph.onnx_graph import export_graph
from fathom.export.onnxruntime.build import _store
from fathom.export.onnxruntime.rewrites import rewrite
from fathom.models.network import Stage
from fathom.runtime.artefact.spec import StageSpec, TensorSpec
from fathom.runtime.errors import BuildFailedError
from fathom.runtime.onnxruntime.optimisers import DISABLED, EXACT_INT8


def _export(module, shape, folder):
    tensors = (TensorSpec("x", "float32", ("batch", *shape)),), (TensorSpec("y", "float32", ("batch", *shape)),)
    return export_graph(Stage(StageSpec("part", *tensors), module.eval().requires_grad_(False)), folder).file


def _optimise(source, folder):
    scratch = folder / "scratch"
    scratch.mkdir()
    request = {"task": "onnxruntime", "stage": "part", "source": str(source), "scratch": str(scratch)}
    return run_child({**request, "target": str(folder / "e.onnx"), "weights": str(folder / "e.weights")}, what="stage part").values


def _run_engine(folder, x):
    options = ort.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return ort.InferenceSession((folder / "e.onnx").read_bytes(), options).run(None, {"x": x})[0]


def test_attention_is_fused_and_gives_the_same(small_network, tmp_path):
    module = small_network.Attention(64, heads=4)
    file = _export(module, (64, 8, 8), tmp_path)
    model = onnx.load(str(file))
    assert rewrite(model)["fuse_attention"] == 1
    ops = [node.op_type for node in model.graph.node]
    assert ops.count("MultiHeadAttention") == 1 and "Softmax" not in ops and ops.count("MatMul") == 2  # what is left are the projections
    x = torch.randn(3, 64, 8, 8)
    (got,) = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x.numpy()})
    np.testing.assert_allclose(got, module(x).numpy(), atol=2e-6)


def test_attention_to_constants_or_with_a_map_that_others_read_stays(tmp_path):
    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("keys", torch.randn(1, 2, 8, 5))

        def forward(self, x):
            query = x.unflatten(-1, (2, 8)).transpose(1, 2)
            seen = torch.softmax(query @ self.keys, -1)
            return (seen @ self.keys.transpose(-1, -2)).transpose(1, 2).flatten(2) + seen.mean((1, 3))[..., None]

    module = Watched()
    file = _export(module, (6, 16), tmp_path)
    model = onnx.load(str(file))
    assert rewrite(model)["fuse_attention"] == 0
    x = torch.randn(2, 6, 16)
    (got,) = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x.numpy()})
    np.testing.assert_allclose(got, module(x).numpy(), atol=1e-6)


def attention_made_elsewhere(query, keys, split, keys_split, joined, opset=18, **softmax):
    """Two heads of q [query], k and v [keys], in the nodes that other exporters write too; the numbers are shapes and targets of Reshape."""
    shapes = {"split": split, "keys_split": keys_split, "joined": joined}
    constants = [numpy_helper.from_array(np.array(shape), name) for name, shape in shapes.items()] + [numpy_helper.from_array(np.float32(0.7), "factor")]
    nodes = [helper.make_node("Reshape", [name, "split" if name == "q" else "keys_split"], [f"{name}_heads"]) for name in "qkv"]
    nodes += [helper.make_node("Transpose", [f"{name}_heads"], [f"{name}_first"], perm=[0, 2, 3, 1] if name == "k" else [0, 2, 1, 3]) for name in "qkv"]
    nodes += [
        helper.make_node("Mul", ["q_first", "factor"], ["q_scaled"]),
        helper.make_node("MatMul", ["q_scaled", "k_first"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["map"], **softmax),
        helper.make_node("MatMul", ["map", "v_first"], ["mixed"]),
        helper.make_node("Transpose", ["mixed"], ["turned"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["turned", "joined"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, query if name == "q" else keys) for name in "qkv"]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 3)], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


ATTENTIONS = {  # shapes and targets, and whether it is what the fused operator computes
    "plain": (([3, 6, 8], [3, 6, 8], [0, 0, 2, 4], [0, 0, 2, 4], [0, 0, 8]), {}, 1),
    "free batch": ((["n", 6, 8], ["n", 6, 8], [-1, 6, 2, 4], [-1, 6, 2, 4], [-1, 6, 8]), {}, 1),
    "other keys": ((["n", 6, 8], ["n", 5, 8], [0, 0, 2, -1], [0, -1, 2, 4], [0, 6, -1]), {}, 1),
    "opset 12, last axis": (([3, 6, 8], [3, 6, 8], [0, 0, 2, 4], [0, 0, 2, 4], [0, 0, 8]), {"opset": 12, "axis": 3}, 1),
    "opset 12, all axes": (([3, 6, 8], [3, 6, 8], [0, 0, 2, 4], [0, 0, 2, 4], [0, 0, 8]), {"opset": 12}, 0),
    "windows": (([3, 6, 8], [3, 6, 8], [-1, 3, 2, 4], [-1, 3, 2, 4], [3, 6, 8]), {}, 0),
    "windows of a free batch": ((["n", 6, 8], ["n", 6, 8], [-1, 3, 2, 4], [-1, 3, 2, 4], [-1, 6, 8]), {}, 0),
    "one axis of two": (([3, 2, 5, 8], [3, 2, 5, 8], [6, 5, 2, 4], [6, 5, 2, 4], [3, 10, 8]), {}, 0),
    "flat": (([18, 8], [18, 8], [3, 6, 2, 4], [3, 6, 2, 4], [3, 6, 8]), {}, 0),
    "all pictures as one": (([3, 6, 8], [3, 6, 8], [1, -1, 2, 4], [1, -1, 2, 4], [3, 6, 8]), {}, 0),
    "one query for all": (([1, 6, 8], [3, 5, 8], [0, 0, 2, 4], [0, 0, 2, 4], [0, 0, 8]), {}, 0),
    "perhaps one query for all": (([1, 6, 8], ["n", 5, 8], [0, 0, 2, 4], [0, 0, 2, 4], [-1, 6, 8]), {}, 0),
    "pictures joined behind": (([3, 6, 8], [3, 6, 8], [0, 0, 2, 4], [0, 0, 2, 4], [1, 18, 8]), {}, 0),
}


@pytest.mark.parametrize("case", ATTENTIONS)
def test_only_what_the_fused_operator_computes_becomes_it(case):
    facts, more, count = ATTENTIONS[case]
    model = attention_made_elsewhere(*facts, **more)
    rng = np.random.default_rng(0)
    feed = {name: rng.standard_normal([3 if size == "n" else size for size in facts[name != "q"]]).astype(np.float32) for name in "qkv"}
    (wanted,) = ort.InferenceSession(model.SerializeToString()).run(None, feed)
    assert rewrite(model)["fuse_attention"] == count
    (got,) = ort.InferenceSession(model.SerializeToString()).run(None, feed)
    np.testing.assert_allclose(got, wanted, atol=1e-6)


class Shares(nn.Module):
    def __init__(self, axis):
        super().__init__()
        self.axis = axis

    def forward(self, x):
        return torch.softmax(x, self.axis)


@pytest.mark.parametrize(("axis", "spread"), [(1, 1), (-3, 1), (2, 1), (3, 0), (-1, 0)])
def test_a_softmax_over_channels_is_written_out_and_gives_the_same(axis, spread, tmp_path):
    module = Shares(axis)
    model = onnx.load(str(_export(module, (64, 7, 9), tmp_path)))
    assert rewrite(model)["spread_softmax"] == spread and [node.op_type for node in model.graph.node].count("Softmax") == 1 - spread
    x = 50 * torch.randn(2, 64, 7, 9)  # differences far beyond what an exponent holds
    (got,) = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x.numpy()})
    np.testing.assert_allclose(got, module(x.double()).numpy(), atol=1e-6)


def test_a_softmax_stays_whose_rank_is_not_known_or_whose_opset_writes_axes_otherwise():
    for opset, shape, kind in ((17, [2, 5, 3], TensorProto.FLOAT), (18, None, TensorProto.FLOAT), (18, [2, 5, 3], TensorProto.FLOAT16)):
        ends = [helper.make_tensor_value_info(name, kind, shape) for name in "xy"]
        graph = helper.make_graph([helper.make_node("Softmax", ["x"], ["y"], axis=1)], "g", ends[:1], ends[1:])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        assert rewrite(model)["spread_softmax"] == 0 and len(model.graph.node) == 1


@pytest.mark.parametrize("affine", [True, False])
def test_long_norms_become_as_exact_as_pytorchs(affine, tmp_path):
    norm = nn.GroupNorm(2, 4, affine=affine)
    if affine:
        norm.weight.data.uniform_(0.5, 2)
        norm.bias.data.normal_()
    file = _export(norm, (4, 512, 512), tmp_path)
    model = onnx.load(str(file))
    assert rewrite(model)["exact_norms"] == 1 and "InstanceNormalization" not in [node.op_type for node in model.graph.node]
    x = torch.rand(2, 4, 512, 512) + 3  # far from 0: the mean matters
    truth = norm.double()(x.double()).numpy()
    (got,) = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x.numpy()})
    (plain,) = ort.InferenceSession(str(file)).run(None, {"x": x.numpy()})
    error, before = np.abs(got - truth).max(), np.abs(plain - truth).max()
    assert error < 1e-5 and error < before / 5, (error, before)


LONG = [2, 256, 2, 256]  # as many columns as channels


@pytest.mark.parametrize(
    ("grouped", "back", "scale", "opset", "count"),
    [
        ([0, 1, -1], [0, *LONG[1:]], [256, 1, 1], 18, 1),
        ([0, 1, -1], [0, *LONG[1:]], [1, 256, 1, 1], 18, 1),
        ([0, 1, -1], [0, *LONG[1:]], [256], 18, 1),  # a number a column, which is no part of the norm
        ([0, 1, -1], [0, *LONG[1:]], [1, 256], 18, 1),
        ([0, 1, -1], [0, *LONG[1:]], [256, 1, 1], 17, 0),  # where reductions are written otherwise
        ([1, 2, -1], [0, 512, *LONG[2:]], [512, 1, 1], 18, 0),  # the pictures of a batch in one row
    ],
)
def test_a_long_norm_made_elsewhere_gives_the_same(grouped, back, scale, opset, count):
    rng = np.random.default_rng(0)
    constants = {"grouped": np.array(grouped), "back": np.array(back), "scale": rng.uniform(0.5, 2, scale).astype(np.float32)}
    constants |= {name: np.full(grouped[1], value, np.float32) for name, value in (("one", 1), ("zero", 0))}
    nodes = [
        helper.make_node("Reshape", ["x", "grouped"], ["groups"]),
        helper.make_node("InstanceNormalization", ["groups", "one", "zero"], ["normed"]),
        helper.make_node("Reshape", ["normed", "back"], ["shaped"]),
        helper.make_node("Mul", ["shaped", "scale"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *shape]) for name, shape in (("x", LONG[1:]), ("y", back[1:]))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(values, name) for name, values in constants.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    x = rng.standard_normal(LONG).astype(np.float32)
    (wanted,) = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    assert rewrite(model)["exact_norms"] == count
    (got,) = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    np.testing.assert_allclose(got, wanted, atol=1e-4)


def test_short_norms_stay_one_operator(tmp_path):
    model = onnx.load(str(_export(nn.GroupNorm(2, 4), (4, 16, 16), tmp_path)))
    assert rewrite(model)["exact_norms"] == 0


def test_an_engine_gives_what_the_module_gives(small_network, tmp_path):
    module = small_network.Encoder()
    tensors = (TensorSpec("x", "float32", ("batch", 3, 32, 48)),), (TensorSpec("y", "float32", ("batch", 16, 16, 24)),)
    file = export_graph(Stage(StageSpec("part", *tensors), module.eval().requires_grad_(False)), tmp_path).file
    values = _optimise(file, tmp_path)
    assert values["rewrites"]["fuse_attention"] == 1 and values["version"] == ort.__version__
    x = torch.randn(2, 3, 32, 48)
    np.testing.assert_allclose(_run_engine(tmp_path, x.numpy()), module(x).numpy(), atol=2e-6)


def test_the_table_says_where_every_weight_lies(small_network, tmp_path):
    module = small_network.Attention(64, heads=4)
    values = _optimise(_export(module, (64, 8, 8), tmp_path), tmp_path)
    raw = (tmp_path / "e.weights").read_bytes()
    found = {}
    for item in values["initializers"]:
        count = int(np.prod(item["shape"]))
        assert item["offset"] % 64 == 0 and item["dtype"] == "float32"
        found[item["name"]] = np.frombuffer(raw, np.float32, count, item["offset"]).reshape(item["shape"])
    np.testing.assert_array_equal(found["qkv.weight"], module.qkv.weight.numpy().T)
    graph = onnx.load(str(tmp_path / "e.onnx"), load_external_data=False)
    outside = {t.name: {e.key: e.value for e in t.external_data} for t in graph.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL}
    assert set(outside) == set(found) and {facts["location"] for facts in outside.values()} == {"e.weights"}


def test_a_graph_that_onnxruntime_refuses_is_reported_with_its_stage(tmp_path):
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 4]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("NoSuchThing", ["x"], ["y"])], "g", [x], [y])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9), tmp_path / "g.onnx")
    with pytest.raises(BuildFailedError, match="stage part: ONNX Runtime refuses the graph"):
        _optimise(tmp_path / "g.onnx", tmp_path)


def test_weights_of_odd_names_are_found_in_branches_too_and_take_no_name_that_is_there(tmp_path):
    """y = If(true, x * "wei ght", x) + "wei ght" - "weight_0": two weights, one of whose new names would be the other's."""
    node, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    odd, plain = (np.random.default_rng(seed).standard_normal((1, 1024)).astype(np.float32) for seed in (0, 1))
    then = onnx.helper.make_graph([node("Mul", ["x", "wei ght"], ["weight_0_"])], "t", [], [value("weight_0_", 1, None)])
    other = onnx.helper.make_graph([node("Identity", ["x"], ["e"])], "e", [], [value("e", 1, None)])
    nodes = [
        node("If", ["yes"], ["picked"], then_branch=then, else_branch=other),
        node("Add", ["picked", "wei ght"], ["sum"]),
        node("Sub", ["sum", "weight_0"], ["y"]),
    ]
    weights = [onnx.numpy_helper.from_array(array, name) for name, array in (("wei ght", odd), ("weight_0", plain), ("yes", np.array(True)))]
    graph = onnx.helper.make_graph(nodes, "g", [value("x", 1, ["n", 1024])], [value("y", 1, ["n", 1024])], weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "optimised.onnx")
    table = _store(tmp_path / "optimised.onnx", tmp_path / "e.onnx", tmp_path / "e.weights")
    for entry in table:
        TensorSpec(entry["name"], entry["dtype"], tuple(entry["shape"]))  # a manifest takes the name
    x = np.random.default_rng(2).standard_normal((3, 1024)).astype(np.float32)
    np.testing.assert_allclose(_run_engine(tmp_path, x), x * odd + odd - plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shares", ["nothing", "a zero point", "a weight", "a dequantised weight"])
def test_int8_products_that_share_constants_are_exact_on_every_processor(shares, tmp_path):
    """ONNX Runtime refuses them with the option that makes its sums exact where processors have no VNNI; without it, its sums overflow there."""
    draw = np.random.default_rng(0)
    arrays = [draw.choice([-127, 127], (64, 64)).astype(np.int8) for _ in range(2)]
    own = shares != "a zero point"
    one = shares in ("a weight", "a dequantised weight")
    constants = {"w0": arrays[0], "z0": np.int8(0), "zero": np.int8(0), "one": np.float32(1)}
    constants.update({} if one else {"w1": arrays[1]}, **({"z1": np.int8(0)} if own else {}))
    nodes = [helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"]), helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["d"])]
    for number, weight in ((0, "w0"), (1, "w0" if one else "w1")):
        if not (number and shares == "a dequantised weight"):
            nodes.append(helper.make_node("DequantizeLinear", [weight, "one", f"z{number}" if own else "z0"], [f"read{number}"]))
        nodes.append(helper.make_node("MatMul", ["d", "read0" if shares == "a dequantised weight" else f"read{number}"], [f"m{number}"]))
    nodes.append(helper.make_node("Concat", ["m0", "m1"], ["y"], axis=0))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", [8, 64]), ("y", [16, 64])))
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "g.onnx")
    _optimise(tmp_path / "g.onnx", tmp_path)
    values = draw.choice([-127, 127], (8, 64)).astype(np.float32)
    options = ort.SessionOptions()
    options.add_session_config_entry(*EXACT_INT8)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(tmp_path))
    session = ort.InferenceSession((tmp_path / "e.onnx").read_bytes(), options, disabled_optimizers=DISABLED)
    wanted = np.concatenate([values @ (arrays[0] if one else array).astype(np.float32) for array in arrays])
    np.testing.assert_array_equal(session.run(None, {"x": values})[0], wanted)
