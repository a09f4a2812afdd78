"""The image encoders of BLIP-2: CLIP ViT-L/14 without its last block, or EVA-CLIP ViT-g/14, each followed by LAVIS' ``ln_vision``."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from transformers import Blip2VisionConfig, Blip2VisionModel, CLIPVisionConfig, CLIPVisionModel


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of an image encoder.

    Args:
        kind: ``clip`` (norm before the blocks, QuickGELU, separate q, k, v) or ``eva`` (GELU, joint qkv without a key bias).
        width, blocks, heads, mlp: of the transformer.
        image, patch: pixels per side.

    Raises:
        ValueError: if the kind is unknown or the sizes do not divide.
    """

    kind: str
    width: int
    blocks: int
    heads: int
    mlp: int
    image: int = 224
    patch: int = 14

    def __post_init__(self):
        if self.kind not in ("clip", "eva"):
            raise ValueError(f"unknown image encoder {self.kind!r}, wanted clip or eva")
        if min(self.width, self.blocks, self.heads, self.mlp, self.image, self.patch) < 1 or self.width % self.heads or self.image % self.patch:
            raise ValueError("heads must divide the width, and patches the image")

    @property
    def tokens(self) -> int:
        """Patches plus the class token."""
        return (self.image // self.patch) ** 2 + 1


class ImageEncoder(nn.Module):
    """image [B, 3, S, S], ImageNet-normalised -> image tokens [B, tokens, width], class token first."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        sizes = {
            "hidden_size": config.width,
            "num_hidden_layers": config.blocks,
            "num_attention_heads": config.heads,
            "intermediate_size": config.mlp,
            "image_size": config.image,
            "patch_size": config.patch,
        }
        if config.kind == "clip":
            whole = CLIPVisionModel(CLIPVisionConfig(**sizes, hidden_act="quick_gelu", layer_norm_eps=1e-5))
            self.norm_before = whole.pre_layrnorm
        else:
            whole = Blip2VisionModel(Blip2VisionConfig(**sizes, hidden_act="gelu", layer_norm_eps=1e-6, qkv_bias=True))
            self.norm_before = nn.Identity()
        self.embeddings, self.encoder = whole.embeddings, whole.encoder
        self.ln_vision = nn.LayerNorm(config.width, eps=1e-5)  # LAVIS' own, not the final norm of CLIP or of transformers' port

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.norm_before(self.embeddings(image))
        return self.ln_vision(self.encoder(inputs_embeds=tokens).last_hidden_state)
