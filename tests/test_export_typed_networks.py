"""FP16 and INT8 stages of every small network: typed, run in ONNX Runtime, and compiled for TensorRT-RTX, which needs no GPU for it; and all of
them as TensorRT 8.5 reads them.

The weights are random, INT8 is wherever it can be, and its ranges come from two rooms: what is checked here is that every graph can be
typed and compiled and holds what it should. What precision costs is measured with the trained weights (``benchmarks/studies/tiny_networks.py``).
"""

import shutil

import numpy as np
import onnx
import onnxruntime
import pytest

from fathom.calibration.artefact import model_fingerprint
from fathom.calibration.calibrate import Calibrated, add_to_bundle, make_table
from fathom.calibration.graph.chain import Chain
from fathom.calibration.observation.images import Chosen
from fathom.calibration.observation.journal import Journal
from fathom.calibration.observation.observe import observe, prepare_photos, silent
from fathom.calibration.observation.split import split
from fathom.calibration.precision.precision_plan import Choice, PrecisionPlan, RegionPlan
from fathom.calibration.precision.quantised_stage import ranges_for
from fathom.calibration.precision.regions import find_regions
from fathom.calibration.precision.rounding import stays_fp32
from fathom.calibration.quantisation.quantize import activation_inputs
from fathom.calibration.search.objective import Budget
from fathom.export.lowering.lowering import lower_stage
from fathom.export.lowering.operator_checks import RELEASES
from fathom.export.onnxruntime.rewrites import GATE_PASSES, rewrite
from fathom.export.plan.build import build_plan
from fathom.export.plan.build_options import BuildOptions
from fathom.export.precision.calibrated import read_calibration, type_all_by_plan
from fathom.runtime.artefact.bundle import BundleDirectory
from fathom.runtime.artefact.plan import PlanFile
from fathom.runtime.tensorrt.compatibility import RTX_MAGIC

TINY = ("evp-tiny", "evp-refer-tiny", "vpd-tiny", "depthclip-tiny", "moa-depthclip-tiny", "depthblip2-tiny", "llm-mde-tiny")
MOST = [pytest.param(name, marks=pytest.mark.slow) if name == "evp-refer-tiny" else name for name in TINY]  # its stages are EVP's but for two
INT8 = Choice("int8", "max")


def all_int8(path, folder):
    """Calibrate with INT8 wherever a stage can have it, whatever that does to the depth: no search, ranges of three pictures."""
    opened = BundleDirectory.open(path)
    asked = opened.manifest.contract.output.kind == "mask"
    chain, data = Chain(opened, prompts=("the chair",) if asked else ()), Chosen("rooms:3:0:48x64")
    journal = Journal(folder, {"a": "test"})
    photos = prepare_photos(chain, data, journal, silent)
    seen, _ = observe(chain, photos, data, journal)
    model, regions = model_fingerprint(opened.manifest), []
    table = make_table(model, chain, split(photos, set(), "rooms"), data.provenance(), seen)
    for stage, graph in chain.graphs.items():
        able, choices = set(activation_inputs(graph)) - set(stays_fp32(graph, chain.islands[stage])), {}
        for region in find_regions(stage, graph, 1):
            choices[region.nodes] = Choice("fp16") if able.isdisjoint(region.nodes) else INT8
            regions.append(RegionPlan(stage, region.path, region.kind, region.nodes, choices[region.nodes], "a test", {}))
        table = table.with_ranges(stage, ranges_for(graph, choices, seen[stage]))
    budget, cost = Budget().to_json(), {"kind": "modelled", "device": "none"}
    plan = PrecisionPlan(model, budget, "fp32 output", cost, tuple(regions), (), dict.fromkeys(chain.graphs, "a test"), (), ())
    add_to_bundle(opened, Calibrated(table, plan, 0))
    return plan


def build(bundle, folder, precision):
    """A plan for one card; its report says how the typed graphs did in ONNX Runtime."""
    pytest.importorskip("tensorrt_rtx")
    report = build_plan(bundle, folder / f"{precision}.plan", BuildOptions("tensorrt-rtx", precision, ("sm86",)))
    assert report.parity.label == "graph-only" and not report.parity.failures
    assert report.parity.runner.startswith("ONNX Runtime") and report.parity.output_error < (0.02 if precision == "fp16" else 0.2)
    with PlanFile.open(folder / f"{precision}.plan") as plan:
        for stage in plan.manifest.stages:
            with plan.view(stage.engine) as engine:
                assert engine[: len(RTX_MAGIC)] == RTX_MAGIC
    return report


