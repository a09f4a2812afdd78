"""CLIP files in every published form, the towers against transformers, and what happens without open_clip."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from fathom.models.clip.clip_checkpoint import OPENAI_SHA256, assemble_clip, clip_origin, read_clip
from fathom.models.clip.clip_text import prompt_features, token_ids
from fathom.models.clip.clip_towers import RN50, VIT_B_32, build_clip, build_image_tower, image_tower_tensors, open_clip
from fathom.models.clip.open_clip_modules import PACKAGE
from fathom.models.random_init import draw_weights
from fathom.runtime.errors import EnvironmentMismatchError, InputError

SMALL_RESNET = replace(RN50, embed_dim=128, image_size=64, vision_layers=(1, 2, 1, 1), vision_width=8, text_width=32, text_heads=2, text_layers=2)
SMALL_VIT = replace(VIT_B_32, embed_dim=24, image_size=64, vision_layers=2, vision_width=64, text_width=32, text_heads=2, text_layers=2, head_width=32)


@pytest.fixture(scope="module", params=[SMALL_RESNET, SMALL_VIT], ids=["resnet", "vit"])
def small(request):
    return request.param, draw_weights(build_clip(request.param), seed=3)


def test_the_published_sizes():
    """302 tensors and 151,277,313 parameters of ViT-B/32, 102,007,137 of RN50: what OpenAI's files hold."""
    vit, resnet = build_clip(VIT_B_32, "meta"), build_clip(RN50, "meta")
    assert len(vit.state_dict()) == 302
    assert sum(p.numel() for p in vit.parameters()) == 151_277_313
    assert sum(p.numel() for p in vit.visual.parameters()) == 87_849_216
    assert sum(p.numel() for p in resnet.parameters()) == 102_007_137
    shapes = {name: tuple(tensor.shape) for name, tensor in (vit.state_dict() | {f"rn.{n}": t for n, t in resnet.state_dict().items()}).items()}
    assert shapes["visual.positional_embedding"] == (50, 768) and shapes["visual.proj"] == (768, 512)
    assert shapes["visual.transformer.resblocks.11.attn.in_proj_weight"] == (2304, 768)
    assert shapes["rn.visual.attnpool.positional_embedding"] == (50, 2048) and shapes["rn.visual.attnpool.c_proj.weight"] == (1024, 2048)
    assert shapes["rn.transformer.resblocks.0.attn.in_proj_weight"] == (1536, 512) and shapes["rn.text_projection"] == (512, 1024)


def test_the_image_tower_is_the_part_before_the_shared_space():
    for config, dropped in ((RN50, "visual.attnpool"), (VIT_B_32, "visual.ln_post visual.proj")):
        whole, tower = build_clip(config, "meta"), build_image_tower(config, "meta")
        assert {n: t.shape for n, t in image_tower_tensors(whole).items()} == {n: t.shape for n, t in tower.state_dict().items()}
        left = {f"visual.{n}" for n in whole.visual.state_dict()} - {f"visual.{n}" for n in tower.state_dict()}
        assert left and all(name.startswith(tuple(dropped.split())) for name in left)


