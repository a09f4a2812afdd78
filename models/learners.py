"""What a training step needs to know of each kind of network: how to predict and its loss, its smaller windows, its saved names."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ..runtime.text import TextEncoder
from .catalog import NETWORKS
from .depth_decoder import double
from .depth_protocols import FEATURE_SCALE
from .losses import LOSSES, MOA_WEIGHTS, moa_parts
from .network import DepthNetwork
from .recipes import Recipe
from .training_data import Batch, Examples, KeptSamples
from .validation import baselines, validate

ROOM_SCENES = {"living": "living_room", "dining": "dining_room", "store": "furniture_store"}  # synthetic rooms' kinds that VPD calls otherwise
RELATIVE_FAR_M = 10.0
NEAREST_M = 0.1  # LLM-MDE's code learns nothing from what is nearer


class Learner(nn.Module):
    """A network with its loss. Called with a batch, it gives named numbers of which ``loss`` is the one to lower.

    Attributes:
        cells: how many feature cells a side are decoded, where the network can decode a part; 0 for all.
        measures: ``depth`` or ``masks``, what its metrics are about (``training_card.TABLES``).
    """

    measures = "depth"

    def __init__(self, network: DepthNetwork, recipe: Recipe):
        super().__init__()
        self.network, self.loss = network, LOSSES.get(recipe.loss)
        self.cells = 0

    def predict(self, batch: Batch) -> Tensor:
        """Depth [B, 1, h, w]."""
        return self.network.boundaries({"image": batch.image})["depth"]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": self.loss(self.predict(batch), batch.truth_m, batch.valid)}

    def start(self, seed: int) -> None:
        """Called once before the first step of a network with random weights."""

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
        """A network for another square window that shares this one's modules."""
        raise ValueError(f"{self.network.name} has one window only")


