"""The networks of the catalog, small: calibrated, typed by their plan, compiled for TensorRT-RTX and run in ONNX Runtime.

And FastDepth, which really learned: its INT8 plan on real pairs it was not calibrated on.
"""

import shutil

import numpy as np
import pytest

from fathom.calibration.calibrate import Settings, add_to_bundle, calibrate
from fathom.calibration.observation.images import Chosen
from fathom.calibration.search.objective import Budget
from fathom.datasets.depth_metrics import depth_errors
from fathom.datasets.pairs import Pairs
from fathom.export.plan.build import build_plan
from fathom.export.plan.build_options import BuildOptions
from fathom.export.precision.calibrated import require_calibration
from fathom.runtime.artefact.bundle import BundleDirectory
from fathom.runtime.pipeline import Pipeline

NETWORKS = ["llm-mde-tiny", "depthblip2-tiny", "evp-tiny", "evp-refer-tiny", "vpd-tiny", "depthclip-tiny", "moa-depthclip-tiny"]


def test_an_exported_torch_network_calibrates_and_compiles(small_bundle, tmp_path):
    """The quick one of its kind: attention, group norm, transposed convolution and bins, 6 thousand weights."""
    pytest.importorskip("tensorrt_rtx")
    path = shutil.copytree(small_bundle, tmp_path / "bundle")
    bundle = BundleDirectory.open(path)
    result = calibrate(bundle, Chosen("rooms:4:0:64x96"), Settings(Budget(0.05, 0.05, 0.05)), tmp_path / "journal")
    kinds = {region.path: region.kind for region in result.plan.regions}
    assert kinds["attn"] == "self-attention"
    add_to_bundle(bundle, result)
    for precision in ("fp16", "int8"):
        report = build_plan(path, tmp_path / f"{precision}.plan", BuildOptions("tensorrt-rtx", precision, ("sm86",)))
        for stage, facts in zip(report.manifest.stages, report.stages, strict=True):
            assert bool(facts.layers.get("int8")) == (stage.precision == "int8")


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_calibrates_compiles_and_runs(name, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    if "clip" in name and "blip" not in name:
        pytest.importorskip("open_clip")
    from fathom.export.bundle.bundle import write_bundle
    from fathom.models.catalog import load

    options = {"scene": "office"} if name == "vpd-tiny" else {}
    write_bundle(load(name, **options), tmp_path / "bundle")
    bundle = BundleDirectory.open(tmp_path / "bundle")
    text = bundle.manifest.contract.text
    prompt = "the wall" if text and text.kind == "prompt" else None
    data = Chosen("rooms:4:0:240x320")
    result = calibrate(bundle, data, Settings(Budget(0.01, 0.01), prompts=(prompt,) if prompt else (), regions=4), tmp_path / "journal")
    assert next(v for v in result.plan.variants if v.chosen).within
    add_to_bundle(bundle, result)
    plan = require_calibration(BundleDirectory.open(tmp_path / "bundle")).plan
    for precision in ("fp16", "int8"):
        report = build_plan(tmp_path / "bundle", tmp_path / f"{precision}.plan", BuildOptions("tensorrt-rtx", precision, ("sm86",)))
        assert len(report.stages) == len(bundle.manifest.stages)
    for stage, facts in zip(report.manifest.stages, report.stages, strict=True):
        assert stage.precision == plan.precision(stage.spec.name)
        assert bool(facts.layers.get("int8")) == (stage.precision == "int8")
    maps = {}
    for precision in ("fp32", "int8"):
        build_plan(tmp_path / "bundle", tmp_path / f"ort_{precision}.plan", BuildOptions("onnxruntime", precision))
        with Pipeline.open(tmp_path / f"ort_{precision}.plan") as pipeline:
            maps[precision] = pipeline.predict(data[0].rgb, prompt=prompt).values
    if bundle.manifest.contract.output.kind == "mask":
        assert np.mean(maps["int8"] != maps["fp32"]) < 0.05
    else:
        assert np.mean(np.abs(maps["int8"] - maps["fp32"]) / np.maximum(np.abs(maps["fp32"]), 1e-6)) < 0.05


@pytest.mark.slow
def test_fastdepth_keeps_its_depth_in_int8(calibration_bundles, tmp_path):
    """abs_rel and delta1 on the pairs marked test within 1 % of FP32; calibrated on those marked train."""
    if not calibration_bundles.have_fastdepth():
        pytest.skip("FastDepth and the pairs are not here")
    path = calibration_bundles.write_fastdepth(tmp_path / "bundle")
    bundle = BundleDirectory.open(path)
    result = calibrate(bundle, Chosen(f"pairs:{calibration_bundles.PAIRS}:train"), Settings(Budget(0.01, 0.005)), tmp_path / "journal")
    assert sum(region.choice.precision == "int8" for region in result.plan.regions) >= len(result.plan.regions) // 2
    add_to_bundle(bundle, result)
    found = {}
    for precision in ("fp32", "int8"):
        build_plan(path, tmp_path / f"{precision}.plan", BuildOptions("onnxruntime", precision))
        rows = []
        with Pipeline.open(tmp_path / f"{precision}.plan") as pipeline:
            for sample in Pairs(calibration_bundles.PAIRS, "test"):
                depth = pipeline.predict(sample.rgb)
                counts = depth.valid & sample.valid
                errors = depth_errors(depth.values[counts], sample.depth_m[counts])
                rows.append((errors["abs_rel"], errors["delta1"]))
        found[precision] = np.mean(rows, axis=0)
    assert np.abs(found["int8"] / found["fp32"] - 1).max() < 0.01
