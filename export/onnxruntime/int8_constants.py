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
    nodes, made = _own_dequantising(graph, stored)
    read = Counter(value.name for value in graph.output)
    for node in nodes:
        for place, name in enumerate(node.input):
            if name in stored:
                if read[name]:
                    copy = graph.initializer.add()
                    copy.CopyFrom(stored[name])
                    node.input[place] = copy.name = f"{name}:own{read[name]}"
                    made += 1
                read[name] += 1
    set_nodes(graph, nodes)
    return made


def _own_dequantising(graph: onnx.GraphProto, stored: dict[str, onnx.TensorProto]) -> tuple[list[onnx.NodeProto], int]:
    """The nodes, with a copy of each DequantizeLinear of an initialiser for every reader after the first."""
    weights = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in stored}
    read = Counter(value.name for value in graph.output)
    nodes: list[onnx.NodeProto] = []
    made = 0
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name in weights:
                if read[name]:
                    copy = onnx.NodeProto.FromString(weights[name].SerializeToString())
                    node.input[place] = copy.output[0] = f"{name}:own{read[name]}"
                    copy.name = f"{copy.name}:own{read[name]}" if copy.name else ""
                    nodes.append(copy)
                    made += 1
                read[name] += 1
        nodes.append(node)
    return nodes, made
