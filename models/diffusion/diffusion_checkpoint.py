"""What the published EVP and VPD checkpoints have in common: names, ways to tell them apart, and signs that one was never trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from ...runtime.errors import InputError
from ..checkpoint import Checkpoint, Key, KeyTable
from ..network import WeightsOrigin
from .stable_diffusion_keys import unet_ldm_key, vae_ldm_key, vae_ldm_shape

ANCHOR = "encoder.gamma"  # every depth checkpoint of the two has it
CLIP_PREFIX = "encoder.clip_model.transformer.text_model."
CLIP_LAYERS = 12
PUBLISHED_PREFIXES = {  # own prefix -> published prefix; below the first two, names follow ``stable_diffusion_keys``
    "vae.": "encoder.encoder_vq.",
    "unet.": "encoder.unet.unet.diffusion_model.",
    "text.clip.": CLIP_PREFIX,
    "text.": "encoder.",
    "refinement.": "encoder.aggregation.",
    "aggregation.": "encoder.",
    "decoder.": "decoder.",
    "bins.": "",
}
SMALL_STD = 2e-3  # the decoder starts at 1e-3


def published_name(own: str, depth_head: str) -> str:
    """The name that a tensor of EVP or VPD has in the published checkpoints; ``depth_head``: prefix of the last two convolutions."""
    return with_prefixes(own, PUBLISHED_PREFIXES | {"depth_head.": depth_head})


def with_prefixes(own: str, prefixes: dict[str, str]) -> str:
    """``own`` with the longest prefix that ``prefixes`` has replaced, and the backbone's names in the layout of CompVis "ldm"."""
    prefix = max((prefix for prefix in prefixes if own.startswith(prefix)), key=len)
    rule = {"vae.": vae_ldm_key, "unet.": unet_ldm_key}.get(prefix, str)
    return prefixes[prefix] + rule(own[len(prefix) :])


def key_table(network: nn.Module, published: Callable[[str], str], constants: dict[str, Tensor], ignored: dict[str, tuple[int, ...] | None]) -> KeyTable:
    """What a checkpoint of this network must hold, from the network's own tensors.

    Args:
        published: own name -> published name.
        constants: published names of tensors that never change, with their value; the file may lack them.
        ignored: see ``KeyTable``.
    """
    wanted, counters = {}, {}
    for own, tensor in network.state_dict().items():
        name, shape = published(own), tuple(tensor.shape)
        wanted[name] = Key(own, vae_ldm_shape(own.removeprefix("vae."), shape) if own.startswith("vae.") else shape)
        if own.endswith("num_batches_tracked"):
            counters[name] = torch.zeros((), dtype=torch.int64)
    return KeyTable(wanted, constants, counters, ignored)


def clip_names() -> list[str]:
    """The 196 names of the CLIP text tower that per-image checkpoints carry; a fixed context does not need it."""
    parts = [f"self_attn.{p}_proj" for p in ("q", "k", "v", "out")] + ["mlp.fc1", "mlp.fc2", "layer_norm1", "layer_norm2"]
    names = [f"encoder.layers.{i}.{part}.{leaf}" for i in range(CLIP_LAYERS) for part in parts for leaf in ("weight", "bias")]
    names += ["embeddings.token_embedding.weight", "embeddings.position_embedding.weight", "final_layer_norm.weight", "final_layer_norm.bias"]
    return [CLIP_PREFIX + name for name in names]


def network_of(names: Iterable[str]) -> str:
    """Which network's published names these are: ``evp``, ``vpd``, ``evp-refer``, ``vpd-refer``, ``stable-diffusion`` or ``""``."""
    tops = {tuple(name.split(".", 2)[:2]) for name in names}
    firsts = {top[0] for top in tops}
    if ("encoder", "aggregation") in tops:
        return "evp"
    if "last_layer_depth" in firsts:
        return "vpd"
    if "classifier" in firsts and ("unet", "unet") in tops:
        return "evp-refer" if "aggregation" in firsts else "vpd-refer"
    if firsts & {"first_stage_model", "cond_stage_model"} or ("model", "diffusion_model") in tops:
        return "stable-diffusion"
    return ""


def refuse_other_networks(checkpoint: Checkpoint, wanted: str, model: str) -> None:
    """Say which network a checkpoint belongs to, if it is another one's.

    Args:
        wanted: ``evp`` or ``vpd``.
        model: the command-line name that was asked for.

    Raises:
        InputError: if it is.
    """
    found = network_of(checkpoint.tensors)
    if found == "stable-diffusion":
        raise InputError(f"{checkpoint.file} is a plain Stable Diffusion checkpoint", wanted=f"weights of {model}, whose backbone was trained for depth")
    if found not in ("", wanted):
        fix = f"use --model {found}" if found != "vpd-refer" else ""
        raise InputError(f"{checkpoint.file} is a {found.upper()} checkpoint", wanted=f"one of {model}", fix=fix)


def origin_of(checkpoint: Checkpoint, published: dict[str, str], licence: str, gamma: Tensor, decoder: nn.Module) -> WeightsOrigin:
    """Where the weights come from, with a warning for every sign that they were never trained.

    Args:
        published: SHA-256, or its known start, -> where that file was published.
        licence: of the published weights.
    """
    known = any(checkpoint.sha256.startswith(start) for start in published)
    warnings = []
    if bool((gamma == 1e-4).all()):
        warnings.append("encoder.gamma is 1e-4 everywhere, as before the first training step.")
    if not any(bool(norm.running_mean.any()) for norm in decoder.modules() if isinstance(norm, nn.BatchNorm2d)):
        warnings.append("The decoder's batch norms have seen no data: every running mean is 0.")
    if decoder.deconv_layers[0].weight.std() < SMALL_STD:
        warnings.append("The decoder's first weights are as small as before the first training step.")
    return WeightsOrigin("published" if known else "trained", checkpoint.file, checkpoint.sha256, licence if known else "unknown", tuple(warnings))
