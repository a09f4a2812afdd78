"""MoA-DepthCLIP (Manghotay and Liang 2026): CLIP's ViT-B/32 with mixtures of adapters, a fixed scene context, and two depth heads.

No code or weights of the paper are published. Where it is silent: features are the mean of the patch tokens after the four adapted
blocks, without the final norm; bins are uniform; both heads are 3x3-ReLU-1x1; they are averaged at token resolution.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, normalize, relu

from ...runtime.artefact.contract import Contract, ImageInput, OutputContract, Protocol, Require, Resize
from ...runtime.artefact.spec import StageSpec, TensorSpec
from .. import nyu_scenes
from ..checkpoint import fill
from ..network import DepthNetwork, Stage, WeightsOrigin
from ..random_init import draw_weights
from .clip_checkpoint import assemble_clip, clip_origin, own_table, read_clip
from .clip_text import prompt_features
from .clip_towers import OPENAI_MEAN, OPENAI_STD, VIT_B_32, ClipConfig, PlainBlock, build_image_tower, image_tower_tensors
from .mixture_of_adapters import FoldedAdapters, MixtureOfAdapters

SCENES = (*(scene.replace("_", " ") for scene in nyu_scenes.SCENES), "nyu office")  # the last is the 28th prefix of the raw data set
UNTRAINED = "Only CLIP's part of the network is trained: the adapters and both depth heads are at their start."


@dataclass(frozen=True)
class MoaDepthClipConfig:
    """Sizes and constants of MoA-DepthCLIP.

    Args:
        name: the command-line name.
        clip: the towers; a vision transformer.
        window: height and width in pixels, multiples of the patch size.
        quality_window: the window of the variant ``quality``.
        adapted_blocks: blocks followed by a mixture of adapters, counted from 0 (section 3.1).
        experts, bottleneck, gate_width: K (0: no adapters), d_b and the hidden width of the gate (section 3.1).
        gate_temperature: tau of equation 2.
        bins, spacing, near_m, far_m: number of depth bins, ``uniform`` or ``log`` edges between two depths in metres.
        head_width: hidden channels of each head.
        regression: 1: both heads; 0: the bins alone (the baseline of table 1, without the composite loss).
        template, scenes: the prompts whose features are averaged to the context (section 3.2).

    Raises:
        ValueError: if the window, blocks, bins or prompts do not make sense for the tower.
    """

    name: str
    clip: ClipConfig
    window: tuple[int, int]
    quality_window: tuple[int, int]
    adapted_blocks: tuple[int, ...] = (2, 5, 8, 11)
    experts: int = 4
    bottleneck: int = 64
    gate_width: int = 128
    gate_temperature: float = 2.0
    bins: int = 128
    spacing: str = "uniform"
    near_m: float = 1e-3
    far_m: float = 10.0
    head_width: int = 256
    regression: int = 1
    template: str = "a photo of a {}"
    scenes: tuple[str, ...] = SCENES

    def __post_init__(self):
        blocks, patch = self.adapted_blocks, self.clip.patch_size
        if not patch or any(side <= 0 or side % patch for side in self.window + self.quality_window):
            raise ValueError(f"windows {self.window} and {self.quality_window}: multiples of a vision transformer's patches were wanted")
        if not blocks or list(blocks) != sorted(set(blocks)) or not 0 <= blocks[0] <= blocks[-1] < self.clip.vision_layers:
            raise ValueError(f"adapted blocks {blocks}: growing numbers below {self.clip.vision_layers} were wanted")
        if min(self.experts, self.bottleneck - 1, self.gate_width - 1, self.head_width - 1) < 0 or self.gate_temperature <= 0 or self.bins < 2:
            raise ValueError("positive sizes, a positive gate temperature and at least two bins were wanted")
        if self.regression not in (0, 1):
            raise ValueError(f"regression {self.regression}: 0 or 1 was wanted")
        if self.spacing not in ("uniform", "log") or not 0 < self.near_m < self.far_m:
            raise ValueError("uniform or log bins between two growing positive depths were wanted")
        if not self.scenes:
            raise ValueError("at least one scene was wanted")

    @property
    def prompts(self) -> tuple[str, ...]:
        """One sentence per scene."""
        return tuple(self.template.format(scene) for scene in self.scenes)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patch tokens."""
        return self.window[0] // self.clip.patch_size, self.window[1] // self.clip.patch_size

    def adapters(self) -> nn.Module:
        """One untrained mixture, or what stands in its place where there are no experts."""
        if not self.experts:
            return nn.Identity()
        return MixtureOfAdapters(self.clip.vision_width, self.experts, self.bottleneck, self.gate_width, self.gate_temperature)

    def bin_edges_m(self) -> Tensor:
        """Where one bin ends and the next begins, float64 [bins + 1]."""
        if self.spacing == "log":
            return torch.linspace(math.log(self.near_m), math.log(self.far_m), self.bins + 1, dtype=torch.float64).exp()
        return torch.linspace(self.near_m, self.far_m, self.bins + 1, dtype=torch.float64)

    def bin_centers_m(self) -> Tensor:
        """Middles between neighbouring edges, float32 [bins]."""
        edges = self.bin_edges_m()
        return ((edges[:-1] + edges[1:]) / 2).float()


