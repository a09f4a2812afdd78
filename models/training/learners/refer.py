"""Training steps of the referring network: masks of what sentences name."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, binary_cross_entropy_with_logits, cross_entropy, interpolate

from ...network import DepthNetwork
from ..data.kept_samples import KeptSamples
from ..data.referring_data import NamedSamples, WordsBatch, WordsExamples
from ..recipes.recipe import Recipe
from .depth_hint import map_hint
from .diffusion import EvpLearner
from .mask_validation import blind_masks, validate_masks

CLASS_WEIGHTS = (0.9, 1.1)  # of background and object pixels in the loss
POSITION_SCALE = 0.1  # of the random embeddings of a token's position
DEPTH_HINT, MASK_HINT = 0.1, 0.5
ATTENTION_GAIN = 0.25  # of the usual size of random weights, where attention joins the picture


class ReferLearner(EvpLearner):
    """EVP's referring network. A picture is encoded once for all sentences about it.

    With ``hint``, the first channel of the latent learns the depth around its place, and the second one of each tap whether the words mean
    it: in a backbone that starts from nothing, gradients from the loss alone are too weak.
    """

    measures = "masks"

    def __init__(self, network: DepthNetwork, recipe: Recipe):
        super().__init__(network, recipe)
        self.sentences = recipe.sentences
        self.register_buffer("weights", torch.tensor(CLASS_WEIGHTS), persistent=False)

    @property
    def latent_divisor(self) -> float:
        return self.network.config.latent_divisor

    def predict(self, batch: WordsBatch) -> Tensor:
        """Logits [S, 2, window, window], enlarged as at inference."""
        return self.logits(self.maps(batch)[1:], batch.mask.shape[-1])

    def maps(self, batch: WordsBatch) -> tuple[Tensor, ...]:
        """The VAE's latent of each picture, and the U-Net's taps of each sentence."""
        latent = self.network.vae(batch.image)
        return latent, *self.network.unet((latent / self.latent_divisor)[batch.picture], self.network.text(batch.ids))

    def logits(self, taps: tuple[Tensor, ...], side: int) -> Tensor:
        """Logits [S, 2, side, side] of the taps."""
        refinement = self.network.refinement
        found = self.network.classifier(*(taps if refinement is None else refinement(*taps)))
        return interpolate(found, (side, side), mode="bilinear", align_corners=True)

    def forward(self, batch: WordsBatch) -> dict[str, Tensor]:
        latent, *taps = self.maps(batch)
        loss = cross_entropy(self.logits(taps, batch.mask.shape[-1]), batch.mask.long(), self.weights)
        if not self.hint:
            return {"loss": loss}
        depth = map_hint(latent, batch.truth_m, batch.valid, batch.image.shape[-1])
        meant = sum(binary_cross_entropy_with_logits(tap[:, 1], adaptive_avg_pool2d(batch.mask.float(), tap.shape[-1])) for tap in taps) / len(taps)
        return {"loss": loss + DEPTH_HINT * depth + MASK_HINT * meant, "cross_entropy": loss, "depth_hint": depth, "mask_hint": meant}

    def rebuilt(self, side: int) -> DepthNetwork:
        network = self.network
        return type(network)(dataclasses.replace(network.config, window=side), network.tokenizer, network.variant)

    def start(self, seed: int) -> None:
        """As EVP, but text influences the taps from the first step on and differs at every token: padding embeddings start at zero, and
        cross-attention is not scaled down."""
        super().start(seed)
        embeddings, draw = self.network.text.clip.embeddings, torch.Generator().manual_seed(seed)
        with torch.no_grad():
            embeddings.position_embedding.weight.mul_(POSITION_SCALE)
            embeddings.token_embedding.weight[self.network.contract.text.pad_id].zero_()
            for name, module in self.network.unet.named_modules():
                if name.endswith(".proj_out"):
                    module.weight.copy_(torch.randn(module.weight.shape, generator=draw) * ATTENTION_GAIN / module.weight.shape[1] ** 0.5)

    def spread_bins(self) -> None:
        """There are none."""

    def examples(self, samples: KeptSamples, geometry: str = "protocol") -> WordsExamples:
        """Raises:
        UsageError: if the samples are no synthetic rooms.
        """
        return WordsExamples(NamedSamples(samples), self.network.contract, self.network.tokenizer, self.sentences)

    def validate(self, samples: KeptSamples, batch: int, device: torch.device) -> dict[str, float]:
        return validate_masks(self.predict, self.examples(samples), device)

    def baselines(self, samples: KeptSamples) -> dict[str, dict[str, float]]:
        return blind_masks(self.examples(samples))
