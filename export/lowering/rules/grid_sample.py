"""GridSample of opset 20 calls its modes linear and cubic; opset 16 calls them bilinear and bicubic."""

from __future__ import annotations

import onnx

from .editor import Editor, attributes, without

OLD_NAMES = {"linear": "bilinear", "cubic": "bicubic"}


def grid_sample(node: onnx.NodeProto, editor: Editor) -> list[onnx.NodeProto] | None:
    """The mode by its older name."""
    mode = attributes(node).get("mode", "linear")
    made = without(node, "mode")
    made.attribute.append(onnx.helper.make_attribute("mode", OLD_NAMES.get(mode, mode)))
    return [made]
