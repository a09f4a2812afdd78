"""Calibration of networks that draw masks and are asked in words: judged by overlap, with every prompt in every split."""

import dataclasses

import numpy as np
import pytest
from onnx import numpy_helper

from fathom.calibration.graph.chain import Chain
from fathom.calibration.search.evaluate import Evaluator
from fathom.calibration.search.objective import Budget
from fathom.runtime.artefact.bundle import BundleDirectory
from fathom.runtime.errors import InputError

pytestmark = pytest.mark.usefixtures("rooms_once")


@pytest.fixture
def masks(calibration_bundles, tmp_path):
    """Callable(shift) -> a bundle that draws masks: logits [batch, 2, h, w], the object's moved by ``shift``."""
    from onnx import TensorProto, helper

    from fathom.runtime.artefact.contract import OutputContract

    def make(shift=0.0):
        models = calibration_bundles.token_models()
        head = models[1]
        for node in head.graph.node:
            node.output[0] = "object" if node.output[0] == "depth" else node.output[0]
        middle = numpy_helper.from_array(np.float32(3.0 - shift), "middle")
        head.graph.initializer.append(middle)
        head.graph.node.append(helper.make_node("Sub", ["object", "middle"], ["object0"], name="out_conv/Sub_0"))
        head.graph.node.append(helper.make_node("Neg", ["object0"], ["other"], name="out_conv/Neg_0"))
        head.graph.node.append(helper.make_node("Concat", ["other", "object0"], ["logits"], name="out_conv/Concat_0", axis=1))
        size = [d.dim_value for d in head.graph.output[0].type.tensor_type.shape.dim][2:]
        del head.graph.output[:]
        head.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2, *size]))
        output = OutputContract("logits", "mask", "", 0.0, 1.0, "", "bilinear")
        contract = dataclasses.replace(calibration_bundles.small_contract(), output=output)
        return calibration_bundles.write_bundle(tmp_path / "masks", models, contract)

    return make


def test_masks_are_judged_by_their_overlap_and_by_what_moves_before_a_pixel_does(masks, calibrated):
    seen = {}
    real = Evaluator._outputs

    def watched(self, plan, stages):
        for number, logits in real(self, plan, stages):
            if self._purpose.startswith("screen"):
                mask = self.chain.assemble(self.chain.shaped(48, 64), logits)[0] > 0
                seen.setdefault(str(plan), {})[number] = mask, 1 / (1 + np.exp(logits[0][0, 0] - logits[0][0, 1]))
            yield number, logits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluator, "_outputs", watched)
        plan = calibrated(masks(), budget=Budget(1.0, 1.0, 1.0)).plan
    assert plan.truth == "fp32 mask"
    reference, others = next(iter(seen.values())), list(seen.values())[1:]
    assert all(0 < mask.mean() < 1 for mask, _ in reference.values())
    overlaps, moves = set(), set()
    for found in others:
        pairs = [(found[n][0], reference[n][0]) for n in reference]
        overlaps.add(round(float(np.mean([1 - (a & b).sum() / (a | b).sum() for a, b in pairs])), 9))
        moves.add(round(float(np.mean([np.abs(found[n][1] - reference[n][1]).mean() for n in reference])), 9))
    scores = [score for r in plan.regions for score in r.evidence.values()]
    assert scores and all(round(score["abs_rel"], 9) in overlaps for score in scores)
    assert all(min(abs(score["disagreement"] - move) for move in moves) < 1e-6 for score in scores)
    assert next(v for v in plan.variants if v.name == "all fp32").score["abs_rel"] == 0


@pytest.mark.parametrize("shift", [-9.0, 9.0])
def test_masks_that_are_empty_or_full_prove_nothing_and_are_refused(masks, calibrated, shift):
    with pytest.raises(InputError, match="nowhere, or everywhere, in each of the 2 images"):
        calibrated(masks(shift))


def test_photos_are_dealt_all_prompts_in_every_split(token_bundle):
    chain = Chain(BundleDirectory.open(token_bundle()))
    assert chain.prompt_of(3) is None
    chain.prompts = ("a", "b", "c")
    for step in (1, 2, 3, 4, 6):
        dealt = [chain.prompt_of(number) for number in range(step - 1, 16 * step, step)]
        assert set(dealt) == {"a", "b", "c"} and max(map(dealt.count, "abc")) <= 10
