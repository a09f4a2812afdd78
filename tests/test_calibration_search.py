"""The whole calibration on small networks with planted faults: what is wrong is found, named, and kept out of harm's way."""

import dataclasses
import tracemalloc

import numpy as np
import pytest
from onnx import numpy_helper

from fathom.calibration.calibrate import Settings, add_to_bundle, calibrate
from fathom.calibration.graph.chain import Chain
from fathom.calibration.observation.flow import Flow
from fathom.calibration.observation.images import Chosen
from fathom.calibration.observation.journal import Journal
from fathom.calibration.observation.observe import prepare_photos, silent
from fathom.calibration.observation.photo import Photo
from fathom.calibration.observation.split import split
from fathom.calibration.search.evaluate import Evaluator
from fathom.calibration.search.objective import Budget
from fathom.calibration.search.stage_times import StageTimes
from fathom.runtime.artefact.bundle import BundleDirectory
from fathom.runtime.errors import AccuracyError

DATA = "rooms:6:1:48x64"
LOOSE = Budget(0.05, 0.05, 0.05)
pytestmark = pytest.mark.usefixtures("rooms_once")


@pytest.fixture(scope="module")
def healthy(token_bundle, calibrated):
    return calibrated(token_bundle())


def test_photos_that_regions_are_screened_on_have_a_depth_and_a_scene_each(token_bundle, tmp_path):
    chain, data = Chain(BundleDirectory.open(token_bundle())), Chosen(DATA)
    journal = Journal(tmp_path / "j", {"key": 1})
    photos = prepare_photos(chain, data, journal, silent)
    photos = [dataclasses.replace(photo, scene=scene) for photo, scene in zip(photos[:5], "aabbc", strict=True)]
    blind = {photos[0].number, photos[1].number}

    def sample(number):
        found = data[number]
        return dataclasses.replace(found, valid=np.zeros_like(found.valid)) if number in blind else found

    evaluator = Evaluator(chain, {}, list(photos), sample, Flow(chain, data, journal))
    assert evaluator.telling(1) == (photos[2],)
    assert evaluator.telling(2) == (photos[2], photos[4])
    assert evaluator.telling(9) == (photos[2], photos[3], photos[4])


def test_scoring_many_large_photos_takes_no_more_memory_than_scoring_two(token_bundle, tmp_path, monkeypatch):
    """What has no room is made anew for one photo after the other, with the same score."""
    from fathom.calibration.search import maps
    from fathom.datasets.sample import Sample

    chain, size = Chain(BundleDirectory.open(token_bundle())), (400, 600)
    each = 400 * 600 * (3 + 4 + 1)  # bytes of a photo, its depth, and where that is known

    class Photos:
        def __len__(self):
            return 10

        def __getitem__(self, number):
            random = np.random.default_rng(number)
            depth = random.uniform(1, 5, size).astype(np.float32)
            return Sample(random.integers(0, 256, (*size, 3), dtype=np.uint8), depth, depth > 0, None, f"p{number}", f"p{number}")

    data, journal = Photos(), Journal(tmp_path / "j", {})
    photos = prepare_photos(chain, data, journal, silent)

    def scored(count):
        """Score of FP32 stages in their own place, and the greatest number of bytes that were held for it."""
        tracemalloc.start()
        evaluator = Evaluator(chain, {}, photos[:count], data.__getitem__, Flow(chain, data, journal))
        score = evaluator.score_stages({}, {"head": chain.graphs["head"]})
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return score, peak

    plenty = scored(10)[0]
    monkeypatch.setattr(maps, "REMEMBER_NBYTES", 0)
    (_, few), (score, many) = scored(2), scored(10)
    assert score == plenty and score.disagreement == 0 and score.abs_rel > 0.1
    assert many < few + each


def test_a_healthy_network_becomes_int8_and_fp16(healthy):
    choices = {(r.stage, r.path): r.choice.precision for r in healthy.plan.regions}
    assert choices["encoder", "blocks.0.ff"] == "int8" and choices["head", "deconv"] in ("int8", "fp16")
    chosen = next(v for v in healthy.plan.variants if v.chosen)
    assert chosen.within and chosen.cost_ms < next(v for v in healthy.plan.variants if v.name == "all fp32").cost_ms
    assert healthy.plan.cost["kind"] == "modelled" and healthy.plan.truth == "ground truth"
    assert {v.name for v in healthy.plan.variants} >= {"all fp32", "all fp16", "all bf16", "all int8 where it can be, else fp16"}  # the losers too
    assert all("INT8" in verdict or "regions" in verdict for verdict in healthy.plan.verdicts.values())
    ranges = healthy.table.stages["encoder"]["n"]
    assert 0 < ranges.amax <= ranges.greatest
    assert healthy.table.images == 5 and healthy.table.data["kind"] == "rooms" and any("few" in w for w in healthy.table.warnings)


