"""DepthBLIP-2 (Chen et al. 2024): seven distance words are fused with the image in BLIP-2's Q-Former and answer with seven depth maps.

The image is encoded once; the seven prompts pass the Q-Former as one batch with the image's keys and values shared; their mean query
(Eq. 4) is read as a 16 x 16 map with three values per place, of which the largest counts; softmax and bins make metres (Eq. 5, 6).
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...runtime.artefact.contract import IMAGENET_MEAN, IMAGENET_STD, Contract, Crop, ImageInput, OutputContract, Protocol, Require, Resize
from ...runtime.artefact.spec import StageSpec, TensorSpec
from ...runtime.errors import InputError, UsageError
from ..checkpoint import Checkpoint, Key, KeyTable, fill, read_checkpoint
from ..network import DepthNetwork, Stage, WeightsOrigin
from ..position_buffers import restore_position_buffers
from ..prompt_tokens import DEPTH_CLASSES, OTHER_CLASSES, class_words, compact_words, sentence_ids
from ..random_init import draw_weights
from ..trained_as import read_trained_as
from .adaptive_bins import PREFIX_BINS_M, AdaptiveBins, check_bins, folded_bins
from .blip2_vision import ImageEncoder, VisionConfig
from .lavis_checkpoint import load_image_encoder, load_qformer
from .qformer import PromptedQFormer, QFormer, QFormerConfig

SOURCE = "DepthBLIP-2, published evaluation code"
OWN = "image_encoder.ln_vision.weight"  # in a file of this network; LAVIS' Q-Former has no image encoder
FILES = {"v1": ("blip2_pretrained_vitL.pth", "clip_vit_L.pth"), "v2": ("instruct_blip_vicuna7b_trimmed.pth", "eva_vit_g.pth")}
LICENCES = {"v1": "BSD-3-Clause (LAVIS), MIT (CLIP)", "v2": "unknown"}


DEPTHS = re.compile(r"\d+(\.\d+)?(,\d+(\.\d+)?)+")  # what --bins takes instead of a file


@dataclass(frozen=True)
class DepthBlip2Config:
    """Sizes and constants of DepthBLIP-2.

    Args:
        vision, qformer: the two networks.
        layout: how the Q-Former's channels are places: ``hws`` (row, column, 3) or ``shw`` (3, row, column).
        grid: rows and columns of the depth map; 3 * grid^2 channels.
        temperature: of the softmax over the classes.
        template: prompt with a gap for the class.
        wording: which distance words: 0 the usual ones, 1 to 3 the other classes of table 2.
        bins_m: the depth in metres that each stands for where no bins were learned; learned ones lie between the first and the last.
        compact_vocabulary: token ids count only the words that occur, as tiny networks do.

    Raises:
        ValueError: if the parts do not fit each other.
    """

    vision: VisionConfig
    qformer: QFormerConfig
    layout: str
    temperature: float
    grid: int = 16
    template: str = "this object is {}"
    wording: int = 0
    bins_m: tuple[float, ...] = PREFIX_BINS_M
    compact_vocabulary: bool = False

    def __post_init__(self):
        if self.layout not in ("hws", "shw"):
            raise ValueError(f"layout {self.layout!r}: hws or shw was wanted")
        if self.qformer.image_width != self.vision.width or self.qformer.width != 3 * self.grid**2:
            raise ValueError("the Q-Former must be as wide as three grids and look at the image encoder's width")
        if not 0 <= self.wording <= len(OTHER_CLASSES):
            raise ValueError(f"wording {self.wording}: 0 to {len(OTHER_CLASSES)} was wanted")
        if self.temperature <= 0 or len(self.classes) != len(self.bins_m):
            raise ValueError("a positive temperature and one class per bin were wanted")

    @property
    def classes(self) -> tuple[str, ...]:
        """The distance words, one per bin."""
        return (DEPTH_CLASSES, *OTHER_CLASSES)[self.wording]

    @property
    def prompts(self) -> tuple[str, ...]:
        """One sentence per class."""
        return tuple(self.template.format(word) for word in self.classes)

    @property
    def prompt_ids(self) -> tuple[tuple[int, ...], ...]:
        """Token ids of the prompts, begin and end included."""
        words = class_words(self.compact_vocabulary)
        return tuple(sentence_ids(prompt, words) for prompt in self.prompts)


V1 = DepthBlip2Config(VisionConfig("clip", 1024, 23, 16, 4096), QFormerConfig(1024), "hws", 0.05)
V2 = DepthBlip2Config(VisionConfig("eva", 1408, 39, 16, 6144), QFormerConfig(1408), "shw", 0.5)
OFFICIAL = V1
TINY = DepthBlip2Config(
    VisionConfig("clip", 64, 3, 4, 256, image=112, patch=8),
    QFormerConfig(64, width=192, layers=3, heads=4, mlp=384, queries=8, vocabulary=len(compact_words()) + 1, positions=16),
    "hws",
    0.05,
    grid=8,
    bins_m=(0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 8.0),  # whole rooms, of which it learns; the published ones end at 3.5 m
    compact_vocabulary=True,
)
TINY_V2 = replace(TINY, vision=replace(TINY.vision, kind="eva"), layout="shw", temperature=0.5)
VARIANTS = {"v1": {V1: V1, TINY: TINY}, "v2": {V1: V2, TINY: TINY_V2}}


def of_variant(config: DepthBlip2Config, variant: str) -> DepthBlip2Config:
    """What ``config`` (``OFFICIAL`` or ``TINY``) is in the variant ``v1`` or ``v2``.

    Raises:
        ValueError: if the variant is unknown.
    """
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}, wanted {' or '.join(VARIANTS)}")
    usual = replace(config, wording=0)
    return replace(VARIANTS[variant][usual], wording=config.wording)


def contract(config: DepthBlip2Config) -> Contract:
    """The whole photo squeezed into a square, or the published NYU evaluation: crop, squeeze, mirrored view averaged, pasted back."""
    side = config.vision.image
    squeeze = Resize(side, side, "bilinear-antialias")
    crop = (Require(480, 640), Crop(416, 544, "top-left", 56, 60), squeeze)
    return Contract(
        ImageInput("image", (side, side), (side, side), IMAGENET_MEAN, IMAGENET_STD),  # ImageNet's statistics, not CLIP's own, as in the published code
        OutputContract("depth", "metric", "m", config.bins_m[0], config.bins_m[-1], "far", "bilinear-corners"),
        (
            Protocol("single-image", (squeeze,), (0,), (), False, "the whole photo, one look"),
            Protocol("nyu-benchmark", crop, (0,), (), True, SOURCE),
        ),
    )


class PromptDepth(nn.Module):
    """Fused prompts -> depth: q [B, 7, 3 grid^2] -> [B, 1, grid, grid] in metres."""

    def __init__(self, layout: str, grid: int, temperature: float, bins_m: Tensor):
        super().__init__()
        self.layout, self.grid, self.temperature = layout, grid, temperature
        self.register_buffer("bins_m", bins_m)  # [7]

    def chances(self, q: Tensor) -> Tensor:
        """Class chances [B, 7, grid, grid]."""
        if self.layout == "hws":
            places = q.unflatten(2, (self.grid, self.grid, 3)).amax(dim=4)  # [B,7,g,g]
        else:
            places = q.unflatten(2, (3, self.grid, self.grid)).amax(dim=2)
        return (places / self.temperature).softmax(dim=1)

    def forward(self, q: Tensor) -> Tensor:
        return (self.chances(q) * self.bins_m.view(1, -1, 1, 1)).sum(dim=1, keepdim=True)


class DepthBlip2(DepthNetwork):
    """DepthBLIP-2; ``head.bins_m`` [7] are the folded adaptive bins, the config's if none were learned."""

    def __init__(self, config: DepthBlip2Config, variant: str):
        super().__init__()
        self.name, self.variant, self.config = "depthblip2-tiny" if config.compact_vocabulary else "depthblip2", variant, config
        self.contract = contract(config)
        self.origin = WeightsOrigin("random-init")
        self.image_encoder = ImageEncoder(config.vision)
        self.qformer = QFormer(config.qformer)
        self.head = PromptDepth(config.layout, config.grid, config.temperature, torch.tensor(config.bins_m, device="cpu"))
        self.eval().requires_grad_(False)

    def config_json(self) -> dict[str, Any]:
        """The config, the prompts written out, and the bins in use."""
        config, bins_m = self.config, [round(depth, 6) for depth in self.head.bins_m.tolist()]
        return {**asdict(config), "classes": list(config.classes), "prompts": list(config.prompts), "bins_m": bins_m}

    def set_bins(self, bins_m: Tensor) -> None:
        """Use these seven depths.

        Raises:
            ValueError: if they are not seven finite depths between the config's first and last.
        """
        near_m, far_m = self.config.bins_m[0], self.config.bins_m[-1]
        self.head.bins_m = check_bins(bins_m.detach().to(torch.float32, copy=True).cpu(), near_m, far_m)

    def boundaries(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """``image_embeds`` [B, tokens, width], ``q`` [B, 7, 3 grid^2] and ``depth`` [B, 1, grid, grid] of ``image`` [B, 3, S, S].

        As published: one prompt after the other, without padding.
        """
        image_embeds = self.image_encoder(inputs["image"])
        q = torch.stack([self.qformer(image_embeds, ids).mean(dim=1) for ids in self.config.prompt_ids], dim=1)
        return {"image_embeds": image_embeds, "q": q, "depth": self.head(q)}

    def stages(self) -> tuple[Stage, ...]:
        """``image_encoder`` -> ``qformer`` -> ``head``; the head stays FP32, its logits are divided by a small temperature."""
        vision, classes, grid = self.config.vision, len(self.config.classes), self.config.grid
        image = TensorSpec("image", "float32", ("batch", 3, vision.image, vision.image))
        embeds = TensorSpec("image_embeds", "float32", ("batch", vision.tokens, vision.width))
        q = TensorSpec("q", "float32", ("batch", classes, self.config.qformer.width))
        depth = TensorSpec("depth", "float32", ("batch", 1, grid, grid))
        folded = {"text_embeddings": classes, "first_self_attention": 1}
        prompted = PromptedQFormer(self.qformer, self.config.prompt_ids).eval().requires_grad_(False)
        return (
            Stage(StageSpec("image_encoder", (image,), (embeds,)), self.image_encoder),
            Stage(StageSpec("qformer", (embeds,), (q,)), prompted, (), folded),
            Stage(StageSpec("head", (q,), (depth,)), ExpectedDepth(self.head), ("expected",), {"adaptive_bins": classes}),
        )


class ExpectedDepth(nn.Module):
    """``PromptDepth`` under a name that the precision plan can point at."""

    def __init__(self, head: PromptDepth):
        super().__init__()
        self.expected = head
        self.eval()

    def forward(self, q: Tensor) -> Tensor:
        return self.expected(q)


def random_depthblip2(
    variant: str = "v1", config: DepthBlip2Config = OFFICIAL, seed: int = 0, visual_weights: Path | str | None = None, bins: Path | str | None = None
) -> DepthBlip2:
    """A network with random weights, the same for the same seed; ``config`` is ``OFFICIAL`` or ``TINY``, ``bins`` as in ``load_depthblip2``.

    Raises:
        InputError: if an image encoder is given, which random weights do not go with, or ``bins`` are no such network.
    """
    if visual_weights is not None:
        raise InputError(f"{visual_weights} was given for a network with random weights", fix="give the Q-Former's file with --weights too")
    network = DepthBlip2(_with_depths(of_variant(config, variant), bins), variant)
    draw_weights(network, seed)
    return _with_learned_bins(network, bins)


def load_depthblip2(
    weights: Path | str, visual_weights: Path | str | None = None, bins: Path | str | None = None, variant: str = "v1", config: DepthBlip2Config = OFFICIAL
) -> DepthBlip2:
    """The network with LAVIS' published weights, or with its own file.

    Args:
        weights: LAVIS' Q-Former file, ``blip2_pretrained_vitL.pth`` (v1) or ``instruct_blip_vicuna7b_trimmed.pth`` (v2); or a
            ``.safetensors`` with this network's own state.
        visual_weights: LAVIS' image encoder, ``clip_vit_L.pth`` (v1) or ``eva_vit_g.pth`` (v2); not with an own file.
        bins: a trained adaptive-bins network as the published code saves it, or seven growing depths in metres as text
            (``1,1.5,2,2.25,2.5,2.75,3``); without it the config's bins are used.
        variant: ``v1`` or ``v2``.
        config: ``OFFICIAL`` or ``TINY``.

    Raises:
        InputError: if a file is unsafe, or tensors are missing, unexpected, misshapen or not finite; or the image encoder's file is
            missing, or one too many.
        ValueError: if the variant is unknown.
    """
    config = _with_depths(of_variant(config, variant), bins)
    checkpoint, name = read_checkpoint(weights, OWN, "query_tokens"), f"depthblip2 {variant}"
    own = OWN in checkpoint.tensors
    if own and visual_weights is not None:
        raise InputError(f"{checkpoint.file} holds the whole network, and {visual_weights} was given too", fix="give the first alone")
    if not own and visual_weights is None:
        was = f"{checkpoint.file} holds no image encoder, and no second file was given"
        raise InputError(was, wanted=" and ".join(FILES[variant]), fix="give the Q-Former's with --weights and the image encoder's with --visual-weights")
    with torch.device("meta"):
        network = DepthBlip2(config, variant)
    if own:
        shapes = {key: Key(key, tuple(tensor.shape)) for key, tensor in network.state_dict().items()}
        fill(network, checkpoint, KeyTable(shapes), name)
        if _depths(bins) is None:
            network.set_bins(network.head.bins_m)
        network.origin = WeightsOrigin("trained", checkpoint.file, checkpoint.sha256)
    else:
        encoder = read_checkpoint(visual_weights, "conv1.weight" if network.config.vision.kind == "clip" else "cls_token")
        load_qformer(network.qformer, network.image_encoder.ln_vision, checkpoint, name)
        load_image_encoder(network.image_encoder, network.config.vision.kind, encoder, name)
        network.origin = WeightsOrigin("published", f"{checkpoint.file} {encoder.file}", checkpoint.sha256, LICENCES[variant])
    restore_position_buffers(network)
    return _with_learned_bins(network, bins).eval().requires_grad_(False)


def _depths(bins: Path | str | None) -> tuple[float, ...] | None:
    """The depths that ``bins`` writes out, None if it names a file.

    Raises:
        UsageError: if they are not positive and growing.
    """
    if bins is None or not DEPTHS.fullmatch(str(bins)):
        return None
    depths = tuple(map(float, str(bins).split(",")))
    if depths[0] <= 0 or list(depths) != sorted(set(depths)):
        raise UsageError(f"--bins {bins}", wanted="growing depths above 0, in metres")
    return depths


def _with_depths(config: DepthBlip2Config, bins: Path | str | None) -> DepthBlip2Config:
    depths = _depths(bins)
    if depths is None:
        return config
    if len(depths) != len(config.classes):
        raise UsageError(f"--bins {bins} has {len(depths)} depths", wanted=f"{len(config.classes)}, one for each of the words")
    return replace(config, bins_m=depths)


def _with_learned_bins(network: DepthBlip2, bins: Path | str | None) -> DepthBlip2:
    depths = _depths(bins)
    if depths is not None:  # a file of the whole network has brought its own
        network.set_bins(torch.tensor(depths))
    elif bins is not None:
        if fitted := read_trained_as(bins):
            fitted.refuse_other_weights(Path(bins).name, network.origin.sha256)
        network.set_bins(read_bins(read_checkpoint(bins, "0.weight")))
    return network


def read_bins(checkpoint: Checkpoint) -> Tensor:
    """The seven depths [7] that a trained adaptive-bins network gives.

    Raises:
        InputError: if the file holds no such network.
    """
    mlp = AdaptiveBins()
    shapes = {key: Key(f"layers.{key}", tuple(mlp.layers.state_dict()[key].shape)) for key in mlp.layers.state_dict()}
    fill(mlp, checkpoint, KeyTable(shapes), "the adaptive bins of depthblip2")
    return folded_bins(mlp)
