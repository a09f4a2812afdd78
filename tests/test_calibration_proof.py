"""What is put to the proof: safer mixtures, the safest of them before FP32."""

import json
from types import SimpleNamespace

import pytest

from fathom.calibration.precision.precision_plan import FP32, Choice, PrecisionPlan, RegionPlan
from fathom.calibration.precision.regions import Region
from fathom.calibration.search.clock import by_the_clock
from fathom.calibration.search.mixtures import Mixtures
from fathom.calibration.search.objective import Budget, Score
from fathom.calibration.search.proof import proof_line, prove

REGIONS = [Region("unet", f"block.{number}", "block", (f"n{number}",)) for number in range(8)]
INT8, FP16 = Choice("int8", "max"), Choice("fp16")
BUDGET = Budget(abs_rel=0.005, delta1=0.005, moved=0.02)


class Evaluator:
    """Every INT8 region moves the depth by as much, and FP16 by next to nothing."""

    def __init__(self, moved_by_int8):
        self.photos, self.moved, self.baseline, self.asked = [SimpleNamespace(scene="kitchen")], moved_by_int8, self._score(0.0), []

    def _score(self, moved):
        return Score(0.1, 0.9, moved, 0.0, moved)

    def score(self, plan):
        precisions = [choice.precision for choice in plan["unet"].values()]
        self.asked.append(precisions.count("int8"))
        return self._score(precisions.count("int8") * self.moved + 1e-5 * precisions.count("fp16"))


def tried(mixtures):
    mixtures.attempt("all fp32", dict.fromkeys(REGIONS, FP32), mixtures.evaluator.baseline)
    for count in range(len(REGIONS) + 1):
        mixtures.attempt(f"{count} in int8", {region: INT8 if number < count else FP16 for number, region in enumerate(REGIONS)})
    return mixtures


def all_tried():
    """Costs fall by 1 ms with each INT8 region; all keep the budget on the photos that select."""
    cost = SimpleNamespace(cost_ms=lambda mixture: 20.0 - sum(choice == INT8 for choice in mixture.values()) + 5.0 * all(c == FP32 for c in mixture.values()))
    return tried(Mixtures(Evaluator(5e-4), cost, BUDGET))


def test_where_int8_fails_on_the_scenes_of_the_proof_fp16_is_proven_before_fp32_is_taken():
    mixtures, prover = all_tried(), Evaluator(0.01)
    found, proof = prove(mixtures, prover, mixtures.choices["8 in int8"], lambda what, total: None)
    assert prover.asked == [8, 7, 6, 0]
    assert found == dict.fromkeys(REGIONS, FP16) and proof["within"] and len(proof["rejected"]) == 3


def test_the_fastest_safer_mixture_is_taken_where_it_holds():
    mixtures, prover = all_tried(), Evaluator(0.0008)
    found, _ = prove(mixtures, prover, mixtures.choices["8 in int8"], lambda what, total: None)
    assert prover.asked == [8, 7, 6] and sum(choice == INT8 for choice in found.values()) == 6


def test_fp32_is_left_where_nothing_holds():
    mixtures, prover = all_tried(), Evaluator(0.01)
    prover._score = lambda moved: Score(0.1, 0.9, 0.5, 0.0, moved)
    found, proof = prove(mixtures, prover, mixtures.choices["8 in int8"], lambda what, total: None)
    assert found == dict.fromkeys(REGIONS, FP32) and proof["within"] and len(proof["rejected"]) == 4


def test_what_the_proof_asks_for_is_looked_for_before_a_mixture_that_happened_to_be_tried():
    mixtures, prover, asked = all_tried(), Evaluator(0.003), []

    def tighter(failed, used):
        asked.append(used)
        return mixtures.choices["6 in int8"]

    found, proof = prove(mixtures, prover, mixtures.choices["8 in int8"], lambda what, total: None, tighter)
    assert prover.asked == [8, 6, 6, 0] and found == dict.fromkeys(REGIONS, FP16)  # the last proof is the safest's
    assert asked == [pytest.approx(8 * 0.003 / 0.005, rel=0.01), pytest.approx(6 * 0.003 / 0.005, rel=0.01)]
    assert [line.split(":")[0] for line in proof["rejected"]] == ["chosen", "tighter, 1", "tighter, 2"]


