"""EVP and VPD as they begin: the VAE encoder and the U-Net of Stable Diffusion 1.5, its CLIP for the text, all other parts new.

The file is ``v1-5-pruned-emaonly`` (``.ckpt`` or ``.safetensors``): 1,131 tensors in CompVis' layout (686 U-Net, 248 VAE, 197 CLIP), in a
``.ckpt`` also the tables of the noise schedule. Facts: the key lists of the published files.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel

from ...checkpoint import Checkpoint, Key, KeyTable, fill
from ...diffusion.evp import EVP
from ...diffusion.stable_diffusion_keys import unet_ldm_key, vae_ldm_key, vae_ldm_shape
from ...diffusion.text_tower import clip_tower, mean_states, states_of
from ...diffusion.vpd import SCENES, VPD
from ...network import WeightsOrigin
from .new_layers import reset

LICENCE = "CreativeML OpenRAIL-M (Stable Diffusion 1.5)"
UNET, VAE, CLIP = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.text_model."
SPARE = re.compile(  # the VAE's decoder, the U-Net's output head, the noise schedule, a second U-Net in files that are not emaonly
    r"first_stage_model\.(decoder|post_quant_conv|loss)\..+|model\.diffusion_model\.out\.[02]\.(weight|bias)|model_ema\..+"
    r"|(betas|alphas_cumprod|alphas_cumprod_prev|sqrt_.+|log_one_minus_.+|posterior_.+|logvar|lvlb_weights|scale_factor)"
    r"|cond_stage_model\.transformer\.text_model\.embeddings\.position_ids|cond_stage_model\.(logit_scale|text_projection)"
)
TEMPLATE = "a photo of a {}."
DECODER_SPREAD = 1e-3  # normal spread of the decoder's first weights in the published code
PLAIN_TEXT = "The text is the mean of CLIP's words for 'a photo of a <scene>.'; the published runs used captions of a captioner or 80 templates."


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


def start_from_stable_diffusion(network: EVP | VPD, checkpoint: Checkpoint, seed: int) -> None:
    """Fill a network made on the meta device: backbone and text from the file, decoder and heads new, drawn by ``seed``.

    Raises:
        InputError: if a tensor is missing, unexpected, misshapen or not finite.
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
            transform = network.bins.conditional_log_binomial.log_binomial_transform
            count = transform.k_idx.numel()
            transform.k_idx.copy_(torch.arange(count).view(1, -1, 1, 1))
            transform.K_minus_1.fill_(count - 1)
            network.text.class_embeddings.copy_(mean_states(tower, SENTENCES, network.config.tokens))
        else:
            network.text.class_embeddings.copy_(scene_vectors(tower))
    network.origin = WeightsOrigin("published", checkpoint.file, checkpoint.sha256, LICENCE, (PLAIN_TEXT,))
    network.requires_grad_(False).eval()


SENTENCES = tuple(TEMPLATE.format(scene.replace("_", " ")) for scene in SCENES)


def scene_vectors(tower: CLIPTextModel) -> Tensor:
    """CLIP's text features of a sentence about each scene: the hidden state at its end token [scenes, width], without a projection."""
    found = [states[torch.arange(len(states)), ends] for states, ends in states_of(tower, SENTENCES, tower.config.max_position_embeddings)]
    return torch.cat(found)
