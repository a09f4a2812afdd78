"""What mixtures of precisions cost: by their own regions, by the card, and in the order in which a stand-in GPU runs them."""

import dataclasses
import itertools

import fake_cuda
import fake_tensorrt
import numpy as np
import pytest
from kernel_clock import NBYTES_PER_MS, RATE, graph_ms
from onnx import TensorProto, helper, numpy_helper

from fathom.calibration.calibrate import Settings, calibrate
from fathom.calibration.calibrate_command import main
from fathom.calibration.graph.chain import Chain
from fathom.calibration.graph.stage_graph import StageGraph
from fathom.calibration.observation.images import Chosen
from fathom.calibration.precision.precision_plan import Choice
from fathom.calibration.precision.regions import find_regions
from fathom.calibration.report import model_error_lines
from fathom.calibration.search.attention import find_attention
from fathom.calibration.search.cards import CARDS, Card
from fathom.calibration.search.cost import CostModel
from fathom.calibration.search.objective import Budget
from fathom.calibration.search.stage_costs import StageCosts
from fathom.calibration.search.stage_times import StageTimes
from fathom.export.plan import mixture_clock
from fathom.export.plan.build_options import BuildOptions
from fathom.export.plan.plan_file import file_facts, write_plan
from fathom.export.precision.calibrated import type_all_by_plan
from fathom.runtime.artefact.bundle import BundleDirectory
from fathom.runtime.artefact.contract import Contract, ImageInput, OutputContract, Protocol, Resize
from fathom.runtime.artefact.manifest import PlanManifest, PlanStage
from fathom.runtime.errors import BuildFailedError

STAND_IN = Card("stand-in", {"fp32": RATE[TensorProto.FLOAT], "fp16": RATE[TensorProto.FLOAT16], "int8": RATE["int8"]}, NBYTES_PER_MS)
FP16, INT8 = Choice("fp16"), Choice("int8", "max")
WIDTHS = (24, 32, 48, 64, 96, 128)
pytestmark = pytest.mark.usefixtures("rooms_once")


