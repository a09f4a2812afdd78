"""Which operators of domain ``fathom`` go into a graph: those that are asked for by name, and none by default."""

from __future__ import annotations

import onnx

from ...calibration.graph.stage_graph import opset_of
from ...runtime.errors import UsageError
from ...trt_plugins.functions import add_functions
from ..graph.inner_graphs import inner_graphs
from ..graph.tensor_types import tensor_types
from .bins_expectation import fuse_bins_expectation
from .cross_attention import fuse_cross_attention
from .group_norm_silu import fuse_group_norm_silu

RULES = {"BinsExpectation": fuse_bins_expectation, "GroupNormSilu": fuse_group_norm_silu, "CrossAttention": fuse_cross_attention}
LEAST_OPSET = 15  # of the bodies


def use_operators(model: onnx.ModelProto, names: tuple[str, ...] = ()) -> dict[str, int]:
    """Put operators into a graph of FP32 stages, in place, with the bodies that let it run without a plugin.

    Args:
        names: of the operators; none means that the graph stays as it is.

    Returns:
        name -> how many nodes were made: what a kernel does not take, by its type or size, stays as it is.

    Raises:
        UsageError: for a name that is no operator.
    """
    if unknown := [name for name in names if name not in RULES]:
        raise UsageError(f"there is no operator {', '.join(unknown)}", wanted=", ".join(RULES))
    if any(inner_graphs(node) for node in model.graph.node):  # branches and loops read by name, which the rules do not see
        return dict.fromkeys(names, 0)
    if opset_of(model) < LEAST_OPSET:
        return dict.fromkeys(names, 0)
    types = tensor_types(model)
    done = {name: RULES[name](model, types) for name in names}
    add_functions(model)
    return done