def test_an_overflowing_layer_norm_is_found_by_name_and_kept_fp32(token_bundle, calibrated, healthy):
    result = calibrated(token_bundle(norm_scale=1e5))
    (fact,) = [f for f in result.plan.overflows if f["region"] == "blocks.0.norm"]
    assert fact["tensor"] == "n" and fact["peak"] > 65504 and result.plan.overflows[0] == fact
    norm, reader = (next(r for r in result.plan.regions if r.path == path) for path in ("blocks.0.norm", "blocks.0.ff"))
    assert norm.choice.precision in ("fp32", "bf16") and "FP16 cannot hold it" in norm.reason
    assert reader.choice.precision in ("fp32", "bf16") and "reads n" in reader.reason
    assert "65504" in norm.evidence["fp16"]["failure"]
    wide = {(r.stage, r.path) for r in result.plan.regions if r.choice.precision in ("fp32", "bf16")}
    held = {(r.stage, r.path) for r in healthy.plan.regions if r.choice.precision in ("fp32", "bf16")}
    assert wide - held == {("encoder", "blocks.0.norm"), ("encoder", "blocks.0.ff")}  # nothing else is held back
    narrow = calibrated(token_bundle(norm_scale=1e5), precisions=("fp32", "fp16", "int8"))
    assert next(r for r in narrow.plan.regions if r.path == "blocks.0.norm").choice.precision == "fp32"


def test_the_part_that_int8_ruins_is_named_and_mended_or_kept_higher(token_bundle, calibrated, calibration_bundles):
    """One giant weight per output channel leaves the others of that channel no INT8 steps; its input is almost nothing."""
    models = calibration_bundles.token_models()
    for tensor in models[1].graph.initializer:
        if tensor.name == "out.weight":
            values = numpy_helper.to_array(tensor).copy()
            values[0, 0] *= 3000
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        if tensor.name in ("up.weight", "up.bias"):
            values = numpy_helper.to_array(tensor).copy()
            values[(slice(None), 0) if values.ndim == 4 else 0] /= 3000
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    result = calibrated(token_bundle(models), budget=Budget(0.01, 0.02))
    region = next(r for r in result.plan.regions if r.path == "out_conv")
    assert region.choice.precision != "int8" or region.choice.smooth > 0

    def moved(score):
        return np.inf if score["failure"] else score["disagreement"]

    alone = [(r, words, score) for r in result.plan.regions for words, score in r.evidence.items() if words.startswith("int8 layer-output")]
    first = {(r.stage, r.path): moved(score) for r, words, score in alone if "smooth" not in words}
    assert max(first, key=first.get) == ("head", "out_conv")
    mended = [moved(score) for r, words, score in alone if r == region and "smooth" in words]
    assert min(mended) < first["head", "out_conv"] / 3  # the giant weights' channel is scaled up, and with it goes what they left no steps for


def test_nan_in_a_stage_names_the_stage_and_the_tensor(token_bundle, calibrated):
    with pytest.raises(AccuracyError, match=r"stage head: the output depth holds .* NaN or infinite .*\(photo room_1_00000\d\)"):
        calibrated(token_bundle(poison=np.nan))


def test_int8_that_does_not_pay_is_dropped_in_one_sentence(token_bundle, calibrated):
    times = {"encoder": {"fp32": 2.0, "fp16": 1.0, "int8": 2.0}, "head": {"fp32": 2.5, "fp16": 1.0, "int8": 2.0}}
    result = calibrated(token_bundle(), measured=StageTimes("a test card", times, "0" * 64))
    assert all(r.choice.precision != "int8" for r in result.plan.regions)
    assert "INT8 is dropped because it saves nothing: " in result.plan.verdicts["head"] and "INT8 is dropped" in result.plan.verdicts["encoder"]
    assert result.plan.cost["kind"] == "measured" and result.plan.cost["device"] == "a test card"
    assert any("kept in int8" in v.name for v in result.plan.variants)  # the losing variant stays in the report
    costs = {v.name: v.cost_ms for v in result.plan.variants}
    assert (costs["all fp32"], costs["all fp16"]) == pytest.approx((4.5, 2.0))
    assert 2.0 <= costs["all bf16"] < 4.5  # as wide as FP16, but the transposed convolution stays FP32
    some = calibrated(token_bundle(), measured=StageTimes("a test card", {"head": times["head"]}, "0" * 64)).plan
    assert some.cost["kind"] == "measured in head, else modelled" and "(modelled)" in some.verdicts["encoder"] and "(measured;" in some.verdicts["head"]


