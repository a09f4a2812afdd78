"""An exported graph to its file, and its weights to one file beside it."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from .onnx_weights import EXTERNAL_FROM_NBYTES, WeightsWriter


def write_model(model: ir.Model, file: Path) -> int:
    """Write a graph and ``<file>.data``; returns the size of the latter.

    The tensors are evaluated one after the other and not kept.
    """
    data = Path(f"{file}.data")
    kept = {}
    with WeightsWriter(data) as writer:
        for name, value in sorted(model.graph.initializers.items()):
            tensor = value.const_value
            if tensor.nbytes < EXTERNAL_FROM_NBYTES:
                continue
            extent = writer.add(tensor.numpy())
            kept[name] = tensor
            value.const_value = ir.ExternalTensor(
                data.name, extent.offset, extent.nbytes, tensor.dtype, shape=tensor.shape, name=name, base_dir=str(file.parent)
            )
        nbytes = writer.nbytes
    if not nbytes:
        data.unlink()
    proto = ir.to_proto(model)
    file.write_bytes(proto.SerializeToString(deterministic=True))
    for name, tensor in kept.items():
        model.graph.initializers[name].const_value = tensor
    return nbytes
