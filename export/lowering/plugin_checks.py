"""Check a node of domain ``fathom`` against what its TensorRT plugin takes: the fields of its creator, its number of tensors, their types and shapes.

The parser looks a plugin up by the name of an operator it does not know, in version 1 and the empty namespace unless attributes say otherwise, and
hands it those attributes that are fields of the creator, each in the type it has in the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx
from onnx import AttributeProto, TensorProto

from ...calibration.precision.operator_types import OUR_WIDE_INPUTS

FLOAT, INT = AttributeProto.FLOAT, AttributeProto.INT
TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16)
BINS, MOST_TOKENS, MOST_WIDTH, MOST_CHANNELS_OF_A_GROUP = 64, 128, 256, 256  # as in trt_plugins/csrc
Sizes = Sequence["int | None"]


@dataclass(frozen=True)
class Plugin:
    """One plugin.

    Args:
        fields: of its creator -> type of the attribute.
        outputs: how many tensors it makes.
        misfit: from the sizes of the three inputs (None where one is free) and the attributes, what is wrong with them, or nothing.
    """

    fields: dict[str, int]
    outputs: int
    misfit: Callable[[Sequence[Sizes], dict[str, float]], str]


def _differ(*sizes: int | None) -> bool:
    return len({size for size in sizes if size is not None}) > 1


def _bins(inputs: Sequence[Sizes], _: dict[str, float]) -> str:
    shape, centers, attractors = inputs
    if any(len(sizes) != 4 for sizes in inputs):
        return "not all inputs have rank 4"
    if _differ(shape[1], 4) or _differ(centers[1], BINS):
        return f"it reads {shape[1]} numbers a pixel and {centers[1]} centers, wanted 4 and {BINS}"
    grows = all(a is None or b is None or a <= b for k in (2, 3) for a, b in ((centers[k], attractors[k]), (attractors[k], shape[k])))
    return "" if grows else "its maps do not grow from centers to attractors to shape"


def _norm(inputs: Sequence[Sizes], attributes: dict[str, float]) -> str:
    x, groups = inputs[0], int(attributes.get("groups", 32))
    if len(x) < 3:
        return f"its input has rank {len(x)}, wanted 3 at least"
    if x[1] is not None and (x[1] % groups or x[1] // groups > MOST_CHANNELS_OF_A_GROUP):
        return f"{x[1]} channels in {groups} groups, wanted at most {MOST_CHANNELS_OF_A_GROUP} in each and no rest"
    return ""


def _attention(inputs: Sequence[Sizes], _: dict[str, float]) -> str:
    query, keys, values = inputs
    if any(len(sizes) != 4 for sizes in inputs):
        return "not all inputs have rank 4"
    if _differ(query[1], keys[1], values[1]) or _differ(query[3], keys[2], values[3]) or _differ(keys[3], values[2]) or _differ(keys[0], values[0]):
        return "heads, widths or tokens of query, keys and values differ"
    if keys[0] not in (1, query[0]):
        return f"its keys have a batch of {keys[0] or 'any size'}, wanted 1 or the query's, {query[0] or 'any size'}"
    for size, most, what in ((keys[3], MOST_TOKENS, "tokens"), (query[3], MOST_WIDTH, "numbers a head")):
        if size is not None and size > most:
            return f"it has {size} {what}, wanted {most} at most"
    return ""


PLUGINS = {
    "BinsExpectation": Plugin({"alpha": FLOAT, "least_temperature": FLOAT, "greatest_temperature": FLOAT}, 1, _bins),
    "GroupNormSilu": Plugin({"groups": INT, "epsilon": FLOAT}, 1, _norm),
    "CrossAttention": Plugin({"scale": FLOAT}, 2, _attention),
}


def plugin_problem(node: onnx.NodeProto, kinds: Sequence[int], sizes: Sequence[Sizes]) -> str:
    """Why the plugin of a node would refuse it; empty if it takes it.

    Args:
        node: of domain ``fathom``.
        kinds: ONNX element types of its inputs.
        sizes: of its inputs; None where a size is free.
    """
    plugin = PLUGINS.get(node.op_type)
    if plugin is None:
        return f"there is no plugin of that name, only {', '.join(PLUGINS)}"
    if len(node.input) != 3 or not all(node.input) or len(node.output) != plugin.outputs or not all(node.output):
        return f"it has {len(node.input)} inputs and {len(node.output)} outputs, wanted 3 and {plugin.outputs}"
    for attribute in node.attribute:
        if plugin.fields.get(attribute.name) != attribute.type:
            return f"the plugin has no field {attribute.name} of type {AttributeProto.AttributeType.Name(attribute.type)}"
    wide = OUR_WIDE_INPUTS[node.op_type]
    wrong = [name for place, (name, kind) in enumerate(zip(node.input, kinds, strict=True)) if kind not in (TYPES[:1] if place in wide else TYPES)]
    if wrong:
        return f"the tensor {wrong[0]} is neither FP32 nor a type that the plugin takes"
    return plugin.misfit(sizes, {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute})
