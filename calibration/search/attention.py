"""Attention as compilers see it: two matrix products around a softmax whose scores never leave the chip."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from ..graph.stage_graph import StageGraph

PASSED = ("Mul", "Div", "Add", "Sub", "Cast", "Where", "Softmax", "Reshape", "Transpose", "Identity")
MOST_STEPS = 12


@dataclass(frozen=True)
class Attention:
    """One attention that a single kernel can compute.

    Args:
        products: names of the product of queries and keys, and of the product of weights and values.
        scores: tensors between the two, which need no memory.
    """

    products: tuple[str, str]
    scores: frozenset[str]


def find_attention(graph: StageGraph) -> tuple[Attention, ...]:
    """Every attention of a stage whose scores nobody else reads: a map that the stage puts out, or that another node looks at, has to be written."""
    found = []
    for node in graph.model.graph.node:
        if node.op_type == "MatMul" and not _constant(graph, node) and (whole := _scores(graph, node)) is not None:
            found.append(whole)
    return tuple(found)


def _constant(graph: StageGraph, node: onnx.NodeProto) -> bool:
    return any(name in graph.constants for name in node.input[:2])


def _scores(graph: StageGraph, last: onnx.NodeProto) -> Attention | None:
    """The attention that ends in a product, walking back from its weights to the product that made the scores."""
    tensor, reader, between, softmax = last.input[0], last, set(), False
    for _ in range(MOST_STEPS):
        maker = graph.maker.get(tensor)
        if maker is None or tensor in graph.outputs or {node.name for node, _ in graph.readers[tensor]} != {reader.name}:
            return None
        between.add(tensor)
        if maker.op_type == "MatMul":
            return Attention((maker.name, last.name), frozenset(between)) if softmax and not _constant(graph, maker) else None
        if maker.op_type not in PASSED:
            return None
        softmax |= maker.op_type == "Softmax"
        flowing = [name for name in maker.input if name in graph.maker and not _made_of_constants(graph, name)]
        tensors = [name for name in flowing if _leads_to_product(graph, name)] if len(flowing) > 1 else flowing
        if len(tensors) != 1:
            return None
        tensor, reader = tensors[0], maker
    return None


def _made_of_constants(graph: StageGraph, name: str) -> bool:
    maker = graph.maker.get(name)
    return maker is None or all(entry in graph.constants for entry in maker.input if entry)


def _leads_to_product(graph: StageGraph, name: str) -> bool:
    """Whether a tensor comes, through what an attention kernel takes in, from a product of two activations."""
    for _ in range(MOST_STEPS):
        maker = graph.maker.get(name)
        if maker is None or (maker.op_type == "MatMul" and _constant(graph, maker)):
            return False
        if maker.op_type == "MatMul":
            return True
        if maker.op_type not in PASSED:
            return False
        name = maker.input[0]
    return False
