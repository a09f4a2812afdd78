"""DepthBLIP-2's adaptive depth bins: a small network whose only input is a constant, and so after training seven numbers."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

PREFIX_BINS_M = (1.00, 1.75, 2.25, 2.50, 2.75, 3.00, 3.50)
NEAR_M, FAR_M = 1.00, 3.50


class AdaptiveBins(nn.Module):
    """Prefix bins -> learned bins, both seven depths in metres; 83,463 parameters, with the layer numbers of the published code."""

    def __init__(self):
        super().__init__()
        wide = [nn.Linear(7, 64), nn.ReLU(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 256), nn.ReLU(), nn.Dropout(0.5)]
        narrow = [nn.Linear(256, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 7), nn.Sigmoid()]
        self.layers = nn.Sequential(*wide, *narrow)

    def forward(self, prefix_m: Tensor) -> Tensor:
        """[7] -> [7]: near + sigmoid(MLP(prefix))^2 (far - near)."""
        return NEAR_M + self.layers(prefix_m) ** 2 * (FAR_M - NEAR_M)


def folded_bins(mlp: AdaptiveBins) -> Tensor:
    """The bins of a trained network, which depend on no input: [7] in metres."""
    with torch.no_grad():
        return mlp.eval()(torch.tensor(PREFIX_BINS_M))


def check_bins(bins_m: Tensor, near_m: float = NEAR_M, far_m: float = FAR_M) -> Tensor:
    """``bins_m`` itself, if it is seven finite depths in [``near_m``, ``far_m``].

    Raises:
        ValueError: otherwise.
    """
    least_m, most_m = torch.tensor([near_m, far_m], dtype=bins_m.dtype)
    inside = bins_m.shape == (7,) and bool(torch.isfinite(bins_m).all()) and bool(((bins_m >= least_m) & (bins_m <= most_m)).all())
    if not inside:
        raise ValueError(f"seven depths from {near_m} to {far_m} m were wanted, got {bins_m.tolist()}")
    return bins_m


def fit_bins(cases: Iterable[tuple[Tensor, Tensor, Tensor]], steps: int = 50, batch: int = 16, seed: int = 0, rate: float = 1e-3) -> AdaptiveBins:
    """Train the bins with the paper's recipe: AdamW, a rate that falls tenfold every 20 of 50 epochs, loss half L1 and half RMSE.

    The rest of the network is frozen, so its outputs are computed once and passed as ``cases``.

    Args:
        cases: per picture the class probabilities [7, h, w], the true depth in metres [H, W] and where it is known, bool [H, W].
            Pictures have one size.
        steps: of the optimiser; 50 passes over the published 16 pictures are 50.
        batch: pictures per step.
        seed: of the initial weights, the dropout and the order.
        rate: the first and highest.

    Raises:
        ValueError: if there is no case, or no valid pixel in one.
    """
    # bins . resize(chances) = resize(bins . chances): resizing is linear and its weights sum to one.
    found = []
    for chances, depth_m, valid in cases:
        if not bool(valid.any()):
            raise ValueError("a picture has no valid pixel")
        found.append((interpolate(chances[None], depth_m.shape, mode="bilinear", align_corners=True)[0].half(), depth_m, valid))
    if not found:
        raise ValueError("no picture to learn from")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mlp, prefix_m = AdaptiveBins().train(), torch.tensor(PREFIX_BINS_M)
        optimiser = torch.optim.AdamW(mlp.parameters(), lr=rate, weight_decay=0.01)
        draws = (some for _ in count() for some in torch.randperm(len(found)).split(batch))
        for step, some in zip(range(steps), draws, strict=False):
            optimiser.param_groups[0]["lr"] = rate * 0.1 ** (50 * step // (20 * steps))
            bins_m = mlp(prefix_m)
            errors = torch.cat(
                [(torch.einsum("khw,k->hw", chances.float(), bins_m) - depth_m)[valid] for chances, depth_m, valid in map(found.__getitem__, some)]
            )
            loss = 0.5 * errors.abs().mean() + 0.5 * errors.square().mean().sqrt()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return mlp.eval().requires_grad_(False)
