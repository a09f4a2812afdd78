"""The Stable Diffusion 1.5 backbone of EVP and VPD: VAE encoder, and a U-Net that gives four taps and cross-attention maps.

Built from diffusers' blocks under diffusers' names. The U-Net's output head does not exist: the depth networks end at the taps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.autoencoders.vae import Encoder
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from ...runtime.artefact.spec import TensorSpec

TIMESTEP = 1  # what the published code passes; the VPD paper says 0
LATENT_CHANNELS = 4
LATENT_SCALE = 8  # pixels per latent pixel
TAP_NAMES = ("f64", "f32", "f16", "f8")  # named after their sizes on a 512 canvas; the names stay on other canvases
MAP_LEVELS = (1, 2)  # taps that attention maps are appended to (f32 and f16): the layers of at most (canvas / 16)^2 positions, mid excluded


@dataclass(frozen=True)
class BackboneConfig:
    """Widths of the backbone.

    Args:
        unet_channels: of the four levels, finest first.
        unet_groups: GroupNorm groups of the U-Net.
        heads: attention heads on every level.
        context_width: of a text token.
        vae_channels: of the VAE encoder's four levels, finest first.
        vae_groups: GroupNorm groups of the VAE encoder.
    """

    unet_channels: tuple[int, int, int, int] = (320, 640, 1280, 1280)
    unet_groups: int = 32
    heads: int = 8
    context_width: int = 768
    vae_channels: tuple[int, int, int, int] = (128, 256, 512, 512)
    vae_groups: int = 32

    def __post_init__(self):
        for channels, groups in ((self.unet_channels, self.unet_groups), (self.vae_channels, self.vae_groups)):
            if len(channels) != 4 or any(c % groups for c in channels):
                raise ValueError(f"four widths divisible by {groups} groups were wanted, got {channels}")
        if any(c % self.heads for c in self.unet_channels):
            raise ValueError(f"the widths {self.unet_channels} do not divide into {self.heads} heads")


TINY_BACKBONE = BackboneConfig((32, 64, 64, 64), 8, 2, 64, (8, 16, 32, 64), 4)  # of every small network, so that one can start from another


def square_map(name: str, channels: int, side: int) -> TensorSpec:
    """The spec of a square feature map [batch, channels, side, side]."""
    return TensorSpec(name, "float32", ("batch", channels, side, side))


def backbone_maps(canvas: int, tap_channels: tuple[int, int, int, int]) -> tuple[TensorSpec, TensorSpec, tuple[TensorSpec, ...]]:
    """The specs of image, latent and taps on a square canvas of that many pixels."""
    side = canvas // LATENT_SCALE
    taps = tuple(square_map(name, channels, side >> level) for level, (name, channels) in enumerate(zip(TAP_NAMES, tap_channels, strict=True)))
    return square_map("image", 3, canvas), square_map("latent", LATENT_CHANNELS, side), taps


class VAEEncoder(nn.Module):
    """Image [B, 3, H, W] in [-1, 1] to the mean of the latent [B, 4, H/8, W/8], unscaled. The decoder half does not exist."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.encoder = Encoder(
            3,
            LATENT_CHANNELS,
            down_block_types=("DownEncoderBlock2D",) * 4,
            block_out_channels=config.vae_channels,
            layers_per_block=2,
            norm_num_groups=config.vae_groups,
            double_z=True,
        )
        self.quant_conv = nn.Conv2d(2 * LATENT_CHANNELS, 2 * LATENT_CHANNELS, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(image))[:, :LATENT_CHANNELS]


class CollectingProcessor:
    """Cross-attention with explicit probabilities, whose mean over the heads is kept in ``map`` [B, h*w, T]."""

    map: Tensor | None = None

    def __call__(self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: None = None, temb: None = None) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # [B, heads, h*w or T, d]
            for part in (attn.to_q(hidden_states), attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states))
        )
        probabilities = (query @ key.transpose(-1, -2) * attn.scale).softmax(dim=-1)  # [B, heads, h*w, T]
        self.map = probabilities.mean(dim=1)
        return attn.to_out[0]((probabilities @ value).transpose(1, 2).flatten(2))

    def take(self) -> Tensor:
        """The map of the last call, once."""
        found, self.map = self.map, None
        return found


