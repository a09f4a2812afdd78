"""The convolutional decoder of EVP and VPD: from aggregated features to a raw depth map, five octaves finer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .folding import with_batch_norm


@dataclass(frozen=True)
class DecoderConfig:
    """Widths of the decoder.

    Args:
        in_channels: of the aggregated features.
        deconv_channels: of the three transposed convolutions.
        channels: of the last two resolutions.
    """

    in_channels: int = 1536
    deconv_channels: tuple[int, int, int] = (32, 32, 32)
    channels: int = 192


def depth_head(channels: int) -> nn.Sequential:
    """The last two convolutions (``last_layer_depth``): [B, C, H, W] to raw depth [B, 1, H, W]."""
    return nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, 1, 3, padding=1))


def double(x: Tensor) -> Tensor:
    """Twice the resolution, bilinear between pixel centres."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class Decoder(nn.Module):
    """Features [B, in, h, w] to the maps x1 [2h], x2 [4h], x3 [8h] (deconv widths) and x4 [B, C, 16h, 16w].

    The published networks go on with ``out = double(x4)`` [B, C, 32h, 32w] and ``depth_head(out)``. VPD's published weights keep that
    head beside the decoder, EVP's inside; here it is the network's own module in both.
    """

    def __init__(self, config: DecoderConfig):
        super().__init__()
        width = config.in_channels
        layers: list[nn.Module] = []
        for out in config.deconv_channels:
            layers += [nn.ConvTranspose2d(width, out, 2, stride=2, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            width = out
        self.deconv_layers = nn.Sequential(*layers)
        self.conv_layers = nn.Sequential(nn.Conv2d(width, config.channels, 3, padding=1), nn.BatchNorm2d(config.channels), nn.ReLU())

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x1 = self.deconv_layers[:3](features)
        x2 = self.deconv_layers[3:6](x1)
        x3 = self.deconv_layers[6:](x2)
        return x1, x2, x3, double(self.conv_layers(x3))


class FoldedDecoder(nn.Module):
    """``Decoder`` and depth head with every batch norm within its convolution; the doubled x4 never leaves the stage."""

    def __init__(self, decoder: Decoder, head: nn.Module):
        super().__init__()
        layers = decoder.deconv_layers
        self.deconv_layers = nn.ModuleList([with_batch_norm(layers[i], layers[i + 1]) for i in range(0, len(layers), 3)])
        self.conv_layer = with_batch_norm(decoder.conv_layers[0], decoder.conv_layers[1])
        self.depth_head = head
        self.folded = {"batch_norm": len(self.deconv_layers) + 1}

    def forward(self, conv_feats: Tensor) -> tuple[Tensor, ...]:
        levels = [conv_feats]
        for layer in self.deconv_layers:
            levels.append(torch.relu(layer(levels[-1])))
        levels.append(double(torch.relu(self.conv_layer(levels[-1]))))
        return (*levels[1:], self.depth_head(double(levels[-1])))
