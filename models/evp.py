"""EVP: Enhanced Visual Perception (arXiv 2312.08548), metric depth from Stable Diffusion features and caption text.

Where the paper and the code that made the published weights differ, this follows the code: the latent is divided by one scalar per
data set (paper: component-wise deviation), the timestep is 1, IMAFR has 3x3 convolutions with a shared norm (``refinement``), the
attractors pull with strength 300 and the depth is not clamped (``metric_bins``). The latent divisor, the depth range and the window
are not stored in the checkpoints; they belong to the variant.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..runtime.contract import Contract
from ..runtime.errors import InputError
from ..runtime.spec import StageSpec, TensorSpec
from .checkpoint import Checkpoint, Key, KeyTable, fill, read_checkpoint
from .depth_decoder import Decoder, DecoderConfig, depth_head, double
from .depth_protocols import CANVAS_MARGIN, depth_contract, kitti_benchmark, nyu_benchmark, nyu_single_image, squeezed_single_image
from .folding import FoldedUNet, FoldedVAE, with_batch_norm
from .metric_bins import BIN_COUNT, BinsConfig, MetricBins, MetricBinsExport
from .network import DepthNetwork, Stage, WeightsOrigin
from .random_weights import randomise
from .refinement import Aggregation, Refinement
from .stable_diffusion import LATENT_CHANNELS, LATENT_SCALE, TAP_NAMES, BackboneConfig, TapUNet, VAEEncoder
from .stable_diffusion_keys import unet_ldm_key, vae_ldm_key, vae_ldm_shape
from .text_context import TextContext, read_text_pack

FEATURE_SCALE = 32  # window pixels per pixel of the aggregated features
PUBLISHED = {  # SHA-256 (or its known start) -> where the file was published
    "08c86d74": "MykolaL/evp_depth",
    "709bfd12": "MykolaL/evp_depth",
    "913c380f": "MykolaL/evp_depth",
    "90e5f3ac901b466b6a75d4715ccf5a86dd0cfdf04497b07e849392f907df934c": "MykolaL/evp (space)",
}
PUBLISHED_LICENCE = "MIT (EVP repository); made from Stable Diffusion 1.5, CreativeML OpenRAIL-M"
FP32_ISLANDS = tuple(rf"(.*\.)?{part}(\..*)?" for part in ("soft_centers", "attract", "relative", "log_binomial", "expectation"))


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
            if window % FEATURE_SCALE or (window + CANVAS_MARGIN) % (8 * LATENT_SCALE):
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
    backbone=BackboneConfig((16, 32, 64, 64), 8, 2, 64, (16, 32, 64, 64), 8),
    refinement_groups=4,
    aggregation_groups=8,
    decoder=DecoderConfig(64, (16, 16, 16), 48),
    bins=BinsConfig(64, 64, 32, (16, 8, 4, 1), (16, 16, 16, 48)),
    nyu_window=224,
    kitti_window=160,
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
        return {**dataclasses.asdict(self.config), **constants}

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
        image, latent = _map("image", 3, canvas), _map("latent", LATENT_CHANNELS, canvas // LATENT_SCALE)
        taps = tuple(_map(n, c, canvas // (LATENT_SCALE << i)) for i, (n, c) in enumerate(zip(TAP_NAMES, config.tap_channels, strict=True)))
        features = _map("conv_feats", config.decoder.in_channels, side)
        levels = tuple(_map(f"x{i}", c, side << i) for i, c in enumerate(config.bins.level_channels, 1))
        raw, depth = _map("raw", 1, window), _map("depth", 1, window)
        vae = FoldedVAE(self.vae, self.constants.latent_divisor)
        unet = FoldedUNet(self.unet, self.text())
        decoder = FoldedDecoder(self.decoder, self.depth_head)
        return (
            Stage(StageSpec("vae", (image,), (latent,)), vae.eval(), folded=vae.folded),
            Stage(StageSpec("unet", (latent,), taps), unet.eval(), folded=unet.folded),
            Stage(StageSpec("refine", taps, (features,)), RefineStage(self.refinement, self.aggregation, side).eval()),
            Stage(StageSpec("decoder", (features,), (*levels, raw)), decoder.eval(), folded={"batch_norm": decoder.folded_norms}),
            Stage(StageSpec("bins", (features, *levels, raw), (depth,)), MetricBinsExport(self.bins).eval(), FP32_ISLANDS),
        )


def _map(name: str, channels: int, side: int) -> TensorSpec:
    return TensorSpec(name, "float32", ("batch", channels, side, side))


class RefineStage(nn.Module):
    """IMAFR, aggregation, and the cut of the last row and column, which saw only the canvas margin."""

    def __init__(self, refinement: nn.Module, aggregation: nn.Module, side: int):
        super().__init__()
        self.refinement, self.aggregation, self.side = refinement, aggregation, side

    def forward(self, f64: Tensor, f32: Tensor, f16: Tensor, f8: Tensor) -> Tensor:
        return self.aggregation(*self.refinement(f64, f32, f16, f8))[..., : self.side, : self.side]


class FoldedDecoder(nn.Module):
    """``Decoder`` and depth head with every batch norm within its convolution; the doubled x4 never leaves the stage."""

    def __init__(self, decoder: Decoder, head: nn.Module):
        super().__init__()
        layers = decoder.deconv_layers
        self.deconv_layers = nn.ModuleList([with_batch_norm(layers[i], layers[i + 1]) for i in range(0, len(layers), 3)])
        self.conv_layer = with_batch_norm(decoder.conv_layers[0], decoder.conv_layers[1])
        self.depth_head = head
        self.folded_norms = len(self.deconv_layers) + 1

    def forward(self, conv_feats: Tensor) -> tuple[Tensor, ...]:
        levels = [conv_feats]
        for layer in self.deconv_layers:
            levels.append(torch.relu(layer(levels[-1])))
        levels.append(double(torch.relu(self.conv_layer(levels[-1]))))
        return (*levels[1:], self.depth_head(double(levels[-1])))


PUBLISHED_PREFIXES = {  # own prefix -> published prefix; backbone names below it follow ``stable_diffusion_keys``
    "vae.": "encoder.encoder_vq.",
    "unet.": "encoder.unet.unet.diffusion_model.",
    "text.": "encoder.",
    "refinement.": "encoder.aggregation.",
    "aggregation.": "encoder.",
    "decoder.": "decoder.",
    "depth_head.": "decoder.last_layer_depth.",
    "bins.": "",
}
CLIP_PREFIX = "encoder.clip_model.transformer.text_model."


def published_name(own: str) -> str:
    """The name that one of this network's tensors has in the published checkpoints."""
    prefix = own.split(".", 1)[0] + "."
    rest = own[len(prefix) :]
    rule = {"vae.": vae_ldm_key, "unet.": unet_ldm_key}.get(prefix, str)
    return PUBLISHED_PREFIXES[prefix] + rule(rest)


