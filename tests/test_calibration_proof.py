"""What is put to the proof: safer mixtures, the safest of them before FP32."""

from types import SimpleNamespace

from fathom.calibration.precision.precision_plan import FP32, Choice
from fathom.calibration.precision.regions import Region
from fathom.calibration.search.mixtures import Mixtures
from fathom.calibration.search.objective import Budget, Score
from fathom.calibration.search.proof import prove

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
    found, proof = prove(mixtures, lambda: prover, mixtures.choices["8 in int8"], lambda what, total: None)
    assert prover.asked == [8, 7, 6, 0]
    assert found == dict.fromkeys(REGIONS, FP16) and proof["within"] and len(proof["rejected"]) == 3


def test_the_fastest_safer_mixture_is_taken_where_it_holds():
    mixtures, prover = all_tried(), Evaluator(0.0008)
    found, _ = prove(mixtures, lambda: prover, mixtures.choices["8 in int8"], lambda what, total: None)
    assert prover.asked == [8, 7, 6] and sum(choice == INT8 for choice in found.values()) == 6


def test_fp32_is_left_where_nothing_holds():
    mixtures, prover = all_tried(), Evaluator(0.01)
    prover._score = lambda moved: Score(0.1, 0.9, 0.5, 0.0, moved)
    found, proof = prove(mixtures, lambda: prover, mixtures.choices["8 in int8"], lambda what, total: None)
    assert found == dict.fromkeys(REGIONS, FP32) and proof["within"] and len(proof["rejected"]) == 4
