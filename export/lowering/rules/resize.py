"""Resize of opsets 18 and 19 in the form of opset 13: every axis has a scale or a size, nothing is antialiased."""

from __future__ import annotations

import numpy as np
import onnx

from .editor import Editor, attributes, without

NEWER = ("antialias", "axes", "keep_aspect_ratio_policy")


def resize(node: onnx.NodeProto, editor: Editor) -> list[onnx.NodeProto] | None:
    """``Resize(x, roi, scales, sizes)`` without what opset 18 added; a list of axes becomes scales or sizes for all of them."""
    facts = attributes(node)
    if facts.get("antialias"):
        raise editor.refusal(node, "it is antialiased", "resize outside the graph")
    if facts.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise editor.refusal(node, f"it keeps the aspect ratio by {facts['keep_aspect_ratio_policy']}", "export with the sizes themselves")
    if facts.get("coordinate_transformation_mode", "half_pixel") in ("half_pixel_symmetric", "tf_crop_and_resize"):
        raise editor.refusal(node, f"its coordinates are {facts['coordinate_transformation_mode']}")
    made = without(node, *NEWER)
    if facts.get("axes") is None:
        return [made]
    shape = editor.shape(node.input[0], node)
    for place, everywhere, kind in ((2, [1.0] * len(shape), np.float32), (3, list(shape), np.int64)):
        if len(node.input) <= place or not node.input[place]:
            continue
        values = editor.constant(node.input[place])
        if values is None:
            raise editor.refusal(node, "its sizes for some of the axes are computed", "export with constant sizes")
        for axis, value in zip(facts["axes"], values, strict=True):
            everywhere[axis % len(shape)] = value.item()
        if place == 3 and None in everywhere:  # the batch is free: say it with scales, of which the batch's is 1
            scales = [1.0 if size is None or new is None else _scale(size, new) for size, new in zip(shape, everywhere, strict=True)]
            if any(size is None and axis in {a % len(shape) for a in facts["axes"]} for axis, size in enumerate(shape)):
                raise editor.refusal(node, "it resizes a free dimension", "export with a fixed picture size")
            del made.input[2:]
            made.input.append(editor.steps(node).constant("scales", scales))
        else:
            made.input[place] = editor.steps(node).constant("scales" if place == 2 else "sizes", everywhere, kind)
    return [made]


def _scale(size: int, new: int) -> np.float32:
    """The number that makes one size of the other: the new size is the product rounded down, so it must not be below the quotient."""
    scale = np.float32(new / size)
    return scale if float(scale) * size >= new else np.nextafter(scale, np.float32(np.inf))
