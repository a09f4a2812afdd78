"""Reductions take their axes as an input from opset 18 on; ReduceSum did before, and keeps it."""

from __future__ import annotations

import onnx

from .editor import Editor, attributes, without

REDUCTIONS = ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare")


def reduce_axes(node: onnx.NodeProto, editor: Editor) -> list[onnx.NodeProto] | None:
    """``ReduceMean(x, axes)`` -> ``ReduceMean(x)`` with the attribute ``axes``."""
    axes, idle = editor.axes(node, 1), attributes(node).get("noop_with_empty_axes", 0)
    made = without(node, "noop_with_empty_axes")
    del made.input[1:]
    if axes:
        made.attribute.append(onnx.helper.make_attribute("axes", axes))
    elif idle:
        return editor.steps(node).finish("Identity", [node.input[0]], "same")
    return [made]
