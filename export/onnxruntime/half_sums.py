"""For ONNX Runtime on a 64-bit ARM only, so for every Jetson: sums of FP16 numbers in FP32, as every GPU and every x86 takes them.

A typed graph should not be judged by what ``SUMS_IN_FP16`` tells of, nor an engine be held against it. Some it refuses besides: ``AveragePool`` of opset 19.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from ...calibration.precision.fp32_rules import NORMS, SUMMING
from ...runtime.onnxruntime.optimisers import SUMS_IN_FP16
from ..graph.product_types import PRODUCTS
from ..graph.set_nodes import set_nodes

ADD_UP = {*PRODUCTS, *NORMS, *SUMMING, "AveragePool", "Softmax"}


def sum_in_fp32(model: onnx.ModelProto) -> int:
    """Put casts around every node that adds up FP16 numbers, in place; returns how many, which is 0 where sums are FP32 already.

    What such a node gives is rounded to FP16, as before. Nodes inside branches and loops, and tensors whose type the graph does not tell, stay.
    """
    if not SUMS_IN_FP16:
        return 0
    graph = onnx.shape_inference.infer_shapes(model).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    kinds |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    wide: dict[str, str] = {}
    done = 0
    for node in model.graph.node:
        halves = [name for name in node.input if kinds.get(name) == TensorProto.FLOAT16] if node.op_type in ADD_UP else []
        if not halves:
            nodes.append(node)
            continue
        for name in dict.fromkeys(halves):
            if name not in wide:
                wide[name] = f"{name}:fp32"
                nodes.append(helper.make_node("Cast", [name], [wide[name]], name=wide[name], to=TensorProto.FLOAT))
        sums = {name: f"{name}:sum" for name in node.output if name and kinds.get(name, TensorProto.FLOAT16) == TensorProto.FLOAT16}
        node.input[:] = [wide.get(name, name) for name in node.input]
        node.output[:] = [sums.get(name, name) for name in node.output]  # the statistics of a LayerNormalization are FP32 already
        nodes += [node, *(helper.make_node("Cast", [inner], [name], name=inner, to=TensorProto.FLOAT16) for name, inner in sums.items())]
        done += 1
    set_nodes(model.graph, nodes)
    return done
