"""DepthCLIP against open_clip's whole tower, a trunk written out by hand, and the published head in NumPy float64."""

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from closeness import same_output, same_weights
from safetensors.torch import save_file

from fathom.models.catalog import load
from fathom.models.clip.clip_text import prompt_features
from fathom.models.clip.clip_towers import build_clip
from fathom.models.clip.depthclip import OFFICIAL, TINY, DepthClip, load_depthclip, random_depthclip
from fathom.models.random_init import draw_weights
from fathom.runtime.artefact.contract import Contract, Crop, Require, Resize
from fathom.runtime.artefact.spec import check_chain
from fathom.runtime.errors import InputError


@pytest.fixture(scope="module")
def tiny():
    return random_depthclip(config=TINY)


def test_the_published_constants():
    assert OFFICIAL.prompts[0] == "This object is giant" and OFFICIAL.prompts[3] == "This object is not in distance" and len(OFFICIAL.prompts) == 7
    assert OFFICIAL.bins_m == (1.0, 1.5, 2.0, 2.25, 2.5, 2.75, 3.0)
    assert OFFICIAL.logit_scale / OFFICIAL.temperature == pytest.approx(1000)
    assert OFFICIAL.window == (416, 544) and OFFICIAL.feature_dim == 2048


def test_the_published_sizes():
    network = DepthClip(OFFICIAL, device="meta")
    assert sum(p.numel() for p in network.visual.parameters()) == pytest.approx(23.53e6, abs=1e4)
    assert sum(p.numel() for p in DepthClip(TINY, device="meta").parameters()) < 2_000_000
    trunk, head = (stage.spec for stage in network.stages())
    assert trunk.outputs[0].shape == ("batch", 2048, 13, 17) and head.outputs[0].shape == ("batch", 1, 13, 17)


@pytest.mark.parametrize(
    "wrong",
    [
        {"window": (416, 540)},
        {"bins_m": (1.0, 2.0)},
        {"bins_m": (3.0, 2.75, 2.5, 2.25, 2.0, 1.5, 1.0)},
        {"temperature": 0.0},
        {"words": ()},
        {"clip": replace(OFFICIAL.clip, embed_dim=512)},
    ],
    ids=["window", "few bins", "shrinking bins", "temperature", "no words", "embedding"],
)
def test_configs_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError):
        replace(OFFICIAL, **wrong)


def test_the_contract():
    contract = random_depthclip(config=TINY).contract
    assert contract.output.kind == "metric" and (contract.output.near, contract.output.far) == (0.75, 8.0)
    official = DepthClip(OFFICIAL, device="meta").contract
    assert (official.output.near, official.output.far) == (1.0, 3.0)
    assert official.input.mean == (0.485, 0.456, 0.406) and official.input.std == (0.229, 0.224, 0.225)
    assert official.output.upsample == "bilinear-corners"
    whole, nyu = official.protocols
    assert whole.steps == (Resize(416, 544, "bilinear-antialias"),) and whole.flip
    assert nyu.name == "nyu-benchmark" and nyu.steps == (Require(480, 640), Crop(416, 544, "top-left", 56, 60)) and nyu.flip
    assert Contract.from_json(official.to_json()) == official
    assert contract.protocols[1].steps[-1] == Resize(192, 256, "bilinear-antialias")


