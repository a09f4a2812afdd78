"""EVP: Enhanced Visual Perception (arXiv 2312.08548), metric depth from Stable Diffusion features and caption text.

Where the paper and the code that made the published weights differ, this follows the code: the latent is divided by one scalar per
data set (paper: component-wise deviation), the timestep is 1, IMAFR has 3x3 convolutions with a shared norm (``refinement``), the
attractors pull with strength 300 and the depth is not clamped (``metric_bins``). The latent divisor, the depth range and the window
are not stored in the checkpoints; they belong to the variant.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...runtime.artefact.contract import Contract
from ...runtime.artefact.spec import StageSpec
from ...runtime.errors import InputError, UsageError
from ..checkpoint import Checkpoint, KeyTable, fill, read_checkpoint
from ..network import DepthNetwork, Stage, WeightsOrigin
from ..random_init import RANDOM_WARNING, randomise
from .depth_decoder import Decoder, DecoderConfig, FoldedDecoder, depth_head, double
from .depth_protocols import CANVAS_MARGIN, FEATURE_SCALE, depth_contract, kitti_benchmark, nyu_benchmark, nyu_single_image, squeezed_single_image
from .diffusion_checkpoint import ANCHOR, CLIP_PREFIX, clip_names, key_table, origin_of, published_name, refuse_other_networks
from .folding import FoldedUNet, FoldedVAE
from .metric_bins import BIN_COUNT, BinsConfig, MetricBins, MetricBinsExport
from .refinement import Aggregation, Refinement
from .stable_diffusion import TAP_NAMES, TINY_BACKBONE, BackboneConfig, TapUNet, VAEEncoder, backbone_maps, square_map
from .text_context import TextContext, read_text_pack

PUBLISHED = {  # SHA-256 (or its known start) -> where the file was published
    "08c86d74": "MykolaL/evp_depth",
    "709bfd12": "MykolaL/evp_depth",
    "913c380f": "MykolaL/evp_depth",
    "90e5f3ac901b466b6a75d4715ccf5a86dd0cfdf04497b07e849392f907df934c": "MykolaL/evp (space)",
}
PUBLISHED_LICENCE = "MIT (EVP repository); made from Stable Diffusion 1.5, CreativeML OpenRAIL-M"
FP32_ISLANDS = ("soft_centers", "attract", "relative", "log_binomial", "expectation")


@dataclass(frozen=True)
class EVPConfig:
    """Sizes of EVP.

    Args:
        name: the command-line name.
        backbone: VAE encoder and U-Net.
        tokens: of the text context.
        refinement_groups: GroupNorm groups of IMAFR.
        aggregation_groups: GroupNorm groups of the aggregation.
        decoder, bins: their widths.
        nyu_window, kitti_window: side of the square input window, in pixels; the canvas is 32 pixels larger.
    """

    name: str = "evp"
    backbone: BackboneConfig = dataclasses.field(default_factory=BackboneConfig)
    tokens: int = 40
    refinement_groups: int = 20
    aggregation_groups: int = 16
    decoder: DecoderConfig = dataclasses.field(default_factory=DecoderConfig)
    bins: BinsConfig = dataclasses.field(default_factory=BinsConfig)
    nyu_window: int = 480
    kitti_window: int = 352

    def __post_init__(self):
        for window in (self.nyu_window, self.kitti_window):
            if window % FEATURE_SCALE or (window + CANVAS_MARGIN) % (2 * FEATURE_SCALE):
                raise ValueError(f"a window of {window} pixels gives no whole number of latent pixels on every level")
        if self.bins.in_channels != self.decoder.in_channels or self.bins.level_channels != (*self.decoder.deconv_channels, self.decoder.channels):
            raise ValueError("decoder and bins disagree about their widths")

    @property
    def tap_channels(self) -> tuple[int, int, int, int]:
        """Channels of f64, f32, f16, f8: the middle two carry one attention map per token."""
        c0, c1, c2, c3 = self.backbone.unet_channels
        return (c0, c1 + self.tokens, c2 + self.tokens, c3)


OFFICIAL = EVPConfig()
TINY = EVPConfig(
    name="evp-tiny",
    backbone=TINY_BACKBONE,
    refinement_groups=4,
    aggregation_groups=8,
    decoder=DecoderConfig(192, (32, 32, 32), 16),
    bins=BinsConfig(192, 64, 16, (16, 8, 4, 1), (32, 32, 32, 16)),
    nyu_window=160,
    kitti_window=96,
)


@dataclass(frozen=True)
class Variant:
    """Constants that the checkpoints do not hold: the latent's divisor, the depth range in metres, and the window's side."""

    latent_divisor: float
    max_depth_m: float
    window: int
    contract: Contract


def variant_of(config: EVPConfig, name: str) -> Variant:
    """The constants of ``nyu`` or ``kitti``.

    Raises:
        ValueError: for another name.
    """
    if name == "nyu":
        window = config.nyu_window
        protocols = (nyu_single_image(window), nyu_benchmark(window, 8, "EVP test_nyu.sh"))
        return Variant(5.07543, 10.0, window, depth_contract(window, 10.0, protocols))
    if name == "kitti":
        window = config.kitti_window
        protocols = (squeezed_single_image(window, OFFICIAL.kitti_window), kitti_benchmark(window, 20, "EVP test.sh"))
        return Variant(4.6211, 80.0, window, depth_contract(window, 80.0, protocols))
    raise ValueError(f"EVP has no variant {name!r}, wanted nyu or kitti")


class EVP(DepthNetwork):
    """The unfolded network. Published weights come through ``load_evp``.

    Args:
        config: ``OFFICIAL`` or ``TINY``, or another of the same architecture.
        variant: ``nyu`` or ``kitti``.

    Raises:
        ValueError: for an unknown variant.
    """

    def __init__(self, config: EVPConfig, variant: str):
        super().__init__()
        self.config, self.name, self.variant = config, config.name, variant
        self.constants = variant_of(config, variant)
        self.contract = self.constants.contract
        self.origin = WeightsOrigin("random-init")
        self.vae = VAEEncoder(config.backbone)
        self.unet = TapUNet(config.backbone, collect_maps=True)
        self.text = TextContext((1, config.tokens, config.backbone.context_width))
        self.refinement = Refinement(config.tap_channels, config.refinement_groups)
        self.aggregation = Aggregation(config.tap_channels, config.decoder.in_channels, config.aggregation_groups)
        self.decoder = Decoder(config.decoder)
        self.depth_head = depth_head(config.decoder.channels)
        self.bins = MetricBins(config.bins, self.constants.max_depth_m)

    def config_json(self) -> dict[str, Any]:
        constants = {"latent_divisor": self.constants.latent_divisor, "max_depth_m": self.constants.max_depth_m, "window": self.constants.window}
        return json.loads(json.dumps({**dataclasses.asdict(self.config), **constants}))  # tuples become lists

    def boundaries(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        found = {"latent": self.vae(inputs["image"]) / self.constants.latent_divisor}
        taps = self.unet(found["latent"], self.text())
        found |= zip(TAP_NAMES, taps, strict=True)
        side = self.constants.window // FEATURE_SCALE
        found["conv_feats"] = features = self.aggregation(*self.refinement(*taps))[..., :side, :side]
        levels = self.decoder(features)
        out = double(levels[-1])
        found |= zip(("x1", "x2", "x3", "x4"), levels, strict=True)
        found["raw"] = self.depth_head(out)
        found["depth"] = self.bins(features, levels, out, found["raw"])
        return found

    def stages(self) -> tuple[Stage, ...]:
        config, window = self.config, self.constants.window
        canvas, side = window + CANVAS_MARGIN, window // FEATURE_SCALE
        image, latent, taps = backbone_maps(canvas, config.tap_channels)
        features = square_map("conv_feats", config.decoder.in_channels, side)
        levels = tuple(square_map(f"x{i}", c, side << i) for i, c in enumerate(config.bins.level_channels, 1))
        raw, depth = square_map("raw", 1, window), square_map("depth", 1, window)
        vae = FoldedVAE(self.vae, self.constants.latent_divisor)
        unet = FoldedUNet(self.unet, self.text())
        decoder = FoldedDecoder(self.decoder, self.depth_head)
        return (
            Stage(StageSpec("vae", (image,), (latent,)), vae.eval(), folded=vae.folded),
            Stage(StageSpec("unet", (latent,), taps), unet.eval(), folded=unet.folded),
            Stage(StageSpec("refine", taps, (features,)), RefineStage(self.refinement, self.aggregation, side).eval()),
            Stage(StageSpec("decoder", (features,), (*levels, raw)), decoder.eval(), folded=decoder.folded),
            Stage(StageSpec("bins", (features, *levels, raw), (depth,)), MetricBinsExport(self.bins).eval(), FP32_ISLANDS),
        )


class RefineStage(nn.Module):
    """IMAFR, aggregation, and the cut of the last row and column, which saw only the canvas margin."""

    def __init__(self, refinement: nn.Module, aggregation: nn.Module, side: int):
        super().__init__()
        self.refinement, self.aggregation, self.side = refinement, aggregation, side

    def forward(self, f64: Tensor, f32: Tensor, f16: Tensor, f8: Tensor) -> Tensor:
        return self.aggregation(*self.refinement(f64, f32, f16, f8))[..., : self.side, : self.side]


DEPTH_HEAD = "decoder.last_layer_depth."  # its published prefix


def evp_keys(network: EVP) -> KeyTable:
    """What an EVP checkpoint holds: 941 tensors, and CLIP's 196 where captions were per image."""
    transform = "conditional_log_binomial.log_binomial_transform."
    constants = {
        transform + "k_idx": torch.arange(BIN_COUNT).view(1, -1, 1, 1),
        transform + "K_minus_1": torch.full((1, 1, 1, 1), float(BIN_COUNT - 1)),
    }
    return key_table(network, lambda own: published_name(own, DEPTH_HEAD), constants, dict.fromkeys([*clip_names(), CLIP_PREFIX + "embeddings.position_ids"]))