def tower(pixels):
    """Six convolutions of unequal work on a square picture, each a region of its own, to a map."""
    rng, nodes, weights, last, before = np.random.default_rng(0), [], [], "image", 3
    for number, width in enumerate(WIDTHS):
        weights.append(numpy_helper.from_array(rng.normal(size=(width, before, 3, 3)).astype(np.float32) / (3 * before**0.5), f"w{number}"))
        nodes.append(helper.make_node("Conv", [last, f"w{number}"], [f"c{number}"], name=f"blocks.{number}.conv/Conv_0", pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{number}"], [f"r{number}"], name=f"blocks.{number}.act/Relu_0"))
        last, before = f"r{number}", width
    weights.append(numpy_helper.from_array(rng.normal(size=(1, before, 1, 1)).astype(np.float32), "w_out"))
    nodes.append(helper.make_node("Conv", [last, "w_out"], ["o"], name="out_conv/Conv_0"))
    nodes.append(helper.make_node("Sigmoid", ["o"], ["depth"], name="out_conv/Sigmoid_0"))
    image, depth = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, c, pixels, pixels]) for n, c in (("image", 3), ("depth", 1)))
    return helper.make_model(helper.make_graph(nodes, "tower", [image], [depth], weights), opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def write_tower(calibration_bundles, folder, pixels):
    """The tower as a bundle."""
    protocol = Protocol("single-image", (Resize(pixels, pixels, "bilinear"),), (0,), (), False, "a test")
    output = OutputContract("depth", "metric", "m", 0.1, 10.0, "far", "bilinear")
    contract = Contract(ImageInput("image", (pixels, pixels), (pixels, pixels), (0.5,) * 3, (0.5,) * 3), output, (protocol,))
    return calibration_bundles.write_bundle(folder / "bundle", [tower(pixels)], contract)


@pytest.fixture(scope="module")
def tower_bundle(calibration_bundles, tmp_path_factory):
    return write_tower(calibration_bundles, tmp_path_factory.mktemp("tower"), 64)


@pytest.fixture(scope="module")
def large_tower(calibration_bundles, tmp_path_factory):
    """Large enough that launches are little of its time; nobody runs it."""
    return write_tower(calibration_bundles, tmp_path_factory.mktemp("large"), 2048)


def costs_of(path, card=CARDS["rtx3090"], times=None):
    """Costs of the tower and its regions."""
    chain = Chain(BundleDirectory.open(path))
    costs = StageCosts(chain, card, StageTimes("a card", {"tower": times}, "0" * 64) if times else None)
    regions = find_regions("tower", chain.graphs["tower"])
    costs.learn({region: tuple(name for name in region.nodes if "Conv" in name) for region in regions})
    return costs, regions


def some_mixtures(regions, count=10, seed=3):
    """Different mixtures of FP16 and INT8, drawn with a seed; the last region stays FP16."""
    drawn = list(itertools.product([FP16, INT8], repeat=len(regions) - 1))
    picked = np.random.default_rng(seed).choice(len(drawn), count, replace=False)
    return [dict(zip(regions, (*drawn[number], FP16), strict=True)) for number in picked]


@pytest.fixture
def clock(monkeypatch, large_tower, tmp_path):
    """The project's own clock for mixtures on a stand-in GPU that takes as long as its kernels need."""
    machine = fake_cuda.Machine()
    fake_cuda.install(monkeypatch, machine)
    fake_tensorrt.install(monkeypatch, machine)
    monkeypatch.setenv("FATHOM_CACHE_DIR", str(tmp_path / "cache"))

    def execute(context):
        machine.clock += graph_ms(context.engine.graph)

    machine.execute = execute

    def build(bundle, options, calibration, scratch, tell):
        import onnx

        (stage,) = type_all_by_plan(bundle, calibration, scratch, "int8", False, tell).values()
        spec, manifest = stage.typed.spec, bundle.manifest
        engine = fake_tensorrt.engine_bytes(spec, onnx.load(stage.graph).SerializeToString(), "10.13.3.9")
        sources = {"engines/tower.plan": engine}
        engines = (PlanStage(spec, "engines/tower.plan", "int8"),)
        facts = {name: file_facts(source) for name, source in sources.items()}
        plan = PlanManifest(
            manifest.network, manifest.contract, engines, facts, {"fathom": "0"}, "tensorrt", "10.13.3.9", ("sm86",), "int8", (1, 1, 1), "0" * 64
        )
        write_plan(scratch / "timed.plan", plan, sources)

    monkeypatch.setattr(mixture_clock, "build_timed", build)
    found = mixture_clock.clock_if_possible(large_tower, tmp_path / "mixture", BuildOptions("tensorrt", "int8"), print)
    found.tick = lambda regions: found({"tower": {region.nodes: choice for region, choice in regions.items()}})["tower"]
    yield found
    assert machine.leaks() == {}


def test_mixtures_are_timed_on_the_card_that_was_named_or_on_none(clock, tmp_path):
    said = []  # the fixture's machine has one card
    assert mixture_clock.clock_if_possible(tmp_path, tmp_path, BuildOptions("tensorrt", "int8", device=1), said.append) is None
    assert "no mixture can be timed here" in said[0]


def test_ten_mixtures_are_predicted_in_the_order_of_the_stand_ins_clock(clock, large_tower):
    costs, regions = costs_of(large_tower, STAND_IN)
    mixtures = some_mixtures(regions)
    predicted = [costs.stage_ms("tower", mixture) for mixture in mixtures]
    measured = [clock.tick(mixture) for mixture in mixtures]

    assert len({round(ms, 6) for ms in measured}) == 10
    assert np.argsort(predicted).tolist() == np.argsort(measured).tolist()


def test_a_mixture_costs_what_its_own_regions_do(tower_bundle):
    """Of 12 ms in FP16 and 7 ms in INT8 one region in INT8 does not save all five."""
    costs, regions = costs_of(tower_bundle, times={"fp16": 12.0, "int8": 7.0})
    whole = dict.fromkeys(regions, FP16)
    assert costs.stage_ms("tower", whole) == pytest.approx(12.0) and costs.stage_ms("tower", dict.fromkeys(regions, INT8)) == pytest.approx(7.0)
    sizes = [12.0 - costs.stage_ms("tower", whole | {region: INT8}) for region in regions[1:6]]
    assert all(saved < 4 for saved in sizes) and sizes[-1] > sizes[0]
    grown = [costs.stage_ms("tower", whole | dict.fromkeys(regions[-k:], INT8)) for k in range(1, len(regions) + 1)]
    assert all(later < earlier for earlier, later in itertools.pairwise(grown[1:])) and grown[-1] == pytest.approx(7.0)


def test_padding_in_front_of_centred_activations_is_paid_for_whichever_was_asked_first(tower_bundle):
    costs, regions = costs_of(tower_bundle)
    plain = dict.fromkeys(regions, INT8)
    centred = dict.fromkeys(regions, dataclasses.replace(INT8, centred=True))
    assert costs.stage_ms("tower", plain) < costs.stage_ms("tower", centred)


def test_the_error_of_the_model_is_told_against_every_time_at_hand(tower_bundle):
    costs, regions = costs_of(tower_bundle)
    modelled = {p: costs.stage_ms("tower", dict.fromkeys(regions, c)) for p, c in (("fp16", FP16), ("int8", INT8))}
    costs, _ = costs_of(tower_bundle, times={"fp16": 2 * modelled["fp16"], "int8": modelled["int8"]})
    facts = costs.facts()
    assert facts["kind"] == "measured"
    plan = dataclasses.make_dataclass("P", ["cost"])(facts)
    lines = model_error_lines(plan)
    assert "tower fp16" in lines[1] and "(-50%)" in lines[1] and "(+0%)" in lines[2] and "GeForce RTX 3090" in lines[0]
    assert lines[-1].startswith("  median error 25%")


def attention_graph(looked_at=False):
    def value(name, *shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    nodes = [
        helper.make_node("MatMul", ["q", "k"], ["s"], name="attn/MatMul_0"),
        helper.make_node("Mul", ["s", "scale"], ["ss"], name="attn/Mul_0"),
        helper.make_node("Softmax", ["ss"], ["p"], name="attn/Softmax_0"),
        helper.make_node("MatMul", ["p", "v"], ["y"], name="attn/MatMul_1"),
    ]
    outputs = [value("y", 8, 4096, 64)] + ([value("p", 8, 4096, 4096)] if looked_at else [])
    graph = helper.make_graph(
        nodes, "g", [value("q", 8, 4096, 64), value("k", 8, 64, 4096), value("v", 8, 4096, 64)], outputs, [numpy_helper.from_array(np.float32(0.125), "scale")]
    )
    return StageGraph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), None)


