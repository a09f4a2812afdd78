"""A stage cut around our operators: engines for what lies between them, and a kernel stage for each; for compilers that take no plugins.

Every node has a level: how many operators lie on the longest way to it. The nodes of one level become one engine, which reads and writes
floating-point tensors only: what it needs of shapes and constants it computes itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from ...runtime.artefact.spec import StageSpec, TensorSpec
from ...runtime.errors import BuildFailedError
from ...trt_plugins.functions import DOMAIN, default_attributes, without_bodies
from ..graph.onnx_weights import Constants

FLOATS = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16"}
TYPED = re.compile(r":(fp32|fp16|bf16)$")  # how typing calls the same tensor in another type


@dataclass(frozen=True)
class Piece:
    """A part of a stage, in running order.

    Args:
        spec: with a name of its own.
        graph: of an engine; None for a kernel stage.
        weights_nbytes: of an engine.
        operator, inputs, outputs, parameters, constants: of a kernel stage: the operator, its tensors in its own order, its attributes, and the values of
            those inputs that are constant.
    """

    spec: StageSpec
    graph: Path | None = None
    weights_nbytes: int = 0
    operator: str = ""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    parameters: dict[str, Any] = field(default_factory=dict)
    constants: dict[str, np.ndarray] = field(default_factory=dict)


def name_in_stage(stage: str, name: str) -> str:
    """The name that a tensor at a cut has in the FP32 graph of its stage."""
    return TYPED.sub("", name).removeprefix(f"{stage}/")


def split_stage(source: Path, spec: StageSpec) -> tuple[Piece, ...]:
    """Cut a stage; its parts appear beside the whole and share its weights.

    Args:
        source: graph of the stage, typed or FP32, with operators of ours as nodes.
        spec: of the stage.

    Returns:
        the parts in running order; empty for a stage without operators. The network's output comes in the operator's type where an operator makes it.

    Raises:
        BuildFailedError: if a tensor at a cut has another free dimension than the batch.
    """
    model = onnx.load(str(source), load_external_data=False)
    without_bodies(model)
    if not any(node.domain == DOMAIN for node in model.graph.node):
        return ()
    model = _without_last_casts(model)
    _name_after_stage(model, spec.name)
    return _Split(model, spec, Constants(model, source.parent)).pieces(source.parent)


def _without_last_casts(model: onnx.ModelProto) -> onnx.ModelProto:
    """An operator makes an output of the stage in its own type, where a cast behind it would be an engine of its own."""
    made = {name: node for node in model.graph.node if node.domain == DOMAIN for name in node.output}
    outputs = {value.name: value for value in model.graph.output}
    for cast in [node for node in model.graph.node if node.op_type == "Cast" and node.input[0] in made and node.output[0] in outputs]:
        old, new = cast.input[0], cast.output[0]
        if old in outputs:
            continue
        outputs[new].type.tensor_type.elem_type = _kinds(model)[old]
        kept = [node for node in model.graph.node if node is not cast]
        for node in kept:
            for names in (node.input, node.output):
                for place, name in enumerate(names):
                    if name == old:
                        names[place] = new
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
        del model.graph.node[:]
        model.graph.node.extend(copies)
        return _without_last_casts(model)
    return model


def _name_after_stage(model: onnx.ModelProto, stage: str) -> None:
    """Tensors inside get the stage's name before their own, in place: other stages may use the same names."""
    outputs = {value.name for value in model.graph.output}
    inner = {name for node in model.graph.node for name in node.output if name and name not in outputs}
    for node in model.graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name in inner:
                    names[place] = f"{stage}/{name}"
    for value in model.graph.value_info:
        if value.name in inner:
            value.name = f"{stage}/{value.name}"


