"""What lowering rules read from a graph (types, shapes, constants), and how they add nodes to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ....runtime.errors import BuildFailedError


class Editor:
    """One graph while it is lowered.

    Args:
        model: every node has a name, every tensor a type and, but for the batch, a size.
        constants: values of the initialisers.

    Attributes:
        fp32: names of the nodes made here that must compute in FP32 whatever the precision plan says.
        origin: name of a node made here -> name of the node that it replaces.
    """

    def __init__(self, model: onnx.ModelProto, constants: Mapping[str, np.ndarray]):
        self._constants = constants
        self._values = {value.name: value.type.tensor_type for value in [*model.graph.value_info, *model.graph.input, *model.graph.output]}
        self.made: dict[str, np.ndarray] = {}
        self.fp32: set[str] = set()
        self.origin: dict[str, str] = {}
        self.readers: dict[str, int] = {}
        for node in model.graph.node:
            for name in filter(None, node.input):  # an optional input that is left out has no name
                self.readers[name] = self.readers.get(name, 0) + 1
        for value in model.graph.output:
            self.readers[value.name] = self.readers.get(value.name, 0) + 1

    def constant(self, name: str) -> np.ndarray | None:
        """The values of an initialiser; None if the tensor is computed, or absent."""
        if name in self.made:
            return self.made[name]
        return self._constants[name] if name and name in self._constants else None

    def shape(self, name: str, node: onnx.NodeProto) -> tuple[int | None, ...]:
        """The sizes of a tensor; None where a size is free.

        Raises:
            BuildFailedError: if not even its rank is known.
        """
        if (values := self.constant(name)) is not None:
            return values.shape
        known = self._values.get(name)
        if known is None or not known.HasField("shape"):
            raise self.refusal(node, f"the rank of its input {name} is not known", "convert the graph with shape inference")
        return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in known.shape.dim)

    def dtype(self, name: str) -> int:
        """ONNX element type of a tensor; 0 if it is not known."""
        if (values := self.constant(name)) is not None:
            return helper.np_dtype_to_tensor_dtype(values.dtype)
        return self._values[name].elem_type if name in self._values else 0

    def axes(self, node: onnx.NodeProto, position: int) -> list[int] | None:
        """The axes that a node takes as an input; None if it takes none.

        Raises:
            BuildFailedError: if they are computed.
        """
        if len(node.input) <= position or not node.input[position]:
            return None
        values = self.constant(node.input[position])
        if values is None:
            raise self.refusal(node, f"its axes {node.input[position]} are computed", "export with constant axes")
        return [int(axis) for axis in values.reshape(-1)]

    def refusal(self, node: onnx.NodeProto, was: str, fix: str = "") -> BuildFailedError:
        """The error for a node that has no form for TensorRT 8."""
        return BuildFailedError(
            f"node {node.name} ({node.op_type}) cannot be written for TensorRT 8: {was}", fix=fix or "use TensorRT 10.3 or later, or --backend onnxruntime"
        )

    def steps(self, node: onnx.NodeProto, fp32: bool = False) -> Steps:
        """A list of nodes that will stand where ``node`` stood."""
        return Steps(self, node, fp32)


class Steps:
    """The nodes that replace one node, in running order; tensors and nodes are named after it."""

    def __init__(self, editor: Editor, node: onnx.NodeProto, fp32: bool):
        self._editor, self._node, self._fp32, self.nodes = editor, node, fp32, []

    def constant(self, what: str, values: Any, dtype: Any = np.float32) -> str:
        """A new initialiser; returns its name."""
        name = f"{self._node.name}:{what}"
        self._editor.made[name] = np.asarray(values, dtype)
        return name

    def add(self, op: str, inputs: list[str], what: str, outputs: list[str] | None = None, **attributes: Any) -> str:
        """A new node; returns the name of its first output, a new tensor unless ``outputs`` says otherwise."""
        name = f"{self._node.name}.{what}"
        made = helper.make_node(op, inputs, outputs or [f"{self._node.name}:{what}"], name=name, **attributes)
        self.nodes.append(made)
        self._editor.origin[name] = self._node.name
        if self._fp32:
            self._editor.fp32.add(name)
        return made.output[0]

    def finish(self, op: str, inputs: list[str], what: str, **attributes: Any) -> list[onnx.NodeProto]:
        """The last node, whose output is the replaced node's; returns all of them."""
        self.add(op, inputs, what, [self._node.output[0]], **attributes)
        return self.nodes


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes by name, strings as text."""
    found = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()}


def without(node: onnx.NodeProto, *names: str) -> onnx.NodeProto:
    """A copy of a node that lacks some attributes."""
    copy = onnx.NodeProto.FromString(node.SerializeToString())
    kept = [onnx.AttributeProto.FromString(a.SerializeToString()) for a in node.attribute if a.name not in names]
    del copy.attribute[:]
    copy.attribute.extend(kept)
    return copy


def initialiser(name: str, values: np.ndarray) -> onnx.TensorProto:
    """A constant as it lies in the graph."""
    return numpy_helper.from_array(np.ascontiguousarray(values), name)
