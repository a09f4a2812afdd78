"""Attributes newer than opset 17 that hold their default, and so may be dropped."""

from __future__ import annotations

import onnx

from .editor import Editor, attributes, without

IDLE = {("Cast", "saturate"): 1, ("AveragePool", "dilations"): 1, ("ScatterElements", "reduction"): "none", ("ScatterND", "reduction"): "none"}


def newer_attributes(node: onnx.NodeProto, editor: Editor) -> list[onnx.NodeProto] | None:
    """The node without them."""
    found = [(name, value) for name, value in attributes(node).items() if (node.op_type, name) in IDLE]
    for name, value in found:
        values = value if isinstance(value, list | tuple) else [value]
        if any(one != IDLE[node.op_type, name] for one in values):
            raise editor.refusal(node, f"its attribute {name} is {value}")
    return [without(node, *[name for name, _ in found])] if found else None
