"""INT8 weights and zero points that no two nodes share, as ``optimisers.EXACT_INT8`` of ONNX Runtime wants them: it refuses others (seen in 1.32)."""

from __future__ import annotations

from collections import Counter

import onnx
from onnx import TensorProto

from ..graph.set_nodes import set_nodes


def own_int8_constants(model: onnx.ModelProto) -> int:
    """Give every node that reads an INT8 initialiser one of its own, and every reader of a dequantised one its own DequantizeLinear, in place;
    returns how many were made. The numbers stay as they are."""
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.INT8}
    if not stored:
        return 0
    dequantised = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in stored}
    read = Counter(value.name for value in graph.output)
    nodes: list[onnx.NodeProto] = []
    made = 0

    def add(node: onnx.NodeProto) -> None:
        nonlocal made
        for place, name in enumerate(node.input):
            if name not in stored and name not in dequantised:
                continue
            if read[name]:
                own = node.input[place] = f"{name}:own{read[name]}"
                made += 1
                if name in stored:
                    graph.initializer.add().CopyFrom(stored[name])
                    graph.initializer[-1].name = own
                else:
                    copy = onnx.NodeProto.FromString(dequantised[name].SerializeToString())
                    copy.output[0], copy.name = own, f"{copy.name}:own{read[name]}" if copy.name else ""
                    add(copy)
            read[name] += 1
        nodes.append(node)

    for node in list(graph.node):
        add(node)
    set_nodes(graph, nodes)
    return made