def test_a_tighter_mixture_that_keeps_the_budget_on_the_proof_is_taken():
    mixtures, prover = all_tried(), Evaluator(0.0008)
    found, proof = prove(mixtures, prover, mixtures.choices["8 in int8"], lambda what, total: None, lambda failed, used: mixtures.choices["5 in int8"])
    assert prover.asked == [8, 5] and found == mixtures.choices["5 in int8"] and proof["within"]


def test_the_part_of_a_budget_that_is_used_is_that_of_its_tightest_bound():
    assert Score(0.1, 0.9, -0.004, 0.002, 0.03, 0.002, 0.0).used(BUDGET) == pytest.approx(1.5)  # 0.6 %, 0.2 pp and 3 % of 0.5 %, 0.5 pp and 2 %
    assert Score(0.1, 0.9, -0.004, 0.002, 0.01, 0.002, 0.0).used(BUDGET) == pytest.approx(1.2)


@pytest.mark.parametrize("earlier", [None, "8 in int8"])
def test_a_card_times_the_mixture_that_is_chosen_now(earlier):
    """No trial was left, and the fastest that was seen is taken: ``chosen`` was nothing so far, or something that was given up."""
    mixtures = all_tried()
    if earlier:
        mixtures.attempt("chosen", mixtures.choices[earlier])
    ms = {8: 30.0, 5: 3.0, 0: 9.0}
    found, _ = by_the_clock(
        mixtures,
        lambda plan: {"unet": ms[sum(choice == INT8 for choice in plan["unet"].values())]},
        mixtures.choices["5 in int8"],
        {},
        lambda stage, mixture: "",
        lambda what, total: None,
    )
    assert found == mixtures.choices["5 in int8"]
    mixtures.attempt("chosen", found)  # as the search does at its end
    assert mixtures.variants["chosen"].timed and mixtures.variants["chosen"].cost_ms == 3.0


def said(mixture, proof):
    """The words about a plan of a mixture, its proof as it is read from a file."""
    regions = tuple(RegionPlan(r.stage, r.path, r.kind, r.nodes, choice, "", {}) for r, choice in mixture.items())
    return proof_line(PrecisionPlan("0" * 64, BUDGET.to_json(), "", {}, regions, (), {}, (), (), (), json.loads(json.dumps(proof, allow_nan=False))))


def test_one_photo_gives_no_interval_and_words_say_so():
    mixtures, prover = all_tried(), Evaluator(0.0008)
    prover._score = lambda moved: Score(0.1, 0.9, moved, 0.0, moved, None, None)
    line = said(*prove(mixtures, prover, mixtures.choices["8 in int8"], lambda what, total: None))
    assert line.startswith("Proved on 1 photo of 1 scene that") and "Rejected there: chosen: abs_rel +0.64 %" in line
    assert line.count("one photo: no interval can be given") == 3 and not any(word in line for word in ("±", "nan", "inf", "None"))


def test_what_was_rejected_is_not_said_to_be_proved():
    mixtures, prover = all_tried(), Evaluator(0.01)
    prover._score = lambda moved: Score(0.1, 0.9, 0.5, 0.0, moved)
    line = said(*prove(mixtures, prover, mixtures.choices["8 in int8"], lambda what, total: None))
    assert line.startswith("Everything stays FP32: nothing else kept the budget") and "on 1 photo of 1 scene" in line and "Proved" not in line
    assert line.count("abs_rel +50.00 ± 0.00 %") == 4
    assert said(dict.fromkeys(REGIONS, FP32), {}) == "Everything stays FP32: there is nothing to prove."
