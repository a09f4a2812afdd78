"""FP16, FP8 and INT4 for ONNX Runtime: an FP32 graph whose tensors are rounded where an engine stores them, to measure depth without a card."""

from __future__ import annotations

from pathlib import Path

from ...calibration.graph.captures import has_subgraph
from ...calibration.graph.chain import prepare
from ...calibration.graph.stage_graph import StageGraph
from ...calibration.precision.precision_plan import RegionPlan
from ...calibration.precision.quantised_stage import quantise_stage
from ...calibration.precision.rounding import round_through, stays_fp32
from ...calibration.quantisation.smooth import SMOOTHING
from ...calibration.ranges.table import CalibrationTable
from ...runtime.artefact.manifest import BundleStage

SIMULATED = "{} is simulated: tensors are rounded as such an engine stores them, sums are FP32; for measuring accuracy, slower than FP32"


def write_rounded_stage(
    source: Path,
    target: Path,
    stage: BundleStage,
    regions: tuple[RegionPlan, ...],
    boundaries: dict[str, str],
    table: CalibrationTable | None = None,
    also: tuple[str, ...] = (),
) -> int:
    """Write the form of an FP32 stage that loses what its typed form loses; returns how many roundings to 16 bits it has.

    ONNX Runtime has no FP16 kernels on x86: of a truly typed graph it computes neighbouring operators in FP32 without the roundings
    in between, which would flatter the result (see ``calibration.precision.rounding``). On ARM it has some, whose sums are worse than any engine's.

    Args:
        source: the FP32 graph of the bundle.
        target: the graph to write; its weights go to ``<target>.data``.
        regions: of this stage, from a precision plan; empty for FP16 wherever a typed stage has it.
        boundaries: dtype of the stage's inputs and outputs in an FP16 plan; here they stay float32 and are rounded.
        table: ranges and corrections, where some region is quantised.
        also: of the precision plan.

    Raises:
        InputError: if the file is no ONNX graph.
        BuildFailedError: if it holds control flow and is to be quantised.
    """
    graph = StageGraph.load(source, control_flow=not regions)
    if not any(has_subgraph(node) for node in graph.model.graph.node):  # branches see tensors by names that preparing may change
        prepare(graph)
    stays = stays_fp32(graph, stage.fp32_islands)
    if table is not None and any(region.choice.quantised for region in regions):
        quantise_stage(graph, regions, table, stage.spec.name, stored=False, also=also)
    precisions = {node.name: "fp16" for node in graph.model.graph.node if SMOOTHING in node.name}
    precisions |= {name: region.choice.precision for region in regions for name in region.nodes}
    if not regions:
        precisions = {node.name: "fp16" for node in graph.model.graph.node}
    casts = round_through(graph, precisions, stays, boundaries)
    graph.save(target)
    return casts
