"""What the papers' tables take out of a network: each switch against the formula that is left, and what learns where only a part does."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import fathom
from fathom.datasets.source import open_source
from fathom.models.blip2.depthblip2 import V1, V2, of_variant
from fathom.models.catalog import load, with_settings
from fathom.models.diffusion import evp
from fathom.models.training.learners.losses import moa_parts
from fathom.models.training.train_command import main
from fathom.runtime.artefact.spec import check_chain
from fathom.runtime.errors import UsageError

SHARED = Path(os.environ.get("FATHOM_SHARED") or Path(fathom.__file__).parent.parent / "shared")
EVP = [{"imafr": 0, "pooled": 1}, {"metric_bins": 0}, {"std": 0, "metric_bins": 0, "pooled": 1, "scenes": 1}, {"captions": 1, "pooled": 1}]


def _through_stages(network, inputs):
    values = dict(inputs)
    for stage in network.stages():
        made = stage.module(*(values[tensor.name] for tensor in stage.spec.inputs))
        values |= zip((tensor.name for tensor in stage.spec.outputs), made if isinstance(made, tuple) else (made,), strict=True)
    check_chain(tuple(stage.spec for stage in network.stages()))
    return values


@pytest.mark.parametrize("settings", EVP, ids=lambda settings: " ".join(f"{name}={value}" for name, value in settings.items()))
def test_evp_without_a_part_is_what_the_others_make(settings):
    network = load("evp-tiny", random_init=True, settings=settings, seed=2)
    inputs = network.example_inputs(2, 1)
    with torch.no_grad():
        found, staged = network.boundaries(inputs), _through_stages(network, inputs)
        taps = [found[name] for name in ("f64", "f32", "f16", "f8")]
        if "imafr" in settings:
            assert network.refinement is None and not any(name.startswith("refinement") for name in network.state_dict())
            torch.testing.assert_close(found["conv_feats"], network.aggregation(*taps)[..., :5, :5])
        if "metric_bins" in settings:
            assert network.bins is None
            torch.testing.assert_close(found["depth"], 10 / (1 + torch.exp(-found["raw"])))
        if "pooled" in settings:
            assert [tap.shape[1] for tap in taps] == [32, 64, 64, 64]  # no attention map beside the features
        if "std" in settings:
            torch.testing.assert_close(found["latent"], network.vae(inputs["image"]))
    torch.testing.assert_close(staged["depth"], found["depth"], atol=2e-3, rtol=1e-3)
    assert found["depth"].std() > 0.05
    assert {name: network.config_json()[name] for name in settings} == settings


def test_a_pooled_caption_is_clips_vector_at_its_end():
    """transformers' own pooling, of a caption without the padding behind it."""
    network = load("evp-tiny", random_init=True, settings={"captions": 1, "pooled": 1})
    ids = network.example_inputs(1, 1)["ids"]
    short = ids[:, : int((ids[0] == ids.max()).nonzero()[0]) + 1]
    with torch.no_grad():
        vector = network.text.clip(input_ids=short).pooler_output
        wanted = vector + network.text.gamma * network.text.text_adapter(vector)
        torch.testing.assert_close(network.text(ids), wanted[:, None], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(network.stages()[0].module(ids), wanted[:, None], atol=1e-5, rtol=1e-5)


def test_a_room_of_many_is_that_room_alone():
    network = load("evp-tiny", random_init=True, settings={"pooled": 1, "scenes": 1})
    alone = load("evp-tiny", random_init=True, settings={"pooled": 1})
    kept = {name: tensor for name, tensor in network.state_dict().items() if name != "text.class_embeddings"}
    alone.load_state_dict(kept | {"text.class_embeddings": network.text.class_embeddings[4][None, None]})
    image = network.example_inputs(1)["image"]
    with torch.no_grad():
        depths = [network.boundaries({"image": image, "scene": torch.tensor([[row]])})["depth"] for row in (4, 9)]
        torch.testing.assert_close(depths[0], alone.boundaries({"image": image})["depth"])
    assert (depths[0] - depths[1]).abs().mean() > 1e-3


def test_switches_that_do_not_go_together_are_refused():
    for wrong in ({"scenes": 1}, {"scenes": 1, "pooled": 1, "captions": 1}, {"imafr": 2}, {"std": 3}):
        with pytest.raises(UsageError, match="cannot be set so"):
            with_settings("evp", evp.OFFICIAL, wrong)


def test_full_size_widths_are_vpds_where_no_maps_are_collected():
    config = with_settings("evp", evp.OFFICIAL, {"pooled": 1})
    assert config.tap_channels == (320, 640, 1280, 1280) and evp.OFFICIAL.tap_channels == (320, 680, 1320, 1280)
    with torch.device("meta"):
        network = evp.EVP(config, "nyu")  # IMAFR's groups divide these widths too
    assert network.text.class_embeddings.shape == (1, 1, 768)


def test_referring_without_imafr_is_vpds(published_files, tmp_path):
    settings = {"imafr": 0, "std": 0}
    network = load("evp-refer-tiny", random_init=True, settings=settings)
    inputs = network.example_inputs(1)
    with torch.no_grad():
        found, staged = network.boundaries(inputs), _through_stages(network, inputs)
        torch.testing.assert_close(found["latent"], network.vae(inputs["image"]))
        torch.testing.assert_close(found["logits"], network.classifier(*(found[name] for name in ("f64", "f32", "f16", "f8"))))
    torch.testing.assert_close(staged["logits"], found["logits"], atol=1e-4, rtol=1e-3)
    file = published_files.finished(tmp_path / "vpd.safetensors", "evp-refer-tiny", random_init=True, settings=settings)
    again = load("evp-refer-tiny", file, settings=settings).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in network.state_dict().items())
    with pytest.raises(Exception, match="VPD-REFER checkpoint"):
        load("evp-refer-tiny", file)


