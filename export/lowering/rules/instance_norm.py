"""InstanceNormalization, which TensorRT 8.5 hands to a plugin that needs cuDNN and ranks of 3 to 5: written out like the others."""

from __future__ import annotations

import numpy as np
import onnx

from .editor import Editor, attributes
from .statistics import normalise_groups


def instance_norm(node: onnx.NodeProto, editor: Editor) -> list[onnx.NodeProto] | None:
    """``InstanceNormalization(x, scale, shift)`` -> mean and variance of every channel, then scale and shift where they do something."""
    scale, shift = editor.constant(node.input[1]), editor.constant(node.input[2])
    if scale is None or shift is None:
        raise editor.refusal(node, "its scale or shift is computed")
    shape = editor.shape(node.input[0], node)
    channels, spatial = scale.size, shape[2:]
    if None in spatial:
        raise editor.refusal(node, f"its input has the free sizes {shape}", "export with a fixed picture size")
    length = int(np.prod(spatial, dtype=np.int64))
    steps = editor.steps(node, fp32=True)
    normed = normalise_groups(steps, node.input[0], channels, length, attributes(node).get("epsilon", 1e-5))
    back = steps.constant("back_shape", [0, channels, *spatial], np.int64)
    if (scale == 1).all() and (shift == 0).all():
        return steps.finish("Reshape", [normed, back], "back")
    column = (1, channels, 1, 1)
    scaled = steps.add("Mul", [normed, steps.constant("scale", scale.reshape(column))], "scaled")
    shifted = steps.add("Add", [scaled, steps.constant("shift", shift.reshape(column))], "shifted")
    return steps.finish("Reshape", [shifted, back], "back")
