"""How much of a network's work a quantised ONNX file does in fewer bits, and whether TensorRT could read it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

CODE = """
import json, sys, onnx
from onnx import TensorProto, helper, numpy_helper
model, plain = (onnx.load(file, load_external_data=False) for file in sys.argv[1:])
facts = {t.name: t for t in model.graph.initializer}
shapes = {t.name: tuple(t.dims) for t in plain.graph.initializer}
values = [*plain.graph.input, *plain.graph.output, *onnx.shape_inference.infer_shapes(plain).graph.value_info]
for value in values:
    shapes.setdefault(value.name, tuple(d.dim_value or 1 for d in value.type.tensor_type.shape.dim))
makers, sources = ({name: node for node in graph.node for name in node.output} for graph in (model.graph, plain.graph))
KINDS = {TensorProto.INT8: "int8", TensorProto.UINT8: "uint8", TensorProto.FLOAT8E4M3FN: "fp8"}
offsets = False
def low(name):
    # the 8-bit type that a tensor comes from, or None
    global offsets
    node = makers.get(name)
    while node is not None and node.op_type in ("Cast", "Reshape", "Transpose", "Identity"):
        node = makers.get(node.input[0])
    if node is None or not node.op_type.endswith("DequantizeLinear"):
        return None
    if "FP8" in node.op_type:
        return "fp8"
    zero = node.input[2] if len(node.input) > 2 else ""
    quantiser = makers.get(node.input[0])
    source = facts.get(zero) if zero in facts else facts.get(node.input[0])
    if source is None and zero in makers and makers[zero].op_type == "Constant":
        source = next(a.t for a in makers[zero].attribute if a.name == "value")
    if source is None:
        return "uint8"
    kind = KINDS.get(source.data_type)
    if kind in ("int8", "uint8") and source.name == zero and numpy_helper.to_array(source).any():
        offsets = True
    return kind
totals, kinds = {"all": 0, "low": 0}, set()
by_name = {node.name: node for node in model.graph.node}  # of files that are their own plain network the names may be empty
for place, node in enumerate(plain.graph.node):
    mine = model.graph.node[place] if sys.argv[1] == sys.argv[2] else by_name.get(node.name)
    if node.op_type not in ("Conv", "ConvTranspose", "MatMul", "Gemm"):
        continue
    weight = shapes.get(node.input[1], ())
    if not weight and node.input[1] in sources:
        weight = shapes.get(sources[node.input[1]].input[0], ())
    made = shapes[node.output[0]]
    if node.op_type == "Conv":
        macs = helper.np.prod(made) * helper.np.prod(weight[1:])
    elif node.op_type == "ConvTranspose":
        macs = helper.np.prod(shapes[node.input[0]]) * helper.np.prod(weight[1:])
    else:
        macs = helper.np.prod(made) * weight[0]
    found = [low(name) for name in mine.input[:2]]
    totals["all"] += int(macs)
    if all(found):
        totals["low"] += int(macs)
        kinds.update(found)
print(json.dumps({"macs": totals["all"], "share": totals["low"] / totals["all"], "types": sorted(kinds), "offsets": offsets}))
"""


def low_share(file: Path, plain: Path | None = None) -> dict[str, Any]:
    """``macs`` of all layers, ``share`` of them in layers whose both inputs come from 8 bits, ``types`` of those, and ``offsets`` (zero points other than 0).

    Args:
        plain: the network before, in which the layers have the same names, where ``file`` holds operators whose shapes ONNX does not know.

    Raises:
        RuntimeError: if the file cannot be read.
    """
    done = subprocess.run([sys.executable, "-c", CODE, str(file), str(plain or file)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{file.name}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return json.loads(done.stdout)


def tensorrt_reads(facts: dict[str, Any]) -> bool:
    """Whether these are the types TensorRT takes: INT8 or FP8 around a zero of 0."""
    return bool(facts["types"]) and not facts["offsets"] and "uint8" not in facts["types"]
