"""Local functions, Constant nodes and weights inside branches, moved to the main graph, where every later step expects nodes and weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from ...runtime.errors import InputError
from ..graph.inner_graphs import inner_graphs, own_names, rename
from ..graph.onnx_weights import read_array
from ..graph.set_nodes import set_nodes

LONG_DOMAIN = "ai.onnx"
MAX_SPARSE = 1 << 29
OLD_GRIDS = 10  # up to this opset pixels are enlarged from their corners, which ONNX's converter forgets


def open_up(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """The same network without local functions, with constants as initialisers, with no weight of a branch outside the graph, and in the forms
    that ONNX wants and ONNX Runtime does not insist on: operators of the domain ``ai.onnx`` under its short name, nodes in running order.

    Args:
        folder: where weights outside the graph may lie.

    Raises:
        InputError: if a weight's file is unsafe, missing or too short, or a weight, Constant node or function is broken.
    """
    _shorten_domains(model)
    if model.functions:
        model = _inline(model)
    _fill_sparse(model.graph, folder)
    for tensor in _attribute_tensors(model.graph):
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.CopyFrom(numpy_helper.from_array(np.array(read_array(tensor, folder)), tensor.name))
    _lift_constants(model)
    set_nodes(model.graph, _in_order(model.graph))
    return model


def _inline(model: onnx.ModelProto) -> onnx.ModelProto:
    """The network without local functions; those of an opset that cannot be brought to the network's stay, and are refused later.

    Raises:
        InputError: if a function is called as it cannot be, or is there twice.
    """
    own = next((entry.version for entry in model.opset_import if entry.domain == ""), 0)
    others = [entry.version for function in model.functions for entry in function.opset_import if entry.domain == "" and entry.version != own]
    if others and min(others) > OLD_GRIDS:
        try:
            return onnx.inliner.inline_local_functions(onnx.shape_inference.infer_shapes(model), convert_version=True)
        except Exception:  # the converter raises its own kinds; it goes without
            pass
    try:
        return onnx.inliner.inline_local_functions(model)
    except Exception as error:  # ONNX raises RuntimeError, ValidationError and others
        raise InputError(f"a local function of the graph cannot be put in its place ({str(error).strip()[-200:]})", fix="export the network again") from error


def _fill_sparse(graph: onnx.GraphProto, folder: Path) -> None:
    """Sparse initialisers become plain ones."""
    for sparse in graph.sparse_initializer:
        dims, indices = tuple(sparse.dims), read_array(sparse.indices, folder)
        if np.prod(dims, dtype=np.float64) > MAX_SPARSE:
            raise InputError(f"the sparse weight {sparse.values.name} has the shape {list(dims)}", wanted=f"at most {MAX_SPARSE:,} values")
        values = read_array(sparse.values, folder)
        try:
            dense = np.zeros(dims, values.dtype)
            dense.reshape(-1)[np.ravel_multi_index(tuple(indices.T), dims) if indices.ndim == 2 else indices] = values
        except (ValueError, IndexError) as error:
            raise InputError(f"the sparse weight {sparse.values.name} has values outside its shape {list(dims)}", fix="export it again") from error
        graph.initializer.append(numpy_helper.from_array(dense, sparse.values.name))
    del graph.sparse_initializer[:]


def _shorten_domains(model: onnx.ModelProto) -> None:
    """``ai.onnx`` is another name of the domain ``""``."""
    for holder in (model, *model.functions):
        if any(entry.domain == LONG_DOMAIN for entry in holder.opset_import):
            entries = {("" if entry.domain == LONG_DOMAIN else entry.domain): entry.version for entry in holder.opset_import}
            del holder.opset_import[:]
            holder.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in entries.items())
    waiting = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while waiting:
        node = waiting.pop()
        if node.domain == LONG_DOMAIN:
            node.domain = ""
        waiting += [inner for graph in inner_graphs(node) for inner in graph.node]


def _in_order(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes so that each follows those it reads from, otherwise as they stood; those of a circle come last, for the checker to refuse."""
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    reads = [{makers[name] for name in names_read(node) if name in makers} for node in graph.node]
    done: dict[int, None] = {}
    for start in range(len(reads)):
        waiting, under_way = [start], set()
        while waiting:
            index = waiting[-1]
            missing = [] if index in under_way else sorted(other for other in reads[index] if other not in done)
            under_way.add(index)
            if missing:
                waiting += reversed(missing)
            else:
                done[waiting.pop()] = None
    return [graph.node[index] for index in done]


