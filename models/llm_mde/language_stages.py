"""LLM-MDE's language half as stages: the prompt in front of the image's tokens, and BERT over both.

A prompt that the picture writes differs in length, so it comes padded, with a mask. A fixed prompt (or none) has the same words for every
picture: they are constants, nothing is padded, and the network takes no text.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

HIDDEN = -1e4  # added to the scores of padding; e^-10000 is exactly 0 in FP32 and in FP16


class PromptInFront(nn.Module):
    """The stage ``prompt``: words of the prompt, then the image's tokens after l2d."""

    def __init__(self, words: nn.Module, l2d: nn.Module):
        super().__init__()
        self.words, self.l2d = words, l2d
        self.eval()

    def forward(self, reprog: Tensor, prompt_ids: Tensor) -> Tensor:
        return torch.cat([self.words(prompt_ids), self.l2d(reprog)], dim=1)


class FixedInFront(nn.Module):
    """The stage ``prompt`` of a network whose words are always the same: ``prompt`` [P,D] (P may be 0), then the image's tokens."""

    def __init__(self, prompt: Tensor, l2d: nn.Module):
        super().__init__()
        self.l2d = l2d
        self.register_buffer("prompt", prompt.detach().clone())
        self.eval()

    def forward(self, reprog: Tensor) -> Tensor:
        image = self.l2d(reprog)
        return torch.cat([self.prompt.expand(image.shape[0], -1, -1), image], dim=1) if len(self.prompt) else image


def place_table(embeddings: nn.Module, count: int) -> Tensor:
    """Position and segment embeddings of the first ``count`` places as one table [count,D]."""
    table = embeddings.position_embeddings.weight[:count] + embeddings.token_type_embeddings.weight[0]
    return table.detach().clone()


class MaskedBert(nn.Module):
    """The stage ``llm``: padding out of sight, only what the head looks at comes out.

    Args:
        embeddings: BERT's.
        encoder: BERT's layers, adapters merged.
        budget, patches: tokens of the prompt, padding included, and of the image.
        head_tokens: how many outputs the head looks at.
        seen: which ones, of outputs [B,P+N,D], mask [B,P] and that count.
    """

    def __init__(self, embeddings: nn.Module, encoder: nn.Module, budget: int, patches: int, head_tokens: int, seen: Callable[[Tensor, Tensor, int], Tensor]):
        super().__init__()
        self.budget, self.patches, self.head_tokens, self.seen = budget, patches, head_tokens, seen
        self.norm, self.encoder = embeddings.LayerNorm, encoder
        self.register_buffer("places", place_table(embeddings, budget + patches))
        self.register_buffer("steps", torch.arange(patches))
        self.eval()

    def forward(self, llm_in: Tensor, prompt_mask: Tensor) -> Tensor:
        behind = embedding(prompt_mask.sum(dim=1, keepdim=True).long() + self.steps, self.places)  # [B,N,D]
        places = torch.cat([self.places[: self.budget].expand(prompt_mask.shape[0], -1, -1), behind], dim=1)
        hidden = torch.cat([(1 - prompt_mask) * HIDDEN, torch.zeros_like(behind[..., 0])], dim=1)[:, None, None]  # [B,1,1,P+N]
        out = self.encoder(self.norm(llm_in + places), attention_mask=hidden).last_hidden_state
        return self.seen(out, prompt_mask, self.head_tokens)


class PlainBert(nn.Module):
    """The stage ``llm`` where nothing is padded: every output comes out."""

    def __init__(self, embeddings: nn.Module, encoder: nn.Module, count: int):
        super().__init__()
        self.norm, self.encoder = embeddings.LayerNorm, encoder
        self.register_buffer("places", place_table(embeddings, count))
        self.eval()

    def forward(self, llm_in: Tensor) -> Tensor:
        return self.encoder(self.norm(llm_in + self.places)).last_hidden_state