def by_hand(state: dict[str, torch.Tensor], image: torch.Tensor, blocks=(1, 2, 3, 2)) -> torch.Tensor:
    """CLIP's anti-aliased ResNet from its description: strides are average pools after the 3x3, and before the 1x1 of the skip."""

    def norm(x, name):
        return F.batch_norm(x, *(state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")), eps=1e-5)

    x = image
    for number, stride in ((1, 2), (2, 1), (3, 1)):
        x = norm(F.conv2d(x, state[f"conv{number}.weight"], stride=stride, padding=1), f"bn{number}").relu()
    x = F.avg_pool2d(x, 2)
    for layer, count in enumerate(blocks, 1):
        for block in range(count):
            name, pool = f"layer{layer}.{block}.", 2 if layer > 1 and block == 0 else 1
            y = norm(F.conv2d(x, state[name + "conv1.weight"]), name + "bn1").relu()
            y = norm(F.conv2d(y, state[name + "conv2.weight"], padding=1), name + "bn2").relu()
            y = norm(F.conv2d(F.avg_pool2d(y, pool), state[name + "conv3.weight"]), name + "bn3")
            if block == 0:
                x = norm(F.conv2d(F.avg_pool2d(x, pool), state[name + "downsample.0.weight"]), name + "downsample.1")
            x = (x + y).relu()
    return x


def test_the_trunk_is_the_described_one(tiny):
    image = tiny.example_inputs(2)["image"]
    truth = by_hand({name: tensor.double() for name, tensor in tiny.visual.state_dict().items()}, image.double())
    mine = tiny.boundaries({"image": image})["feat"]
    torch.testing.assert_close(mine.double(), truth, atol=2e-6, rtol=1e-5)


def head_in_float64(features: np.ndarray, bank: np.ndarray, bins_m=TINY.bins_m) -> np.ndarray:
    """Steps 4 to 9 of the published forward: [B,2C,h,w] and [classes,C] to metres [B,1,h,w]."""
    batch, channels, height, width = features.shape
    points = features.astype(np.float64).reshape(batch, channels, height * width).transpose(0, 2, 1)
    points = points / np.sqrt((points**2).sum(-1, keepdims=True))
    logits = 100.0 * points[:, :, 0::2] @ bank.astype(np.float64).T / 0.1
    chances = np.exp(logits - logits.max(-1, keepdims=True))
    chances /= chances.sum(-1, keepdims=True)
    depth = chances @ np.array(bins_m)
    return depth.reshape(batch, 1, height, width)


def test_the_head_is_the_published_one_and_so_is_its_folded_form(tiny):
    features = torch.rand(3, 512, 3, 4, generator=torch.Generator().manual_seed(1))
    truth = head_in_float64(features.numpy(), tiny.text_features.numpy())
    assert np.ptp(truth) > 0.01
    np.testing.assert_allclose(tiny.depth(features).numpy(), truth, atol=2e-4)
    np.testing.assert_allclose(tiny.stages()[1].module(features).numpy(), truth, atol=2e-4)


def test_the_odd_channels_count_for_the_length_only(tiny):
    features = torch.rand(1, 512, 3, 4, generator=torch.Generator().manual_seed(2))
    louder = features.clone()
    louder[:, 1::2] *= 5
    head = tiny.stages()[1].module
    np.testing.assert_allclose(head(louder).numpy(), head_in_float64(louder.numpy(), tiny.text_features.numpy()), atol=2e-4)
    assert not torch.allclose(head(louder), head(features), atol=1e-3)


def test_features_without_direction_leave_the_words_equally_likely(tiny):
    nothing = torch.zeros(1, 512, 3, 4)
    for depth in (tiny.depth(nothing), tiny.stages()[1].module(nothing)):
        np.testing.assert_allclose(depth.numpy(), 22.75 / 7, rtol=1e-6)


def test_full_size_clip_weights_give_open_clips_features(tmp_path):
    clip = draw_weights(build_clip(OFFICIAL.clip))
    save_file(clip.state_dict(), tmp_path / "RN50.safetensors")
    network = load_depthclip(tmp_path / "RN50.safetensors")
    image = network.example_inputs()["image"]
    with torch.no_grad():
        stages = clip.visual.forward_intermediates(image, indices=[0, 1, 2, 3, 4], intermediates_only=True)["image_intermediates"]
    found = network.boundaries({"image": image})
    assert found["feat"].shape == (1, 2048, 13, 17) and found["depth"].shape == (1, 1, 13, 17)
    torch.testing.assert_close(found["feat"], stages[-1], atol=1e-5, rtol=0)
    trunk, head = network.stages()
    torch.testing.assert_close(trunk.module(image), stages[-1], atol=1e-5, rtol=0)
    bank = prompt_features(clip, OFFICIAL.prompts)
    torch.testing.assert_close(network.text_features, bank, atol=1e-6, rtol=0)
    truth = head_in_float64(stages[-1].numpy(), bank.numpy(), OFFICIAL.bins_m)
    np.testing.assert_allclose(head.module(stages[-1]).numpy(), truth, atol=5e-4)
    assert network.origin.kind == "published" and network.origin.file == "RN50.safetensors" and len(network.origin.sha256) == 64


def test_the_own_file_comes_back_as_it_was(tiny, tmp_path):
    save_file(tiny.state_dict(), tmp_path / "own.safetensors")
    again = load_depthclip(tmp_path / "own.safetensors", config=TINY)
    image = tiny.example_inputs()
    assert same_weights(again, tiny) and same_output(again(image["image"]), tiny(image["image"]))
    assert again.origin.kind == "trained" and again.name == "depthclip-tiny"
    broken = tiny.state_dict() | {"text_features": torch.zeros(6, 256)}
    save_file(broken, tmp_path / "broken.safetensors")
    with pytest.raises(InputError, match=r"misshapen: text_features \[6, 256\]"):
        load_depthclip(tmp_path / "broken.safetensors", config=TINY)


def test_random_networks_are_reproducible_and_answer_differently_in_different_places(tiny):
    image = tiny.example_inputs()
    depth = tiny(image["image"])
    assert same_weights(random_depthclip(config=TINY), tiny)
    assert not same_output(random_depthclip(config=TINY, seed=1)(image["image"]), depth)
    assert depth.std() > 0.01 and tiny.origin.kind == "random-init"


def test_the_config_travels_with_its_prompts(tiny):
    data = tiny.config_json()
    assert data["prompts"][1] == "This object is extremely close" and data["clip"]["vision_layers"] == (1, 2, 3, 2)


def test_the_catalog_has_it():
    assert load("depthclip-tiny", random_init=True).name == "depthclip-tiny"
    with pytest.raises(InputError, match=r"RN50\.pt"):
        load("depthclip")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A tiny trunk that looks at the published window, exported with its parity gate."""
    from fathom.export.bundle.bundle import write_bundle

    network = random_depthclip(config=replace(TINY, window=(416, 544)))
    path = tmp_path_factory.mktemp("bundle") / "depthclip"
    write_bundle(network, path)
    return network, path


def test_the_published_nyu_evaluation_comes_out_of_the_runtime(bundle):
    """Crop (60, 56, 604, 472), ImageNet statistics, mirrored view averaged, align_corners=True to 416x544, pasted into 480x640."""
    from fathom.runtime.pipeline import Pipeline

    network, path = bundle
    coarse = torch.rand(1, 3, 8, 11, generator=torch.Generator().manual_seed(6))
    photo = (F.interpolate(coarse, size=(480, 640), mode="bicubic").clamp(0, 1)[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    with Pipeline.open(path) as pipeline:
        found = pipeline.predict(photo, protocol="nyu-benchmark")
    picture = photo[56:472, 60:604].astype(np.float64) / 255
    picture = (picture - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    image = torch.from_numpy(picture).float().permute(2, 0, 1)[None]
    coarse_m = (network(image) + network(image.flip(-1)).flip(-1)) / 2
    whole = np.zeros((480, 640))
    whole[56:472, 60:604] = F.interpolate(coarse_m, size=(416, 544), mode="bilinear", align_corners=True)[0, 0].numpy()
    assert whole[56:472, 60:604].std() > 1e-3
    np.testing.assert_allclose(found.values, whole, atol=1e-3)
    assert found.kind == "metric" and found.valid.sum() == 416 * 544 and found.valid[56, 60] and found.valid[471, 603]


def test_tensorrt_rtx_compiles_it_in_half_precision(bundle, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    from fathom.export.plan.build import BuildOptions, build_plan

    network, path = bundle
    report = build_plan(path, tmp_path / "depthclip.plan", BuildOptions("tensorrt-rtx", "fp16", ("sm86", "sm89"), (1, 2, 4)))
    trunk, head = report.stages
    convolutions = sum(isinstance(module, torch.nn.Conv2d) for module in network.visual.modules())
    assert trunk.layers == {"half": convolutions} and trunk.fp32_nodes == 0
    assert head.layers == {"float": 1}  # a thousand cosines stay FP32
    assert (tmp_path / "depthclip.plan").stat().st_size > trunk.engine_nbytes


def test_exported_stages_take_any_batch(bundle):
    network, path = bundle
    check_chain(tuple(stage.spec for stage in network.stages()))
    for stage in network.stages():
        given, wanted = stage.spec.inputs[0].name, stage.spec.outputs[0].name
        session = onnxruntime.InferenceSession(path / f"stages/{stage.spec.name}.onnx")
        for batch in (1, 3):
            truth = network.example_inputs(batch, seed=batch)
            truth |= network.boundaries(truth)
            (found,) = session.run([wanted], {given: truth[given].numpy()})
            np.testing.assert_allclose(found, truth[wanted].numpy(), atol=1e-4)
