"""AdamW, and Muon for what multiplies: matrices and convolutions step by the nearest orthogonal matrix to their gradient."""

from __future__ import annotations

import torch
from torch import Tensor

MOMENTUM = 0.95
LIKE_ADAMW = 0.2  # root mean square of AdamW's steps, which rates are given for
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the polynomial that carries singular values toward 1
ROUNDS = 5
LEAST_NORM = 1e-7  # of a gradient that has a direction: what is smaller is rounding, or its squares are 0 already
FEWEST = 4  # rows or columns, below which a matrix has hardly a direction to even out


class Muon(torch.optim.AdamW):
    """AdamW, but for the groups with ``matrix`` set: Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) on their weights, taken as matrices
    [outputs, all else], with the size of step of Liu et al. 2025 (arXiv 2502.16982, equation 4), so that the rates are AdamW's.

    PyTorch's own takes neither convolutions nor other parameters, and computes in BF16, which few CPUs can.
    """

    @torch.no_grad()
    def step(self, closure=None):
        groups = [group for group in self.param_groups if group.get("matrix")]
        gradients = {parameter: parameter.grad for group in groups for parameter in group["params"] if parameter.grad is not None}
        for parameter in gradients:
            parameter.grad = None  # AdamW passes them over
        loss = super().step(closure)
        for group in groups:
            for parameter in group["params"]:
                if parameter in gradients:
                    parameter.grad = gradients[parameter]
                    self._matrix_step(parameter, group)
        return loss

    def _matrix_step(self, parameter: Tensor, group: dict) -> None:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"]
        momentum.lerp_(parameter.grad, 1 - MOMENTUM)
        direction = orthogonal(parameter.grad.lerp(momentum, MOMENTUM).flatten(1))
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_(direction.reshape(parameter.shape), alpha=group["lr"] * LIKE_ADAMW * max(direction.shape) ** 0.5)


def takes_muon(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a matrix that multiplies: neither a vector nor a table of embeddings, nor of a gate, which soon chose one expert for all."""
    return parameter.ndim > 1 and min(parameter.flatten(1).shape) >= FEWEST and "embed" not in name and "gate" not in name


def orthogonal(matrix: Tensor) -> Tensor:
    """U V^T of a matrix U S V^T, roughly: its singular values come out between 0.7 and 1.2, as quickly as products of matrices can do it."""
    wide = matrix.T if len(matrix) > matrix.shape[1] else matrix
    found = wide / wide.norm().clamp_min(LEAST_NORM)
    first, third, fifth = COEFFICIENTS
    for _ in range(ROUNDS):
        square = found @ found.T
        found = first * found + (third * square + fifth * square @ square) @ found
    return found.T if wide is not matrix else found
