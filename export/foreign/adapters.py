"""Nodes around a graph that was made elsewhere, so that it takes and gives what every stage does: float32 RGB [batch, 3, h, w] in, float32
depth [batch, 1, h, w] (or mask logits [batch, 2, h, w]) out."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ...calibration.precision.operator_types import opsets
from ...runtime.artefact.contract import Contract
from ...runtime.errors import InputError
from ..graph.inner_graphs import rename
from ..graph.set_nodes import set_nodes
from .contract_file import GraphForm
from .embedded import drop_unread, make_way, names_read

PICTURE_FORM, DEPTH_MAP = "picture_form", "depth_map"
DEPTH_FORM = "depth_form"  # module path of the nodes that make depth of disparity: an FP32 island
SMALLEST = 1e-6
MOVING = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Slice", "Identity", "Gather")
BY_PIXEL = ("Identity", "Cast", "Add", "Sub", "Mul", "Div", "Clip")
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)


class _Nodes:
    """Appends nodes to one end of a graph; every tensor between them gets a name of its own."""

    def __init__(self, model: onnx.ModelProto, path: str):
        self.model, self.path, self.made = model, path, []
        self.opset = opsets(model).get("", 1)

    def constant(self, values: np.ndarray) -> str:
        name = f"{self.path}/constant_{len(self.model.graph.initializer)}"
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def add(self, op: str, *inputs: str, **attributes) -> str:
        name = f"{self.path}/{op}_{len(self.made)}"
        self.made.append(helper.make_node(op, list(inputs), [f"{name}:0"], name=name, **attributes))
        return f"{name}:0"

    def clip(self, name: str, low: float, high: float) -> str:
        if self.opset < 11:
            return self.add("Clip", name, min=low, max=high)
        return self.add("Clip", name, self.constant(np.float32(low)), self.constant(np.float32(high)))

    def reshape(self, op: str, name: str, axes: list[int]) -> str:
        """``Squeeze`` or ``Unsqueeze``."""
        if self.opset < 13:
            return self.add(op, name, axes=axes)
        return self.add(op, name, self.constant(np.array(axes, np.int64)))


def adapt_input(model: onnx.ModelProto, contract: Contract, form: GraphForm, file: str) -> int | str:
    """Make the graph take the canonical picture, in place; sizes that were free become those of the canvas.

    Returns:
        the batch: a number if the graph fixes it, else ``"batch"``.

    Raises:
        InputError: if the graph's inputs do not fit the contract.
    """
    graph, canvas = model.graph, contract.input.canvas
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    if [value.name for value in inputs] != [form.input]:
        raise InputError(
            f"{file} takes {', '.join(value.name for value in inputs) or 'nothing'}",
            wanted=f"one input, called {form.input!r} as the contract says",
            fix="name it in the contract; what a network wants beside a picture (a camera, a size) must be a constant of the graph" if inputs else "",
        )
    kind = inputs[0].type.tensor_type
    sizes = _sizes(kind) or [None, 3, None, None]
    was = f"the input {form.input} of {file} is {_type_name(kind.elem_type)} {_shown(sizes)}"
    lead, rows = sizes[:-3], sizes[-3:]
    if len(lead) > 2 or len(rows) < 3 or lead[1:] not in ([], [1], [None]) or kind.elem_type not in (*FLOATS, TensorProto.UINT8):
        raise InputError(was, wanted="a picture [batch, 3, height, width] or [batch, height, width, 3] of floats or uint8")
    channels_last = rows[2] == 3 and rows[0] != 3
    if rows[0] is None and rows[2] is None:
        channels_last = _transposed_first(graph, form.input)
    there = rows[:2] if channels_last else rows[1:]
    if (rows[2 if channels_last else 0] not in (3, None)) or any(size not in (None, side) for size, side in zip(there, canvas, strict=True)):
        raise InputError(
            was,
            wanted=f"[batch, 3, {canvas[0]}, {canvas[1]}] or [batch, {canvas[0]}, {canvas[1]}, 3], the canvas of the contract",
            fix="change the contract's canvas, or convert the network for RGB pictures",
        )
    if kind.elem_type == TensorProto.UINT8 and (set(contract.input.mean), set(contract.input.std)) != ({0.0}, {1.0}):
        raise InputError(
            f"the input {form.input} of {file} is uint8, and the contract has mean {list(contract.input.mean)} and std {list(contract.input.std)}",
            wanted="mean 0 and std 1: a graph of bytes takes pixels as they are",
        )
    make_way(
        graph,
        {contract.input.tensor, contract.output.tensor} - {form.input, form.output},
        (":graph",),
        tuple(f"{path}/" for path in (PICTURE_FORM, DEPTH_MAP, DEPTH_FORM)),
    )
    nodes, name = _Nodes(model, PICTURE_FORM), contract.input.tensor
    inner = f"{form.input}:graph"
    if form.channels == "bgr":
        name = nodes.add("Gather", name, nodes.constant(np.array([2, 1, 0], np.int64)), axis=1)
    if channels_last:
        name = nodes.add("Transpose", name, perm=[0, 2, 3, 1])
    if not lead:
        name = nodes.reshape("Squeeze", name, [0])
    elif len(lead) == 2:  # several views of one place: this is the only one
        name = nodes.reshape("Unsqueeze", name, [1])
    if kind.elem_type == TensorProto.UINT8:
        name = nodes.add("Add", nodes.add("Mul", name, nodes.constant(np.float32(255))), nodes.constant(np.float32(0.5)))
        name = nodes.clip(nodes.add("Floor", name), 0.0, 255.0)
    if kind.elem_type != TensorProto.FLOAT and not (kind.elem_type == TensorProto.UINT8 and _cast_at_once(graph, form.input)):
        name = nodes.add("Cast", name, to=kind.elem_type)
    if name != form.input:
        rename(graph, form.input, inner)
        if nodes.made:
            nodes.made[-1].output[0] = inner
        else:  # only the name differs
            rename(graph, inner, name)
    batch = (1 if not lead else lead[0]) or "batch"
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info(contract.input.tensor, TensorProto.FLOAT, [batch, 3, *canvas]))
    set_nodes(graph, [*nodes.made, *graph.node])
    del graph.value_info[:]  # shapes from before the sizes were fixed
    return batch


def _transposed_first(graph: onnx.GraphProto, name: str) -> bool:
    """Whether a picture [batch, h, w, 3] is what the graph takes: the first thing that moves its axes brings the channels to the front."""
    waiting, seen = [name], set()
    while waiting:
        current = waiting.pop()
        for node in graph.node:
            if current not in node.input:
                continue
            if node.op_type == "Transpose":
                return any(list(attribute.ints) == [0, 3, 1, 2] for attribute in node.attribute)
            if node.op_type in BY_PIXEL:
                waiting += [made for made in node.output if made not in seen]
                seen.update(node.output)
    return False


def _cast_at_once(graph: onnx.GraphProto, name: str) -> bool:
    """Whether a tensor is only reshaped, transposed and the like until it is cast: then its numbers may be floats from the start.

    Needed because TensorRT computes nothing in uint8 inside a network.
    """
    waiting, seen = [name], set()
    while waiting:
        current = waiting.pop()
        for node in graph.node:
            if current in names_read(node) and node.op_type != "Cast":
                if node.op_type not in MOVING or any(other not in (current, "") for other in node.input[:1]):
                    return False
                waiting += [made for made in node.output if made not in seen]
                seen.update(node.output)
    return True


def keep_output(model: onnx.ModelProto, form: GraphForm, file: str) -> None:
    """Drop every output but the one that the contract names, and the nodes, weights and inputs that only the others need, in place.

    Raises:
        InputError: if there is no such output, or it is no tensor.
    """
    graph = model.graph
    made = {value.name: value for value in graph.output}
    if form.output not in made:
        raise InputError(f"{file} makes {', '.join(made)}", wanted=f"an output called {form.output!r} as the contract says")
    kept = onnx.ValueInfoProto.FromString(made[form.output].SerializeToString())
    if (kind := kept.type.WhichOneof("value") or "tensor_type") != "tensor_type":
        raise InputError(f"the output {form.output} of {file} is a {kind.removesuffix('_type')}", wanted="a tensor")
    kept.type.tensor_type.ClearField("shape")
    del graph.output[:]
    graph.output.append(kept)
    drop_unread(model)
    read = {name for node in graph.node for name in names_read(node)} | {form.input, form.output}
    inputs = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in graph.input if value.name in read]
    del graph.input[:]
    graph.input.extend(inputs)


def output_shape(model: onnx.ModelProto) -> list[int | None] | None:
    """Shape of the only output as far as it can be inferred, None where a size is not known; None if not even the rank is. An output of no declared
    type gets the inferred one."""
    (kept,) = model.graph.output
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph.output[0].type.tensor_type
    except Exception:  # ONNX cannot infer every shape; the caller then runs the graph
        return None
    if not kept.type.tensor_type.elem_type:
        kept.type.tensor_type.elem_type = inferred.elem_type
    return _sizes(inferred)


def adapt_output(model: onnx.ModelProto, contract: Contract, form: GraphForm, shape: list[int | None], batch: int | str, file: str) -> int | str:
    """Make the graph give the canonical output, in place.

    Args:
        shape: of the output as it stands; None where a size is not known.

    Returns:
        the batch, which a map without one fixes at 1.

    Raises:
        InputError: if the output is nothing that a depth map or mask can be made of.
    """
    graph, output = model.graph, contract.output
    kind = graph.output[0].type.tensor_type.elem_type
    channels = 2 if output.kind == "mask" else 1
    wrong = InputError(
        f"the output {form.output} of {file} is {_type_name(kind)} {_shown(shape)}",
        wanted=f"floats [batch, {channels}, height, width]" + ("" if channels == 2 else ", [batch, height, width] or [height, width]"),
        fix="name another output in the contract, or convert the network",
    )
    if kind not in FLOATS or len(shape) not in (2, 3, 4, 5) or (channels == 2 and len(shape) != 4) or (len(shape) == 5 and shape[1] not in (1, None)):
        raise wrong
    nodes, name = _Nodes(model, DEPTH_MAP), f"{form.output}:graph"
    if len(shape) == 5:
        name, shape = nodes.reshape("Squeeze", name, [1]), [shape[0], *shape[2:]]
    if len(shape) == 2:
        if batch not in (1, "batch"):
            raise wrong
        name, batch = nodes.reshape("Unsqueeze", name, [0, 1]), 1
        graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    elif len(shape) == 3:
        if shape[2] == channels and shape[0] != batch and isinstance(batch, int):
            raise wrong
        name = nodes.reshape("Unsqueeze", name, [1])
    elif shape[1] not in (channels, None):
        if shape[3] != channels:
            raise wrong
        name = nodes.add("Transpose", name, perm=[0, 3, 1, 2])
    if kind != TensorProto.FLOAT:
        name = nodes.add("Cast", name, to=TensorProto.FLOAT)
    nodes.path = DEPTH_FORM
    name = _to_depth(nodes, name, form)
    if nodes.made:
        rename(graph, form.output, f"{form.output}:graph")
        nodes.made[-1].output[0] = output.tensor
        graph.node.extend(nodes.made)
    elif form.output != output.tensor:
        rename(graph, form.output, output.tensor)
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(output.tensor, TensorProto.FLOAT, [batch, channels, None, None]))
    return batch


def _to_depth(nodes: _Nodes, name: str, form: GraphForm) -> str:
    numbers = dict(form.numbers)
    if form.values == "scaled-disparity":
        low, high = 1 / numbers["far"], 1 / numbers["near"]
        name = nodes.add("Add", nodes.add("Mul", name, nodes.constant(np.float32(high - low))), nodes.constant(np.float32(low)))
    if form.values in ("inverse-depth", "scaled-disparity"):
        name = nodes.add("Div", nodes.constant(np.float32(numbers["scale"])), nodes.clip(name, SMALLEST, float(np.finfo(np.float32).max)))
    return name


def _sizes(kind: onnx.TypeProto.Tensor) -> list[int | None] | None:
    if not kind.HasField("shape"):
        return None
    return [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in kind.shape.dim]


def _shown(sizes: list[int | None]) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in sizes) + "]"


def _type_name(kind: int) -> str:
    names = {TensorProto.FLOAT: "float32", TensorProto.DOUBLE: "float64", TensorProto.UNDEFINED: "of no type"}
    return names.get(kind) or (TensorProto.DataType.Name(kind).lower() if kind in TensorProto.DataType.values() else f"of the unknown type {kind}")
