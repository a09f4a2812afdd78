"""Training steps of LLM-MDE: its loss, its own prompts, and auxiliary depth losses in the ViT and in the head (hints)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ....runtime.text.encoder import TextEncoder
from ...network import DepthNetwork
from ..data.training_data import Batch
from ..recipes.recipe import Recipe
from .depth_hint import map_hint, patch_hint, scattered_waves
from .learner import Learner

RELATIVE_FAR_M = 10.0
NEAREST_M = 0.1  # nearer pixels are left out of the loss
WORD_SHARE, PROTOTYPE_GAIN, KEY_GAIN = 0.2, 10.0, 2.0  # so that the reprogramming chooses between its prototypes


class LlmMdeLearner(Learner):
    """LLM-MDE, whose prompts are written by the pictures themselves."""

    def __init__(self, network: DepthNetwork, recipe: Recipe):
        super().__init__(network, recipe)
        text = network.contract.text
        self.write = TextEncoder(text, network.contract.input, network.artefact_files()[text.tokenizer]) if text is not None else None

    def words(self, batch: Batch) -> dict[str, Tensor]:
        """The prompts of the pictures; nothing where they are fixed."""
        if self.write is None:
            return {}
        return {name: torch.from_numpy(values).to(batch.image.device) for name, values in self.write(batch.image.cpu().numpy()).items()}

    def predict(self, batch: Batch) -> Tensor:
        return self.network.boundaries({"image": batch.image, **self.words(batch)})["depth"]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Maps from 0 to 1 learn the depth as a share of 10 m: a sigmoid cannot give metres.

        With ``hint``, the first channel of each patch's token learns the patch's depth, and the first channel of the head's code the depth of
        its place. A new ViT needs it: between its tokens and the loss stand prototypes, a language model, and a head that sums over all tokens.
        """
        truth = batch.truth_m if self.network.config.far_m else batch.truth_m / RELATIVE_FAR_M
        valid = batch.valid & (batch.truth_m > NEAREST_M)
        side = self.network.config.vit.image // self.network.config.vit.patch
        if self.alone:
            hint = patch_hint(self.network.tokens(batch.image).float(), batch.truth_m, valid, side)
            return {"loss": self.hint * hint, "hint": hint}
        found = self.network.boundaries({"image": batch.image, **self.words(batch)})
        loss = self.loss(found["depth"].float(), truth, valid)
        if not self.hint:
            return {"loss": loss}
        hint = patch_hint(found["vit_tokens"].float(), batch.truth_m, valid, side)
        code = map_hint(self.network.head.code_map(found["llm_out"]).float(), batch.truth_m, valid, batch.truth_m.shape[-1])
        return {"loss": loss + self.hint * (hint + code), "depth": loss, "hint": hint, "code_hint": code}

    def start(self, seed: int) -> None:
        """He initialisation, zero biases, identity norms, adapters that add nothing yet, position embeddings made of waves, and prototypes that
        differ: the image tokens reach the language model through the prototypes, behind a long prompt that is mostly the same.
        """
        network = self.network
        with torch.no_grad():
            for module in network.modules():
                if isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
                    module.reset_parameters()
                elif isinstance(module, (nn.Linear, nn.Conv2d)):
                    if isinstance(module, nn.Conv2d):
                        module.weight.mul_(math.sqrt(2))
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
            for name, module in network.vit.named_modules():
                if name.endswith((".attn.proj", ".mlp.fc2", ".linear_b_q", ".linear_b_v")):
                    nn.init.zeros_(module.weight)
            network.llm.embeddings.word_embeddings.weight.mul_(WORD_SHARE)
            network.prototypes.weight.mul_(PROTOTYPE_GAIN)
            network.reprogramming.key_projection.weight.mul_(KEY_GAIN)
            places = network.vit.pos_embed[0]
            places[1:] = scattered_waves(math.isqrt(len(places) - 1), places.shape[1], seed).to(places.device)
