"""MoA-DepthCLIP against open_clip and transformers at full size, and its own parts against the paper's equations in NumPy float64."""

import math
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from closeness import same_output, same_weights
from safetensors.torch import save_file
from scipy.signal import correlate
from torch import nn

from fathom.models.catalog import load
from fathom.models.clip.clip_text import prompt_features
from fathom.models.clip.clip_towers import VIT_B_32, build_clip, open_clip
from fathom.models.clip.mixture_of_adapters import FoldedAdapters, MixtureOfAdapters
from fathom.models.clip.moa_depthclip import OFFICIAL, SCENES, TINY, MoaDepthClip, load_moa_depthclip, random_moa_depthclip
from fathom.models.random_init import draw_weights
from fathom.runtime.artefact.contract import Contract, Require, Resize
from fathom.runtime.artefact.spec import check_chain
from fathom.runtime.errors import InputError


@pytest.fixture(scope="module")
def tiny():
    return random_moa_depthclip("quality", TINY)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Full-size CLIP with random weights, and the file of its 302 tensors."""
    clip = draw_weights(build_clip(VIT_B_32))
    path = tmp_path_factory.mktemp("clip") / "ViT-B-32.safetensors"
    save_file(clip.state_dict(), path)
    return clip, path


def test_the_published_sizes():
    network = MoaDepthClip(OFFICIAL, device="meta")
    assert sum(p.numel() for p in network.adapters[0].parameters()) == 495_492
    assert sum(p.numel() for p in network.adapters[0].experts.parameters()) == 396_544
    assert sum(p.numel() for p in network.adapters.parameters()) == 1_981_968
    assert sum(p.numel() for p in network.visual.transformer.resblocks[8:].parameters()) == 28_351_488
    assert sum(p.numel() for p in MoaDepthClip(TINY, device="meta").parameters()) < 2_000_000
    visual, head = (stage.spec for stage in network.stages())
    assert visual.outputs[0].shape == ("batch", 768, 7, 7) and head.outputs[0].shape == ("batch", 1, 7, 7)
    visual, head = (stage.spec for stage in MoaDepthClip(OFFICIAL, "quality", device="meta").stages())
    assert visual.inputs[0].shape == ("batch", 3, 480, 640) and head.outputs[0].shape == ("batch", 1, 15, 20)


@pytest.mark.parametrize(
    "wrong",
    [
        {"window": (224, 230)},
        {"adapted_blocks": (2, 5, 12)},
        {"adapted_blocks": (5, 2)},
        {"adapted_blocks": ()},
        {"gate_temperature": 0.0},
        {"bins": 1},
        {"spacing": "cubic"},
        {"near_m": 0.0},
        {"scenes": ()},
    ],
    ids=str,
)
def test_configs_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError):
        replace(OFFICIAL, **wrong)


def test_the_28_prompts_travel_verbatim():
    prompts = MoaDepthClip(OFFICIAL, device="meta").config_json()["prompts"]
    assert len(prompts) == len(set(prompts)) == 28
    assert prompts[0] == "a photo of a printer room" and prompts[14] == "a photo of a excercise room" and prompts[27] == "a photo of a nyu office"
    assert {"kitchen", "classroom", "bedroom", "study room", "bookstore"} < set(SCENES)


def test_bins():
    """Section 3.3 with models of equal width: 128 bins of 7.8 cm up to 10 m; as an option equal ratios."""
    centers = OFFICIAL.bin_centers_m().numpy()
    edges = np.linspace(1e-3, 10, 129)
    np.testing.assert_allclose(centers, (edges[1:] + edges[:-1]) / 2, rtol=1e-6)
    ratios = replace(OFFICIAL, spacing="log").bin_centers_m().numpy()
    np.testing.assert_allclose(ratios[1:] / ratios[:-1], (10 / 1e-3) ** (1 / 128), rtol=1e-5)


def test_the_contract():
    for variant, window in (("parity", (224, 224)), ("quality", (480, 640))):
        contract = MoaDepthClip(OFFICIAL, variant, device="meta").contract
        assert contract.output.kind == "metric" and contract.output.upsample == "bilinear" and contract.output.far == 10.0
        assert contract.input.mean == (0.48145466, 0.4578275, 0.40821073) and contract.input.window == window
        single, nyu = contract.protocols
        assert single.steps == (Resize(*window, "bilinear-antialias"),) and not single.flip
        assert nyu.steps[0] == Require(480, 640)
        assert Contract.from_json(contract.to_json()) == contract


def mixture_in_float64(adapters: MixtureOfAdapters, tokens: np.ndarray, temperature: float) -> np.ndarray:
    """Equations 1 to 3, token by token and expert by expert."""

    def parameters(linear):
        return linear.weight.numpy().astype(np.float64), linear.bias.numpy().astype(np.float64)

    def gelu(value):
        return np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in value])

    result = tokens.astype(np.float64)
    (first, first_bias), (last, last_bias) = parameters(adapters.gate[0]), parameters(adapters.gate[2])
    for place in np.ndindex(tokens.shape[:-1]):
        x = tokens[place].astype(np.float64)
        scores = (last @ np.maximum(first @ x + first_bias, 0) + last_bias) / temperature
        gates = np.exp(scores - scores.max())
        gates /= gates.sum()
        for weight, expert in zip(gates, adapters.experts, strict=True):
            (down, down_bias), (up, up_bias) = parameters(expert[0]), parameters(expert[2])
            result[place] += weight * (up @ gelu(down @ x + down_bias) + up_bias)
    return result


def test_the_mixture_is_the_papers_and_so_is_its_folded_form():
    torch.manual_seed(4)
    adapters = MixtureOfAdapters(24, experts=4, bottleneck=6, gate_width=10, temperature=2.0).requires_grad_(False)
    for parameter in adapters.parameters():
        parameter.mul_(3)  # gates far from equal
    tokens = torch.randn(2, 5, 24)
    truth = mixture_in_float64(adapters, tokens.numpy(), 2.0)
    np.testing.assert_allclose(adapters(tokens).numpy(), truth, atol=2e-5)
    np.testing.assert_allclose(FoldedAdapters(adapters)(tokens).numpy(), truth, atol=2e-5)
    assert np.abs(truth - mixture_in_float64(adapters, tokens.numpy(), 1.0)).max() > 1e-2  # the temperature is not lost
    assert adapters.gates(tokens).sum(-1).allclose(torch.ones(2, 5))
    adapters.start_as_identity()
    assert torch.equal(adapters(tokens), tokens)


def transformers_vision(clip):
    """The image tower under transformers' names."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    model = CLIPVisionModel(CLIPVisionConfig(hidden_size=768, intermediate_size=3072, patch_size=32, hidden_act="quick_gelu")).eval()
    ours = clip.visual.state_dict()
    prefix = next(name for name in model.state_dict() if name.endswith("class_embedding")).removesuffix("embeddings.class_embedding")
    theirs = {
        "embeddings.class_embedding": ours["class_embedding"],
        "embeddings.patch_embedding.weight": ours["conv1.weight"],
        "embeddings.position_embedding.weight": ours["positional_embedding"],
    }
    for kind in ("weight", "bias"):
        theirs[f"pre_layrnorm.{kind}"], theirs[f"post_layernorm.{kind}"] = ours[f"ln_pre.{kind}"], ours[f"ln_post.{kind}"]
        for layer in range(12):
            block, there = f"transformer.resblocks.{layer}.", f"encoder.layers.{layer}."
            for part, values in zip("qkv", ours[f"{block}attn.in_proj_{kind}"].chunk(3), strict=True):
                theirs[f"{there}self_attn.{part}_proj.{kind}"] = values
            pairs = {"attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
            theirs |= {f"{there}{name}.{kind}": ours[f"{block}{own}.{kind}"] for own, name in pairs.items()}
    model.load_state_dict({prefix + name: tensor for name, tensor in theirs.items()})
    return model


def test_full_size_clip_weights_give_the_features_of_both_libraries(full):
    """With adapters that do nothing yet, the features are the mean of the patch tokens after blocks 2, 5, 8 and 11."""
    clip, path = full
    network = load_moa_depthclip(path)
    image = network.example_inputs(2)["image"]
    found = network.boundaries({"image": image})
    with torch.no_grad():
        maps = clip.visual.forward_intermediates(image, indices=[2, 5, 8, 11], intermediates_only=True)["image_intermediates"]
        hidden = transformers_vision(clip)(image, output_hidden_states=True).hidden_states
    truth = torch.stack(maps).mean(dim=0)
    torch.testing.assert_close(found["feat"], truth, atol=2e-5, rtol=1e-5)
    tokens = torch.stack([hidden[block + 1][:, 1:] for block in (2, 5, 8, 11)]).mean(dim=0)
    torch.testing.assert_close(found["feat"], tokens.transpose(1, 2).reshape(2, 768, 7, 7), atol=2e-5, rtol=1e-5)
    visual, head = network.stages()
    torch.testing.assert_close(visual.module(image), truth, atol=3e-5, rtol=1e-5)
    torch.testing.assert_close(head.module(found["feat"]), found["depth"], atol=5e-5, rtol=0)  # depths near 4, folded and not
    assert found["depth"].shape == (2, 1, 7, 7) and found["depth"].std() > 0

    bank = prompt_features(clip, OFFICIAL.prompts)
    torch.testing.assert_close(bank.norm(dim=-1), torch.ones(28))
    torch.testing.assert_close(network.context, bank.mean(dim=0), atol=1e-6, rtol=0)
    assert network.context.norm() < 1 - 1e-4  # a mean of different directions is shorter than they are
    assert network.origin.kind == "random-init" and any("untrained" in w or "at their start" in w for w in network.origin.warnings)


class Adapted(nn.Module):
    """A block of open_clip and, behind it, adapters; called as open_clip's own transformer calls its blocks."""

    def __init__(self, block, adapters):
        super().__init__()
        self.block, self.adapters = block, adapters

    def forward(self, x, attn_mask=None):
        return self.adapters(self.block(x, attn_mask=attn_mask))


def test_adapters_stand_behind_their_blocks_in_open_clips_own_forward(tiny):
    """The tiny network, run by open_clip's VisionTransformer with the adapters put into its transformer."""
    config = TINY
    network = random_moa_depthclip(config=TINY)
    clip = build_clip(config.clip)
    for name, tensor in network.visual.state_dict().items():
        clip.visual.state_dict()[name].copy_(tensor)
    blocks = clip.visual.transformer.resblocks
    for place, adapters in zip(config.adapted_blocks, network.adapters, strict=True):
        blocks[place] = Adapted(blocks[place], adapters)
    image = network.example_inputs(2)["image"]
    with torch.no_grad():
        maps = clip.visual.forward_intermediates(image, indices=list(config.adapted_blocks), intermediates_only=True)["image_intermediates"]
    truth = torch.stack(maps).mean(dim=0)
    torch.testing.assert_close(network.features(image), truth, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(network.stages()[0].module(image), truth, atol=1e-5, rtol=1e-5)


def test_pictures_of_a_batch_do_not_see_each_other(tiny):
    """The precursor's code let blocks attend across the batch."""
    image = tiny.example_inputs(3)["image"]
    together = tiny(image)
    for number in range(3):
        torch.testing.assert_close(tiny(image[number : number + 1])[0], together[number], atol=2e-5, rtol=0)
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_positions_are_resized_as_open_clip_resizes_them():
    quality, parity = (MoaDepthClip(OFFICIAL, variant, device="meta") for variant in ("quality", "parity"))
    table = torch.randn(50, 768, generator=torch.Generator().manual_seed(7))
    for network in (quality, parity):
        network.visual.positional_embedding = nn.Parameter(table, requires_grad=False)
    state = {"visual.positional_embedding": table}
    wide = nn.Module()
    wide.visual = nn.Module()
    wide.visual.grid_size = (15, 20)
    open_clip().model.resize_pos_embed(state, wide)
    assert state["visual.positional_embedding"].shape == (301, 768)
    torch.testing.assert_close(quality.positions(), state["visual.positional_embedding"])
    assert torch.equal(parity.positions(), table)
    assert quality.stages()[0].folded["resized_positions"] == 1 and quality.variant == "quality"


def head_in_float64(network: MoaDepthClip, features: np.ndarray) -> np.ndarray:
    """Sections 3.2 and 3.3: context beside the features, 3x3 with zeros around, ReLU, 1x1; bins and regression averaged."""
    config = network.config
    context = np.broadcast_to(network.context.numpy()[:, None, None], (config.clip.embed_dim, *features.shape[2:]))
    depths = []
    for picture in features:
        fused = np.concatenate([picture, context]).astype(np.float64)
        raw = []
        for head in (network.classification, network.regression):
            weight = head.conv1.weight.numpy().astype(np.float64)
            padded = np.pad(fused, ((0, 0), (1, 1), (1, 1)))
            hidden = np.stack([correlate(padded, kernel, mode="valid")[0] for kernel in weight]) + head.conv1.bias.numpy()[:, None, None]
            matrix = head.conv2.weight.numpy()[:, :, 0, 0].astype(np.float64)
            raw.append(np.einsum("oc,chw->ohw", matrix, np.maximum(hidden, 0)) + head.conv2.bias.numpy()[:, None, None])
        chances = np.exp(raw[0] - raw[0].max(0))
        chances /= chances.sum(0)
        edges = np.linspace(1e-3, 10, config.bins + 1)
        binned = np.einsum("k,khw->hw", (edges[1:] + edges[:-1]) / 2, chances)
        depths.append(0.5 * binned + 0.5 * 10 / (1 + np.exp(-raw[1][0])))
    return np.stack(depths)[:, None]


def test_the_dual_head_is_the_papers_up_to_the_border_and_so_is_its_folded_form(tiny):
    network = random_moa_depthclip("quality", TINY)
    network.context *= 20  # so that the border, where part of the context is missing, differs visibly from the inside
    features = torch.randn(2, 128, 12, 16, generator=torch.Generator().manual_seed(5))
    truth = head_in_float64(network, features.numpy())
    logits, regressed = network.heads(features)
    centers = network.config.bin_centers_m().view(1, -1, 1, 1)
    np.testing.assert_allclose(((logits.softmax(1) * centers).sum(1, keepdim=True) + regressed).numpy() / 2, truth, atol=2e-5)
    np.testing.assert_allclose(network.stages()[1].module(features).numpy(), truth, atol=2e-5)
    flat = network.stages()[1].module(torch.zeros(1, 128, 12, 16))[0, 0]
    assert (flat[1:-1, 1:-1] - flat[2, 2]).abs().max() < 1e-5 < 1e-3 < (flat[0, 0] - flat[2, 2]).abs()


def test_the_own_file_serves_every_window(tiny, tmp_path):
    save_file(tiny.state_dict(), tmp_path / "own.safetensors")
    again = load_moa_depthclip(tmp_path / "own.safetensors", "quality", TINY)
    image = tiny.example_inputs()["image"]
    assert same_weights(again, tiny) and same_output(again(image), tiny(image)) and again.origin.kind == "trained" and not again.training
    square = load_moa_depthclip(tmp_path / "own.safetensors", config=TINY)
    assert square(square.example_inputs()["image"]).shape == (1, 1, 12, 12) and square.name == "moa-depthclip-tiny"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"regression.conv2.bias": None}, r"missing: regression\.conv2\.bias"),
        ({"adapters.4.gate.0.bias": torch.zeros(2)}, r"unexpected: adapters\.4\.gate\.0\.bias"),
        ({"adapters.0.experts.3.2.bias": torch.zeros(2)}, r"misshapen: adapters\.0\.experts\.3\.2\.bias"),
        ({"context": torch.full((64,), float("inf"))}, "not finite: context"),
    ],
    ids=["missing", "unexpected", "misshapen", "not finite"],
)
def test_files_that_do_not_fit_are_refused_by_name(tiny, tmp_path, change, complaint):
    state = {name: tensor for name, tensor in (tiny.state_dict() | change).items() if tensor is not None}
    save_file(state, tmp_path / "wrong.safetensors")
    with pytest.raises(InputError, match=complaint):
        load_moa_depthclip(tmp_path / "wrong.safetensors", config=TINY)


