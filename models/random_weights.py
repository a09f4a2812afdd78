"""Seeded random weights that keep activations alive and finite: for benchmarks and tests, never for depth."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

RANDOM_WARNING = "The weights are random: the depth means nothing."
BIAS = 0.1
NORM_SPREAD = 0.5


def randomise(module: nn.Module, seed: int) -> None:
    """Fill a module (on the meta device or not) with random numbers, in the order of its modules, in FP32 on the CPU.

    Weights of convolutions and linear layers keep the variance of what goes through them; norms get scales around 1 and
    statistics that are not trivial, so that folding them is a real test. Counters become 0; other buffers are left to the caller.
    """
    module.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: Tensor, low: float, high: float) -> None:
        tensor.uniform_(low, high, generator=generator)

    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                transposed = isinstance(part, nn.ConvTranspose2d)
                fan_in = part.in_channels if transposed else part.weight[0].numel()
                bound = math.sqrt(3 / fan_in)
                uniform(part.weight, -bound, bound)
                if part.bias is not None:
                    uniform(part.bias, -BIAS, BIAS)
            elif isinstance(part, (nn.GroupNorm, nn.LayerNorm, nn.BatchNorm2d)):
                uniform(part.weight, 1 - NORM_SPREAD, 1 + NORM_SPREAD)
                uniform(part.bias, -BIAS, BIAS)
                if isinstance(part, nn.BatchNorm2d):
                    uniform(part.running_mean, -BIAS, BIAS)
                    uniform(part.running_var, 1 - NORM_SPREAD, 1 + NORM_SPREAD)
                    part.num_batches_tracked.zero_()
    module.requires_grad_(False).eval()
