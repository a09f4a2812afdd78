"""The networks by their command-line names. Listing them imports nothing heavy; loading one imports its file."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runtime.errors import InputError, UsageError
from .hub import HubFile
from .trained_as import read_trained_as

if TYPE_CHECKING:
    from .network import DepthNetwork

DEMO_WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class NetworkEntry:
    """One name of the catalog.

    Args:
        summary: one line for ``--help``.
        weights: which published file to give, where it is, its size and SHA-256; "" where none was ever published.
        licence: of those weights.
        variants: published sets of constants, the default first.
        module: file of this folder that has the network.
        config: name of the config in it.
        load: function ``(path, variant=, config=, **options)`` in it.
        random: function ``(variant=, config=, seed=, **options)`` in it.
        options: further arguments that both take (``text_pack``, ``texts``, ``scene``, ``visual_weights``, ``bins``, ``tokenizer``).
        demo: the network may be loaded without weights: the demo weights that ship with Fathom, else seeded random ones.
        settings: whole numbers of the config that papers vary; weights trained with other ones give other depth, or do not fit.
        hub: the published file of the first variant, where it is on the Hugging Face hub.
        windows: variants differ in the window alone, so that weights trained in one serve the others.
        seeded: ``load`` takes a ``seed`` too, of what a file to start from lacks.
    """

    summary: str
    weights: str
    licence: str
    variants: tuple[str, ...]
    module: str
    config: str
    load: str
    random: str
    options: tuple[str, ...] = ()
    demo: bool = False
    settings: tuple[str, ...] = ()
    hub: HubFile | None = None
    windows: bool = False
    seeded: bool = False


NETWORKS: dict[str, NetworkEntry] = {
    "evp": NetworkEntry(
        summary="EVP: metric depth from Stable Diffusion features and caption text (934 M parameters)",
        weights="model.safetensors of MykolaL/evp_depth on the Hugging Face hub: 3,735,516,436 bytes, SHA-256 913c380f… (earlier 08c86d74…, 709bfd12…); "
        "or best_model_nyu.ckpt of the space MykolaL/evp, SHA-256 90e5f3ac901b466b6a75d4715ccf5a86dd0cfdf04497b07e849392f907df934c",
        licence="MIT (EVP repository); made from Stable Diffusion 1.5, CreativeML OpenRAIL-M",
        variants=("nyu", "kitti"),
        module="diffusion.evp",
        config="OFFICIAL",
        load="load_evp",
        random="random_evp",
        options=("text_pack", "texts", "tokenizer"),
        settings=("captions", "imafr", "metric_bins", "std", "pooled", "scenes"),
        hub=HubFile("MykolaL/evp_depth", "df101c7", "model.safetensors", 3_735_516_436, "913c380f"),
    ),
    "evp-tiny": NetworkEntry(
        summary="EVP's architecture with small widths, for demos and tests",
        weights="",
        licence="Apache-2.0",
        variants=("nyu", "kitti"),
        module="diffusion.evp",
        config="TINY",
        load="load_evp",
        random="random_evp",
        options=("text_pack", "texts", "tokenizer"),
        settings=("captions", "imafr", "metric_bins", "std", "pooled", "scenes"),
        demo=True,
    ),
    "evp-refer": NetworkEntry(
        summary="EVP for referring segmentation: a mask of what the words say (1,079 M parameters, asked with depth-run --prompt)",
        weights="model.safetensors of MykolaL/evp_refer on the Hugging Face hub: 4,317,946,624 bytes, SHA-256 657dc9c5… (commit 093516f) or debca855…",
        licence="MIT (EVP repository); made from Stable Diffusion 1.5 (CreativeML OpenRAIL-M) and CLIP ViT-L/14 (MIT)",
        variants=("refcoco",),
        module="diffusion.evp_refer",
        config="OFFICIAL",
        load="load_evp_refer",
        random="random_evp_refer",
        options=("tokenizer",),
        settings=("imafr", "std"),
        hub=HubFile("MykolaL/evp_refer", "093516f", "model.safetensors", 4_317_946_624, "657dc9c5"),
    ),
    "evp-refer-tiny": NetworkEntry(
        summary="EVP's referring architecture with small widths, for demos and tests",
        weights="",
        licence="Apache-2.0",
        variants=("refcoco",),
        module="diffusion.evp_refer",
        config="TINY",
        load="load_evp_refer",
        random="random_evp_refer",
        options=("tokenizer",),
        settings=("imafr", "std"),
        demo=True,
    ),
    "vpd": NetworkEntry(
        summary="VPD: metric depth from Stable Diffusion features and the kind of room (905 M parameters)",
        weights="the depth checkpoint that the README in depth/ of wl-zhao/VPD links to (Tsinghua cloud; size and SHA-256 were not published)",
        licence="MIT (VPD repository); made from Stable Diffusion 1.5, CreativeML OpenRAIL-M",
        variants=("nyu",),
        module="diffusion.vpd",
        config="OFFICIAL",
        load="load_vpd",
        random="random_vpd",
        options=("text_pack", "scene"),
    ),
    "vpd-tiny": NetworkEntry(
        summary="VPD's architecture with small widths, for demos and tests",
        weights="",
        licence="Apache-2.0",
        variants=("nyu",),
        module="diffusion.vpd",
        config="TINY",
        load="load_vpd",
        random="random_vpd",
        options=("text_pack", "scene"),
        demo=True,
    ),
    "depthclip": NetworkEntry(
        summary="DepthCLIP: zero-shot depth from seven distance words, coarse (24 M parameters in use)",
        weights="RN50.pt of OpenAI's CLIP: SHA-256 afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762 (it stands in the file's address)",
        licence="MIT (CLIP repository); DepthCLIP has no weights of its own",
        variants=("nyu",),
        module="clip.depthclip",
        config="OFFICIAL",
        load="load_depthclip",
        random="random_depthclip",
    ),
    "depthclip-tiny": NetworkEntry(
        summary="DepthCLIP's architecture with small widths, for demos and tests",
        weights="",
        licence="Apache-2.0",
        variants=("nyu",),
        module="clip.depthclip",
        config="TINY",
        load="load_depthclip",
        random="random_depthclip",
        demo=True,
    ),
    "moa-depthclip": NetworkEntry(
        summary="MoA-DepthCLIP: metric depth from CLIP ViT-B/32 with mixtures of adapters (95 M parameters)",
        weights="none published: train your own, starting from ViT-B-32.pt of OpenAI's CLIP "
        "(SHA-256 40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af)",
        licence="MIT (CLIP repository) for the weights it starts from",
        variants=("parity", "quality"),
        module="clip.moa_depthclip",
        config="OFFICIAL",
        load="load_moa_depthclip",
        random="random_moa_depthclip",
        windows=True,
        seeded=True,
        settings=("experts", "bins", "regression"),
    ),
    "moa-depthclip-tiny": NetworkEntry(
        summary="MoA-DepthCLIP's architecture with small widths, for demos and tests",
        weights="",
        licence="Apache-2.0",
        variants=("parity", "quality"),
        module="clip.moa_depthclip",
        config="TINY",
        load="load_moa_depthclip",
        random="random_moa_depthclip",
        windows=True,
        seeded=True,
        demo=True,
        settings=("experts", "bins", "regression"),
    ),
    "depthblip2": NetworkEntry(
        summary="DepthBLIP-2: zero-shot depth from seven distance words in BLIP-2's Q-Former, coarse (473 M parameters; v2: 1,172 M)",
        weights="two files of LAVIS at storage.googleapis.com/sfr-vision-language-research/LAVIS/models: for v1 BLIP2/blip2_pretrained_vitL.pth with "
        "--visual-weights BLIP2/clip_vit_L.pth, for v2 InstructBLIP/instruct_blip_vicuna7b_trimmed.pth with --visual-weights BLIP2/eva_vit_g.pth "
        "(sizes and SHA-256 were not published)",
        licence="BSD-3-Clause (LAVIS), MIT (CLIP) for v1; unknown for v2",
        variants=("v1", "v2"),
        module="blip2.depthblip2",
        config="OFFICIAL",
        load="load_depthblip2",
        random="random_depthblip2",
        options=("visual_weights", "bins"),
        settings=("wording",),
    ),
    "depthblip2-tiny": NetworkEntry(
        summary="DepthBLIP-2's architecture with small widths, for demos and tests",
        weights="",
        licence="Apache-2.0",
        variants=("v1", "v2"),
        module="blip2.depthblip2",
        config="TINY",
        load="load_depthblip2",
        random="random_depthblip2",
        options=("visual_weights", "bins"),
        settings=("wording",),
        demo=True,
    ),
    "llm-mde": NetworkEntry(
        summary="LLM-MDE: relative depth from BERT behind a prompt that the picture writes (275 M parameters; -metric variants: metres)",
        weights="none published: train your own, starting from timm's vit_base_patch16_224 and bert-base-uncased",
        licence="Apache-2.0 (timm, BERT) for the weights it starts from",
        variants=("official", "official-metric", "paper", "paper-metric"),
        module="llm_mde.llm_mde",
        config="OFFICIAL",
        load="load_llm_mde",
        random="random_llm_mde",
        settings=("vit_rank", "vit_alpha", "llm_rank", "prompting"),
    ),
    "llm-mde-tiny": NetworkEntry(
        summary="LLM-MDE's architecture with small widths, for demos and tests",
        weights="",
        licence="Apache-2.0",
        variants=("official", "official-metric", "paper", "paper-metric"),
        module="llm_mde.llm_mde",
        config="TINY",
        load="load_llm_mde",
        random="random_llm_mde",
        settings=("vit_rank", "vit_alpha", "llm_rank", "prompting"),
        demo=True,
    ),
}


def load(
    name: str,
    weights: str | Path | None = None,
    *,
    variant: str | None = None,
    random_init: bool = False,
    seed: int = 0,
    text_pack: str | Path | None = None,
    texts: str | Path | None = None,
    scene: str | None = None,
    visual_weights: str | Path | None = None,
    bins: str | Path | None = None,
    tokenizer: str | Path | None = None,
    settings: Mapping[str, int] | None = None,
    retrain: bool = False,
) -> DepthNetwork:
    """A network of the catalog, in eval mode, with the weights of a file, demo weights, or (``random_init``) seeded random ones.

    A file that ``depth-train`` wrote says its variant and settings itself (``trained_as``): what is not given is taken from it.

    Args:
        name: a key of ``NETWORKS``.
        weights: a checkpoint file.
        variant: one of the entry's variants; if not given the file's, or the entry's first.
        random_init: random weights, for benchmarks; not together with ``weights``.
        seed: of the random weights, also of those beside CLIP's where MoA-DepthCLIP starts from a file of CLIP.
        text_pack: safetensors with other text embeddings, for networks that have them fixed.
        texts: captions that the checkpoint's own CLIP reads, for networks that have their mean fixed.
        scene: the kind of room, for networks that must be told; without it they are told with each photo.
        visual_weights: the image encoder's checkpoint file, for networks that are published in two.
        bins: the checkpoint file of learned depth bins, for networks that may have some.
        tokenizer: ``tokenizer.json`` of the text tower, for networks that are asked in words.
        settings: other numbers for some of the entry's ``settings``; demo weights fit only the network's own.
        retrain: the weights learn on, so that variant and settings may be others than they were trained with.

    Raises:
        UsageError: for an unknown name, variant or scene, or an option that the network does not have.
        InputError: if there are no weights, they do not fit, or a file says that it was trained otherwise than asked.
    """
    entry = NETWORKS.get(name)
    if entry is None:
        raise UsageError(f"there is no network {name!r}", wanted=f"one of {', '.join(NETWORKS)}")
    if weights is not None and random_init:
        raise UsageError("--weights and --random-init contradict each other", fix="give one of them")
    demo = DEMO_WEIGHTS / f"{name}.safetensors"
    if weights is None and entry.demo and not (random_init or settings) and variant in (None, entry.variants[0]) and demo.is_file():
        weights = demo
    variant, settings = settled(name, variant, settings or {}, weights, bins, retrain, text_given=text_pack is not None or texts is not None)
    options = {"text_pack": text_pack, "texts": texts, "scene": scene, "visual_weights": visual_weights, "bins": bins, "tokenizer": tokenizer}
    for option, value in options.items():
        if value is not None and option not in entry.options:
            raise UsageError(f"{name} takes no --{option.replace('_', '-')}", fix="leave it out")
    options = {option: options[option] for option in entry.options}
    if weights is None and not random_init and not entry.demo:
        raise InputError(
            f"{name} needs weights", wanted=entry.weights, fix="download that file and give it with --weights FILE, or --random-init for a benchmark"
        )
    module = importlib.import_module(f".{entry.module}", __package__)
    config = with_settings(name, getattr(module, entry.config), settings)
    if weights is None:
        return getattr(module, entry.random)(variant=variant, config=config, seed=seed, **options)
    drawn = {"seed": seed} if entry.seeded else {}
    network = getattr(module, entry.load)(weights, variant=variant, config=config, **options, **drawn)
    if weights is demo:
        network.origin = dataclasses.replace(network.origin, kind="demo", licence=entry.licence)
    return network


def settled(
    name: str,
    variant: str | None,
    settings: Mapping[str, int | None],
    weights: str | Path | None,
    bins: str | Path | None = None,
    retrain: bool = False,
    text_given: bool = False,
) -> tuple[str, dict[str, int | None]]:
    """The variant and the settings that files are loaded with: as asked, else as they were trained, else the network's own. See ``load``.

    Args:
        text_given: one text for all photos instead of the file's own: weights that learned with ``captions`` may be asked for without.

    Raises:
        UsageError: for an unknown variant.
        InputError: if a file says that it was trained otherwise.
    """
    entry = NETWORKS[name]
    if variant is not None and variant not in entry.variants:
        raise UsageError(f"{name} has no variant {variant!r}", wanted=f"one of {', '.join(entry.variants)}")
    settings = dict(settings)
    for file, learns_on in ((weights, retrain), (bins, False)):  # bins belong to the network that they were fitted to
        said = None if file is None else read_trained_as(file)
        if said is not None:
            if entry.windows and variant:
                said = dataclasses.replace(said, variant=variant)
            if text_given:
                said = dataclasses.replace(said, settings={setting: number for setting, number in said.settings.items() if setting != "captions"})
            variant, settings = said.settle(Path(file).name, name, variant, settings, learns_on)
            if variant not in entry.variants or not set(said.settings) <= set(entry.settings):
                raise InputError(f"{file} was trained with a variant or settings that are not known here", fix="use the release of Fathom that trained it")
    return variant or entry.variants[0], settings


def with_settings(name: str, config: Any, settings: Mapping[str, int]) -> Any:
    """The network's config with other numbers for some of its settings.

    Raises:
        UsageError: if it has no such setting, or not for that number.
    """
    known = NETWORKS[name].settings
    for setting in settings:
        if setting not in known:
            raise UsageError(f"{name} has no setting {setting!r}", wanted=f"one of {', '.join(known)}" if known else "none: it has no settings")
    try:
        return dataclasses.replace(config, **settings) if settings else config
    except ValueError as error:
        raise UsageError(f"{name} cannot be set so: {error}") from error


def parse_settings(texts: Iterable[str]) -> dict[str, int]:
    """The settings of ``--set NAME=NUMBER`` flags.

    Raises:
        UsageError: for another form.
    """
    found = {}
    for text in texts:
        setting, _, number = text.partition("=")
        if not setting or not (number.isascii() and number.isdigit() and len(number) < 7):
            raise UsageError(f"--set {text}", wanted="NAME=NUMBER, for example --set experts=8")
        found[setting] = int(number)
    return found
