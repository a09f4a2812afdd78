"""The training losses of the papers, over depths in metres where the truth is known."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

FLOOR_M = 1e-3  # below which a prediction has no logarithm worth learning from
EDGE_SCALES = 4
ROOT_FLOOR = 1e-12  # keeps the slope of a square root finite where the error is zero


def _log_errors(prediction_m: Tensor, truth_m: Tensor, valid: Tensor) -> Tensor:
    """d = ln truth - ln prediction of the valid pixels, [valid pixels]."""
    return torch.log(truth_m[valid]) - torch.log(prediction_m[valid].clamp_min(FLOOR_M))


def silog(prediction_m: Tensor, truth_m: Tensor, valid: Tensor, focus: float = 0.5, scale: float = 1.0, floor: float = ROOT_FLOOR) -> Tensor:
    """scale * sqrt(mean d^2 - focus (mean d)^2) with d = ln truth - ln prediction, over all valid pixels of the batch together.

    EVP and VPD: focus 0.5, scale 1. LLM-MDE's code: focus 0.85, scale 10, never below sqrt(1e-6) * 10; its paper (equation 3): focus 1.

    Args:
        prediction_m, truth_m: [B, 1, H, W]; the truth is positive where valid.
        valid: bool [B, 1, H, W].
        focus: share of the common factor that is forgiven; 1 forgives any scale.
        floor: of what the root is drawn from.
    """
    d = _log_errors(prediction_m, truth_m, valid)
    return scale * ((d * d).mean() - focus * d.mean() ** 2).clamp_min(floor).sqrt()


def log_l1(prediction_m: Tensor, truth_m: Tensor, valid: Tensor) -> Tensor:
    """The mean |d|, d as in ``silog``, over all valid pixels of the batch together: like abs_rel and delta1, it is not ruled by the worst."""
    return _log_errors(prediction_m, truth_m, valid).abs().mean()


def ssi(prediction_m: Tensor, truth_m: Tensor, valid: Tensor) -> Tensor:
    """LLM-MDE's loss as its code has it (models with relative output learn metres squeezed to their range)."""
    return silog(prediction_m, truth_m, valid, focus=0.85, scale=10.0, floor=1e-6)


def log_variance(prediction_m: Tensor, truth_m: Tensor, valid: Tensor) -> Tensor:
    """LLM-MDE's paper, equation 3: the variance of d over all valid pixels of the batch together; it forgives any common factor."""
    d = _log_errors(prediction_m, truth_m, valid)
    return ((d - d.mean()) ** 2).mean()


def l1_and_rmse(prediction_m: Tensor, truth_m: Tensor, valid: Tensor) -> Tensor:
    """DepthBLIP-2: half the mean absolute error and half the root of the mean square, over all valid pixels together."""
    error = (prediction_m - truth_m)[valid]
    return 0.5 * error.abs().mean() + 0.5 * (error * error).mean().clamp_min(ROOT_FLOOR).sqrt()


def log_edges(prediction_m: Tensor, truth_m: Tensor, valid: Tensor, scales: int = EDGE_SCALES) -> Tensor:
    """Sum over scales of the mean |difference of d between neighbours|, d = ln prediction - ln truth (MegaDepth, arXiv 1804.00607, equation 8).

    Scale s looks at every 2^s-th row and column, so that outlines count as much as the slopes of floors and walls; where the truth has an edge, a
    blurred prediction pays on both sides of it. Neighbours that are not both known do not count.

    Args:
        prediction_m, truth_m, valid: as for ``silog``.
    """
    d = torch.where(valid, truth_m, 1).log() - torch.where(valid, prediction_m, 1).clamp_min(FLOOR_M).log()
    total = d.new_zeros(())
    for scale in range(scales):
        step = 2**scale
        part, known = d[..., ::step, ::step], valid[..., ::step, ::step]
        for axis in (-2, -1):
            length = part.shape[axis] - 1
            both = known.narrow(axis, 0, length) & known.narrow(axis, 1, length)
            steps = (part.narrow(axis, 1, length) - part.narrow(axis, 0, length)).abs()
            total = total + (steps * both).sum() / both.sum().clamp_min(1)
    return total


def moa_parts(logits: Tensor, regressed_m: Tensor | None, edges_m: Tensor, truth_m: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """MoA-DepthCLIP's three losses, each without its weight (``MOA_WEIGHTS``).

    ``cross_entropy`` of the bin that holds the truth; ``l1`` of the regressed depth; ``silog`` of the regressed depth in the paper's
    own form, 10 (variance + 0.85 mean^2) of d, which has no root and forgives nothing. Without a regressed depth the first alone.

    Args:
        logits: [B, bins, H, W].
        regressed_m, truth_m: [B, 1, H, W].
        edges_m: [bins + 1], growing; depths outside go to the first or last bin.
        valid: bool [B, 1, H, W].
    """
    wanted = torch.bucketize(truth_m.clamp_min(FLOOR_M), edges_m[1:-1], right=True)  # [B, 1, H, W]
    by_pixel = cross_entropy(logits, wanted[:, 0], reduction="none")  # [B, H, W]
    parts = {"cross_entropy": by_pixel[valid[:, 0]].mean()}
    if regressed_m is None:
        return parts
    d = _log_errors(regressed_m, truth_m, valid)
    return {
        **parts,
        "l1": (regressed_m - truth_m)[valid].abs().mean(),
        "silog": 10 * (((d - d.mean()) ** 2).mean() + 0.85 * d.mean() ** 2),
    }


MOA_WEIGHTS = {"cross_entropy": 1.0, "l1": 1.0, "silog": 0.5}
LOSSES = {"silog": silog, "log_l1": log_l1, "ssi": ssi, "log_variance": log_variance, "l1_and_rmse": l1_and_rmse}
