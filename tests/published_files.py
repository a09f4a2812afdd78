"""Files of random weights in the form in which the authors, or those they started from, published theirs; of the small networks' sizes."""

import warnings
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BertConfig, BertModel, CLIPTextConfig, CLIPTextModel

from fathom.models.blip2 import depthblip2
from fathom.models.blip2.blip2_vision import VisionConfig
from fathom.models.blip2.qformer import QFormerConfig
from fathom.models.catalog import load
from fathom.models.clip import depthclip, moa_depthclip
from fathom.models.clip.clip_towers import build_clip
from fathom.models.diffusion import evp, evp_refer
from fathom.models.diffusion.evp import random_evp
from fathom.models.llm_mde import llm_mde
from fathom.models.random_init import draw_weights
from fathom.models.training.learners.learners import published_tensors
from fathom.models.training.starts.llm_mde import vit_keys
from fathom.models.training.starts.stable_diffusion import stable_diffusion_keys

CLIP = "cond_stage_model.transformer.text_model."


def stable_diffusion(folder: Path):
    """Stable Diffusion 1.5 with all that the published file holds beside the backbone, as ``v1-5-pruned-emaonly.safetensors`` and ``.ckpt``.

    Its text tower has the sizes that the small EVP reads captions with. Returns the tensors, the tower, and the backbone by our names.
    """
    network = random_evp("nyu", evp.TINY, seed=3)
    backbone = torch.nn.ModuleDict({"vae": network.vae, "unet": network.unet})
    own = backbone.state_dict()
    tensors = {name: own[key.own].reshape(key.shape).clone() for name, key in stable_diffusion_keys(backbone).items()}
    sizes = evp_refer.TINY
    clip = CLIPTextConfig(
        vocab_size=sizes.vocabulary, hidden_size=64, intermediate_size=sizes.clip_mlp, num_hidden_layers=sizes.clip_layers, num_attention_heads=1,
        max_position_embeddings=77, hidden_act="quick_gelu", bos_token_id=sizes.vocabulary - 2, eos_token_id=sizes.vocabulary - 1,
    )  # fmt: skip
    tower = draw_weights(CLIPTextModel(clip), 2).eval()
    tensors |= {CLIP + name.removeprefix("text_model."): tensor.clone() for name, tensor in tower.state_dict().items()}
    tensors[CLIP + "embeddings.position_ids"] = torch.arange(77)[None]
    spare = ("first_stage_model.decoder.conv_in.weight", "first_stage_model.post_quant_conv.bias", "model.diffusion_model.out.2.bias")
    tensors |= {name: torch.zeros(3) for name in spare}
    save_file(tensors, folder / "v1-5-pruned-emaonly.safetensors")
    schedule = {name: torch.zeros(5) for name in ("betas", "alphas_cumprod", "sqrt_one_minus_alphas_cumprod", "posterior_variance")}
    torch.save({"state_dict": tensors | schedule, "global_step": 840000}, folder / "v1-5-pruned-emaonly.ckpt")
    return tensors, tower, own


def vit_and_bert(folder: Path, config: llm_mde.LlmMdeConfig, hub: bool):
    """timm's ViT and BERT, ``vit.safetensors`` and ``bert.safetensors``; ``hub``: BERT by the names that the hub's file has."""
    network = draw_weights(llm_mde.LlmMde(config, "paper"), 5)
    vit = {name: network.vit.state_dict()[key.own].clone() for name, key in vit_keys(network.vit).items()}
    sizes = {"hidden_size": config.width, "num_attention_heads": config.llm_heads, "intermediate_size": config.llm_mlp}
    bert = BertModel(BertConfig(vocab_size=config.vocabulary, num_hidden_layers=config.llm_layers, max_position_embeddings=config.positions, **sizes))
    state = {name: tensor.clone() for name, tensor in draw_weights(bert, 6).state_dict().items()}
    if hub:
        state = {f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t for name, t in state.items()}
        state |= {"cls.predictions.bias": torch.zeros(3), "cls.seq_relationship.weight": torch.zeros(2, 3)}
    save_file(vit | {"head.weight": torch.zeros(5, config.vit.width), "head.bias": torch.zeros(5)}, folder / "vit.safetensors")
    save_file(state, folder / "bert.safetensors")
    return vit, bert


SCALARS = {"input_resolution": 64, "context_length": 77, "vocab_size": 49408}


