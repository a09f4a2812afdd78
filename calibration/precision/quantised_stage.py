"""A stage with INT8, FP8 or INT4 where its plan says so: ranges, SmoothQuant, Q/DQ; the same steps for trying a plan and for typing by it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ...runtime.errors import InputError
from ..graph.chain import prepare
from ..graph.stage_graph import StageGraph
from ..observation.stage_observation import StageObservation
from ..quantisation.centre import centrable, centre, limits_of
from ..quantisation.correct import bias_place, correct, output_of
from ..quantisation.formats import FORMATS, INT8, Format
from ..quantisation.layer_error import ALL, Layer, best_on_other_scenes, layers_of
from ..quantisation.quantize import Quantized, activation_inputs, quantisable, quantize
from ..quantisation.smooth import CENTRED, Smoothed, smooth, smoothable, source_of
from ..ranges.observers import LAYER_OUTPUT, OBSERVERS, Histogram
from ..ranges.table import CalibrationTable, TensorRange
from .precision_plan import Choice, RegionPlan

QUIETER = 0.8  # activations are centred where that leaves so much of the noise of the layers that read them
ALPHAS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99)
Choices = dict[tuple[str, ...], Choice]  # nodes of a region -> what it computes in


def suited(graph: StageGraph, choices: Choices, also: tuple[str, ...] = ()) -> Choices:
    """Choices of fewer bits for the nodes alone that are computed in them; the rest of a region is FP16."""
    able = {name: quantisable(graph, FORMATS[name], also) for name in {choice.precision for choice in choices.values()} & set(FORMATS)}
    return {tuple(name for name in names if choice.precision not in able or name in able[choice.precision]): choice for names, choice in choices.items()}


def ranges_for(graph: StageGraph, choices: Choices, seen: StageObservation, also: tuple[str, ...] = ()) -> dict[str, TensorRange]:
    """Range of every activation that some quantised node reads, by that node's rule; if nodes disagree on a tensor's observer, the first wins.

    A tensor that SmoothQuant divides gets its range by the same rule, and its channels for the division.
    """
    inputs, choices = activation_inputs(graph, also), suited(graph, choices, also)
    nodes = {node.name: node for node in graph.model.graph.node}
    ranges: dict[str, TensorRange] = {}
    for names, choice in choices.items():
        if not choice.observer:
            continue
        rules = seen.ranges(choice.observer, FORMATS[choice.precision])
        for name in names:
            for position in inputs.get(name, ()):
                tensor = nodes[name].input[position]
                if tensor in rules:
                    ranges.setdefault(tensor, rules[tensor])
    by_node = {name: choice for names, choice in choices.items() for name in names}
    work = graph.copy()
    done = _smooth(work, choices, seen.channels)
    for target, found in done.items():
        choice = by_node[found.layers[0]]
        ranges[target] = smoothed_range(graph, found, choice.observer, seen, FORMATS[choice.precision])
    for base, layers in centrable(work, [name for name, choice in by_node.items() if choice.centred]).items():
        if base in ranges and (found := centred_range(graph, base, [node.name for node in layers], done.get(base), ranges[base], seen)) is not None:
            ranges[f"{base}{CENTRED}"] = found
    return ranges


def centred_range(graph: StageGraph, base: str, layers: list[str], smoothed: Smoothed | None, plain: TensorRange, seen: StageObservation) -> TensorRange | None:
    """Range of a tensor whose channels are shifted to lie around zero; None where that does not make the layers that read it so much quieter.

    Args:
        base: what they would read otherwise, in the range ``plain``.
        layers: names of those that read it.
        smoothed: how SmoothQuant made it, or None.
    """
    source, factors = source_of(base), smoothed.factors if smoothed else None
    if source not in seen.lows or (smoothed is not None and base == source):  # its maker divides: what was seen is something else
        return None
    padded = any(node.op_type == "Conv" for node, _ in graph.readers[source] if node.name in layers)
    middles, amax = limits_of(seen.lows[source], seen.highs[source], factors, padded)
    before = layers_of(graph, source, seen.samples, layers, factors)
    after = layers_of(graph, source, seen.samples, layers, factors, middles=middles)
    noise = [sum(layer.noise(reach) for layer in some) for some, reach in ((before, plain.amax), (after, amax))]
    return TensorRange(amax, "max", amax, plain.channels, tuple(map(float, middles))) if after and noise[1] <= QUIETER * noise[0] else None


def smoothed_range(graph: StageGraph, found: Smoothed, observer: str, seen: StageObservation, form: Format = INT8) -> TensorRange:
    """Range of a tensor that SmoothQuant divides, by the same observer, on the sample of it; the greatest magnitude if there is none."""
    left = float((seen.channels[found.tensor] / found.factors).max())
    channels = tuple(float(v) for v in seen.channels[found.tensor])
    layers = layers_of(graph, found.tensor, seen.samples, found.layers, found.factors, form)
    if not layers:
        return TensorRange(left, "max", left, channels)
    rule = observer
    if observer == LAYER_OUTPUT:
        greatest = layers_of(graph, found.tensor, seen.samples, found.layers, found.factors, form, greatest=True)
        ranges = {}
        for fold in seen.elsewhere(found.tensor):
            parts = [_sampled(some[0], np.flatnonzero(seen.origins[some[0].key] != fold)) for some in (layers, greatest)]
            ranges[fold] = {name: read(parts[0]) for name, read in OBSERVERS.items()} | {"max": max(part.amax for part in parts)}
        rule = best_on_other_scenes(layers, greatest, seen.origins, ranges)
    amax = left if rule == "max" else min(OBSERVERS[rule](_sampled(layers[0], ALL)), left)
    return TensorRange(amax, rule, left, channels)


def _sampled(layer: Layer, some: np.ndarray | slice) -> Histogram:
    """Of some of the sampled rows."""
    histogram = Histogram()
    histogram.add(layer.rows[some])
    return histogram


def best_alpha(graph: StageGraph, nodes: Iterable[str], observer: str, seen: StageObservation, form: Format = INT8) -> tuple[float, float]:
    """SmoothQuant's alpha with which the outputs of some nodes are least noisy (0 for none), and that noise over the noise without, each with the ranges
    of ``observer``; (0, 1) where nothing can be smoothed or nothing was sampled.

    ``layer-output`` is taken as the greatest magnitude, which it keeps for nearly every tensor: to judge all rules on all scenes left out,
    for each alpha anew, takes minutes.
    """
    able = quantisable(graph, form)
    names, observer = tuple(name for name in nodes if name in able), "max" if observer == LAYER_OUTPUT else observer
    ranges = seen.ranges(observer, form)
    tensors = {
        tensor: layers
        for tensor in smoothable(graph, names)
        if tensor in seen.channels and (layers := layers_of(graph, tensor, seen.samples, names, form=form))
    }
    plain = sum(layer.noise(ranges[tensor].amax) for tensor, layers in tensors.items() for layer in layers)
    best = (0.0, plain)
    for alpha in ALPHAS if plain else ():
        done = [found for found in smooth(graph.copy(), names, seen.channels, alpha).values() if found.tensor in tensors]
        noise = sum(layer.noise(ranges[tensor].amax) for tensor in set(tensors) - {found.tensor for found in done} for layer in tensors[tensor])
        for found in done:
            amax = smoothed_range(graph, found, observer, seen, form).amax
            noise += sum(layer.noise(amax) for layer in layers_of(graph, found.tensor, seen.samples, found.layers, found.factors, form))
        if noise < best[1]:
            best = (alpha, noise)
    return best[0], best[1] / plain if plain else 1.0


def shifts_for(
    graph: StageGraph, choices: Choices, ranges: dict[str, TensorRange], seen: StageObservation, known: dict[tuple, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """What bias correction takes from the biases of the nodes whose choices want it: node -> mean error of its output channels, [O].

    Args:
        ranges: see ``ranges_for``.
        known: remembers them by node, range and alpha.
    """
    known, choices = {} if known is None else known, suited(graph, choices)
    wanted = {name: choice for names, choice in choices.items() if choice.corrected for name in names}
    if not wanted:
        return {}
    work = graph.copy()
    done = _smooth(work, choices, seen.channels)
    centred = centrable(work, [name for names, choice in choices.items() if choice.centred for name in names])
    shifted = {node.name for layers in centred.values() for node in layers}
    reads = {name: (target, found.factors) for target, found in done.items() for name in found.layers}
    folded = {found.tensor: found.factors for target, found in done.items() if target == found.tensor}
    found: dict[str, np.ndarray] = {}
    for node in graph.model.graph.node:
        if node.name not in wanted or not node.input or bias_place(graph, node) is None:
            continue
        target, factors = reads.get(node.name, (node.input[0], None))
        if node.name in shifted and f"{target}{CENTRED}" in ranges:
            target = f"{target}{CENTRED}"
        if target not in ranges:
            continue
        form, middles = FORMATS[wanted[node.name].precision], np.array(ranges[target].middles) if ranges[target].middles else None
        key = (graph.model.graph.name, node.name, form.name, ranges[target].amax, wanted[node.name].smooth if factors is not None else 0.0, middles is None)
        if key not in known:
            layers = layers_of(graph, node.input[0], seen.samples, (node.name,), factors, form, middles=middles)
            known[key] = layers[0].shift(ranges[target].amax) if layers else np.zeros(0)
        if known[key].size:
            made = output_of(graph, node)
            found[node.name] = known[key] / folded[made] if made in folded else known[key]
    return found


def make_quantised(
    graph: StageGraph,
    choices: Choices,
    ranges: dict[str, TensorRange],
    shifts: dict[str, np.ndarray] | None = None,
    *,
    stored: bool,
    also: tuple[str, ...] = (),
) -> Quantized:
    """Smooth, correct and quantise what the choices say, in place; see ``shifts_for``, and ``quantize`` for ``stored`` and ``also``."""
    smooth_and_correct(graph, choices, ranges, shifts, also)
    done = []
    for form in FORMATS.values():
        nodes = [name for names, choice in choices.items() if choice.precision == form.name for name in names]
        done.append(quantize(graph, ranges, nodes, form=form, stored=stored, also=also))
    facts = (tuple(name for part in done for name in getattr(part, field)) for field in ("nodes", "activations", "weights"))
    return Quantized(*facts, {name: why for part in done for name, why in part.left.items()})


def smooth_and_correct(
    graph: StageGraph, choices: Choices, ranges: dict[str, TensorRange], shifts: dict[str, np.ndarray] | None = None, also: tuple[str, ...] = ()
) -> None:
    """What the choices say of a stage's weights and biases before anything is quantised, in place: SmoothQuant, the correction of biases, and the
    shift of what is not centred."""
    choices = suited(graph, choices, also)
    channels = {source_of(name): np.asarray(found.channels) for name, found in ranges.items() if found.channels}
    smoothed = _smooth(graph, choices, channels)
    wanted = {name for names, choice in choices.items() if choice.corrected for name in names}
    correct(graph, {name: shift for name, shift in (shifts or {}).items() if name in wanted})
    form = {name: FORMATS[choice.precision] for names, choice in choices.items() if choice.centred for name in names}
    for base, layers in centrable(graph, form).items():
        if (found := ranges.get(f"{base}{CENTRED}")) is not None and found.middles:
            middles = np.array(found.middles) / (smoothed[base].factors if base in smoothed else 1.0)
            centre(graph, base, layers, middles, form[layers[0].name])
    graph.drop_unused_constants()


def _smooth(graph: StageGraph, choices: Choices, channels: dict[str, np.ndarray]) -> dict[str, Smoothed]:
    done: dict[str, Smoothed] = {}
    for alpha in sorted({choice.smooth for choice in choices.values() if choice.smooth}):
        nodes = [name for names, choice in choices.items() if choice.smooth == alpha for name in names]
        done |= smooth(graph, nodes, channels, alpha)
    return done


def quantise_stage(
    graph: StageGraph, regions: tuple[RegionPlan, ...], table: CalibrationTable, stage: str, *, stored: bool, also: tuple[str, ...] = ()
) -> Quantized:
    """Quantise what a precision plan says, in place.

    Args:
        graph: the FP32 stage of the bundle, prepared (see ``chain.prepare``).
        regions: of this stage.
        table: its ranges and corrections of biases.
        stage: name.
        stored, also: see ``quantize``.

    Raises:
        InputError: if the plan names nodes that the graph does not have, or the table lacks a range that the plan needs.
    """
    known = {node.name for node in graph.model.graph.node}
    for region in regions:
        if missing := [name for name in region.nodes if name not in known]:
            raise InputError(f"the precision plan names the node {missing[0]}, which the stage {stage} does not have", fix="run depth-calibrate on this bundle")
    shifts = {name: np.array(values) for name, values in table.shifts.get(stage, {}).items()}
    choices = {region.nodes: region.choice for region in regions}
    done = make_quantised(graph, choices, table.stages.get(stage, {}), shifts, stored=stored, also=also)
    if lacking := [name for name, why in done.left.items() if why.startswith("no range")]:
        raise InputError(f"the calibration table has no range for the node {lacking[0]}", fix="run depth-calibrate on this bundle")
    return done


def write_quantised_stage(
    source: Path, target: Path, regions: tuple[RegionPlan, ...], table: CalibrationTable, stage: str, also: tuple[str, ...] = ()
) -> Quantized:
    """Write the form of an FP32 stage in which the quantised regions hold Q/DQ and weights of fewer bits, and everything else is FP32 still.

    Args:
        source: the FP32 graph of the bundle.
        target: the graph to write; its weights go to ``<target>.data``.
        regions, table, stage, also: see ``quantise_stage``.

    Raises:
        InputError: see ``quantise_stage``.
    """
    graph = StageGraph.load(source)
    prepare(graph)
    done = quantise_stage(graph, regions, table, stage, stored=True, also=also)
    graph.save(target)
    return done
