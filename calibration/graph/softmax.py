"""For ONNX Runtime on a CPU only: a softmax over channels, written out.

Its kernel sums along the last axis alone, and turns any other tensor around and back. For 64 bins at 160 x 160 places that took a hundred times as
long as the sums (Xeon, one thread); in the form below EVP's whole stage of bins takes a sixth of its time. TensorRT has a kernel for it, so the bundle
keeps the one operator.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .stage_graph import opset_of

AXES_ARE_INPUTS = 18  # of reductions, from this opset on


def spread_softmax(model: onnx.ModelProto) -> int:
    """Replace every FP32 ``Softmax`` over another axis than the last, in place; returns how many.

    softmax(x) = exp(x - max x) / sum exp(x - max x). One whose rank or type the graph does not tell stays, and all do before opset 18.
    """
    if opset_of(model) < AXES_ARE_INPUTS or all(_axis(node) == -1 for node in model.graph.node if node.op_type == "Softmax"):
        return 0
    graph = onnx.shape_inference.infer_shapes(model).graph
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape") and value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    done = 0
    for place in reversed(range(len(model.graph.node))):
        node = model.graph.node[place]
        rank = ranks.get(node.input[0], 0) if node.op_type == "Softmax" else 0
        axis = _axis(node) % rank if rank else 0
        if not rank or axis == rank - 1:
            continue
        source, (target,) = node.input[0], node.output
        axes, greatest, below, powers, total = (f"{target}:{what}" for what in ("axes", "greatest", "below", "powers", "total"))
        model.graph.initializer.append(numpy_helper.from_array(np.array([axis], np.int64), axes))
        model.graph.node.pop(place)
        parts = (
            helper.make_node("ReduceMax", [source, axes], [greatest], name=greatest, keepdims=1),
            helper.make_node("Sub", [source, greatest], [below], name=below),
            helper.make_node("Exp", [below], [powers], name=powers),
            helper.make_node("ReduceSum", [powers, axes], [total], name=total, keepdims=1),
            helper.make_node("Div", [powers, total], [target], name=target),
        )
        for after, part in enumerate(parts):
            model.graph.node.insert(place + after, part)
        done += 1
    return done


def _axis(node: onnx.NodeProto) -> int:
    return next((a.i for a in node.attribute if a.name == "axis"), -1)
