"""EVP and VPD as they begin: the VAE encoder and the U-Net of Stable Diffusion 1.5, its CLIP for the text, all other parts new.

The file is ``v1-5-pruned-emaonly`` (``.ckpt`` or ``.safetensors``): 1,131 tensors in CompVis' layout (686 U-Net, 248 VAE, 197 CLIP), in a
``.ckpt`` also the tables of the noise schedule. Facts: the key lists of the published files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel

from ....runtime.errors import InputError, UsageError
from ...checkpoint import Checkpoint, Key, KeyTable, fill
from ...clip.clip_text import image_templates
from ...diffusion.evp import EVP
from ...diffusion.stable_diffusion_keys import unet_ldm_key, vae_ldm_key, vae_ldm_shape
from ...diffusion.text_tower import clip_tower, end_vectors, mean_states, mean_vector
from ...diffusion.vpd import SCENES, VPD
from ...network import WeightsOrigin
from ...position_buffers import restore_position_buffers
from .new_layers import reset

LICENCE = "CreativeML OpenRAIL-M (Stable Diffusion 1.5)"
UNET, VAE, CLIP = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.text_model."
SPARE = re.compile(  # the VAE's decoder, the U-Net's output head, the noise schedule, a second U-Net in files that are not emaonly
    r"first_stage_model\.(decoder|post_quant_conv|loss)\..+|model\.diffusion_model\.out\.[02]\.(weight|bias)|model_ema\..+"
    r"|(betas|alphas_cumprod|alphas_cumprod_prev|sqrt_.+|log_one_minus_.+|posterior_.+|logvar|lvlb_weights|scale_factor)"
    r"|cond_stage_model\.transformer\.text_model\.embeddings\.position_ids|cond_stage_model\.(logit_scale|text_projection)"
)
TEMPLATE = "a photo of a {}."
TEMPLATE_TOKENS = 20  # of the sentences that the templates make, as in VPD's published code
DECODER_SPREAD = 1e-3  # normal spread of the decoder's first weights in the published code
PLAIN_TEXT = "The text is the mean of CLIP's words for 'a photo of a <scene>.'; the published run used a captioner's captions (--texts)."


def stable_diffusion_keys(backbone: nn.Module) -> dict[str, Key]:
    """Published name -> our name and the file's shape, for a module with ``vae`` and ``unet``."""
    table = {}
    for own, tensor in backbone.state_dict().items():
        part, name = own.split(".", 1)
        if part == "vae":
            table[VAE + vae_ldm_key(name)] = Key(own, vae_ldm_shape(name, tuple(tensor.shape)))
        else:
            table[UNET + unet_ldm_key(name)] = Key(own, tuple(tensor.shape))
    return table


def start_from_stable_diffusion(network: EVP | VPD, checkpoint: Checkpoint, seed: int, texts: Sequence[str] | None = None) -> None:
    """Fill a network made on the meta device: backbone and text from the file, decoder and heads new, drawn by ``seed``.

    Args:
        texts: the captions whose mean is EVP's one text, instead of a sentence about each scene.

    Raises:
        InputError: if a tensor is missing, unexpected, misshapen or not finite.
        UsageError: if ``texts`` are given to a network that has no such text.
        EnvironmentMismatchError: if CLIP's vocabulary is not there.
    """
    backbone = nn.ModuleDict({"vae": network.vae, "unet": network.unet})
    table = stable_diffusion_keys(backbone)
    clip = {name: None for name in checkpoint.tensors if name.startswith(CLIP)}
    spare = {name: None for name in checkpoint.tensors if SPARE.fullmatch(name) and name not in table}
    fill(backbone, checkpoint, KeyTable(table, ignored=clip | spare), f"the backbone of {network.name}")
    tower = clip_tower(checkpoint, CLIP, network.config.backbone.context_width)
    torch.manual_seed(seed)
    for name, module in network.named_children():
        if name not in ("vae", "unet"):
            reset(module)
    with torch.no_grad():
        nn.init.constant_(network.text.gamma, 1e-4)
        for module in network.decoder.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.normal_(module.weight, std=DECODER_SPREAD)
        if isinstance(network, EVP):
            _count_bins(network)
        _write_text(network, tower, texts)
    plain = texts is None and isinstance(network, EVP) and network.words is None and not network.config.pooled
    network.origin = WeightsOrigin("published", checkpoint.file, checkpoint.sha256, LICENCE, (PLAIN_TEXT,) if plain else ())
    network.requires_grad_(False).eval()


def _count_bins(network: EVP) -> None:
    """The bins' two constants."""
    if network.bins is not None:
        transform = network.bins.conditional_log_binomial.log_binomial_transform
        count = transform.k_idx.numel()
        transform.k_idx.copy_(torch.arange(count).view(1, -1, 1, 1))
        transform.K_minus_1.fill_(count - 1)


def _write_text(network: EVP | VPD, tower: CLIPTextModel, texts: Sequence[str] | None) -> None:
    """What the file's CLIP says of scenes or captions; where every photo has a caption, that CLIP itself."""
    config = network.config
    captions, scenes = getattr(network, "words", None) is not None, isinstance(network, VPD) or config.scenes
    if texts is not None and (captions or scenes):
        raise UsageError("captions for one text, and this network has one for every photo", fix="leave out --texts")
    if captions:
        own, theirs = network.text.clip.state_dict(), tower.state_dict()
        if wrong := [name for name, tensor in own.items() if name not in theirs or theirs[name].shape != tensor.shape]:
            raise InputError(f"CLIP in the file does not fit {network.name}: {wrong[0]}", wanted="the text tower that the network's captions are read with")
        network.text.clip.load_state_dict({name: theirs[name] for name in own})
        restore_position_buffers(network)
    elif scenes:
        network.text.class_embeddings.copy_(scene_vectors(tower))
    else:
        if config.pooled:
            found = scene_vectors(tower).mean(dim=0)[None, None] if texts is None else mean_vector(tower, texts, config.tokens)
        else:
            found = mean_states(tower, SENTENCES if texts is None else texts, config.tokens)
        network.text.class_embeddings.copy_(found)


SENTENCES = tuple(TEMPLATE.format(scene.replace("_", " ")) for scene in SCENES)


def scene_vectors(tower: CLIPTextModel) -> Tensor:
    """VPD's published text: of each scene the mean over CLIP's vectors of 80 sentences about it, [scenes, width].

    Raises:
        EnvironmentMismatchError: if open_clip is not installed.
    """
    templates = image_templates()
    sentences = [template(scene.replace("_", " ")) for scene in SCENES for template in templates]
    return end_vectors(tower, sentences, TEMPLATE_TOKENS).unflatten(0, (len(SCENES), len(templates))).mean(dim=1)
