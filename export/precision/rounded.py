"""FP16 for ONNX Runtime: an FP32 graph whose tensors are rounded where an FP16 engine stores them, to measure depth without a card."""

from __future__ import annotations

from pathlib import Path

from ...calibration.graph.chain import prepare
from ...calibration.graph.stage_graph import StageGraph
from ...calibration.precision.precision_plan import RegionPlan
from ...calibration.precision.rounding import round_through, stays_fp32
from ...runtime.artefact.manifest import BundleStage

SIMULATED = "FP16 is simulated: tensors are rounded as an FP16 engine stores them, sums are FP32; for measuring accuracy, slower than FP32"


def write_rounded_stage(source: Path, target: Path, stage: BundleStage, regions: tuple[RegionPlan, ...], boundaries: dict[str, str]) -> int:
    """Write the form of an FP32 stage that loses what its FP16 form loses; returns how many roundings it has.

    ONNX Runtime has no FP16 kernels on a CPU: of a truly typed graph it computes neighbouring operators in FP32 without the roundings
    in between, which would flatter the result (see ``calibration.precision.rounding``).

    Args:
        source: the FP32 graph of the bundle.
        target: the graph to write; its weights go to ``<target>.data``.
        regions: of this stage, from a precision plan, none of them INT8; empty for FP16 wherever a typed stage has it.
        boundaries: dtype of the stage's inputs and outputs in an FP16 plan; here they stay float32 and are rounded.

    Raises:
        InputError: if the file is no ONNX graph.
        BuildFailedError: if it holds control flow.
    """
    graph = StageGraph.load(source)
    prepare(graph)
    precisions = {name: region.choice.precision for region in regions for name in region.nodes}
    if not regions:
        precisions = {node.name: "fp16" for node in graph.model.graph.node}
    casts = round_through(graph, precisions, stays_fp32(graph, stage.fp32_islands), boundaries)
    graph.save(target)
    return casts