def clip_names(layers: int = 12) -> list[str]:
    """The 196 names of the CLIP text tower that per-image checkpoints carry; a fixed context does not need it."""
    parts = [f"self_attn.{p}_proj" for p in "qkv"] + ["self_attn.out_proj", "mlp.fc1", "mlp.fc2", "layer_norm1", "layer_norm2"]
    names = [f"encoder.layers.{i}.{part}.{leaf}" for i in range(layers) for part in parts for leaf in ("weight", "bias")]
    names += ["embeddings.token_embedding.weight", "embeddings.position_embedding.weight", "final_layer_norm.weight", "final_layer_norm.bias"]
    return [CLIP_PREFIX + name for name in names]


def key_table(network: EVP) -> KeyTable:
    """What an EVP checkpoint holds, derived from the network's own tensors by the rules above."""
    wanted, defaults = {}, {}
    for own, tensor in network.state_dict().items():
        shape = tuple(tensor.shape)
        wanted[published_name(own)] = Key(own, vae_ldm_shape(own.removeprefix("vae."), shape) if own.startswith("vae.") else shape)
        if own.endswith("num_batches_tracked"):
            defaults[published_name(own)] = torch.zeros((), dtype=torch.int64)
    transform = "conditional_log_binomial.log_binomial_transform."
    defaults[transform + "k_idx"] = torch.arange(BIN_COUNT).view(1, -1, 1, 1)
    defaults[transform + "K_minus_1"] = torch.full((1, 1, 1, 1), float(BIN_COUNT - 1))
    ignored = dict.fromkeys([*clip_names(), CLIP_PREFIX + "embeddings.position_ids"])
    return KeyTable(wanted, defaults, ignored)


