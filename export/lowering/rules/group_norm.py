"""GroupNormalization (opset 18 and 21), which TensorRT 8.5 does not know."""

from __future__ import annotations

import numpy as np
import onnx

from .editor import Editor, attributes
from .statistics import normalise_groups


def group_norm(node: onnx.NodeProto, editor: Editor) -> list[onnx.NodeProto] | None:
    """``GroupNormalization(x, scale, shift)`` -> mean and variance of every group, then scale and shift.

    Scale and shift are one number a group in opset 18, and one a channel from opset 21.
    """
    facts, shape = attributes(node), editor.shape(node.input[0], node)
    groups, (channels, *spatial) = facts["num_groups"], shape[1:]
    if channels is None or None in spatial:
        raise editor.refusal(node, f"its input has the free sizes {shape}", "export with a fixed picture size")
    factors = [editor.constant(name) for name in node.input[1:3]]
    if any(values is None for values in factors):
        raise editor.refusal(node, "its scale or shift is computed")
    factors = [np.repeat(values, channels // groups) if values.size == groups else values for values in factors]
    steps = editor.steps(node, fp32=True)
    length = channels // groups * int(np.prod(spatial, dtype=np.int64))
    normed = normalise_groups(steps, node.input[0], groups, length, facts.get("epsilon", 1e-5))
    back = steps.add("Reshape", [normed, steps.constant("back_shape", [0, channels, *spatial], np.int64)], "back")
    column = (1, channels, *[1] * len(spatial))
    scaled = steps.add("Mul", [back, steps.constant("scale", factors[0].reshape(column))], "scaled")
    return steps.finish("Add", [scaled, steps.constant("shift", factors[1].reshape(column))], "shifted")
