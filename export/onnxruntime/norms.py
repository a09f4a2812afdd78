"""For ONNX Runtime only: group norms over long spans, summed in two steps.

Its ``InstanceNormalization`` adds up a whole group in one go. Over a million numbers (a VAE at 512 x 512) the mean is then wrong in
the fifth digit, a hundred times worse than PyTorch's, and a chain of such norms shows in the depth. Means of means are as exact as
PyTorch's and, with the scale folded into the division, as fast. TensorRT wants the one operator, so the bundle keeps it.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ...calibration.graph.softmax import AXES_ARE_INPUTS
from ...calibration.graph.stage_graph import opset_of
from ..graph.long_sums import LONGEST_PLAIN, row_length
from ..graph.set_nodes import set_nodes
from ..graph.tensor_types import is_per_channel


def exact_norms(model: onnx.ModelProto) -> int:
    """Replace long ``InstanceNormalization`` nodes over [batch, groups, -1], in place; returns how many.

    The pattern is what ``translations.group_norm`` writes: Reshape, InstanceNormalization with scale 1 and shift 0, Reshape, and
    where there is one the Mul by a scale per channel. Others stay as they are, and so do all before opset 18 and a Mul by anything else.
    """
    if opset_of(model) < AXES_ARE_INPUTS:
        return 0
    outputs = {value.name for value in model.graph.output}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    maker = {name: node for node in model.graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    replaced: dict[int, list[onnx.NodeProto]] = {}
    gone: set[int] = set()
    for norm in model.graph.node:
        if norm.op_type != "InstanceNormalization":
            continue
        before = maker.get(norm.input[0])
        after = readers.get(norm.output[0], [])
        if before is None or before.op_type != "Reshape" or len(after) != 1 or after[0].op_type != "Reshape":
            continue
        if not outputs.isdisjoint((before.output[0], norm.output[0])):
            continue
        grouped, shape = _ints(constants, before.input[1]), _ints(constants, after[0].input[1])
        plain = _all(constants, norm.input[1], 1.0) and _all(constants, norm.input[2], 0.0)
        if not plain or grouped is None or len(grouped) != 3 or shape is None or len(shape) < 2:
            continue
        groups, channels = grouped[1], shape[1]
        if [grouped[0], grouped[2], shape[0]] != [0, -1, 0] or min(groups, *shape[1:]) < 1 or channels % groups:
            continue
        length = int(np.prod(shape[1:], dtype=np.int64)) // groups
        if length <= LONGEST_PLAIN:
            continue
        scaled = readers.get(after[0].output[0], [])
        mul = scaled[0] if len(scaled) == 1 and scaled[0].op_type == "Mul" and after[0].output[0] not in outputs else None
        if mul is not None and ((scale := _values(constants, mul.input[1])) is None or not is_per_channel(scale.shape, len(shape), channels)):
            mul = None
        row = row_length(length)
        replaced[id(norm)] = _two_steps(model, constants, norm, before.input[0], groups, row, length, shape, mul, after[0])
        gone |= {id(norm), id(after[0])} | ({id(mul)} if mul is not None else set())
        if len(readers[before.output[0]]) == 1:
            gone.add(id(before))
    nodes = [new for node in model.graph.node for new in replaced.get(id(node), [] if id(node) in gone else [node])]
    set_nodes(model.graph, nodes)
    return len(replaced)


def _two_steps(model, constants, norm, source, groups, row, length, shape, mul, after) -> list[onnx.NodeProto]:
    name, channels = norm.name or norm.output[0], shape[1]
    epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)

    def constant(what: str, values: np.ndarray) -> str:
        model.graph.initializer.append(numpy_helper.from_array(values, f"{name}:{what}"))
        return f"{name}:{what}"

    def ints(what: str, values: list[int]) -> str:
        return constant(what, np.array(values, np.int64))

    def node(op: str, inputs: list[str], what: str, **facts) -> str:
        nodes.append(helper.make_node(op, inputs, [f"{name}:{what}"], name=f"{name}_{what}", **facts))
        return nodes[-1].output[0]

    nodes: list[onnx.NodeProto] = []
    rows, axis3, axis2 = node("Reshape", [source, ints("rows_shape", [0, groups, length // row, row])], "rows"), ints("axis3", [3]), ints("axis2", [2])
    mean = node("ReduceMean", [node("ReduceMean", [rows, axis3], "row_means", keepdims=1), axis2], "mean", keepdims=1)
    centred = node("Sub", [rows, mean], "centred")
    squares = node("ReduceMean", [node("ReduceSumSquare", [centred, axis3], "row_squares", keepdims=1), axis2], "squares", keepdims=1)
    variance = node("Mul", [squares, constant("per_row", np.array(1.0 / row, np.float32))], "variance")
    deviation = node("Sqrt", [node("Add", [variance, constant("epsilon", np.array(epsilon, np.float32))], "variance_eps")], "deviation")
    weight = np.ones(channels, np.float32) if mul is None else _values(constants, mul.input[1])
    factor = node("Div", [constant("weight", weight.reshape(1, groups, channels // groups, 1)), deviation], "factor")  # [batch, groups, channels / groups, 1]
    factor = node("Reshape", [factor, ints("factor_shape", [0, channels] + [1] * (len(shape) - 2))], "channel_factor")
    back = node("Reshape", [centred, after.input[1]], "back")
    nodes.append(helper.make_node("Mul", [back, factor], list((mul or after).output), name=f"{name}_scaled"))
    return nodes


def _values(constants: dict, name: str) -> np.ndarray | None:
    tensor = constants.get(name)
    return None if tensor is None or tensor.data_location == onnx.TensorProto.EXTERNAL else numpy_helper.to_array(tensor)


def _ints(constants: dict, name: str) -> list[int] | None:
    values = _values(constants, name)
    return None if values is None else values.tolist()


def _all(constants: dict, name: str, wanted: float) -> bool:
    """Whether a constant is FP32, as what is put in the norm's place, and holds that number alone."""
    values = _values(constants, name)
    return values is not None and values.dtype == np.float32 and bool((values == wanted).all())
