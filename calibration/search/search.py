"""The precision search: the fastest plan that keeps the depth, greedily, with every variant that lost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ...runtime.artefact.spec import PRECISIONS
from ..observation.observe import OnProgress, silent
from ..observation.stage_observation import StageObservation
from ..precision.precision_plan import FP32, Choice, PrecisionPlan, RegionPlan, mark_pareto
from ..precision.quantised_stage import ranges_for, shifts_for
from ..precision.regions import Region
from ..ranges.table import TensorRange
from .cards import CARDS, DEFAULT_CARD, Card
from .clock import NETWORK, Clock, by_the_clock
from .cost import EIGHT_BITS
from .evaluate import Evaluator
from .fit import SPARE, Fit
from .mixtures import MOST_TRIALS, Mixture, Mixtures, of_stage, plan_of, without_eight_bits
from .objective import Budget
from .proof import prove
from .sensitivity import Sensitivity, screen
from .stage_costs import StageCosts
from .stage_times import StageTimes

PAYS_FROM = 0.05  # INT8 or FP8 must make a stage at least this much faster than FP16, or it is not worth its risk
SAFER = 0.9  # how much nearer than what the proof asks for a mixture has to be that takes the place of one that failed
MOST_REGIONS = 48
USELESS = "is slower here than FP16, with its neighbours as they are"
CANDIDATES = ("fp32", "bf16", "fp16", "int8")  # FP8 and INT4 are for those who ask for them


@dataclass(frozen=True)
class Found:
    """Result of a search: the plan, and the ranges and the corrections of biases that its INT8 regions need, by stage."""

    plan: PrecisionPlan
    ranges: dict[str, dict[str, TensorRange]]
    shifts: dict[str, dict[str, tuple[float, ...]]]


class Search:
    """One search.

    Args:
        evaluator: scores choices.
        model_sha256: of the network, for the plan.
        budget: what the result must keep.
        precisions: candidates besides fp32.
        measured: stage times on a real card, if there are any; otherwise costs are modelled.
        card: whose published rates the model uses.
        clock: builds and times mixtures on a card before one is kept, or None.
        screener: scores regions alone, on a few photos; the evaluator if there is none.
        prover: scores on the photos of the proof, with the ranges of all others; None proves nothing.
        most_regions: per stage.
        most_trials: mixtures that may run over all selecting photos.
        on_progress: called after every region and every whole variant.
        on_screened: called when the screening is done.
        out_of_time: whether the search should come to its end.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        model_sha256: str,
        budget: Budget,
        precisions: tuple[str, ...] = CANDIDATES,
        measured: StageTimes | None = None,
        card: Card = CARDS[DEFAULT_CARD],
        clock: Clock | None = None,
        screener: Evaluator | None = None,
        prover: Evaluator | None = None,
        most_regions: int = MOST_REGIONS,
        most_trials: int = MOST_TRIALS,
        on_progress: OnProgress = silent,
        on_screened: Callable[[], None] = lambda: None,
        out_of_time: Callable[[], bool] = lambda: False,
    ):
        if unknown := set(precisions) - set(PRECISIONS):
            raise ValueError(f"unknown precision {sorted(unknown)[0]!r}")
        self.evaluator, self.model_sha256, self.budget = evaluator, model_sha256, budget
        self.precisions, self.most_regions, self._on_progress = precisions, most_regions, on_progress
        self.costs, self._clock = StageCosts(evaluator.chain, card, measured), clock
        self.mixtures = Mixtures(evaluator, self.costs, budget, most_trials, on_progress, out_of_time)
        self._try = self.mixtures.attempt
        self._screener, self._prover, self._out_of_time, self._on_screened = screener or evaluator, prover, out_of_time, on_screened
        self._reasons: dict[Region, str] = {}

    def run(self) -> Found:
        """Screen, choose, verify.

        The start is, for every region, the fastest choice that moves the depth no further than allowed on the photos that screen. If all of them
        together break the budget, the regions that move the depth most, or most for the time they save, go one step up, as few of them as will
        do (found by halving; the cheaper of the two counts). Then every stage must show that its INT8 pays, and the whole must prove itself.
        """
        lines = screen(self._screener, self.budget, self.precisions, self.most_regions, self._on_progress, self._out_of_time)
        self._lines = {line.region: line for stage in lines.values() for line in stage}
        self._on_screened()
        self.costs.learn({region: line.quantised for region, line in self._lines.items()})
        self._choose_correction()
        chosen = self._profitable({region: self._start(line) for region, line in self._lines.items()})
        self._try("all fp32", dict.fromkeys(chosen, FP32), self.evaluator.baseline)
        for name in ("fp16", "bf16"):
            if name in self.precisions:
                self._try(f"all {name}", {region: FP32 if line.declared else Choice(name) for region, line in self._lines.items()})
        verdicts: dict[str, str] = {}
        self._fit = Fit(self.mixtures, self._lines, self.precisions, self._reasons)
        for _ in range(2):  # dropping INT8 may move a change that had cancelled another one
            chosen = self._profitable(self._fit(chosen))
            for spec in self.evaluator.chain.specs:
                chosen, verdicts[spec.name] = self._keep_or_drop(spec.name, chosen)
            if not self.mixtures.may_try(chosen, 0):
                break
            if self._try("chosen", chosen).within(self.budget):
                return self._timed(chosen, verdicts)
        kept = [name for name in self.mixtures.within() if name != "all fp32"]
        if kept:  # no trial is left, or dropping INT8 broke the budget twice: the fastest that was seen to keep it
            chosen = self.mixtures.choices[kept[0]]
            verdicts = {spec.name: self._counted(spec.name, chosen) + "." for spec in self.evaluator.chain.specs}
            return self._timed(chosen, verdicts)
        return self._found(dict.fromkeys(chosen, FP32), _wide(verdicts, "no mixture that was tried keeps the budget"), {}, self.evaluator)

    def _choose_correction(self) -> None:
        """Biases are corrected in every INT8 region or in none: as the depth moves less with INT8 wherever it can be. So in FP8."""
        others = {region: Choice("fp16") if line.holds_fp16 else FP32 for region, line in self._lines.items()}
        for kind in self._eight_bits():
            best = {region: line.best(kind) for region, line in self._lines.items()}
            low = {region: choice for region, choice in best.items() if choice is not None and not self._lines[region].scores[choice].failure}
            plain = self._try(f"all {kind} where it can be, else fp16", others | low)
            if low:
                corrected = self._try(f"all {kind}, biases corrected", others | {region: replace(choice, corrected=True) for region, choice in low.items()})
                if corrected.harm < plain.harm:
                    for line in self._lines.values():
                        line.correct_biases(kind)

    def _eight_bits(self) -> list[str]:
        return [kind for kind in EIGHT_BITS if kind in self.precisions]

    def _counted(self, stage: str, chosen: Mixture) -> str:
        counts = Counter(choice.precision for choice in of_stage(stage, chosen).values())
        words = f"{stage}: {', '.join(f'{counts[p]} {p}' for p in PRECISIONS if counts[p])} regions"
        if not counts["int4"]:
            return words
        half = {region: Choice("fp16") if choice.precision == "int4" else choice for region, choice in chosen.items()}
        nbytes = [self.costs.weights_nbytes(stage, mixture) for mixture in (chosen, half)]
        return f"{words}; its weights take {nbytes[0] / 1e6:.3g} MB, and {nbytes[1] / 1e6:.3g} MB with FP16 for INT4"

    def _timed(self, chosen: Mixture, verdicts: dict[str, str]) -> Found:
        """Put the mixture to the proof that is fastest on a card, where there is one."""
        fastest, verdicts = by_the_clock(self.mixtures, self._clock, chosen, verdicts, self._counted, self._on_progress)
        self._tell_replaced(chosen, fastest, "was slower on the card")
        return self._proven(fastest, verdicts)

    def _tell_replaced(self, chosen: Mixture, stays: Mixture, why: str) -> None:
        for region, choice in chosen.items():
            if stays[region] != choice:
                self._reasons[region] = f"{choice.words} is part of a mixture that {why}"

    def _proven(self, chosen: Mixture, verdicts: dict[str, str]) -> Found:
        reasons = dict(self._reasons)
        proven, proof = prove(self.mixtures, self._prover, chosen, self._on_progress, self._tighter)
        self._reasons.clear()  # what was raised for a mixture that the proof rejected as well is no reason for what stayed
        self._reasons.update(reasons)
        if proven != chosen:
            self._tell_replaced(chosen, proven, "failed on the photos of the proof")
            if all(choice == FP32 for choice in proven.values()):
                verdicts = _wide(verdicts, "no mixture that was tried keeps the budget on the photos of the proof")
            else:
                verdicts = {spec.name: self._as_proven(spec.name, proven) for spec in self.evaluator.chain.specs} | {
                    NETWORK: "A faster mixture kept the budget where it was chosen and broke it on the photos of the proof."
                }
        return self._found(proven, verdicts, proof, self._prover or self.evaluator)

    def _tighter(self, failed: Mixture, used: float) -> Mixture | None:
        """What moves the depth on the selecting photos as much less as the proof asks for; None if no trial is left, or nothing but FP32 does."""
        known = self.mixtures.score_of(failed)
        if known is None or not known.disagreement or not math.isfinite(used) or not self.mixtures.may_go_on(SPARE):
            return None
        found = self._profitable(self._fit(failed, replace(self.budget, moved=SAFER * known.disagreement / used)))
        if found == failed or all(choice == FP32 for choice in found.values()):
            return None
        name = f"tighter for the proof, {1 + sum(name.startswith('tighter') for name in self.mixtures.variants)}"
        score = self.mixtures.score_of(found) or self._try(name, found)
        return found if score.within(self.budget) and score.disagreement < known.disagreement else None

    def _start(self, line: Sensitivity) -> Choice:
        if line.declared:
            self._reasons[line.region] = "the network declares it FP32"
            return FP32
        for choice in line.ladder(self.precisions):
            if choice == FP32 or line.scores[choice].mild(self.budget):
                self._reasons[line.region] = self._why(line, choice)
                return choice
        return FP32

    def _profitable(self, chosen: Mixture) -> Mixture:
        """INT8 and FP8 are removed wherever they slow their stage: a region between FP16 ones pays for turning its input into INT8."""
        chosen, fp16 = dict(chosen), Choice("fp16")
        for stage in {region.stage: None for region in chosen}:
            mine = of_stage(stage, chosen)
            changed = True
            while changed:
                changed = False
                for region in [r for r, choice in mine.items() if choice.precision in EIGHT_BITS and fp16 in self._lines[r].ladder(self.precisions)]:
                    if self.costs.stage_ms(stage, mine | {region: fp16}) < (1 - 1e-9) * self.costs.stage_ms(stage, mine):
                        self._reasons[region] = f"{mine[region].precision.upper()} {USELESS}"
                        mine[region], changed = fp16, True
            chosen |= mine
        return chosen

    def _why(self, line: Sensitivity, choice: Choice) -> str:
        if (line.overflows or line.reads) and choice.precision in ("fp32", "bf16"):
            tensor, peak = next(iter({**line.overflows, **line.reads}.items()))
            return f"{'makes' if line.overflows else 'reads'} {tensor}, which reaches {peak:.3g}: FP16 cannot hold it"
        failures = [score.failure for tried, score in line.scores.items() if score.failure and tried.precision == "fp16"]
        if choice == FP32 and failures:
            return f"FP16 fails: {failures[0]}"
        return "the fastest that moves the depth no further than allowed, alone" if choice != FP32 else "every faster choice moves the depth too far, alone"

    def _as_proven(self, stage: str, proven: Mixture) -> str:
        """One sentence about a stage of a mixture that the proof left, which stays as it was proven, whatever its INT8 (or FP8) saves."""
        if not (low := _eight_bits_in(stage, proven)):
            return self._why_not_lower(stage, proven)
        slow, gain, kind = self._saved(stage, proven)
        saves = f"saves {gain:.1%} of {slow:.3g} ms" if gain > 0 else "saves nothing"
        return f"{self._counted(stage, proven)}; {low} {saves} ({kind}), and stays as it was proven."

    def _why_not_lower(self, stage: str, chosen: Mixture) -> str:
        words, low = self._counted(stage, chosen), " and ".join(self._eight_bits()).upper() or "INT8"
        able = [line for region, line in self._lines.items() if region.stage == stage and line.quantised]
        if not able or not self._eight_bits():
            return f"{words}; {low} was not possible or not asked for."
        useless = [line.region for line in able if self._reasons.get(line.region, "").endswith(USELESS)]
        kind = "measured" if self.costs.is_measured(stage) else "modelled"
        why = f"it saves nothing ({kind})" if len(useless) == len(able) else "it breaks the budget" + f" or saves nothing ({kind})" * bool(useless)
        return f"{words}; {low} is dropped because {why}."

    def _saved(self, stage: str, chosen: Mixture) -> tuple[float, float, str]:
        """The stage's time with FP16 for INT8 and FP8, milliseconds; what part of it these save; whether that was measured or modelled."""
        mine = of_stage(stage, chosen)
        slow, fast = (self.costs.stage_ms(stage, each) for each in (without_eight_bits(mine), mine))
        return slow, 1 - fast / slow if slow else 0.0, "measured" if self.costs.is_measured(stage) else "modelled"

    def _keep_or_drop(self, stage: str, chosen: Mixture) -> tuple[Mixture, str]:
        """INT8 (or FP8) stays in a stage only if it pays; one sentence about the stage."""
        if not (low := _eight_bits_in(stage, chosen)):
            return chosen, self._why_not_lower(stage, chosen)
        words, (slow, gain, kind) = self._counted(stage, chosen), self._saved(stage, chosen)
        if gain >= PAYS_FROM:
            return chosen, f"{words}; {low} is kept because it saves {gain:.0%} of {slow:.3g} ms ({kind})."
        if "fp16" not in self.precisions:
            return chosen, f"{words}; {low} saves only {gain:.1%} ({kind}), but FP16 was not a candidate."
        replaced = chosen | without_eight_bits(of_stage(stage, chosen))
        if not self.mixtures.may_try(replaced, 2):
            return chosen, f"{words}; {low} saves only {gain:.1%} ({kind}), but no trial was left for FP16 in its place."
        if not self._try(f"{stage} in fp16", replaced).within(self.budget):
            return chosen, f"{words}; {low} saves only {gain:.1%} ({kind}), but FP16 in its place breaks the budget."
        for region, choice in of_stage(stage, chosen).items():
            if choice.precision in EIGHT_BITS:
                self._reasons[region] = f"{choice.precision.upper()} does not pay in this stage"
        if self.mixtures.may_try(chosen, 2):
            self._try(f"{stage} kept in {low.lower()}", chosen)
        why = f"it saves only {gain:.1%} of {slow:.3g} ms" if gain >= 0 else f"it saves nothing: {(1 - gain) * slow:.3g} ms for {slow:.3g} ms"
        return replaced, f"{stage}: {low} is dropped because {why} ({kind}; {PAYS_FROM:.0%} faster is wanted)."

    def _found(self, chosen: Mixture, verdicts: dict[str, str], proof: dict[str, Any], judge: Evaluator) -> Found:
        """``judge``: whose ranges and peaks the result gets: those that it was proven with."""
        self._try("chosen", chosen)
        variants = self.mixtures.variants | {"chosen": replace(self.mixtures.variants["chosen"], chosen=True)}
        seen: dict[str, StageObservation] = judge.seen
        graphs = self.evaluator.chain.graphs
        plan = plan_of(chosen)
        ranges = {stage: ranges_for(graphs[stage], choices, seen[stage], self.evaluator.also) for stage, choices in plan.items()}
        shifts = {stage: shifts_for(graphs[stage], choices, ranges[stage], seen[stage]) for stage, choices in plan.items()}
        told = {stage: {name: tuple(map(float, values)) for name, values in nodes.items()} for stage, nodes in shifts.items() if nodes}
        regions, overflows = [], []
        for region, line in self._lines.items():
            macs = self.costs.models[region.stage].region_macs(region)
            reason = self._reasons.get(region, "")
            regions.append(RegionPlan(region.stage, region.path, region.kind, region.nodes, chosen[region], reason, line.evidence(), macs))
            overflows += [{"stage": region.stage, "region": region.path, "tensor": name, "peak": peak} for name, peak in line.overflows.items()]
        overflows.sort(key=lambda fact: -fact["peak"])
        keep = judge.keep_fp32(plan)
        truth, marked, cost = self.evaluator.truth, mark_pareto(list(variants.values())), self.costs.facts()
        return Found(
            PrecisionPlan(
                self.model_sha256,
                self.budget.to_json(),
                truth,
                cost,
                tuple(regions),
                keep,
                verdicts,
                tuple(overflows),
                marked,
                self.evaluator.also,
                proof,
            ),
            ranges,
            told,
        )


def _wide(verdicts: dict[str, str], why: str) -> dict[str, str]:
    """Every stage stays FP32."""
    return {stage: f"{stage}: stays FP32, because {why}." for stage in verdicts}


def _eight_bits_in(stage: str, chosen: Mixture) -> str:
    """Those of INT8 and FP8 that a stage has, in words; empty if it has neither."""
    used = {choice.precision for choice in of_stage(stage, chosen).values()}
    return " and ".join(kind.upper() for kind in EIGHT_BITS if kind in used)
