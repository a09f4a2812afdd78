"""VPD: Visual Perception with a pre-trained Diffusion model (arXiv 2303.02153), metric depth from Stable Diffusion features.

Where the paper and the code that made the published weights differ, this follows the code: no cross-attention maps are used for
depth, the timestep is 1 and the latent is not scaled. The context is a single token, the mean pooled caption of the room's kind, so
the scene must be chosen, for each photo or once for all; the published evaluation takes it from the name of the data set's folder.

A plan that is told the scene with each photo holds the result of all 16 cross-attentions for all 27 scenes: 1.4 MB. Keys and values of the
scenes would be 102 MB and take 1.9 s longer on one busy core, a text input 176 MB and as long (``benchmarks.studies.vpd_scenes``).
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...runtime.artefact.spec import StageSpec, TensorSpec
from ...runtime.errors import UsageError
from ..checkpoint import KeyTable, fill, read_checkpoint
from ..network import DepthNetwork, Stage, WeightsOrigin
from ..nyu_scenes import SCENES
from ..random_init import RANDOM_WARNING, randomise
from .depth_decoder import Decoder, DecoderConfig, FoldedDecoder, depth_head, double
from .depth_protocols import CANVAS_MARGIN, FEATURE_SCALE, ROOMS_FOCAL_WIDTHS, depth_contract, nyu_benchmark, squeezed_single_image
from .diffusion_checkpoint import ANCHOR, key_table, origin_of, published_name, refuse_other_networks
from .folding import FoldedUNet, FoldedVAE
from .metric_bins import RelativeDepth
from .refinement import Aggregation
from .stable_diffusion import LATENT_CHANNELS, TAP_NAMES, TINY_BACKBONE, BackboneConfig, TapUNet, VAEEncoder, backbone_maps, square_map
from .text_context import TextContext, read_text_pack, scene_choice

MAX_DEPTH_M = 10.0
DEPTH_HEAD = "last_layer_depth."  # its published prefix


@dataclass(frozen=True)
class VPDConfig:
    """Sizes of VPD.

    Args:
        name: the command-line name.
        backbone: VAE encoder and U-Net.
        aggregation_groups: GroupNorm groups of the aggregation.
        decoder: its widths.
        nyu_window: side of the square input window, in pixels; the canvas is 32 pixels larger.
        focal_widths: as of ``EVPConfig``.
    """

    name: str = "vpd"
    backbone: BackboneConfig = dataclasses.field(default_factory=BackboneConfig)
    aggregation_groups: int = 16
    decoder: DecoderConfig = dataclasses.field(default_factory=DecoderConfig)
    nyu_window: int = 480
    focal_widths: float = 0.0

    def __post_init__(self):
        if self.nyu_window % FEATURE_SCALE or (self.nyu_window + CANVAS_MARGIN) % (2 * FEATURE_SCALE):
            raise ValueError(f"a window of {self.nyu_window} pixels gives no whole number of latent pixels on every level")


OFFICIAL = VPDConfig()
TINY = VPDConfig("vpd-tiny", TINY_BACKBONE, 8, DecoderConfig(192, (32, 32, 32), 16), 160, ROOMS_FOCAL_WIDTHS)


def scene_row(scene: str | None) -> int | None:
    """The row of a scene in the class embeddings, None if it is chosen for each photo.

    Raises:
        UsageError: if it is none of ``SCENES``.
    """
    if scene is None:
        return None
    if scene not in SCENES:
        raise UsageError(
            f"VPD knows no scene {scene!r}", wanted=f"one of {', '.join(SCENES)}", fix="give --scene NAME, or leave it out to choose with each photo"
        )
    return SCENES.index(scene)


def scene_of_photo(name: str) -> str | None:
    """The scene that the published code reads from "<folder>_<file>" of a photo: the first of ``SCENES`` that occurs in it, or None.

    So ``study_room_0004`` is a ``study``, ``office_kitchen_0001`` a ``kitchen`` and ``nyu_office_0`` an ``office``; ``study_room`` and
    ``office_kitchen`` are never chosen.
    """
    return next((scene for scene in SCENES if scene in name), None)


class VPD(DepthNetwork):
    """The unfolded network. Published weights come through ``load_vpd``.

    Args:
        config: ``OFFICIAL`` or ``TINY``, or another of the same architecture.
        scene: one of ``SCENES``, or None: then the network takes the scene's row with each photo.
        variant: ``nyu``; no other was ever trained.

    Raises:
        UsageError: for an unknown scene.
        ValueError: for an unknown variant.
    """

    def __init__(self, config: VPDConfig, scene: str | None, variant: str = "nyu"):
        super().__init__()
        if variant != "nyu":
            raise ValueError(f"VPD has no variant {variant!r}, wanted nyu")
        self.row, self.scene = scene_row(scene), scene
        self.config, self.name, self.variant = config, config.name, variant
        window = config.nyu_window
        protocols = (squeezed_single_image(window, OFFICIAL.nyu_window), nyu_benchmark(window, 2, "VPD test.sh"))
        self.contract = depth_contract(window, MAX_DEPTH_M, protocols, config.focal_widths)
        if scene is None:
            self.contract = dataclasses.replace(self.contract, text=scene_choice())
        self.origin = WeightsOrigin("random-init")
        channels = config.backbone.unet_channels
        self.vae = VAEEncoder(config.backbone)
        self.unet = TapUNet(config.backbone, collect_maps=False)
        self.text = TextContext((len(SCENES), config.backbone.context_width))
        self.aggregation = Aggregation(channels, config.decoder.in_channels, config.aggregation_groups)
        self.decoder = Decoder(config.decoder)
        self.depth_head = depth_head(config.decoder.channels)
        self.relative = RelativeDepth(MAX_DEPTH_M)

    def example_inputs(self, batch: int = 1, seed: int = 0) -> dict[str, Tensor]:
        found = super().example_inputs(batch, seed)
        if self.row is None:
            found["scene"] = torch.randint(len(SCENES), (batch, 1), generator=torch.Generator().manual_seed(seed))
        return found

    def config_json(self) -> dict[str, Any]:
        constants = {"scene": self.scene, "max_depth_m": MAX_DEPTH_M, "window": self.config.nyu_window}
        return json.loads(json.dumps({**dataclasses.asdict(self.config), **constants}))  # tuples become lists

    def boundaries(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        found = {"latent": self.vae(inputs["image"])}
        rows = inputs["scene"] if self.row is None else torch.tensor([[self.row]], device=found["latent"].device)
        taps = self.unet(found["latent"], self.text(rows))
        found |= zip(TAP_NAMES, taps, strict=True)
        side = self.config.nyu_window // FEATURE_SCALE
        features = self.aggregation(*taps)[..., :side, :side]
        found["depth"] = self.relative(self.depth_head(double(self.decoder(features)[-1])))
        return found

    def stages(self) -> tuple[Stage, ...]:
        window = self.config.nyu_window
        image, latent, taps = backbone_maps(window + CANVAS_MARGIN, self.config.backbone.unet_channels)
        vae = FoldedVAE(self.vae, 1.0)
        known = range(len(SCENES)) if self.row is None else (self.row,)
        unet = FoldedUNet(self.unet, self.text(torch.tensor([[row] for row in known])))
        told = (TensorSpec("scene", "int64", ("batch", 1)),) if self.row is None else ()
        decoder = DecoderStage(self, window // FEATURE_SCALE)
        return (
            Stage(StageSpec("vae", (image,), (latent,)), vae.eval(), folded=vae.folded),
            Stage(StageSpec("unet", (latent, *told), taps), unet.eval(), folded=unet.folded),
            Stage(StageSpec("decoder", taps, (square_map("depth", 1, window),)), decoder.eval(), ("relative",), decoder.decoder.folded),
        )


class DecoderStage(nn.Module):
    """Aggregation, the cut of the last row and column (which saw only the canvas margin), decoder and depth in metres."""

    def __init__(self, network: VPD, side: int):
        super().__init__()
        self.aggregation, self.relative, self.side = network.aggregation, network.relative, side
        self.decoder = FoldedDecoder(network.decoder, network.depth_head)

    def forward(self, f64: Tensor, f32: Tensor, f16: Tensor, f8: Tensor) -> Tensor:
        features = self.aggregation(f64, f32, f16, f8)[..., : self.side, : self.side]
        return self.relative(self.decoder(features)[-1])


def vpd_keys(network: VPD) -> KeyTable:
    """What a VPD checkpoint holds: EVP's backbone, aggregation and decoder, and the VAE decoder's first convolution, unused."""
    post_quant = "encoder.encoder_vq.post_quant_conv."
    unused = {post_quant + "weight": (LATENT_CHANNELS, LATENT_CHANNELS, 1, 1), post_quant + "bias": (LATENT_CHANNELS,)}
    return key_table(network, lambda own: published_name(own, DEPTH_HEAD), {}, unused)


def load_vpd(path: str | Path, scene: str | None = None, variant: str = "nyu", config: VPDConfig = OFFICIAL, text_pack: str | Path | None = None) -> VPD:
    """VPD with the weights of a published or self-trained checkpoint.

    Args:
        path: ``.ckpt``/``.pth`` with ``{'model': state_dict}``, or safetensors; names may carry a common prefix.
        scene: one of ``SCENES``, or None to choose with each photo.
        variant: ``nyu``.
        config: sizes the file was trained with.
        text_pack: safetensors with ``class_embeddings`` [27, width], instead of the checkpoint's own.

    Raises:
        InputError: if the file is broken or unsafe, is another network's, or does not fit exactly.
        UsageError: if the scene is unknown.
        ValueError: for an unknown variant.
    """
    with torch.device("meta"):
        network = VPD(config, scene, variant)
    table, text = vpd_keys(network), published_name("text.class_embeddings", DEPTH_HEAD)
    pack = None if text_pack is None else read_text_pack(text_pack, "class_embeddings", table.wanted[text].shape)
    checkpoint = read_checkpoint(path, ANCHOR)
    refuse_other_networks(checkpoint, "vpd", config.name)
    if pack is not None:
        checkpoint.tensors[text] = pack
    fill(network, checkpoint, table, config.name)
    network.origin = origin_of(checkpoint, {}, "", network.text.gamma, network.decoder)
    return network


def random_vpd(scene: str | None = None, variant: str = "nyu", config: VPDConfig = OFFICIAL, seed: int = 0, text_pack: str | Path | None = None) -> VPD:
    """VPD with seeded random weights: right in shape, speed and finiteness, meaningless in depth. For benchmarks and tests."""
    with torch.device("meta"):
        network = VPD(config, scene, variant)
    randomise(network, seed)
    network.text.randomise(seed)
    if text_pack is not None:
        network.text.class_embeddings.copy_(read_text_pack(text_pack, "class_embeddings", tuple(network.text.class_embeddings.shape)))
    network.depth_head[2].weight.mul_(8)  # or all depth is half the range
    network.origin = WeightsOrigin("random-init", warnings=(RANDOM_WARNING,))
    return network
