"""What is done to a graph for ONNX Runtime alone, as a visible list. Every pass changes the model in place and returns how often."""

from __future__ import annotations

import onnx

from ...calibration.graph.softmax import spread_softmax
from ..graph.inner_graphs import inner_graphs
from .attention import fuse_attention
from .int8_constants import own_int8_constants
from .norms import exact_norms

ENGINE_PASSES = (exact_norms, fuse_attention, spread_softmax, own_int8_constants)
GATE_PASSES = (exact_norms, own_int8_constants)  # the parity gate must judge the export, not a kernel that sums a million numbers in one go


def rewrite(model: onnx.ModelProto, passes=ENGINE_PASSES) -> dict[str, int]:
    """Apply the passes and drop the initialisers that no node reads any more; returns what each pass did.

    The passes follow readers from node to node; a graph with branches or loops, which read by name, is left to ONNX Runtime.
    """
    done = {step.__name__: 0 for step in passes} if _has_subgraph(model.graph) else {step.__name__: step(model) for step in passes}
    read = _read(model.graph)
    kept = [onnx.TensorProto.FromString(t.SerializeToString()) for t in model.graph.initializer if t.name in read]
    if len(kept) < len(model.graph.initializer):
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
    return done


def _has_subgraph(graph: onnx.GraphProto) -> bool:
    return any(inner_graphs(node) for node in graph.node)


def _read(graph: onnx.GraphProto) -> set[str]:
    """Names that the nodes of a graph read, those inside branches and loops included, and its outputs."""
    found = {value.name for value in graph.output}
    for node in graph.node:
        found.update(node.input)
        for inner in inner_graphs(node):
            found |= _read(inner)
    return found
