"""Split of opset 18 states the number of parts; before, the outputs are counted, and unequal parts need their sizes."""

from __future__ import annotations

import numpy as np
import onnx

from .editor import Editor, attributes, without


def split(node: onnx.NodeProto, editor: Editor) -> list[onnx.NodeProto] | None:
    """``Split(x, num_outputs)`` -> ``Split(x)`` for equal parts, ``Split(x, sizes)`` otherwise (the last part is the smaller one)."""
    facts = attributes(node)
    if "num_outputs" not in facts:
        return None
    made, parts = without(node, "num_outputs"), facts["num_outputs"]
    shape = editor.shape(node.input[0], node)
    size = shape[facts.get("axis", 0) % len(shape)]
    if size is None or size % parts == 0:
        return [made]
    most = -(-size // parts)
    del made.input[1:]
    made.input.append(editor.steps(node).constant("sizes", [most] * (parts - 1) + [size - most * (parts - 1)], np.int64))
    return [made]
