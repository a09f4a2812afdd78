"""The graphs that a node of an ONNX graph holds, and names that reach into them."""

from __future__ import annotations

from collections.abc import Iterator

import onnx


def inner_graphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """Branches of an ``If`` and bodies of loops; empty for most nodes."""
    found = [attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]
    return found + [graph for attribute in node.attribute for graph in attribute.graphs]


def all_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and those inside its nodes, the outer ones first."""
    yield graph
    for node in graph.node:
        for inner in inner_graphs(node):
            yield from all_graphs(inner)


def all_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes of a graph and of those inside its nodes."""
    return [node for one in all_graphs(graph) for node in one.node]


def rename(graph: onnx.GraphProto, before: str, after: str) -> None:
    """Give a tensor of the outer graph another name wherever a node makes or reads it; graph inputs, outputs and initialisers keep theirs."""
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == before:
                    names[index] = after
        for inner in inner_graphs(node):
            if before not in own_names(inner):
                rename(inner, before, after)
                for value in inner.output:
                    if value.name == before:
                        value.name = after


def own_names(graph: onnx.GraphProto) -> set[str]:
    """Names that stand for tensors of this graph itself, not of a graph around it or inside its nodes."""
    tensors = (*graph.input, *graph.initializer)
    return {tensor.name for tensor in tensors} | {name for node in graph.node for name in node.output if name}


def all_names(graph: onnx.GraphProto) -> set[str]:
    """Names of the tensors of a graph and of those inside its nodes."""
    return set().union(*map(own_names, all_graphs(graph)))
