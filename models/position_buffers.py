"""Position numbers that transformers' modules keep as buffers and that checkpoints do not hold."""

from __future__ import annotations

import torch
from torch import nn


def restore_position_buffers(network: nn.Module) -> None:
    """Give position numbers and segment zeros to a network that was made on the meta device; where memory was given to it since, they are undefined."""
    for module in network.modules():
        for name, value in (("position_ids", torch.arange), ("token_type_ids", lambda size: torch.zeros(size, dtype=torch.int64))):
            table = getattr(module, name, None)
            if isinstance(table, torch.Tensor):
                setattr(module, name, value(table.shape[-1])[None].to("cpu" if table.is_meta else table.device))
