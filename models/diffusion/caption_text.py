"""EVP's text where every photo has a caption of its own: CLIP stays in the network, and its words come at run time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ...runtime.artefact.contract import Contract
from ...runtime.artefact.spec import StageSpec, TensorSpec
from ...runtime.artefact.text_input import TextInput
from ..clip.clip_tokenizer import VOCABULARY, published_tokenizer
from ..network import Stage
from ..random_init import draw_weights
from . import evp_refer
from .evp_refer import TINY_TOKENIZER, TOKENIZER, EVPReferConfig, ReferText, TextStage
from .stable_diffusion import BackboneConfig

HEAD_WIDTH = 64  # of every CLIP text tower


@dataclass(frozen=True)
class CaptionWords:
    """How captions become what the U-Net sees.

    Args:
        sizes: of CLIP's text tower: ViT-L/14's, or that of the small networks.
        tokenizer: the ``tokenizer.json`` that goes with it.
        pooled: the U-Net sees one vector, the one where the caption ends.
    """

    sizes: EVPReferConfig
    tokenizer: bytes
    pooled: bool = False

    @classmethod
    def of(cls, backbone: BackboneConfig, tokens: int, tokenizer: str | Path | None = None, pooled: bool = False) -> CaptionWords:
        """For a network of such sizes.

        Args:
            tokenizer: CLIP's ``tokenizer.json``; by default made from the vocabulary in the open_clip package.

        Raises:
            InputError: if the tokenizer is missing or broken.
        """
        full = backbone.context_width == evp_refer.OFFICIAL.backbone.context_width
        heads = max(1, backbone.context_width // HEAD_WIDTH)
        sizes = replace(evp_refer.OFFICIAL if full else evp_refer.TINY, backbone=backbone, tokens=tokens, clip_heads=heads)
        return cls(sizes, published_tokenizer(tokenizer) if sizes.vocabulary == VOCABULARY else TINY_TOKENIZER, pooled)

    def contract(self, contract: Contract) -> Contract:
        """The network's contract with a caption in it. The published code cuts long captions, the runtime refuses them."""
        sizes = self.sizes
        return replace(contract, text=TextInput("prompt", "ids", "", sizes.tokens, sizes.vocabulary - 1, TOKENIZER, "{text}"))

    def text(self) -> ReferText:
        """CLIP and the adapter behind it."""
        return ReferText(self.sizes, self.pooled)

    def example_ids(self, batch: int, seed: int) -> Tensor:
        """Random words between begin and end, padded with ends as the published code does, [batch, tokens]."""
        sizes = self.sizes
        ids = torch.full((batch, sizes.tokens), sizes.vocabulary - 1)
        ids[:, 0] = sizes.vocabulary - 2
        ids[:, 1:6] = torch.randint(256, sizes.vocabulary - 2, (batch, 5), generator=torch.Generator().manual_seed(seed))
        return ids

    def stage(self, text: ReferText) -> tuple[Stage, TensorSpec]:
        """The stage ``text``, and the tensor that it gives the U-Net."""
        sizes = self.sizes
        ids = TensorSpec("ids", "int64", ("batch", sizes.tokens))
        context = TensorSpec("context", "float32", ("batch", 1 if self.pooled else sizes.tokens, sizes.backbone.context_width))
        return Stage(StageSpec("text", (ids,), (context,)), TextStage(text, sizes.tokens).eval()), context

    def randomise(self, text: ReferText, seed: int) -> None:
        """Seeded weights, and an adapter that matters."""
        draw_weights(text.clip, seed + 1)
        text.gamma.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(seed))
        text.clip.embeddings.position_ids = torch.arange(self.sizes.clip_positions)[None]
