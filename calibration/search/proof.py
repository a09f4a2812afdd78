"""The verdict on what a search chose comes from photos that chose nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..observation.observe import OnProgress
from ..precision.precision_plan import FP32, PrecisionPlan
from .evaluate import Evaluator
from .mixtures import Mixture, Mixtures, plan_of
from .objective import Budget, Score

NOTHING = "Everything stays FP32: there is nothing to prove."
MOST_PROOFS = 4  # mixtures that are put to the proof; each further one makes luck a little likelier


def prove(
    mixtures: Mixtures,
    prover: Evaluator | None,
    chosen: Mixture,
    on_progress: OnProgress,
    tighter: Callable[[Mixture, float], Mixture | None] = lambda failed, used: None,
) -> tuple[Mixture, dict[str, Any]]:
    """The chosen mixture, or the first safer one that keeps the budget on the photos of the proof, else FP32.

    Safer is first what ``tighter`` finds on the selecting photos; then what was seen to keep the budget there and moved the depth less, of which the fastest
    comes first. The last proof goes to the one that moved it least, mostly FP16 everywhere: mixtures that are alike fail alike.

    Args:
        prover: scores on the photos of the proof; None if there are none, and then nothing is proven.
        tighter: for what failed and the part of the budget that it used up (above 1), a mixture that should do, or None.

    Returns:
        the mixture, and the proof for the plan.
    """
    if prover is None:
        return chosen, {}
    rejected: list[str] = []
    facts: dict[str, Any] = {"photos": len(prover.photos), "scenes": len({photo.scene for photo in prover.photos})}
    name, mixture = "chosen", chosen
    while True:
        exact = all(choice == FP32 for choice in mixture.values())
        score = prover.baseline if exact else prover.score(plan_of(mixture))
        on_progress("mixtures put to the proof", MOST_PROOFS)
        if exact or score.within(mixtures.budget):
            return mixture, facts | {"score": score.to_json(), "within": True, "rejected": rejected}
        rejected.append(f"{name}: {proof_words(score)}")
        found = tighter(mixture, score.used(mixtures.budget)) if len(rejected) < MOST_PROOFS - 1 else None
        name, mixture = _safer(mixtures, mixture, len(rejected)) if found is None else (f"tighter, {len(rejected)}", found)


def _safer(mixtures: Mixtures, failed: Mixture, tries: int) -> tuple[str, Mixture]:
    wide = dict.fromkeys(failed, FP32)
    if tries >= MOST_PROOFS:
        return "all fp32", wide
    known = next((name for name, mixture in mixtures.choices.items() if mixture == failed), None)
    moved = mixtures.variants[known].score["disagreement"] if known else None
    harms = {name: mixtures.variants[name].score["disagreement"] for name in mixtures.within() if mixtures.choices[name] != wide}
    safer = [name for name, harm in harms.items() if harm is not None and (moved is None or harm < moved)]
    if not safer:
        return "all fp32", wide
    name = min(safer, key=harms.get) if tries == MOST_PROOFS - 1 else safer[0]
    return name, mixtures.choices[name]


def proof_words(score: Score) -> str:
    """What a score says, in short."""
    if score.failure:
        return score.failure
    changes = (("abs_rel", score.abs_rel_change, score.abs_rel_error, "%"), ("delta1", score.delta1_change, score.delta1_error, "pp"))
    told = [f"{name} {100 * change:+.2f}" + ("" if error is None else f" ± {100 * error:.2f}") + f" {unit}" for name, change, error, unit in changes]
    single = " (one photo: no interval can be given)" * (score.abs_rel_error is None)
    return ", ".join([*told, f"moved {100 * score.disagreement:.2f} %"]) + single


def proof_line(plan: PrecisionPlan) -> str:
    """The proof of a plan in one sentence or two."""
    proof, budget = plan.proof, Budget(**plan.budget)
    wide = all(region.choice == FP32 for region in plan.regions)
    if not proof:
        return NOTHING if wide else "Nothing was kept back to prove this on."
    seen = f"{_counted(proof['photos'], 'photo')} of {_counted(proof['scenes'], 'scene')} that chose nothing"
    allowed = f"(allowed: {100 * budget.abs_rel:g} %, {100 * budget.delta1:g} pp, {100 * budget.moved:g} %)"
    rejected = "; ".join(proof["rejected"])
    if wide:
        return f"Everything stays FP32: nothing else kept the budget {allowed} on {seen}: {rejected}." if rejected else NOTHING
    return f"Proved on {seen}: {proof_words(Score(**proof['score']))} {allowed}." + (f" Rejected there: {rejected}." if rejected else "")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"
