"""EVP-tiny all the way: checkpoint-shaped network, bundle, plans for every backend that compiles here, depth of a photo."""

import json

import numpy as np
import onnx
import pytest
import torch

from fathom.export.commands import export_command
from fathom.export.plan.build import BuildOptions, build_plan
from fathom.models.catalog import load
from fathom.runtime.artefact.bundle import BundleDirectory
from fathom.runtime.pipeline import Pipeline

STAGES = ["vae", "unet", "refine", "decoder", "bins"]


@pytest.fixture(scope="module")
def bundle(tiny_bundle):
    return tiny_bundle("evp-tiny")


def test_every_stage_passed_the_gate_with_margin(bundle):
    manifest = BundleDirectory.open(bundle).manifest
    assert [stage.spec.name for stage in manifest.stages] == STAGES and manifest.network.untrained
    assert manifest.parity["passed"] and manifest.parity["depth"]["abs_rel"] < 1e-4
    assert {row["stage"] for row in manifest.parity["rows"]} == set(STAGES)


def test_self_attention_is_one_pattern_and_only_the_collected_ones_are_explicit(bundle):
    from fathom.export.onnxruntime.rewrites import rewrite

    fused = {}
    for name in ("vae", "unet"):
        fused[name] = rewrite(onnx.load(str(bundle / f"stages/{name}.onnx"), load_external_data=False))["fuse_attention"]
    assert fused == {"vae": 1, "unet": 16}  # one in the VAE's middle; sixteen transformer blocks, each with one self-attention


def test_the_plan_gives_pytorchs_depth_of_a_photo(bundle, tmp_path):
    build_plan(bundle, tmp_path / "x.plan", BuildOptions())
    rng = np.random.default_rng(0)
    photo = np.kron(rng.integers(0, 256, (8, 10, 3)), np.ones((30, 32, 1))).astype(np.uint8)  # 240 x 320, in blocks
    network = load("evp-tiny", random_init=True)
    with Pipeline.open(tmp_path / "x.plan") as pipeline:
        got = pipeline.predict(photo).depth_m
        reference = _with_torch(pipeline, network, photo)
    assert np.mean(np.abs(got - reference) / reference) < 1e-3


def _with_torch(pipeline, network, photo):
    """The same pipeline, with the unfolded PyTorch network in the backend's place."""

    class Torch:
        stages = pipeline._backend.stages

        def run(self, inputs, keep):
            with torch.no_grad():
                tensors = network.boundaries({name: torch.from_numpy(values) for name, values in inputs.items()})
            return {name: tensors[name].numpy() for name in keep}

    real, pipeline._backend = pipeline._backend, Torch()
    try:
        return pipeline.predict(photo).depth_m
    finally:
        pipeline._backend = real


@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.slow), "fp16"])
def test_tensorrt_rtx_compiles_every_stage(bundle, tmp_path, precision):
    pytest.importorskip("tensorrt_rtx")
    report = build_plan(bundle, tmp_path / "x.plan", BuildOptions("tensorrt-rtx", precision, ("sm86", "sm89", "sm120")))
    assert [stage.name for stage in report.stages] == STAGES
    for stage in report.stages:
        assert stage.layers.get("half" if precision == "fp16" else "float", 0) > 0
    if precision == "fp16":
        assert report.stages[-1].fp32_nodes > 50  # the log-binomial and the bins are FP32 islands
        assert report.parity.output_error < 2e-2 and report.parity.label == "graph-only"


def test_the_result_is_machine_readable(tmp_path, capsys):
    assert export_command.main(["--model", "evp", "-o", str(tmp_path / "x"), "--json"]) == 3  # no weights, no guess
    assert capsys.readouterr().out == "" and json.dumps(STAGES)
