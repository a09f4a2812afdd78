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
from ...runtime.artefact.spec import StageSpec, TensorSpec
from ...runtime.errors import InputError, UsageError
from ..checkpoint import Checkpoint, KeyTable, fill, read_checkpoint
from ..network import DepthNetwork, Stage, WeightsOrigin
from ..nyu_scenes import SCENES
from ..position_buffers import restore_position_buffers
from ..random_init import RANDOM_WARNING, randomise
from .caption_text import CaptionWords
from .depth_decoder import Decoder, DecoderConfig, FoldedDecoder, depth_head, double
from .depth_protocols import (
    CANVAS_MARGIN,
    FEATURE_SCALE,
    ROOMS_FOCAL_WIDTHS,
    depth_contract,
    kitti_benchmark,
    nyu_benchmark,
    nyu_single_image,
    squeezed_single_image,
)
from .diffusion_checkpoint import ANCHOR, CLIP_PREFIX, clip_names, key_table, origin_of, published_name, refuse_other_networks
from .evp_refer import TOKENIZER
from .folding import FoldedUNet, FoldedVAE
from .metric_bins import BIN_COUNT, BinsConfig, MetricBins, MetricBinsExport, RelativeDepth
from .refinement import Aggregation, Refinement
from .stable_diffusion import TAP_NAMES, TINY_BACKBONE, BackboneConfig, TapUNet, VAEEncoder, backbone_maps, square_map
from .text_context import TextContext, read_text_pack, scene_choice

PUBLISHED = {  # SHA-256 (or its known start) -> where the file was published
    "08c86d74": "MykolaL/evp_depth",
    "709bfd12": "MykolaL/evp_depth",
    "913c380f": "MykolaL/evp_depth",
    "90e5f3ac901b466b6a75d4715ccf5a86dd0cfdf04497b07e849392f907df934c": "MykolaL/evp (space)",
}
PUBLISHED_LICENCE = "MIT (EVP repository); made from Stable Diffusion 1.5, CreativeML OpenRAIL-M"
FP32_ISLANDS = ("soft_centers", "attract", "relative", "log_binomial", "expectation")


SWITCHES = ("captions", "imafr", "metric_bins", "std", "pooled", "scenes")


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
        focal_widths: 0, or the focal length, in widths of a photo, of the camera that the metres of a network for rooms are for; another camera's
            are as many times as large as its focal length (Metric3D, arXiv 2307.10984).
        captions: 1: CLIP stays in the network and every photo comes with its caption; 0: one text for all, folded.

    What the paper's table 4 takes out of the network:

    Args:
        imafr: 0: the U-Net's maps go to the aggregation as they are.
        metric_bins: 0: depth is the sigmoid of the raw depth, as VPD's.
        std: 0: the latent is not divided by its deviation, as VPD's.
        pooled: 1: a text is one vector, CLIP's where it ends, as VPD's; attention to one token is 1 everywhere, so no maps are collected.
        scenes: 1: every photo comes with its kind of room, each of them one vector, as VPD's; together with ``pooled``.
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
    focal_widths: float = 0.0
    captions: int = 0
    imafr: int = 1
    metric_bins: int = 1
    std: int = 1
    pooled: int = 0
    scenes: int = 0

    def __post_init__(self):
        for switch in SWITCHES:
            if getattr(self, switch) not in (0, 1):
                raise ValueError(f"{switch} {getattr(self, switch)}, wanted 0 or 1")
        if self.scenes and (self.captions or not self.pooled):
            raise ValueError("scenes=1 goes with pooled=1 and without captions")
        for window in (self.nyu_window, self.kitti_window):
            if window % FEATURE_SCALE or (window + CANVAS_MARGIN) % (2 * FEATURE_SCALE):
                raise ValueError(f"a window of {window} pixels gives no whole number of latent pixels on every level")
        if self.bins.in_channels != self.decoder.in_channels or self.bins.level_channels != (*self.decoder.deconv_channels, self.decoder.channels):
            raise ValueError("decoder and bins disagree about their widths")

    @property
    def tap_channels(self) -> tuple[int, int, int, int]:
        """Channels of f64, f32, f16, f8: the middle two carry one attention map per token."""
        c0, c1, c2, c3 = self.backbone.unet_channels
        maps = 0 if self.pooled else self.tokens
        return (c0, c1 + maps, c2 + maps, c3)

    @property
    def text_shape(self) -> tuple[int, ...]:
        """Of the stored text embeddings, as ``TextContext`` takes them."""
        return (len(SCENES) if self.scenes else 1, *(() if self.scenes else (1 if self.pooled else self.tokens,)), self.backbone.context_width)


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
    focal_widths=ROOMS_FOCAL_WIDTHS,
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
    found = _published_variant(config, name)
    return found if config.std else dataclasses.replace(found, latent_divisor=1.0)


