"""A stage with INT8 where its plan says so: ranges, SmoothQuant, Q/DQ; the same steps for trying a plan and for typing by it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...runtime.errors import InputError
from ..graph.chain import prepare
from ..graph.stage_graph import StageGraph
from ..int8.quantize import Quantized, activation_inputs, quantize
from ..int8.smooth import smooth
from ..observation.observe import StageObservation
from ..ranges.table import TensorRange
from .precision_plan import Choice, RegionPlan

Choices = dict[tuple[str, ...], Choice]  # nodes of a region -> what it computes in


def ranges_for(graph: StageGraph, choices: Choices, seen: StageObservation, also: tuple[str, ...] = ()) -> dict[str, TensorRange]:
    """Range of every activation that some INT8 node reads, by that node's rule; if nodes disagree on a tensor's observer, the first wins.

    A tensor that SmoothQuant divides gets the greatest magnitude it has left, and its channels for the division.
    """
    inputs = activation_inputs(graph, also)
    nodes = {node.name: node for node in graph.model.graph.node}
    ranges: dict[str, TensorRange] = {}
    for names, choice in choices.items():
        if choice.precision != "int8":
            continue
        rules = seen.ranges(choice.observer)
        for name in names:
            for position in inputs.get(name, ()):
                tensor = nodes[name].input[position]
                if tensor in rules:
                    ranges.setdefault(tensor, rules[tensor])
    for tensor, factors in _smooth(graph.copy(), choices, seen.channels).items():
        left = float((seen.channels[tensor] / factors).max())
        ranges[tensor] = TensorRange(left, "max", left, tuple(float(v) for v in seen.channels[tensor]))
    return ranges


def make_int8(graph: StageGraph, choices: Choices, ranges: dict[str, TensorRange], *, stored: bool, also: tuple[str, ...] = ()) -> Quantized:
    """Smooth and quantise what the choices say, in place; see ``quantize`` for ``stored`` and ``also``."""
    channels = {name: np.asarray(found.channels) for name, found in ranges.items() if found.channels}
    _smooth(graph, choices, channels)
    nodes = [name for names, choice in choices.items() if choice.precision == "int8" for name in names]
    return quantize(graph, ranges, nodes, stored=stored, also=also)


def _smooth(graph: StageGraph, choices: Choices, channels: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    done: dict[str, np.ndarray] = {}
    for alpha in sorted({choice.smooth for choice in choices.values() if choice.smooth}):
        nodes = [name for names, choice in choices.items() if choice.smooth == alpha for name in names]
        done |= smooth(graph, nodes, channels, alpha)
    return done


def write_int8_stage(source: Path, target: Path, regions: tuple[RegionPlan, ...], ranges: dict[str, TensorRange], also: tuple[str, ...] = ()) -> Quantized:
    """Write the form of an FP32 stage in which the INT8 regions hold Q/DQ and INT8 weights, and everything else is FP32 still.

    Args:
        source: the FP32 graph of the bundle.
        target: the graph to write; its weights go to ``<target>.data``.
        regions: of this stage, from the precision plan.
        ranges: of this stage, from the calibration table.
        also: of the precision plan.

    Raises:
        InputError: if the plan names nodes that the graph does not have, or the table lacks a range that the plan needs.
    """
    graph = StageGraph.load(source)
    prepare(graph)
    known = {node.name for node in graph.model.graph.node}
    for region in regions:
        if missing := [name for name in region.nodes if name not in known]:
            raise InputError(f"the precision plan names the node {missing[0]}, which {source.name} does not have", fix="run depth-calibrate on this bundle")
    done = make_int8(graph, {region.nodes: region.choice for region in regions}, ranges, stored=True, also=also)
    if lacking := [name for name, why in done.left.items() if why.startswith("no range")]:
        raise InputError(f"the calibration table has no range for the node {lacking[0]}", fix="run depth-calibrate on this bundle")
    graph.save(target)
    return done
