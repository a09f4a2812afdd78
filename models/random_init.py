"""Seeded random weights that keep activations alive and finite, for benchmarks and tests, never for depth.

``randomise`` serves convolutional networks that are built without memory (meta device); ``draw_weights`` serves transformers, whose
libraries' own starting values would silence half of the layers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .lora import LoraLinear

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


def draw_weights(module: nn.Module, seed: int = 0) -> nn.Module:
    """Fill all parameters of ``module``, embeddings and tokens too, from a seeded generator, in place.

    Matrices and kernels get a spread of one over the root of their inputs, embeddings and tokens 0.5, norms a scale near 1 and
    running statistics near those of a unit normal; so activations keep about unit size and every layer has a part in the result.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor, spread: float) -> None:
        tensor.normal_(std=spread, generator=generator)

    def near_one(tensor: Tensor) -> None:
        tensor.uniform_(0.8, 1.2, generator=generator)

    with torch.no_grad():
        for part in module.modules():
            for name, weight in part.named_parameters(recurse=False):
                if isinstance(part, (nn.LayerNorm, nn.BatchNorm2d)):
                    near_one(weight) if name == "weight" else normal(weight, 0.1)
                elif isinstance(part, (nn.Linear, nn.Conv2d, nn.MultiheadAttention, LoraLinear)):
                    normal(weight, weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.1)
                else:
                    normal(weight, 0.5)
            if isinstance(part, nn.BatchNorm2d):
                normal(part.running_mean, 0.1)
                near_one(part.running_var)
    return module
