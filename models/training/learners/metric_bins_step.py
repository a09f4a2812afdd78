"""EVP's metric bins for training: the arithmetic of ``MetricBins``, whose maps of 64 bins are made again in the backward pass.

Autograd keeps some thirty maps [B, 64, H, W] of that head, and moving them takes most of a training step's time. Here only what they are made of is
kept, and on a CPU one picture is worked on at a time, which its caches hold.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...diffusion.metric_bins import ALPHA, PROBABILITY_FLOOR, MetricBins, corner_double, shape_parameters


def _pieces(count: int, device: torch.device) -> list[slice]:
    return [slice(at, at + 1) for at in range(count)] if device.type == "cpu" else [slice(0, count)]


class _Attracted(torch.autograd.Function):
    """Bin centres [B, 64, h, w] pulled by attractors [B, n, h, w]: c + mean over n of d / (1 + ALPHA d^2), with d = attractor - c."""

    @staticmethod
    def forward(ctx, centers: Tensor, pulls: Tensor) -> Tensor:
        ctx.save_for_backward(centers, pulls)
        moved = torch.empty_like(centers)
        for part in _pieces(len(centers), centers.device):
            shift = torch.zeros_like(centers[part])
            for number in range(pulls.shape[1]):
                distance = pulls[part, number : number + 1] - centers[part]
                shift += distance.div_((distance * distance).mul_(ALPHA).add_(1))
            moved[part] = shift.div_(pulls.shape[1]).add_(centers[part])
        return moved

    @staticmethod
    def backward(ctx, slope: Tensor) -> tuple[Tensor, Tensor]:
        centers, pulls = ctx.saved_tensors
        to_centers, to_pulls, count = slope.clone(), torch.empty_like(pulls), pulls.shape[1]
        for part in _pieces(len(centers), centers.device):
            shared = slope[part] / count
            for number in range(count):
                distance = pulls[part, number : number + 1] - centers[part]
                inverse = distance.mul_(distance).mul_(ALPHA).add_(1).reciprocal_()
                pulled = (2 * inverse - 1).mul_(inverse).mul_(shared)  # d/dd of d / (1 + ALPHA d^2), with inverse = 1 / (1 + ALPHA d^2)
                to_pulls[part, number] = pulled.sum(1)
                to_centers[part] -= pulled
        return to_centers, to_pulls


class _Expected(torch.autograd.Function):
    """Expected bin centre under softmax over k of (k log_odds + coefficient_k) * sharpness, the centres doubled to the pixels' resolution.

    log_odds, sharpness: [B, 1, H, W]; centers: [B, 64, H/2, W/2]; coefficients: [64]. Gives [B, 1, H, W].
    """

    @staticmethod
    def forward(ctx, log_odds: Tensor, sharpness: Tensor, centers: Tensor, coefficients: Tensor) -> Tensor:
        depth = torch.empty_like(log_odds)
        for part in _pieces(len(centers), centers.device):
            chances = _chances(log_odds[part], sharpness[part], coefficients)
            depth[part] = chances.mul_(corner_double(centers[part])).sum(1, keepdim=True)
        ctx.save_for_backward(log_odds, sharpness, centers, coefficients, depth)
        return depth

    @staticmethod
    def backward(ctx, slope: Tensor):
        log_odds, sharpness, centers, coefficients, depth = ctx.saved_tensors
        numbers = torch.arange(len(coefficients), device=centers.device, dtype=centers.dtype)
        factors = torch.stack([numbers, coefficients])
        to_odds, to_sharpness, to_centers = torch.empty_like(log_odds), torch.empty_like(sharpness), torch.empty_like(centers)
        for part in _pieces(len(centers), centers.device):
            weights = _chances(log_odds[part], sharpness[part], coefficients).mul_(slope[part])
            size = list(weights.shape[-2:])
            to_centers[part] = torch.ops.aten.upsample_bilinear2d_backward(weights, size, list(centers[part].shape), True, 2.0, 2.0)
            to_logits = weights.mul_(corner_double(centers[part]).sub_(depth[part]))
            by_number, by_coefficient = (factors @ to_logits.flatten(2)).unflatten(2, size).split(1, dim=1)
            to_odds[part] = by_number * sharpness[part]
            to_sharpness[part] = by_number * log_odds[part] + by_coefficient
        return to_odds, to_sharpness, to_centers, None


def _chances(log_odds: Tensor, sharpness: Tensor, coefficients: Tensor) -> Tensor:
    numbers = torch.arange(len(coefficients), device=log_odds.device, dtype=log_odds.dtype).view(1, -1, 1, 1)
    return torch.softmax((numbers * log_odds).add_(coefficients.view(1, -1, 1, 1)).mul_(sharpness), dim=1)


def metric_depth(bins: MetricBins, features: Tensor, levels: tuple[Tensor, ...], raw: Tensor) -> Tensor:
    """What ``bins(features, levels, double(levels[-1]), raw)`` gives, up to rounding, and the same gradients."""
    x = bins.bottle_neck(features)
    centers = F.softplus(bins.seed_bin_regressor(x))
    embedding = bins.seed_projector(x)
    for level, projector, attractor in zip(levels, bins.projectors, bins.attractors, strict=True):
        previous, embedding = corner_double(embedding), projector(level)
        centers = _Attracted.apply(corner_double(centers), F.softplus(attractor(embedding + previous)))
    binomial = bins.conditional_log_binomial
    first, middle, *rest = binomial.mlp
    width = levels[-1].shape[1]
    weight = first.weight  # over (decoder's map, relative depth, embedding); interpolation and a 1x1 convolution commute
    hidden = F.interpolate(F.conv2d(levels[-1], weight[:, :width], first.bias), scale_factor=2.0, mode="bilinear", align_corners=False)
    hidden = hidden + corner_double(F.conv2d(embedding, weight[:, width + 1 :]))
    hidden = hidden + weight[:, width : width + 1].view(1, -1, 1, 1) * (torch.sigmoid(raw) * bins.max_depth)
    positive = middle(hidden)
    for layer in rest:
        positive = layer(positive)
    p, temperature = shape_parameters(positive)
    log_odds = torch.log(torch.clamp(p, PROBABILITY_FLOOR, 1.0)) - torch.log(torch.clamp(1 - p, PROBABILITY_FLOOR, 1.0))
    return _Expected.apply(log_odds, 1 / temperature, centers, binomial.log_binomial_transform.coefficients().flatten())
