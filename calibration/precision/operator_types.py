"""Which element types ONNX lets an operator take and give, read from its own schemas."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import onnx

FP32, FP16 = "tensor(float)", "tensor(float16)"
ALWAYS_WIDE = {("Resize", 1)}  # the region of interest: ONNX would allow FP16, compilers read float32
DEFAULT_DOMAINS = ("", "ai.onnx")
OUR_DOMAIN = "fathom"
OUR_WIDE_INPUTS = {"BinsExpectation": (), "GroupNormSilu": (1, 2), "CrossAttention": ()}  # of trt_plugins/functions.py; they take and give FP16


@dataclass(frozen=True)
class OperatorTypes:
    """What one version of an operator says about FP32 tensors that might become FP16.

    Args:
        wide_inputs: positions that are float32 whatever the other inputs are (the scales of Resize).
        obstacle: why the operator cannot compute in FP16 at all, or ``""``.
    """

    wide_inputs: frozenset[int]
    obstacle: str


def opsets(model: onnx.ModelProto) -> dict[str, int]:
    """Version of every operator set that a model imports, by domain; the default domain is ``""``."""
    return {"" if entry.domain in DEFAULT_DOMAINS else entry.domain: entry.version for entry in model.opset_import}


def operator_types(node: onnx.NodeProto, versions: dict[str, int], floats: set[str]) -> OperatorTypes:
    """What holds for a node of a graph, given which of its tensors are float32."""
    domain = "" if node.domain in DEFAULT_DOMAINS else node.domain
    if domain == OUR_DOMAIN and node.op_type in OUR_WIDE_INPUTS:
        return OperatorTypes(frozenset(OUR_WIDE_INPUTS[node.op_type]), "")
    inputs = tuple(position for position, name in enumerate(node.input) if name in floats)
    outputs = tuple(position for position, name in enumerate(node.output) if name in floats)
    return _by_schema(node.op_type, domain, versions.get(domain, 1), inputs, outputs)


@lru_cache(maxsize=4096)
def _by_schema(op_type: str, domain: str, version: int, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> OperatorTypes:
    try:
        schema = onnx.defs.get_schema(op_type, version, domain)
    except onnx.defs.SchemaError:
        return OperatorTypes(frozenset(), f"ONNX does not say what types {domain + '.' if domain else ''}{op_type} takes")
    allowed = {constraint.type_param_str: set(constraint.allowed_type_strs) for constraint in schema.type_constraints}
    wide: set[int] = set()
    for position in inputs:
        kind = _formal(schema.inputs, position)
        if kind == FP32 or (op_type, position) in ALWAYS_WIDE:
            wide.add(position)
        elif FP16 not in allowed.get(kind, ()):
            return OperatorTypes(frozenset(), f"{op_type} takes no FP16 in opset {version}")
    for position in outputs:
        if FP16 not in allowed.get(_formal(schema.outputs, position), ()):
            return OperatorTypes(frozenset(), f"{op_type} gives no FP16 in opset {version}")
    return OperatorTypes(frozenset(wide), "")


def _formal(parameters: list, position: int) -> str:
    """The type of a parameter; the last one may stand for all that follow."""
    return parameters[min(position, len(parameters) - 1)].type_str if parameters else ""