OFFICIAL = MoaDepthClipConfig("moa-depthclip", VIT_B_32, (224, 224), (480, 640))
TINY = MoaDepthClipConfig(
    "moa-depthclip-tiny",
    ClipConfig("ViT-tiny", 64, 96, vision_layers=4, vision_width=128, patch_size=8, text_width=64, text_heads=2, text_layers=2, head_width=32),
    (96, 96),
    (96, 128),
    adapted_blocks=(0, 1, 2, 3),
    bottleneck=16,
    gate_width=32,
    bins=32,
    head_width=64,
)


def of_variant(config: MoaDepthClipConfig, variant: str) -> MoaDepthClipConfig:
    """What ``config`` is in the variant ``parity`` (the size CLIP was trained at) or ``quality`` (twice the tokens each way).

    Raises:
        ValueError: for another variant.
    """
    if variant not in ("parity", "quality"):
        raise ValueError(f"MoA-DepthCLIP has no variant {variant!r}, wanted parity or quality")
    return replace(config, window=config.quality_window) if variant == "quality" else config


def contract(config: MoaDepthClipConfig) -> Contract:
    """The whole photo, stretched to the window as the authors' earlier code does at test time."""
    height, width = config.window
    stretch = Resize(height, width, "bilinear-antialias")
    return Contract(
        ImageInput("image", config.window, config.window, OPENAI_MEAN, OPENAI_STD),
        OutputContract("depth", "metric", "m", config.near_m, config.far_m, "far", "bilinear"),
        (
            Protocol("single-image", (stretch,), (0,), (), False, "the whole photo, stretched"),
            Protocol("nyu-benchmark", (Require(480, 640), stretch), (0,), (), False, "MoA-DepthCLIP (arXiv 2604.01118), section 4; stretched"),
        ),
    )


