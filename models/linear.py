"""A linear layer around tensors that are there already."""

from __future__ import annotations

from torch import Tensor, nn


def linear_of(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A frozen ``nn.Linear`` with ``weight`` [out, in] and ``bias`` [out]; nothing is drawn or copied where memory is contiguous."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().contiguous(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().contiguous(), requires_grad=False)
    return layer
