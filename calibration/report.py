"""A calibration in words and tables, for people."""

from __future__ import annotations

from statistics import median

from .calibrate import Calibrated
from .precision.precision_plan import PrecisionPlan, Variant
from .search.proof import proof_line


def percent(value: float | None, unit: str = "%") -> str:
    """A share as signed percent or percentage points."""
    return "—" if value is None else f"{100 * value:+.3f} {unit}"


def variant_lines(variants: tuple[Variant, ...], cost_kind: str) -> list[str]:
    """The Pareto table: every variant that was tried, cheapest first."""
    lines = [f"{'variant':<44} {'ms (' + cost_kind + ')':>16} {'abs_rel':>11} {'delta1':>12} {'moved':>9}  verdict"]
    for v in variants:
        moved = "—" if v.score["disagreement"] is None else f"{100 * v.score['disagreement']:.3f} %"
        verdict = ("CHOSEN" if v.chosen else "in budget" if v.within else v.score["failure"] or "over budget") + (" *" if v.pareto else "")
        lines.append(
            f"{v.name:<44} {v.cost_ms:>16.4g} {percent(v.score['abs_rel_change']):>11} {percent(v.score['delta1_change'], 'pp'):>12} {moved:>9}  {verdict}"
        )
    return [*lines, "* no other variant is both faster and closer to FP32"]


def region_lines(plan: PrecisionPlan) -> list[str]:
    """Regions that are not in the fastest precision, each with its reason."""
    held = [region for region in plan.regions if region.choice.precision in ("fp32", "bf16")]
    return [f"{region.stage}:{region.path} ({region.kind}) stays {region.choice.words}: {region.reason}" for region in held]


def model_error_lines(plan: PrecisionPlan) -> list[str]:
    """How far the cost model is from every time that was measured: modelled, measured, and the error; nothing if nothing was measured."""
    found = plan.cost.get("model_errors", [])
    if not found:
        return []
    errors = [line["modelled_ms"] / line["measured_ms"] - 1 for line in found]
    lines = [f"the cost model ({plan.cost['model']}, published peak rates) against the measured times:"]
    for line, error in zip(found, errors, strict=True):
        lines.append(f"  {line['stage']} {line['precision']}: {line['modelled_ms']:.3g} ms modelled, {line['measured_ms']:.3g} ms measured ({error:+.0%})")
    return [*lines, f"  median error {median(map(abs, errors)):.0%}; mixtures are corrected by it"]


def report_lines(result: Calibrated) -> list[str]:
    """The whole report."""
    table, plan = result.table, result.plan
    lines = [
        f"{table.images} images ({table.windows} network inputs) of {table.data['kind']}: {table.data['name']}, protocol {table.protocol}",
        f"{result.tried} choices of precision were tried on FP32 sums (graph-only); metrics against the {plan.truth}",
        f"costs are {plan.cost['kind']} ({plan.cost['device']})",
    ]
    lines += model_error_lines(plan)
    lines += [f"FP16 cannot hold {fact['tensor']} of {fact['stage']} (reaches {fact['peak']:.3g})" for fact in plan.overflows]
    return [
        *lines,
        *plan.verdicts.values(),
        proof_line(plan),
        *region_lines(plan),
        "",
        *variant_lines(plan.variants, plan.cost["kind"]),
    ]
