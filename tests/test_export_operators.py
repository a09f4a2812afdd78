"""The rules that put our operators into graphs: on EVP's own stages, with ONNX Runtime before and after."""

import shutil
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fathom.export.lowering.lowering import lower_stage
from fathom.export.operators.operators import RULES, use_operators
from fathom.runtime.artefact.bundle import BundleDirectory
from fathom.runtime.errors import UsageError


@pytest.fixture(scope="module")
def graphs(tiny_bundle, tmp_path_factory):
    bundle = tiny_bundle("evp-tiny")
    stages = shutil.copytree(bundle / "stages", tmp_path_factory.mktemp("evp") / "stages")  # others are written beside them
    return {stage.spec.name: (stage.spec, stages / f"{stage.spec.name}.onnx") for stage in BundleDirectory.open(bundle).manifest.stages}


def inputs_of(spec, batch=2):
    generator = np.random.default_rng(1)
    return {t.name: generator.normal(0, 1, [batch if isinstance(s, str) else s for s in t.shape]).astype(np.float32) for t in spec.inputs}


def run(file, inputs):
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, inputs), strict=True))


def rewritten(file, names):
    """Saved beside the original, so that it finds the weights."""
    model = onnx.load(file, load_external_data=False)
    done = use_operators(model, names)
    target = file.with_name(f"{file.stem}.{'-'.join(names)}.onnx")
    onnx.save(model, target)
    onnx.checker.check_model(target)
    return target, done, model


def close(got, wanted):
    assert got.keys() == wanted.keys()
    for name, exact in wanted.items():
        assert np.abs(got[name] - exact).max() <= 2e-4 * np.abs(exact).max(), name


@pytest.mark.parametrize(("stage", "counts"), [("unet", {"GroupNormSilu": 44, "CrossAttention": 10}), ("bins", {"BinsExpectation": 1})])
def test_a_stage_gives_the_same_with_the_operators(graphs, tmp_path, stage, counts):
    spec, file = graphs[stage]
    target, done, model = rewritten(file, tuple(counts))
    assert done == counts  # 22 resnets of two norms, the ten collected layers, one head
    assert {f.name for f in model.functions} == set(counts)
    left = {node.op_type for node in model.graph.node}
    assert not left & ({"Sigmoid", "ReduceMean"} if stage == "unet" else {"Softmax"})
    inputs = inputs_of(spec)
    wanted = run(file, inputs)
    close(run(target, inputs), wanted)
    lowered = lower_stage(target, tmp_path, spec, "8.5")  # for TensorRT 8, where the same nodes become plugins
    close(run(lowered.graph, inputs), wanted)
    graph = onnx.load(lowered.graph, load_external_data=False)
    assert Counter(node.op_type for node in graph.graph.node if node.domain == "fathom") == counts
    assert {f.opset_import[0].version for f in graph.functions} == {17}


def test_no_operator_is_used_unasked(graphs):
    model = onnx.load(graphs["bins"][1], load_external_data=False)
    before = model.SerializeToString()
    assert use_operators(model) == {} and model.SerializeToString() == before
    with pytest.raises(UsageError, match="no operator Wings"):
        use_operators(model, ("Wings",))


def test_another_formula_is_left_alone(graphs):
    """An attractor strength of 1000, as EVP's paper has it, is not what the operator computes."""
    model = onnx.load(graphs["bins"][1], load_external_data=False)
    constants = [t for t in model.graph.initializer if t.data_location != TensorProto.EXTERNAL and t.data_type == TensorProto.FLOAT]
    strength = next(t for t in constants if numpy_helper.to_array(t).size == 1 and numpy_helper.to_array(t) == 300)
    strength.CopyFrom(numpy_helper.from_array(np.float32(1000).reshape(tuple(strength.dims)), strength.name))
    assert use_operators(model, ("BinsExpectation",)) == {"BinsExpectation": 0}


def test_a_norm_whose_inside_is_read_is_left_alone(graphs):
    model = onnx.load(graphs["unet"][1], load_external_data=False)
    inner = next(node for node in model.graph.node if node.op_type == "Sigmoid").output[0]
    model.graph.output.append(helper.make_tensor_value_info(inner, 1, None))
    assert use_operators(model, ("GroupNormSilu",)) == {"GroupNormSilu": 43}


