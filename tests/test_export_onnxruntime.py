"""Engines for ONNX Runtime: fused attention and exact norms give the same numbers; weights are a table of extents."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from fathom.export.child.child import run_child
from fathom.export.graph.onnx_graph import export_graph
from fathom.export.onnxruntime.build import _store
from fathom.export.onnxruntime.rewrites import rewrite
from fathom.models.network import Stage
from fathom.runtime.artefact.spec import StageSpec, TensorSpec
from fathom.runtime.errors import BuildFailedError


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
    from onnx import TensorProto, helper

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
