"""Replacing the nodes of an ONNX graph."""

from __future__ import annotations

from collections.abc import Iterable

import onnx


def set_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Make ``nodes`` the nodes of a graph, in running order; they may be nodes of this graph, which are copied before it is cleared."""
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
