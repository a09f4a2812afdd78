"""Names of the Stable Diffusion 1.5 backbone: this package's (diffusers) to those of the published depth checkpoints (CompVis "ldm").

Rules, not a list; ``tests/data/keys`` holds the published lists they are checked against.
"""

from __future__ import annotations

import re

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0", "conv2": "out_layers.3"}
RESNET["conv_shortcut"] = "skip_connection"
UNET_HEADS = {"conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
BLOCKS_PER_LEVEL = 3  # a level is two (down) or three (up) blocks; downwards the third is the downsampler

_UNET = re.compile(r"(down|mid|up)_blocks?\.(?:(\d)\.)?(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.+)")
_VAE = re.compile(r"encoder\.(down|mid)_blocks?\.(?:(\d)\.)?(resnets|attentions|downsamplers)\.(\d)\.(.+)")
_LEAF = re.compile(r"(.+)\.(weight|bias)")


def unet_ldm_key(key: str) -> str:
    """The ldm name of a diffusers U-Net key, below ``diffusion_model.``.

    Raises:
        ValueError: if no rule fits.
    """
    leaf = _LEAF.fullmatch(key)
    if leaf and leaf[1] in UNET_HEADS:
        return f"{UNET_HEADS[leaf[1]]}.{leaf[2]}"
    found = _UNET.fullmatch(key)
    if not found:
        raise ValueError(f"no rule gives the published name of {key!r}")
    side, level, kind, place, rest = found[1], int(found[2] or 0), found[3], int(found[4]), found[5]
    if kind == "downsamplers":
        return f"input_blocks.{BLOCKS_PER_LEVEL * (level + 1)}.0.{rest.replace('conv', 'op')}"
    if kind == "upsamplers":  # the lowest level has no attention, so its upsampler is one place earlier
        return f"output_blocks.{BLOCKS_PER_LEVEL * level + 2}.{1 if level == 0 else 2}.{rest}"
    if side == "mid":
        block = f"middle_block.{2 * place if kind == 'resnets' else 1}"
    else:
        number = BLOCKS_PER_LEVEL * level + place + (side == "down")
        block = f"{'input' if side == 'down' else 'output'}_blocks.{number}.{0 if kind == 'resnets' else 1}"
    return f"{block}.{_resnet_ldm_key(rest) if kind == 'resnets' else rest}"


def _resnet_ldm_key(rest: str) -> str:
    part, leaf = rest.rsplit(".", 1)
    return f"{RESNET[part]}.{leaf}"


def vae_ldm_key(key: str) -> str:
    """The ldm name of a diffusers VAE-encoder key (``encoder.…`` or ``quant_conv.…``), below ``first_stage_model.``.

    Raises:
        ValueError: if no rule fits.
    """
    if re.fullmatch(r"(quant_conv|encoder\.conv_in|encoder\.conv_out)\.(weight|bias)", key):
        return key
    if key.startswith("encoder.conv_norm_out."):
        return key.replace("conv_norm_out", "norm_out")
    found = _VAE.fullmatch(key)
    if not found:
        raise ValueError(f"no rule gives the published name of {key!r}")
    side, level, kind, place, rest = found[1], found[2], found[3], int(found[4]), found[5]
    if kind == "downsamplers":
        return f"encoder.down.{level}.downsample.{rest}"
    if kind == "attentions":
        part, leaf = rest.rsplit(".", 1)
        return f"encoder.mid.attn_1.{VAE_ATTENTION[part]}.{leaf}"
    rest = rest.replace("conv_shortcut", "nin_shortcut")
    return f"encoder.mid.block_{place + 1}.{rest}" if side == "mid" else f"encoder.down.{level}.block.{place}.{rest}"


def vae_ldm_shape(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The published shape of a diffusers VAE-encoder tensor: ldm writes the mid attention's four matrices as 1x1 convolutions."""
    return (*shape, 1, 1) if re.fullmatch(r"encoder\.mid_block\.attentions\.0\.to_(q|k|v|out\.0)\.weight", key) else shape
