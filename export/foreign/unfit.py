"""Operators with which no graph can be a depth network that gives the same metres everywhere and each time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from ...runtime.errors import InputError
from ..graph.inner_graphs import all_nodes
from ..graph.onnx_weights import read_array

RUNS = ("", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training", "ai.onnx.preview")  # and everything of ONNX Runtime's own
OWN = "com."  # com.microsoft, com.ms.internal.nhwc
CHANCE = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
AT_MOST_NAMED = 4


def refuse_unfit(model: onnx.ModelProto, path: Path) -> None:
    """Look at the nodes on which the output depends.

    Args:
        path: of the file that the graph was read from; weights outside the graph lie beside it.

    Raises:
        InputError: if some belong to a library that neither ONNX nor ONNX Runtime has, draw random numbers, or are in training mode.
    """
    file, nodes = path.name, all_nodes(model.graph)
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
    if trained := next((node for node in nodes if _in_training(node, constants, path.parent)), None):
        raise InputError(
            f"{file} was exported in training mode ({trained.op_type}{f', node {trained.name}' if trained.name else ''})",
            wanted="a network in evaluation mode: in training, depth depends on chance and on the other photos of a batch",
            fix="call model.eval() before the export",
        )


def _in_training(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto], folder: Path) -> bool:
    if node.op_type == "BatchNormalization":
        return any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute) or len([name for name in node.output if name]) > 1
    if node.op_type == "Dropout" and len(node.input) > 2 and node.input[2] in constants:
        ratio = read_array(constants[node.input[1]], folder) if node.input[1] in constants else np.float32(0.5)
        return bool(np.any(read_array(constants[node.input[2]], folder)) and np.any(ratio > 0))
    return False