def _published_variant(config: EVPConfig, name: str) -> Variant:
    if name == "nyu":
        window = config.nyu_window
        protocols = (nyu_single_image(window), nyu_benchmark(window, 8, "EVP test_nyu.sh"))
        return Variant(5.07543, 10.0, window, depth_contract(window, 10.0, protocols, config.focal_widths))
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
        words: what becomes of captions, where ``config.captions``.

    Raises:
        ValueError: for an unknown variant.
    """

    def __init__(self, config: EVPConfig, variant: str, words: CaptionWords | None = None):
        super().__init__()
        self.config, self.name, self.variant = config, config.name, variant
        self.constants = variant_of(config, variant)
        self.contract = self.constants.contract
        self.origin = WeightsOrigin("random-init")
        self.vae = VAEEncoder(config.backbone)
        self.unet = TapUNet(config.backbone, collect_maps=not config.pooled)
        self.words = words or CaptionWords.of(config.backbone, config.tokens, pooled=bool(config.pooled)) if config.captions else None
        if self.words is not None:
            self.contract = self.words.contract(self.contract)
        elif config.scenes:
            self.contract = dataclasses.replace(self.contract, text=scene_choice())
        self.text = TextContext(config.text_shape) if self.words is None else self.words.text()
        self.refinement = Refinement(config.tap_channels, config.refinement_groups) if config.imafr else None
        self.aggregation = Aggregation(config.tap_channels, config.decoder.in_channels, config.aggregation_groups)
        self.decoder = Decoder(config.decoder)
        self.depth_head = depth_head(config.decoder.channels)
        self.bins = MetricBins(config.bins, self.constants.max_depth_m) if config.metric_bins else None
        self.relative = RelativeDepth(self.constants.max_depth_m)

    def config_json(self) -> dict[str, Any]:
        constants = {"latent_divisor": self.constants.latent_divisor, "max_depth_m": self.constants.max_depth_m, "window": self.constants.window}
        return json.loads(json.dumps({**dataclasses.asdict(self.config), **constants}))  # tuples become lists

    def artefact_files(self) -> dict[str, bytes]:
        return {} if self.words is None else {TOKENIZER: self.words.tokenizer}

    def example_inputs(self, batch: int = 1, seed: int = 0) -> dict[str, Tensor]:
        found = super().example_inputs(batch, seed)
        if self.config.scenes:
            found["scene"] = torch.randint(len(SCENES), (batch, 1), generator=torch.Generator().manual_seed(seed))
        return found if self.words is None else {**found, "ids": self.words.example_ids(batch, seed)}

    def refined(self, taps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The taps as the aggregation takes them."""
        return taps if self.refinement is None else self.refinement(*taps)

    def boundaries(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        context = self.text(*(inputs[name] for name in ("ids", "scene") if name in inputs))
        found = {} if self.words is None else {"context": context}
        found |= {"latent": self.vae(inputs["image"]) / self.constants.latent_divisor}
        taps = self.unet(found["latent"], context)
        found |= zip(TAP_NAMES, taps, strict=True)
        side = self.constants.window // FEATURE_SCALE
        found["conv_feats"] = features = self.aggregation(*self.refined(taps))[..., :side, :side]
        levels = self.decoder(features)
        out = double(levels[-1])
        found |= zip(("x1", "x2", "x3", "x4"), levels, strict=True)
        found["raw"] = self.depth_head(out)
        found["depth"] = self.relative(found["raw"]) if self.bins is None else self.bins(features, levels, out, found["raw"])
        return found

    def stages(self) -> tuple[Stage, ...]:
        config, window = self.config, self.constants.window
        canvas, side = window + CANVAS_MARGIN, window // FEATURE_SCALE
        image, latent, taps = backbone_maps(canvas, config.tap_channels)
        features = square_map("conv_feats", config.decoder.in_channels, side)
        levels = tuple(square_map(f"x{i}", c, side << i) for i, c in enumerate(config.bins.level_channels, 1))
        raw, depth = square_map("raw", 1, window), square_map("depth", 1, window)
        vae = FoldedVAE(self.vae, self.constants.latent_divisor)
        texts, told = ((), ()) if self.words is None else ((stage,) for stage in self.words.stage(self.text))
        if config.scenes:
            told, context = (TensorSpec("scene", "int64", ("batch", 1)),), self.text(torch.arange(len(SCENES))[:, None])
        else:
            context = self.text() if self.words is None else None
        unet = FoldedUNet(self.unet, context)
        decoder = FoldedDecoder(self.decoder, self.depth_head)
        first = (
            *texts,
            Stage(StageSpec("vae", (image,), (latent,)), vae.eval(), folded=vae.folded),
            Stage(StageSpec("unet", (latent, *told), taps), unet.eval(), folded=unet.folded),
            Stage(StageSpec("refine", taps, (features,)), RefineStage(self.refinement, self.aggregation, side).eval()),
        )
        if self.bins is None:
            only = PlainDecoderStage(decoder, self.relative)
            return (*first, Stage(StageSpec("decoder", (features,), (depth,)), only.eval(), ("relative",), decoder.folded))
        return (
            *first,
            Stage(StageSpec("decoder", (features,), (*levels, raw)), decoder.eval(), folded=decoder.folded),
            Stage(StageSpec("bins", (features, *levels, raw), (depth,)), MetricBinsExport(self.bins).eval(), FP32_ISLANDS),
        )


class RefineStage(nn.Module):
    """IMAFR (unless that is left out), aggregation, and the cut of the last row and column, which saw only the canvas margin."""

    def __init__(self, refinement: nn.Module | None, aggregation: nn.Module, side: int):
        super().__init__()
        self.refinement, self.aggregation, self.side = refinement, aggregation, side

    def forward(self, f64: Tensor, f32: Tensor, f16: Tensor, f8: Tensor) -> Tensor:
        taps = (f64, f32, f16, f8) if self.refinement is None else self.refinement(f64, f32, f16, f8)
        return self.aggregation(*taps)[..., : self.side, : self.side]


class PlainDecoderStage(nn.Module):
    """Decoder and depth in metres, without bins."""

    def __init__(self, decoder: FoldedDecoder, relative: RelativeDepth):
        super().__init__()
        self.decoder, self.relative = decoder, relative

    def forward(self, conv_feats: Tensor) -> Tensor:
        return self.relative(self.decoder(conv_feats)[-1])


DEPTH_HEAD = "decoder.last_layer_depth."  # its published prefix


def evp_keys(network: EVP) -> KeyTable:
    """What an EVP checkpoint holds: 941 tensors, and CLIP's 196 where captions were per image."""
    transform = "conditional_log_binomial.log_binomial_transform."
    constants = {
        transform + "k_idx": torch.arange(BIN_COUNT).view(1, -1, 1, 1),
        transform + "K_minus_1": torch.full((1, 1, 1, 1), float(BIN_COUNT - 1)),
    }
    if network.bins is None:
        constants = {}
    clip = () if network.words is not None else clip_names()
    return key_table(network, lambda own: published_name(own, DEPTH_HEAD), constants, dict.fromkeys([*clip, CLIP_PREFIX + "embeddings.position_ids"]))


def load_evp(
    path: str | Path,
    variant: str = "nyu",
    config: EVPConfig = OFFICIAL,
    text_pack: str | Path | None = None,
    texts: str | Path | None = None,
    tokenizer: str | Path | None = None,
) -> EVP:
    """EVP with the weights of a published or self-trained checkpoint.

    Args:
        path: ``model.safetensors``, or a ``.ckpt``/``.pth`` with ``{'model': state_dict}``; names may carry a common prefix.
        variant: ``nyu`` or ``kitti``; a published file does not say which it is.
        config: sizes the file was trained with.
        text_pack: safetensors with ``context`` [1, tokens, width], instead of the checkpoint's own text. Needed for checkpoints
            that carry CLIP instead of the mean caption, if ``texts`` is not given. One row for each kind of room with ``scenes``:
            ``class_embeddings`` [27, width].
        texts: captions (see ``text_tower.read_captions``); the mean of what the file's own CLIP says of them is the text.
        tokenizer: CLIP's ``tokenizer.json``, for captions at run time; by default made from the vocabulary in the open_clip package.

    Raises:
        InputError: if the file is broken or unsafe, is another network's, does not fit exactly, or carries no CLIP for ``texts``.
        UsageError: if ``text_pack`` and ``texts`` are both given, or one of them with captions at run time.
        ValueError: for an unknown variant.
    """
    if text_pack is not None and texts is not None:
        raise UsageError("--text-pack and --texts contradict each other", fix="give one of them")
    words = _caption_words(config, text_pack or texts, tokenizer)
    with torch.device("meta"):
        network = EVP(config, variant, words)
    table, text = evp_keys(network), published_name("text.class_embeddings", DEPTH_HEAD)
    pack = None if text_pack is None else read_text_pack(text_pack, _pack_tensor(config), table.wanted[text].shape)
    checkpoint = read_checkpoint(path, ANCHOR)
    refuse_other_networks(checkpoint, "evp", config.name)
    if texts is not None:
        checkpoint.tensors[text] = caption_context(checkpoint, texts, config)
    elif pack is not None:
        checkpoint.tensors[text] = pack
    elif words is None and text not in checkpoint.tensors and any(name.startswith(CLIP_PREFIX) for name in checkpoint.tensors):
        raise InputError(
            f"{checkpoint.file} carries CLIP for one caption per image, and no {text}",
            wanted="the text that every image shall get",
            fix="--set captions=1 keeps CLIP, so that each photo comes with its caption; for one text for all "
            f"give --texts FILE with captions, or --text-pack FILE, a .safetensors with 'context' {list(table.wanted[text].shape)}",
        )
    fill(network, checkpoint, table, config.name)
    if words is not None:
        restore_position_buffers(network)
    network.origin = origin_of(checkpoint, PUBLISHED, PUBLISHED_LICENCE, network.text.gamma, network.decoder)
    return network


def _caption_words(config: EVPConfig, fixed: str | Path | None, tokenizer: str | Path | None) -> CaptionWords | None:
    """What becomes of captions at run time; None for a network with one text."""
    if not config.captions:
        if tokenizer is not None:
            raise UsageError("--tokenizer is for captions at run time", fix="--set captions=1, or leave it out")
        return None
    if fixed is not None:
        raise UsageError("captions at run time and one text for all contradict each other", fix="leave out --texts and --text-pack, or --set captions=1")
    return CaptionWords.of(config.backbone, config.tokens, tokenizer, bool(config.pooled))


def _pack_tensor(config: EVPConfig) -> str:
    return "class_embeddings" if config.scenes else "context"


def caption_context(checkpoint: Checkpoint, texts: str | Path, config: EVPConfig) -> Tensor:
    """What the CLIP in an EVP file says of captions, averaged: [1, tokens, width], or [1, 1, width] where the text is one vector.

    Raises:
        InputError: if the file carries no CLIP, or the captions cannot be read.
        UsageError: if the network takes the kind of room instead.
    """
    if config.scenes:
        raise UsageError("--texts is one text for all, and this network takes the kind of room with each photo", fix="leave out --texts, or --set scenes=1")
    from .text_tower import clip_tower, mean_states, mean_vector, read_captions

    captions = read_captions(texts)
    if not any(name.startswith(CLIP_PREFIX) for name in checkpoint.tensors):
        raise InputError(f"{checkpoint.file} carries no CLIP to read captions with", wanted="a checkpoint of captions per image", fix="give --text-pack FILE")
    read = mean_vector if config.pooled else mean_states
    return read(clip_tower(checkpoint, CLIP_PREFIX, config.backbone.context_width), captions, config.tokens)


def random_evp(
    variant: str = "nyu",
    config: EVPConfig = OFFICIAL,
    seed: int = 0,
    text_pack: str | Path | None = None,
    texts: str | Path | None = None,
    tokenizer: str | Path | None = None,
) -> EVP:
    """EVP with seeded random weights: right in shape, speed and finiteness, meaningless in depth. For benchmarks and tests.

    Raises:
        UsageError: if ``texts`` are given: there is no CLIP to read them with; see also ``load_evp``.
    """
    if texts is not None:
        raise UsageError("random weights hold no CLIP to read --texts with", fix="leave --texts out")
    words = _caption_words(config, text_pack, tokenizer)
    with torch.device("meta"):
        network = EVP(config, variant, words)
    randomise(network, seed)
    if words is None:
        network.text.randomise(seed)
    else:
        words.randomise(network.text, seed)
    if text_pack is not None:
        network.text.class_embeddings.copy_(read_text_pack(text_pack, _pack_tensor(config), tuple(network.text.class_embeddings.shape)))
    if network.bins is None:
        network.depth_head[2].weight.mul_(8)  # or all depth is half the range
    else:
        _lively_bins(network.bins, network.constants.max_depth_m)
    network.origin = WeightsOrigin("random-init", warnings=(RANDOM_WARNING,))
    return network.requires_grad_(False).eval()


def _lively_bins(bins: MetricBins, far: float) -> None:
    bins.seed_bin_regressor._net[2].bias.copy_(torch.linspace(0.02, 1, BIN_COUNT) * far)  # bins over the whole range, or all depth is ln 2
    last = bins.conditional_log_binomial.mlp[2]
    last.weight.mul_(8)  # the distribution over the bins differs from pixel to pixel, and is not flat
    last.bias.copy_(torch.tensor([0.0, 0.0, -2.0, 2.0]))
    transform = bins.conditional_log_binomial.log_binomial_transform
    transform.k_idx.copy_(torch.arange(BIN_COUNT).view(1, -1, 1, 1))
    transform.K_minus_1.fill_(BIN_COUNT - 1)
