"""Which of the language model's outputs LLM-MDE's head uses: the published cut, and one that keeps every image token in its place."""

from __future__ import annotations

import torch
from torch import Tensor


def first_outputs(out: Tensor, mask: Tensor, count: int) -> Tensor:
    """The first ``count`` of a prompt's real outputs and the image's right behind them, as the published code cuts them; zeros past the end.

    Args:
        out: [B, P + N, D], the prompt's outputs padded to P.
        mask: [B, P] float, 1 at the prompt's real tokens.
    """
    budget, places = mask.shape[1], torch.arange(count, device=out.device)  # [T]
    used = mask.sum(dim=1, keepdim=True).long()  # [B,1]
    source = torch.where(places < used, places, places + (budget - used))  # [B,T], jumps over the padding
    there = (source < out.shape[1])[..., None]
    source = source.clamp(max=out.shape[1] - 1)[..., None].expand(-1, -1, out.shape[2])
    return torch.where(there, out.gather(1, source), 0.0)


def image_outputs(out: Tensor, mask: Tensor, count: int) -> Tensor:
    """The prompt's first outputs, 0 where there is padding, and all of the image's: ``count`` of [B, P + N, D]."""
    budget = mask.shape[1]
    head = count - (out.shape[1] - budget)
    return torch.cat([out[:, :head] * mask[:, :head, None], out[:, budget:]], dim=1)


SEEN = {"first": first_outputs, "image": image_outputs}  # the outputs that the head uses, by LlmMdeConfig.head_sees
