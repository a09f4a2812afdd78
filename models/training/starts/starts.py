"""What training begins from: a finished file of the network, or the published files that its authors began with."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path

import torch

from ....runtime.errors import UsageError
from ... import catalog
from ...checkpoint import Checkpoint, read_checkpoint
from ...diffusion.diffusion_checkpoint import ANCHOR, network_of
from ...network import DepthNetwork

SCENE = "living_room"  # VPD learns from each picture with its own scene; this is for pictures without one
STARTS = {  # what the authors began with
    "evp": "v1-5-pruned-emaonly.safetensors or .ckpt of Stable Diffusion 1.5, or a finished file of EVP",
    "vpd": "v1-5-pruned-emaonly.safetensors or .ckpt of Stable Diffusion 1.5, or a finished file of VPD",
    "moa-depthclip": "ViT-B-32.pt of OpenAI's CLIP, or a finished file of MoA-DepthCLIP",
    "llm-mde": "bert-base-uncased (model.safetensors) with --visual-weights vit_base_patch16_224 of timm, or a finished file of LLM-MDE",
    "depthblip2": "LAVIS' Q-Former file with --visual-weights LAVIS' image encoder",
}
BERT_ANCHORS = ("bert.embeddings.word_embeddings.weight", "embeddings.word_embeddings.weight")  # with the heads of its own training beside it, or alone
VIT_ANCHOR = "patch_embed.proj.weight"


def started_network(
    name: str,
    weights: str | Path | None,
    random_init: bool,
    seed: int,
    variant: str | None,
    scene: str | None,
    visual: str | None,
    settings: Mapping[str, int] | None = None,
    texts: str | None = None,
    retrain: bool = False,
) -> DepthNetwork:
    """The network in eval mode, as training begins.

    Args:
        weights: the network's own file, or the start's: Stable Diffusion 1.5 (EVP, VPD), OpenAI's CLIP (MoA-DepthCLIP), LAVIS' Q-Former
            (DepthBLIP-2), bert-base-uncased (LLM-MDE).
        visual: the image encoder's file: LAVIS' (DepthBLIP-2), timm's vit_base_patch16_224 (LLM-MDE).
        settings, texts, retrain: see ``catalog.load``.

    Raises:
        InputError: if a file is broken or does not fit.
        UsageError: if files do not go together, or ``catalog.load`` raises it.
    """
    entry = catalog.NETWORKS[name]
    if texts is not None and "texts" not in entry.options:
        raise UsageError(f"{name} takes no --texts", fix="leave it out")
    if "scene" in entry.options:
        scene = scene or SCENE
    kind = entry.module.rpartition(".")[2]
    if weights is not None and kind in ("evp", "vpd"):
        checkpoint = read_checkpoint(weights, ANCHOR)
        if network_of(checkpoint.tensors) == "stable-diffusion":
            return _diffusion(name, kind, checkpoint, seed, variant, scene, settings, texts)
    if weights is not None and kind == "llm_mde" and visual is not None:
        bert = read_checkpoint(weights, *BERT_ANCHORS)
        return _language(name, read_checkpoint(visual, VIT_ANCHOR), bert, seed, variant, settings)
    options = {"scene": scene, "visual_weights": visual, "texts": texts}
    return catalog.load(name, weights, random_init=random_init, seed=seed, variant=variant, settings=settings, retrain=retrain, **options)


def _module(entry: catalog.NetworkEntry):
    module = importlib.import_module(f"...{entry.module}", __package__)
    return module, getattr(module, entry.config)


def _variant(entry: catalog.NetworkEntry, variant: str | None) -> str:
    if variant is not None and variant not in entry.variants:
        raise UsageError(f"there is no variant {variant!r}", wanted=f"one of {', '.join(entry.variants)}")
    return variant or entry.variants[0]


def _diffusion(
    name: str,
    kind: str,
    checkpoint: Checkpoint,
    seed: int,
    variant: str | None,
    scene: str | None,
    settings: Mapping[str, int] | None,
    texts: str | None,
) -> DepthNetwork:
    from ...diffusion.text_tower import read_captions
    from .stable_diffusion import start_from_stable_diffusion

    entry = catalog.NETWORKS[name]
    module, config = _module(entry)
    config = catalog.with_settings(name, config, settings or {})
    with torch.device("meta"):
        network = module.EVP(config, _variant(entry, variant)) if kind == "evp" else module.VPD(config, scene, _variant(entry, variant))
    start_from_stable_diffusion(network, checkpoint, seed, None if texts is None else read_captions(texts))
    return network


def _language(name: str, vit: Checkpoint, bert: Checkpoint, seed: int, variant: str | None, settings: Mapping[str, int] | None) -> DepthNetwork:
    from .llm_mde import start_from_vit_and_bert

    entry = catalog.NETWORKS[name]
    module, config = _module(entry)
    config = catalog.with_settings(name, config, settings or {})
    variant = _variant(entry, variant)
    with torch.device("meta"):
        network = module.LlmMde(module.of_variant(config, variant), variant)
    start_from_vit_and_bert(network, vit, bert, seed)
    return network
