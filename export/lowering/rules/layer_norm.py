"""LayerNormalization, which TensorRT 8.5 does not know: mean and variance over the last axes, scale, shift."""

from __future__ import annotations

import onnx

from .editor import Editor, attributes
from .statistics import normalise


def layer_norm(node: onnx.NodeProto, editor: Editor) -> list[onnx.NodeProto] | None:
    """``LayerNormalization(x, scale, shift)`` -> mean, centre, variance, division, ``Mul``, ``Add``, all in FP32."""
    if any(editor.readers.get(name) for name in node.output[1:]):
        raise editor.refusal(node, "its mean or deviation is read by other nodes")
    facts, rank = attributes(node), len(editor.shape(node.input[0], node))
    axis = facts.get("axis", -1) % rank
    steps = editor.steps(node, fp32=True)
    normed = normalise(steps, node.input[0], list(range(axis, rank)), facts.get("epsilon", 1e-5))
    if len(node.input) < 3 or not node.input[2]:
        return steps.finish("Mul", [normed, node.input[1]], "scaled")
    return steps.finish("Add", [steps.add("Mul", [normed, node.input[1]], "scaled"), node.input[2]], "shifted")
