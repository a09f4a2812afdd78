"""What a training step needs to know of each kind of network: its loss, its smaller windows, and the names its weights are saved under."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .catalog import NETWORKS
from .losses import LOSSES
from .network import DepthNetwork
from .recipes import Recipe
from .training_data import Batch


class Learner(nn.Module):
    """A network with its loss. Called with a batch, it gives named numbers of which ``loss`` is the one to lower."""

    def __init__(self, network: DepthNetwork, recipe: Recipe):
        super().__init__()
        self.network, self.loss = network, LOSSES[recipe.loss]

    def predict(self, batch: Batch) -> Tensor:
        """Depth in metres [B, 1, h, w]."""
        return self.network.boundaries({"image": batch.image})["depth"]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": self.loss(self.predict(batch), batch.truth_m, batch.valid)}

    def start(self, seed: int) -> None:
        """Called once before the first step of a network with random weights."""

    def at_window(self, side: int) -> DepthNetwork:
        """A network for another square window that shares this one's modules."""
        raise ValueError(f"{self.network.name} has one window only")


class DiffusionLearner(Learner):
    """EVP, whose modules do not depend on the window."""

    def at_window(self, side: int) -> DepthNetwork:
        network = self.network
        with torch.device("meta"):
            other = self._rebuilt(dataclasses.replace(network.config, **{f"{network.variant}_window": side}))
        for name, module in network.named_children():
            setattr(other, name, module)
        other.origin = network.origin
        return other

    def _rebuilt(self, config) -> DepthNetwork:
        return type(self.network)(config, self.network.variant)


LEARNERS: dict[str, type[Learner]] = {"evp": DiffusionLearner}


def learner_for(network: DepthNetwork, recipe: Recipe) -> Learner:
    """The learner of a catalog network."""
    return LEARNERS[NETWORKS[network.name].module](network, recipe)


def published_tensors(network: DepthNetwork, dtype: torch.dtype = torch.float32) -> Iterator[tuple[str, Tensor]]:
    """The network's tensors under the names that its ``load_<name>()`` reads, floating-point ones in ``dtype``."""
    state = network.state_dict()
    for name, own, shape in _names(network):
        tensor = state[own].detach()
        if tensor.is_floating_point():
            tensor = tensor.to(dtype)
        yield name, tensor.reshape(shape).cpu().contiguous()


def _names(network: DepthNetwork) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    kind = NETWORKS[network.name].module
    if kind == "evp":
        from .evp import evp_keys as keys
    elif kind == "vpd":
        from .vpd import vpd_keys as keys
    else:  # all others read their own state
        for own, tensor in network.state_dict().items():
            yield own, own, tuple(tensor.shape)
        return
    for name, key in keys(network).wanted.items():
        yield name, key.own, key.shape
