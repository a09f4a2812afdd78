"""Which learner a network has, the names under which its weights are written, and what the file says of itself."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

import torch
from torch import Tensor

from ...catalog import NETWORKS
from ...network import DepthNetwork
from ...trained_as import TrainedAs
from ..recipes.recipe import Recipe
from .learner import Learner

LEARNERS = {  # the network's module -> module and class
    "diffusion.evp": ("diffusion", "EvpLearner"),
    "diffusion.vpd": ("diffusion", "VpdLearner"),
    "diffusion.evp_refer": ("refer", "ReferLearner"),
    "clip.depthclip": ("words", "DepthClipLearner"),
    "clip.moa_depthclip": ("moa", "MoaLearner"),
    "blip2.depthblip2": ("words", "DepthBlip2Learner"),
    "llm_mde.llm_mde": ("llm_mde", "LlmMdeLearner"),
}


def learner_for(network: DepthNetwork, recipe: Recipe) -> Learner:
    """The learner of a catalog network."""
    module, name = LEARNERS[NETWORKS[network.name].module]
    return getattr(import_module(f".{module}", __package__), name)(network, recipe)


def published_tensors(network: DepthNetwork, dtype: torch.dtype = torch.float32) -> Iterator[tuple[str, Tensor]]:
    """The network's tensors under the names that its ``load_<name>()`` reads, floating-point ones in ``dtype``."""
    state = network.state_dict()
    for name, own, shape in _names(network):
        tensor = state[own].detach()
        if tensor.is_floating_point():
            tensor = tensor.to(dtype)
        yield name, tensor.reshape(shape).cpu().contiguous()


def trained_as(network: DepthNetwork) -> TrainedAs:
    """What the file of its weights says."""
    return TrainedAs(network.name, network.variant, {setting: getattr(network.config, setting) for setting in NETWORKS[network.name].settings})


def _names(network: DepthNetwork) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    kind = NETWORKS[network.name].module
    if kind == "diffusion.evp":
        from ...diffusion.evp import evp_keys as keys
    elif kind == "diffusion.vpd":
        from ...diffusion.vpd import vpd_keys as keys
    elif kind == "diffusion.evp_refer":
        from ...diffusion.evp_refer import evp_refer_keys as keys
    else:  # all others read their own state
        for own, tensor in network.state_dict().items():
            yield own, own, tuple(tensor.shape)
        return
    for name, key in keys(network).wanted.items():
        yield name, key.own, key.shape
