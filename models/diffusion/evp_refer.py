"""EVP for referring segmentation (arXiv 2312.08548): the words of the user and a photo to a mask.

This follows the code that made the published weights: a latent divided by 4.7164, timestep 1, 40 tokens (the published RefCOCOg
setting of 77 does not fit IMAFR's fixed widths and never ran), CLIP's hidden states without a padding mask, and SimpleDecoding with
two logits at an eighth of the photo. The published metrics are taken at 512 x 512 on the squeezed mask.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from ...runtime.artefact.contract import Contract, ImageInput, OutputContract, Protocol, Resize
from ...runtime.artefact.spec import StageSpec, TensorSpec
from ...runtime.artefact.text_input import TextInput
from ..checkpoint import KeyTable, fill, read_checkpoint
from ..clip.clip_tokenizer import VOCABULARY, published_tokenizer, tokenizer_json, whole_word_merges
from ..network import DepthNetwork, Stage, WeightsOrigin
from ..position_buffers import restore_position_buffers
from ..random_init import RANDOM_WARNING, draw_weights, randomise
from .diffusion_checkpoint import key_table, refuse_other_networks, with_prefixes
from .folding import FoldedUNet, FoldedVAE
from .refinement import Refinement
from .simple_decoding import FoldedSimpleDecoding, SimpleDecoding
from .stable_diffusion import LATENT_CHANNELS, TAP_NAMES, TINY_BACKBONE, BackboneConfig, TapUNet, VAEEncoder, backbone_maps, square_map
from .text_context import TextAdapter

LATENT_DIVISOR = 4.7164
REFINED_NAMES = ("r64", "r32", "r16", "r8")
ANCHOR = "aggregation.layer1.conv1.weight"  # what stands before it in a file is a wrapper's name
HEAD_ANCHOR = "classifier.conv1_4.weight"
TOKENIZER = "tokenizer.json"
PUBLISHED_PREFIXES = {
    "vae.": "encoder_vq.",
    "unet.": "unet.unet.diffusion_model.",
    "text.clip.": "clip_model.text_model.",
    "text.": "",
    "refinement.": "aggregation.",
    "": "",
}
PUBLISHED = {"657dc9c5": "MykolaL/evp_refer", "debca855": "MykolaL/evp_refer"}
LICENCE = "MIT (EVP repository); made from Stable Diffusion 1.5 (CreativeML OpenRAIL-M) and CLIP ViT-L/14 (MIT)"
TINY_WORDS = (
    "the a an of on in at to with and is left right top bottom middle front back behind near far man woman person boy girl child guy lady kid "
    "cup bowl chair table dog cat car bus train horse bike ball book bed sofa lamp door window white black red blue green yellow brown big small "
    "one two three first second third standing sitting holding wearing shirt hat "
    "floor ceiling wall curtain radiator picture clock rug shelf cupboard desk screen counter fridge plant box bottle"
)


@dataclass(frozen=True)
class EVPReferConfig:
    """Sizes of the referring network.

    Args:
        name: the command-line name.
        backbone: VAE encoder and U-Net.
        tokens: of a prompt, begin, end and padding included.
        clip_layers, clip_heads, clip_mlp, clip_positions: of the text tower; its width is the backbone's context width.
        refinement_groups: GroupNorm groups of IMAFR.
        hidden: width of the segmentation head.
        window: side of the square input, in pixels.
        imafr, std: 0: without IMAFR, without the latent's divisor; both: VPD's referring network, with which the paper compares.
    """

    name: str = "evp-refer"
    backbone: BackboneConfig = dataclasses.field(default_factory=BackboneConfig)
    tokens: int = 40
    vocabulary: int = VOCABULARY
    clip_layers: int = 12
    clip_heads: int = 12
    clip_mlp: int = 3072
    clip_positions: int = 77
    refinement_groups: int = 20
    hidden: int = 640
    window: int = 512
    imafr: int = 1
    std: int = 1

    def __post_init__(self):
        if self.imafr not in (0, 1) or self.std not in (0, 1):
            raise ValueError(f"imafr {self.imafr} and std {self.std}: 0 or 1 was wanted")
        if not 2 < self.tokens <= self.clip_positions or self.window % 64:
            raise ValueError(f"{self.tokens} tokens of {self.clip_positions} positions and a window of {self.window} pixels do not go together")

    @property
    def latent_divisor(self) -> float:
        """What the latent is divided by."""
        return LATENT_DIVISOR if self.std else 1.0

    @property
    def tap_channels(self) -> tuple[int, int, int, int]:
        """Channels of f64, f32, f16, f8: the middle two carry one attention map per token."""
        c0, c1, c2, c3 = self.backbone.unet_channels
        return (c0, c1 + self.tokens, c2 + self.tokens, c3)


TINY_TOKENIZER = tokenizer_json(whole_word_merges(TINY_WORDS.split()))
OFFICIAL = EVPReferConfig()
TINY = EVPReferConfig(
    name="evp-refer-tiny",
    backbone=TINY_BACKBONE,
    tokens=24,
    vocabulary=514 + len({"".join(pair) for pair in whole_word_merges(TINY_WORDS.split())}),
    clip_layers=2,
    clip_heads=2,
    clip_mlp=128,
    refinement_groups=4,
    hidden=48,
    window=128,
)


class ReferText(nn.Module):
    """Token ids [B, T] to the context [B, T, width]: CLIP's hidden states, each with gamma times its adapted self added.

    Args:
        pooled: only the one where the words end: the context is [B, 1, width].
    """

    def __init__(self, config: EVPReferConfig, pooled: bool = False):
        super().__init__()
        self.pooled = pooled
        width = config.backbone.context_width
        self.clip = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=config.vocabulary,
                hidden_size=width,
                intermediate_size=config.clip_mlp,
                num_hidden_layers=config.clip_layers,
                num_attention_heads=config.clip_heads,
                max_position_embeddings=config.clip_positions,
                hidden_act="quick_gelu",
                bos_token_id=config.vocabulary - 2,
                eos_token_id=config.vocabulary - 1,
            )
        )
        self.gamma = nn.Parameter(torch.full((width,), 1e-4))
        self.text_adapter = TextAdapter(width)

    def forward(self, ids: Tensor) -> Tensor:
        text = self.clip(input_ids=ids).last_hidden_state
        text = at_end(text, ids) if self.pooled else text
        return text + self.gamma * self.text_adapter(text)


def at_end(states: Tensor, ids: Tensor) -> Tensor:
    """Of hidden states [B, T, width] the one at the first end token, [B, 1, width]; that token has the largest id, and stands for padding too."""
    place = ids.argmax(dim=1)[:, None, None].expand(-1, 1, states.shape[-1])
    return states.gather(1, place)


class TextStage(nn.Module):
    """``ReferText`` with the causal mask as a constant, which transformers would build anew for every call."""

    def __init__(self, text: ReferText, tokens: int):
        super().__init__()
        self.embeddings, self.encoder, self.final_layer_norm = text.clip.embeddings, text.clip.encoder, text.clip.final_layer_norm
        self.gamma, self.text_adapter, self.pooled = text.gamma, text.text_adapter, text.pooled
        self.register_buffer("mask", torch.full((1, 1, tokens, tokens), -1e4).triu(1))  # finite in FP16; e^-10000 is 0 in any precision

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embeddings(ids)
        for layer in self.encoder.layers:
            x = layer(x, attention_mask=self.mask)
        text = self.final_layer_norm(x)
        text = at_end(text, ids) if self.pooled else text
        return text + self.gamma * self.text_adapter(text)


class EVPRefer(DepthNetwork):
    """The unfolded network. Published weights come through ``load_evp_refer``.

    Args:
        config: ``OFFICIAL`` or ``TINY``, or another of the same architecture.
        tokenizer: the ``tokenizer.json`` that goes with the text tower.
        variant: ``refcoco``.

    Raises:
        ValueError: for an unknown variant.
    """

    def __init__(self, config: EVPReferConfig, tokenizer: bytes, variant: str = "refcoco"):
        super().__init__()
        if variant != "refcoco":
            raise ValueError(f"EVP's referring network has no variant {variant!r}, wanted refcoco")
        self.config, self.name, self.variant, self.tokenizer = config, config.name, variant, tokenizer
        self.contract = _contract(config)
        self.origin = WeightsOrigin("random-init")
        self.vae = VAEEncoder(config.backbone)
        self.unet = TapUNet(config.backbone, collect_maps=True)
        self.text = ReferText(config)
        self.refinement = Refinement(config.tap_channels, config.refinement_groups) if config.imafr else None
        self.classifier = SimpleDecoding(config.tap_channels, config.hidden)

    def config_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self.config), "latent_divisor": self.config.latent_divisor}

    def artefact_files(self) -> dict[str, bytes]:
        return {TOKENIZER: self.tokenizer}

    def example_inputs(self, batch: int = 1, seed: int = 0) -> dict[str, Tensor]:
        """A smooth picture and random words between begin and end, padded with end tokens as the published code does."""
        config = self.config
        ids = torch.full((batch, config.tokens), config.vocabulary - 1)
        ids[:, 0] = config.vocabulary - 2
        ids[:, 1:6] = torch.randint(256, config.vocabulary - 2, (batch, 5), generator=torch.Generator().manual_seed(seed))
        return {**super().example_inputs(batch, seed), "ids": ids}

    def boundaries(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        found = {"context": self.text(inputs["ids"]), "latent": self.vae(inputs["image"]) / self.config.latent_divisor}
        taps = self.unet(found["latent"], found["context"])
        found |= zip(TAP_NAMES, taps, strict=True)
        if self.refinement is not None:
            taps = self.refinement(*taps)
            found |= zip(REFINED_NAMES, taps, strict=True)
        found["logits"] = self.classifier(*taps)
        return found

    def stages(self) -> tuple[Stage, ...]:
        config = self.config
        ids = TensorSpec("ids", "int64", ("batch", config.tokens))
        context = TensorSpec("context", "float32", ("batch", config.tokens, config.backbone.context_width))
        image, latent, taps = backbone_maps(config.window, config.tap_channels)
        refined = tuple(dataclasses.replace(tap, name=name) for tap, name in zip(taps, REFINED_NAMES, strict=True))
        logits = square_map("logits", 2, config.window // 8)
        vae, unet = FoldedVAE(self.vae, config.latent_divisor), FoldedUNet(self.unet, None)
        head = FoldedSimpleDecoding(self.classifier)
        refine = () if self.refinement is None else (Stage(StageSpec("refine", taps, refined), self.refinement),)
        return (
            Stage(StageSpec("text", (ids,), (context,)), TextStage(self.text, config.tokens).eval()),
            Stage(StageSpec("vae", (image,), (latent,)), vae.eval(), folded=vae.folded),
            Stage(StageSpec("unet", (latent, context), taps), unet.eval(), folded=unet.folded),
            *refine,
            Stage(StageSpec("classifier", refined if refine else taps, (logits,)), head.eval(), folded=head.folded),
        )


def _contract(config: EVPReferConfig) -> Contract:
    half, window = (0.5, 0.5, 0.5), config.window
    image = ImageInput("image", (window, window), (window, window), half, half)
    output = OutputContract("logits", "mask", "", 0.0, 1.0, "", "bilinear-corners")
    source = "EVP refer/test.py: squeezed to 512x512 by Pillow" + ("" if window == 512 else f"; scaled to {window}")
    protocol = Protocol("single-image", (Resize(window, window, "bilinear-antialias"),), (0,), (), False, source)
    text = TextInput("prompt", "ids", "", config.tokens, config.vocabulary - 1, TOKENIZER, "{text}")
    return Contract(image, output, (protocol,), text)


def published_name(own: str) -> str:
    """The name that one of this network's tensors has in the published checkpoint."""
    return with_prefixes(own, PUBLISHED_PREFIXES)


