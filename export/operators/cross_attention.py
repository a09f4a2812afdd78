"""The rule for ``fathom.CrossAttention``: attention whose probabilities are also averaged over the heads becomes one node."""

from __future__ import annotations

import onnx
from onnx import helper

from .region import Surroundings, replace


def fuse_cross_attention(model: onnx.ModelProto, types: dict[str, onnx.TypeProto.Tensor]) -> int:
    """Replace every match that the kernel takes, in place; returns how many. ``types`` are those of ``tensor_types``.

    ``MatMul(query, keys)``, Softmax over the last axis, and its two readers: ``MatMul(probabilities, values)`` and the ReduceMean over
    axis 1. Attention whose map is not collected stays as it is: compilers have fused kernels for that.
    """
    done = 0
    for output in [node.output[0] for node in model.graph.node if node.op_type == "Softmax"]:
        around = Surroundings(model, types)
        softmax = around.maker[output]
        scores = around.made_by(softmax.input[0], "MatMul")
        attended, mean = around.read_by(output, "MatMul"), around.read_by(output, "ReduceMean")
        if scores is None or attended is None or mean is None or attended.input[0] != output or _number(softmax, "axis", -1) not in (-1, 3):
            continue
        axes = around.constant(mean.input[1]) if len(mean.input) > 1 else None
        if axes is None or axes.tolist() != [1] or _number(mean, "keepdims", 1):
            continue
        inputs, ends = [*scores.input, attended.input[1]], [attended.output[0], mean.output[0]]
        region, node = around.region(ends, inputs), around.operator("CrossAttention", inputs, ends, {"scale": 1.0})
        if region is not None and node is not None and len(region) == 4 and region.index(attended) < region.index(mean):
            # where the first end was: its readers come later, and all three inputs are there
            replace(model, [scores, softmax, mean, attended], node)
            done += 1
    return done


def _number(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((helper.get_attribute_value(attribute) for attribute in node.attribute if attribute.name == name), default)