def test_stages_share_the_big_tensors(tiny):
    visual, _ = tiny.stages()
    own = {tensor.data_ptr() for tensor in tiny.state_dict().values()}
    new = sum(t.numel() for t in visual.module.state_dict().values() if t.data_ptr() not in own)
    mixtures = sum(p.numel() for p in tiny.adapters.parameters())
    assert new <= mixtures + tiny.positions().numel()


def test_random_networks_are_reproducible_and_answer_differently_in_different_places(tiny):
    image = tiny.example_inputs()["image"]
    assert same_weights(random_moa_depthclip("quality", TINY), tiny)
    assert not same_output(random_moa_depthclip("quality", TINY, seed=1)(image), tiny(image))
    assert tiny(image).std() > 1e-2 and tiny(image).min() > 0 and tiny(image).max() < 10
    assert tiny.origin.kind == "random-init"


def test_the_catalog_has_it():
    quality = load("moa-depthclip-tiny", variant="quality", random_init=True)
    assert (quality.name, quality.variant, quality.config.window) == ("moa-depthclip-tiny", "quality", (96, 128))
    with pytest.raises(InputError, match=r"ViT-B-32\.pt"):
        load("moa-depthclip")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, tiny):
    """The tiny network with resized positions, exported with its parity gate."""
    from fathom.export.bundle.bundle import write_bundle

    path = tmp_path_factory.mktemp("bundle") / "moa"
    return write_bundle(tiny, path), path


