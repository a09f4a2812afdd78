"""Training steps of the small DepthCLIP and DepthBLIP-2, whose published weights exist in no small size."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from ...blip2.qformer import PromptedQFormer
from ...clip.depthclip import WORD_SHARE
from ...network import DepthNetwork
from ..data.training_data import Batch
from ..recipes.recipe import Recipe
from .depth_hint import patch_hint, scattered_waves
from .learner import Learner

START_SPREAD = 8.0  # of the initial logits of DepthBLIP-2
PROMPT_GAIN, PICTURE_GAIN = 4.0, 2.0  # of its attention to the prompt and to the picture, at the start
POSITION_GAIN = 0.7


class WordsLearner(Learner):
    """Networks that compare places with seven distance words: their coarse map is enlarged to the truth's size as at inference."""

    def predict(self, batch: Batch) -> Tensor:
        return self.enlarged(self.network.boundaries({"image": batch.image})["depth"], batch)

    def enlarged(self, depth_m: Tensor, batch: Batch) -> Tensor:
        """The network's own map [B, 1, h, w] at the size of the truth."""
        corners = self.network.contract.output.upsample == "bilinear-corners"
        return interpolate(depth_m, batch.truth_m.shape[-2:], mode="bilinear", align_corners=corners)


class DepthClipLearner(WordsLearner):
    """DepthCLIP, small: the trunk and the words' directions learn, where the published network is frozen."""

    def __init__(self, network: DepthNetwork, recipe: Recipe):
        super().__init__(network, recipe)
        network.visual.to(memory_format=torch.channels_last)  # two thirds of the time on a CPU

    def start(self, seed: int) -> None:
        """Identity norms, residual branches that add nothing yet, and the features of the words on half a circle, so that neighbours are the most
        alike."""
        words = self.network.text_features
        draw = torch.randn(words.shape[1], 3, generator=torch.Generator().manual_seed(seed))
        ones = torch.ones(words.shape[1], 1)  # features are all positive: their mean shall favour no word
        common, low, high = torch.linalg.qr(torch.cat([ones, draw], dim=1)).Q.to(words.device).T[1:]
        turns = torch.linspace(-math.pi / 2, math.pi / 2, len(words), device=words.device)[:, None]
        with torch.no_grad():
            words.copy_(normalize(common + WORD_SHARE * (turns.cos() * low + turns.sin() * high), dim=-1))
            for name, module in self.network.visual.named_modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.reset_parameters()
                    if name.endswith(".bn3") and "layer" in name:
                        module.weight.zero_()


class DepthBlip2Learner(WordsLearner):
    """DepthBLIP-2, small: everything learns. (Of the full size only the bins do; ``bins_training`` fits them in one go, this one measures.)"""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """With ``hint``, the first channel of each patch's token learns the patch's depth. Between a new encoder and the loss stands the narrow
        path through seven times eight queries; the published encoder had seen millions of pictures before.
        """
        network = self.network.eval()  # without dropout: no sample is seen often enough to overfit
        tokens = network.image_encoder(batch.image)
        hint = self.hint and patch_hint(tokens, batch.truth_m, batch.valid, network.config.vision.image // network.config.vision.patch)
        if self.alone:
            return {"loss": self.hint * hint, "hint": hint}
        fused = PromptedQFormer(network.qformer, network.config.prompt_ids, learns=True)(tokens)  # all at once, as exported: a third of the time
        loss = self.loss(self.enlarged(network.head(fused), batch), batch.truth_m, batch.valid)
        return {"loss": loss + self.hint * hint, "depth": loss, "hint": hint} if self.hint else {"loss": loss}

    def start(self, seed: int) -> None:
        """Identity norms, an encoder whose branches add nothing yet, position embeddings made of waves, and attention outputs scaled up so that
        prompts influence queries: if all prompts attend to a picture alike, all words get the same score, and the softmax over words cancels it.
        """
        network = self.network
        with torch.no_grad():
            for module in network.modules():
                if isinstance(module, nn.LayerNorm):
                    module.reset_parameters()
            for name, module in network.image_encoder.encoder.named_modules():
                if name.endswith((".out_proj", ".projection", ".fc2")):
                    nn.init.zeros_(module.weight)
                    nn.init.zeros_(module.bias)
            places = network.image_encoder.embeddings.position_embedding
            places = places.weight if isinstance(places, nn.Embedding) else places[0]  # [1 + patches, width]
            places[1:] = POSITION_GAIN * scattered_waves(math.isqrt(len(places) - 1), places.shape[1], seed).to(places.device)
            layers = network.qformer.former.encoder.layer
            for layer in layers:
                layer.attention.output.dense.weight.mul_(PROMPT_GAIN)
                if layer.has_cross_attention:
                    layer.crossattention.output.dense.weight.mul_(PICTURE_GAIN)
            layers[-1].output_query.LayerNorm.weight.fill_(START_SPREAD * network.config.temperature)