def load_evp(path: str | Path, variant: str = "nyu", config: EVPConfig = OFFICIAL, text_pack: str | Path | None = None, texts: str | Path | None = None) -> EVP:
    """EVP with the weights of a published or self-trained checkpoint.

    Args:
        path: ``model.safetensors``, or a ``.ckpt``/``.pth`` with ``{'model': state_dict}``; names may carry a common prefix.
        variant: ``nyu`` or ``kitti``; the file does not say which it is.
        config: sizes the file was trained with.
        text_pack: safetensors with ``context`` [1, tokens, width], instead of the checkpoint's own text. Needed for checkpoints
            that carry CLIP instead of the mean caption, if ``texts`` is not given.
        texts: captions (see ``text_tower.read_captions``); the mean of what the file's own CLIP says of them is the text.

    Raises:
        InputError: if the file is broken or unsafe, is another network's, does not fit exactly, or carries no CLIP for ``texts``.
        UsageError: if ``text_pack`` and ``texts`` are both given.
        ValueError: for an unknown variant.
    """
    if text_pack is not None and texts is not None:
        raise UsageError("--text-pack and --texts contradict each other", fix="give one of them")
    with torch.device("meta"):
        network = EVP(config, variant)
    table, text = evp_keys(network), published_name("text.class_embeddings", DEPTH_HEAD)
    pack = None if text_pack is None else read_text_pack(text_pack, "context", table.wanted[text].shape)
    checkpoint = read_checkpoint(path, ANCHOR)
    refuse_other_networks(checkpoint, "evp", config.name)
    if texts is not None:
        checkpoint.tensors[text] = caption_context(checkpoint, texts, config)
    elif pack is not None:
        checkpoint.tensors[text] = pack
    elif text not in checkpoint.tensors and any(name.startswith(CLIP_PREFIX) for name in checkpoint.tensors):
        raise InputError(
            f"{checkpoint.file} carries CLIP for one caption per image, and no {text}",
            wanted="the text that every image shall get",
            fix=f"give --texts FILE with captions, or --text-pack FILE, a .safetensors with 'context' {list(table.wanted[text].shape)}",
        )
    fill(network, checkpoint, table, config.name)
    network.origin = origin_of(checkpoint, PUBLISHED, PUBLISHED_LICENCE, network.text.gamma, network.decoder)
    return network


