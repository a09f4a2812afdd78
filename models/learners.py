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
from .depth_hint import map_hint, patch_hint, waves
from .depth_protocols import FEATURE_SCALE
from .losses import LOSSES, MOA_WEIGHTS, moa_parts
from .network import DepthNetwork
from .recipes import Recipe
from .training_data import Batch, Examples, KeptSamples
from .validation import baselines, validate

ROOM_SCENES = {"living": "living_room", "dining": "dining_room", "store": "furniture_store"}  # synthetic rooms' kinds that VPD calls otherwise
RELATIVE_FAR_M = 10.0
WORD_SHARE, LOUD_PROTOTYPES, SHARP = 0.2, 10.0, 2.0  # so that LLM-MDE's reprogramming chooses between its prototypes
HINT_WEIGHT, MAP_HINT_WEIGHT = 4.0, 0.5  # LLM-MDE's loss is counted ten times
SEED_SHARE = 0.1  # of the random weights that say where bins are
NEAREST_M = 0.1  # LLM-MDE's code learns nothing from what is nearer


class Learner(nn.Module):
    """A network with its loss. Called with a batch, it gives named numbers of which ``loss`` is the one to lower.

    Attributes:
        cells: how many feature cells a side are decoded, where the network can decode a part; 0 for all.
        alone: only the backbone is computed, and only the hint learned, where the network has one.
        measures: ``depth`` or ``masks``, what its metrics are about (``training_card.TABLES``).
    """

    measures = "depth"

    def __init__(self, network: DepthNetwork, recipe: Recipe):
        super().__init__()
        self.network, self.loss = network, LOSSES.get(recipe.loss)
        self.cells, self.alone = 0, False

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