class TapUNet(nn.Module):
    """Latent [B, 4, h, w] and context [B, T, width] to the taps f64 [B, c0, h, w], f32 [h/2], f16 [h/4], f8 [h/8], finest first.

    With ``collect_maps`` the ten cross-attentions of the second and third level are explicit, and the mean of each level's five
    maps, [B, T, h, w], follows the channels of f32 and f16. The timestep is always ``TIMESTEP``.
    """

    def __init__(self, config: BackboneConfig, collect_maps: bool):
        super().__init__()
        net = UNet2DConditionModel(
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            block_out_channels=config.unet_channels,
            layers_per_block=2,
            norm_num_groups=config.unet_groups,
            cross_attention_dim=config.context_width,
            attention_head_dim=config.heads,  # diffusers' old misnomer: for this class it is the number of heads
        )
        self.time_proj, self.time_embedding, self.conv_in = net.time_proj, net.time_embedding, net.conv_in
        self.down_blocks, self.mid_block, self.up_blocks = net.down_blocks, net.mid_block, net.up_blocks
        self.collect_maps = collect_maps
        for name, module in self.named_modules():
            if isinstance(module, Attention):
                collects = collect_maps and name.endswith("attn2") and map_level(name) is not None
                module.set_processor(CollectingProcessor() if collects else AttnProcessor2_0())

    def time_vector(self) -> Tensor:
        """The embedding of the constant timestep, [1, 4 * c0]."""
        weight = self.conv_in.weight
        return self.time_embedding(self.time_proj(torch.tensor([TIMESTEP], device=weight.device)).to(weight.dtype))

    def forward(self, latent: Tensor, context: Tensor) -> list[Tensor]:
        time = self.time_vector().expand(latent.shape[0], -1)
        context = context.expand(latent.shape[0], -1, -1)
        maps: dict[int, list[Tensor]] = {level: [] for level in MAP_LEVELS}

        def attend(module: nn.Module, x: Tensor, level: int | None) -> Tensor:
            result = module(x, encoder_hidden_states=context, return_dict=False)[0]
            if self.collect_maps and level is not None:
                maps[level].append(module.transformer_blocks[0].attn2.processor.take())
            return result

        taps = walk(self, latent, lambda module, x: module(x, time), attend)
        return append_maps(taps, maps) if self.collect_maps else taps


def map_level(name: str) -> int | None:
    """The tap (1 = f32, 2 = f16) whose resolution the attention under this module path has, or None where no map is collected."""
    side, level = (name.split(".") + [""])[:2]
    if side == "down_blocks":
        tap = int(level)
    elif side == "up_blocks":
        tap = 3 - int(level)
    else:
        return None  # the middle block's maps are never collected
    return tap if tap in MAP_LEVELS else None


def walk(
    unet: nn.Module,
    latent: Tensor,
    resnet: Callable[[nn.Module, Tensor], Tensor],
    attention: Callable[[nn.Module, Tensor, int | None], Tensor],
) -> list[Tensor]:
    """Run the blocks of a U-Net in order and return the taps, finest first; ``resnet`` and ``attention`` call one block.

    The taps lie behind the second of three blocks of each lower level, before its upsampler, and behind the very last block
    (ldm ``output_blocks`` 1, 4, 7 and 11).
    """
    x = unet.conv_in(latent)
    skips = [x]
    for level, block in enumerate(unet.down_blocks):
        attentions = getattr(block, "attentions", None)
        for place, module in enumerate(block.resnets):
            x = resnet(module, x)
            if attentions is not None:
                x = attention(attentions[place], x, map_level(f"down_blocks.{level}"))
            skips.append(x)
        if block.downsamplers is not None:
            x = block.downsamplers[0](x)
            skips.append(x)
    x = resnet(unet.mid_block.resnets[0], x)
    x = attention(unet.mid_block.attentions[0], x, None)
    x = resnet(unet.mid_block.resnets[1], x)
    taps = []
    last = len(unet.up_blocks) - 1
    for level, block in enumerate(unet.up_blocks):
        attentions = getattr(block, "attentions", None)
        for place, module in enumerate(block.resnets):
            x = resnet(module, torch.cat([x, skips.pop()], dim=1))
            if attentions is not None:
                x = attention(attentions[place], x, map_level(f"up_blocks.{level}"))
            if place == (2 if level == last else 1):
                taps.append(x)
        if block.upsamplers is not None:
            x = block.upsamplers[0](x)
    return taps[::-1]


def append_maps(taps: list[Tensor], maps: dict[int, list[Tensor]]) -> list[Tensor]:
    """The mean of each level's maps, [B, h*w, T] each, as T further channels behind those of its tap."""
    taps = list(taps)
    for level, found in maps.items():
        mean = (reduce(torch.add, found) / len(found)).transpose(1, 2)  # [B, T, h*w]
        taps[level] = torch.cat([taps[level], mean.unflatten(2, taps[level].shape[-2:])], dim=1)
    return taps