@pytest.mark.parametrize("name", MOST)
def test_fp16_stages_run_and_compile(tiny_bundle, tmp_path, name):
    report = build(tiny_bundle(name), tmp_path, "fp16")
    with_layers = [stage for stage in report.stages if stage.layers]
    assert with_layers and sum(stage.layers.get("half", 0) for stage in with_layers) > 0
    assert not any("int8" in stage.layers for stage in with_layers)
    found, of = map(sum, zip(*(stage.stored["float16"] for stage in with_layers if "float16" in stage.stored), strict=True))
    assert found > 0.9 * of  # some are merged with their neighbours


@pytest.mark.parametrize("name", MOST)
def test_int8_stages_run_and_compile(tiny_bundle, tmp_path, name):
    bundle = shutil.copytree(tiny_bundle(name), tmp_path / "bundle")
    plan = all_int8(bundle, tmp_path / "journal")
    report = build(bundle, tmp_path, "int8")
    for stage, facts in zip(report.manifest.stages, report.stages, strict=True):
        assert stage.precision == plan.precision(stage.spec.name) and bool(facts.layers.get("int8")) == (stage.precision == "int8"), facts.name
    assert any(stage.precision == "int8" for stage in report.manifest.stages)
    stored = [facts.stored["int8"] for facts in report.stages if "int8" in facts.stored]
    assert stored and all(found == of > 0 for found, of in stored)
    with BundleDirectory.open(bundle) as opened:  # and TensorRT 8 has a form for every one of them
        (tmp_path / "plain").mkdir()
        type_all_by_plan(opened, read_calibration(opened), tmp_path / "plain", "int8", True, lambda what, done: None)
        for stage in opened.manifest.stages:
            folder = tmp_path / "lowered" / stage.spec.name
            folder.mkdir(parents=True)
            made = lower_stage(tmp_path / "plain" / f"{stage.spec.name}.typed.onnx", folder, stage.spec, "8.5")
            graph = onnx.load(made.graph, load_external_data=False).graph
            pairs = [len(node.input) for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
            assert bool(pairs) == (plan.precision(stage.spec.name) == "int8") and set(pairs) <= {3}
            assert all(tensor.data_type != onnx.TensorProto.INT8 or len(tensor.dims) < 2 for tensor in graph.initializer)


def outputs_of(graph, feed, passes=()):
    """What ONNX Runtime makes of a graph whose weights lie beside it."""
    model, options = onnx.load(str(graph), load_external_data=False), onnxruntime.SessionOptions()
    rewrite(model, passes)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(graph.parent))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(
        None, {value.name: feed[value.name].astype(np.int32 if "int32" in value.type else feed[value.name].dtype) for value in session.get_inputs()}
    )


@pytest.mark.parametrize("name", TINY)
def test_every_stage_can_be_lowered_for_tensorrt_8_and_computes_the_same(tiny_bundle, tmp_path, name):
    """Within 1e-5 of the graph it comes from, and with nothing that either release's parser does not list."""
    rng = np.random.default_rng(0)
    with BundleDirectory.open(tiny_bundle(name)) as bundle:
        for stage in bundle.manifest.stages:
            graphs = []
            for release in RELEASES:
                folder = tmp_path / stage.spec.name / release
                folder.mkdir(parents=True)
                graphs.append(lower_stage(bundle.path(stage.file), folder, stage.spec, release).graph)
            assert graphs[0].read_bytes() == graphs[1].read_bytes()  # one form for both: what was tried on one holds for the other
            shapes = {tensor.name: [2 if isinstance(size, str) else size for size in tensor.shape] for tensor in stage.spec.inputs}
            feed = {
                t.name: (rng.integers(0, 40, shapes[t.name]) if "int" in t.dtype else rng.normal(size=shapes[t.name])).astype(t.dtype)
                for t in stage.spec.inputs
            }
            wanted = outputs_of(bundle.path(stage.file), feed, GATE_PASSES)
            for got, value in zip(outputs_of(graphs[0], feed), wanted, strict=True):
                assert np.abs(got - value).max() <= 1e-5 * np.abs(value).max(), stage.spec.name
