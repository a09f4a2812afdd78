"""What a mixture of precisions costs: modelled by its own regions, and corrected by whatever times of the card are at hand."""

from __future__ import annotations

import math
from typing import Any

from ..graph.chain import Chain
from ..precision.precision_plan import Choice
from ..precision.regions import Region
from .cards import Card
from .cost import EIGHT_BITS, CostModel
from .stage_times import StageTimes


class StageCosts:
    """Times of stages in any mixture.

    Where whole stages were timed, the model's error on them corrects it: the times of FP32, FP16 and BF16 kernels by their stage's error in that
    precision, those of INT8 and FP8 kernels and of the passes around them by the factor that makes the stage in INT8 take as long as it was measured (but never
    less than a quarter of FP16's factor, should the measured time leave nothing for them). So a stage all in one precision costs what was measured,
    and a mixture what its own regions do.

    Args:
        chain: the FP32 network.
        card: whose published rates the model uses.
        measured: times of whole stages on a card, or None.
    """

    def __init__(self, chain: Chain, card: Card, measured: StageTimes | None):
        self.card, self.measured = card, measured
        self.models = {name: CostModel(graph, chain.batch, card) for name, graph in chain.graphs.items()}
        self._quantised: dict[str, set[str]] = {name: set() for name in chain.graphs}
        self._regions: dict[str, tuple[Region, ...]] = {}
        self._errors: dict[str, dict[str, float]] = {}
        self._known: dict[tuple[str, tuple[tuple[str, bool], ...]], float] = {}

    def learn(self, quantised: dict[Region, tuple[str, ...]]) -> None:
        """Take in the regions of the network and which of their nodes can compute in INT8."""
        for region, names in quantised.items():
            self._quantised[region.stage] |= set(names)
        for stage in self.models:
            self._regions[stage] = tuple(region for region in quantised if region.stage == stage)
            self._errors[stage] = self._corrections(stage)

    def _corrections(self, stage: str) -> dict[str, float]:
        times = self.measured.stages.get(stage, {}) if self.measured else {}
        found = {p: ms / modelled for p, ms in times.items() if p not in EIGHT_BITS and (modelled := self._uniform_ms(stage, p)) > 0}
        found |= {p: found["fp16"] for p in ("bf16", "int4") if p not in found and "fp16" in found}
        for low in EIGHT_BITS:
            if low in times and low in self.card.macs_per_ms:
                parts = self.models[stage].times_ms(dict.fromkeys(self._regions[stage], Choice(low, "max")), self._quantised[stage])
                others = sum(ms * found.get(p, 1.0) for p, ms in parts.items() if p != low)
                if parts.get(low):
                    found[low] = max((times[low] - others) / parts[low], 0.25 * found.get("fp16", 1.0))
        return found

    def _uniform_ms(self, stage: str, precision: str) -> float:
        choice = Choice(precision, "max") if precision in EIGHT_BITS else Choice(precision)
        if precision not in self.card.macs_per_ms:
            return 0.0
        return self.models[stage].total_ms(dict.fromkeys(self._regions[stage], choice), self._quantised[stage])

    def is_measured(self, stage: str) -> bool:
        """Whether a card has told what INT8 saves in a stage."""
        return self.measured is not None and self.measured.compares(stage)

    def stage_ms(self, stage: str, choices: dict[Region, Choice]) -> float:
        """Time of a stage."""
        key = (stage, tuple((choices[region].precision, choices[region].centred) for region in self._regions[stage]))
        if key not in self._known:
            parts = self.models[stage].times_ms(choices, self._quantised[stage])
            self._known[key] = math.fsum(ms * self._errors[stage].get(precision, 1.0) for precision, ms in parts.items())
        return self._known[key]

    def cost_ms(self, chosen: dict[Region, Choice]) -> float:
        """Time of the network."""
        stages: dict[str, dict[Region, Choice]] = {}
        for region, choice in chosen.items():
            stages.setdefault(region.stage, {})[region] = choice
        return math.fsum(self.stage_ms(stage, choices) for stage, choices in sorted(stages.items()))

    def saved_ms(self, region: Region, now: Choice, above: Choice) -> float:
        """What a region alone saves by computing in ``now`` and not in ``above``."""
        model, quantised = self.models[region.stage], self._quantised[region.stage]
        return model.total_ms({region: above}, quantised) - model.total_ms({region: now}, quantised)

    def weights_nbytes(self, stage: str, chosen: dict[Region, Choice]) -> float:
        """Bytes of the weights of a stage."""
        return self.models[stage].weights_nbytes({region: choice for region, choice in chosen.items() if region.stage == stage}, self._quantised[stage])

    def facts(self) -> dict[str, Any]:
        """For the plan: what costs come from, and the model's error against every time that was measured."""
        stages = [stage for stage in self.models if self.is_measured(stage)]
        kind = "modelled" if not stages else "measured" if len(stages) == len(self.models) else f"measured in {', '.join(stages)}, else modelled"
        found: dict[str, Any] = {"kind": kind, "device": self.measured.device if stages else f"{self.card.name} (published peak rates)"}
        lines = [
            {"stage": stage, "precision": precision, "modelled_ms": self._uniform_ms(stage, precision), "measured_ms": ms}
            for stage, times in (self.measured.stages if self.measured else {}).items()
            for precision, ms in times.items()
        ]
        return found | ({"model": self.card.name, "model_errors": lines} if lines else {})
