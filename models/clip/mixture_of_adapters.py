"""The mixture of adapters of MoA-DepthCLIP (section 3.1): as the paper writes it, and folded for export."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..linear import linear_of


class MixtureOfAdapters(nn.Module):
    """x + sum over k of g_k Expert_k(x), g = softmax(G(x) / tau), token by token (equations 1 to 3).

    Args:
        width: channels of a token.
        experts, bottleneck: number and hidden width of the experts (linear, GELU, linear).
        gate_width: hidden width of the gate (linear, ReLU, linear).
        temperature: tau.
    """

    def __init__(self, width: int, experts: int, bottleneck: int, gate_width: int, temperature: float):
        super().__init__()
        self.temperature = temperature
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(width, bottleneck), nn.GELU(), nn.Linear(bottleneck, width)) for _ in range(experts))
        self.gate = nn.Sequential(nn.Linear(width, gate_width), nn.ReLU(), nn.Linear(gate_width, experts))

    def gates(self, tokens: Tensor) -> Tensor:
        """Weight of each expert per token: [B,N,C] -> [B,N,K]. Their entropy shows whether all experts are in use (equation 4)."""
        return (self.gate(tokens) / self.temperature).softmax(dim=-1)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B,N,C] -> [B,N,C]."""
        outputs = torch.stack([expert(tokens) for expert in self.experts], dim=-1)  # [B,N,C,K]
        return tokens + (outputs * self.gates(tokens).unsqueeze(-2)).sum(dim=-1)

    def start_as_identity(self) -> None:
        """Zero what the experts add, so that training starts from CLIP's own features."""
        for expert in self.experts:
            nn.init.zeros_(expert[2].weight)
            nn.init.zeros_(expert[2].bias)


class FoldedAdapters(nn.Module):
    """All experts in two products: their hidden units side by side, each scaled by its expert's gate; the gates carry the biases."""

    def __init__(self, adapters: MixtureOfAdapters):
        super().__init__()
        experts = list(adapters.experts)
        self.count, self.hidden = len(experts), experts[0][0].out_features
        self.down = linear_of(torch.cat([e[0].weight for e in experts]), torch.cat([e[0].bias for e in experts]))
        self.activation = nn.GELU()
        self.up = linear_of(torch.cat([e[2].weight for e in experts], dim=1))
        self.up_bias = linear_of(torch.stack([e[2].bias for e in experts], dim=1))
        first, _, last = adapters.gate
        self.gate = nn.Sequential(first, nn.ReLU(), linear_of(last.weight / adapters.temperature, last.bias / adapters.temperature))

    def forward(self, tokens: Tensor) -> Tensor:
        """[B,N,C] -> [B,N,C]."""
        gates = self.gate(tokens).softmax(dim=-1)  # [B,N,K]
        hidden = self.activation(self.down(tokens)).unflatten(-1, (self.count, self.hidden))  # [B,N,K,H]
        hidden = (hidden * gates.unsqueeze(-1)).flatten(-2)  # [B,N,K*H]
        return tokens + self.up(hidden) + self.up_bias(gates)
