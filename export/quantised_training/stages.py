"""The stages of a calibrated bundle as graphs that learn, and back: learned weights as graphs, a plan and a table again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from onnx import TensorProto

from ...calibration.graph.stage_graph import StageGraph
from ...calibration.precision.precision_plan import RegionPlan
from ...calibration.precision.quantised_stage import Choices, make_quantised, smooth_and_correct
from ...calibration.ranges.table import CalibrationTable
from .torch_graph import TorchGraph, learnable


class LearningStage:
    """One stage on its way.

    SmoothQuant's divisions and the corrected biases become part of the FP32 graph, so that the plan need not make them again: in FP32 the graph is the
    one that learns, and quantised by ``choices`` it is the one that is built.

    Args:
        graph: the FP32 stage, prepared (``chain.prepare``); it is not changed.
        regions: of this stage, by the precision plan.
        table: the calibration table.
        stage: name.
        also: see ``quantize``.

    Attributes:
        graph: FP32, with SmoothQuant and corrected biases in it.
        quantised: the same with Q/DQ; its weights are FP32 still.
        choices: what the plan says of ``graph``: neither SmoothQuant nor corrections any more.
        ranges: of ``graph``.
    """

    def __init__(self, graph: StageGraph, regions: tuple[RegionPlan, ...], table: CalibrationTable, stage: str, also: tuple[str, ...] = ()):
        planned = {region.nodes: region.choice for region in regions}
        ranges = table.stages.get(stage, {})
        shifts = {name: np.array(values) for name, values in table.shifts.get(stage, {}).items()}
        self.name, self.graph, self.also = stage, graph.copy(), also
        smooth_and_correct(self.graph, planned, ranges, shifts)
        self.choices: Choices = {names: replace(choice, smooth=0.0, corrected=False, centred=False) for names, choice in planned.items()}
        self.ranges = {name: replace(found, channels=(), middles=()) for name, found in ranges.items()}
        self.quantised = self._quantise()

    def _quantise(self) -> StageGraph:
        quantised = self.graph.copy()
        make_quantised(quantised, self.choices, self.ranges, stored=False, also=self.also)
        return quantised

    def student(self, device: torch.device) -> TorchGraph:
        """The quantised graph, learning."""
        return TorchGraph(self.quantised, learnable(self.graph), device)

    def take(self, learned: TorchGraph) -> None:
        """Put the weights of a student into this stage."""
        for name, tensor in learned.weights.items():
            values = tensor.detach().cpu().numpy()
            self.graph.add_made_constant(name, TensorProto.FLOAT, values.shape, lambda values=values: values)
        self.quantised = self._quantise()
