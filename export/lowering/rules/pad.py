"""Pad of opset 18 and later may name the axes it pads; before, its pads list every axis."""

from __future__ import annotations

import numpy as np
import onnx

from .editor import Editor, attributes, without


def pad(node: onnx.NodeProto, editor: Editor) -> list[onnx.NodeProto] | None:
    """``Pad(x, pads, value, axes)`` -> ``Pad(x, pads of all axes, value)``."""
    if attributes(node).get("mode", "constant") == "wrap":
        raise editor.refusal(node, "it wraps around")
    axes = editor.axes(node, 3)
    made = without(node)
    del made.input[3:]
    if len(made.input) == 3 and not made.input[2]:
        del made.input[2]
    if axes is None:
        return [made]
    rank, pads = len(editor.shape(node.input[0], node)), editor.constant(node.input[1])
    if pads is None:
        raise editor.refusal(node, "its widths are computed", "export with constant padding")
    everywhere = np.zeros((2, rank), np.int64)
    everywhere[:, [axis % rank for axis in axes]] = pads.reshape(2, len(axes))
    made.input[1] = editor.steps(node).constant("pads", everywhere.reshape(-1), np.int64)
    return [made]
