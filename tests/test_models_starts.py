"""Training from the files that the authors began with: names, shapes, values, refusals, and a loss that falls."""

import csv
import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from fathom.models.diffusion import evp, evp_refer, vpd
from fathom.models.diffusion.evp_refer import TINY_TOKENIZER
from fathom.models.llm_mde import llm_mde
from fathom.models.training import loop
from fathom.models.training.loop import read_log
from fathom.models.training.recipes import recipes
from fathom.models.training.recipes.papers import LIGHT
from fathom.models.training.recipes.recipes import RECIPES
from fathom.models.training.session import Session
from fathom.models.training.starts.llm_mde import bert_keys, vit_keys
from fathom.models.training.starts.stable_diffusion import stable_diffusion_keys
from fathom.models.training.starts.starts import started_network
from fathom.models.training.train_command import build_parser, main
from fathom.runtime.errors import InputError, UsageError

TINY_END = evp_refer.TINY.vocabulary - 1
KEYS = Path(__file__).parent / "data" / "keys"


def _listed(name):
    with (KEYS / name).open() as file:
        return {row[0]: tuple(int(n) for n in row[2].strip("()").split(",") if n.strip()) for row in csv.reader(file, delimiter="\t")}


def _backbone(config, kind):
    with torch.device("meta"):
        network = kind(config)
    return torch.nn.ModuleDict({"vae": network.vae, "unet": network.unet})


@pytest.fixture(scope="module")
def diffusion_file(published_files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd")
    return folder, *published_files.stable_diffusion(folder)


@pytest.mark.parametrize("kind", ["evp", "vpd"])
def test_the_table_is_the_published_list(kind):
    """Every U-Net and VAE-encoder tensor of the published file, by name and shape, but for the U-Net's output head."""
    build = (lambda config: evp.EVP(config, "nyu")) if kind == "evp" else (lambda config: vpd.VPD(config, "kitchen"))
    table = stable_diffusion_keys(_backbone(evp.OFFICIAL if kind == "evp" else vpd.OFFICIAL, build))
    unet, vae = _listed("ldm_to_diffusers_unet.tsv"), _listed("ldm_to_diffusers_vae_encoder.tsv")
    wanted = {f"model.diffusion_model.{name}": shape for name, shape in unet.items() if not name.startswith("out.")}
    wanted |= {"first_stage_model." + name: shape for name, shape in vae.items()}
    wanted |= {"first_stage_model.quant_conv.weight": (8, 8, 1, 1), "first_stage_model.quant_conv.bias": (8,)}
    assert table.keys() == wanted.keys()
    assert not [name for name, key in table.items() if int(np.prod(key.shape)) != int(np.prod(wanted[name]))]


@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
def test_evp_takes_backbone_and_text_from_stable_diffusion(diffusion_file, ending):
    folder, _, _, own = diffusion_file
    network = started_network("evp-tiny", folder / f"v1-5-pruned-emaonly.{ending}", False, 0, "kitti", None, None)
    state = network.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in own.items()) and network.variant == "kitti"
    assert network.text.class_embeddings.shape == (1, 40, 64) and bool((network.text.gamma == 1e-4).all())
    assert bool(torch.cat([tensor.flatten().double() for tensor in state.values()]).isfinite().all())
    assert 5e-4 < float(network.decoder.deconv_layers[0].weight.std()) < 2e-3
    assert network.origin.file.endswith(ending)
    depth = network(*network.example_inputs().values())
    assert bool(depth.isfinite().all())


def _vector(tower, sentence, length):
    """transformers' own pooled output, of a sentence cut to ``length`` tokens."""
    ids = Tokenizer.from_str(TINY_TOKENIZER.decode()).encode(sentence).ids
    end = ids[-1]
    with torch.no_grad():
        return tower(input_ids=torch.tensor([[*ids[: length - 1], end] if len(ids) > length else ids])).last_hidden_state[0, -1]


