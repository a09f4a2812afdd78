"""EVP and VPD as they begin: the VAE encoder and the U-Net of Stable Diffusion 1.5, its CLIP for the text, all other parts new.

The file is ``v1-5-pruned-emaonly`` (``.ckpt`` or ``.safetensors``): 1,131 tensors in CompVis' layout (686 U-Net, 248 VAE, 197 CLIP), in a
``.ckpt`` also the tables of the noise schedule. Facts: the key lists of the published files.
"""

from __future__ import annotations

import re

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from ....runtime.errors import InputError
from ...checkpoint import Checkpoint, Key, KeyTable, complain, fill
from ...clip.clip_tokenizer import VOCABULARY, published_tokenizer
from ...diffusion.evp import EVP
from ...diffusion.evp_refer import TINY_TOKENIZER
from ...diffusion.stable_diffusion_keys import unet_ldm_key, vae_ldm_key, vae_ldm_shape
from ...diffusion.vpd import SCENES, VPD
from ...network import WeightsOrigin
from ...position_buffers import restore_position_buffers

LICENCE = "CreativeML OpenRAIL-M (Stable Diffusion 1.5)"
UNET, VAE, CLIP = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.text_model."
SPARE = re.compile(  # the VAE's decoder, the U-Net's output head, the noise schedule, a second U-Net in files that are not emaonly
    r"first_stage_model\.(decoder|post_quant_conv|loss)\..+|model\.diffusion_model\.out\.[02]\.(weight|bias)|model_ema\..+"
    r"|(betas|alphas_cumprod|alphas_cumprod_prev|sqrt_.+|log_one_minus_.+|posterior_.+|logvar|lvlb_weights|scale_factor)"
    r"|cond_stage_model\.transformer\.text_model\.embeddings\.position_ids|cond_stage_model\.(logit_scale|text_projection)"
)
HEAD_WIDTH = 64  # of every CLIP text tower
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
    tower = clip_tower(checkpoint, network.config.backbone.context_width)
    torch.manual_seed(seed)
    for name, module in network.named_children():
        if name not in ("vae", "unet"):
            _new(module)
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
            network.text.class_embeddings.copy_(scene_states(tower, network.config.tokens).mean(dim=0, keepdim=True))
        else:
            network.text.class_embeddings.copy_(scene_vectors(tower))
    network.origin = WeightsOrigin("published", checkpoint.file, checkpoint.sha256, LICENCE, (PLAIN_TEXT,))
    network.requires_grad_(False).eval()


def _new(module: nn.Module) -> None:
    """PyTorch's own starting values; parameters and buffers that belong to no such layer are left to the caller."""
    module.to_empty(device="cpu")
    with torch.no_grad():
        for part in module.modules():
            if hasattr(part, "reset_parameters"):
                part.reset_parameters()


def clip_tower(checkpoint: Checkpoint, width: int) -> CLIPTextModel:
    """The text tower of the file, whose sizes its own tensors say.

    Raises:
        InputError: if a tensor is missing, unexpected, misshapen or not finite.
    """
    tensors = {name.removeprefix(CLIP): tensor for name, tensor in checkpoint.tensors.items() if name.startswith(CLIP) and not SPARE.fullmatch(name)}
    sizes = ("embeddings.token_embedding.weight", "embeddings.position_embedding.weight", "encoder.layers.0.mlp.fc1.weight")
    complain(f"{checkpoint.file} does not fit CLIP's text tower", "missing", [CLIP + name for name in sizes if name not in tensors])
    (vocabulary, wide), (positions, _), (mlp, _) = (tensors[name].shape for name in sizes)
    if wide != width:
        raise InputError(f"{checkpoint.file} has words of {wide} numbers", wanted=f"{width}", fix="give the file of Stable Diffusion 1.5")
    layers = 1 + max(int(found[1]) for name in tensors if (found := re.match(r"encoder\.layers\.(\d+)\.", name)))
    with torch.device("meta"):
        tower = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=vocabulary,
                hidden_size=width,
                intermediate_size=mlp,
                num_hidden_layers=layers,
                num_attention_heads=max(1, width // HEAD_WIDTH),
                max_position_embeddings=positions,
                hidden_act="quick_gelu",
                bos_token_id=vocabulary - 2,
                eos_token_id=vocabulary - 1,
            )
        )
    table = {name.removeprefix("text_model."): Key(name, tuple(tensor.shape)) for name, tensor in tower.state_dict().items()}
    fill(tower, Checkpoint(checkpoint.file, checkpoint.nbytes, checkpoint.sha256, tensors), KeyTable(table), "CLIP's text tower")
    restore_position_buffers(tower)
    return tower


def _encoded(tower: CLIPTextModel, length: int) -> tuple[Tensor, Tensor]:
    """Hidden states [scenes, length, width] of a sentence per scene, and each one's last real place [scenes]."""
    size = tower.config.vocab_size
    tokenizer = Tokenizer.from_str((published_tokenizer(None) if size == VOCABULARY else TINY_TOKENIZER).decode())
    rows = np.full((len(SCENES), length), size - 1)
    ends = []
    for row, scene in enumerate(SCENES):
        ids = tokenizer.encode(TEMPLATE.format(scene.replace("_", " "))).ids[: length - 1]
        ids = [*ids, size - 1] if ids[-1] != size - 1 else ids
        rows[row, : len(ids)] = ids
        ends.append(len(ids) - 1)
    with torch.no_grad():
        return tower(input_ids=torch.from_numpy(rows)).last_hidden_state, torch.tensor(ends)


def scene_states(tower: CLIPTextModel, tokens: int) -> Tensor:
    """What CLIP says of a photo of each scene: hidden states behind the last norm [scenes, tokens, width]."""
    return _encoded(tower, tokens)[0]


def scene_vectors(tower: CLIPTextModel) -> Tensor:
    """The same at each sentence's end token [scenes, width], without a projection."""
    states, ends = _encoded(tower, tower.config.max_position_embeddings)
    return states[torch.arange(len(states)), ends]
