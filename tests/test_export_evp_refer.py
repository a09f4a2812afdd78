"""EVP's referring network all the way: bundle, plan, words and photos to masks, half-precision engines."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer

from fathom.export.plan.build import BuildOptions, build_plan
from fathom.models.catalog import load
from fathom.runtime.artefact.bundle import BundleDirectory
from fathom.runtime.photo.preprocess import network_inputs
from fathom.runtime.pipeline import Pipeline

PROMPT = "the cup on the left"


@pytest.fixture(scope="module")
def exported(tiny_bundle, tmp_path_factory):
    bundle, folder = tiny_bundle("evp-refer-tiny"), tmp_path_factory.mktemp("refer")
    build_plan(bundle, folder / "x.plan", BuildOptions("onnxruntime", "fp32", (), (1, 2, 2)))
    return load("evp-refer-tiny", random_init=True), bundle, folder


@pytest.fixture(scope="module")
def photos():
    blobs = np.random.default_rng(4).integers(0, 255, (2, 6, 8, 3), np.uint8)
    return [np.asarray(Image.fromarray(blob).resize(size, Image.BICUBIC)) for blob, size in zip(blobs, ((320, 240), (300, 260)), strict=True)]


def wanted_mask(network, photo, prompt):
    """Straight from PyTorch: logits enlarged to the photo with aligned corners, the larger one wins."""
    found = Tokenizer.from_str(network.tokenizer.decode()).encode(prompt).ids
    ids = torch.full((1, network.config.tokens), network.config.vocabulary - 1)
    ids[0, : len(found)] = torch.tensor(found)
    image = torch.from_numpy(next(network_inputs(photo, network.contract, network.contract.protocols[0], 1)))
    with torch.no_grad():
        logits = network.boundaries({"image": image, "ids": ids})["logits"]
    whole = torch.nn.functional.interpolate(logits, size=photo.shape[:2], mode="bilinear", align_corners=True)[0]
    return (whole[1] > whole[0]).numpy(), (whole[1] - whole[0]).abs().numpy()


def test_the_bundle_is_measured_by_changed_pixels_and_carries_its_tokenizer(exported):
    network, bundle, _ = exported
    manifest = BundleDirectory.open(bundle).manifest
    assert manifest.parity["passed"] and manifest.parity["depth"]["changed_pixels"] == 0.0
    assert (bundle / manifest.contract.text.tokenizer).read_bytes() == network.tokenizer


def test_masks_are_those_of_pytorch_and_follow_the_words(exported, photos):
    network, _, folder = exported
    with Pipeline.open(folder / "x.plan") as pipeline:
        maps = pipeline.predict_batch(photos, prompt=PROMPT)
        other = pipeline.predict(photos[0], prompt="a man in a red shirt")
    for photo, found in zip(photos, maps, strict=True):
        wanted, distance = wanted_mask(network, photo, PROMPT)
        clear = distance > 1e-4
        assert found.kind == "mask" and found.values.shape == photo.shape[:2]
        assert clear.mean() > 0.99 and np.array_equal(found.values.astype(bool)[clear], wanted[clear])
    assert 0 < wanted.mean() < 1, "a mask that is the same everywhere would prove nothing"
    assert not np.array_equal(other.values, maps[0].values)


def run(folder, *words):
    command = [
        sys.executable,
        "-m",
        "fathom.runtime.commands.run",
        "--engine",
        folder / "x.plan",
        folder / "photo.png",
        "-o",
        folder / "out",
        "--json",
        "--force",
        *words,
    ]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


def test_depth_run_writes_a_mask_and_wants_words(exported, photos):
    network, _, folder = exported
    Image.fromarray(photos[0]).save(folder / "photo.png")
    done = run(folder, "--prompt", PROMPT)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["kind"] == "mask" and result["untrained"] is True
    mask = np.asarray(Image.open(result["files"]["png16"]))
    wanted, distance = wanted_mask(network, photos[0], PROMPT)
    assert set(np.unique(mask)) <= {0, 65535} and np.array_equal(mask[distance > 1e-4] > 0, wanted[distance > 1e-4])
    missing = run(folder)
    assert missing.returncode == 2 and "--prompt" in missing.stderr
    cloud = run(folder, "--prompt", PROMPT, "--save", "ply", "--intrinsics", "300,300,160,120")
    assert cloud.returncode == 3 and "mask" in cloud.stderr


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")
def test_half_precision_engines_build_for_batches_of_two(exported):
    _, bundle, folder = exported
    report = build_plan(bundle, folder / "rtx.plan", BuildOptions("tensorrt-rtx", "fp16", ("sm86", "sm120"), (1, 1, 2)))
    assert [stage.spec.name for stage in report.manifest.stages] == ["text", "vae", "unet", "refine", "classifier"]
    assert all(set(stage.layers) == {"half"} for stage in report.stages if stage.layers)
    assert report.parity.measure == "changed_pixels" and report.parity.output_error < 0.02 and report.parity.label == "graph-only"
