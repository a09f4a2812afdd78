"""Operators with which no graph can be a depth network that gives the same metres everywhere and each time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ...runtime.errors import InputError
from ..graph.inner_graphs import inner_graphs

RUNS = ("", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training", "ai.onnx.preview")  # and everything of ONNX Runtime's own
OWN = "com."  # com.microsoft, com.ms.internal.nhwc
CHANCE = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
AT_MOST_NAMED = 4


def refuse_unfit(model: onnx.ModelProto, file: str) -> None:
    """Look at the nodes on which the output depends.

    Raises:
        InputError: if some belong to a library that neither ONNX nor ONNX Runtime has, draw random numbers, or are in training mode.
    """
    nodes = list(_all_nodes(model.graph))
    strange = sorted({f"{node.domain}:{node.op_type}" for node in nodes if node.domain not in RUNS and not node.domain.startswith(OWN)})
    if strange:
        more = f" and {len(strange) - AT_MOST_NAMED} more" if len(strange) > AT_MOST_NAMED else ""
        raise InputError(
            f"{file} holds {', '.join(strange[:AT_MOST_NAMED])}{more}, operators of another library or functions of another opset",
            wanted="operators of ONNX or ONNX Runtime, or functions of the file itself in its own opset",
            fix="export the network without that library's own operators",
        )
    if drawn := next((node for node in nodes if node.op_type in CHANCE and node.domain in RUNS), None):
        raise InputError(
            f"{file} draws random numbers ({drawn.op_type}{f', node {drawn.name}' if drawn.name else ''})",
            wanted="a network that gives the same depth for the same photo each time",
            fix="export it in evaluation mode, or with the noise as a constant",
        )
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    if trained := next((node for node in nodes if _in_training(node, constants)), None):
        raise InputError(
            f"{file} was exported in training mode ({trained.op_type}{f', node {trained.name}' if trained.name else ''})",
            wanted="a network in evaluation mode: in training, depth depends on chance and on the other photos of a batch",
            fix="call model.eval() before the export",
        )


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for inner in inner_graphs(node):
            yield from _all_nodes(inner)


def _in_training(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> bool:
    told = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.op_type == "BatchNormalization":
        return bool(told.get("training_mode", 0)) or len([name for name in node.output if name]) > 1
    if node.op_type == "Dropout" and len(node.input) > 2 and node.input[2] in constants:
        return bool(np.any(numpy_helper.to_array(constants[node.input[2]]))) and _ratio(node, constants) > 0
    return False


def _ratio(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> float:
    return float(numpy_helper.to_array(constants[node.input[1]])) if node.input[1] in constants else 0.5
