"""What is rewritten for the parsers of TensorRT 8.5 and 8.6, as a visible list: operator -> rule."""

from __future__ import annotations

from collections.abc import Callable

import onnx

from .activations import gelu, integer_clip, mish
from .editor import Editor
from .grid_sample import grid_sample
from .group_norm import group_norm
from .instance_norm import instance_norm
from .layer_norm import layer_norm
from .newer_attributes import newer_attributes
from .pad import pad
from .quantised_weights import quantised_weights
from .reduce_axes import REDUCTIONS, reduce_axes
from .resize import resize
from .shape_range import shape_range
from .split import split

Rule = Callable[[onnx.NodeProto, Editor], "list[onnx.NodeProto] | None"]  # what stands in the node's place; None leaves it

RULES: dict[str, Rule] = {
    "LayerNormalization": layer_norm,
    "InstanceNormalization": instance_norm,
    "GroupNormalization": group_norm,
    "Gelu": gelu,
    "Mish": mish,
    **dict.fromkeys(REDUCTIONS, reduce_axes),
    "Clip": integer_clip,
    "Resize": resize,
    "Pad": pad,
    "Split": split,
    "Shape": shape_range,
    "GridSample": grid_sample,
    "QuantizeLinear": quantised_weights,
    "DequantizeLinear": quantised_weights,
    **dict.fromkeys(("Cast", "AveragePool", "ScatterElements", "ScatterND"), newer_attributes),
}
