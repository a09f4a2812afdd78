"""DepthBLIP-2 and LLM-MDE all the way: bundle, engines, photo in, depth out, against PyTorch on the same tensor."""

import importlib.util

import numpy as np
import pytest
import torch

from fathom.export.plan.build import BuildOptions, build_plan
from fathom.models import catalog
from fathom.runtime import Pipeline
from fathom.runtime.artefact.bundle import BundleDirectory
from fathom.runtime.errors import UsageError
from fathom.runtime.photo.interpolate import resize
from fathom.runtime.photo.preprocess import network_inputs

skimage_data = pytest.importorskip("skimage.data")


@pytest.fixture(scope="module", params=["depthblip2-tiny", "llm-mde-tiny"])
def exported(request, tiny_bundle, tmp_path_factory):
    """The network in PyTorch, its bundle and a folder for what is built of it."""
    bundle = tiny_bundle(request.param)
    return catalog.load(request.param, random_init=True), BundleDirectory.open(bundle).manifest, bundle, tmp_path_factory.mktemp(request.param)


@pytest.fixture(scope="module")
def photos():
    """Two real photos of different size (public domain)."""
    return [skimage_data.coffee(), np.ascontiguousarray(skimage_data.chelsea())]


def test_the_bundle_passes_parity_and_says_what_it_is(exported):
    network, manifest, bundle, _ = exported
    assert manifest.parity["passed"] and manifest.network.untrained
    assert manifest.contract == network.contract
    if manifest.contract.text:
        assert (bundle / manifest.contract.text.tokenizer).read_bytes() == network.artefact_files()[manifest.contract.text.tokenizer]


def test_photos_give_what_pytorch_gives(exported, photos):
    """Batch 2 through ONNX Runtime, prompts written per photo; one output map is brought to the photo as the contract says."""
    network, _, bundle, folder = exported
    build_plan(bundle, folder / "x.plan", BuildOptions("onnxruntime", "fp32", (), (1, 2, 2)), force=True)
    with Pipeline.open(folder / "x.plan") as pipeline:
        maps = pipeline.predict_batch(photos)
        assert (pipeline.contract.text is None) == (network.contract.text is None)
        with pytest.raises(UsageError):
            pipeline.predict(photos[0], prompt="the cup")
        for photo, depth in zip(photos, maps, strict=True):
            tensor = next(network_inputs(photo, network.contract, network.contract.protocols[0], 1))
            text = pipeline._text(tensor) if network.contract.text else {}
            inputs = {network.contract.input.tensor: torch.from_numpy(tensor)} | {name: torch.from_numpy(values) for name, values in text.items()}
            with torch.no_grad():
                wanted = network.boundaries(inputs)["depth"][0, 0].numpy()
            filtered = network.contract.protocols[0].steps[-1].interpolation.endswith("antialias")
            if filtered:  # enlarged once, to the photo
                wanted = resize(wanted, *photo.shape[:2], network.contract.output.upsample)
            else:
                wanted = resize(wanted, *network.contract.input.window, network.contract.output.upsample)
                wanted = resize(wanted, *photo.shape[:2], "bilinear")
            np.testing.assert_allclose(depth.values, wanted, rtol=1e-3, atol=1e-4)
            assert depth.kind == network.contract.output.kind and depth.valid.all()


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")
def test_fp16_engines_build_for_batches_of_two(exported):
    _, manifest, bundle, folder = exported
    report = build_plan(bundle, folder / "rtx.plan", BuildOptions("tensorrt-rtx", "fp16", ("sm86",), (1, 2, 2)), force=True)
    assert report.manifest.batch == (1, 2, 2) and len(report.stages) == len(manifest.stages)
    assert report.parity.label == "graph-only" and not report.parity.failures
    products = [stage for stage in report.stages if stage.layers]
    assert products and all(set(stage.layers) == {"half"} for stage in products)
    if manifest.contract.text:
        assert manifest.contract.text.tokenizer in report.manifest.files
