"""EVP's Inverse Multi-Attentive Feature Refinement (IMAFR), and the aggregation of four feature maps that VPD shares.

Source: EVP, arXiv 2312.08548, section 3.1, and the published code where it differs: the paper's Conv is 1x1, the code's first two
are 3x3 and the second strided, with one GroupNorm applied after both; the paper gives the finest map a spatial gate only, the code
also a 3x3 convolution. The module names are those of the published weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

REDUCTION = 8  # of the channel gate's bottleneck


def spatial_gate(channels: int) -> nn.Sequential:
    """[B, C, h, w] to one factor per position [B, 1, h, w] in (0, 1)."""
    return nn.Sequential(nn.Conv2d(channels, 1, 1), nn.Sigmoid())


class GatedConv(nn.Module):
    """The finest map: spatial gate, 3x3 convolution, GroupNorm, ReLU. [B, C, h, w] to the same shape."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.spatial_attention = spatial_gate(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.group_norm = nn.GroupNorm(groups, channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.group_norm(self.conv1(x * self.spatial_attention(x))))


class GatedDown(nn.Module):
    """Spatial gate, channel gate, and two 3x3 convolutions, the second strided. [B, C, h, w] to [B, C/2, h/2, w/2]."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        half, narrow = channels // 2, channels // REDUCTION
        self.spatial_attention = spatial_gate(channels)
        self.channel_attention = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, narrow, 1), nn.ReLU(), nn.Conv2d(narrow, channels, 1), nn.Sigmoid())
        self.conv1 = nn.Conv2d(channels, half, 3, padding=1)
        self.conv2 = nn.Conv2d(half, half, 3, stride=2, padding=1)
        self.group_norm = nn.GroupNorm(groups, half)  # one set of parameters, applied after both convolutions

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.spatial_attention(x)
        x = x * self.channel_attention(x)
        x = F.relu(self.group_norm(self.conv1(x)))
        return F.relu(self.group_norm(self.conv2(x)))


class Merge(nn.Module):
    """What came from the finer map, then the tap, to the tap's width: 1x1 convolution, GroupNorm, ReLU."""

    def __init__(self, finer: int, channels: int, groups: int):
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(finer + channels, channels, 1), nn.GroupNorm(groups, channels), nn.ReLU())

    def forward(self, finer: Tensor, tap: Tensor) -> Tensor:
        return self.conv1(torch.cat([finer, tap], dim=1))


class Refinement(nn.Module):
    """IMAFR: four maps, finest first, each refined by what came from the finer ones. Shapes stay.

    Args:
        channels: of the four maps (published: 320, 680, 1320, 1280).
        groups: GroupNorm groups (published: 20).

    Raises:
        ValueError: if a width does not divide as the layers need it.
    """

    def __init__(self, channels: tuple[int, int, int, int], groups: int):
        super().__init__()
        c0, c1, c2, c3 = channels
        if any(c % groups for c in channels) or any(c % (2 * groups) or c % REDUCTION for c in channels[:3]):
            raise ValueError(f"the widths {channels} do not divide by {groups} groups and a reduction of {REDUCTION}")
        self.layer1 = GatedConv(c0, groups)
        self.layer2, self.layer3 = GatedDown(c0, groups), Merge(c0 // 2, c1, groups)
        self.layer4, self.layer5 = GatedDown(c1, groups), Merge(c1 // 2, c2, groups)
        self.layer6, self.layer7 = GatedDown(c2, groups), Merge(c2 // 2, c3, groups)

    def forward(self, f64: Tensor, f32: Tensor, f16: Tensor, f8: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        f64 = self.layer1(f64)  # [B, c0, h, w]
        f32 = self.layer3(self.layer2(f64), f32)  # [B, c1, h/2, w/2]
        f16 = self.layer5(self.layer4(f32), f16)  # [B, c2, h/4, w/4]
        f8 = self.layer7(self.layer6(f16), f8)  # [B, c3, h/8, w/8]
        return f64, f32, f16, f8


class Aggregation(nn.Module):
    """Four maps, finest first, to one at the third's resolution: [B, out, h/4, w/4].

    Args:
        channels: of the four maps.
        out_channels: of the result (published: 1536).
        groups: GroupNorm groups (published: 16).
    """

    def __init__(self, channels: tuple[int, int, int, int], out_channels: int, groups: int):
        super().__init__()
        c0, c1 = channels[:2]
        self.layer1 = nn.Sequential(nn.Conv2d(c0, c0, 3, stride=2, padding=1), nn.GroupNorm(groups, c0), nn.ReLU(), nn.Conv2d(c0, c0, 3, stride=2, padding=1))
        self.layer2 = nn.Sequential(nn.Conv2d(c1, c1, 3, stride=2, padding=1))
        self.out_layer = nn.Sequential(nn.Conv2d(sum(channels), out_channels, 1), nn.GroupNorm(groups, out_channels), nn.ReLU())

    def forward(self, f64: Tensor, f32: Tensor, f16: Tensor, f8: Tensor) -> Tensor:
        coarse = F.interpolate(f8, scale_factor=2.0, mode="nearest")
        return self.out_layer(torch.cat([self.layer1(f64), self.layer2(f32), f16, coarse], dim=1))
