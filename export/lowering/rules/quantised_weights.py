"""Q/DQ in the form that TensorRT 8 reads: three inputs each, and weights in FP32 that the graph itself quantises.

Its parser wants the zero point even where ONNX lets it out, and takes INT8 constants for activations or refuses them; a weight behind a pair of
``QuantizeLinear`` and ``DequantizeLinear`` is folded to INT8 when the engine is built.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from .editor import Editor, attributes, without


def quantised_weights(node: onnx.NodeProto, editor: Editor) -> list[onnx.NodeProto] | None:
    """``DequantizeLinear(INT8 constant)`` -> ``DequantizeLinear(QuantizeLinear(FP32 constant))``, and a zero point where there is none.

    Without one, ``QuantizeLinear`` stores UINT8 (or ``output_dtype``), and ``DequantizeLinear`` reads what its input is.
    """
    facts, scale = attributes(node), editor.constant(node.input[1])
    told = len(node.input) > 2 and bool(node.input[2])
    zero = editor.constant(node.input[2]) if told else None
    stored_kind = editor.dtype(node.input[0]) if node.op_type == "DequantizeLinear" else facts.get("output_dtype") or TensorProto.UINT8
    if scale is None or scale.dtype != np.float32:
        raise editor.refusal(node, "its scale is not a constant in float32")
    if told and zero is None:
        raise editor.refusal(node, "its zero point is computed", "calibrate with symmetric INT8")
    if (zero.dtype != np.int8 or zero.any()) if told else stored_kind != TensorProto.INT8:
        raise editor.refusal(node, "it quantises asymmetrically, or not to INT8", "calibrate with symmetric INT8")
    if facts.get("block_size"):
        raise editor.refusal(node, "it quantises block by block")
    if not (scale > 0).all():
        raise editor.refusal(node, "one of its scales is zero")
    steps = editor.steps(node)
    made = without(node, "saturate", "block_size", "output_dtype")
    zero_name = node.input[2] if told else steps.constant("zero", np.zeros(scale.shape), np.int8)
    del made.input[2:]
    made.input.append(zero_name)
    stored = editor.constant(node.input[0]) if node.op_type == "DequantizeLinear" else None
    if stored is None:
        return [made]
    column = [1] * stored.ndim
    if scale.size > 1:
        column[facts.get("axis", 1)] = -1
    wide = stored.astype(np.float32) * (scale.reshape(column) if scale.size > 1 else scale.reshape(()))
    kept = {"axis": facts["axis"]} if "axis" in facts else {}
    made.input[0] = steps.add("QuantizeLinear", [steps.constant("wide", wide), node.input[1], zero_name], "quantised", **kept)
    return [*steps.nodes, made]
