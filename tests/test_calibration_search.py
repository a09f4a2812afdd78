"""The whole calibration on small networks with planted faults: what is wrong is found, named, and kept out of harm's way."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from onnx import numpy_helper

from fathom.calibration.calibrate import PLAN, TABLE, Settings, calibrate
from fathom.calibration.calibrate_command import main
from fathom.calibration.graph.chain import Chain
from fathom.calibration.observation.flow import Flow
from fathom.calibration.observation.images import Chosen
from fathom.calibration.observation.journal import Journal
from fathom.calibration.observation.observe import observe, prepare_photos, resident_nbytes, silent
from fathom.calibration.precision.precision_plan import read_plan
from fathom.calibration.ranges.table import read_table
from fathom.calibration.search.evaluate import Evaluator
from fathom.calibration.search.objective import Budget
from fathom.calibration.search.stage_times import StageTimes
from fathom.runtime.artefact.bundle import BundleDirectory
from fathom.runtime.errors import AccuracyError, InputError, OutOfMemoryError, UsageError

DATA = "rooms:6:1:48x64"
LOOSE = Budget(0.05, 0.05, 0.05)


@pytest.fixture(scope="module")
def bundle(calibration_bundles, tmp_path_factory):
    def make(models=None, **faults):
        folder = tmp_path_factory.mktemp("calibration") / "bundle"
        return calibration_bundles.write_bundle(folder, models or calibration_bundles.token_models(**faults), calibration_bundles.small_contract())

    return make


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    def calibrated(path, **settings):
        journal = tmp_path_factory.mktemp("journal") / "j"
        return calibrate(BundleDirectory.open(path), Chosen(DATA), Settings(**{"budget": LOOSE, **settings}), journal)

    return calibrated


@pytest.fixture(scope="module")
def healthy(bundle, run):
    return run(bundle())


def test_photos_that_regions_are_screened_on_have_a_depth_and_a_scene_each(bundle, tmp_path):
    chain, data = Chain(BundleDirectory.open(bundle())), Chosen(DATA)
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


def test_an_overflowing_layer_norm_is_found_by_name_and_kept_fp32(bundle, run, healthy):
    result = run(bundle(norm_scale=1e5))
    (fact,) = [f for f in result.plan.overflows if f["region"] == "blocks.0.norm"]
    assert fact["tensor"] == "n" and fact["peak"] > 65504 and result.plan.overflows[0] == fact
    norm, reader = (next(r for r in result.plan.regions if r.path == path) for path in ("blocks.0.norm", "blocks.0.ff"))
    assert norm.choice.precision in ("fp32", "bf16") and "FP16 cannot hold it" in norm.reason
    assert reader.choice.precision in ("fp32", "bf16") and "reads n" in reader.reason
    assert "65504" in norm.evidence["fp16"]["failure"]
    wide = {(r.stage, r.path) for r in result.plan.regions if r.choice.precision in ("fp32", "bf16")}
    held = {(r.stage, r.path) for r in healthy.plan.regions if r.choice.precision in ("fp32", "bf16")}
    assert wide - held == {("encoder", "blocks.0.norm"), ("encoder", "blocks.0.ff")}  # nothing else is held back
    narrow = run(bundle(norm_scale=1e5), precisions=("fp32", "fp16", "int8"))
    assert next(r for r in narrow.plan.regions if r.path == "blocks.0.norm").choice.precision == "fp32"


def test_the_part_that_int8_ruins_is_named_and_mended_or_kept_higher(bundle, run, calibration_bundles):
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
    result = run(bundle(models), budget=Budget(0.01, 0.02))
    region = next(r for r in result.plan.regions if r.path == "out_conv")
    assert region.choice.precision != "int8" or region.choice.smooth > 0

    def moved(score):
        return np.inf if score["failure"] else score["disagreement"]

    alone = [(r, words, score) for r in result.plan.regions for words, score in r.evidence.items() if words.startswith("int8 layer-output")]
    first = {(r.stage, r.path): moved(score) for r, words, score in alone if "smooth" not in words}
    assert max(first, key=first.get) == ("head", "out_conv")
    mended = [moved(score) for r, words, score in alone if r == region and "smooth" in words]
    assert min(mended) < first["head", "out_conv"] / 3  # the giant weights' channel is scaled up, and with it goes what they left no steps for


def test_nan_in_a_stage_names_the_stage_and_the_tensor(bundle, run):
    with pytest.raises(AccuracyError, match=r"stage head: the output depth holds .* NaN or infinite"):
        run(bundle(poison=np.nan))


def test_int8_that_does_not_pay_is_dropped_in_one_sentence(bundle, run):
    times = {"encoder": {"fp32": 2.0, "fp16": 1.0, "int8": 2.0}, "head": {"fp32": 2.5, "fp16": 1.0, "int8": 2.0}}
    result = run(bundle(), measured=StageTimes("a test card", times, "0" * 64))
    assert all(r.choice.precision != "int8" for r in result.plan.regions)
    assert "INT8 is dropped because it saves nothing: " in result.plan.verdicts["head"] and "INT8 is dropped" in result.plan.verdicts["encoder"]
    assert result.plan.cost["kind"] == "measured" and result.plan.cost["device"] == "a test card"
    assert any("kept in int8" in v.name for v in result.plan.variants)  # the losing variant stays in the report
    costs = {v.name: v.cost_ms for v in result.plan.variants}
    assert (costs["all fp32"], costs["all fp16"]) == pytest.approx((4.5, 2.0))
    assert 2.0 <= costs["all bf16"] < 4.5  # as wide as FP16, but the transposed convolution stays FP32
    some = run(bundle(), measured=StageTimes("a test card", {"head": times["head"]}, "0" * 64)).plan
    assert some.cost["kind"] == "measured in head, else modelled" and "(modelled)" in some.verdicts["encoder"] and "(measured;" in some.verdicts["head"]


def test_the_verdict_comes_from_photos_that_chose_nothing(bundle, run, healthy, monkeypatch):
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
    plan = run(bundle()).plan
    assert "int8" not in {r.choice.precision for r in plan.regions} and "fp16" in {r.choice.precision for r in plan.regions}
    assert plan.proof["within"] and "moved 50.00 %" in plan.proof["rejected"][0] and "photos of the proof" in plan.verdicts["(network)"]
    assert all(seen <= named[1] or seen == named[2] for seen in shown)


def test_a_budget_that_nothing_keeps_leaves_fp32(bundle, run):
    result = run(bundle(), budget=Budget(1e-9, 1e-9), precisions=("fp32", "int8"))
    assert {r.choice.precision for r in result.plan.regions} == {"fp32"}
    assert "dropped because it breaks the budget" in result.plan.verdicts["encoder"]


def look(path, journal, memory=1 << 33, data=DATA, tick=lambda what, total: None):
    chain = Chain(BundleDirectory.open(path))
    state = Journal(journal, {"test": 1})
    chosen = Chosen(data)
    photos = prepare_photos(chain, chosen, state, tick)
    return observe(chain, photos, chosen, state, memory_nbytes=memory, on_progress=tick)[0]


def same(one, other):
    return one.peaks == other.peaks and all(
        (h.counts == other.histograms[n].counts).all() and h.amax == other.histograms[n].amax and h.exponent == other.histograms[n].exponent
        for n, h in one.histograms.items()
    )


def greatest_features(path, ids=None):
    """Of a plain run over some photos."""
    import onnxruntime

    chain, greatest = Chain(BundleDirectory.open(path)), 0.0
    session = onnxruntime.InferenceSession(str(path / "stages" / "encoder.onnx"))
    for sample in Chosen(DATA).source:
        if ids is None or sample.id in ids:
            greatest = max(greatest, float(np.abs(session.run(["features"], chain.inputs(sample.rgb)[1][0])[0]).max()))
    return greatest


def test_the_choice_once_made_its_ranges_hold_what_selected_too(bundle, run, healthy):
    """Few photos are a narrow view: those that selected widen the ranges that are proven and kept, those of the proof never do."""
    splits, path = healthy.table.data["splits"], bundle()
    read = {part: greatest_features(path, set(splits[part])) for part in ("observe", "select", "prove")}
    assert healthy.table.stages["head"]["features"].greatest == pytest.approx(max(read["observe"], read["select"]), rel=1e-5)
    assert healthy.table.peaks["encoder"]["features"] == pytest.approx(max(read["observe"], read["select"]), rel=1e-5)
    assert healthy.table.images == len(splits["observe"]) + len(splits["select"])


def test_photos_that_are_looked_at_apart_are_taken_up_again_and_widen_ranges(bundle, tmp_path):
    path = bundle()
    chain, data, state = Chain(BundleDirectory.open(path)), Chosen(DATA), Journal(tmp_path / "j", {"test": 1})
    photos = prepare_photos(chain, data, state, silent)
    apart = {photos[0].number, photos[3].number}

    def looked():
        return observe(chain, photos, data, state, hold=apart)

    seen, held = looked()
    again = looked()  # nothing is run: both come from the journal
    for stage in seen:
        both = seen[stage].with_ranges_of(held[stage])
        assert same(seen[stage], again[0][stage]) and same(held[stage], again[1][stage]) and held[stage].samples == {}
        for name, histogram in both.histograms.items():
            counts = [some.histograms[name].count for some in (seen[stage], held[stage])]
            assert histogram.count == sum(counts) and counts[0] == 2 * counts[1]
            assert histogram.amax == max(some.histograms[name].amax for some in (seen[stage], held[stage]))
        for name, values in both.channels.items():
            assert (values == np.maximum(seen[stage].channels[name], held[stage].channels[name])).all()
    assert max(seen["head"].histograms["features"].amax, held["head"].histograms["features"].amax) == pytest.approx(greatest_features(path), rel=1e-5)


def test_observed_peaks_are_those_of_a_plain_run(bundle, tmp_path):
    path = bundle()
    seen, greatest = look(path, tmp_path / "j"), greatest_features(path)
    assert seen["encoder"].peaks["features"] == pytest.approx(greatest, rel=1e-5)
    assert seen["head"].histograms["features"].amax == pytest.approx(greatest, rel=1e-5)
    assert seen["encoder"].histograms["n"].count == 6 * 96 * 16
    assert seen["encoder"].channels["n"].shape == (16,)


def test_little_memory_means_more_passes_and_the_same_ranges(bundle, tmp_path, monkeypatch):
    path = bundle()
    plenty = look(path, tmp_path / "a")
    passes = []
    monkeypatch.setattr("fathom.calibration.observation.observe.resident_nbytes", lambda: 0)
    from fathom.calibration.observation import observe as module

    graph = Chain(BundleDirectory.open(path)).graphs["encoder"]
    tight = graph.weights_nbytes() + 4 * 4 * 96 * 64 + 2 * 4 * 96 * 64  # the largest activation in flight, and one to look at
    passes = module._plan(graph, 1, tight, ())
    assert len(passes) > 1 and sorted(n for group in passes for n in group) == sorted(n for group in module._plan(graph, 1, 1 << 33, ()) for n in group)
    assert all(same(plenty[stage], seen) for stage, seen in look(path, tmp_path / "b", tight).items())
    with pytest.raises(OutOfMemoryError, match="larger --memory"):
        module._plan(graph, 1, 1000, ())
    assert resident_nbytes() > 0


LONG_STAGE = """
import resource, numpy as np, onnx
from onnx import TensorProto, helper
from pathlib import Path
from fathom.calibration.observation.observe import _watching
from fathom.calibration.graph.stage_graph import StageGraph

