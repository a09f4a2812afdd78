"""A part of a graph that one operator replaces: found by walking back from its end, taken out only if no other node reads a tensor inside it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ...trt_plugins.functions import DOMAIN
from ..graph.set_nodes import set_nodes
from ..graph.tensor_types import Sizes, is_per_channel, sizes_of
from ..lowering.plugin_checks import plugin_problem


class Surroundings:
    """Who makes and who reads each tensor of a graph without branches and loops, and of what type and shape it is (``types``)."""

    def __init__(self, model: onnx.ModelProto, types: dict[str, onnx.TypeProto.Tensor]):
        self.model, self._types = model, types
        self.maker = {name: node for node in model.graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in model.graph.node:
            for name in node.input:
                self.readers[name].append(node)
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._outputs = {value.name for value in model.graph.output}

    def made_by(self, name: str, op: str) -> onnx.NodeProto | None:
        """The node that makes a tensor, if it is of that type."""
        node = self.maker.get(name)
        return node if node is not None and node.op_type == op else None

    def read_by(self, name: str, op: str) -> onnx.NodeProto | None:
        """The only node of that type that reads a tensor."""
        found = [node for node in self.readers[name] if node.op_type == op]
        return found[0] if len(found) == 1 else None

    def constant(self, name: str) -> np.ndarray | None:
        """The values of a constant that lies in the graph's own file."""
        tensor = self._constants.get(name)
        return None if tensor is None or tensor.data_location == onnx.TensorProto.EXTERNAL else numpy_helper.to_array(tensor)

    def size(self, name: str) -> int:
        """How many values a constant has; 0 if the tensor is computed."""
        return int(np.prod(self._constants[name].dims, dtype=np.int64)) if name in self._constants else 0

    def sizes(self, name: str) -> Sizes:
        """Of a tensor (see ``sizes_of``); empty if not even its rank is known."""
        return sizes_of(self._types.get(name)) or ()

    def operator(self, op: str, inputs: list[str], outputs: list[str], attributes: dict) -> onnx.NodeProto | None:
        """A node of the domain; None if its kernel would not take it."""
        node = helper.make_node(op, inputs, outputs, domain=DOMAIN, **attributes)
        kinds = [self._types[name].elem_type if name in self._types else TensorProto.UNDEFINED for name in inputs]
        sizes = [[size if isinstance(size, int) else None for size in self.sizes(name)] for name in inputs]
        return None if plugin_problem(node, kinds, sizes) else node

    def per_channel(self, name: str, rank: int, channels: int) -> bool:
        """Whether a tensor is a constant of one number a channel (see ``is_per_channel``)."""
        return name in self._constants and is_per_channel(self._constants[name].dims, rank, channels)

    def region(self, ends: Iterable[str], starts: Iterable[str]) -> list[onnx.NodeProto] | None:
        """The nodes between the starts and the ends, in their order; None if another tensor flows in, or an inner one flows out."""
        ends, starts, inside, wanted = list(ends), set(starts), {}, list(ends)
        while wanted:
            name = wanted.pop()
            if not name or name in starts or name in self._constants:
                continue
            node = self.maker.get(name)
            if node is None:
                return None  # an input of the graph that is no start
            if id(node) not in inside:
                inside[id(node)] = node
                wanted.extend(node.input)
        made = [name for node in inside.values() for name in node.output if name not in ends]
        if any(name in self._outputs or any(id(reader) not in inside for reader in self.readers[name]) for name in made):
            return None
        return [node for node in self.model.graph.node if id(node) in inside]


def replace(model: onnx.ModelProto, region: list[onnx.NodeProto], node: onnx.NodeProto) -> None:
    """Put a node where the last node of a region is, named after it, and take the region out. In place."""
    node.name = f"{region[-1].name}_{node.op_type}"
    gone, last = {id(n) for n in region}, id(region[-1])
    nodes = [n for old in model.graph.node for n in ([node] if id(old) == last else [] if id(old) in gone else [old])]
    set_nodes(model.graph, nodes)