def _kinds(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor whose type is written in the graph or in its cast; an operator of ours gives what it takes."""
    graph = model.graph
    found = {value.name: value.type.tensor_type.elem_type for value in [*graph.value_info, *graph.input, *graph.output]}
    found |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    casts = [node for node in graph.node if node.op_type == "Cast" and not node.domain]
    found |= {node.output[0]: helper.get_attribute_value(next(a for a in node.attribute if a.name == "to")) for node in casts}
    made = [(name, node.input[0]) for node in graph.node if node.domain == DOMAIN for name in node.output]
    return {**found, **{name: found[source] for name, source in made if source in found}}


class _Split:
    def __init__(self, model: onnx.ModelProto, spec: StageSpec, constants: Constants):
        self.model, self.spec, self.constants = model, spec, constants
        self.nodes = list(model.graph.node)
        self.maker = {name: node for node in self.nodes for name in node.output if name}
        self.kinds = _kinds(model)
        values = [*model.graph.value_info, *model.graph.input, *model.graph.output]
        self.shapes = {value.name: value.type.tensor_type.shape for value in values if value.type.tensor_type.HasField("shape")}
        self.place = {id(node): number for number, node in enumerate(self.nodes)}
        self.level: dict[int, int] = {}
        for node in self.nodes:
            makers = [self.maker[name] for name in node.input if name in self.maker]
            self.level[id(node)] = max((self.level[id(made)] + (made.domain == DOMAIN) for made in makers), default=0)

    def pieces(self, folder: Path) -> tuple[Piece, ...]:
        """Engines and kernels from the first level to the last."""
        operators = [node for node in self.nodes if node.domain == DOMAIN]
        needed = {value.name for value in self.model.graph.output}
        found: list[tuple[list[onnx.NodeProto], list[str], list[str]]] = []  # of each level, the last first: nodes, inputs, outputs
        for level in range(max(self.level.values()), -1, -1):
            needed |= {name for node in operators if self.level[id(node)] == level for name in node.input if name not in self.constants}
            found.append(self._engine(level, needed))
            needed |= set(found[-1][1])
        pieces: list[Piece] = []
        for level, (nodes, inputs, outputs) in enumerate(reversed(found)):
            if nodes:
                pieces.append(self._write(f"{self.spec.name}_{len(pieces) + 1}", nodes, inputs, outputs, folder))
            for node in operators:
                if self.level[id(node)] == level:
                    pieces.append(self._kernel(f"{self.spec.name}_{len(pieces) + 1}", node))
        return tuple(pieces)

    def _engine(self, level: int, needed: Iterable[str]) -> tuple[list[onnx.NodeProto], list[str], list[str]]:
        """Nodes that make what is needed of a level, and the floating-point tensors that they read from elsewhere."""
        wanted = [name for name in needed if name in self.maker and self.maker[name].domain != DOMAIN and self.level[id(self.maker[name])] == level]
        inside: dict[int, onnx.NodeProto] = {}
        inputs: dict[str, None] = {}
        ways = list(wanted)
        while ways:
            name = ways.pop()
            node = self.maker.get(name)
            if not name or name in self.constants or (node is not None and id(node) in inside):
                continue
            earlier = node is None or node.domain == DOMAIN or self.level[id(node)] < level
            if node is None or (earlier and self.kinds.get(name) in FLOATS and self._depends(name)):
                inputs[name] = None
                continue
            inside[id(node)] = node
            ways.extend(node.input)
        nodes = sorted(inside.values(), key=lambda node: self.place[id(node)])
        order = {name: number for number, name in enumerate([value.name for value in self.model.graph.input] + list(self.maker))}
        return nodes, sorted(inputs, key=order.__getitem__), sorted(wanted, key=order.__getitem__)

    def _depends(self, name: str) -> bool:
        """Whether a tensor depends on an input of the stage."""
        ways, seen = [name], set()
        while ways:
            name = ways.pop()
            if name in seen or not name or name in self.constants:
                continue
            seen.add(name)
            if name not in self.maker:
                return True
            ways.extend(self.maker[name].input)
        return False

    def _write(self, name: str, nodes: list[onnx.NodeProto], inputs: list[str], outputs: list[str], folder: Path) -> Piece:
        spec = StageSpec(name, tuple(map(self._tensor, inputs)), tuple(map(self._tensor, outputs)))
        read = {tensor for node in nodes for tensor in node.input}
        made = {tensor for node in nodes for tensor in node.output} - set(outputs)
        sides = [[helper.make_tensor_value_info(t.name, self.kinds[t.name], list(t.shape)) for t in side] for side in (spec.inputs, spec.outputs)]
        graph = helper.make_graph(nodes, name, *sides, [tensor for tensor in self.model.graph.initializer if tensor.name in read])
        graph.value_info.extend(value for value in self.model.graph.value_info if value.name in made)
        opsets = [entry for entry in self.model.opset_import if entry.domain != DOMAIN]
        file = folder / f"{name}.onnx"
        file.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=self.model.ir_version).SerializeToString(deterministic=True))
        return Piece(spec, file, sum(self.constants[name].nbytes for name in read if name in self.constants))

    def _kernel(self, name: str, node: onnx.NodeProto) -> Piece:
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", node.op_type).lower()
        inputs = tuple(self._tensor(tensor) for tensor in node.input if tensor not in self.constants)
        spec = StageSpec(f"{name}_{words}", inputs, tuple(map(self._tensor, node.output)))
        parameters = {**default_attributes(node.op_type), **{attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}}
        constants = {tensor: np.array(self.constants[tensor]) for tensor in node.input if tensor in self.constants}
        return Piece(spec, None, 0, node.op_type, tuple(node.input), tuple(node.output), parameters, constants)

    def _tensor(self, name: str) -> TensorSpec:
        shape = self.shapes.get(name, self.shapes.get(TYPED.sub("", name)))
        dims = [dim.dim_value or dim.dim_param for dim in shape.dim] if shape is not None else []
        free = [size for place, size in enumerate(dims) if not isinstance(size, int) and (place or size != "batch")]
        if shape is None or free or self.kinds.get(name) not in FLOATS:
            was = f"stage {self.spec.name} cannot be cut at the tensor {name}, which has the shape {dims or 'nobody knows'}"
            raise BuildFailedError(was, wanted="floating point, and no free dimension but the batch", fix="leave this stage out of --operators")
        return TensorSpec(name, FLOATS[self.kinds[name]], tuple(dims))