names = ["x", *(f"t{k}" for k in range(24))]
nodes = [helper.make_node("Sin", [one], [other]) for one, other in zip(names, names[1:])]
nodes.append(helper.make_node("ReduceMean", [names[-1]], ["y"], keepdims=0))
image, mean = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 1024, 1024]), helper.make_tensor_value_info("y", TensorProto.FLOAT, [])
model = helper.make_model(helper.make_graph(nodes, "long", [image], [mean]), opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
session, peaks = _watching(StageGraph(model, Path(".")), [], with_peaks=True)
x = np.full((4, 1024, 1024), 2, np.float32)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
values = session.run({"x": x})
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10, float(values[peaks["x"]]), float(values[peaks["t0"]]))
"""


def test_a_look_at_the_peaks_keeps_no_activation_waiting():
    done = subprocess.run([sys.executable, "-c", LONG_STAGE], capture_output=True, text=True, check=True)
    peak_mib, of_x, of_t0 = map(float, done.stdout.split())
    assert of_x == 2 and of_t0 == pytest.approx(np.sin(2), rel=1e-6)
    assert peak_mib < 8 * 16  # 24 activations of 16 MiB each


def test_an_interrupted_observation_goes_on_and_ends_the_same(bundle, tmp_path, monkeypatch):
    path = bundle()
    whole = look(path, tmp_path / "a")
    monkeypatch.setattr("fathom.calibration.observation.observe.SAVE_EVERY_S", -1)
    for stop in (3, 9, 15):
        count = 0

        def tick(what, total, stop=stop):
            nonlocal count
            count += 1
            if count == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            look(path, tmp_path / f"j{stop}", tick=tick)
        assert all(same(whole[stage], seen) for stage, seen in look(path, tmp_path / f"j{stop}").items())


def test_the_command_puts_table_and_plan_into_the_bundle(bundle, capsys):
    path = bundle()
    assert main([str(path), "--data", DATA, "--budget", "abs_rel=5%,delta1=5pp", "--json", "-q"]) == 0
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert {line["kind"] for line in lines} == {"calibration", "proof", "verdict", "region", "variant"} and "no photographs" in err
    opened = BundleDirectory.open(path)
    table, plan = read_table(opened.path(TABLE), opened.manifest), read_plan(opened.path(PLAN), opened.manifest)
    assert plan.budget == {"abs_rel": 0.05, "delta1": 0.05, "moved": 0.02} and table.data["seed"] == 1
    assert not list(path.parent.glob(".*.calibration"))
    assert main([str(path), "--data", DATA, "-q"]) == 3 and "calibrated already" in capsys.readouterr().err
    assert main([str(path), "--data", DATA, "--budget", "abs_rel=5%,delta1=5pp", "--force"]) == 0
    assert "INT8" in capsys.readouterr().out


def test_relative_maps_are_judged_against_the_truth_at_its_median(calibration_bundles, tmp_path, run):
    from fathom.runtime.pipeline import Pipeline

    contract = calibration_bundles.small_contract()
    relative = dataclasses.replace(contract, output=dataclasses.replace(contract.output, kind="relative", unit=""))
    path = calibration_bundles.write_bundle(tmp_path / "bundle", calibration_bundles.token_models(), relative)
    result = run(path)
    plan, wanted, selecting = result.plan, [], result.table.data["splits"]["select"]
    with Pipeline.open(path) as pipeline:
        for sample in (sample for sample in Chosen(DATA).source if sample.id in selecting):
            found, truth = pipeline.predict(sample.rgb).values[sample.valid].astype(np.float64), sample.depth_m[sample.valid].astype(np.float64)
            wanted.append(np.mean(np.abs(found * np.median(truth) / np.median(found) - truth) / truth))
    assert plan.truth == "ground truth, fitted by the median"
    assert next(v for v in plan.variants if v.name == "all fp32").score["abs_rel"] == pytest.approx(np.mean(wanted), rel=1e-5)


def test_several_data_sets_are_looked_at_together(bundle, capsys):
    path = bundle()
    words = ["--data", "rooms:3:1:48x64", "--data", "rooms:3:2:48x64", "--budget", "abs_rel=5%,delta1=5pp", "-q"]
    assert main([str(path), *words]) == 0
    opened = BundleDirectory.open(path)
    table = read_table(opened.path(TABLE), opened.manifest)
    assert table.data["count"] == 6 and "seed 1" in table.data["name"] and "seed 2" in table.data["name"] and table.images == 5


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--data", "noise:12"], 2, "names no data"),
        (["--data", "images:/nowhere/at/all"], 3, "nowhere"),
        (["--data", DATA, "--budget", "rmse=1"], 2, "abs_rel=NUMBER%"),
        (["--data", DATA, "--precisions", "fp32,fp8"], 2, "fp8"),
        (["--data", DATA, "--protocol", "moon"], 2, "no protocol"),
        (["--data", DATA, "--memory", "nan"], 2, "out of range"),
        (["--data", "rooms:2"], 3, "at least 3"),
    ],
)
def test_bad_arguments_end_with_one_message(bundle, capsys, arguments, code, words):
    assert main([str(bundle()), *arguments, "-q"]) == code
    err = capsys.readouterr().err
    assert words in err and "Traceback" not in err


def test_a_typed_bundle_and_an_unknown_protocol_are_refused(tiny, tmp_path):
    import shutil

    from fathom.runtime.artefact.manifest_json import manifest_bytes

    path = tmp_path / "b"
    shutil.copytree(tiny.bundle, path)
    manifest = BundleDirectory.open(path).manifest
    stages = tuple(dataclasses.replace(stage, precision="fp16") for stage in manifest.stages)
    (path / "bundle.json").write_bytes(manifest_bytes(dataclasses.replace(manifest, stages=stages)))
    with pytest.raises(InputError, match="fp16 already"):
        Chain(BundleDirectory.open(path))
    with pytest.raises(UsageError, match="no protocol"):
        Chain(BundleDirectory.open(tiny.bundle), "none")


def test_an_interrupted_search_measures_nothing_twice(bundle, tmp_path, monkeypatch):
    from fathom.calibration.search import evaluate
    from fathom.calibration.search.evaluate import Evaluator

    path, measured, smoothed, screened = bundle(), [], [], []
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
    assert not (tmp_path / "j").exists()


def test_int8_is_given_up_before_fp16(bundle, run, healthy):
    """A budget between what all of INT8 and what all of FP16 move: nothing has to be FP32 for it, and not all INT8 has to go."""
    moved = {v.name: v.score["disagreement"] for v in healthy.plan.variants}
    tight = 0.8 * moved["every region's fastest"]
    assert moved["all fp16"] < tight < moved["every region's fastest"]
    plan = run(bundle(), budget=Budget(1.0, 1.0, tight), precisions=("fp32", "fp16", "int8")).plan
    chosen, half = (next(v for v in plan.variants if v.name == name) for name in ("chosen", "all fp16"))
    assert chosen.within and chosen.score["disagreement"] <= tight and chosen.cost_ms < half.cost_ms
    assert {r.choice.precision for r in plan.regions} == {"fp16", "int8"}
    raised = [r for r in plan.regions if "keeps the budget alone but not together" in r.reason]
    assert raised and all(r.choice.precision == "fp16" and r.reason.startswith("int8") for r in raised)
    assert chosen.cost_ms == min(v.cost_ms for v in plan.variants if v.within)


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


def test_masks_are_judged_by_their_overlap_and_by_what_moves_before_a_pixel_does(masks, run):
    from fathom.calibration.search.evaluate import Evaluator

    seen = {}
    real = Evaluator._maps

    def watched(self, plan, stages):
        found = real(self, plan, stages)
        if self._purpose.startswith("screen"):
            seen[str(plan)] = found
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluator, "_maps", watched)
        plan = run(masks(), budget=Budget(1.0, 1.0, 1.0)).plan
    assert plan.truth == "fp32 mask"
    reference, others = next(iter(seen.values())), list(seen.values())[1:]
    assert all(0 < m.values.mean() < 1 for m in reference.values())
    overlaps, moves = set(), set()
    for found in others:
        pairs = [(found[n].values > 0, reference[n].values > 0) for n in reference]
        overlaps.add(round(float(np.mean([1 - (a & b).sum() / (a | b).sum() for a, b in pairs])), 9))
        moves.add(round(float(np.mean([np.abs(found[n].object_share - reference[n].object_share).mean() for n in reference])), 9))
    scores = [score for r in plan.regions for score in r.evidence.values()]
    assert scores and all(round(score["abs_rel"], 9) in overlaps for score in scores)
    assert all(min(abs(score["disagreement"] - move) for move in moves) < 1e-6 for score in scores)
    assert next(v for v in plan.variants if v.name == "all fp32").score["abs_rel"] == 0


@pytest.mark.parametrize("shift", [-9.0, 9.0])
def test_masks_that_are_empty_or_full_prove_nothing_and_are_refused(masks, run, shift):
    with pytest.raises(InputError, match="nowhere, or everywhere, in each of the 2 images"):
        run(masks(shift))


def test_words_are_wanted_only_where_a_network_is_asked_in_words(bundle, capsys):
    assert main([str(bundle()), "--data", DATA, "--prompt", "the chair", "-q"]) == 2
    assert "not asked in words" in capsys.readouterr().err


def test_photos_are_dealt_all_prompts_in_every_split(bundle):
    chain = Chain(BundleDirectory.open(bundle()))
    assert chain.prompt_of(3) is None
    chain.prompts = ("a", "b", "c")
    for step in (1, 2, 3, 4, 6):
        dealt = [chain.prompt_of(number) for number in range(step - 1, 16 * step, step)]
        assert set(dealt) == {"a", "b", "c"} and max(map(dealt.count, "abc")) <= 10


@pytest.mark.parametrize("island", [True, False])
def test_what_overflows_inside_an_fp32_island_is_no_overflow(calibration_bundles, tmp_path, run, island):
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
    plan = run(path).plan
    named = {fact["tensor"] for fact in plan.overflows}
    region = next(r for r in plan.regions if r.path == "big")
    assert ("beyond" in named) is not island
    assert region.reason == "the network declares it FP32" if island else "FP16 cannot hold it" in region.reason
    wide = {r.path for r in plan.regions if r.choice.precision in ("fp32", "bf16")}
    assert wide == {"big"}


def test_pictures_that_cannot_be_read_are_left_out_and_named(bundle, tmp_path, capsys):
    from PIL import Image

    folder, path = tmp_path / "photos", bundle()
    folder.mkdir()
    (folder / "a_torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    words = [str(path), "--data", f"images:{folder}", "--budget", "abs_rel=5%,delta1=5pp", "-q"]
    assert main(words) == 3
    assert "none of the 1 images can be used; the first: " in (err := capsys.readouterr().err) and "a_torn.png" in err
    for number, sample in enumerate(Chosen(DATA).source):
        Image.fromarray(sample.rgb).save(folder / f"room_{number}.png")
    (folder / "room_9.png").write_bytes(b"")
    assert main(words) == 0
    assert "2 images are left out: " in (err := capsys.readouterr().err) and "a_torn.png" in err and "room_9.png" in err
    opened = BundleDirectory.open(path)
    table = read_table(opened.path(TABLE), opened.manifest)
    assert table.images == 5 and any("a_torn.png" in warning for warning in table.warnings)