def test_vpd_gets_the_mean_of_80_sentences_about_each_scene(diffusion_file):
    """CLIP's last hidden state where each sentence ends, by transformers and open_clip's own list."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    folder, _, tower, _ = diffusion_file
    network = started_network("vpd-tiny", folder / "v1-5-pruned-emaonly.safetensors", False, 0, None, "kitchen", None)
    assert network.text.class_embeddings.shape == (27, 64) and len(OPENAI_IMAGENET_TEMPLATES) == 80
    wanted = torch.stack([_vector(tower, template("living room"), 20) for template in OPENAI_IMAGENET_TEMPLATES]).mean(dim=0)
    torch.testing.assert_close(network.text.class_embeddings[2], wanted, atol=1e-5, rtol=1e-5)
    rooms = started_network("evp-tiny", folder / "v1-5-pruned-emaonly.safetensors", False, 0, None, None, None, {"pooled": 1, "scenes": 1})
    torch.testing.assert_close(rooms.text.class_embeddings, network.text.class_embeddings)
    one = started_network("evp-tiny", folder / "v1-5-pruned-emaonly.safetensors", False, 0, None, None, None, {"pooled": 1})
    torch.testing.assert_close(one.text.class_embeddings[0, 0], network.text.class_embeddings.mean(dim=0), atol=1e-5, rtol=1e-5)


def test_evp_gets_captions_as_one_text_as_one_vector_and_as_a_text_tower(diffusion_file, tmp_path):
    folder, _, tower, _ = diffusion_file
    file, captions = folder / "v1-5-pruned-emaonly.safetensors", ("a red chair", "the lamp on the left of the table")
    (tmp_path / "captions.json").write_text(json.dumps(dict(enumerate(captions))))
    texts = str(tmp_path / "captions.json")
    whole = started_network("evp-tiny", file, False, 0, None, None, None, None, texts)
    ids = [Tokenizer.from_str(TINY_TOKENIZER.decode()).encode(caption).ids for caption in captions]
    with torch.no_grad():
        states = [tower(input_ids=torch.tensor([[*row, *[TINY_END] * (40 - len(row))]])).last_hidden_state for row in ids]
    torch.testing.assert_close(whole.text.class_embeddings, sum(states) / 2, atol=1e-5, rtol=1e-5)
    assert whole.origin.warnings == ()
    one = started_network("evp-tiny", file, False, 0, None, None, None, {"pooled": 1, "imafr": 0}, texts)
    torch.testing.assert_close(one.text.class_embeddings[0, 0], (_vector(tower, captions[0], 40) + _vector(tower, captions[1], 40)) / 2, atol=1e-5, rtol=1e-5)
    live = started_network("evp-tiny", file, False, 0, None, None, None, {"captions": 1})
    ours = live.text.clip.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in tower.state_dict().items())
    with pytest.raises(UsageError, match="--texts"):
        started_network("evp-tiny", file, False, 0, None, None, None, {"captions": 1}, texts)
    with pytest.raises(UsageError, match="takes no --texts"):
        started_network("moa-depthclip-tiny", None, True, 0, None, None, None, None, texts)


@pytest.mark.parametrize("damage", ["missing", "unexpected", "misshapen", "not finite"])
def test_damaged_diffusion_files_are_refused_by_name(diffusion_file, tmp_path, damage):
    tensors = dict(diffusion_file[1])
    name = "model.diffusion_model.middle_block.1.norm.weight"
    if damage == "missing":
        del tensors[name]
    elif damage == "unexpected":
        tensors[name := "model.diffusion_model.middle_block.9.norm.weight"] = torch.zeros(2)
    else:
        tensors[name] = torch.zeros(3) if damage == "misshapen" else torch.full_like(tensors[name], float("nan"))
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=rf"(?s){damage}.*{name}"):
        started_network("evp-tiny", tmp_path / "x.safetensors", False, 0, None, None, None)


def test_export_still_wants_weights_that_learned_depth(diffusion_file):
    with pytest.raises(InputError, match="plain Stable Diffusion"):
        evp.load_evp(diffusion_file[0] / "v1-5-pruned-emaonly.safetensors", config=evp.TINY)


@pytest.mark.parametrize("hub", [True, False])
@pytest.mark.parametrize("variant", ["official", "paper"])
def test_llm_mde_begins_as_timm_and_bert(published_files, tmp_path, variant, hub):
    """Both transformers are what their files say: the adapters change nothing yet, and can learn."""
    config = llm_mde.of_variant(llm_mde.TINY, variant)
    vit, bert = published_files.vit_and_bert(tmp_path, config, hub)
    network = started_network("llm-mde-tiny", tmp_path / "bert.safetensors", False, 0, variant, None, str(tmp_path / "vit.safetensors"))
    qkv = network.vit.blocks[0].attn.qkv
    x, ids = torch.randn(2, config.vit.width, generator=torch.Generator().manual_seed(0)), torch.arange(5)[None]
    wanted = x @ vit["blocks.0.attn.qkv.weight"].T + vit["blocks.0.attn.qkv.bias"]
    torch.testing.assert_close(qkv(x), wanted, atol=1e-5, rtol=1e-5)
    assert float(qkv.linear_a_q.weight.abs().max()) > 0
    with torch.no_grad():
        torch.testing.assert_close(network.llm(input_ids=ids).last_hidden_state, bert.eval()(input_ids=ids).last_hidden_state, atol=2e-5, rtol=2e-5)
    assert not [name for name, tensor in network.state_dict().items() if not bool(tensor.isfinite().all())]


def test_llm_mde_takes_the_published_names_at_full_size():
    """timm's 150 names without the classifier, and bert-base-uncased's 197 without its pooler and its heads for words."""
    with torch.device("meta"):
        network = llm_mde.LlmMde(llm_mde.PAPER, "paper")
    vit, bert = vit_keys(network.vit), bert_keys(network.llm, {"bert.embeddings.LayerNorm.gamma"})
    parts = [f"{part}.{leaf}" for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2") for leaf in ("weight", "bias")]
    wanted = {"cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight", "norm.bias"}
    assert set(vit) == wanted | {f"blocks.{i}.{part}" for i in range(12) for part in parts} and len(vit) == 150
    assert vit["pos_embed"].shape == (1, 197, 768) and vit["blocks.3.attn.qkv.weight"].shape == (2304, 768)
    layer = [f"{part}.{leaf}" for part in ("attention.self.query", "attention.self.key", "attention.self.value") for leaf in ("weight", "bias")]
    layer += [f"{part}.dense.{leaf}" for part in ("attention.output", "intermediate", "output") for leaf in ("weight", "bias")]
    layer += [f"{part}.LayerNorm.{leaf}" for part in ("attention.output", "output") for leaf in ("gamma", "beta")]
    wanted = {f"bert.embeddings.{name}_embeddings.weight" for name in ("word", "position", "token_type")}
    wanted |= {"bert.embeddings.LayerNorm.gamma", "bert.embeddings.LayerNorm.beta"} | {f"bert.encoder.layer.{i}.{part}" for i in range(12) for part in layer}
    assert set(bert) == wanted and len(bert) == 197
    assert bert["bert.embeddings.word_embeddings.weight"].shape == (30522, 768)


def test_moa_draws_what_clip_lacks_by_the_seed(published_files, tmp_path):
    flags = published_files.start_of(tmp_path / "start", "moa-depthclip", "", {})
    file = flags[flags.index("--weights") + 1]
    first, again, other = (started_network("moa-depthclip-tiny", file, False, seed, None, None, None).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    same = {name.split(".")[0] for name, tensor in first.items() if torch.equal(tensor, other[name])}
    assert {"visual", "context"} <= same and not torch.equal(first["regression.conv1.weight"], other["regression.conv1.weight"])
    assert not torch.equal(first["adapters.0.experts.0.0.weight"], other["adapters.0.experts.0.0.weight"])


def test_a_run_is_known_by_both_its_files_its_scene_and_how_it_is_stored(published_files, tmp_path):
    """Another of them is another run, which cannot resume this one."""
    flags = published_files.start_of(tmp_path / "start", "llm-mde", "", {})
    words = ["--model", "llm-mde-tiny", "--data", "rooms:1:1:48x64", "--store", "fp16", "-o", "x", *map(str, flags)]
    session = Session.prepare(build_parser().parse_args(words), tmp_path / "x.safetensors", "")
    bert, vit = (sha256(Path(flags[flags.index(flag) + 1]).read_bytes()).hexdigest() for flag in ("--weights", "--visual-weights"))
    facts = session.run.facts
    assert (facts["weights"], facts["visual_weights"], facts["store"], facts["scene"]) == (bert, vit, "fp16", None) and vit[:12] in session.start
    words = ["--model", "vpd-tiny", "--data", "rooms:1:1:48x64", "--scene", "kitchen", "--random-init", "-o", "y"]
    assert Session.prepare(build_parser().parse_args(words), tmp_path / "y.safetensors", "").run.facts["scene"] == "kitchen"


CASES = {  # network and the file it begins with -> flags
    "evp": (),
    "vpd": (),
    "llm-mde": (),
    "moa-depthclip": (),
    "depthblip2": ("--learn", "qformer"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_finite_and_falls(name, published_files, tmp_path, monkeypatch):
    """From the start's file through the command line, on one room, within 24 steps; without the hints of networks that start from nothing."""
    model, diffusion = f"{name}-tiny", name in ("evp", "vpd")
    key = " ".join((model, *CASES[name][1:]))
    phases = ((1.0, 32),) if diffusion else ()
    plain = {"hint": False, "hint_alone": 0.0, "phases": phases, "whole_every": 0, "warmup": 0.0, "augmentation": LIGHT}  # losses that compare
    monkeypatch.setitem(recipes.RECIPES, key, replace(RECIPES[key], **plain))
    start = published_files.start_of(tmp_path / "start", name, "Stable Diffusion" if diffusion else "", {})
    output = tmp_path / "w.safetensors"
    words = ["--model", model, "--data", "rooms:1:1:48x64", "--steps", "24", "--batch", "1", "-o", str(output), "--json", "--quiet"]
    assert main([*words, *start, *CASES[name]]) == 0
    losses = [line["loss"] for line in read_log(loop.log_path(output)) if "loss" in line]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
