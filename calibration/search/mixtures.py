"""The mixtures of precisions that a search has tried as a whole: what they cost, what they did, and whether that is allowed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..observation.observe import OnProgress, silent
from ..precision.precision_plan import Choice, Variant
from ..precision.regions import Region
from .cost import EIGHT_BITS
from .evaluate import Evaluator, Plan
from .objective import Budget, Score
from .stage_costs import StageCosts

MOST_TRIALS = 20
Mixture = dict[Region, Choice]


class Mixtures:
    """Every whole network that was tried, by name.

    Args:
        evaluator: scores it.
        costs: tells its time.
        budget: what it must keep.
        most: how many different ones may run over all selecting photos.
        on_progress: called after every one.
        out_of_time: whether no more should be tried.

    Attributes:
        variants: name -> what became of it, for the plan.
        choices: name -> the mixture itself.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        costs: StageCosts,
        budget: Budget,
        most: int = MOST_TRIALS,
        on_progress: OnProgress = silent,
        out_of_time: Callable[[], bool] = lambda: False,
    ):
        self.evaluator, self.costs, self.budget, self._most, self._on_progress = evaluator, costs, budget, most, on_progress
        self._out_of_time, self._scores = out_of_time, {}
        self.variants: dict[str, Variant] = {}
        self.choices: dict[str, Mixture] = {}

    def attempt(self, name: str, chosen: Mixture, score: Score | None = None) -> Score:
        """Score a mixture and keep it; a mixture that was timed before under another name keeps its time."""
        key = frozenset(chosen.items())
        if score is None and key not in self._scores:
            self._scores[key] = self.evaluator.score(plan_of(chosen))
        score = score or self._scores[key]
        timed = next((self.variants[other] for other, held in self.choices.items() if held == chosen and self.variants[other].timed), None)
        cost = timed.cost_ms if timed else self.costs.cost_ms(chosen)
        self.variants[name] = Variant(name, cost, score.to_json(), score.within(self.budget), timed=timed is not None)
        self.choices[name] = dict(chosen)
        self._on_progress("whole variants", max(self._most, len(self.variants)))
        return score

    def score_of(self, chosen: Mixture) -> Score | None:
        """Of a mixture that ran over all selecting photos; None if it did not."""
        return self._scores.get(frozenset(chosen.items()))

    @property
    def trials(self) -> int:
        """How many different mixtures ran over all selecting photos."""
        return len(self._scores)

    def may_try(self, chosen: Mixture, spare: int = 1) -> bool:
        """Whether a mixture may be tried now so that ``spare`` further ones can be; one that is known already always may."""
        return frozenset(chosen.items()) in self._scores or self.may_go_on(spare)

    def may_go_on(self, spare: int) -> bool:
        """Whether there are more than ``spare`` trials left, and time."""
        return self.trials + spare < self._most and not self._out_of_time()

    def took(self, name: str, ms: float) -> None:
        """A card has told how long a mixture takes."""
        self.variants[name] = replace(self.variants[name], cost_ms=ms, timed=True)

    def within(self) -> list[str]:
        """Names of those that keep the budget, the fastest first."""
        return sorted((name for name, variant in self.variants.items() if variant.within), key=lambda name: self.variants[name].cost_ms)


def plan_of(chosen: Mixture) -> Plan:
    """A mixture as the evaluator takes it."""
    plan: Plan = {}
    for region, choice in chosen.items():
        plan.setdefault(region.stage, {})[region.nodes] = choice
    return plan


def of_stage(stage: str, chosen: Mixture) -> Mixture:
    """That part of a mixture that is one stage's."""
    return {region: choice for region, choice in chosen.items() if region.stage == stage}


def without_eight_bits(chosen: Mixture) -> Mixture:
    """The same with FP16 for INT8 and FP8."""
    return {region: Choice("fp16") if choice.precision in EIGHT_BITS else choice for region, choice in chosen.items()}