def load_evp(path: str | Path, variant: str = "nyu", config: EVPConfig = OFFICIAL, text_pack: str | Path | None = None) -> EVP:
    """EVP with the weights of a published or self-trained checkpoint.

    Args:
        path: ``model.safetensors``, or a ``.ckpt``/``.pth`` with ``{'model': state_dict}``; names may carry a common prefix.
        variant: ``nyu`` or ``kitti``; the file does not say which it is.
        config: sizes the file was trained with.
        text_pack: safetensors with ``context`` [1, tokens, width], instead of the checkpoint's own text. Needed for checkpoints
            that carry CLIP instead of the mean caption.

    Raises:
        InputError: if the file is broken or unsafe, is another network's, or does not fit exactly.
        ValueError: for an unknown variant.
    """
    with torch.device("meta"):
        network = EVP(config, variant)
    checkpoint = read_checkpoint(path, "encoder.gamma")
    refuse_other_networks(checkpoint, config.name)
    table, text_key = key_table(network), published_name("text.class_embeddings")
    if text_pack is not None:
        checkpoint.tensors[text_key] = read_text_pack(text_pack, "context", table.wanted[text_key].shape)
    elif text_key not in checkpoint.tensors and "encoder.gamma" in checkpoint.tensors:
        clip = "it carries CLIP for per-image captions instead" if any(n.startswith(CLIP_PREFIX) for n in checkpoint.tensors) else "and no CLIP either"
        raise InputError(
            f"{checkpoint.file} has no text embeddings ({text_key}); {clip}",
            wanted="a fixed text context",
            mend=f"--text-pack FILE, a .safetensors with 'context' {list(table.wanted[text_key].shape)}",
        )
    fill(network, checkpoint, table, config.name)
    network.origin = origin_of(checkpoint, network)
    return network


def refuse_other_networks(checkpoint: Checkpoint, wanted: str) -> None:
    """Name the network a checkpoint belongs to, if it is another one.

    Raises:
        InputError: if it is.
    """
    names = checkpoint.tensors.keys()
    signs = {
        "evp": any(n.startswith("encoder.aggregation.") for n in names),
        "vpd": any(n.startswith("last_layer_depth.") for n in names),
        "evp-refer": any(n.startswith("classifier.") for n in names) and any(n.startswith("unet.unet.") for n in names),
    }
    for network, sign in signs.items():
        if sign and network != wanted.removesuffix("-tiny"):
            raise InputError(f"{checkpoint.file} is a checkpoint of {network}, not of {wanted}", mend=f"--model {network}")
    if any(n.startswith(("model.diffusion_model.", "first_stage_model.", "cond_stage_model.")) for n in names):
        raise InputError(f"{checkpoint.file} is a plain Stable Diffusion checkpoint", wanted=f"weights of {wanted}, whose U-Net was trained for depth")


def origin_of(checkpoint: Checkpoint, network: EVP) -> WeightsOrigin:
    """Published or trained, by the file's hash, with a warning for every sign that the weights never learned anything."""
    published = any(checkpoint.sha256.startswith(known) for known in PUBLISHED)
    warnings = []
    if bool((network.text.gamma == 1e-4).all()):
        warnings.append("encoder.gamma is 1e-4 everywhere, as before the first training step.")
    if not any(norm.running_mean.any() for norm in network.decoder.modules() if isinstance(norm, nn.BatchNorm2d)):
        warnings.append("The decoder's batch norms have seen no data: every running mean is 0.")
    if network.decoder.deconv_layers[0].weight.std() < 2e-3:
        warnings.append("The decoder's first weights are as small as at their initialisation.")
    licence = PUBLISHED_LICENCE if published else "unknown"
    return WeightsOrigin("published" if published else "trained", checkpoint.file, checkpoint.sha256, licence, tuple(warnings))


def random_evp(variant: str = "nyu", config: EVPConfig = OFFICIAL, seed: int = 0, text_pack: str | Path | None = None) -> EVP:
    """EVP with seeded random weights: right in shape, speed and finiteness, meaningless in depth. For benchmarks and tests."""
    with torch.device("meta"):
        network = EVP(config, variant)
    randomise(network, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    text = network.text
    text.gamma.uniform_(-0.5, 0.5, generator=generator)
    text.class_embeddings.normal_(generator=generator)
    if text_pack is not None:
        text.class_embeddings.copy_(read_text_pack(text_pack, "context", tuple(text.class_embeddings.shape)))
    bins, far = network.bins, network.constants.max_depth_m
    bins.seed_bin_regressor._net[2].bias.copy_(torch.linspace(0.02, 1, BIN_COUNT) * far)  # bins over the whole range, or all depth is ln 2
    last = bins.conditional_log_binomial.mlp[2]
    last.weight.mul_(8)  # the distribution over the bins differs from pixel to pixel, and is not flat
    last.bias.copy_(torch.tensor([0.0, 0.0, -2.0, 2.0]))
    transform = bins.conditional_log_binomial.log_binomial_transform
    transform.k_idx.copy_(torch.arange(BIN_COUNT).view(1, -1, 1, 1))
    transform.K_minus_1.fill_(BIN_COUNT - 1)
    network.origin = WeightsOrigin("random-init", warnings=("The weights are random: the depth means nothing.",))
    return network