def evp_refer_keys(network: EVPRefer) -> KeyTable:
    """What a checkpoint must hold. The U-Net's output head and the VAE decoder's first convolution are there and not used."""
    finest = network.config.backbone.unet_channels[0]
    out, post = "unet.unet.diffusion_model.out.", "encoder_vq.post_quant_conv."
    unused = {out + "0.weight": (finest,), out + "0.bias": (finest,), out + "2.weight": (LATENT_CHANNELS, finest, 3, 3), out + "2.bias": (LATENT_CHANNELS,)}
    unused |= {post + "weight": (LATENT_CHANNELS, LATENT_CHANNELS, 1, 1), post + "bias": (LATENT_CHANNELS,)}
    unused |= {"clip_model.text_model.embeddings.position_ids": (1, network.config.clip_positions)}
    return key_table(network, published_name, {}, unused)


def load_evp_refer(path: str | Path, variant: str = "refcoco", config: EVPReferConfig = OFFICIAL, tokenizer: str | Path | None = None) -> EVPRefer:
    """The referring network with the weights of the published file (1,089 tensors), bare or with a wrapper's prefix, or self-trained.

    Args:
        path: ``model.safetensors``, or ``.pth`` with ``{'model': state_dict}``.
        variant: ``refcoco``.
        config: sizes the file was trained with.
        tokenizer: CLIP's ``tokenizer.json``; by default made from the vocabulary in the open_clip package.

    Raises:
        InputError: if the file or the tokenizer is broken, missing, another network's, or does not fit exactly.
        ValueError: for an unknown variant.
    """
    with torch.device("meta"):
        network = EVPRefer(config, _tokenizer(config, tokenizer), variant)
    anchor = ANCHOR if config.imafr else HEAD_ANCHOR
    checkpoint = read_checkpoint(path, f"encoder.{ANCHOR}", anchor)  # the first is EVP's for depth, which is reported below
    refuse_other_networks(checkpoint, "evp-refer" if config.imafr else "vpd-refer", config.name)
    fill(network, checkpoint, evp_refer_keys(network), config.name)
    restore_position_buffers(network)
    known = any(checkpoint.sha256.startswith(start) for start in PUBLISHED)
    warnings = ("gamma is 1e-4 everywhere, as before the first training step.",) if bool((network.text.gamma == 1e-4).all()) else ()
    network.origin = WeightsOrigin("published" if known else "trained", checkpoint.file, checkpoint.sha256, LICENCE if known else "unknown", warnings)
    return network


def random_evp_refer(variant: str = "refcoco", config: EVPReferConfig = OFFICIAL, seed: int = 0, tokenizer: str | Path | None = None) -> EVPRefer:
    """The referring network with seeded random weights: right in shape and speed, meaningless as a mask. For benchmarks and tests."""
    with torch.device("meta"):
        network = EVPRefer(config, _tokenizer(config, tokenizer), variant)
    randomise(network, seed)
    draw_weights(network.text.clip, seed + 1)
    network.text.gamma.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(seed))
    network.text.clip.embeddings.position_ids = torch.arange(config.clip_positions)[None]
    network.origin = WeightsOrigin("random-init", warnings=(RANDOM_WARNING.replace("depth", "mask"),))
    return network.requires_grad_(False).eval()


def _tokenizer(config: EVPReferConfig, path: str | Path | None) -> bytes:
    return published_tokenizer(path) if config.vocabulary == VOCABULARY else TINY_TOKENIZER
