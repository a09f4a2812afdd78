"""The graphs that a node of an ONNX graph holds."""

from __future__ import annotations

import onnx


def inner_graphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """Branches of an ``If`` and bodies of loops; empty for most nodes."""
    found = [attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]
    return found + [graph for attribute in node.attribute for graph in attribute.graphs]
