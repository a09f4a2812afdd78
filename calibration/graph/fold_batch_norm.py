"""Batch norms that follow a convolution become part of it, before its weights are quantised."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from .stage_graph import StageGraph


def fold_batch_norms(graph: StageGraph) -> int:
    """Fold every inference-mode BatchNormalization into the Conv or ConvTranspose it follows, in place; returns how many.

    ``y = g (Wx + b - m) / sqrt(v + eps) + h`` is a convolution with weights ``W g / sqrt(v + eps)`` (Ioffe and Szegedy 2015). Left
    apart, the norm would stand between an INT8 convolution and its activation and break their fusion.
    """
    gone: set[str] = set()
    for norm in graph.model.graph.node:
        if norm.op_type != "BatchNormalization" or any(name not in graph.constants for name in norm.input[1:5]) or len([o for o in norm.output if o]) > 1:
            continue
        conv = graph.maker.get(norm.input[0])
        if conv is None or conv.op_type not in ("Conv", "ConvTranspose") or len(graph.readers[norm.input[0]]) != 1 or norm.input[0] in graph.outputs:
            continue
        facts = {a.name: helper.get_attribute_value(a) for a in [*norm.attribute, *conv.attribute]}
        weight = conv.input[1]
        if weight not in graph.constants or len(graph.readers[weight]) != 1 or (conv.op_type == "ConvTranspose" and facts.get("group", 1) != 1):
            continue
        gain, shift, mean, variance = (np.asarray(graph.array(name), np.float64) for name in norm.input[1:5])
        factor = gain / np.sqrt(variance + facts.get("epsilon", 1e-5))
        bias = np.asarray(graph.array(conv.input[2]), np.float64) if len(conv.input) > 2 and conv.input[2] else np.zeros_like(mean)
        values = graph.array(weight)
        axis = 0 if conv.op_type == "Conv" else 1
        shape = [-1 if i == axis else 1 for i in range(values.ndim)]
        new = f"{weight}:folded"

        def folded(values=values, factor=factor, shape=tuple(shape)):
            return (np.asarray(values, np.float64) * factor.reshape(shape)).astype(np.float32)

        graph.add_made_constant(new, TensorProto.FLOAT, tuple(values.shape), folded)
        extra = graph.add_constant(f"{new}_bias", ((bias - mean) * factor + shift).astype(np.float32))
        inputs = [conv.input[0], new, extra]
        del conv.input[:]
        conv.input.extend(inputs)
        conv.output[0] = norm.output[0]
        gone.add(norm.name)
    if gone:
        graph.replace_nodes([node for node in graph.model.graph.node if node.name not in gone])
        graph.drop_unused_constants()
    return len(gone)