class EvpLearner(Learner):
    """EVP, whose modules do not depend on the window, and whose decoder sees only a little around each place."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """With ``cells`` set, a random block of that many feature cells a side is decoded and learned from: most of a step's time goes
        into the last two resolutions. At the block's edges the decoder meets zeros where a picture goes on, so training ends without it.
        """
        features = self.features(batch)  # [B, C, side, side]
        rows = columns = slice(None)
        if self.cells:
            top, left = (int(torch.randint(0, features.shape[-1] - self.cells + 1, ())) for _ in range(2))
            features = features[..., top : top + self.cells, left : left + self.cells]
            rows, columns = (slice(FEATURE_SCALE * start, FEATURE_SCALE * (start + self.cells)) for start in (top, left))
        return {"loss": self.loss(self.decode(features), batch.truth_m[..., rows, columns], batch.valid[..., rows, columns])}

    def features(self, batch: Batch) -> Tensor:
        """The aggregated features [B, C, side, side]."""
        network = self.network
        latent = network.vae(batch.image) / network.constants.latent_divisor
        side = network.constants.window // FEATURE_SCALE
        return network.aggregation(*network.refinement(*network.unet(latent, network.text())))[..., :side, :side]

    def decode(self, features: Tensor) -> Tensor:
        """Depth [B, 1, 32 h, 32 w] of features or a block of them."""
        network = self.network
        levels = network.decoder(features)
        out = double(levels[-1])
        return network.bins(features, levels, out, network.depth_head(out))

    def at_window(self, side: int) -> DepthNetwork:
        network = self.network
        with torch.device("meta"):
            other = self.rebuilt(dataclasses.replace(network.config, **{f"{network.variant}_window": side}))
        for name, module in network.named_children():
            setattr(other, name, module)
        other.origin = network.origin
        return other

    def rebuilt(self, config) -> DepthNetwork:
        """The same network with another config."""
        return type(self.network)(config, self.network.variant)

    def start(self, seed: int) -> None:
        """Norms that change nothing, and residual branches that add nothing yet: the first gradients see a shallow network."""
        with torch.no_grad():
            for name, module in self.network.named_modules():
                if isinstance(module, (nn.GroupNorm, nn.LayerNorm, nn.BatchNorm2d)):
                    module.reset_parameters()
                elif name.endswith((".conv2", ".proj_out", "mid_block.attentions.0.to_out.0")) and name.startswith(("vae.", "unet.")):
                    nn.init.zeros_(module.weight)
                    nn.init.zeros_(module.bias)


class VpdLearner(EvpLearner):
    """VPD, which is told of every picture what kind of room it shows."""

    def predict(self, batch: Batch) -> Tensor:
        return self.decode(self.features(batch))

    def features(self, batch: Batch) -> Tensor:
        network = self.network
        text = network.text
        known = text.class_embeddings[[self.row(scene) for scene in batch.scenes]].unsqueeze(1)  # [B, 1, width]
        context = known + text.gamma * text.text_adapter(known)
        latent = network.vae(batch.image)
        side = network.config.nyu_window // FEATURE_SCALE
        return network.aggregation(*network.unet(latent, context))[..., :side, :side]

    def decode(self, features: Tensor) -> Tensor:
        network = self.network
        return network.relative(network.depth_head(double(network.decoder(features)[-1])))

    def rebuilt(self, config) -> DepthNetwork:
        return type(self.network)(config, self.network.scene, self.network.variant)

    def row(self, scene: str) -> int:
        """Which of the known scenes a sample's is (``kitchen_0004`` is a kitchen); the network's own for one that is not known."""
        from .vpd import SCENES

        scene = ROOM_SCENES.get(scene, scene)
        fitting = [known for known in SCENES if scene.startswith(known)]
        return SCENES.index(max(fitting, key=len)) if fitting else self.network.row


class MoaLearner(Learner):
    """MoA-DepthCLIP: both heads learn, enlarged to the truth's size, and the entropy of the gates is watched (equations 4 to 8)."""

    def __init__(self, network: DepthNetwork, recipe: Recipe):
        super().__init__(network, recipe)
        self.entropies: list[Tensor] = []
        for adapters in network.adapters:
            adapters.register_forward_pre_hook(self._watch)

    def _watch(self, adapters: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if self.training:
            with torch.no_grad():
                gates = adapters.gates(inputs[0])
                self.entropies.append(-(gates * gates.clamp_min(1e-12).log()).sum(dim=-1).mean() / math.log(gates.shape[-1]))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Also ``gate_entropy``: 1 where all experts have the same say, 0 where one has it all."""
        self.entropies.clear()
        logits, regressed = self.network.heads(self.network.features(batch.image))
        size = batch.truth_m.shape[-2:]
        logits, regressed = (interpolate(part, size, mode="bilinear", align_corners=False) for part in (logits, regressed))
        edges_m = self.network.config.bin_edges_m().float().to(logits.device)
        parts = moa_parts(logits, regressed, edges_m, batch.truth_m, batch.valid)
        loss = sum(MOA_WEIGHTS[name] * part for name, part in parts.items())
        return {"loss": loss, **parts, "gate_entropy": torch.stack(self.entropies).mean()}

    def start(self, seed: int) -> None:
        """Experts that add nothing yet, as where training starts from CLIP."""
        for adapters in self.network.adapters:
            adapters.start_as_identity()


class LlmMdeLearner(Learner):
    """LLM-MDE, whose prompts are written by the pictures themselves."""

    def __init__(self, network: DepthNetwork, recipe: Recipe):
        super().__init__(network, recipe)
        tokenizer = network.artefact_files()[network.contract.text.tokenizer]
        self.write = TextEncoder(network.contract.text, network.contract.input, tokenizer)

    def predict(self, batch: Batch) -> Tensor:
        text = {name: torch.from_numpy(values).to(batch.image.device) for name, values in self.write(batch.image.cpu().numpy()).items()}
        return self.network.boundaries({"image": batch.image, **text})["depth"]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Maps from 0 to 1 learn the depth as a share of 10 m: the loss forgives most of a common factor, a sigmoid cannot say metres."""
        truth = batch.truth_m if self.network.config.far_m else batch.truth_m / RELATIVE_FAR_M
        return {"loss": self.loss(self.predict(batch), truth, batch.valid & (batch.truth_m > NEAREST_M))}


LEARNERS: dict[str, type[Learner]] = {"evp": EvpLearner, "vpd": VpdLearner, "moa_depthclip": MoaLearner, "llm_mde": LlmMdeLearner}


def learner_for(network: DepthNetwork, recipe: Recipe) -> Learner:
    """The learner of a catalog network."""
    kind = NETWORKS[network.name].module
    if kind == "depthclip":
        from .words_learners import DepthClipLearner

        return DepthClipLearner(network, recipe)
    if kind == "depthblip2":
        from .words_learners import DepthBlip2Learner

        return DepthBlip2Learner(network, recipe)
    if kind == "evp_refer":
        from .refer_learner import ReferLearner

        return ReferLearner(network, recipe)
    return LEARNERS[kind](network, recipe)


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
    elif kind == "evp_refer":
        from .evp_refer import evp_refer_keys as keys
    else:  # all others read their own state
        for own, tensor in network.state_dict().items():
            yield own, own, tuple(tensor.shape)
        return
    for name, key in keys(network).wanted.items():
        yield name, key.own, key.shape
