"""The ONNX functions of the operators in ONNX Runtime, against NumPy in double precision, and the rules that put them into graphs."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from test_trt_plugins_operators import exact_attention, exact_bins, exact_norm, some_attention, some_bins, some_norm

from fathom.trt_plugins import functions


def model_of(op, inputs, outputs, elem=TensorProto.FLOAT, fixed=True, opset=18, **attributes):
    """A model of one operator; inputs: name -> array, outputs: name -> number of dimensions."""
    node = helper.make_node(op, list(inputs), list(outputs), domain="fathom", **attributes)
    sizes = {name: list(a.shape) if fixed else [f"{name}{i}" for i in range(a.ndim)] for name, a in inputs.items()}
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT if name in ("scale", "shift") else elem, sizes[name]) for name in inputs]
    results = [helper.make_tensor_value_info(name, elem, [None] * rank) for name, rank in outputs.items()]
    model = helper.make_model(helper.make_graph([node], op, values, results), opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    functions.add_functions(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def run_model(model, inputs):
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, inputs)


@pytest.mark.parametrize("opset", [17, 18, 20])
@pytest.mark.parametrize("elem", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_the_body_of_bins_expectation_is_the_formula(elem, opset):
    inputs = dict(zip(("shape", "centers", "attractors"), some_bins(np.random.default_rng(3)), strict=True))
    inputs = {name: array.astype(helper.tensor_dtype_to_np_dtype(elem)) for name, array in inputs.items()}
    depth = run_model(model_of("BinsExpectation", inputs, {"depth": 4}, elem, fixed=False, opset=opset), inputs)[0]
    assert depth.dtype == inputs["shape"].dtype
    np.testing.assert_allclose(depth, exact_bins(*inputs.values()), rtol=3e-3 if elem == TensorProto.FLOAT16 else 2e-3)


def test_the_checker_infers_the_shape_of_bins_expectation():
    inputs = {"shape": np.zeros((2, 4, 9, 7)), "centers": np.zeros((2, 64, 3, 2)), "attractors": np.zeros((2, 5, 4, 6))}
    model = onnx.shape_inference.infer_shapes(model_of("BinsExpectation", inputs, {"depth": 4}), strict_mode=True, data_prop=True)
    assert [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim] == [2, 1, 9, 7]


@pytest.mark.parametrize("opset", [17, 18, 20])
@pytest.mark.parametrize("elem", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_the_body_of_group_norm_is_the_formula(elem, opset):
    x, scale, shift, groups = some_norm(np.random.default_rng(4), 3)
    inputs = {"x": x.astype(helper.tensor_dtype_to_np_dtype(elem)), "scale": scale, "shift": shift}
    y = run_model(model_of("GroupNormSilu", inputs, {"y": 4}, elem, fixed=False, opset=opset, groups=groups, epsilon=1e-6), inputs)[0]
    assert y.dtype == inputs["x"].dtype
    np.testing.assert_allclose(y, exact_norm(x, scale, shift, groups, 1e-6).reshape(x.shape), rtol=2e-3, atol=1e-3 if elem == TensorProto.FLOAT16 else 2e-4)
    model = onnx.shape_inference.infer_shapes(model_of("GroupNormSilu", inputs, {"y": 4}, elem, groups=groups), strict_mode=True, data_prop=True)
    assert tuple(d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim) == x.shape


def test_a_group_of_a_million_values_keeps_its_digits():
    """As in EVP's VAE: one sum after the other, ONNX Runtime lost the fourth digit."""
    x = np.random.default_rng(6).normal(2, 1, (1, 4, 512, 512)).astype(np.float32)
    inputs = {"x": x, "scale": np.ones(4, np.float32), "shift": np.zeros(4, np.float32)}
    for opset in (17, 18):
        y = run_model(model_of("GroupNormSilu", inputs, {"y": 4}, opset=opset, groups=1), inputs)[0]
        np.testing.assert_allclose(y, exact_norm(x, inputs["scale"], inputs["shift"], 1, 1e-5).reshape(x.shape), atol=5e-6)


@pytest.mark.parametrize("opset", [17, 18, 20])
@pytest.mark.parametrize("elem", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_the_body_of_cross_attention_is_the_formula(elem, opset):
    tensors = [tensor.astype(helper.tensor_dtype_to_np_dtype(elem)) for tensor in some_attention(np.random.default_rng(5))]
    inputs = dict(zip(("query", "keys", "values"), tensors, strict=True))
    outputs = run_model(model_of("CrossAttention", inputs, {"attended": 4, "map": 3}, elem, fixed=False, opset=opset, scale=0.3), inputs)
    for found, exact in zip(outputs, exact_attention(*tensors, 0.3)[:2], strict=True):
        assert found.dtype == tensors[0].dtype
        np.testing.assert_allclose(found, exact, rtol=2e-3, atol=2e-3 if elem == TensorProto.FLOAT16 else 1e-5)
    model = onnx.shape_inference.infer_shapes(model_of("CrossAttention", inputs, {"attended": 4, "map": 3}, elem), strict_mode=True, data_prop=True)
    assert [tuple(d.dim_value for d in o.type.tensor_type.shape.dim) for o in model.graph.output] == [found.shape for found in outputs]


def test_bodies_are_given_once_and_taken_away():
    inputs = {"shape": np.zeros((1, 4, 4, 4)), "centers": np.zeros((1, 64, 2, 2)), "attractors": np.zeros((1, 1, 2, 2))}
    model = model_of("BinsExpectation", inputs, {"depth": 4})
    functions.add_functions(model)
    assert [f.name for f in model.functions] == ["BinsExpectation"] and [o.domain for o in model.opset_import] == ["", "fathom"]
    functions.without_bodies(model)
    assert not model.functions and model.graph.node[0].domain == "fathom"
    model.graph.node[0].op_type = "Nothing"
    with pytest.raises(ValueError, match="no operator Nothing"):
        functions.add_functions(model)
