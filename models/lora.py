"""Low-rank adapters as the published codes place them, and their merging into the weights they adapt."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from .linear import linear_of


class LoraLinear(nn.Module):
    """x W' + b + scale (x A' ) B', with the names of loralib: ``weight``, ``bias``, ``lora_A`` [r, in], ``lora_B`` [out, r]."""

    def __init__(self, fan_in: int, fan_out: int, rank: int, scale: float):
        super().__init__()
        self.scale = scale
        self.weight, self.bias = nn.Parameter(torch.zeros(fan_out, fan_in)), nn.Parameter(torch.zeros(fan_out))
        self.lora_A, self.lora_B = nn.Parameter(torch.zeros(rank, fan_in)), nn.Parameter(torch.zeros(fan_out, rank))

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias) + self.scale * linear(linear(x, self.lora_A), self.lora_B)

    def merged(self) -> nn.Linear:
        """The same map as one plain layer."""
        return linear_of(self.weight + self.scale * self.lora_B @ self.lora_A, self.bias)


class LoraQkv(nn.Module):
    """timm's joint ``qkv`` with adapters on q and v; k stays as it is. Names as in the published code."""

    def __init__(self, width: int, rank: int, scale: float):
        super().__init__()
        self.scale = scale
        self.qkv = nn.Linear(width, 3 * width)
        self.linear_a_q, self.linear_b_q = nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False)
        self.linear_a_v, self.linear_b_v = nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        query = query + self.scale * self.linear_b_q(self.linear_a_q(x))
        value = value + self.scale * self.linear_b_v(self.linear_a_v(x))
        return torch.cat([query, key, value], dim=-1)

    def merged(self) -> nn.Linear:
        """The same map as one plain layer."""
        query, key, value = self.qkv.weight.chunk(3)
        query = query + self.scale * self.linear_b_q.weight @ self.linear_a_q.weight
        value = value + self.scale * self.linear_b_v.weight @ self.linear_a_v.weight
        return linear_of(torch.cat([query, key, value]), self.qkv.bias)


def merge_adapters(module: nn.Module) -> tuple[nn.Module, int]:
    """A copy of ``module`` in which every adapter is merged, sharing all other weights, and how many matrices were adapted."""
    own = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    copied, count = copy.deepcopy(module, own), 0
    for parent in list(copied.modules()):
        for name, child in parent.named_children():
            if isinstance(child, (LoraLinear, LoraQkv)):
                with torch.no_grad():
                    setattr(parent, name, child.merged())
                count += 2 if isinstance(child, LoraQkv) else 1
    return copied.eval().requires_grad_(False), count