def test_attention_keeps_its_scores_on_the_chip_unless_somebody_looks_at_them():
    alone, looked_at = CostModel(attention_graph()), CostModel(attention_graph(looked_at=True))
    (found,) = find_attention(attention_graph())
    assert found.scores == {"s", "ss", "p"} and not find_attention(attention_graph(looked_at=True))
    regions = find_regions("g", attention_graph())
    half, full = (dict.fromkeys(regions, Choice(p)) for p in ("fp16", "fp32"))
    rate = CARDS["rtx3090"].macs_per_ms["fp16"]
    by_hand = 2 * 8 * 4096 * 4096 * 64 / rate  # two products of 8 heads; q, k, v and y are 16 MB and fit in that time
    assert alone.total_ms(half, set()) == pytest.approx(by_hand, rel=0.01)
    assert looked_at.total_ms(half, set()) > 2 * by_hand  # 268 MB of scores go out and come in again
    assert alone.total_ms(full, set()) > looked_at.total_ms(half, set())  # in FP32 there is no such kernel


def test_one_quantising_pass_serves_all_readers():
    def total(readers):
        weight = numpy_helper.from_array(np.zeros((64, 64), np.float32), "w")
        nodes = [helper.make_node("MatMul", ["x", "w"], [f"y{k}"], name=f"a.{k}/MatMul_0") for k in range(readers)]
        values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4096, 64]) for n in ["x", *(f"y{k}" for k in range(readers))]]
        model = helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:], [weight]), opset_imports=[helper.make_opsetid("", 18)])
        cost = CostModel(StageGraph(model, None))
        precisions = {node.name: "int8" for node in nodes}
        return cost._edges_ms("int8", precisions) * cost.card.nbytes_per_ms

    assert total(1) == total(3) == 3 * 4096 * 64


