"""Layers that a training run begins with new numbers."""

from __future__ import annotations

import torch
from torch import nn


def reset(module: nn.Module) -> None:
    """Give a module on the meta device memory and PyTorch's own starting values, drawn from its global generator; parameters and buffers that
    belong to no layer of PyTorch's are left to the caller."""
    module.to_empty(device="cpu")
    with torch.no_grad():
        for part in module.modules():
            if hasattr(part, "reset_parameters"):
                part.reset_parameters()
