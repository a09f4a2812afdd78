"""Shape with ``start`` and ``end`` (opset 15): the parsers of TensorRT 8.5 and 8.6 read the operator and pass over both, without a word."""

from __future__ import annotations

import numpy as np
import onnx

from .editor import Editor, attributes


def shape_range(node: onnx.NodeProto, editor: Editor) -> list[onnx.NodeProto] | None:
    """``Shape(x, start, end)`` -> ``Slice(Shape(x))``."""
    facts, rank = attributes(node), len(editor.shape(node.input[0], node))
    start, end = (min(max(value + rank if value < 0 else value, 0), rank) for value in (facts.get("start", 0), facts.get("end", rank)))
    steps = editor.steps(node)
    if (start, end) == (0, rank):
        return steps.finish("Shape", [node.input[0]], "whole")
    whole = steps.add("Shape", [node.input[0]], "whole")
    bounds = [steps.constant(what, [value], np.int64) for what, value in (("start", start), ("end", end), ("axes", 0), ("steps", 1))]
    return steps.finish("Slice", [whole, *bounds], "part")