class Branch(nn.Module):
    """A module with nothing but children and tensors, so that any tree of names can be archived."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def tree_of(state: dict[str, Tensor]) -> nn.Module:
    root = Branch()
    for name, tensor in state.items():
        *path, leaf = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, Branch())
            module = module._modules[part]
        if tensor.is_floating_point():
            module.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
        else:
            module.register_buffer(leaf, tensor)
    return root


def save_archive(state: dict[str, Tensor], path) -> None:
    """As OpenAI publishes CLIP: half precision, three sizes beside the weights."""
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    half |= {name: torch.tensor(value) for name, value in SCALARS.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(tree_of(half)), str(path))


def lavis_qformer(config: QFormerConfig, rng):
    """A Q-Former file as LAVIS publishes it, random, with what the network does without."""
    width, mlp = config.width, config.mlp
    state = {"query_tokens": (1, config.queries, width), "temp": ()}
    bert = "Qformer.bert."
    state |= {bert + "embeddings.word_embeddings.weight": (config.vocabulary, width), bert + "embeddings.position_embeddings.weight": (config.positions, width)}
    state |= {
        bert + "embeddings.LayerNorm.weight": (width,),
        bert + "embeddings.LayerNorm.bias": (width,),
        bert + "embeddings.position_ids": (1, config.positions),
    }
    for index in range(config.layers):
        layer = f"{bert}encoder.layer.{index}."
        for kind, source in (("attention", width), ("crossattention", config.image_width)) if index % 2 == 0 else (("attention", width),):
            for part in ("query", "key", "value"):
                state[f"{layer}{kind}.self.{part}.weight"] = (width, width if part == "query" else source)
                state[f"{layer}{kind}.self.{part}.bias"] = (width,)
            state |= {f"{layer}{kind}.output.dense.weight": (width, width), f"{layer}{kind}.output.dense.bias": (width,)}
            state |= {f"{layer}{kind}.output.LayerNorm.{name}": (width,) for name in ("weight", "bias")}
        for end in ("", "_query"):
            state |= {f"{layer}intermediate{end}.dense.weight": (mlp, width), f"{layer}intermediate{end}.dense.bias": (mlp,)}
            state |= {f"{layer}output{end}.dense.weight": (width, mlp), f"{layer}output{end}.dense.bias": (width,)}
            state |= {f"{layer}output{end}.LayerNorm.{name}": (width,) for name in ("weight", "bias")}
    state |= {"ln_vision.weight": (config.image_width,), "ln_vision.bias": (config.image_width,)}
    state |= {"vision_proj.weight": (8, width), "vision_proj.bias": (8,), "text_proj.weight": (8, width), "text_proj.bias": (8,), "itm_head.weight": (2, width)}
    state |= {"itm_head.bias": (2,), "Qformer.cls.predictions.bias": (config.vocabulary,)}
    return {name: torch.tensor(rng.normal(size=shape) * (shape[-1] ** -0.5 if len(shape) > 1 else 0.2), dtype=torch.float32) for name, shape in state.items()}


def lavis_vision(config: VisionConfig, rng):
    width, mlp, kernel = config.width, config.mlp, (config.width, 3, config.patch, config.patch)
    if config.kind == "clip":
        state = {"conv1.weight": kernel, "class_embedding": (width,), "positional_embedding": (config.tokens, width)}
        state |= {"ln_pre.weight": (width,), "ln_pre.bias": (width,)}
        for index in (*range(config.blocks), 23):  # a 24th block may be there and is not used
            block = f"transformer.resblocks.{index}."
            state |= {block + "attn.in_proj_weight": (3 * width, width), block + "attn.in_proj_bias": (3 * width,)}
            state |= {block + "attn.out_proj.weight": (width, width), block + "attn.out_proj.bias": (width,)}
            state |= {block + f"ln_{n}.{name}": (width,) for n in (1, 2) for name in ("weight", "bias")}
            state |= {block + "mlp.c_fc.weight": (mlp, width), block + "mlp.c_fc.bias": (mlp,)}
            state |= {block + "mlp.c_proj.weight": (width, mlp), block + "mlp.c_proj.bias": (width,)}
    else:
        state = {"cls_token": (1, 1, width), "pos_embed": (1, config.tokens, width), "patch_embed.proj.weight": kernel, "patch_embed.proj.bias": (width,)}
        for index in range(config.blocks):
            block = f"blocks.{index}."
            state |= {block + "attn.qkv.weight": (3 * width, width), block + "attn.q_bias": (width,), block + "attn.v_bias": (width,)}
            state |= {block + "attn.proj.weight": (width, width), block + "attn.proj.bias": (width,)}
            state |= {block + f"norm{n}.{name}": (width,) for n in (1, 2) for name in ("weight", "bias")}
            state |= {
                block + "mlp.fc1.weight": (mlp, width),
                block + "mlp.fc1.bias": (mlp,),
                block + "mlp.fc2.weight": (width, mlp),
                block + "mlp.fc2.bias": (width,),
            }
    return {
        name: torch.tensor(rng.normal(size=shape) * (np.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.2), dtype=torch.float32)
        for name, shape in state.items()
    }


def finished(path: Path, name: str, **options) -> Path:
    """A small network's demo weights, or random ones of other settings, by the published names."""
    save_file(dict(published_tensors(load(name, **options))), path)
    return path


def start_of(folder: Path, network: str, start: str, settings: dict[str, int]) -> list[str]:
    """The flags of ``depth-bench reproduce`` with the files that a row begins with, small; ``start`` as in ``Row``."""
    folder.mkdir()
    if "Stable Diffusion" in start:
        stable_diffusion(folder)
        return ["--weights", str(folder / "v1-5-pruned-emaonly.safetensors")]
    if network == "llm-mde":
        vit_and_bert(folder, llm_mde.TINY, True)
        return ["--weights", str(folder / "bert.safetensors"), "--visual-weights", str(folder / "vit.safetensors")]
    if network == "depthblip2":
        draw, config = np.random.default_rng(7), depthblip2.TINY
        torch.save({"model": lavis_qformer(config.qformer, draw)}, folder / "q.pth")
        torch.save({name: tensor.half() for name, tensor in lavis_vision(config.vision, draw).items()}, folder / "v.pth")
        return ["--weights", str(folder / "q.pth"), "--visual-weights", str(folder / "v.pth")]
    if network in ("moa-depthclip", "depthclip"):
        config = {"moa-depthclip": moa_depthclip, "depthclip": depthclip}[network].TINY.clip
        save_archive(draw_weights(build_clip(config), 4).state_dict(), folder / "clip.pt")
        return ["--weights", str(folder / "clip.pt")]
    options = {"settings": settings, "random_init": True} if settings else {}
    return ["--weights", str(finished(folder / "model.safetensors", f"{network}-tiny", **options))]
