"""For ONNX Runtime only: attention that was written out becomes its own fused operator.

The CPU kernel behind ``com.microsoft.MultiHeadAttention`` never holds the map of tokens x tokens: for 8 heads of 4096 tokens that is
0.5 GiB less and 1.5 times the speed. TensorRT does not know the operator, so the bundle keeps the plain form.
"""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import onnx
from onnx import TensorProto, helper

from ...calibration.graph.stage_graph import opset_of
from ..graph.set_nodes import set_nodes
from ..graph.tensor_types import Sizes, sizes_of, tensor_types

HEADS_FIRST, KEYS_TRANSPOSED = [0, 2, 1, 3], [0, 2, 3, 1]
DOMAIN = "com.microsoft"
LAST_BY_DEFAULT = 13  # the opset from which Softmax without an axis is over the last one; before, over all but the batch


def fuse_attention(model: onnx.ModelProto) -> int:
    """Replace every self-contained attention of the form below, in place; returns how many.

    ``q, k, v`` [batch, tokens, width] -> Reshape -> Transpose (heads first) each, the queries scaled by a constant, MatMul, Softmax,
    MatMul, Transpose, Reshape. One whose keys are constants, or whose map is read by others, stays as it is; so does one over windows or
    single axes of the tokens, one query for several pictures, and whatever does not show that it is none of these.
    """
    graph = _Graph(model)
    done = 0
    for node in list(model.graph.node):
        if node.op_type == "Softmax" and (match := graph.match(node)):
            graph.replace(*match)
            done += 1
    if done:
        dead = graph.unread(model)
        set_nodes(model.graph, [node for node in model.graph.node if id(node) not in dead])
        if not any(entry.domain == DOMAIN for entry in model.opset_import):
            model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return done


class _Graph:
    def __init__(self, model: onnx.ModelProto):
        self.constants = {t.name: t for t in model.graph.initializer}
        self.maker = {name: node for node in model.graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in model.graph.node:
            for name in node.input:
                self.readers[name].append(node)
        self.outputs = {value.name for value in model.graph.output}
        self.opset = opset_of(model)
        self.types = tensor_types(model)

    def _only(self, node: onnx.NodeProto, op: str) -> onnx.NodeProto | None:
        """The one reader of a node's result, if it is of that kind."""
        readers = self.readers[node.output[0]]
        return readers[0] if len(readers) == 1 and readers[0].op_type == op and node.output[0] not in self.outputs else None

    def _made_by(self, name: str, op: str, perm: list[int] | None = None) -> onnx.NodeProto | None:
        node = self.maker.get(name)
        if node is None or node.op_type != op:
            return None
        got = next((list(a.ints) for a in node.attribute if a.name == "perm"), None)
        return node if perm is None or got == perm else None

    def _shape(self, node: onnx.NodeProto) -> list[int]:
        """What a Reshape makes of its input; empty if that is computed."""
        tensor = self.constants.get(node.input[1]) if len(node.input) > 1 else None
        return onnx.numpy_helper.to_array(tensor).tolist() if tensor is not None else []

    def _split(self, name: str, perm: list[int]) -> tuple[str, Sizes, int] | None:
        """The tensor [batch, tokens, width] whose width was split into heads, its sizes, and how many heads."""
        turned = self._made_by(name, "Transpose", perm)
        shaped = self._made_by(turned.input[0], "Reshape") if turned is not None else None
        if shaped is None or (kind := self.types.get(shaped.input[0])) is None or kind.elem_type != TensorProto.FLOAT:
            return None
        sizes, shape = sizes_of(kind), self._shape(shaped)
        if sizes is None or len(sizes) != 3 or len(shape) != 4 or shape[2] < 1 or not _keeps_tokens(sizes, shape):
            return None
        return shaped.input[0], sizes, shape[2]

    def match(self, softmax: onnx.NodeProto):
        """The parts of one attention, or None."""
        axis = next((a.i for a in softmax.attribute if a.name == "axis"), -1 if self.opset >= LAST_BY_DEFAULT else 1)
        scores, mixed = self._made_by(softmax.input[0], "MatMul"), self._only(softmax, "MatMul")
        if axis not in (-1, 3) or scores is None or mixed is None or mixed.input[0] != softmax.output[0] or self._only(scores, "Softmax") is None:
            return None
        scaled = self._made_by(scores.input[0], "Mul")
        factor = self.constants.get(scaled.input[1]) if scaled is not None else None
        if factor is None or np.prod(factor.dims) != 1 or len(factor.dims) > 4:
            return None
        parts = [self._split(scaled.input[0], HEADS_FIRST), self._split(scores.input[1], KEYS_TRANSPOSED), self._split(mixed.input[1], HEADS_FIRST)]
        turned = self._only(mixed, "Transpose")
        joined = self._only(turned, "Reshape") if turned is not None and self._made_by(turned.output[0], "Transpose", HEADS_FIRST) is not None else None
        if any(part is None for part in parts) or joined is None:
            return None
        batches, heads = {sizes[0] for _, sizes, _ in parts}, {count for _, _, count in parts}
        out, (_, (batch, tokens, _), _), (_, (*_, width), _) = self._shape(joined), parts[0], parts[2]
        if len(batches) != 1 or "" in batches or len(heads) != 1 or len(out) != 3 or not _keeps_tokens((batch, tokens, width), out):
            return None
        return joined, [name for name, _, _ in parts], heads.pop(), float(onnx.numpy_helper.to_array(factor).reshape(()))

    def replace(self, joined: onnx.NodeProto, sources: list[str], heads: int, scale: float) -> None:
        """The last node of the pattern becomes the fused one; the others are removed if no other node reads them."""
        path = joined.name.rpartition("/")[0]
        fused = helper.make_node("MultiHeadAttention", sources, list(joined.output), domain=DOMAIN, num_heads=heads, scale=scale)
        fused.name = f"{path}/{joined.name.rpartition('/')[2]}_MultiHeadAttention"
        joined.CopyFrom(fused)

    def unread(self, model: onnx.ModelProto) -> set[int]:
        """Nodes whose results no node reads any more."""
        wanted, dead = set(self.outputs), set()
        for node in reversed(model.graph.node):
            if any(name in wanted for name in node.output):
                wanted.update(node.input)
            else:
                dead.add(id(node))
        return dead


def _keeps_tokens(sizes: Sizes, shape: list[int]) -> bool:
    """Whether a Reshape to ``shape`` leaves the batch and the tokens of [batch, tokens, width] as they are, or finds them again."""
    kept = [new in (0, size) for new, size in zip(shape[:2], sizes[:2], strict=True)]
    return all(kept) or (any(kept) and shape[kept.index(False)] == -1 and math.prod(shape[2:]) == sizes[2])
