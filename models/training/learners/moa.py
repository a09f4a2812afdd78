"""Training steps of MoA-DepthCLIP: both heads, and the entropy of its gates."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ...network import DepthNetwork
from ..data.training_data import Batch
from ..recipes.recipe import Recipe
from .learner import Learner
from .losses import MOA_WEIGHTS, moa_parts


class MoaLearner(Learner):
    """MoA-DepthCLIP: both heads learn, enlarged to the truth's size, and the entropy of the gates is watched (equations 4 to 8)."""

    def __init__(self, network: DepthNetwork, recipe: Recipe):
        super().__init__(network, recipe)
        self.entropies: list[Tensor] = []
        for adapters in network.mixtures():
            adapters.register_forward_pre_hook(self._watch)

    def _watch(self, adapters: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if self.training:
            with torch.no_grad():
                gates = adapters.gates(inputs[0])
                self.entropies.append(-(gates * gates.clamp_min(1e-12).log()).sum(dim=-1).mean() / math.log(max(2, gates.shape[-1])))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Also ``gate_entropy``, where there are experts: 1 where all have equal weight, 0 where one has all of it. Without a regression head
        cross-entropy is the only loss."""
        self.entropies.clear()
        logits, regressed = self.network.heads(self.network.features(batch.image))
        size = batch.truth_m.shape[-2:]
        logits, regressed = (part if part is None else interpolate(part, size, mode="bilinear", align_corners=False) for part in (logits, regressed))
        edges_m = self.network.config.bin_edges_m().float().to(logits.device)
        parts = moa_parts(logits, regressed, edges_m, batch.truth_m, batch.valid)
        loss = sum(MOA_WEIGHTS[name] * part for name, part in parts.items())
        return {"loss": loss, **parts, **({"gate_entropy": torch.stack(self.entropies).mean()} if self.entropies else {})}

    def start(self, seed: int) -> None:
        """Experts that add nothing yet, as where training starts from CLIP."""
        for adapters in self.network.mixtures():
            adapters.start_as_identity()
