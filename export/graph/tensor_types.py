"""What a graph tells of its tensors, with what ONNX's shape inference finds."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import helper

Sizes = tuple["int | str", ...]


def tensor_types(model: onnx.ModelProto) -> dict[str, onnx.TypeProto.Tensor]:
    """Element type and shape of every tensor, constants among them, as far as they can be told."""
    try:
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except onnx.shape_inference.InferenceError:  # of a graph made elsewhere: what it says itself has to do
        graph = model.graph
    found = {value.name: value.type.tensor_type for value in (*graph.value_info, *graph.input, *graph.output)}
    return found | {tensor.name: helper.make_tensor_type_proto(tensor.data_type, tensor.dims).tensor_type for tensor in model.graph.initializer}


def sizes_of(kind: onnx.TypeProto.Tensor | None) -> Sizes | None:
    """The sizes of a tensor: a number, the name of a free size, or "" where nothing is known; None if not even the rank is."""
    if kind is None or not kind.HasField("shape"):
        return None
    return tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in kind.shape.dim)


def is_per_channel(dims: Sequence[int], rank: int, channels: int) -> bool:
    """Whether a constant of these sizes is one number a channel where it meets a tensor [batch, channels, ...] of ``rank`` axes."""
    return (*[1] * (rank - len(dims)), *dims) == (1, channels, *[1] * (rank - 2))
