"""The rule for ``fathom.BinsExpectation``: the log-binomial, the last level's attractors and the expectation become one node."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from ...trt_plugins.functions import add_functions
from .region import Surroundings, replace

TOLERANCE = 2e-3  # of FP32 against FP32; another strength, range or number of bins is off by percents
TRIAL = (8, 6)  # height and width that both forms are tried on


def fuse_bins_expectation(model: onnx.ModelProto, types: dict[str, onnx.TypeProto.Tensor]) -> int:
    """Replace every match that the kernel takes, in place; returns how many. ``types`` are those of ``tensor_types``.

    ``ReduceSum(Softmax * Resize(Resize(centers) + ReduceMean(...)))``, whose two softplus nodes read the raw numbers and the raw
    attractors. The constants are not compared one by one: both forms are run on random numbers and must agree.
    """
    done = 0
    for end in [node for node in model.graph.node if node.op_type == "ReduceSum"]:
        around = Surroundings(model, types)
        found = _match(around, around.maker[end.output[0]]) if end.output[0] in around.maker else None
        if found is None:
            continue
        inputs, attractor_count = found
        region = around.region([end.output[0]], inputs)
        node = around.operator("BinsExpectation", inputs, [end.output[0]], {})
        if region is not None and node is not None and _agree(model, region, inputs, end.output[0], attractor_count):
            replace(model, region, node)
            done += 1
    return done


def _match(around: Surroundings, end: onnx.NodeProto) -> tuple[list[str], int] | None:
    product = around.made_by(end.input[0], "Mul")
    if product is None:
        return None
    softmax, full = ([node for name in product.input if (node := around.made_by(name, op))] for op in ("Softmax", "Resize"))
    if len(softmax) != 1 or len(full) != 1 or (pulled := around.made_by(full[0].input[0], "Add")) is None:
        return None
    middle, shift = ([node for name in pulled.input if (node := around.made_by(name, op))] for op in ("Resize", "ReduceMean"))
    if len(middle) != 1 or len(shift) != 1:
        return None
    shape, attractors = _softplus_before(around, softmax[0].input[0], ()), _softplus_before(around, shift[0].input[0], middle[0].output)
    if shape is None or attractors is None:
        return None
    conv = around.made_by(attractors, "Conv")
    count = around.size(conv.input[2]) if conv is not None and len(conv.input) == 3 else 0
    return ([shape, middle[0].input[0], attractors], count) if count else None


def _softplus_before(around: Surroundings, name: str, stop: tuple[str, ...]) -> str | None:
    """The input of the only softplus that a tensor comes from, whether it has its linear part (Where) or not."""
    found, wanted, seen = set(), [name], set(stop)
    while wanted:
        name = wanted.pop()
        if name in seen or (node := around.maker.get(name)) is None:
            continue
        seen.add(name)
        soft = next((soft for inner in node.input if (soft := around.made_by(inner, "Softplus"))), None) if node.op_type == "Where" else None
        if soft is not None or node.op_type == "Softplus":
            found.add((soft or node).input[0])
        else:
            wanted.extend(node.input)
    return found.pop() if len(found) == 1 else None


def _agree(model: onnx.ModelProto, region: list[onnx.NodeProto], inputs: list[str], output: str, attractor_count: int) -> bool:
    generator = np.random.default_rng(0)
    height, width = TRIAL
    shape = generator.normal(0, 3, (2, 4, 4 * height, 4 * width)).astype(np.float32)
    centers = generator.gamma(1, 3, (2, 64, height, width)).astype(np.float32)
    attractors = generator.normal(0, 3, (2, attractor_count, 2 * height, 2 * width)).astype(np.float32)
    tensors = dict(zip(inputs, (shape, centers, attractors), strict=True))
    read = {name for node in region for name in node.input}
    constants = [tensor for tensor in model.graph.initializer if tensor.name in read]
    if any(tensor.data_location == TensorProto.EXTERNAL for tensor in constants):
        return False  # the constants of this region are small, and lie in the graph's own file
    plain = _model(region, tensors, output, constants, model)
    own = _model([helper.make_node("BinsExpectation", inputs, [output], domain="fathom")], tensors, output, [], model)
    add_functions(own)
    try:
        results = [onnxruntime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, tensors)[0] for m in (plain, own)]
    except Exception:  # ONNX Runtime's own classes: shapes or types that are not the operator's
        return False
    return results[0].shape == results[1].shape and bool(np.allclose(*results, rtol=TOLERANCE))


def _model(nodes, tensors: dict[str, np.ndarray], output: str, constants, model: onnx.ModelProto) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(array.shape)) for name, array in tensors.items()]
    result = helper.make_tensor_value_info(output, TensorProto.FLOAT, [None] * 4)
    graph = helper.make_graph(nodes, "region", values, [result], constants)
    return helper.make_model(graph, opset_imports=[o for o in model.opset_import if o.domain == ""], ir_version=model.ir_version)
