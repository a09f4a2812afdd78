"""With a card at hand, what was chosen by reckoning is built and timed before it is kept."""

from __future__ import annotations

import math
from collections.abc import Callable

from ...runtime.errors import FathomError
from ..observation.observe import OnProgress
from .evaluate import Plan
from .mixtures import Mixture, Mixtures, of_stage, plan_of, without_eight_bits

Clock = Callable[[Plan], dict[str, float]]  # a mixture -> milliseconds of every stage of it, built and run on a card
WITHOUT = "chosen, with fp16 for 8 bits"
NETWORK = "(network)"  # whose verdict is about all stages together


def by_the_clock(
    mixtures: Mixtures,
    clock: Clock | None,
    chosen: Mixture,
    verdicts: dict[str, str],
    counted: Callable[[str, Mixture], str],
    on_progress: OnProgress,
) -> tuple[Mixture, dict[str, str]]:
    """The chosen mixture, the runner-up, and the chosen one with FP16 for INT8 and FP8 are built and timed; the fastest is kept, with its verdicts.

    Args:
        verdicts: a sentence about every stage of the chosen mixture.
        counted: what a stage of another mixture is made of, in words.
    """
    if clock is None:
        return chosen, verdicts
    mixtures.attempt("chosen", chosen)  # so far the name may be that of a mixture that was given up, or of none
    half = without_eight_bits(chosen)
    others = [name for name in mixtures.within() if mixtures.choices[name] not in (chosen, half)]
    contenders = {"chosen": chosen} | {name: mixtures.choices[name] for name in others[:1]}
    if half != chosen and mixtures.attempt(WITHOUT, half).within(mixtures.budget):
        contenders[WITHOUT] = half
    times: dict[str, dict[str, float]] = {}
    for name, mixture in contenders.items():
        try:
            times[name] = clock(plan_of(mixture))
        except FathomError:  # what cannot be built is no contender
            continue
        on_progress("mixtures built and timed", len(contenders))
    if not times:
        return chosen, verdicts | {NETWORK: "No mixture could be built on this card: costs are reckoned."}
    totals = {name: math.fsum(stages.values()) for name, stages in times.items()}
    best = min(totals, key=lambda name: totals[name])
    for name, ms in totals.items():
        mixtures.took(name, ms)
    told = ", ".join(f"{name} {ms:.3g} ms" for name, ms in sorted(totals.items(), key=lambda item: item[1]))
    fastest, told_of = contenders[best], {}
    for stage, text in verdicts.items():
        if of_stage(stage, fastest) != of_stage(stage, chosen):
            text = f"{counted(stage, fastest)}."
        told_of[stage] = f"{text} Built and timed: {times[best][stage]:.3g} ms." if stage in times[best] else text
    return fastest, told_of | {NETWORK: f"The fastest of the mixtures that were built and timed is kept: {told}."}
