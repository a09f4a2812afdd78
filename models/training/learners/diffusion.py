"""Training steps of EVP and VPD: the depth loss, and auxiliary depth losses along the backbone (hints)."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

from ....datasets.rooms.rooms import NYU_NAMES
from ....runtime.errors import InputError
from ....runtime.text.encoder import TextEncoder
from ...diffusion.depth_decoder import double
from ...diffusion.depth_protocols import FEATURE_SCALE
from ...diffusion.vpd import SCENES, scene_of_photo
from ...network import DepthNetwork
from ..data.training_data import Batch
from ..recipes.recipe import Recipe
from .depth_hint import map_hint
from .learner import Learner
from .losses import log_edges
from .metric_bins_step import metric_depth

SEED_SHARE = 0.1  # scale of the random weights that place the initial bin centres


class EvpLearner(Learner):
    """EVP, whose modules do not depend on the window."""

    def __init__(self, network: DepthNetwork, recipe: Recipe):
        super().__init__(network, recipe)
        self.edges = recipe.edges
        words = getattr(network, "words", None)
        self.write = words and TextEncoder(network.contract.text, network.contract.input, words.tokenizer)

    def predict(self, batch: Batch) -> Tensor:
        return self.decode(self.features(self.maps(batch))) * batch.metres

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """With ``hint``, the first channels of latent and taps learn the depth around their places too: in a backbone that starts from nothing,
        gradients from the loss alone are too weak."""
        maps, truth = self.maps(batch), batch.truth_m / batch.metres
        hint = self.hint and sum(map_hint(part, truth, batch.valid, batch.image.shape[-1]) for part in maps) / len(maps)
        if self.alone:
            return {"loss": self.hint * hint, "hint": hint}
        found = self.decode(self.features(maps)).float()
        parts = {"depth": self.loss(found, truth, batch.valid)}
        loss = parts["depth"]
        if self.hint:
            parts["hint"] = hint
            loss = loss + self.hint * hint
        if self.edges:
            parts["edges"] = log_edges(found, truth, batch.valid)
            loss = loss + self.edges * parts["edges"]
        return {"loss": loss} if len(parts) == 1 else {"loss": loss, **parts}

    @property
    def latent_divisor(self) -> float:
        """Divisor of the latent before it enters the U-Net."""
        return self.network.constants.latent_divisor

    def context(self, batch: Batch) -> Tensor:
        """The text that the U-Net attends to: the network's own, or that of each picture's kind of room or caption.

        Raises:
            InputError: if a picture has no caption.
        """
        text, device = self.network.text, batch.image.device
        if self.write is not None:
            if not all(batch.captions):
                fix = "give --captions FILE, a JSON object from the pictures' ids to captions"
                raise InputError("a picture has no caption", wanted="one for every picture", fix=fix)
            ids = self.write.tokenize(batch.captions)[self.network.contract.text.ids]
            return text(torch.from_numpy(ids).to(device))
        if self.network.contract.text is None and text.class_embeddings.ndim == 3:
            return text()
        return text(torch.tensor([[self.row(scene)] for scene in batch.scenes], device=device))

    def row(self, scene: str) -> int:
        """Which of the known scenes a sample's is (``kitchen_0004`` is a kitchen); the network's own for one that is not known.

        Raises:
            InputError: if it is not known and the network has none.
        """
        found, own = scene_of_photo(NYU_NAMES.get(scene, scene)), getattr(self.network, "row", None)
        if found is None and own is None:
            raise InputError(f"{scene!r} names no kind of room that the network knows", wanted="data that names its rooms", fix=f"one of {', '.join(SCENES)}")
        return own if found is None else SCENES.index(found)

    def maps(self, batch: Batch) -> tuple[Tensor, ...]:
        """The VAE's latent and the U-Net's taps."""
        latent = self.network.vae(batch.image)
        return latent, *self.network.unet(latent / self.latent_divisor, self.context(batch))

    def features(self, maps: tuple[Tensor, ...]) -> Tensor:
        """The aggregated features [B, C, side, side] of the maps."""
        side = self.network.contract.input.window[0] // FEATURE_SCALE
        return self.network.aggregation(*self.refined(maps[1:]))[..., :side, :side]

    def refined(self, taps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The taps as the aggregation takes them."""
        return self.network.refined(taps)

    def decode(self, features: Tensor) -> Tensor:
        """Depth [B, 1, 32 h, 32 w] of features or a block of them."""
        network = self.network
        levels = network.decoder(features)
        out = double(levels[-1])
        raw = network.depth_head(out)
        if network.bins is None:
            return network.relative(raw)
        with torch.autocast(out.device.type, enabled=False):  # the bins' logarithms do not fit 16 bits
            return metric_depth(network.bins, features.float(), tuple(level.float() for level in levels), raw.float())

    def rebuilt(self, side: int) -> DepthNetwork:
        return type(self.network)(self.windowed(side), self.network.variant, self.network.words)

    def windowed(self, side: int):
        """The config for another window."""
        return dataclasses.replace(self.network.config, **{f"{self.network.variant}_window": side})

    def start(self, seed: int) -> None:
        """He initialisation, zero biases, identity norms, residual branches that add nothing yet, and bins spread over the depths of a room.

        The random weights of a network without a checkpoint are chosen so that tests detect every mistake of an export, not for training: with
        them, two pictures differ little in what reaches the decoder.
        """
        torch.manual_seed(seed)
        with torch.no_grad():
            for name, module in self.network.named_modules():
                if isinstance(module, (nn.GroupNorm, nn.LayerNorm, nn.BatchNorm2d)):
                    module.reset_parameters()
                elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                    backbone = name.startswith(("vae.", "unet."))
                    adds = backbone and name.endswith((".conv2", ".proj_out", "mid_block.attentions.0.to_out.0"))
                    rectified = isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and (not backbone or name.endswith(".conv1"))
                    fan_in = module.weight.shape[0] if isinstance(module, nn.ConvTranspose2d) else module.weight[0].numel()  # kernel 2, stride 2
                    module.weight.normal_(0, 0 if adds else math.sqrt((2 if rectified else 1) / fan_in))
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
            self.spread_bins()

    def spread_bins(self) -> None:
        """Bin centres that begin everywhere in a room: at random they all begin below a metre."""
        if self.network.bins is None:
            return
        last = self.network.bins.seed_bin_regressor._net[-1]
        far_m = self.network.constants.max_depth_m
        last.weight.mul_(SEED_SHARE)
        last.bias.copy_(torch.logspace(math.log10(far_m / 30), math.log10(far_m), len(last.bias)).expm1().log())


class VpdLearner(EvpLearner):
    """VPD, conditioned on the kind of room that each picture shows."""

    latent_divisor = 1.0

    def refined(self, taps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return taps

    def decode(self, features: Tensor) -> Tensor:
        network = self.network
        return network.relative(network.depth_head(double(network.decoder(features)[-1])))

    def rebuilt(self, side: int) -> DepthNetwork:
        return type(self.network)(self.windowed(side), self.network.scene, self.network.variant)

    def spread_bins(self) -> None:
        """VPD has none."""