def test_the_bundle_says_which_prompts_and_that_nothing_was_trained(bundle):
    manifest, _ = bundle
    assert manifest.network.config["prompts"][6] == "a photo of a kitchen" and manifest.network.untrained
    assert [stage.folded for stage in manifest.stages] == [{"expert_products": 8, "resized_positions": 1}, {"scene_context": 1}]
    assert manifest.parity["passed"]


def test_a_photo_is_stretched_and_its_map_stretched_back(bundle, tiny):
    """At a whole multiple of the window, in one colour per half, so that no kind of interpolation matters away from the middle."""
    from fathom.runtime.pipeline import Pipeline

    photo = np.zeros((288, 384, 3), np.uint8)
    photo[:, :192], photo[:, 192:] = (200, 120, 40), (20, 60, 220)
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    window = photo[1::3, 1::3].astype(np.float64) / 255
    depth_m = tiny(torch.from_numpy((window - mean) / std).float().permute(2, 0, 1)[None])
    with Pipeline.open(bundle[1]) as pipeline:
        found = pipeline.predict(photo)
    assert found.values.shape == (288, 384) and found.kind == "metric" and found.unit == "m"
    truth = nn.functional.interpolate(depth_m, size=(288, 384), mode="bilinear")[0, 0].numpy()
    np.testing.assert_allclose(found.values, truth, atol=0.05 * np.ptp(truth))
    assert np.corrcoef(found.values.ravel(), truth.ravel())[0, 1] > 0.995


def test_tensorrt_rtx_compiles_it_in_half_precision(bundle, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    from fathom.export.plan.build import BuildOptions, build_plan

    report = build_plan(bundle[1], tmp_path / "moa.plan", BuildOptions("tensorrt-rtx", "fp16", ("sm86", "sm89"), (1, 2, 4)))
    visual, head = report.stages
    assert set(visual.layers) == {"half"} and set(head.layers) == {"half"}
    assert visual.layers["half"] == 1 + 4 * (4 + 2) + 4 * 5  # patches; per block 4 products and 2 of the attention; per mixture 5


def test_exported_stages_take_any_batch(bundle, tiny):
    path, network = bundle[1], tiny
    check_chain(tuple(stage.spec for stage in network.stages()))
    for stage in network.stages():
        given, wanted = stage.spec.inputs[0].name, stage.spec.outputs[0].name
        session = onnxruntime.InferenceSession(path / f"stages/{stage.spec.name}.onnx")
        for batch in (1, 3):
            truth = network.example_inputs(batch, seed=batch)
            truth |= network.boundaries(truth)
            (found,) = session.run([wanted], {given: truth[given].numpy()})
            np.testing.assert_allclose(found, truth[wanted].numpy(), atol=3e-5)
