"""The ONNX functions of the operators in ONNX Runtime, against NumPy in double precision, and the rules that put them into graphs."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from test_trt_plugins_operators import exact_bins, some_bins

from fathom.trt_plugins import functions


def model_of(op, inputs, outputs, elem=TensorProto.FLOAT, fixed=True, **attributes):
    """A model of one operator; inputs: name -> array, outputs: name -> number of dimensions."""
    node = helper.make_node(op, list(inputs), list(outputs), domain="fathom", **attributes)
    values = [helper.make_tensor_value_info(name, elem, list(a.shape) if fixed else [f"{name}{i}" for i in range(a.ndim)]) for name, a in inputs.items()]
    results = [helper.make_tensor_value_info(name, elem, [None] * rank) for name, rank in outputs.items()]
    model = helper.make_model(helper.make_graph([node], op, values, results), opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    functions.add_functions(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def run_model(model, inputs):
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, inputs)


@pytest.mark.parametrize("elem", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_the_body_of_bins_expectation_is_the_formula(elem):
    inputs = dict(zip(("shape", "centers", "attractors"), some_bins(np.random.default_rng(3)), strict=True))
    inputs = {name: array.astype(helper.tensor_dtype_to_np_dtype(elem)) for name, array in inputs.items()}
    depth = run_model(model_of("BinsExpectation", inputs, {"depth": 4}, elem, fixed=False), inputs)[0]
    assert depth.dtype == inputs["shape"].dtype
    np.testing.assert_allclose(depth, exact_bins(*inputs.values()), rtol=3e-3 if elem == TensorProto.FLOAT16 else 2e-3)


def test_the_checker_infers_the_shape_of_bins_expectation():
    inputs = {"shape": np.zeros((2, 4, 9, 7)), "centers": np.zeros((2, 64, 3, 2)), "attractors": np.zeros((2, 5, 4, 6))}
    model = onnx.shape_inference.infer_shapes(model_of("BinsExpectation", inputs, {"depth": 4}), strict_mode=True, data_prop=True)
    assert [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim] == [2, 1, 9, 7]


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
