"""DepthCLIP (Zhang et al. 2022): zero-shot depth from CLIP's ResNet-50, whose features are compared with seven distance words.

The attention pool is bypassed. Visual (2048) and text (1024) vectors meet by taking every second visual channel, as the published
code does; the words are fixed, so that their embeddings, both scales and the choice of channels become one 2048 -> 7 product.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from ...runtime.artefact.contract import IMAGENET_MEAN, IMAGENET_STD, Contract, Crop, ImageInput, OutputContract, Protocol, Require, Resize
from ...runtime.artefact.spec import StageSpec, TensorSpec
from ..checkpoint import fill
from ..network import DepthNetwork, Stage, WeightsOrigin
from ..random_init import draw_weights
from .clip_checkpoint import assemble_clip, clip_origin, own_table, read_clip
from .clip_text import prompt_features
from .clip_towers import RN50, ClipConfig, build_image_tower, image_tower_tensors, resnet_features

SOURCE = "DepthCLIP (arXiv 2207.01077), published evaluation code"
WORD_SHARE = 0.05  # of a random word that is its own; the rest it has in common with all others


@dataclass(frozen=True)
class DepthClipConfig:
    """Sizes and constants of DepthCLIP.

    Args:
        name: the command-line name.
        clip: the towers; a ResNet.
        window: height and width in pixels that the trunk looks at, multiples of 32.
        template: prompt with two gaps, for the object and the distance word.
        words, bins_m: the distance classes and the depth in metres that each stands for, growing.
        logit_scale, temperature: logits are ``logit_scale`` x cosine / ``temperature``.

    Raises:
        ValueError: if the window, the words or the bins do not fit each other or the trunk.
    """

    name: str
    clip: ClipConfig
    window: tuple[int, int]
    template: str = "This {} is {}"
    object_word: str = "object"
    words: tuple[str, ...] = ("giant", "extremely close", "close", "not in distance", "a little remote", "far", "unseen")
    bins_m: tuple[float, ...] = (1.00, 1.50, 2.00, 2.25, 2.50, 2.75, 3.00)
    logit_scale: float = 100.0
    temperature: float = 0.1

    def __post_init__(self):
        if self.clip.patch_size or self.clip.vision_width * 32 != 2 * self.clip.embed_dim:
            raise ValueError("DepthCLIP wants a ResNet whose features are twice as wide as the text embedding")
        if any(side <= 0 or side % 32 for side in self.window):
            raise ValueError(f"window {self.window}: multiples of 32 were wanted")
        if not self.words or len(self.words) != len(self.bins_m) or list(self.bins_m) != sorted(set(self.bins_m)) or self.bins_m[0] <= 0:
            raise ValueError("as many growing positive bins as words were wanted")
        if self.logit_scale <= 0 or self.temperature <= 0:
            raise ValueError("a positive logit scale and temperature were wanted")

    @property
    def prompts(self) -> tuple[str, ...]:
        """One sentence per class."""
        return tuple(self.template.format(self.object_word, word) for word in self.words)

    @property
    def feature_dim(self) -> int:
        """Channels of the trunk's last stage."""
        return self.clip.vision_width * 32


OFFICIAL = DepthClipConfig("depthclip", RN50, (416, 544))
TINY = DepthClipConfig(
    "depthclip-tiny",
    replace(RN50, name="RN50-tiny", embed_dim=256, image_size=64, vision_layers=(1, 2, 3, 2), vision_width=16, text_width=32, text_heads=2, text_layers=2),
    (192, 256),
    bins_m=(0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 8.0),  # whole rooms, of which it learns; the published ones end at 3 m
)


def contract(config: DepthClipConfig) -> Contract:
    """Whole photos in one window, or the crop of the published NYU evaluation; both average a mirrored view."""
    height, width = config.window
    crop = (Require(480, 640), Crop(416, 544, "top-left", 56, 60))
    smaller = () if config.window == (416, 544) else (Resize(height, width, "bilinear-antialias"),)
    return Contract(
        ImageInput("image", config.window, config.window, IMAGENET_MEAN, IMAGENET_STD),  # ImageNet's statistics, not CLIP's own, as in the published code
        OutputContract("depth", "metric", "m", config.bins_m[0], config.bins_m[-1], "far", "bilinear-corners"),
        (
            Protocol("single-image", (Resize(height, width, "bilinear-antialias"),), (0,), (), True, "the whole photo, otherwise as nyu-benchmark"),
            Protocol("nyu-benchmark", crop + smaller, (0,), (), True, SOURCE),
        ),
    )


