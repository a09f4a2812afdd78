"""The rule for ``fathom.GroupNormSilu``: the seven nodes of a group norm and its SiLU become one."""

from __future__ import annotations

import onnx

from .region import Surroundings, replace


def fuse_group_norm_silu(model: onnx.ModelProto, types: dict[str, onnx.TypeProto.Tensor]) -> int:
    """Replace every match that the kernel takes, in place; returns how many. ``types`` are those of ``tensor_types``.

    What ``translations.group_norm`` writes (Reshape, InstanceNormalization with scale 1 and shift 0, Reshape, Mul and Add by a number
    per channel), and ``z * Sigmoid(z)`` behind it. A norm without SiLU stays as it is.
    """
    done = 0
    for output in [node.output[0] for node in model.graph.node if node.op_type == "InstanceNormalization"]:
        around = Surroundings(model, types)
        if (found := _match(around, around.maker[output])) is None:
            continue
        inputs, end, attributes = found
        region, node = around.region([end], inputs[:1]), around.operator("GroupNormSilu", inputs, [end], attributes)
        if region is not None and node is not None:
            replace(model, region, node)
            done += 1
    return done


def _match(around: Surroundings, norm: onnx.NodeProto) -> tuple[list[str], str, dict] | None:
    before, back = around.made_by(norm.input[0], "Reshape"), around.read_by(norm.output[0], "Reshape")
    if before is None or back is None:
        return None
    grouped, sizes = around.constant(before.input[1]), around.constant(back.input[1])
    ones, zeros = around.constant(norm.input[1]), around.constant(norm.input[2])
    if any(values is None for values in (grouped, sizes, ones, zeros)) or (ones != 1).any() or zeros.any():
        return None
    if len(grouped) != 3 or grouped[0] != 0 or grouped[2] != -1 or len(sizes) < 3 or sizes[0] != 0:
        return None
    if around.sizes(before.input[0])[1:] != tuple(sizes[1:]):  # the operator takes its channels from its input, and gives its shape
        return None
    names = []
    value = back.output[0]
    for op in ("Mul", "Add"):
        step = around.read_by(value, op)
        if step is None:
            return None
        names.append(next((name for name in step.input if around.per_channel(name, len(sizes), sizes[1])), ""))
        value = step.output[0]
    gate = around.read_by(value, "Sigmoid")
    gated = around.read_by(gate.output[0], "Mul") if gate is not None else None
    if not all(names) or gated is None or set(gated.input) != {value, gate.output[0]}:
        return None
    epsilon = next((attribute.f for attribute in norm.attribute if attribute.name == "epsilon"), 1e-5)
    return [before.input[0], *names], gated.output[0], {"groups": int(grouped[1]), "epsilon": epsilon}
