"""One ONNX stage as a graph to look at and to change; its weights stay mapped where they lie."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, version_converter

from ...runtime.errors import BuildFailedError, InputError
from .captures import has_subgraph

INLINE_NBYTES = 1024  # smaller constants stay in the graph, where shapes and axes must be readable without the weights file
PLAIN = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8, TensorProto.UINT8)  # what ONNX Runtime takes from NumPy as it is
PAGE = 4096
CHANGED = {"GridSample": 20, "DFT": 20, "GroupNormalization": 21}  # opset from which an operator means something else


def stored_bytes(values: np.ndarray, kind: int) -> np.ndarray:
    """The bytes of a tensor as ONNX stores them outside a graph: uint8 [n]; two INT4 values share a byte, the first in its lower half."""
    if kind != TensorProto.INT4:
        return np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    nibbles = values.astype(np.int8).reshape(-1).view(np.uint8) & 15
    nibbles = np.append(nibbles, np.zeros(len(nibbles) % 2, np.uint8))
    return nibbles[0::2] | nibbles[1::2] << 4


def _nbytes(tensor: TensorProto) -> int:
    size = 0.5 if tensor.data_type == TensorProto.INT4 else np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
    return int(np.prod(tensor.dims, dtype=np.int64) * size)


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that a model is written in; 0 if it names none."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


class StageGraph:
    """Structure of a stage and lookups over it.

    Call ``index`` after changing nodes. Nodes without a name are called ``<op>_<position>``.

    Args:
        model: the graph without its outside weights.
        folder: where the weights file lies.
        control_flow: whether it may hold If, Loop and Scan. What their graphs read is not among the lookups.
    """

    def __init__(self, model: onnx.ModelProto, folder: Path, control_flow: bool = False):
        self.model, self.folder, self._control_flow = model, folder, control_flow
        self._made: dict[str, Callable[[], np.ndarray]] = {}
        constants = {tensor.name for tensor in model.graph.initializer}
        for value in [value for value in model.graph.input if value.name in constants]:  # ONNX before IR version 4 lists weights as inputs
            model.graph.input.remove(value)
        model.ir_version = max(model.ir_version, 9)
        self._name_nodes()
        self.index()

    @classmethod
    def load(cls, file: str | Path, control_flow: bool = False) -> StageGraph:
        """Read a graph; its weights are not touched.

        Raises:
            InputError: if it is no ONNX graph.
            BuildFailedError: if it holds control flow that it may not hold.
        """
        try:
            model = onnx.load(str(file), load_external_data=False)
        except Exception as error:  # protobuf raises its own kinds
            raise InputError(f"{file} is no ONNX graph ({type(error).__name__})", fix="export it again") from error
        return cls(model, Path(file).parent, control_flow)

    def _name_nodes(self) -> None:
        taken = {node.name for node in self.model.graph.node}
        for position, node in enumerate(self.model.graph.node):
            if has_subgraph(node) and not self._control_flow:
                raise BuildFailedError(
                    f"the node {node.name or node.op_type} is control flow ({node.op_type})",
                    wanted="a graph without If, Loop and Scan",
                    fix="build it FP32 or FP16",
                )
            if not node.name:
                node.name = f"{node.op_type}_{position}"
                while node.name in taken:
                    node.name += "_"
                taken.add(node.name)

    def modernise(self, least: int = 18) -> None:
        """Convert a graph of older operators, in place.

        Raises:
            BuildFailedError: if an operator has no newer form.
        """
        if self.opset >= least:
            return
        corners = self.opset <= 10
        try:
            self.model = version_converter.convert_version(self.model, least)
        except Exception as error:  # the converter raises its own kinds
            raise BuildFailedError(f"the graph has opset {self.opset} and cannot be converted to {least} ({str(error).splitlines()[0][:200]})") from error
        for node in self.model.graph.node if corners else ():  # up to opset 10 pixels were counted from their corners: the converter forgets it
            if node.op_type == "Resize":
                node.attribute.append(helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
                node.attribute.append(helper.make_attribute("nearest_mode", "floor"))
        self.model.ir_version = max(self.model.ir_version, 9)
        self._name_nodes()
        self.index()

    def index(self) -> None:
        """Look again who makes and who reads each tensor."""
        graph = self.model.graph
        self.constants: dict[str, TensorProto] = {tensor.name: tensor for tensor in graph.initializer}
        self.maker: dict[str, onnx.NodeProto] = {name: node for node in graph.node for name in node.output if name}
        self.readers: dict[str, list[tuple[onnx.NodeProto, int]]] = defaultdict(list)
        for node in graph.node:
            for position, name in enumerate(node.input):
                if name:
                    self.readers[name].append((node, position))
        self.inputs = [value.name for value in graph.input if value.name not in self.constants]
        self.outputs = [value.name for value in graph.output]

    def copy(self) -> StageGraph:
        """The same graph once more; the weights are shared."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        other = StageGraph(model, self.folder, self._control_flow)
        other._made = dict(self._made)
        return other

    @property
    def opset(self) -> int:
        """Version of the standard operators."""
        return opset_of(self.model)

    def raise_opset(self, least: int) -> None:
        """Declare at least this version, from 18 on, where it means the same: from 18 to 19 only types were added, up to 21 few operators changed.

        Raises:
            BuildFailedError: if the graph is older than 18, or has an operator that changed.
        """
        if self.opset < 18:
            raise BuildFailedError(f"the graph has opset {self.opset}", wanted="at least 18", fix="convert it first (modernise)")
        for node in self.model.graph.node:
            if self.opset < CHANGED.get(node.op_type, 0) <= least:
                raise BuildFailedError(f"{node.name} ({node.op_type}) means something else in opset {least}", wanted="a graph without it, or of that opset")
        for entry in self.model.opset_import:
            if entry.domain in ("", "ai.onnx"):
                entry.version = max(entry.version, least)
        if least >= 21:
            self.model.ir_version = max(self.model.ir_version, 10)

    def array(self, name: str) -> np.ndarray:
        """Values of a constant; one that lies outside the graph is mapped, not read.

        Raises:
            InputError: if its file is missing, too short, or lies elsewhere than beside the graph.
        """
        if name in self._made:
            return self._made[name]()
        tensor = self.constants[name]
        if tensor.data_location != TensorProto.EXTERNAL:
            return numpy_helper.to_array(tensor)
        facts = {entry.key: entry.value for entry in tensor.external_data}
        path = self.folder / facts.get("location", "")
        inside = os.path.realpath(self.folder)
        if os.path.isabs(facts.get("location", "/")) or os.path.commonpath([inside, os.path.realpath(path)]) != inside or not path.is_file():
            raise InputError(f"the weights of {name} are not beside the graph", wanted=f"a file in {self.folder}", fix="copy or export the bundle again")
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
        shape, offset = tuple(tensor.dims), int(facts.get("offset", "0") or 0)
        if tensor.data_type == TensorProto.INT4:
            raise InputError(f"{name} is INT4 already", wanted="an FP32 stage", fix="build from the exported bundle")
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if offset < 0 or offset + nbytes > path.stat().st_size:
            raise InputError(f"{path} does not hold all of {name}", wanted=f"{nbytes} bytes at {offset}", fix="copy or export the bundle again")
        return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape) if nbytes else np.zeros(shape, dtype)

    def add_constant(self, name: str, values: np.ndarray) -> str:
        """Add or replace a constant that lies in the graph; returns its name."""
        tensor = numpy_helper.from_array(np.asarray(values, order="C"), name)
        if name in self.constants:
            self.constants[name].CopyFrom(tensor)
        else:
            self.constants[name] = self.model.graph.initializer.add()
            self.constants[name].CopyFrom(tensor)
        return name

    def add_made_constant(self, name: str, kind: int, shape: tuple[int, ...], make: Callable[[], np.ndarray]) -> str:
        """Add or replace a constant whose values are made when they are written: large weights never pile up in memory."""
        tensor = TensorProto(name=name, data_type=kind, dims=list(shape))
        if name in self.constants:
            self.constants[name].CopyFrom(tensor)
        else:
            self.constants[name] = self.model.graph.initializer.add()
            self.constants[name].CopyFrom(tensor)
        self._made[name] = make
        return name

    def with_large_apart(self) -> tuple[onnx.ModelProto, dict[str, Callable[[], np.ndarray]]]:
        """The graph with the small constants that were changed here in it, and what makes the large ones: no graph can be handed on with 2 GiB in it.
        What lies in the stage's own weights file stays there."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        large = {}
        for tensor in model.graph.initializer:
            if tensor.name not in self._made:
                continue
            if tensor.data_type not in PLAIN or _nbytes(tensor) < INLINE_NBYTES:
                tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(self._made[tensor.name]()), tensor.name))
                continue
            large[tensor.name] = self._made[tensor.name]
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=tensor.name)
        return model, large

    def add_value(self, name: str, kind: int) -> None:
        """Declare the element type of a new tensor."""
        self.model.graph.value_info.append(helper.make_tensor_value_info(name, kind, None))

    def drop_unused_constants(self) -> None:
        """Remove constants that no node reads."""
        self.index()
        keep = [tensor for tensor in self.model.graph.initializer if tensor.name in self.readers or tensor.name in self.outputs]
        kept = [TensorProto.FromString(tensor.SerializeToString()) for tensor in keep]
        del self.model.graph.initializer[:]
        self.model.graph.initializer.extend(kept)
        self.index()

    def types_and_shapes(self, batch: int = 1) -> tuple[dict[str, int], dict[str, tuple[int, ...] | None]]:
        """Element type and shape of every tensor that can be told; free dimensions count as ``batch``."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        for value in [*model.graph.input, *model.graph.output]:
            for size in value.type.tensor_type.shape.dim:
                if not size.HasField("dim_value"):
                    size.dim_value = batch
        del model.graph.value_info[:]
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        kinds = {tensor.name: tensor.data_type for tensor in self.model.graph.initializer}
        shapes: dict[str, tuple[int, ...] | None] = {tensor.name: tuple(tensor.dims) for tensor in self.model.graph.initializer}
        for value in [*self.model.graph.value_info, *inferred.value_info, *inferred.input, *inferred.output]:
            tensor = value.type.tensor_type
            if tensor.elem_type:
                kinds[value.name] = tensor.elem_type
            sizes = [size.dim_value if size.HasField("dim_value") else None for size in tensor.shape.dim]
            if tensor.HasField("shape"):
                shapes[value.name] = None if None in sizes else tuple(sizes)
        return kinds, shapes

    def weights_nbytes(self) -> int:
        """Bytes of all constants."""
        return sum(_nbytes(tensor) for tensor in self.constants.values())

    def replace_nodes(self, nodes: list[onnx.NodeProto]) -> None:
        """Make ``nodes`` the nodes of the graph."""
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del self.model.graph.node[:]
        self.model.graph.node.extend(copies)
        self.index()

    def save(self, file: Path) -> int:
        """Write the graph and ``<file>.data``, one tensor after the other; returns the size of the latter.

        Raises:
            InputError: see ``array``.
        """
        data, model = Path(f"{file}.data"), onnx.ModelProto()
        model.CopyFrom(self.model)
        end = 0
        with open(data, "wb") as out:
            for tensor in model.graph.initializer:
                values = np.ascontiguousarray(self.array(tensor.name))
                if values.nbytes < INLINE_NBYTES:
                    tensor.CopyFrom(numpy_helper.from_array(values.reshape(tuple(tensor.dims)), tensor.name))
                    continue
                values = stored_bytes(values, tensor.data_type)
                offset = -(-end // PAGE) * PAGE
                out.write(bytes(offset - end))
                out.write(memoryview(values))
                end = offset + values.nbytes
                outside = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=list(tensor.dims), data_location=TensorProto.EXTERNAL)
                for key, value in (("location", data.name), ("offset", str(offset)), ("length", str(values.nbytes))):
                    outside.external_data.add(key=key, value=value)
                tensor.CopyFrom(outside)
        if not end:
            data.unlink()
        Path(file).write_bytes(model.SerializeToString(deterministic=True))
        return end