class DepthClip(DepthNetwork):
    """DepthCLIP with its text already encoded: ``text_features`` [classes, embed_dim], of which only the directions count."""

    def __init__(self, config: DepthClipConfig, variant: str = "nyu", device: str = "cpu"):
        super().__init__()
        if variant != "nyu":
            raise ValueError(f"DepthCLIP has no variant {variant!r}, wanted nyu")
        self.name, self.variant, self.config = config.name, variant, config
        self.contract = contract(config)
        self.origin = WeightsOrigin("random-init")
        self.visual = build_image_tower(config.clip, device)
        self.text_features = nn.Parameter(torch.zeros(len(config.words), config.clip.embed_dim, device=device))
        self.eval().requires_grad_(False)

    def config_json(self) -> dict[str, Any]:
        """The config with the prompts written out."""
        return {**asdict(self.config), "prompts": list(self.config.prompts)}

    def similarity(self, features: Tensor) -> Tensor:
        """Class logits from the published steps: [B,C,h,w] -> [B,classes,h,w].

        Unit length over all channels, every second channel *without* making them unit length again, cosine with each prompt.
        A position whose features are all zero has no direction; its classes are equally likely.
        """
        batch, _, height, width = features.shape
        points = normalize(features.flatten(2).transpose(1, 2), dim=-1)  # [B,h*w,C]
        points = interpolate(points, scale_factor=0.5, mode="nearest")  # [B,h*w,C/2], channels 0, 2, 4, ...
        logits = self.config.logit_scale * points @ normalize(self.text_features, dim=-1).t()  # [B,h*w,classes]
        return logits.transpose(1, 2).reshape(batch, -1, height, width)

    def depth(self, features: Tensor) -> Tensor:
        """Expected bin in metres: [B,C,h,w] -> [B,1,h,w]."""
        chances = (self.similarity(features) / self.config.temperature).softmax(dim=1)
        bins_m = torch.tensor(self.config.bins_m, device=features.device).view(1, -1, 1, 1)
        return (chances * bins_m).sum(dim=1, keepdim=True)

    def boundaries(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """``feat`` [B,2048,H/32,W/32] and ``depth`` [B,1,H/32,W/32] of ``image`` [B,3,H,W]."""
        features = resnet_features(self.visual, inputs["image"])
        return {"feat": features, "depth": self.depth(features)}

    def stages(self) -> tuple[Stage, ...]:
        """``trunk``: image -> feat; ``head``: feat -> depth, in FP32 because its logits are a thousand cosines."""
        height, width = (side // 32 for side in self.config.window)
        image = TensorSpec("image", "float32", ("batch", 3, *self.config.window))
        features = TensorSpec("feat", "float32", ("batch", self.config.feature_dim, height, width))
        depth = TensorSpec("depth", "float32", ("batch", 1, height, width))
        return (
            Stage(StageSpec("trunk", (image,), (features,)), ResnetTrunk(self.visual)),
            Stage(StageSpec("head", (features,), (depth,)), WordDepth(self), ("words",), {"text_embeddings": len(self.config.words)}),
        )


class ResnetTrunk(nn.Module):
    """CLIP's ResNet without its attention pool."""

    def __init__(self, visual: nn.Module):
        super().__init__()
        self.visual = visual
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        """[B,3,H,W] -> [B,C,H/32,W/32]."""
        return resnet_features(self.visual, image)


class WordDepth(nn.Module):
    """The head as one product, a softmax and a sum."""

    def __init__(self, network: DepthClip):
        super().__init__()
        self.words = FoldedWords(network)
        self.eval()

    def forward(self, feat: Tensor) -> Tensor:
        """[B,C,h,w] -> metres [B,1,h,w]."""
        return self.words(feat)


class FoldedWords(nn.Module):
    """Text bank, choice of channels, logit scale and temperature in one 1x1 convolution; the length of a feature divides afterwards."""

    def __init__(self, network: DepthClip):
        super().__init__()
        config, bank = network.config, normalize(network.text_features.detach(), dim=-1)
        weight = torch.zeros(len(config.words), config.feature_dim, 1, 1, device=bank.device)
        weight[:, ::2, 0, 0] = bank * (config.logit_scale / config.temperature)
        self.register_buffer("weight", weight)
        self.register_buffer("bins_m", torch.tensor(config.bins_m, device=bank.device).view(1, -1, 1, 1))

    def forward(self, feat: Tensor) -> Tensor:
        """[B,C,h,w] -> metres [B,1,h,w]."""
        length = feat.square().sum(dim=1, keepdim=True).sqrt().clamp_min(1e-12)  # [B,1,h,w]
        chances = (nn.functional.conv2d(feat, self.weight) / length).softmax(dim=1)  # [B,classes,h,w]
        return (chances * self.bins_m).sum(dim=1, keepdim=True)


def load_depthclip(weights: Path | str, variant: str = "nyu", config: DepthClipConfig = OFFICIAL) -> DepthClip:
    """DepthCLIP from CLIP's weights, whose text tower is run once, or from its own file.

    Args:
        weights: OpenAI's ``RN50.pt`` or the same tensors in another form (see ``read_clip``), or the network's own
            ``.safetensors`` with ``visual.*`` and ``text_features``.

    Raises:
        InputError: if the file is unsafe, of another form, or holds another network.
        EnvironmentMismatchError: if open_clip is not installed.
        ValueError: for an unknown variant.
    """
    checkpoint = read_clip(weights)
    network = DepthClip(config, variant, "meta")
    if "text_features" in checkpoint.tensors:
        fill(network, checkpoint, own_table(network), config.name)
        network.origin = WeightsOrigin("trained", checkpoint.file, checkpoint.sha256)
        return network
    clip = assemble_clip(checkpoint, config.clip)
    network.visual.load_state_dict(image_tower_tensors(clip), assign=True)
    network.text_features = nn.Parameter(prompt_features(clip, config.prompts))
    network.origin = clip_origin(checkpoint, config.clip)
    return network.requires_grad_(False)


def random_depthclip(variant: str = "nyu", config: DepthClipConfig = OFFICIAL, seed: int = 0) -> DepthClip:
    """DepthCLIP with random weights, and random text directions as close to each other as those of similar sentences.

    A random text tower would give all words the same direction, and independent directions one and the same word everywhere.

    Raises:
        EnvironmentMismatchError: if open_clip is not installed.
        ValueError: for an unknown variant.
    """
    with torch.random.fork_rng(devices=()):
        network = DepthClip(config, variant)
    draw_weights(network, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    common = normalize(torch.randn(1, config.clip.embed_dim, generator=generator), dim=-1)
    own = torch.randn(len(config.words), config.clip.embed_dim, generator=generator)
    own -= own.mean(dim=-1, keepdim=True)  # features are all positive: their mean shall favour no word
    network.text_features = nn.Parameter(normalize(common + WORD_SHARE * normalize(own, dim=-1), dim=-1))
    return network.requires_grad_(False)
