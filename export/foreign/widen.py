"""A graph with FP16 or BF16 numbers as the FP32 graph that a bundle holds: what computes in fewer bits is decided when a plan is built."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, numpy_helper

from ..graph.inner_graphs import all_graphs
from ..graph.onnx_weights import read_array

HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "stash_type", "precision", "softmax_precision")  # whose whole number names a type


def widen(model: onnx.ModelProto) -> bool:
    """Make every tensor of FP16 or BF16 one of FP32, in place; weights of the outer graph follow where they are written (``widened``), one at a
    time. Functions must be inlined and weights of inner graphs lie in them, as ``open_up`` leaves them.

    Returns:
        whether there was any.
    """
    found = any(tensor.data_type in HALF for tensor in model.graph.initializer)
    for graph in all_graphs(model.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            found |= _widen_type(value.type)
        tensors = [] if graph is model.graph else list(graph.initializer)
        for attribute in (attribute for node in graph.node for attribute in node.attribute):
            if attribute.type == AttributeProto.INT and attribute.name in TYPE_ATTRIBUTES and attribute.i in HALF:
                attribute.i, found = TensorProto.FLOAT, True
            tensors += [attribute.t] if attribute.type == AttributeProto.TENSOR else attribute.tensors
        for tensor in (tensor for tensor in tensors if tensor.data_type in HALF):
            tensor.CopyFrom(numpy_helper.from_array(widened(read_array(tensor, Path()), tensor.data_type), tensor.name))
            found = True
    return found


def widened(values: np.ndarray, kind: int) -> np.ndarray:
    """The values of a tensor, in FP32 if ``kind``, the type it has in its file, is FP16 or BF16."""
    return values.astype(np.float32) if kind in HALF else values


def _widen_type(kind: onnx.TypeProto) -> bool:
    which = kind.WhichOneof("value")
    if which == "tensor_type":
        if kind.tensor_type.elem_type not in HALF:
            return False
        kind.tensor_type.elem_type = TensorProto.FLOAT
        return True
    return which in ("sequence_type", "optional_type") and _widen_type(getattr(kind, which).elem_type)
