"""Folded forms of the backbone for export: what is constant once the text and the timestep are fixed becomes a constant.

Every folded module shares its big tensors with the module it was made from; only biases and small matrices are new. Paths stay those
of diffusers, so that nodes of the exported graph can be traced back.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .stable_diffusion import LATENT_CHANNELS, TapUNet, VAEEncoder, append_maps, map_level, walk


def reweighted(conv: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """A convolution like ``conv`` with another weight and bias; tensors are taken as they are, not copied."""
    transposed = isinstance(conv, nn.ConvTranspose2d)
    out_channels, in_channels = (weight.shape[1], weight.shape[0]) if transposed else weight.shape[:2]
    with torch.device("meta"):
        new = type(conv)(in_channels, out_channels, conv.kernel_size, conv.stride, conv.padding, bias=bias is not None)
    new.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        new.bias = nn.Parameter(bias, requires_grad=False)
    return new


def with_batch_norm(conv: nn.Module, norm: nn.BatchNorm2d) -> nn.Module:
    """A (transposed) convolution and the batch norm behind it, as one convolution."""
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)  # [C]
    axis = 1 if isinstance(conv, nn.ConvTranspose2d) else 0
    shape = [1] * 4
    shape[axis] = -1
    bias = norm.bias + (0 if conv.bias is None else conv.bias * scale) - norm.running_mean * scale
    return reweighted(conv, conv.weight * scale.view(shape), bias)


class FoldedResnet(nn.Module):
    """GroupNorm, SiLU, 3x3, GroupNorm, SiLU, 3x3, and a skip; the time embedding's projection is part of the first bias."""

    def __init__(self, resnet: nn.Module, time: Tensor | None):
        super().__init__()
        self.norm1, self.norm2, self.conv2 = resnet.norm1, resnet.norm2, resnet.conv2
        self.conv1 = resnet.conv1
        if time is not None:  # [1, width]
            self.conv1 = reweighted(resnet.conv1, resnet.conv1.weight, resnet.conv1.bias + resnet.time_emb_proj(F.silu(time))[0])
        self.conv_shortcut = resnet.conv_shortcut if resnet.conv_shortcut is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        return self.conv_shortcut(x) + self.conv2(F.silu(self.norm2(hidden)))


class Downsample(nn.Module):
    """A strided convolution; ``pad`` at the right and bottom only, as the VAE wants it (the U-Net's pads by itself)."""

    def __init__(self, conv: nn.Module, pad: int):
        super().__init__()
        self.conv, self.pad = conv, pad

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, self.pad, 0, self.pad)) if self.pad else x)


