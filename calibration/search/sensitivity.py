"""What each region costs in depth if it alone computes in fewer bits, and which regions cannot at all: a screening on a few photos, or on one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from ..graph.stage_graph import StageGraph
from ..observation.observe import OnProgress, silent
from ..precision.precision_plan import FP32, Choice
from ..precision.quantised_stage import ranges_for
from ..precision.regions import Region, find_regions
from ..precision.rounding import fp16_overflows
from ..quantisation.formats import FORMATS, INT4
from ..quantisation.quantize import activation_inputs, quantisable
from ..ranges.observers import LAYER_OUTPUT, OBSERVERS
from .cost import EIGHT_BITS
from .evaluate import Evaluator
from .objective import Budget, Score, failed

FIRST_OBSERVER = LAYER_OUTPUT
LADDER = ("int4", "int8", "fp8", "fp16", "bf16")
SMOOTH_FROM = 0.9  # SmoothQuant is tried where it makes the layers' outputs at least so much less noisy


@dataclass
class Sensitivity:
    """What was measured of one region.

    Args:
        region: which.
        scores: of every choice that was tried, the region alone (FP16: perhaps the whole stage), on the photos that screen.
        overflows: tensors the region makes that FP16 cannot hold, with their greatest magnitude.
        reads: such tensors that its FP16 nodes would read.
        quantised: names of its nodes that can be quantised.
        declared: whether the network says that all of it stays FP32.
    """

    region: Region
    scores: dict[Choice, Score] = field(default_factory=dict)
    overflows: dict[str, float] = field(default_factory=dict)
    reads: dict[str, float] = field(default_factory=dict)
    quantised: tuple[str, ...] = ()
    declared: bool = False

    def best(self, precision: str) -> Choice | None:
        """The choice of a precision that moves the depth least."""
        tried = [choice for choice in self.scores if choice.precision == precision]
        return min(tried, key=lambda choice: self.scores[choice].harm, default=None)

    @property
    def holds_fp16(self) -> bool:
        """Whether FP16 can hold its numbers."""
        half = self.scores.get(Choice("fp16"))
        return half is not None and not half.failure

    def correct_biases(self, precision: str) -> None:
        """From now on its choices of a precision correct biases; what was measured without stands for them."""
        self.scores = {replace(choice, corrected=True) if choice.precision == precision else choice: score for choice, score in self.scores.items()}

    @property
    def harm(self) -> float:
        """For ranking: of each precision the best choice, of these the worst."""
        best: dict[str, float] = {}
        for choice, score in self.scores.items():
            best[choice.precision] = min(best.get(choice.precision, math.inf), score.harm)
        return max(best.values(), default=0.0)

    def ladder(self, precisions: tuple[str, ...]) -> tuple[Choice, ...]:
        """Choices to fall back on, smallest and then fastest first (INT8 is at least as fast as FP8 on every card), ending in FP32."""
        found = [self.best(precision) for precision in LADDER if precision in precisions]
        return (*(choice for choice in found if choice is not None and not self.scores[choice].failure), FP32)

    def evidence(self) -> dict[str, dict[str, Any]]:
        """For the plan."""
        return {choice.words: score.to_json() for choice, score in self.scores.items()}


def screen(
    evaluator: Evaluator,
    budget: Budget,
    precisions: tuple[str, ...],
    most_regions: int,
    on_progress: OnProgress = silent,
    out_of_time: Callable[[], bool] = lambda: False,
) -> dict[str, list[Sensitivity]]:
    """Look at every region of every stage alone, on one or a few photos, and judge by how far the depth moves: of so few the metrics say little.

    FP16 is tried for a whole stage, and region by region only where that moves the depth too far. INT8 and FP8 are tried with the observer that
    suits every tensor, with SmoothQuant as well where that quiets its layers, and where that moves the depth too far with every single observer. BF16 is tried
    where FP16 is too much: it costs the same and holds greater numbers with fewer digits.

    Args:
        evaluator: scores on the photos that screen.
        precisions: the candidates.
        most_regions: per stage.
        out_of_time: whether the rest must go without: those regions are not tried in INT8.

    Returns:
        stage -> sensitivities, the worst first.
    """
    found: dict[str, list[Sensitivity]] = {}
    regions = {spec.name: find_regions(spec.name, evaluator.chain.graphs[spec.name], most_regions) for spec in evaluator.chain.specs}
    total = sum(map(len, regions.values()))
    for spec in evaluator.chain.specs:
        graph = evaluator.chain.graphs[spec.name]
        inputs = activation_inputs(graph, evaluator.also)
        stays = evaluator.stays[spec.name]
        overflows = {name: peak for name, peak in fp16_overflows(evaluator.seen[spec.name].peaks).items() if _meets_fp16(graph, name, stays)}
        lines = []
        for region in regions[spec.name]:
            line = Sensitivity(region, quantised=tuple(name for name in region.nodes if name in inputs and name not in stays))
            line.overflows = {name: peak for name, peak in overflows.items() if (maker := graph.maker.get(name)) is not None and maker.name in region.nodes}
            working = {name for name in region.nodes if name not in stays}
            line.reads = {name: peak for name, peak in overflows.items() if any(reader.name in working for reader, _ in graph.readers[name])}
            line.declared = all(stays.get(name, "").startswith("island") for name in region.nodes)
            lines.append(line)
        open_lines = [line for line in lines if not line.declared]
        if "fp16" in precisions:
            _screen_fp16(evaluator, open_lines, budget)
        for line in lines:
            if not line.declared:
                _screen_region(evaluator, line, budget, precisions, out_of_time())
            on_progress("regions screened", total)
        found[spec.name] = sorted(lines, key=lambda line: -line.harm)
    return found


def _meets_fp16(graph: StageGraph, tensor: str, stays: dict[str, str]) -> bool:
    """Whether a node that is FP16 in an FP16 stage makes or reads a tensor; what never leaves the FP32 nodes overflows nowhere."""
    maker = graph.maker.get(tensor)
    nodes = [reader for reader, _ in graph.readers[tensor]] + ([maker] if maker is not None else [])
    return any(node.name not in stays for node in nodes)


def _screen_fp16(evaluator: Evaluator, lines: list[Sensitivity], budget: Budget) -> None:
    """FP16 for all regions of a stage that can hold their numbers in it, together; one by one if that moves the depth too far."""
    half = Choice("fp16")
    able = []
    for line in lines:
        if line.overflows or line.reads:
            tensor, peak = next(iter({**line.overflows, **line.reads}.items()))
            line.scores[half] = failed(f"tensor {tensor} reaches {peak:.3g}, which FP16 cannot hold (65504)")
        else:
            able.append(line)
    if not able:
        return
    together = evaluator.score({able[0].region.stage: {line.region.nodes: half for line in able}})
    for line in able:
        line.scores[half] = together if together.mild(budget) else evaluator.score({line.region.stage: {line.region.nodes: half}})


def _screen_region(evaluator: Evaluator, line: Sensitivity, budget: Budget, precisions: tuple[str, ...], hurried: bool) -> None:
    region, graph = line.region, evaluator.chain.graphs[line.region.stage]

    def tried(choice: Choice) -> Score:
        if choice not in line.scores:
            line.scores[choice] = evaluator.score({region.stage: {region.nodes: choice}})
        return line.scores[choice]

    if "bf16" in precisions and not ("fp16" in precisions and line.scores[Choice("fp16")].mild(budget)):
        tried(Choice("bf16"))
    if hurried or not line.quantised or line.overflows or line.reads:
        return
    if "int4" in precisions and quantisable(graph, INT4) & set(line.quantised):
        tried(Choice("int4"))
    for low in (low for low in EIGHT_BITS if low in precisions and quantisable(graph, FORMATS[low], evaluator.also) & set(line.quantised)):
        first = tried(Choice(low, FIRST_OBSERVER))
        alpha, noise = evaluator.smoothing(region.stage, line.quantised, FIRST_OBSERVER, low)
        if alpha and noise <= SMOOTH_FROM:
            first = min(first, tried(Choice(low, FIRST_OBSERVER, alpha)), key=lambda score: score.harm)
        best = line.best(low)
        if low == "int8" and best is not None and _centres(evaluator, line, best):
            first = min(first, tried(replace(best, centred=True)), key=lambda score: score.harm)
        if not first.mild(budget):
            for observer in OBSERVERS:
                tried(Choice(low, observer))


def _centres(evaluator: Evaluator, line: Sensitivity, choice: Choice) -> bool:
    """Whether shifting what the region's layers read makes some of them quieter."""
    graph, stage = evaluator.chain.graphs[line.region.stage], evaluator.seen[line.region.stage]
    return any(found.middles for found in ranges_for(graph, {line.region.nodes: replace(choice, centred=True)}, stage).values())