class EvpLearner(Learner):
    """EVP, whose modules do not depend on the window, and whose decoder sees only a little around each place."""

    def __init__(self, network: DepthNetwork, recipe: Recipe):
        super().__init__(network, recipe)
        self.hint = MAP_HINT_WEIGHT if recipe.hint else 0.0

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """With ``cells`` set, a random block of that many feature cells a side is decoded and learned from: most of a step's time goes
        into the last two resolutions. At the block's edges the decoder meets zeros where a picture goes on, so training ends without it.

        With ``hint``, the first channels of latent and taps learn the depth around their places too: a new backbone is too deep to hear
        of it from the other end alone.
        """
        maps = self.maps(batch)
        hint = self.hint and sum(map_hint(part, batch.truth_m, batch.valid, batch.image.shape[-1]) for part in maps) / len(maps)
        if self.alone:
            return {"loss": self.hint * hint, "hint": hint}
        features = self.features(maps)  # [B, C, side, side]
        rows = columns = slice(None)
        if self.cells:
            top, left = (int(torch.randint(0, features.shape[-1] - self.cells + 1, ())) for _ in range(2))
            features = features[..., top : top + self.cells, left : left + self.cells]
            rows, columns = (slice(FEATURE_SCALE * start, FEATURE_SCALE * (start + self.cells)) for start in (top, left))
        loss = self.loss(self.decode(features), batch.truth_m[..., rows, columns], batch.valid[..., rows, columns])
        if not self.hint:
            return {"loss": loss}
        return {"loss": loss + self.hint * hint, "silog": loss, "hint": hint}

    @property
    def latent_divisor(self) -> float:
        """What the latent is divided by before the U-Net sees it."""
        return self.network.constants.latent_divisor

    def context(self, batch: Batch) -> Tensor:
        """The text that the U-Net attends to."""
        return self.network.text()

    def maps(self, batch: Batch) -> tuple[Tensor, ...]:
        """The latent as the VAE says it, and the taps."""
        latent = self.network.vae(batch.image)
        return latent, *self.network.unet(latent / self.latent_divisor, self.context(batch))

    def features(self, maps: tuple[Tensor, ...]) -> Tensor:
        """The aggregated features [B, C, side, side] of the maps."""
        side = self.network.contract.input.window[0] // FEATURE_SCALE
        return self.network.aggregation(*self.refined(maps[1:]))[..., :side, :side]

    def refined(self, taps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The taps as the aggregation takes them."""
        return self.network.refinement(*taps)

    def decode(self, features: Tensor) -> Tensor:
        """Depth [B, 1, 32 h, 32 w] of features or a block of them."""
        network = self.network
        levels = network.decoder(features)
        out = double(levels[-1])
        return network.bins(features, levels, out, network.depth_head(out))

    def rebuilt(self, side: int) -> DepthNetwork:
        return type(self.network)(self.windowed(side), self.network.variant)

    def windowed(self, side: int):
        """The config for another window."""
        return dataclasses.replace(self.network.config, **{f"{self.network.variant}_window": side})

    def start(self, seed: int) -> None:
        """He's weights without biases, norms that change nothing, residual branches that add nothing yet, and bins everywhere in a room.

        The random weights of a network without a checkpoint are made to show every mistake, not to learn from: with them, what differs
        between two pictures is a small part of what reaches the decoder.
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
        last = self.network.bins.seed_bin_regressor._net[-1]
        far_m = self.network.constants.max_depth_m
        last.weight.mul_(SEED_SHARE)
        last.bias.copy_(torch.logspace(math.log10(far_m / 30), math.log10(far_m), len(last.bias)).expm1().log())


class VpdLearner(EvpLearner):
    """VPD, which is told of every picture what kind of room it shows."""

    def predict(self, batch: Batch) -> Tensor:
        return self.decode(self.features(self.maps(batch)))

    latent_divisor = 1.0

    def context(self, batch: Batch) -> Tensor:
        text = self.network.text
        known = text.class_embeddings[[self.row(scene) for scene in batch.scenes]].unsqueeze(1)  # [B, 1, width]
        return known + text.gamma * text.text_adapter(known)

    def refined(self, taps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return taps

    def decode(self, features: Tensor) -> Tensor:
        network = self.network
        return network.relative(network.depth_head(double(network.decoder(features)[-1])))

    def rebuilt(self, side: int) -> DepthNetwork:
        return type(self.network)(self.windowed(side), self.network.scene, self.network.variant)

    def spread_bins(self) -> None:
        """VPD has none."""

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
        self.hint = HINT_WEIGHT if recipe.hint else 0.0
        text = network.contract.text
        self.write = TextEncoder(text, network.contract.input, network.artefact_files()[text.tokenizer])

    def words(self, batch: Batch) -> dict[str, Tensor]:
        """The prompts of the pictures."""
        return {name: torch.from_numpy(values).to(batch.image.device) for name, values in self.write(batch.image.cpu().numpy()).items()}

    def predict(self, batch: Batch) -> Tensor:
        return self.network.boundaries({"image": batch.image, **self.words(batch)})["depth"]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Maps from 0 to 1 learn the depth as a share of 10 m: the loss forgives most of a common factor, a sigmoid cannot say metres.

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
        return {"loss": loss + self.hint * (hint + code), "ssi": loss, "hint": hint, "code_hint": code}

    def start(self, seed: int) -> None:
        """He's weights without biases, norms and adapters that change nothing, places told apart by waves, and prototypes that differ: the
        picture's tokens are heard through the prototypes, behind a long prompt that is mostly the same.
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
            network.prototypes.weight.mul_(LOUD_PROTOTYPES)
            network.reprogramming.key_projection.weight.mul_(SHARP)
            places = network.vit.pos_embed[0]
            mixed = torch.linalg.qr(torch.randn(places.shape[1], places.shape[1], generator=torch.Generator().manual_seed(seed))).Q
            places[1:] = (waves(math.isqrt(len(places) - 1), places.shape[1]) @ mixed[: len(places) - 1]).to(places.device)


LEARNERS: dict[str, type[Learner]] = {
    "evp": EvpLearner,
    "vpd": VpdLearner,
    "moa_depthclip": MoaLearner,
    "llm_mde": LlmMdeLearner,
}


def learner_for(network: DepthNetwork, recipe: Recipe) -> Learner:
    """The learner of a catalog network."""
    kind = NETWORKS[network.name].module
    if kind == "evp_refer":
        from .refer_learner import ReferLearner

        return ReferLearner(network, recipe)
    if kind == "depthclip":
        from .words_learners import DepthClipLearner

        return DepthClipLearner(network, recipe)
    if kind == "depthblip2":
        from .words_learners import DepthBlip2Learner

        return DepthBlip2Learner(network, recipe)
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