def test_cards_differ_as_their_papers_say(tower_bundle):
    def gain(card):
        costs, regions = costs_of(tower_bundle, CARDS[card])
        return costs.stage_ms("tower", dict.fromkeys(regions, FP16)) / costs.stage_ms("tower", dict.fromkeys(regions, INT8))

    assert {"orin-nano", "orin-agx", "rtx3060", "rtx4090", "rtx5090", "l4", "h100"} <= set(CARDS)
    for name, card in CARDS.items():
        rates = card.macs_per_ms
        assert rates["fp32"] < rates["fp16"] < rates["int8"] and ("fp8" in rates) == (name in ("rtx4090", "rtx5090", "l4", "h100"))
    assert CARDS["rtx4090"].macs_per_ms["fp16"] == pytest.approx(82.6e9) and CARDS["orin-agx"].nbytes_per_ms == 204.8e6
    assert all(gain(card) > 1 for card in CARDS)


def test_an_unknown_card_is_refused_with_those_that_are_known(tower_bundle, capsys):
    assert main([str(tower_bundle), "--data", "rooms:4:0:48x64", "--for", "moon", "-q"]) == 2
    assert "orin-nano" in capsys.readouterr().err


def test_of_the_mixtures_that_were_built_and_timed_the_fastest_is_kept(tower_bundle, tmp_path):
    """A card on which INT8 is slower than the model thinks: the mixture that runs faster wins, and its time is in the plan."""
    asked = []

    def card(plan):
        count = sum(choice.precision == "int8" for choice in plan["tower"].values())
        asked.append(count)
        if count == len(WIDTHS) + 1:
            raise BuildFailedError("a compiler without a kernel")
        return {"tower": 3.0 if any(c.precision == "fp32" for c in plan["tower"].values()) else 1.0 + 0.1 * count}

    loose = Budget(1.0, 1.0, 1.0)
    settings = Settings(loose, precisions=("fp32", "fp16", "int8"), clock=card)
    plan = calibrate(BundleDirectory.open(tower_bundle), Chosen("rooms:6:1:48x64"), settings, tmp_path / "j").plan
    assert len(asked) >= 2 and max(asked) > 0
    assert {r.choice.precision for r in plan.regions} == {"fp16"}
    chosen = next(v for v in plan.variants if v.chosen)
    assert chosen.timed and chosen.cost_ms == pytest.approx(1.0) and plan.verdicts["tower"].endswith(" fp16 regions. Built and timed: 1 ms.")
    assert any("slower on the card" in region.reason for region in plan.regions)
    assert "fastest of the mixtures" in plan.verdicts["(network)"]
    without = calibrate(BundleDirectory.open(tower_bundle), Chosen("rooms:6:1:48x64"), dataclasses.replace(settings, clock=None), tmp_path / "k").plan
    assert "int8" in {r.choice.precision for r in without.regions} and not any(v.timed for v in without.variants)