def norm_made_elsewhere(scale, groups=2, picture=(8, 4, 8), back=(8, 4, 8), opset=18):
    """A group norm of x [n, *picture] by a scale of that shape, and its SiLU."""
    shapes = {"grouped": [0, groups, -1], "back": [0, *back]}
    constants = [numpy_helper.from_array(np.array(shape), name) for name, shape in shapes.items()]
    constants += [numpy_helper.from_array(np.full(groups, value, np.float32), name) for name, value in (("one", 1), ("zero", 0))]
    constants += [numpy_helper.from_array(np.random.default_rng(0).normal(1, 1, scale).astype(np.float32), name) for name in ("scale", "shift")]
    nodes = [
        helper.make_node("Reshape", ["x", "grouped"], ["groups"]),
        helper.make_node("InstanceNormalization", ["groups", "one", "zero"], ["normed"]),
        helper.make_node("Reshape", ["normed", "back"], ["shaped"]),
        helper.make_node("Mul", ["shaped", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "shift"], ["z"]),
        helper.make_node("Sigmoid", ["z"], ["gate"]),
        helper.make_node("Mul", ["z", "gate"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *shape]) for name, shape in (("x", picture), ("y", back))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


@pytest.mark.parametrize(("scale", "count"), [((8, 1, 1), 1), ((1, 8, 1, 1), 1), ((8,), 0), ((1, 8), 0), ((1, 1, 1, 8), 0)])
def test_a_number_a_column_is_not_a_number_a_channel(scale, count):
    model = norm_made_elsewhere(scale)
    x = {"x": np.random.default_rng(1).standard_normal((2, 8, 4, 8)).astype(np.float32)}
    (wanted,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, x)
    assert use_operators(model, ("GroupNormSilu",)) == {"GroupNormSilu": count}
    (got,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, x)
    np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("picture", "back", "opset", "count"),
    [
        ((512, 1, 2), (512, 1, 2), 15, 1),
        ((512, 1, 2), (512, 1, 2), 14, 0),  # older than what the body is made of
        ((514, 1, 2), (514, 1, 2), 18, 0),  # 257 channels in a group
        ((16, 16), (8, 4, 8), 18, 0),  # the norm's input has other channels than its output
    ],
)
def test_a_norm_that_the_operator_would_not_take_stays(picture, back, opset, count):
    model = norm_made_elsewhere((back[0], 1, 1), 2, picture, back, opset)
    x = {"x": np.random.default_rng(1).standard_normal((2, *picture)).astype(np.float32)}
    (wanted,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, x)
    assert use_operators(model, ("GroupNormSilu",)) == {"GroupNormSilu": count}
    (got,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, x)
    np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("query", "keys", "count"),
    [
        (["n", 2, 6, 4], [1, 2, 4, 128], 1),
        (["n", 2, 6, 4], [1, 2, 4, 129], 0),  # more tokens than its threads hold
        (["n", 2, 6, 257], [1, 2, 257, 7], 0),
        (["n", 1, 6, 4], [1, 2, 4, 7], 0),  # one head of queries for two of keys
        ([1, 2, 6, 4], [3, 2, 4, 7], 0),  # one query for three texts
        (["n", 6, 4], [1, 4, 7], 0),
    ],
)
def test_attention_that_the_operator_would_not_take_stays(query, keys, count):
    rng = np.random.default_rng(0)
    values = [*keys[:-2], *reversed(keys[-2:])]
    constants = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in (("keys", keys), ("values", values))} | {"axis": np.array([1])}
    nodes = [
        helper.make_node("MatMul", ["x", "keys"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["map"], axis=-1),
        helper.make_node("MatMul", ["map", "values"], ["y"]),
        helper.make_node("ReduceMean", ["map", "axis"], ["m"], keepdims=0),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", query), ("y", None), ("m", None))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(values, name) for name, values in constants.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    x = {"x": rng.standard_normal([2 if size == "n" else size for size in query]).astype(np.float32)}
    wanted = onnxruntime.InferenceSession(model.SerializeToString()).run(None, x)
    assert use_operators(model, ("CrossAttention",)) == {"CrossAttention": count}
    for got, exact in zip(onnxruntime.InferenceSession(model.SerializeToString()).run(None, x), wanted, strict=True):
        np.testing.assert_allclose(got, exact, atol=1e-5)


def test_every_rule_belongs_to_an_operator():
    from fathom.trt_plugins.functions import BODIES

    assert set(RULES) == set(BODIES)
