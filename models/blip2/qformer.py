"""BLIP-2's Q-Former: queries and a prompt attend to each other, and every second layer the queries look at the image.

``QFormer`` is transformers' network, one prompt at a time: the reference. ``PromptedQFormer`` holds the same layers and computes all
prompts of a fixed set together: the image's keys and values are made once per image, and because the queries of different prompts
never meet in cross-attention, they stand in one long row against them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel
from transformers.models.blip_2.modeling_blip_2 import Blip2TextEmbeddings

from ..attention import attend

HIDDEN = -1e4  # added to the scores of padding; e^-10000 is exactly 0 in FP32 and in FP16


@dataclass(frozen=True)
class QFormerConfig:
    """Sizes of a Q-Former; by default BERT-base with image tokens ``image_width`` wide.

    Raises:
        ValueError: if a size is not positive, or the heads do not divide the width.
    """

    image_width: int
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp: int = 3072
    queries: int = 32
    vocabulary: int = 30523
    positions: int = 512

    def __post_init__(self):
        if min(self.__dict__.values()) < 1 or self.width % self.heads:
            raise ValueError("positive sizes were wanted, and heads that divide the width")


class QFormer(nn.Module):
    """Queries, text embeddings and transformers' Q-Former, as LAVIS puts them together."""

    def __init__(self, config: QFormerConfig):
        super().__init__()
        self.config = config
        sizes = Blip2QFormerConfig(
            vocab_size=config.vocabulary,
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.mlp,
            max_position_embeddings=config.positions,
            encoder_hidden_size=config.image_width,
            use_qformer_text_input=True,
        )
        self.query_tokens = nn.Parameter(torch.empty(1, config.queries, config.width).normal_(std=0.02))
        self.text = Blip2TextEmbeddings(sizes)
        self.former = Blip2QFormerModel(sizes)

    def forward(self, image_embeds: Tensor, ids: tuple[int, ...]) -> Tensor:
        """Fuse an image with one prompt.

        Args:
            image_embeds: [B, tokens, image_width].
            ids: of the prompt, begin and end included.

        Returns:
            The queries' outputs [B, queries, width].
        """
        batch = len(image_embeds)
        words = torch.tensor([ids], device=image_embeds.device).expand(batch, -1)  # [B,L]
        tokens = self.text(input_ids=words, query_embeds=self.query_tokens.expand(batch, -1, -1))  # [B,Q+L,D]
        fused = self.former(tokens, query_length=self.config.queries, encoder_hidden_states=image_embeds)
        return fused.last_hidden_state[:, : self.config.queries]


class PromptedQFormer(nn.Module):
    """All prompts of a fixed set through a Q-Former at once: image_embeds [B, tokens, image_width] -> [B, prompts, width].

    The result is the mean over the queries (DepthBLIP-2, Eq. 4). Before the first cross-attention nothing depends on the image: the
    word and position embeddings, the first self-attention, the first step of the words and the first queries are constants here.

    Args:
        qformer: whose layers are used.
        prompts: token ids, begin and end included.
        learns: gradients reach what the constants are made of; for one training step, as they are made once.
    """

    def __init__(self, qformer: QFormer, prompts: tuple[tuple[int, ...], ...], learns: bool = False):
        super().__init__()
        self.layers = qformer.former.encoder.layer
        self.heads, self.count = qformer.config.heads, qformer.config.queries
        self.prompts, self.length = len(prompts), -(-max(map(len, prompts)) // 8) * 8  # padded to whole eights
        ids = torch.zeros(self.prompts, self.length, dtype=torch.int64)
        mask = torch.zeros(self.prompts, 1, 1, self.count + self.length)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt)
            mask[row, ..., self.count + len(prompt) :] = HIDDEN
        self.register_buffer("mask", mask)  # [P,1,1,Q+L]
        with torch.set_grad_enabled(learns):
            ids, mask = (part.to(qformer.query_tokens.device) for part in (ids, mask))
            tokens = qformer.text(input_ids=ids, query_embeds=qformer.query_tokens.expand(self.prompts, -1, -1))
            seen = self._self_attention(self.layers[0].attention, qformer.former.layernorm(tokens), mask)  # [P,Q+L,D]
            words = self.layers[0].feed_forward_chunk(seen[:, self.count :])
        self.register_buffer("first_queries", seen[:, : self.count].flatten(0, 1)[None].clone())  # [1,P*Q,D]
        self.register_buffer("first_words", words[None].clone())  # [1,P,L,D]
        with torch.set_grad_enabled(learns):
            self.register_buffer("first_looks", self.layers[0].crossattention.attention.query(self.first_queries))  # [1,P*Q,D]

    def forward(self, image_embeds: Tensor) -> Tensor:
        batch, last = image_embeds.shape[0], len(self.layers) - 1
        queries, words = self.first_queries, self.first_words.expand(batch, -1, -1, -1)
        mask = self.mask.expand(batch, -1, -1, -1, -1).flatten(0, 1)  # [B*P,1,1,Q+L]
        for index, layer in enumerate(self.layers):
            if index:
                tokens = torch.cat([queries.unflatten(1, (self.prompts, self.count)), words], dim=2).flatten(0, 1)  # [B*P,Q+L,D]
                seen = self._self_attention(layer.attention, tokens, mask, rows=self.count if index == last else None)
                queries = seen[:, : self.count].unflatten(0, (-1, self.prompts)).flatten(1, 2)  # [B,P*Q,D]
                if index < last:  # the words of the last layer are not looked at by anyone
                    words = layer.feed_forward_chunk(seen[:, self.count :]).unflatten(0, (-1, self.prompts))
            if layer.has_cross_attention:
                projections, output = layer.crossattention.attention, layer.crossattention.output
                looks = projections.query(queries) if index else self.first_looks.expand(batch, -1, -1)
                found = attend(looks, projections.key(image_embeds), projections.value(image_embeds), self.heads)
                queries = output(found, queries)
            queries = layer.feed_forward_chunk_query(queries)
        return queries.unflatten(1, (self.prompts, self.count)).mean(dim=2)

    def _self_attention(self, attention: nn.Module, tokens: Tensor, mask: Tensor, rows: int | None = None) -> Tensor:
        """Attention over all tokens, its output only for the first ``rows`` of them."""
        wanted, projections = tokens[:, :rows], attention.attention
        found = attend(projections.query(wanted), projections.key(tokens), projections.value(tokens), self.heads, mask)
        return attention.output(found, wanted)