def test_moa_without_experts_is_clips_own_blocks_and_without_regression_its_bins():
    network = load("moa-depthclip-tiny", random_init=True, settings={"experts": 0, "regression": 0, "bins": 10})
    inputs = network.example_inputs(2, 1)
    seen = []
    hooks = [block.register_forward_hook(lambda _, __, tokens: seen.append(tokens)) for block in network.visual.transformer.resblocks]
    with torch.no_grad():
        found = network.boundaries(inputs)
        for hook in hooks:
            hook.remove()
        staged = _through_stages(network, inputs)
        mean = (sum(seen[:4]) / 4)[:, 1:].transpose(1, 2).reshape(found["feat"].shape)
        logits, regressed = network.heads(found["feat"])
    torch.testing.assert_close(found["feat"], mean)
    centers = (torch.arange(10) + 0.5) / 10 * (10 - 1e-3) + 1e-3
    torch.testing.assert_close(found["depth"][:, 0], torch.einsum("bkhw,k->bhw", logits.softmax(1), centers))
    torch.testing.assert_close(staged["depth"], found["depth"], atol=1e-4, rtol=1e-4)
    assert regressed is None and not any(name.startswith(("adapters.", "regression.")) for name in network.state_dict())
    truth, edges = torch.full((2, 1, 12, 12), 3.0), network.config.bin_edges_m().float()
    only = moa_parts(logits, None, edges, truth, truth > 0)
    assert list(only) == ["cross_entropy"] and only["cross_entropy"] == moa_parts(logits, truth, edges, truth, truth > 0)["cross_entropy"]


def test_distance_words_are_those_of_table_2():
    prompts = [with_settings("depthblip2", V1, {"wording": number}).prompts for number in range(4)]
    words = [[prompt.removeprefix("this object is ") for prompt in some] for some in prompts]
    assert words[1] == ["extremely close", "close", "middle", "a little far", "far", "quite far", "unseen"]
    if (SHARED / "seeds").is_dir():
        texts = [path.read_text() for path in (SHARED / "seeds").glob("*.txt")]
        text = next(text for text in texts if "Ablations of different semantic distance" in text)
        listed = re.findall(r"(?:Original class|Class \d)\t\[([^\]]+)\]", text)
        assert [line.split(", ") for line in listed] == words
    assert of_variant(with_settings("depthblip2", V1, {"wording": 2}), "v2").classes == tuple(words[2]) and V2.wording == 0
    usual, other = (load("depthblip2-tiny", random_init=True, settings={"wording": number}) for number in (0, 3))
    with torch.no_grad():
        q = [network.boundaries(network.example_inputs(1))["q"] for network in (usual, other)]
    assert torch.equal(q[0][:, 0], q[1][:, 0]) and not torch.allclose(q[0][:, 1], q[1][:, 1])  # giant in both; then other words
    with pytest.raises(UsageError, match="wording 4"):
        load("depthblip2-tiny", random_init=True, settings={"wording": 4})


def _trained(tmp_path, model, *words):
    out = tmp_path / "after.safetensors"
    assert main(["--model", model, "--data", "rooms:2:1:48x64", "--steps", "2", "--batch", "2", "-o", str(out), "--quiet", "--force", *words]) == 0
    return load_file(out)


def test_only_the_q_former_learns(published_files, tmp_path):
    before = load_file(published_files.finished(tmp_path / "before.safetensors", "depthblip2-tiny"))
    after = _trained(tmp_path, "depthblip2-tiny", "--weights", str(tmp_path / "before.safetensors"), "--learn", "qformer")
    moved = {name.split(".")[0] for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert moved == {"qformer"}
    assert main(["--model", "evp-tiny", "--learn", "qformer", "--data", "rooms:1", "-o", str(tmp_path / "x.safetensors")]) == 2


@pytest.mark.parametrize("learn", [(), ("--learn", "clip")])
def test_clip_is_frozen_unless_it_is_to_learn(published_files, tmp_path, learn):
    settings = {"captions": 1, "pooled": 1}
    file = published_files.finished(tmp_path / "before.safetensors", "evp-tiny", random_init=True, settings=settings)
    (tmp_path / "captions.json").write_text(json.dumps({sample.id: "a chair in a room" for sample in open_source("rooms:2:1:48x64")}))
    words = ["--set", "captions=1", "--set", "pooled=1", "--captions", str(tmp_path / "captions.json"), "--weights", str(file)]
    before, after = load_file(file), _trained(tmp_path, "evp-tiny", *words, *learn)
    clip = "encoder.clip_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
    assert torch.equal(before[clip], after[clip]) == (not learn)
    assert not torch.equal(before["encoder.text_adapter.fc.0.weight"], after["encoder.text_adapter.fc.0.weight"])
    assert np.isfinite([float(tensor.double().sum()) for tensor in after.values()]).all()