def _attribute_tensors(graph: onnx.GraphProto, inside: bool = False) -> Iterator[TensorProto]:
    """Tensors of attributes, and initialisers of the graphs inside nodes."""
    if inside:
        yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t
            yield from attribute.tensors
            for inner in (*attribute.graphs, *([attribute.g] if attribute.type == AttributeProto.GRAPH else [])):
                yield from _attribute_tensors(inner, True)


def _lift_constants(model: onnx.ModelProto) -> None:
    """Constant nodes of the outer graph become initialisers, which exporters, typing and builders treat as weights."""
    outputs = {value.name for value in model.graph.output}
    kept = []
    for node in model.graph.node:
        values = _constant(node) if node.op_type == "Constant" and not outputs.intersection(node.output) else None
        if values is None:
            kept.append(node)
        else:
            model.graph.initializer.append(values)
    set_nodes(model.graph, kept)


def _constant(node: onnx.NodeProto) -> TensorProto | None:
    if len(node.attribute) != 1 or len(node.output) != 1:
        was = f"the Constant node {node.name} has {len(node.attribute)} values and {len(node.output)} outputs"
        raise InputError(was, wanted="one of each", fix="export the network again")
    (attribute,), (name,) = node.attribute, node.output
    if attribute.name == "value" and attribute.type == AttributeProto.TENSOR:
        tensor = TensorProto.FromString(attribute.t.SerializeToString())
        tensor.name = name
        return tensor
    kinds = {"value_float": attribute.f, "value_floats": attribute.floats, "value_int": attribute.i, "value_ints": attribute.ints}
    if attribute.name not in kinds:  # strings and sparse tensors stay where they are
        return None
    return numpy_helper.from_array(np.array(kinds[attribute.name], np.float32 if "float" in attribute.name else np.int64), name)


def names_read(node: onnx.NodeProto) -> set[str]:
    """Names a node reads from the graph around it, those inside its own graphs included."""
    found = set(node.input) - {""}
    for graph in inner_graphs(node):
        own = own_names(graph)
        for inner in graph.node:
            found |= names_read(inner) - own
        found |= {value.name for value in graph.output} - own
    return found


def make_way(graph: onnx.GraphProto, names: Iterable[str], endings: tuple[str, ...] = (), beginnings: tuple[str, ...] = ()) -> None:
    """Rename inner tensors whose names are about to be given to others: those in ``names``, and those that end or begin in these ways."""
    wanted, kept = set(names), {value.name for value in (*graph.input, *graph.output)}
    made = [name for node in graph.node for name in node.output if name] + [tensor.name for tensor in graph.initializer]
    taken = {*made, *kept}
    for name in made:
        if name not in kept and (name in wanted or name.endswith(endings) or name.startswith(beginnings)):
            after = f"inner/{name}/"
            while after in taken:
                after += "_"
            taken.add(after)
            rename(graph, name, after)
            for tensor in graph.initializer:
                if tensor.name == name:
                    tensor.name = after


def drop_unread(model: onnx.ModelProto) -> None:
    """Remove the nodes and weights on which no output depends."""
    wanted, kept = {value.name for value in model.graph.output}, []
    for node in reversed(model.graph.node):
        if any(name in wanted for name in node.output):
            wanted |= names_read(node)
            kept.append(node)
    set_nodes(model.graph, reversed(kept))
    weights = [tensor for tensor in model.graph.initializer if tensor.name in wanted]
    if len(weights) < len(model.graph.initializer):
        weights = [TensorProto.FromString(tensor.SerializeToString()) for tensor in weights]
        del model.graph.initializer[:]
        model.graph.initializer.extend(weights)
