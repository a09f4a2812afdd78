"""What is done to a graph for ONNX Runtime alone, as a visible list. Every pass changes the model in place and returns how often."""

from __future__ import annotations

import onnx

from .attention import fuse_attention
from .norms import exact_norms

ENGINE_PASSES = (exact_norms, fuse_attention)
GATE_PASSES = (exact_norms,)  # the parity gate must judge the export, not a kernel that sums a million numbers in one go


def rewrite(model: onnx.ModelProto, passes=ENGINE_PASSES) -> dict[str, int]:
    """Apply the passes and drop the initialisers that nobody reads any more; returns what each pass did."""
    done = {step.__name__: step(model) for step in passes}
    read = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
    kept = [onnx.TensorProto.FromString(t.SerializeToString()) for t in model.graph.initializer if t.name in read]
    if len(kept) < len(model.graph.initializer):
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
    return done
