"""A plain Vision Transformer (ViT-B/16 by default) under timm's tensor names, optionally with adapters on q and v."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from ..attention import attend
from ..lora import LoraQkv


@dataclass(frozen=True)
class VitConfig:
    """Sizes of a Vision Transformer.

    Args:
        image, patch: pixels per side.
        width, blocks, heads, mlp: of the transformer.
        lora_rank: rank of the adapters on q and v; 0 for none.
        lora_scale: factor of the adapters.
    """

    image: int = 224
    patch: int = 16
    width: int = 768
    blocks: int = 12
    heads: int = 12
    mlp: int = 3072
    lora_rank: int = 0
    lora_scale: float = 2.0

    def __post_init__(self):
        sizes = (self.image, self.patch, self.width, self.blocks, self.heads, self.mlp)
        if min(sizes) < 1 or self.lora_rank < 0 or self.width % self.heads or self.image % self.patch:
            raise ValueError("positive sizes were wanted, heads that divide the width, and patches that divide the image")

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return (self.image // self.patch) ** 2


class VitAttention(nn.Module):
    """Joint ``qkv``, attention, ``proj``."""

    def __init__(self, config: VitConfig):
        super().__init__()
        self.heads = config.heads
        self.qkv = LoraQkv(config.width, config.lora_rank, config.lora_scale) if config.lora_rank else nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(attend(*self.qkv(x).chunk(3, dim=2), self.heads))


class VitMlp(nn.Module):
    """Two layers with an exact GELU between them."""

    def __init__(self, config: VitConfig):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(config.width, config.mlp), nn.Linear(config.mlp, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(gelu(self.fc1(x)))


class VitBlock(nn.Module):
    """Pre-norm attention and MLP, each added to what came in."""

    def __init__(self, config: VitConfig):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(config.width, eps=1e-6), VitAttention(config)
        self.norm2, self.mlp = nn.LayerNorm(config.width, eps=1e-6), VitMlp(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """Non-overlapping patches to tokens."""

    def __init__(self, config: VitConfig):
        super().__init__()
        self.proj = nn.Conv2d(3, config.width, config.patch, stride=config.patch)

    def forward(self, image: Tensor) -> Tensor:
        return self.proj(image).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """image [B, 3, S, S] -> tokens [B, 1 + patches, width] after the final norm, class token first; no classifier."""

    def __init__(self, config: VitConfig):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.patches, config.width))
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.Sequential(*(VitBlock(config) for _ in range(config.blocks)))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)

    def forward(self, image: Tensor) -> Tensor:
        patches = self.patch_embed(image)
        x = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1) + self.pos_embed
        return self.norm(self.blocks(x))
