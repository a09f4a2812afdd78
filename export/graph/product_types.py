"""In what type the convolutions and matrix products of a typed graph compute, which the compiled engine must keep."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto

PRODUCTS = ("Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum")


def products_by_type(graph: Path) -> dict[int, list[str]]:
    """Element type -> names of the convolutions and matrix products that compute in it."""
    model = onnx.load(str(graph), load_external_data=False)
    types = {value.name: value.type.tensor_type.elem_type for value in [*model.graph.input, *model.graph.output, *model.graph.value_info]}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    found: dict[int, list[str]] = {}
    for node in model.graph.node:
        if node.op_type in PRODUCTS:
            kinds = {types.get(name) for name in node.input if name in types}
            low = next((kind for kind in (TensorProto.FLOAT16, TensorProto.BFLOAT16) if kind in kinds), TensorProto.FLOAT)
            found.setdefault(low, []).append(node.name)
    return found