def test_the_verdict_comes_from_photos_that_chose_nothing(token_bundle, calibrated, healthy, monkeypatch):
    from fathom.calibration.search.evaluate import Evaluator

    splits = healthy.table.data["splits"]
    named = [set(splits[part]) for part in ("observe", "select", "prove")]
    assert all(named) and len(set.union(*named)) == sum(map(len, named)) == 6
    proof = healthy.plan.proof
    assert proof["photos"] == len(named[2]) and proof["within"] and proof["rejected"] == [] and proof["score"]["disagreement"] > 0
    real, shown = Evaluator._measure, []

    def measured(self, plan):
        score = real(self, plan)
        shown.append({photo.id for photo in self.photos})
        int8 = any(choice.precision == "int8" for choices in plan.values() for choice in choices.values())
        return dataclasses.replace(score, disagreement=0.5) if self.photos[0].id in named[2] and int8 else score

    monkeypatch.setattr(Evaluator, "_measure", measured)
    plan = calibrated(token_bundle()).plan
    assert "int8" not in {r.choice.precision for r in plan.regions} and "fp16" in {r.choice.precision for r in plan.regions}
    assert plan.proof["within"] and "moved 50.00 %" in plan.proof["rejected"][0] and "photos of the proof" in plan.verdicts["(network)"]
    assert all(seen <= named[1] or seen == named[2] for seen in shown)


def test_what_is_said_of_a_stage_is_what_was_proven(token_bundle, calibrated, monkeypatch):
    """The proof leaves a mixture with INT8 in stages where INT8 saves less than is wanted: it is in the plan, and not told of as dropped."""
    from fathom.calibration.search import search

    real = search.prove
    monkeypatch.setattr(search, "prove", lambda mixtures, *others: (mixtures.choices["all int8 where it can be, else fp16"], real(mixtures, *others)[1]))
    times = {"encoder": {"fp32": 2.0, "fp16": 1.0, "int8": 0.99}, "head": {"fp32": 2.5, "fp16": 1.0, "int8": 2.0}}
    plan = calibrated(token_bundle(), measured=StageTimes("a test card", times, "0" * 64)).plan
    assert {region.stage for region in plan.regions if region.choice.precision == "int8"} == set(times)
    assert "INT8 saves " in plan.verdicts["encoder"] and "INT8 saves nothing (measured), and stays" in plan.verdicts["head"]
    assert not any("dropped" in verdict for verdict in plan.verdicts.values())


def test_a_budget_that_nothing_keeps_leaves_fp32(token_bundle, calibrated):
    result = calibrated(token_bundle(), budget=Budget(1e-9, 1e-9), precisions=("fp32", "int8"))
    assert {r.choice.precision for r in result.plan.regions} == {"fp32"}
    assert "dropped because it breaks the budget" in result.plan.verdicts["encoder"]


def test_relative_maps_are_judged_against_the_truth_at_its_median(calibration_bundles, tmp_path, calibrated):
    from fathom.runtime.pipeline import Pipeline

    contract = calibration_bundles.small_contract()
    relative = dataclasses.replace(contract, output=dataclasses.replace(contract.output, kind="relative", unit=""))
    path = calibration_bundles.write_bundle(tmp_path / "bundle", calibration_bundles.token_models(), relative)
    result = calibrated(path)
    plan, wanted, selecting = result.plan, [], result.table.data["splits"]["select"]
    with Pipeline.open(path) as pipeline:
        for sample in (sample for sample in Chosen(DATA).source if sample.id in selecting):
            found, truth = pipeline.predict(sample.rgb).values[sample.valid].astype(np.float64), sample.depth_m[sample.valid].astype(np.float64)
            wanted.append(np.mean(np.abs(found * np.median(truth) / np.median(found) - truth) / truth))
    assert plan.truth == "ground truth, fitted by the median"
    assert next(v for v in plan.variants if v.name == "all fp32").score["abs_rel"] == pytest.approx(np.mean(wanted), rel=1e-5)


def test_an_interrupted_search_measures_nothing_twice(token_bundle, tmp_path, monkeypatch):
    from fathom.calibration.search import evaluate
    from fathom.calibration.search.evaluate import Evaluator

    path, measured, smoothed, screened = token_bundle(), [], [], []
    real, search = Evaluator._measure, evaluate.best_alpha
    monkeypatch.setattr(Evaluator, "_measure", lambda self, plan: measured.append((self.photos, plan)) or real(self, plan))
    monkeypatch.setattr(evaluate, "best_alpha", lambda graph, nodes, *more: smoothed.append(nodes) or search(graph, nodes, *more))

    def tick(what, total):
        if what.startswith("regions"):
            screened.append(total)
        if what == "whole variants":
            raise KeyboardInterrupt

    settings, opened = Settings(LOOSE), BundleDirectory.open(path)
    with pytest.raises(KeyboardInterrupt):
        calibrate(opened, Chosen(DATA), settings, tmp_path / "j", tick)
    before, alphas = len(measured), len(smoothed)
    resumed = calibrate(opened, Chosen(DATA), settings, tmp_path / "j")
    assert 0 < before < len(measured) == len({str(plan) for plan in measured})
    assert 0 < alphas == len(smoothed) == len(set(smoothed))
    assert screened == [len(screened)] * len(screened) == [len(resumed.plan.regions)] * len(resumed.plan.regions)
    assert resumed.plan == calibrate(opened, Chosen(DATA), settings, tmp_path / "other").plan
    add_to_bundle(opened, resumed)
    assert not (tmp_path / "j").exists()


