"""Tensors that the graphs inside a node (branches, bodies of loops) read from the graph around it by name."""

from __future__ import annotations

from collections.abc import Callable

import onnx


def has_subgraph(node: onnx.NodeProto) -> bool:
    """Whether the node holds graphs of its own: If, Loop, Scan."""
    return any(attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for attribute in node.attribute)


def reconnect(node: onnx.NodeProto, names: set[str], read: Callable[[str], str], hidden: frozenset[str] = frozenset()) -> None:
    """Let the graphs inside a node read other tensors, in place.

    Args:
        node: any node; one without graphs of its own stays as it is.
        names: those tensors of the graph around it that are to be replaced.
        read: name -> name of the tensor to read instead; called once for each use.
        hidden: names that mean something else there, because a graph in between makes them itself.
    """
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *([attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else [])):
            own = hidden | {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
            own |= {name for inner in graph.node for name in inner.output}
            for inner in graph.node:
                for index, name in enumerate(inner.input):
                    if name in names and name not in own:
                        inner.input[index] = read(name)
                reconnect(inner, names, read, own)
            for value in graph.output:
                if value.name in names and value.name not in own:
                    value.name = read(value.name)