class DepthHead(nn.Module):
    """3x3 convolution, ReLU, 1x1 convolution over the fused map."""

    def __init__(self, config: MoaDepthClipConfig, out_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(config.clip.vision_width + config.clip.embed_dim, config.head_width, 3, padding=1)
        self.conv2 = nn.Conv2d(config.head_width, out_channels, 1)

    def forward(self, fused: Tensor) -> Tensor:
        """[B,C+E,h,w] -> [B,out,h,w]."""
        return self.conv2(relu(self.conv1(fused)))


class MoaDepthClip(DepthNetwork):
    """MoA-DepthCLIP with its scene context already encoded: ``context`` [embed_dim]."""

    def __init__(self, config: MoaDepthClipConfig, variant: str = "parity", device: str = "cpu"):
        super().__init__()
        self.config = config = of_variant(config, variant)
        self.name, self.variant = config.name, variant
        self.contract = contract(config)
        self.origin = WeightsOrigin("random-init")
        self.visual = build_image_tower(config.clip, device)
        with torch.device(device):
            self.adapters = nn.ModuleList(config.adapters() for _ in config.adapted_blocks)
            self.classification = DepthHead(config, config.bins)
            self.regression = DepthHead(config, 1) if config.regression else None
            self.register_buffer("context", torch.zeros(config.clip.embed_dim))
        self.eval().requires_grad_(False)

    def config_json(self) -> dict[str, Any]:
        """The config with the prompts written out."""
        return {**asdict(self.config), "prompts": list(self.config.prompts)}

    def positions(self) -> Tensor:
        """Position embeddings of the window's grid [1+h*w,C]: the trained square grid, bicubically resized where the window differs."""
        table = self.visual.positional_embedding
        side = self.config.clip.image_size // self.config.clip.patch_size
        if self.config.grid == (side, side):
            return table
        grid = table[1:].t().reshape(1, -1, side, side)
        grid = interpolate(grid, size=self.config.grid, mode="bicubic", antialias=True, align_corners=False)  # as open_clip resizes them
        return torch.cat([table[:1], grid.flatten(2)[0].t()])

    def features(self, image: Tensor) -> Tensor:
        """[B,3,H,W] -> [B,C,h,w]: the mean over the adapted blocks' patch tokens."""
        adapters = dict(zip(self.config.adapted_blocks, self.adapters, strict=True))
        return vision_features(self.visual, self.visual.transformer.resblocks, adapters, self.positions(), self.config.grid, image)

    def mixtures(self) -> list[MixtureOfAdapters]:
        """The mixtures of adapters; none without experts."""
        return [adapters for adapters in self.adapters if isinstance(adapters, MixtureOfAdapters)]

    def heads(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """Bin logits [B,bins,h,w] and regressed depth in metres [B,1,h,w] of the features fused with the context (section 3.2)."""
        context = self.context.view(1, -1, 1, 1).expand(features.shape[0], -1, *features.shape[2:])
        fused = torch.cat([features, context], dim=1)  # [B,C+E,h,w]
        regressed = None if self.regression is None else self.regression(fused).sigmoid() * self.config.far_m
        return self.classification(fused), regressed

    def boundaries(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """``feat`` [B,C,h,w] and ``depth`` [B,1,h,w] of ``image`` [B,3,H,W]."""
        features = self.features(inputs["image"])
        logits, regressed = self.heads(features)
        centers_m = self.config.bin_centers_m().to(logits.device).view(1, -1, 1, 1)
        binned = (logits.softmax(dim=1) * centers_m).sum(dim=1, keepdim=True)
        return {"feat": features, "depth": binned if regressed is None else (binned + regressed) / 2}

    def stages(self) -> tuple[Stage, ...]:
        """``visual``: image -> feat; ``head``: feat -> depth, whose bins and average stay FP32."""
        image = TensorSpec("image", "float32", ("batch", 3, *self.config.window))
        features = TensorSpec("feat", "float32", ("batch", self.config.clip.vision_width, *self.config.grid))
        depth = TensorSpec("depth", "float32", ("batch", 1, *self.config.grid))
        folded = {"expert_products": 2 * len(self.mixtures())} if self.config.experts else {}
        if self.positions() is not self.visual.positional_embedding:
            folded["resized_positions"] = 1
        return (
            Stage(StageSpec("visual", (image,), (features,)), VisionStage(self), (), folded),
            Stage(StageSpec("head", (features,), (depth,)), HeadStage(self), ("fusion",), {"scene_context": 1}),
        )


def vision_features(
    visual: nn.Module, blocks: Iterable[nn.Module], adapters: dict[int, nn.Module], positions: Tensor, grid: tuple[int, int], image: Tensor
) -> Tensor:
    """CLIP's vision transformer with a module after some blocks; the mean of what those modules make of the patch tokens, as a map.

    Tokens are [B,N,C], as open_clip's blocks take them; [N,B,C], right before open_clip 2.26, would attend across the batch.
    """
    patches = visual.conv1(image).flatten(2).transpose(1, 2)  # [B,h*w,C]
    start = visual.class_embedding.view(1, 1, -1).expand(image.shape[0], -1, -1)
    tokens = visual.ln_pre(torch.cat([start, patches], dim=1) + positions)  # [B,1+h*w,C]
    total = None
    for number, block in enumerate(blocks):
        tokens = block(tokens)
        if number in adapters:
            tokens = adapters[number](tokens)
            total = tokens if total is None else total + tokens
    return (total[:, 1:] / len(adapters)).transpose(1, 2).unflatten(2, grid)  # [B,C,h,w]


class VisionStage(nn.Module):
    """The adapted image tower with positions and experts folded; blocks after the last adapter do not exist."""

    def __init__(self, network: MoaDepthClip):
        super().__init__()
        self.grid, self.adapted_blocks = network.config.grid, network.config.adapted_blocks
        visual = network.visual
        self.conv1, self.class_embedding, self.ln_pre = visual.conv1, visual.class_embedding, visual.ln_pre
        self.register_buffer("positions", network.positions().detach())
        self.blocks = nn.ModuleList(PlainBlock(block) for block in visual.transformer.resblocks[: self.adapted_blocks[-1] + 1])
        self.adapters = nn.ModuleList(FoldedAdapters(each) if isinstance(each, MixtureOfAdapters) else each for each in network.adapters)
        self.eval().requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        """[B,3,H,W] -> [B,C,h,w]."""
        return vision_features(self, self.blocks, dict(zip(self.adapted_blocks, self.adapters, strict=True)), self.positions, self.grid, image)


class HeadStage(nn.Module):
    """Both heads without the context's channels: what those add is the same for every photo, position by position."""

    def __init__(self, network: MoaDepthClip):
        super().__init__()
        self.classification = FoldedHead(network.classification, network.context, network.config.grid)
        self.regression = None if network.regression is None else FoldedHead(network.regression, network.context, network.config.grid)
        self.fusion = Fusion(network)
        self.eval().requires_grad_(False)

    def forward(self, feat: Tensor) -> Tensor:
        """[B,C,h,w] -> metres [B,1,h,w]."""
        return self.fusion(self.classification(feat), None if self.regression is None else self.regression(feat))


class FoldedHead(nn.Module):
    """A head with its constant context folded into a map of biases; at the border the 3x3 window sees zeros instead of context."""

    def __init__(self, head: DepthHead, context: Tensor, grid: tuple[int, int]):
        super().__init__()
        width = head.conv1.in_channels - context.numel()
        self.conv1 = nn.Conv2d(width, head.conv1.out_channels, 3, padding=1, bias=False, device="meta")
        self.conv1.weight = nn.Parameter(head.conv1.weight.detach()[:, :width].contiguous(), requires_grad=False)
        with torch.no_grad():
            constant = context.view(1, -1, 1, 1).expand(1, -1, *grid)
            self.register_buffer("context_bias", conv2d(constant, head.conv1.weight[:, width:], head.conv1.bias, padding=1))  # [1,head,h,w]
        self.conv2 = head.conv2

    def forward(self, feat: Tensor) -> Tensor:
        """[B,C,h,w] -> [B,out,h,w]."""
        return self.conv2(relu(self.conv1(feat) + self.context_bias))


class Fusion(nn.Module):
    """Expected bin and regressed depth, averaged; the expected bin alone where nothing is regressed."""

    def __init__(self, network: MoaDepthClip):
        super().__init__()
        self.far_m = network.config.far_m
        self.register_buffer("bin_centers_m", network.config.bin_centers_m().to(network.context.device).view(1, -1, 1, 1))

    def forward(self, logits: Tensor, raw: Tensor | None) -> Tensor:
        """Bin logits [B,bins,h,w] and raw regression [B,1,h,w] -> metres [B,1,h,w]."""
        binned = (logits.softmax(dim=1) * self.bin_centers_m).sum(dim=1, keepdim=True)
        if raw is None:
            return binned
        return 0.5 * binned + (0.5 * self.far_m) * raw.sigmoid()


def load_moa_depthclip(weights: Path | str, variant: str = "parity", config: MoaDepthClipConfig = OFFICIAL, seed: int = 0) -> MoaDepthClip:
    """MoA-DepthCLIP from its own trained file, or ready for training from CLIP's weights.

    Args:
        weights: the network's own ``.safetensors`` (``visual.*``, ``adapters.*``, ``classification.*``, ``regression.*``, ``context``;
            the same for every window), or OpenAI's ``ViT-B-32.pt`` or the same tensors in another form (see ``read_clip``): then the
            adapters begin as identities and the heads at random, and the origin says so.
        variant: ``parity`` or ``quality``.
        seed: of what CLIP's weights lack.

    Raises:
        InputError: if the file is unsafe, of another form, or holds another network.
        EnvironmentMismatchError: if open_clip is not installed.
        ValueError: for an unknown variant.
    """
    checkpoint = read_clip(weights)
    if "context" in checkpoint.tensors:
        network = MoaDepthClip(config, variant, "meta")
        fill(network, checkpoint, own_table(network), config.name)
        network.origin = WeightsOrigin("trained", checkpoint.file, checkpoint.sha256)
        return network
    clip = assemble_clip(checkpoint, config.clip)
    network = random_moa_depthclip(variant, config, seed)
    for adapters in network.mixtures():
        adapters.start_as_identity()
    network.visual.load_state_dict(image_tower_tensors(clip))
    network.context = prompt_features(clip, config.prompts).mean(dim=0)  # not made unit length again (section 3.2)
    origin = clip_origin(checkpoint, config.clip)
    network.origin = replace(origin, kind="random-init", warnings=(*origin.warnings, UNTRAINED))
    return network


def random_moa_depthclip(variant: str = "parity", config: MoaDepthClipConfig = OFFICIAL, seed: int = 0) -> MoaDepthClip:
    """MoA-DepthCLIP with random weights and random prompt directions (a random text tower would give all prompts the same).

    Raises:
        EnvironmentMismatchError: if open_clip is not installed.
        ValueError: for an unknown variant.
    """
    with torch.random.fork_rng(devices=()):
        network = MoaDepthClip(config, variant)
    draw_weights(network, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    network.context = normalize(torch.randn(len(config.scenes), config.clip.embed_dim, generator=generator), dim=-1).mean(dim=0)
    return network
