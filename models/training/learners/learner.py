"""What a training step needs to know of any network: how to predict, its loss, its smaller windows, how it is measured."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...network import DepthNetwork
from ..data.kept_samples import KeptSamples
from ..data.training_data import Batch, Examples
from ..recipes.recipe import Recipe
from .depth_hint import HINT_WEIGHT
from .losses import LOSSES
from .validation import baselines, validate


class Learner(nn.Module):
    """A network with its loss. Called with a batch, it gives named numbers of which ``loss`` is the one to lower.

    Attributes:
        hint: weight of each auxiliary loss that a recipe with hints adds (``depth_hint``), or 0.
        alone: only the backbone is computed, and only the hint learned, where the network has one.
        measures: ``depth`` or ``masks``, what its metrics are about (``card.TABLES``).
    """

    measures = "depth"

    def __init__(self, network: DepthNetwork, recipe: Recipe):
        super().__init__()
        self.network, self.loss = network, LOSSES.get(recipe.loss)
        self.hint = HINT_WEIGHT if recipe.hint else 0.0
        self.alone = False

    def predict(self, batch: Batch) -> Tensor:
        """Depth [B, 1, h, w]."""
        return self.network.boundaries({"image": batch.image})["depth"]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": self.loss(self.predict(batch).float(), batch.truth_m, batch.valid)}

    def start(self, seed: int) -> None:
        """Initialise a network with random weights for training; called once before the first step."""

    def examples(self, samples: KeptSamples, geometry: str = "protocol") -> Examples:
        """The samples as this network learns from them."""
        return Examples(samples, self.network.contract, geometry)

    def validate(self, samples: KeptSamples, batch: int, device: torch.device) -> dict[str, float]:
        """The network's metrics on held-out samples."""
        return validate(self.predict, self.examples(samples), batch, device)

    def baselines(self, samples: KeptSamples) -> dict[str, dict[str, float]]:
        """What blind guesses reach on the same samples, by the guess's name."""
        return baselines(self.examples(samples))

    def at_window(self, side: int) -> DepthNetwork:
        """A network for windows of another width that shares this one's modules."""
        with torch.device("meta"):
            other = self.rebuilt(side)
        for name, module in self.network.named_children():
            setattr(other, name, module)
        other.origin = self.network.origin
        return other

    def rebuilt(self, side: int) -> DepthNetwork:
        """The same network for windows of that width, with weights of its own.

        Raises:
            ValueError: if it has one window only.
        """
        raise ValueError(f"{self.network.name} has one window only")
