"""The precision plan: which region of which stage computes in what, and the evidence for it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...runtime.artefact.manifest import SHA256, BundleManifest
from ...runtime.artefact.spec import PRECISIONS, fields
from ..artefact import read_artefact, require_model, write_artefact
from ..quantisation.formats import FORMATS
from ..quantisation.quantize import ALSO
from ..ranges.observers import RULES

FORMAT, VERSION = "fathom-precision-plan", 3
MAX_PLAN_BYTES = 64 << 20


@dataclass(frozen=True)
class Choice:
    """How a region computes.

    Args:
        precision: one of ``PRECISIONS``.
        observer: rule for the ranges of its activations if they are INT8 or FP8, else ``""``.
        smooth: SmoothQuant's alpha, 0 for none; only for INT8 and FP8.
        corrected: whether its layers' biases make up for the mean error of INT8 or FP8; only for those.
        centred: whether what its layers read is shifted to lie around zero, where that makes them quieter; only for INT8.
    """

    precision: str
    observer: str = ""
    smooth: float = 0.0
    corrected: bool = False
    centred: bool = False

    def __post_init__(self):
        if self.precision not in PRECISIONS:
            raise ValueError(f"unknown precision {self.precision!r}")
        observed = self.precision in FORMATS and FORMATS[self.precision].activations
        if observed != (self.observer in RULES) or (self.observer and self.observer not in RULES):
            raise ValueError(f"an observer goes with int8 and fp8 and only with them, got {self.observer!r} for {self.precision}")
        if not 0 <= self.smooth < 1 or (self.smooth and not observed):
            raise ValueError(f"smooth {self.smooth}: from 0 to below 1, and only for int8 and fp8")
        if self.corrected and not observed:
            raise ValueError(f"biases are corrected for int8 and fp8 only, not for {self.precision}")
        if self.centred and self.precision != "int8":
            raise ValueError(f"activations are centred for int8 only, not for {self.precision}")

    @property
    def quantised(self) -> bool:
        """Whether weights are stored in INT8, FP8 or INT4."""
        return self.precision in FORMATS

    @property
    def words(self) -> str:
        """For tables: ``int8 mse smooth 0.5 corrected``."""
        smooth = f"smooth {self.smooth:g}" if self.smooth else ""
        return " ".join(filter(None, (self.precision, self.observer, smooth, "centred" * self.centred, "corrected" * self.corrected)))


FP32 = Choice("fp32")


@dataclass(frozen=True)
class RegionPlan:
    """One line of the plan.

    Args:
        stage, path, kind, nodes: see ``regions.Region``.
        choice: what it computes in.
        reason: one sentence.
        evidence: scores of every choice that was tried, by its words.
        macs: multiply-adds of one forward pass.
    """

    stage: str
    path: str
    kind: str
    nodes: tuple[str, ...]
    choice: Choice
    reason: str
    evidence: dict[str, dict[str, Any]]
    macs: int = 0


@dataclass(frozen=True)
class Variant:
    """A whole network that was tried: its cost and what it did to the depth; also the losing ones.

    Args:
        name: what it is.
        cost_ms: of one forward pass.
        score: see ``Score.to_json``.
        within: whether it keeps the budget.
        pareto: whether no other variant is both cheaper and closer to FP32.
        chosen: whether it is the plan.
        timed: whether ``cost_ms`` was taken on a card, of this very mixture.
    """

    name: str
    cost_ms: float
    score: dict[str, Any]
    within: bool
    pareto: bool = False
    chosen: bool = False
    timed: bool = False


@dataclass(frozen=True)
class PrecisionPlan:
    """The whole plan.

    Args:
        model_sha256: see ``artefact.model_fingerprint``.
        budget: see ``Budget.to_json``.
        truth: see ``evaluate.Evaluator``: what the metrics compare with (and what they are of a mask).
        cost: how costs were come by (``modelled`` or ``measured``) and on what.
        regions: every region of every stage.
        keep_fp32: tensors between stages that stay float32.
        verdicts: one sentence per stage.
        overflows: tensors that FP16 cannot hold: stage, tensor, region, greatest magnitude.
        variants: what was tried.
        also: what was quantised besides layers with weights (``quantize.ALSO``).
        proof: the verdict of photos that chose nothing: ``photos``, ``scenes``, ``score`` (see ``Score.to_json``), ``within``, and the names of mixtures
            that were chosen first and failed there (``rejected``); empty in a plan that no search made.
    """

    model_sha256: str
    budget: dict[str, float]
    truth: str
    cost: dict[str, Any]
    regions: tuple[RegionPlan, ...]
    keep_fp32: tuple[str, ...]
    verdicts: dict[str, str]
    overflows: tuple[dict[str, Any], ...]
    variants: tuple[Variant, ...]
    also: tuple[str, ...] = ()
    proof: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if unknown := set(self.also) - set(ALSO):
            raise ValueError(f"unknown kind of quantised node {sorted(unknown)[0]!r}")
        if not SHA256.fullmatch(self.model_sha256):
            raise ValueError(f"not a SHA-256: {self.model_sha256!r}")
        seen: set[tuple[str, str]] = set()
        for region in self.regions:
            for node in region.nodes:
                if (region.stage, node) in seen:
                    raise ValueError(f"the node {node} of stage {region.stage} is in two regions")
                seen.add((region.stage, node))

    def of_stage(self, stage: str) -> tuple[RegionPlan, ...]:
        """The regions of one stage."""
        return tuple(region for region in self.regions if region.stage == stage)

    def precision(self, stage: str) -> str:
        """The lowest precision in a stage: int4, then int8, fp8, fp16, bf16, fp32."""
        found = {region.choice.precision for region in self.of_stage(stage)}
        return next((p for p in ("int4", "int8", "fp8", "fp16", "bf16") if p in found), "fp32")

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        data = {name: getattr(self, name) for name in ("model_sha256", "budget", "truth", "cost", "verdicts", "proof")}
        regions = []
        for region in self.regions:
            facts = {name: getattr(region, name) for name in ("stage", "path", "kind", "reason", "evidence", "macs")}
            facts |= {"nodes": list(region.nodes), "precision": region.choice.precision, "observer": region.choice.observer}
            facts |= {"smooth": region.choice.smooth, "corrected": region.choice.corrected, "centred": region.choice.centred}
            regions.append(facts)
        data |= {
            "format": FORMAT,
            "version": VERSION,
            "regions": regions,
            "keep_fp32": list(self.keep_fp32),
            "overflows": list(self.overflows),
            "also": list(self.also),
        }
        return data | {"variants": [{name: getattr(v, name) for name in v.__dataclass_fields__} for v in self.variants]}

    @classmethod
    def from_json(cls, data: Any) -> PrecisionPlan:
        """From JSON values.

        Raises:
            ValueError: if it is another format or version, or a key is missing, unknown or of the wrong kind.
        """
        kinds = {"format": str, "version": int, "model_sha256": str, "budget": dict, "truth": str, "cost": dict, "regions": list}
        kinds |= {"keep_fp32": list, "verdicts": dict, "overflows": list, "variants": list, "also": list, "proof": dict}
        form, version, model, budget, truth, cost, lines, keep, verdicts, overflows, tried, also, proof = fields(data, "precision plan", **kinds)
        if (form, version) != (FORMAT, VERSION):
            raise ValueError(f"format {form!r} version {version}, wanted {FORMAT!r} version {VERSION}")
        number = (int, float)
        regions = []
        for line in lines:
            names = {"stage": str, "path": str, "kind": str, "nodes": list, "precision": str, "observer": str, "smooth": number, "corrected": bool}
            names |= {"centred": bool, "reason": str, "evidence": dict, "macs": int}
            stage, path, kind, nodes, precision, observer, smooth, corrected, centred, reason, evidence, macs = fields(line, "region", **names)
            choice = Choice(precision, observer, float(smooth), corrected, centred)
            regions.append(RegionPlan(stage, path, kind, tuple(map(str, nodes)), choice, reason, evidence, macs))
        names = {"name": str, "cost_ms": number, "score": dict, "within": bool, "pareto": bool, "chosen": bool, "timed": bool}
        variants = tuple(Variant(*fields(line, "variant", **names)) for line in tried)
        return cls(model, budget, truth, cost, tuple(regions), tuple(map(str, keep)), verdicts, tuple(overflows), variants, tuple(map(str, also)), proof)


def write_plan(plan: PrecisionPlan, path: str | Path, force: bool = False) -> None:
    """Write the plan; see ``write_artefact``."""
    write_artefact(plan.to_json(), path, force)


def read_plan(path: str | Path, manifest: BundleManifest | None = None) -> PrecisionPlan:
    """Read a plan, and check that it belongs to ``manifest``.

    Raises:
        InputError: if it is missing, no plan of a known version, or was made on another network.
    """
    plan = read_artefact(path, PrecisionPlan.from_json, "is no precision plan", MAX_PLAN_BYTES, "make it with depth-calibrate")
    if manifest is not None:
        require_model(path, plan.model_sha256, manifest, "a plan", "run depth-calibrate on this bundle")
    return plan


def mark_pareto(variants: list[Variant]) -> tuple[Variant, ...]:
    """The variants, cheapest first, those marked that no other one beats in cost and in disagreement."""
    ordered = sorted(variants, key=lambda v: (v.cost_ms, v.score["disagreement"] if v.score["disagreement"] is not None else math.inf))
    best, marked = math.inf, []
    for variant in ordered:
        harm = variant.score["disagreement"] if variant.score["disagreement"] is not None else math.inf
        marked.append(replace(variant, pareto=harm < best))
        best = min(best, harm)
    return tuple(marked)
