"""EVP: the published key list and counts, checkpoints in every published form, stages against the unfolded network."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from closeness import same_output, same_weights
from safetensors.torch import save_file

from fathom.models import catalog
from fathom.models.diffusion.depth_decoder import DecoderConfig
from fathom.models.diffusion.diffusion_checkpoint import clip_names, published_name
from fathom.models.diffusion.evp import DEPTH_HEAD, EVP, OFFICIAL, TINY, EVPConfig, evp_keys, load_evp, random_evp, variant_of
from fathom.models.diffusion.metric_bins import BinsConfig
from fathom.models.diffusion.stable_diffusion import BackboneConfig
from fathom.models.training.learners.learners import published_tensors
from fathom.runtime.artefact.contract import Contract
from fathom.runtime.artefact.spec import check_chain
from fathom.runtime.errors import InputError, UsageError

SMALL = EVPConfig(  # widths repeat where the published ones do, so that every shortcut is where it is there, and every name
    name="evp-tiny",
    backbone=BackboneConfig((16, 32, 64, 64), 8, 2, 64, (16, 32, 64, 64), 8),
    refinement_groups=4,
    aggregation_groups=8,
    decoder=DecoderConfig(64, (16, 16, 16), 48),
    bins=BinsConfig(64, 64, 32, (16, 8, 4, 1), (16, 16, 16, 48)),
    nyu_window=224,
    kitti_window=160,
)
KEYS = Path(__file__).parent / "data" / "keys"
STAGES = {
    "vae": (["image"], ["latent"]),
    "unet": (["latent"], ["f64", "f32", "f16", "f8"]),
    "refine": (["f64", "f32", "f16", "f8"], ["conv_feats"]),
    "decoder": (["conv_feats"], ["x1", "x2", "x3", "x4", "raw"]),
    "bins": (["conv_feats", "x1", "x2", "x3", "x4", "raw"], ["depth"]),
}


def published():
    rows = [line.split("\t") for line in (KEYS / "evp_depth.txt").read_text().splitlines()]
    return {name: (dtype, tuple(int(n) for n in re.findall(r"\d+", shape))) for name, dtype, shape in rows}


def as_published(network):
    """A checkpoint of the network in the published form, written here from the published names, not by the loader."""
    state = network.state_dict()
    tensors = {}
    for own, tensor in state.items():
        name = published_name(own, DEPTH_HEAD)
        squeezed = re.search(r"mid\.attn_1\.(q|k|v|proj_out)\.weight", name)
        tensors[name] = (tensor[..., None, None] if squeezed else tensor).clone()
    assert tensors.keys() == published().keys()
    return tensors


@pytest.fixture(scope="module")
def network():
    return random_evp("nyu", SMALL, seed=1)


@pytest.fixture(scope="module")
def picture(network):
    return network.example_inputs(2)


@pytest.fixture(scope="module")
def truth(network, picture):
    return network.boundaries(picture) | picture


def run(stage, tensors):
    out = stage.module(*(tensors[spec.name] for spec in stage.spec.inputs))
    return dict(zip((spec.name for spec in stage.spec.outputs), out if isinstance(out, tuple) else (out,), strict=True))


def relative(got, want):
    return ((got - want).abs().max() / want.abs().max()).item()


def test_official_names_shapes_and_kinds_are_the_941_published_ones():
    with torch.device("meta"):
        network = EVP(OFFICIAL, "nyu")
    wanted, state = published(), network.state_dict()
    kinds = {torch.float32: "F32", torch.int64: "I64"}
    assert len(wanted) == 941
    assert {name: (kinds[state[key.own].dtype], key.shape) for name, key in evp_keys(network).wanted.items()} == wanted


def test_official_parameter_counts():
    with torch.device("meta"):
        network = EVP(OFFICIAL, "kitti")
    assert sum(p.numel() for p in network.parameters()) == 933_814_544
    floats = sum(t.numel() for name, t in network.state_dict().items() if t.is_floating_point() and not name.endswith("K_minus_1"))
    assert floats == 933_845_840
    assert sum(p.numel() for p in network.unet.parameters()) == 859_508_800
    assert sum(p.numel() for p in network.vae.parameters()) == 34_163_664
    assert sum(p.numel() for p in network.text.parameters()) == 1_181_184 + 768
    assert OFFICIAL.tap_channels == (320, 680, 1320, 1280)
    assert len(clip_names()) == len(set(clip_names())) == 196


def test_a_small_network_has_every_official_name_and_few_parameters(network):
    assert set(evp_keys(network).wanted) == set(published())
    assert sum(p.numel() for p in network.parameters()) < 4_000_000
    with torch.device("meta"):
        official = EVP(OFFICIAL, "nyu")
    assert [type(m) for m in network.modules()] == [type(m) for m in official.modules()]


@pytest.mark.parametrize(("config", "variant", "window", "canvas"), [(OFFICIAL, "nyu", 480, 512), (OFFICIAL, "kitti", 352, 384), (TINY, "nyu", 160, 192)])
def test_constants_belong_to_the_variant(config, variant, window, canvas):
    constants = variant_of(config, variant)
    contract = constants.contract
    assert (constants.latent_divisor, constants.max_depth_m) == {"nyu": (5.07543, 10.0), "kitti": (4.6211, 80.0)}[variant]
    assert (contract.input.window, contract.input.canvas) == ((window, window), (canvas, canvas))
    assert contract.input.mean == contract.input.std == (0.5,) * 3
    output = contract.output
    assert (output.kind, output.unit, output.near, output.far, output.larger_is) == ("metric", "m", 1e-3, constants.max_depth_m, "far")
    assert Contract.from_json(contract.to_json()) == contract


def test_protocols_are_the_published_ones():
    single, nyu = variant_of(OFFICIAL, "nyu").contract.protocols
    resize, pad = single.steps
    assert (resize.height, resize.width, resize.interpolation, pad.top, pad.bottom) == (440, 480, "bilinear-corners", 40, 0)
    assert (single.lefts, single.flip) == ((0,), False)
    assert (nyu.steps[0].height, nyu.steps[0].width) == (480, 640)
    assert (nyu.lefts, nyu.fill_lefts, nyu.flip) == ((0, 22, 44, 66, 88, 110, 132, 154), (160,), True)
    _, kitti = variant_of(OFFICIAL, "kitti").contract.protocols
    crop = kitti.steps[0]
    assert (crop.height, crop.width, crop.anchor) == (352, 1216, "bottom-center")
    assert (kitti.lefts, kitti.fill_lefts, kitti.flip) == (tuple(range(0, 900, 45)), (864,), True)


@pytest.mark.parametrize("config", [OFFICIAL, TINY])
@pytest.mark.parametrize("variant", ["nyu", "kitti"])
def test_windows_of_every_protocol_cover_the_shaped_picture(config, variant):
    contract = variant_of(config, variant).contract
    height, width = contract.input.window
    for protocol in contract.protocols:
        shaped = None
        for step in protocol.steps:
            if step.op in ("require", "resize", "crop"):
                shaped = (step.height, step.width)
            else:
                shaped = (shaped[0] + step.top + step.bottom, shaped[1] + step.left + step.right)
        assert shaped[0] == height
        covered = np.zeros(shaped[1], bool)
        for left in protocol.lefts + protocol.fill_lefts:
            assert left + width <= shaped[1]
            covered[left : left + width] = True
        assert covered.all()


def test_stages_are_cut_where_they_should(network):
    stages = network.stages()
    check_chain(tuple(stage.spec for stage in stages))
    assert {s.spec.name: ([t.name for t in s.spec.inputs], [t.name for t in s.spec.outputs]) for s in stages} == STAGES
    folded = {stage.spec.name: stage.folded for stage in stages}
    assert folded["vae"] == {"log_variance_row": 4, "latent_divisor": 1}
    assert folded["unet"] == {"text_adapter": 1, "time_embedding": 1, "resnet_time_projection": 22, "cross_attention_kv_pair": 16}
    assert folded["decoder"] == {"batch_norm": 4}
    assert not any(module.training for stage in stages for module in stage.module.modules())


def test_official_boundaries_have_the_published_shapes():
    with torch.device("meta"):
        stages = EVP(OFFICIAL, "nyu").stages()
    shapes = {tensor.name: tensor.shape[1:] for stage in stages for tensor in stage.spec.inputs + stage.spec.outputs}
    assert shapes == {
        "image": (3, 512, 512), "latent": (4, 64, 64), "f64": (320, 64, 64), "f32": (680, 32, 32), "f16": (1320, 16, 16), "f8": (1280, 8, 8),
        "conv_feats": (1536, 15, 15), "x1": (32, 30, 30), "x2": (32, 60, 60), "x3": (32, 120, 120), "x4": (192, 240, 240),
        "raw": (1, 480, 480), "depth": (1, 480, 480),
    }  # fmt: skip


def test_every_stage_equals_the_unfolded_network_alone_and_chained(network, picture, truth):
    chained = dict(picture)
    for stage in network.stages():
        alone = run(stage, truth)
        chained |= run(stage, chained)
        for spec in stage.spec.outputs:
            spec.bind(tuple(alone[spec.name].shape), {"batch": 2})
            assert relative(alone[spec.name], truth[spec.name]) < 1e-5
            assert relative(chained[spec.name], truth[spec.name]) < 1e-4  # rounding adds up from stage to stage


def test_depth_of_random_weights_is_finite_and_varied(truth):
    depth = truth["depth"]
    assert depth.isfinite().all() and depth.std() > 0.3 and depth.min() > 0


def test_kitti_runs_on_its_own_canvas():
    network = random_evp("kitti", SMALL, seed=2)
    picture = network.example_inputs(1)
    truth = network.boundaries(picture) | picture
    assert truth["depth"].shape == (1, 1, 160, 160)
    for stage in network.stages():
        for name, tensor in run(stage, truth).items():
            assert relative(tensor, truth[name]) < 1e-5


def test_batches_do_not_mix(network, picture, truth):
    second = network.boundaries({"image": picture["image"][1:]})
    assert relative(second["depth"], truth["depth"][1:]) < 1e-5


def test_seed_decides_the_random_weights(network):
    again, other = random_evp("nyu", SMALL, seed=1), random_evp("nyu", SMALL, seed=2)
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in network.state_dict().items())
    assert not torch.equal(other.vae.encoder.conv_in.weight, network.vae.encoder.conv_in.weight)
    assert network.origin.kind == "random-init" and network.origin.warnings


def test_forward_can_be_trained():
    network = random_evp("nyu", SMALL, seed=1).requires_grad_(True)
    depth = network(network.example_inputs(1)["image"])
    depth.log().mean().backward()
    lacking = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert lacking == []


@pytest.fixture(scope="module")
def checkpoint(network):
    return as_published(network)


@pytest.fixture(scope="module")
def file(checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("evp") / "model.safetensors"
    save_file(checkpoint, path)
    return path


def test_safetensors_round_trip(file, network, picture, truth):
    loaded = load_evp(file, "nyu", SMALL)
    assert same_weights(loaded, network) and same_output(loaded.boundaries(picture)["depth"], truth["depth"])
    assert loaded.origin.kind == "trained" and loaded.origin.file == "model.safetensors" and len(loaded.origin.sha256) == 64
    assert loaded.origin.warnings == ()
    assert not any(p.requires_grad for p in loaded.parameters())


def test_ckpt_with_module_prefix_clip_inside_and_no_integer_buffers(checkpoint, network, tmp_path, picture, truth):
    tensors = {name: tensor for name, tensor in checkpoint.items() if "num_batches" not in name and not name.endswith(("k_idx", "K_minus_1"))}
    text = tensors.pop("encoder.class_embeddings")
    tensors |= {name: torch.zeros(2) for name in clip_names()}
    torch.save({"model": {"module." + name: tensor for name, tensor in tensors.items()}}, tmp_path / "best.ckpt")
    with pytest.raises(InputError, match=r"one caption per image.*--text-pack"):
        load_evp(tmp_path / "best.ckpt", "nyu", SMALL)
    save_file({"context": text}, tmp_path / "text.safetensors")
    loaded = load_evp(tmp_path / "best.ckpt", "nyu", SMALL, tmp_path / "text.safetensors")
    assert same_weights(loaded, network) and same_output(loaded.boundaries(picture)["depth"], truth["depth"])


def test_half_precision_files_become_fp32(checkpoint, tmp_path):
    save_file({n: t.half() if t.is_floating_point() else t for n, t in checkpoint.items()}, tmp_path / "half.safetensors")
    loaded = load_evp(tmp_path / "half.safetensors", "nyu", SMALL)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_a_text_pack_replaces_the_checkpoints_text(file, tmp_path, picture, truth):
    save_file({"context": torch.randn(1, 40, 64)}, tmp_path / "text.safetensors")
    other = load_evp(file, "nyu", SMALL, tmp_path / "text.safetensors")
    assert relative(other.boundaries(picture)["f32"], truth["f32"]) > 1e-3


def test_captions_are_read_by_the_clip_of_the_file(checkpoint, tmp_path):
    """The mean over captions of transformers' own hidden states, in every form of the list; words that the file cannot read are refused."""
    from tokenizers import Tokenizer
    from transformers import CLIPTextConfig, CLIPTextModel

    from fathom.models.diffusion.evp_refer import TINY, TINY_TOKENIZER

    torch.manual_seed(0)
    end = TINY.vocabulary - 1
    sizes = {"vocab_size": TINY.vocabulary, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 1}
    tower = CLIPTextModel(CLIPTextConfig(**sizes, max_position_embeddings=40, bos_token_id=end - 1, eos_token_id=end)).eval()
    tensors = {n: t for n, t in checkpoint.items() if n != "encoder.class_embeddings"}
    tensors |= {"encoder.clip_model.transformer.text_model." + n.removeprefix("text_model."): t.contiguous() for n, t in tower.state_dict().items()}
    save_file(tensors, tmp_path / "x.safetensors")
    captions = ["a red chair", "the wall on the left of a room"]
    wanted = []
    for caption in captions:
        ids = Tokenizer.from_str(TINY_TOKENIZER.decode()).encode(caption).ids
        with torch.no_grad():
            wanted.append(tower(input_ids=torch.tensor([[*ids, *[end] * (40 - len(ids))]])).last_hidden_state)
    forms = {"a.json": json.dumps(captions), "b.json": json.dumps({"1.jpg": captions[0], "2.jpg": captions[1]}), "c.txt": "\n".join([*captions, ""])}
    for name, text in forms.items():
        (tmp_path / name).write_text(text)
        loaded = load_evp(tmp_path / "x.safetensors", "nyu", SMALL, texts=tmp_path / name)
        torch.testing.assert_close(loaded.text.class_embeddings, sum(wanted) / 2, atol=1e-5, rtol=1e-5)
    for text, words in (("[]", "no caption"), ("[3]", "other things"), ("{", "broken")):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(InputError, match=words):
            load_evp(tmp_path / "x.safetensors", "nyu", SMALL, texts=tmp_path / "a.json")
    save_file(checkpoint, tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="carries no CLIP"):
        load_evp(tmp_path / "none.safetensors", "nyu", SMALL, texts=tmp_path / "c.txt")
    with pytest.raises(UsageError, match="contradict"):
        load_evp(tmp_path / "none.safetensors", "nyu", SMALL, tmp_path / "t.safetensors", tmp_path / "c.txt")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"encoder.layer2.0.weight": None}, r"1 tensor\(s\) missing: encoder.layer2.0.weight"),
        ({"encoder.class_embeddings": None}, "missing: encoder.class_embeddings"),
        ({"encoder.encoder_vq.decoder.conv_in.weight": torch.ones(1)}, "unexpected: encoder.encoder_vq.decoder.conv_in.weight"),
        ({"encoder.gamma": torch.ones(3)}, r"misshapen: encoder.gamma \[3\] instead of \[64\]"),
        ({"bottle_neck.0.bias": torch.full((64,), float("nan"))}, "not finite: bottle_neck.0.bias"),
        ({"conditional_log_binomial.log_binomial_transform.k_idx": torch.zeros(1, 64, 1, 1)}, "another value"),
        ({"last_layer_depth.0.weight": torch.ones(1)}, "unexpected: last_layer_depth.0.weight"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(checkpoint, tmp_path, change, words):
    save_file({n: t for n, t in {**checkpoint, **change}.items() if t is not None}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=words) as caught:
        load_evp(tmp_path / "x.safetensors", "nyu", SMALL)
    assert caught.value.exit_code == 3


FOREIGN = {
    "VPD": ["encoder.gamma", "last_layer_depth.0.weight"],
    "EVP-REFER": ["gamma", "classifier.conv1_1.weight", "unet.unet.diffusion_model.out.0.weight", "aggregation.layer1.conv1.weight"],
    "VPD-REFER": ["gamma", "classifier.conv1_1.weight", "unet.unet.diffusion_model.out.0.weight"],
    "Stable Diffusion": ["model.diffusion_model.out.0.weight", "first_stage_model.quant_conv.bias"],
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_checkpoints_of_other_networks_are_recognised(tmp_path, kind):
    torch.save({"model": {name: torch.ones(1) for name in FOREIGN[kind]}}, tmp_path / "x.pth")
    with pytest.raises(InputError, match=kind):
        load_evp(tmp_path / "x.pth", "nyu", SMALL)


def test_weights_that_never_learned_are_warned_about(checkpoint, tmp_path):
    fresh = dict(checkpoint)
    fresh["encoder.gamma"] = torch.full((64,), 1e-4)
    for place in ("deconv_layers.1", "deconv_layers.4", "deconv_layers.7", "conv_layers.1"):
        fresh[f"decoder.{place}.running_mean"] = torch.zeros_like(fresh[f"decoder.{place}.running_mean"])
    fresh["decoder.deconv_layers.0.weight"] = torch.randn_like(fresh["decoder.deconv_layers.0.weight"]) * 1e-3
    save_file(fresh, tmp_path / "fresh.safetensors")
    warnings = load_evp(tmp_path / "fresh.safetensors", "nyu", SMALL).origin.warnings
    assert len(warnings) == 3 and "gamma" in warnings[0] and "batch norms" in warnings[1] and "first weights" in warnings[2]


@pytest.fixture
def tiny_file(tmp_path):
    save_file(dict(published_tensors(random_evp("nyu", TINY))), tmp_path / "some.safetensors")
    return tmp_path / "some.safetensors"


def test_catalog_gives_evp_and_says_what_to_pass(tiny_file, monkeypatch, tmp_path):
    file = tiny_file
    monkeypatch.setattr(catalog, "DEMO_WEIGHTS", tmp_path)
    tiny = catalog.load("evp-tiny", file)
    assert (tiny.name, tiny.variant, tiny.origin.kind) == ("evp-tiny", "nyu", "trained")
    assert catalog.load("evp-tiny").origin.kind == "random-init"
    assert catalog.load("evp-tiny", variant="kitti", random_init=True).contract.output.far == 80.0
    with pytest.raises(InputError, match=r"model\.safetensors.*3,735,516,436 bytes.*--weights"):
        catalog.load("evp")
    for bad, words in (
        ({"name": "evpp"}, "one of evp"),
        ({"name": "evp-tiny", "variant": "mars"}, "no variant 'mars'"),
        ({"name": "evp-tiny", "scene": "kitchen"}, "takes no --scene"),
        ({"name": "evp-tiny", "weights": file, "random_init": True}, "contradict"),
    ):
        with pytest.raises(UsageError, match=words):
            catalog.load(**bad)


def test_catalog_uses_demo_weights_where_they_are(tiny_file, monkeypatch, tmp_path):
    monkeypatch.setattr(catalog, "DEMO_WEIGHTS", tmp_path)
    tiny_file.rename(tmp_path / "evp-tiny.safetensors")
    assert catalog.load("evp-tiny").origin.kind == "demo"
    assert catalog.load("evp-tiny", random_init=True).origin.kind == "random-init"


def test_listing_the_networks_loads_nothing_heavy():
    code = "import sys, fathom.models.catalog as c; assert 'evp' in c.NETWORKS; print({'torch', 'diffusers', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"


def test_config_is_plain_json(network):
    config = network.config_json()
    assert json.loads(json.dumps(config)) == config and config["latent_divisor"] == 5.07543


def test_impossible_configs_and_variants_are_refused():
    with pytest.raises(ValueError, match="window"):
        EVPConfig(nyu_window=500)
    with pytest.raises(ValueError, match="disagree"):
        EVPConfig(decoder=TINY.decoder)
    with pytest.raises(ValueError, match="no variant"):
        variant_of(TINY, "refcoco")


@pytest.mark.slow
def test_full_size_folded_stages_equal_the_unfolded_network():
    network = random_evp("nyu", OFFICIAL, seed=0)
    picture = network.example_inputs(1)
    truth = network.boundaries(picture) | picture
    assert truth["depth"].isfinite().all() and truth["depth"].std() > 0.1
    for stage in network.stages():
        for name, tensor in run(stage, truth).items():
            assert relative(tensor, truth[name]) < 1e-5
