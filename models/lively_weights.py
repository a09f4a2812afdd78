"""Random weights for transformers: libraries' own starting values silence half of some of these networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .lora import LoraLinear


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