def caption_context(checkpoint: Checkpoint, texts: str | Path, config: EVPConfig) -> Tensor:
    """What the CLIP in an EVP file says of captions, averaged: [1, tokens, width].

    Raises:
        InputError: if the file carries no CLIP, or the captions cannot be read.
    """
    from .text_tower import clip_tower, mean_states, read_captions

    captions = read_captions(texts)
    if not any(name.startswith(CLIP_PREFIX) for name in checkpoint.tensors):
        raise InputError(f"{checkpoint.file} carries no CLIP to read captions with", wanted="a checkpoint of captions per image", fix="give --text-pack FILE")
    return mean_states(clip_tower(checkpoint, CLIP_PREFIX, config.backbone.context_width), captions, config.tokens)


def random_evp(variant: str = "nyu", config: EVPConfig = OFFICIAL, seed: int = 0, text_pack: str | Path | None = None, texts: str | Path | None = None) -> EVP:
    """EVP with seeded random weights: right in shape, speed and finiteness, meaningless in depth. For benchmarks and tests.

    Raises:
        UsageError: if ``texts`` are given: there is no CLIP to read them with.
    """
    if texts is not None:
        raise UsageError("random weights hold no CLIP to read --texts with", fix="leave --texts out")
    with torch.device("meta"):
        network = EVP(config, variant)
    randomise(network, seed)
    network.text.randomise(seed)
    if text_pack is not None:
        network.text.class_embeddings.copy_(read_text_pack(text_pack, "context", tuple(network.text.class_embeddings.shape)))
    bins, far = network.bins, network.constants.max_depth_m
    bins.seed_bin_regressor._net[2].bias.copy_(torch.linspace(0.02, 1, BIN_COUNT) * far)  # bins over the whole range, or all depth is ln 2
    last = bins.conditional_log_binomial.mlp[2]
    last.weight.mul_(8)  # the distribution over the bins differs from pixel to pixel, and is not flat
    last.bias.copy_(torch.tensor([0.0, 0.0, -2.0, 2.0]))
    transform = bins.conditional_log_binomial.log_binomial_transform
    transform.k_idx.copy_(torch.arange(BIN_COUNT).view(1, -1, 1, 1))
    transform.K_minus_1.fill_(BIN_COUNT - 1)
    network.origin = WeightsOrigin("random-init", warnings=(RANDOM_WARNING,))
    return network
