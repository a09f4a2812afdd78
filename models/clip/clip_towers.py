"""CLIP's two towers as open_clip builds them, by the names and shapes of OpenAI's checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor, nn

from ...runtime.errors import missing_package
from ..attention import attend
from .open_clip_modules import load_open_clip

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
SHARED_SPACE_PARTS = ("attnpool", "ln_post", "proj")


@dataclass(frozen=True)
class ClipConfig:
    """Sizes of one CLIP (Radford et al. 2021, tables 19 and 20); all of OpenAI's use QuickGELU, x * sigmoid(1.702 x).

    Args:
        name: OpenAI's name.
        embed_dim: width of the space in which images and texts meet.
        image_size: side of the square pictures it was trained on, in pixels.
        vision_layers: blocks of the vision transformer, or blocks per stage of the anti-aliased ResNet.
        vision_width: channels of the transformer, or of the ResNet's first stage before expansion.
        patch_size: in pixels; 0 for a ResNet.
        head_width: channels per attention head of the image tower.
        text_width, text_heads, text_layers: of the text tower.
        context_length: text tokens, start and end included.
        vocab_size: byte-pair vocabulary.

    Raises:
        ValueError: if the image size is no multiple of the patches, or a head does not divide its width.
    """

    name: str
    embed_dim: int
    image_size: int
    vision_layers: int | tuple[int, int, int, int]
    vision_width: int
    patch_size: int
    text_width: int
    text_heads: int
    text_layers: int
    head_width: int = 64
    context_length: int = 77
    vocab_size: int = 49408

    def __post_init__(self):
        if isinstance(self.vision_layers, int) != bool(self.patch_size):
            raise ValueError(f"{self.name}: patches go with one number of layers, a ResNet has four and no patches")
        if self.image_size % (self.patch_size or 32):
            raise ValueError(f"{self.name}: {self.image_size} pixels are no multiple of {self.patch_size or 32}")
        vision = self.vision_width if self.patch_size else self.vision_width * 32
        if vision % self.head_width or self.text_width % self.text_heads:
            raise ValueError(f"{self.name}: a width is no multiple of its heads")


RN50 = ClipConfig("RN50", 1024, 224, (3, 4, 6, 3), 64, 0, text_width=512, text_heads=8, text_layers=12)
VIT_B_32 = ClipConfig("ViT-B-32", 512, 224, 12, 768, 32, text_width=512, text_heads=8, text_layers=12)


def open_clip() -> ModuleType:
    """open_clip's modules ``model``, ``transformer``, ``modified_resnet`` and ``tokenizer``, loaded on first use.

    Raises:
        EnvironmentMismatchError: if open_clip, or something it needs, is missing.
    """
    try:
        return load_open_clip()
    except ModuleNotFoundError as error:
        raise missing_package(error.name or "open_clip", "clip", "open_clip, which builds CLIP's towers") from error


def build_clip(config: ClipConfig, device: str = "cpu") -> nn.Module:
    """Both towers with open_clip's initial weights, in eval mode; on ``meta`` for names and shapes only.

    Raises:
        EnvironmentMismatchError: see ``open_clip``.
    """
    vision = {
        "layers": config.vision_layers,
        "width": config.vision_width,
        "head_width": config.head_width,
        "patch_size": config.patch_size or None,
        "image_size": config.image_size,
    }
    text = {
        "context_length": config.context_length,
        "vocab_size": config.vocab_size,
        "width": config.text_width,
        "heads": config.text_heads,
        "layers": config.text_layers,
    }
    model = open_clip().model
    with torch.device(device):
        clip = model.CLIP(config.embed_dim, model.CLIPVisionCfg(**vision), model.CLIPTextCfg(**text), quick_gelu=True)
    return clip.eval().requires_grad_(False)


def build_image_tower(config: ClipConfig, device: str = "cpu") -> nn.Module:
    """The image tower up to its features, in eval mode, under the names it has below ``visual.`` in a checkpoint.

    What maps features into the space shared with text does not exist: the ResNet has no attention pool (call ``resnet_features``),
    the transformer no last norm and no projection.

    Raises:
        EnvironmentMismatchError: see ``open_clip``.
    """
    package = open_clip()
    with torch.device(device):
        if config.patch_size:
            visual = package.transformer.VisionTransformer(
                image_size=config.image_size,
                patch_size=config.patch_size,
                width=config.vision_width,
                layers=config.vision_layers,
                heads=config.vision_width // config.head_width,
                mlp_ratio=4.0,
                output_dim=config.embed_dim,
                act_layer=package.transformer.QuickGELU,
            )
        else:
            heads = config.vision_width * 32 // config.head_width
            visual = package.modified_resnet.ModifiedResNet(config.vision_layers, config.embed_dim, heads, config.image_size, config.vision_width)
    for part in SHARED_SPACE_PARTS:
        if hasattr(visual, part):
            setattr(visual, part, None)
    return visual.eval().requires_grad_(False)


def image_tower_tensors(clip: nn.Module) -> dict[str, Tensor]:
    """What ``build_image_tower`` takes of a whole CLIP, by its names there."""
    return {name: tensor for name, tensor in clip.visual.state_dict().items() if name.split(".")[0] not in SHARED_SPACE_PARTS}


def resnet_features(visual: nn.Module, image: Tensor) -> Tensor:
    """Stem and four stages of the anti-aliased ResNet: [B,3,H,W] to [B,32*width,H//32,W//32]."""
    features = visual.stem(image)
    for stage in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        features = stage(features)
    return features


class PlainBlock(nn.Module):
    """A block of the vision transformer with its attention written out over [B,N,C]; shares the tensors of the block it is made of.

    ``nn.MultiheadAttention`` would reach ONNX with the batch moved to and fro around every product.
    """

    def __init__(self, block: nn.Module):
        super().__init__()
        self.heads = block.attn.num_heads
        self.ln_1, self.ln_2, self.mlp, self.out_proj = block.ln_1, block.ln_2, block.mlp, block.attn.out_proj
        width = block.attn.embed_dim
        self.in_proj = nn.Linear(width, 3 * width, device="meta")
        self.in_proj.weight, self.in_proj.bias = block.attn.in_proj_weight, block.attn.in_proj_bias

    def forward(self, tokens: Tensor) -> Tensor:
        """[B,N,C] -> [B,N,C]."""
        tokens = tokens + self.out_proj(attend(*self.in_proj(self.ln_1(tokens)).chunk(3, dim=-1), self.heads))
        return tokens + self.mlp(self.ln_2(tokens))