class Upsample(nn.Module):
    """Nearest-neighbour doubling and a convolution."""

    def __init__(self, conv: nn.Module):
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class SelfAttention(nn.Module):
    """Tokens [B, N, C] to [B, N, C] by one attention operator that compilers can fuse; its probabilities are no tensor of the graph."""

    def __init__(self, attention: nn.Module):
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.to_out = attention.to_q, attention.to_k, attention.to_v, nn.ModuleList([attention.to_out[0]])
        self.heads = attention.heads

    def split(self, x: Tensor) -> Tensor:
        """[B, N, C] to the heads."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, N, d]

    def join(self, x: Tensor) -> Tensor:
        """[B, heads, N, d] to [B, N, C], through the output projection."""
        return self.to_out[0](x.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (self.split(part(x)) for part in (self.to_q, self.to_k, self.to_v))
        return self.join(F.scaled_dot_product_attention(query, key, value))


class FixedCrossAttention(nn.Module):
    """Cross-attention to a constant context: keys and values [1, heads, T, d] are constants."""

    def __init__(self, attention: nn.Module, context: Tensor):
        super().__init__()
        self.to_q, self.to_out, self.heads = attention.to_q, nn.ModuleList([attention.to_out[0]]), attention.heads
        key, value = (part(context).unflatten(-1, (self.heads, -1)).transpose(1, 2).contiguous() for part in (attention.to_k, attention.to_v))
        self.register_buffer("key", key)
        self.register_buffer("value", value)

    def query(self, x: Tensor) -> Tensor:
        """Queries of tokens [B, N, C]."""
        return self.to_q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, N, d]

    def out(self, x: Tensor) -> Tensor:
        """[B, heads, N, d] to [B, N, C], through the output projection."""
        return self.to_out[0](x.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, context: None = None) -> tuple[Tensor, None]:
        return self.out(F.scaled_dot_product_attention(self.query(x), self.key, self.value)), None


class CollectedCrossAttention(FixedCrossAttention):
    """The same with explicit probabilities, whose mean over the heads [B, N, T] comes back too."""

    def __init__(self, attention: nn.Module, context: Tensor):
        super().__init__(attention, context)
        self.key = (self.key * attention.scale).transpose(-1, -2).contiguous()  # [1, heads, d, T], the softmax scale within

    def forward(self, x: Tensor, context: None = None) -> tuple[Tensor, Tensor]:
        probabilities = torch.softmax(self.query(x) @ self.key, dim=-1)  # [B, heads, N, T]
        return self.out(probabilities @ self.value), probabilities.mean(dim=1)


class LiveCrossAttention(SelfAttention):
    """Cross-attention to a context [B, T, width] that is an input; with ``collected``, its probabilities are explicit and returned as by the class above."""

    def __init__(self, attention: nn.Module, collected: bool):
        super().__init__(attention)
        self.collected, self.scale = collected, attention.scale

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor | None]:
        query, key, value = self.split(self.to_q(x)), self.split(self.to_k(context)), self.split(self.to_v(context))
        if not self.collected:
            return self.join(F.scaled_dot_product_attention(query, key, value)), None
        probabilities = torch.softmax(query @ key.transpose(-1, -2) * self.scale, dim=-1)  # [B, heads, N, T]
        return self.join(probabilities @ value), probabilities.mean(dim=1)


class OneTokenAttention(nn.Module):
    """Cross-attention to a single token: its probability is 1, so the result is one vector [1, 1, C] for every position."""

    def __init__(self, attention: nn.Module, context: Tensor):
        super().__init__()
        self.register_buffer("vector", attention.to_out[0](attention.to_v(context)))

    def forward(self, x: Tensor, context: None = None) -> tuple[Tensor, None]:
        return self.vector, None


class ChosenTokenAttention(nn.Module):
    """The same where one of several tokens is chosen for each picture: a row [B, 1, C] of a table."""

    def __init__(self, attention: nn.Module, contexts: Tensor):
        super().__init__()
        self.register_buffer("vectors", attention.to_out[0](attention.to_v(contexts))[:, 0])  # [choices, C]

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, None]:
        return F.embedding(context, self.vectors), None


class FoldedTokens(nn.Module):
    """The transformer block: self-attention, cross-attention, gated feed-forward, each behind a LayerNorm and with a skip."""

    def __init__(self, block: nn.Module, attn2: nn.Module):
        super().__init__()
        self.norm1, self.attn1 = block.norm1, SelfAttention(block.attn1)
        self.norm2, self.attn2 = nn.Identity() if isinstance(attn2, OneTokenAttention | ChosenTokenAttention) else block.norm2, attn2
        self.norm3, self.ff = block.norm3, block.ff

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        x = x + self.attn1(self.norm1(x))
        seen, probabilities = self.attn2(self.norm2(x), context)
        x = x + seen
        return x + self.ff(self.norm3(x)), probabilities


class FoldedTransformer(nn.Module):
    """GroupNorm and 1x1 convolution around the transformer block on a map [B, C, h, w]."""

    def __init__(self, transformer: nn.Module, attn2: nn.Module):
        super().__init__()
        self.norm, self.proj_in, self.proj_out = transformer.norm, transformer.proj_in, transformer.proj_out
        self.transformer_blocks = nn.ModuleList([FoldedTokens(transformer.transformer_blocks[0], attn2)])

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        tokens = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)  # [B, h*w, C]
        tokens, probabilities = self.transformer_blocks[0](tokens, context)
        return x + self.proj_out(tokens.transpose(1, 2).unflatten(2, x.shape[-2:])), probabilities


class FoldedBlock(nn.Module):
    """Holds the modules of one level under diffusers' names."""

    def __init__(self, resnets: list, attentions: list, down: nn.Module | None = None, up: nn.Module | None = None):
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions) if attentions else None
        self.downsamplers = nn.ModuleList([down]) if down is not None else None
        self.upsamplers = nn.ModuleList([up]) if up is not None else None


