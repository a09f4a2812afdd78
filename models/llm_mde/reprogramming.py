"""Cross-modal reprogramming (LLM-MDE, Eq. 1): image tokens are rewritten as mixtures of text prototypes.

The prototypes are a learned mixture of a language model's word embeddings and do not depend on the image, so keys and values are
constants at inference. Where it is cheaper, a whole product of two matrices becomes one: the query projection with the keys, and
the values with the output projection.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..linear import linear_of


@dataclass(frozen=True)
class ReprogrammingConfig:
    """Sizes of the reprogramming attention.

    Args:
        image_width, text_width: of image tokens and word embeddings.
        heads, head_width: 24 x 768 in the published code, 12 x 64 by the paper's d = d_m / K.
        prototypes: how many mixtures of words there are.
        keys_as_values: the published code attends to the projected keys instead of values of their own.
    """

    image_width: int = 768
    text_width: int = 768
    heads: int = 24
    head_width: int = 768
    prototypes: int = 1000
    keys_as_values: bool = True

    def __post_init__(self):
        if min(self.image_width, self.text_width, self.heads, self.head_width, self.prototypes) < 1:
            raise ValueError("positive sizes were wanted")


class Reprogramming(nn.Module):
    """The attention as published: queries from image tokens, keys (and values) from prototypes."""

    def __init__(self, config: ReprogrammingConfig):
        super().__init__()
        self.config, inner = config, config.heads * config.head_width
        self.query_projection = nn.Linear(config.image_width, inner)
        self.key_projection = nn.Linear(config.text_width, inner)
        self.value_projection = None if config.keys_as_values else nn.Linear(config.text_width, inner)
        self.out_projection = nn.Linear(inner, config.text_width)

    def keys_and_values(self, prototypes: Tensor) -> tuple[Tensor, Tensor]:
        """Both as [heads, prototypes, head_width], from [prototypes, text_width]."""
        keys = self._split(self.key_projection(prototypes))
        return keys, keys if self.value_projection is None else self._split(self.value_projection(prototypes))

    def forward(self, tokens: Tensor, prototypes: Tensor) -> Tensor:
        """[B, N, image_width], [prototypes, text_width] -> [B, N, text_width]."""
        keys, values = self.keys_and_values(prototypes)
        queries = self.query_projection(tokens).unflatten(2, (self.config.heads, -1)).transpose(1, 2)  # [B,H,N,E]
        scores = queries @ keys.transpose(1, 2) * self.config.head_width**-0.5  # [B,H,N,S]
        return self.out_projection((scores.softmax(dim=-1) @ values).transpose(1, 2).flatten(2))

    def _split(self, projected: Tensor) -> Tensor:
        return projected.unflatten(1, (self.config.heads, -1)).transpose(0, 1)


class FoldedReprogramming(nn.Module):
    """``Reprogramming`` over fixed prototypes.

    A product x A B with A [D, E] and B [E, S] costs E (D + S) per token and head in two steps and D S in one; the cheaper way is
    taken for scores and for outputs alike (they have the same sizes, mirrored).
    """

    def __init__(self, reprogramming: Reprogramming, prototypes: Tensor):
        super().__init__()
        config = reprogramming.config
        self.heads, width = config.heads, config.head_width
        self.one_step = config.image_width * config.prototypes < width * (config.image_width + config.prototypes)
        with torch.no_grad():
            keys, values = reprogramming.keys_and_values(prototypes)  # [H,S,E]
            query = reprogramming.query_projection
            keys = keys.transpose(1, 2) * width**-0.5  # [H,E,S]
            if self.one_step:
                weight = query.weight.unflatten(0, (self.heads, -1)).transpose(1, 2) @ keys  # [H,D,S]
                bias = query.bias.unflatten(0, (self.heads, 1, -1)) @ keys  # [H,1,S]
                out = reprogramming.out_projection.weight.T.unflatten(0, (self.heads, -1))  # [H,E,T]
                self.scores = linear_of(weight.permute(0, 2, 1).flatten(0, 1), bias.flatten())  # [H*S,D]
                self.out_projection = linear_of((values @ out).flatten(0, 1).T, reprogramming.out_projection.bias)  # [T,H*S]
            else:
                self.query_projection, self.out_projection = query, reprogramming.out_projection
                self.register_buffer("keys", keys.contiguous())  # [H,E,S]
                self.register_buffer("values", values.contiguous())  # [H,S,E]
        self.eval().requires_grad_(False)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, image_width] -> [B, N, text_width]."""
        if self.one_step:
            return self.out_projection(self.scores(tokens).unflatten(2, (self.heads, -1)).softmax(dim=-1).flatten(2))
        queries = self.query_projection(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)  # [B,H,N,E]
        return self.out_projection(((queries @ self.keys).softmax(dim=-1) @ self.values).transpose(1, 2).flatten(2))
