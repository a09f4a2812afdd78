"""Auxiliary supervision for backbones that start from nothing: feature cells predict their log depth, patch tokens start with positional waves."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from .losses import FLOOR_M

HINT_MIDDLE, HINT_SPREAD = 1.0, 0.5  # of the log depth (metres) that a cell predicts
HINT_WEIGHT = 0.5  # of each such loss beside the network's own


def patch_hint(tokens: Tensor, truth_m: Tensor, valid: Tensor, side: int) -> Tensor:
    """L1 between each patch token's first channel and the patch's mean log depth; patches whose depth is known by less than half do not count.

    Args:
        tokens: [B, 1 + patches, width], class token first; the last patches may be missing.
        truth_m, valid: [B, 1, H, W].
        side: patches per side of the square that the photo was squeezed to.
    """
    said = tokens[:, 1:, 0]  # [B,patches]
    logarithm, known = (part.flatten(1)[:, : said.shape[1]] for part in pooled(truth_m, valid, side))
    return _masked_l1(said, logarithm, known)


def map_hint(features: Tensor, truth_m: Tensor, valid: Tensor, canvas: int) -> Tensor:
    """The same for the first channel of a square map [B, C, h, h] of a canvas of so many pixels, of which the truth is the top left."""
    side = max(1, round(features.shape[-1] * truth_m.shape[-1] / canvas))
    return _masked_l1(features[:, :1, :side, :side], *pooled(truth_m, valid, side))


def pooled(truth_m: Tensor, valid: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Mean logarithm of the known depths, and the share that is known, in side x side cells: [B, 1, side, side] each."""
    known = adaptive_avg_pool2d(valid.float(), side)
    return adaptive_avg_pool2d(torch.where(valid, truth_m, 1).clamp_min(FLOOR_M).log(), side) / known.clamp_min(0.5), known


def _masked_l1(said: Tensor, logarithm: Tensor, known: Tensor) -> Tensor:
    counts = known > 0.5
    return ((HINT_MIDDLE + HINT_SPREAD * said - logarithm).abs() * counts).sum() / counts.sum().clamp_min(1)


def waves(side: int, count: int) -> Tensor:
    """The ``count`` slowest cosines over a square, row by row: [side^2, count]; the slower, the larger."""
    places = (torch.arange(side) + 0.5) / side * math.pi
    cosines = torch.stack([torch.cos(number * places) for number in range(side)]) * math.sqrt(2)
    cosines[0] = 1
    slowest = sorted(((row, column) for row in range(side) for column in range(side)), key=lambda pair: (sum(pair), max(pair), pair))[:count]
    return torch.stack([torch.outer(cosines[row], cosines[column]).flatten() / (1 + row + column) ** 0.5 for row, column in slowest], dim=1)


def scattered_waves(side: int, width: int, seed: int) -> Tensor:
    """``waves`` over a square of patches, spread over all channels by a random rotation: [side^2, width]."""
    slowest = waves(side, width)
    return slowest @ torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(seed))).Q[: slowest.shape[1]]