class FoldedUNet(nn.Module):
    """A ``TapUNet`` with its timestep and its context fixed: latent [B, 4, h, w] to the four taps.

    Args:
        unet: the U-Net.
        context: [1, T, width]; [choices, 1, width] where one is chosen for each picture, then ``forward`` takes its number, int64 [B, 1];
            None where the text comes with each picture, then ``forward`` takes that.
    """

    def __init__(self, unet: TapUNet, context: Tensor | None):
        super().__init__()
        self.folded = {**({} if context is None else {"text_adapter": 1}), "time_embedding": 1, "resnet_time_projection": 0}
        self.collect_maps = unet.collect_maps
        time = unet.time_vector()
        self.conv_in = unet.conv_in
        self.down_blocks = nn.ModuleList([self._block(block, f"down_blocks.{i}", time, context) for i, block in enumerate(unet.down_blocks)])
        self.mid_block = self._block(unet.mid_block, "mid_block", time, context)
        self.up_blocks = nn.ModuleList([self._block(block, f"up_blocks.{i}", time, context) for i, block in enumerate(unet.up_blocks)])

    def _block(self, block: nn.Module, path: str, time: Tensor, context: Tensor | None) -> FoldedBlock:
        resnets = [FoldedResnet(resnet, time) for resnet in block.resnets]
        self._count("resnet_time_projection", len(resnets))
        attentions = [FoldedTransformer(t, self._cross_attention(t.transformer_blocks[0].attn2, path, context)) for t in getattr(block, "attentions", [])]
        down, up = getattr(block, "downsamplers", None), getattr(block, "upsamplers", None)
        return FoldedBlock(resnets, attentions, Downsample(down[0].conv, 0) if down else None, Upsample(up[0].conv) if up else None)

    def _cross_attention(self, attention: nn.Module, path: str, context: Tensor | None) -> nn.Module:
        collected = self.collect_maps and map_level(path) is not None
        if context is None:
            return LiveCrossAttention(attention, collected)
        if context.shape[1] == 1 and not self.collect_maps:
            self._count("cross_attention_vector", context.shape[0])
            if context.shape[0] > 1:
                return ChosenTokenAttention(attention, context)
            return OneTokenAttention(attention, context)
        self._count("cross_attention_kv_pair")
        return (CollectedCrossAttention if collected else FixedCrossAttention)(attention, context)

    def _count(self, what: str, number: int = 1) -> None:
        self.folded[what] = self.folded.get(what, 0) + number

    def forward(self, latent: Tensor, context: Tensor | None = None) -> tuple[Tensor, ...]:
        maps: dict[int, list[Tensor]] = {}

        def attend(module: nn.Module, x: Tensor, level: int | None) -> Tensor:
            x, probabilities = module(x, context)
            if probabilities is not None:
                maps.setdefault(level, []).append(probabilities)
            return x

        return tuple(append_maps(walk(self, latent, lambda module, x: module(x), attend), maps))


class FoldedVAE(nn.Module):
    """A ``VAEEncoder`` whose last convolution gives the scaled mean only: image [B, 3, H, W] to latent [B, 4, H/8, W/8].

    Args:
        divisor: what the network divides the mean by (1: nothing to fold).
    """

    def __init__(self, vae: VAEEncoder, divisor: float):
        super().__init__()
        encoder = vae.encoder
        self.folded = {"log_variance_row": LATENT_CHANNELS, **({"latent_divisor": 1} if divisor != 1 else {})}
        self.conv_in, self.conv_norm_out, self.conv_out = encoder.conv_in, encoder.conv_norm_out, encoder.conv_out
        self.down_blocks = nn.ModuleList(
            [
                FoldedBlock([FoldedResnet(r, None) for r in block.resnets], [], Downsample(block.downsamplers[0].conv, 1) if block.downsamplers else None)
                for block in encoder.down_blocks
            ]
        )
        self.mid_block = FoldedBlock([FoldedResnet(r, None) for r in encoder.mid_block.resnets], [FoldedMapAttention(encoder.mid_block.attentions[0])])
        weight, bias = vae.quant_conv.weight[:LATENT_CHANNELS], vae.quant_conv.bias[:LATENT_CHANNELS]
        self.quant_conv = reweighted(vae.quant_conv, weight / divisor, bias / divisor)

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv_in(image)
        for block in self.down_blocks:
            for resnet in block.resnets:
                x = resnet(x)
            if block.downsamplers is not None:
                x = block.downsamplers[0](x)
        x = self.mid_block.resnets[0](x)
        x = self.mid_block.attentions[0](x)
        x = self.mid_block.resnets[1](x)
        return self.quant_conv(self.conv_out(F.silu(self.conv_norm_out(x))))


class FoldedMapAttention(SelfAttention):
    """The VAE's single-head attention over the positions of a map [B, C, h, w], with GroupNorm and skip."""

    def __init__(self, attention: nn.Module):
        super().__init__(attention)
        self.group_norm = attention.group_norm

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)  # [B, h*w, C]
        return x + super().forward(tokens).transpose(1, 2).unflatten(2, x.shape[-2:])