def test_a_photo_that_breaks_the_network_is_refused_before_the_search_even_if_it_only_proves(calibration_bundles, token_bundle, tmp_path):
    """A network that divides by a picture's brightness, and a black picture among the photos of the proof."""
    from onnx import helper
    from PIL import Image

    models = calibration_bundles.token_models()
    graph = models[0].graph
    graph.initializer.append(numpy_helper.from_array(np.float32(1), "unit"))
    graph.node[-1].output[0] = "plain"
    made = (("ReduceMax", ["image"], "top"), ("Add", ["top", "unit"], "light"), ("Div", ["light", "light"], "ratio"), ("Mul", ["plain", "ratio"], "features"))
    graph.node.extend(helper.make_node(kind, inputs, [output], name=f"light/{kind}_0") for kind, inputs, output in made)
    path = token_bundle(models)
    (tmp_path / "photos").mkdir()
    for number, sample in enumerate(Chosen(DATA).source):
        Image.fromarray(sample.rgb * (number > 0)).save(tmp_path / "photos" / f"{number}.png")
    text = f"images:{tmp_path / 'photos'}"
    everything = [Photo(number, str(number), str(number), 1) for number in range(6)]
    seed = next(seed for seed in range(99) if everything[0] in split(everything, set(), "images", seed=seed).prove)
    told = []
    with pytest.raises(AccuracyError, match=r"NaN .*\(photo 0.png\)"):
        calibrate(BundleDirectory.open(path), Chosen(text, seed=seed), Settings(LOOSE), tmp_path / "j", lambda what, total: told.append(what))
    assert "pictures through the stages" in told and "regions screened" not in told


def test_int8_is_given_up_before_fp16(token_bundle, calibrated, healthy):
    """A budget between what all of INT8 and what all of FP16 move: nothing has to be FP32 for it, and not all INT8 has to go."""
    moved = {v.name: v.score["disagreement"] for v in healthy.plan.variants}
    tight = 0.8 * moved["every region's fastest"]
    assert moved["all fp16"] < tight < moved["every region's fastest"]
    plan = calibrated(token_bundle(), budget=Budget(1.0, 1.0, tight), precisions=("fp32", "fp16", "int8")).plan
    chosen, half = (next(v for v in plan.variants if v.name == name) for name in ("chosen", "all fp16"))
    assert chosen.within and chosen.score["disagreement"] <= tight and chosen.cost_ms < half.cost_ms
    assert {r.choice.precision for r in plan.regions} == {"fp16", "int8"}
    raised = [r for r in plan.regions if "keeps the budget alone but not together" in r.reason]
    assert raised and all(r.choice.precision == "fp16" and r.reason.startswith("int8") for r in raised)
    assert chosen.cost_ms == min(v.cost_ms for v in plan.variants if v.within)


@pytest.mark.parametrize("island", [True, False])
def test_what_overflows_inside_an_fp32_island_is_no_overflow(calibration_bundles, tmp_path, calibrated, island):
    """A tensor goes beyond 65504 and comes back: harmless where the network declares that part FP32, named where it does not."""
    from onnx import helper

    models = calibration_bundles.token_models()
    graph = models[0].graph
    graph.initializer.extend(numpy_helper.from_array(np.float32(value), name) for name, value in (("up", 1.5e4), ("down", 1 / 1.5e4)))
    place = next(k for k, node in enumerate(graph.node) if node.output[0] == "t")
    graph.node[place].input[0] = "back"
    for k, (source, factor, target) in enumerate((("s", "up", "beyond"), ("beyond", "down", "back"))):
        graph.node.insert(place + k, helper.make_node("Mul", [source, factor], [target], name=f"big/Mul_{k}"))
    path = calibration_bundles.write_bundle(tmp_path / "b", models, calibration_bundles.small_contract(), islands={"encoder": ("big",)} if island else None)
    plan = calibrated(path).plan
    named = {fact["tensor"] for fact in plan.overflows}
    region = next(r for r in plan.regions if r.path == "big")
    assert ("beyond" in named) is not island
    assert region.reason == "the network declares it FP32" if island else "FP16 cannot hold it" in region.reason
    wide = {r.path for r in plan.regions if r.choice.precision in ("fp32", "bf16")}
    assert wide == {"big"}
