"""Gelu (opset 20), Mish (opset 18) and Clip of whole numbers by the operators they are made of."""

from __future__ import annotations

import math

import onnx
from onnx import TensorProto

from .editor import Editor, attributes


def gelu(node: onnx.NodeProto, editor: Editor) -> list[onnx.NodeProto] | None:
    """``Gelu(x)`` -> x / 2 * (1 + erf(x / sqrt 2)), or its form with tanh: x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))."""
    steps, x = editor.steps(node), node.input[0]
    if attributes(node).get("approximate", "none") == "tanh":
        cubed = steps.add("Mul", [steps.add("Mul", [x, x], "squared"), x], "cubed")
        bent = steps.add("Add", [x, steps.add("Mul", [cubed, steps.constant("cubic", 0.044715)], "bend")], "bent")
        curve = steps.add("Tanh", [steps.add("Mul", [bent, steps.constant("root", math.sqrt(2 / math.pi))], "slope")], "curve")
    else:
        curve = steps.add("Erf", [steps.add("Mul", [x, steps.constant("root", math.sqrt(0.5))], "slope")], "curve")
    raised = steps.add("Add", [curve, steps.constant("one", 1.0)], "raised")
    return steps.finish("Mul", [steps.add("Mul", [x, steps.constant("half", 0.5)], "halved"), raised], "product")


def mish(node: onnx.NodeProto, editor: Editor) -> list[onnx.NodeProto] | None:
    """``Mish(x)`` -> x * tanh(softplus(x))."""
    steps = editor.steps(node)
    return steps.finish("Mul", [node.input[0], steps.add("Tanh", [steps.add("Softplus", [node.input[0]], "softplus")], "curve")], "product")


def integer_clip(node: onnx.NodeProto, editor: Editor) -> list[onnx.NodeProto] | None:
    """Clip of whole numbers -> ``Min(Max(x, low), high)``: TensorRT 8 clips floating point only. A bound that is not given is left out."""
    if editor.dtype(node.input[0]) not in (TensorProto.INT32, TensorProto.INT64):
        return None
    bounds = [(op, name) for op, name in zip(("Max", "Min"), node.input[1:3], strict=False) if name]
    if not bounds:
        return None
    steps, current = editor.steps(node), node.input[0]
    for op, name in bounds[:-1]:
        current = steps.add(op, [current, name], op.lower())
    op, name = bounds[-1]
    return steps.finish(op, [current, name], op.lower())
