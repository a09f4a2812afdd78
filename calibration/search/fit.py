"""Bringing a mixture into the budget: as few regions as will do compute in more bits."""

from __future__ import annotations

from ..precision.precision_plan import FP32, Choice
from ..precision.regions import Region
from .mixtures import Mixture, Mixtures
from .objective import Budget
from .sensitivity import LADDER, Sensitivity

GIVEN_BACK = 12  # how many raised regions are tried in fewer bits once more
MOST_AT_FAULT = 3  # regions that are looked for one by one
WORTH = 0.8  # of what is too much, what one of them may leave
SPARE = 4  # trials that are left for what follows


class Fit:
    """Raises regions until the whole keeps the budget.

    Args:
        mixtures: tries them.
        lines: what the screening found.
        precisions: the candidates.
        reasons: of the choices; what is raised says why.
    """

    def __init__(self, mixtures: Mixtures, lines: dict[Region, Sensitivity], precisions: tuple[str, ...], reasons: dict[Region, str]):
        self._mixtures, self._lines, self._precisions, self._reasons = mixtures, lines, precisions, reasons
        self._costs, self._budget, self._words = mixtures.costs, mixtures.budget, ""

    def __call__(self, chosen: Mixture, budget: Budget | None = None) -> Mixture:
        """Raise as few regions as will bring the whole into the budget: the quantised ones first, and FP16 ones only if the rest is FP16 already.

        Args:
            budget: a tighter one than the search's, or None.
        """
        self._budget, self._words = budget or self._mixtures.budget, f", moved at most {100 * budget.moved:.2g} %" if budget else ""
        if self._within("every region's fastest", chosen):
            return chosen
        ladders = {region: self._lines[region].ladder(self._precisions) for region in chosen}
        raised = dict(chosen)
        for precision in LADDER:
            above = {region: self._above(ladders[region], choice) for region, choice in raised.items() if choice.precision == precision}
            if not above:
                continue
            whole = raised | above
            if self._within(f"every {precision} region raised", whole):
                return self._fewest(precision, raised, above)
            raised = whole
        return dict.fromkeys(chosen, FP32)

    def _fewest(self, precision: str, chosen: Mixture, above: Mixture) -> Mixture:
        """The cheapest of what keeps the budget when regions go up in order of their harm, and in order of their harm for the time they save; or
        when those few go up alone that are found to be at fault."""
        by_harm = sorted(above, key=lambda r: -self._harm(r, chosen[r], above[r]))
        first = self._halved(precision, "by harm", chosen, above, by_harm)
        fewer = self._at_fault(precision, chosen, above, [region for region in by_harm if first[region] != chosen[region]])
        kept = [chosen | above, first, *fewer]
        if not fewer:
            per_ms = sorted(above, key=lambda r: -self._harm_per_ms(r, chosen[r], above[r]))
            kept.append(self._halved(precision, "by harm per ms", chosen, above, per_ms))
        found = self._given_back(precision, chosen, min(kept, key=self._costs.cost_ms))
        for region in above:
            if found[region] != chosen[region]:
                self._reasons[region] = f"{chosen[region].words} keeps the budget alone but not together with the others"
        return found

    def _halved(self, precision: str, words: str, chosen: Mixture, above: Mixture, order: list[Region]) -> Mixture:
        """The budget is kept when all of ``order`` goes up: so it is by as few of them as halving finds, from its beginning."""
        low, high, found = 1, len(order), self._with(chosen, above, order)
        while low < high:
            middle = (low + high) // 2
            trial = self._with(chosen, above, order[:middle])
            if not self._mixtures.may_try(trial, SPARE):
                break
            if self._within(f"{middle} {precision} regions raised, {words}", trial):
                high, found = middle, trial
            else:
                low = middle + 1
        return found

    def _at_fault(self, precision: str, chosen: Mixture, above: Mixture, raised: list[Region]) -> list[Mixture]:
        """What keeps the budget with fewer regions raised, where a few are at fault for most of what was too much.

        One photo may rank a region low that is at fault on the others. Without the last of ``raised`` the budget is broken: where it takes half of
        what is too much, it is raised alone. If that is not enough and yet some of it, the next such region is looked for among those before it.
        """
        fault: list[Region] = []
        kept: list[Mixture] = []
        while raised and len(fault) < MOST_AT_FAULT:
            left, before, after = (self._used(self._with(chosen, above, [*fault, *some])) for some in ([], raised[:-1], raised))
            if None in (left, before, after) or left - 1 > 2 * (before - after):
                break
            fault.append(raised.pop())
            trial = self._with(chosen, above, fault)
            if not self._mixtures.may_try(trial, SPARE):
                break
            if self._within(f"{len(fault)} {precision} regions at fault raised", trial):
                return [*kept, trial]
            if self._used(trial) - 1 > WORTH * (left - 1):
                break
            found = self._halved(precision, f"with {len(fault)} at fault", trial, above, raised)
            raised = [region for region in raised if found[region] != trial[region]]
            kept.append(found)
        return kept

    def _used(self, mixture: Mixture) -> float | None:
        """How much of the budget a mixture uses up, where that is known."""
        score = self._mixtures.score_of(mixture)
        return None if score is None else score.used(self._budget)

    def _given_back(self, precision: str, chosen: Mixture, raised: Mixture) -> Mixture:
        """Raised regions are lowered again one at a time, the costliest first, while the budget holds."""
        costly = sorted((r for r in raised if raised[r] != chosen[r]), key=lambda r: -self._costs.saved_ms(r, chosen[r], raised[r]))[:GIVEN_BACK]
        for number, region in enumerate(costly, 1):
            trial = raised | {region: chosen[region]}
            if not self._mixtures.may_try(trial, SPARE):
                break
            if self._costs.cost_ms(trial) < self._costs.cost_ms(raised) and self._within(f"costly region {number} in {precision} again", trial):
                raised = trial
        return raised

    def _within(self, name: str, mixture: Mixture) -> bool:
        return self._mixtures.attempt(f"{name}{self._words}", mixture).within(self._budget)

    @staticmethod
    def _with(chosen: Mixture, above: Mixture, some: list[Region]) -> Mixture:
        return chosen | {region: above[region] for region in some}

    @staticmethod
    def _above(ladder: tuple[Choice, ...], choice: Choice) -> Choice:
        place = ladder.index(choice) if choice in ladder else -1
        return ladder[min(place + 1, len(ladder) - 1)]

    def _harm(self, region: Region, now: Choice, above: Choice) -> float:
        scores = self._lines[region].scores
        return scores[now].harm - (scores[above].harm if above in scores else 0.0)

    def _harm_per_ms(self, region: Region, now: Choice, above: Choice) -> float:
        harm = self._harm(region, now, above)
        return harm / max(self._costs.saved_ms(region, now, above), 1e-9) if harm > 0 else harm