@pytest.mark.parametrize("form", ["archive.pt", "bare.pt", "wrapped.pth", "file.safetensors"])
def test_every_form_gives_the_same_towers(published_files, small, tmp_path, form):
    config, clip = small
    path, state = tmp_path / form, clip.state_dict()
    if form == "archive.pt":
        published_files.save_archive(state, path)
    elif form == "bare.pt":
        torch.save(state, path)
    elif form == "wrapped.pth":
        torch.save({"epoch": 3, "name": "x", "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, path)
    else:
        save_file(state, path)
    loaded = assemble_clip(read_clip(path), config)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    for name, tensor in loaded.state_dict().items():
        truth = state[name].half().float() if form == "archive.pt" and state[name].is_floating_point() else state[name]
        assert tensor.dtype == truth.dtype and torch.equal(tensor, truth), name
    image, text = torch.randn(2, 3, config.image_size, config.image_size), token_ids(("a cat", "this object is far"))
    tolerance = 2e-2 if form == "archive.pt" else 0
    for mine, truth in zip(loaded(image, text), clip(image, text), strict=True):
        torch.testing.assert_close(mine, truth, atol=tolerance, rtol=0)


def test_what_does_not_fit_is_refused_by_name(published_files, small, tmp_path):
    config, clip = small
    state = clip.state_dict()
    cases = {
        "missing": {name: tensor for name, tensor in state.items() if name != "ln_final.bias"},
        "unexpected": {**state, "visual.extra.weight": torch.zeros(2)},
        "misshapen": {**state, "logit_scale": torch.zeros(2)},
        "not finite": {**state, "text_projection": state["text_projection"] * float("nan")},
    }
    names = {"missing": "ln_final.bias", "unexpected": "visual.extra.weight", "misshapen": "logit_scale", "not finite": "text_projection"}
    for case, wrong in cases.items():
        path = tmp_path / "wrong.pt"
        published_files.save_archive(wrong, path)
        with pytest.raises(InputError, match=f"{case}.*{names[case]}"):
            assemble_clip(read_clip(path), config)


def test_the_other_clip_is_refused(published_files, tmp_path):
    published_files.save_archive(build_clip(SMALL_VIT).state_dict(), tmp_path / "vit.pt")
    with pytest.raises(InputError, match="missing"):
        assemble_clip(read_clip(tmp_path / "vit.pt"), SMALL_RESNET)
    with pytest.raises(InputError, match="no file"):
        read_clip(tmp_path / "absent.pt")


def test_the_origin_knows_openais_files_by_their_hash(published_files, small, tmp_path, monkeypatch):
    config, clip = small
    published_files.save_archive(clip.state_dict(), tmp_path / "RN50.pt")
    checkpoint = read_clip(tmp_path / "RN50.pt")
    stranger = clip_origin(checkpoint, config)
    assert stranger.kind == "published" and stranger.file == "RN50.pt" and stranger.licence == "unknown" and stranger.warnings
    monkeypatch.setitem(OPENAI_SHA256, config.name, checkpoint.sha256)
    assert clip_origin(checkpoint, config).licence == "MIT" and not clip_origin(checkpoint, config).warnings


def test_byte_pairs_are_the_published_ones():
    assert token_ids(("This object is giant",))[0, :7].tolist() == [49406, 589, 14115, 533, 4687, 49407, 0]


@pytest.mark.parametrize("prompts", [(), ("",), ("far " * 76,)])
def test_prompts_that_clip_would_cut_or_not_see_are_refused(prompts):
    with pytest.raises(ValueError, match="prompt"):
        token_ids(prompts)


def transformers_text(config, clip):
    """The text tower under transformers' names."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    sizes = {"hidden_size": config.text_width, "intermediate_size": 4 * config.text_width, "projection_dim": config.embed_dim}
    layers = {"num_hidden_layers": config.text_layers, "num_attention_heads": config.text_heads, "hidden_act": "quick_gelu"}
    model = CLIPTextModelWithProjection(CLIPTextConfig(**sizes, **layers, vocab_size=config.vocab_size, eos_token_id=49407)).eval()
    theirs, ours = {}, clip.state_dict()
    prefix = "text_model."
    theirs[prefix + "embeddings.token_embedding.weight"] = ours["token_embedding.weight"]
    theirs[prefix + "embeddings.position_embedding.weight"] = ours["positional_embedding"]
    for kind in ("weight", "bias"):
        theirs[f"{prefix}final_layer_norm.{kind}"] = ours[f"ln_final.{kind}"]
        for layer in range(config.text_layers):
            block, there = f"transformer.resblocks.{layer}.", f"{prefix}encoder.layers.{layer}."
            for part, values in zip("qkv", ours[f"{block}attn.in_proj_{kind}"].chunk(3), strict=True):
                theirs[f"{there}self_attn.{part}_proj.{kind}"] = values
            pairs = {"attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
            theirs |= {f"{there}{name}.{kind}": ours[f"{block}{own}.{kind}"] for own, name in pairs.items()}
    theirs["text_projection.weight"] = ours["text_projection"].t()
    model.load_state_dict(theirs)
    return model


def test_prompt_features_are_those_of_transformers(small, tmp_path):
    config, clip = small
    save_file(clip.state_dict(), tmp_path / "clip.safetensors")
    loaded = assemble_clip(read_clip(tmp_path / "clip.safetensors"), config)  # its causal mask is not in the file
    prompts = ("This object is giant", "This object is not in distance", "a photo of a kitchen")
    with torch.no_grad():
        truth = transformers_text(config, clip)(input_ids=token_ids(prompts)).text_embeds
    features = prompt_features(loaded, prompts)
    torch.testing.assert_close(features, truth / truth.norm(dim=-1, keepdim=True), atol=2e-6, rtol=0)
    assert not features.requires_grad


def test_without_open_clip_the_error_names_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(EnvironmentMismatchError, match=r"fathom-depth\[clip\]") as refusal:
        build_image_tower(RN50, "meta")
    assert refusal.value.exit_code == 6


WITHOUT_TORCHVISION = """
import sys
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torchvision", "timm"):
            raise RuntimeError("operator torchvision::nms does not exist")
sys.meta_path.insert(0, Broken())
from fathom.models.clip.clip_text import token_ids
from fathom.models.clip.clip_towers import RN50, VIT_B_32, build_clip, build_image_tower
print(len(build_clip(VIT_B_32, "meta").state_dict()), len(build_image_tower(RN50, "meta").layer3), token_ids(("giant",))[0, 1].item())
print(sorted({"torchvision", "timm", "transformers", "open_clip"} & {name.partition(".")[0] for name in sys.modules}))
"""


def test_the_towers_need_no_torchvision():
    """Neither one that is missing nor one that is made for another torch matters; OpenAI's ViT-B/32 holds 302 tensors, RN50's third stage 6 blocks."""
    words = subprocess.run([sys.executable, "-c", WITHOUT_TORCHVISION], check=True, capture_output=True, text=True).stdout.split("\n")
    assert words[:2] == ["302 6 4687", "[]"]


def test_our_copy_of_the_modules_leaves_open_clip_and_torchvision_alone():
    open_clip()
    assert "torchvision" not in sys.modules or hasattr(sys.modules["torchvision"], "__version__")
    theirs = pytest.importorskip("open_clip")
    assert set(theirs.CLIP(512, theirs.CLIPVisionCfg(layers=1), theirs.CLIPTextCfg(layers=1)).state_dict()) == set(
        open_clip().model.CLIP(512, open_clip().model.CLIPVisionCfg(layers=1), open_clip().model.CLIPTextCfg(layers=1)).state_dict()
    )
