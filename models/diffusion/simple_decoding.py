"""The segmentation head of EVP's and VPD's referring networks (from LAVT): refined maps to two logits per pixel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .folding import with_batch_norm

LEVELS = (4, 3, 2)  # the published names count the maps from 1 (finest)


class SimpleDecoding(nn.Module):
    """Four maps, finest first, to logits [B, 2, h, w] (background, object) at the finest map's size.

    Coarse to fine: bilinear (aligned corners) to the next map's size, concatenation, two 3x3 convolutions with batch norm and ReLU.

    Args:
        channels: of the four maps (published: 320, 680, 1320, 1280).
        hidden: width of the convolutions (published: 640).
    """

    def __init__(self, channels: tuple[int, int, int, int], hidden: int):
        super().__init__()
        above = channels[3]
        for level in LEVELS:
            width = above + channels[level - 2]
            setattr(self, f"conv1_{level}", nn.Conv2d(width, hidden, 3, padding=1, bias=False))
            setattr(self, f"bn1_{level}", nn.BatchNorm2d(hidden))
            setattr(self, f"conv2_{level}", nn.Conv2d(hidden, hidden, 3, padding=1, bias=False))
            setattr(self, f"bn2_{level}", nn.BatchNorm2d(hidden))
            above = hidden
        self.conv1_1 = nn.Conv2d(hidden, 2, 1)

    def forward(self, r64: Tensor, r32: Tensor, r16: Tensor, r8: Tensor) -> Tensor:
        x = r8
        for level, finer in zip(LEVELS, (r16, r32, r64), strict=True):
            x = upsample_and_join(x, finer)
            for place in (1, 2):
                conv, norm = getattr(self, f"conv{place}_{level}"), getattr(self, f"bn{place}_{level}")
                x = F.relu(norm(conv(x)))
        return self.conv1_1(x)


def upsample_and_join(x: Tensor, finer: Tensor) -> Tensor:
    """[B, C, h, w] to the finer map's size, in front of its channels."""
    return torch.cat([F.interpolate(x, size=finer.shape[-2:], mode="bilinear", align_corners=True), finer], dim=1)


class FoldedSimpleDecoding(nn.Module):
    """The same with every batch norm within its convolution."""

    def __init__(self, head: SimpleDecoding):
        super().__init__()
        for level in LEVELS:
            for place in (1, 2):
                setattr(self, f"conv{place}_{level}", with_batch_norm(getattr(head, f"conv{place}_{level}"), getattr(head, f"bn{place}_{level}")))
        self.conv1_1 = head.conv1_1
        self.folded = {"batch_norm": 2 * len(LEVELS)}

    def forward(self, r64: Tensor, r32: Tensor, r16: Tensor, r8: Tensor) -> Tensor:
        x = r8
        for level, finer in zip(LEVELS, (r16, r32, r64), strict=True):
            x = upsample_and_join(x, finer)
            for place in (1, 2):
                x = F.relu(getattr(self, f"conv{place}_{level}")(x))
        return self.conv1_1(x)
