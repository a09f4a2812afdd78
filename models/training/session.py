"""From the words of a command line to a run, and from its end to a model card."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ...runtime.errors import EnvironmentMismatchError, InputError, UsageError
from ...runtime.files import refuse_existing, sha256_of, whole_file
from .. import catalog
from ..network import DepthNetwork
from .bins_training import refuse_unused, train_bins
from .card import card, card_path
from .data.data_arguments import facts_of, open_data, refuse_shared, refuse_without_depth, repeated
from .data.kept_samples import KeptSamples
from .data.referring_data import NamedSamples
from .learners.learners import learner_for
from .loop import Run, best_path, log_path, train
from .recipes.recipe import Recipe
from .recipes.recipes import RECIPES, parts_of, recipe_of
from .starts.starts import SCENE, STARTS, started_network
from .state import state_path

ALIGNED = "This network says relative depth: each of its maps was multiplied so that its median is the truth's, and so was each baseline."
WORDS = (
    "It was asked only for things in synthetic rooms, and always for something that was there: it does not know how to find nothing. "
    "Photos with words and masks are not learned from; `depth-bench accuracy --data refer:DIR:refcoco` measures on them."
)
CAMERA = "Its metres are those of one camera: each picture's own was told, where it is known. The blind guesses do not use it."
EVERY = 200  # steps between two validations, unless they end the run: the papers count epochs
SWITCHED = {"vit_rank": r"vit\.", "llm_rank": r"llm\.", "experts": r"adapters\.", "regression": r"regression\."}  # at 0 these parameters do not learn
NOTES = {"relative": ALIGNED, "mask": WORDS}  # by the kind of output


@dataclass(frozen=True)
class Session:
    """A run, and what its card says beside it.

    Args:
        run: what the loop trains.
        command: the command that makes the same weights.
        start: where the initial weights come from, in words.
        held_out: the data sets that are measured on at the end.
        options: of ``catalog.load`` that belong to the network: variant, scene, visual weights, settings.
        began: those that say which weights the run began with.
    """

    run: Run
    command: str
    start: str
    held_out: tuple[KeptSamples, ...]
    options: dict
    began: dict

    @classmethod
    def prepare(cls, arguments: argparse.Namespace, output: Path, command: str) -> Session:
        """Check everything that can be checked before the first step.

        Raises:
            UsageError: for a network without a recipe, arguments that contradict each other, or data that names nothing.
            InputError: if a file is missing, or the output exists and may not be replaced.
            EnvironmentMismatchError: if the device is not there.
        """
        _refuse_replacing(output, arguments.force or arguments.resume)
        entry = catalog.NETWORKS.get(arguments.model)
        if entry is None or arguments.model not in RECIPES:
            known = ", ".join(name for name in RECIPES if name in catalog.NETWORKS)
            raise UsageError(f"there is no recipe for {arguments.model!r}", wanted=f"one of {known}")
        given = (arguments.variant, catalog.parse_settings(arguments.set), arguments.weights)
        variant, settings = catalog.settled(arguments.model, *given, retrain=True, text_given=arguments.texts is not None)
        recipe = recipe_for(arguments, variant, settings)
        if not recipe.trained:
            refuse_unused(arguments)
        if arguments.weights is None and not entry.demo and not arguments.random_init:
            raise UsageError(
                f"{arguments.model} starts from trained weights", wanted=STARTS.get(arguments.model, entry.weights), fix="give --weights FILE, or --random-init"
            )
        if arguments.threads:
            torch.set_num_threads(arguments.threads)
        if (arguments.captions is None) == bool(settings.get("captions")):
            was = "--captions, and the network reads none" if arguments.captions else "--set captions=1 without captions to learn from"
            raise UsageError(was, fix="give both --set captions=1 and --captions FILE, a JSON object from the pictures' ids to captions, or neither")
        device = device_for(arguments.device)
        folder = Path(arguments.cache) if arguments.cache else None
        learned = [repeated(text, arguments.captions) for text in arguments.data]
        try:
            data = KeptSamples([source for source, times in learned for _ in range(times)], folder, arguments.shots, arguments.seed)
        except ValueError as error:
            raise UsageError(str(error), fix="give a smaller --shots") from error
        chosen = None
        if arguments.hold_back and any(times > 1 for _, times in learned):
            raise UsageError("--hold-back and DATA*N: a sample would be learned from and chosen by", fix="leave out one of them")
        if arguments.hold_back:
            try:
                data, chosen = data.split(arguments.hold_back, arguments.seed)
            except ValueError as error:
                raise UsageError(f"--hold-back {arguments.hold_back}: {error}") from error
        held_out = tuple(KeptSamples([open_data(text, "test", arguments.captions)], folder) for text in arguments.val)
        refuse_shared(data, chosen, arguments.val, held_out)
        if recipe.loss == "cross_entropy":  # it learns words
            for kept in (data, *held_out, *([chosen] if chosen else [])):
                NamedSamples(kept)
        else:
            refuse_without_depth([source for source, _ in learned], arguments.val, held_out)
        options = {"variant": variant, "scene": arguments.scene, "visual_weights": arguments.visual_weights, "settings": settings}
        if "scene" in entry.options:
            options["scene"] = arguments.scene or SCENE
        random = arguments.weights is None
        began = {"weights": arguments.weights, "random_init": random, "seed": arguments.seed if random else 0}
        start = (variant, arguments.scene, arguments.visual_weights, settings, arguments.texts, bool(recipe.trained))
        network = started_network(arguments.model, arguments.weights, random, arguments.seed, *start)
        backbone = _backbone(arguments)
        processes = int(os.environ.get("WORLD_SIZE", "1"))  # of torchrun; each takes a batch of its own
        if processes > 1 and not recipe.trained:
            raise UsageError(f"{arguments.model} learns in one process, torchrun started {processes}", fix="start depth-train alone")
        epoch = -(-len(data) // (recipe.batch * processes))
        steps = arguments.steps or recipe.epochs * epoch
        every = arguments.every or (epoch if recipe.patience and chosen else EVERY)
        facts = {
            "model": arguments.model,
            "variant": network.variant,
            **({"settings": settings} if settings else {}),
            "scene": options["scene"],
            "weights": network.origin.sha256,
            **{flag: path and sha256_of(path) for flag, path in (("visual_weights", arguments.visual_weights), ("texts", arguments.texts))},
            "data": [facts_of(source, times) for source, times in learned],
            "val": [source.provenance.to_json() for kept in held_out[:1] for source in kept.sources],
            "steps": steps,
            "batch": recipe.batch,
            "processes": processes,
            "lr": recipe.rate,
            "seed": arguments.seed,
            "shots": arguments.shots,
            **({"learn": arguments.learn} if arguments.learn else {}),
            **({} if arguments.hint_alone is None else {"hint_alone": arguments.hint_alone}),
            "backbone": backbone and backbone.origin.sha256,
            "every": every,
            "hold_back": arguments.hold_back,
            "precision": recipe.precision,
            "accumulate": arguments.accumulate,
            "ema": arguments.ema,
            "store": arguments.store,
        }
        watched = held_out[0] if held_out else None
        run = Run(network, recipe, data, watched, output, steps, arguments.seed, every, arguments.store, device, facts, backbone, chosen)
        run = replace(run, accumulate=arguments.accumulate, ema=arguments.ema, workers=arguments.workers)
        start = "random weights" if random else f"{network.origin.file} (SHA-256 {network.origin.sha256[:12]})"
        if arguments.visual_weights:
            start += f"; image encoder {Path(arguments.visual_weights).name} (SHA-256 {facts['visual_weights'][:12]})"
        if backbone is not None:
            start += f"; VAE and U-Net of {backbone.name} (SHA-256 {backbone.origin.sha256[:12]})"
        return cls(run, command, start, held_out, options, began)

    def train(self, resume: bool, on_message: Callable[[str], None], on_progress: Callable[..., None]) -> dict | None:
        """Train, read the weights back, measure them, and write the card; returns the facts, None on all but the first of several processes."""
        rank = int(os.environ.get("RANK", "0"))
        run, output = self.run, self.run.output
        name, bins = run.network.name, not run.recipe.trained
        result = (
            train_bins(run, on_progress)
            if bins
            else train(run, resume, on_message if rank == 0 else lambda text: None, on_progress if rank == 0 else lambda step, earlier=False: None)
        )
        if rank:
            return None
        on_message("measuring the weights as they were written")
        network = catalog.load(name, **self.began, **self.options, bins=output) if bins else catalog.load(name, output, **self._alone())
        network = network.to(run.device)
        learner = learner_for(network, run.recipe)
        results = []
        for kept in self.held_out:
            found = {"network": learner.validate(kept, run.recipe.batch, run.device), **learner.baselines(kept)}
            results.append({"data": kept.sources[0].provenance.to_json(), **found})
        meaning = network.contract.output
        facts = {
            "model": network.name,
            "variant": network.variant,
            "licence": catalog.NETWORKS[network.name].licence if catalog.NETWORKS[network.name].demo else "as the weights it started from",
            "file": output.name,
            "nbytes": output.stat().st_size,
            "sha256": sha256_of(output),
            "command": self.command,
            "recipe": run.recipe.source,
            "start": self.start,
            "seed": run.seed,
            "steps": result["steps"],
            "batch": run.recipe.batch,
            "processes": run.facts["processes"],
            "wall_s": result["wall_s"],
            "device": "a GPU" if run.device.type == "cuda" else "CPU",
            "threads": torch.get_num_threads(),
            "store": run.store,
            "data": run.facts["data"],
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "measures": learner.measures,
            "results": results,
            "notes": [*network.origin.warnings, *(note for kind, note in NOTES.items() if kind == meaning.kind), *([CAMERA] if meaning.focal_px else [])],
        }
        path = card_path(output)
        with whole_file(path, force=True) as part:
            part.write_text(card(facts))
        return {**facts, "loss": result["loss"], "card": str(path)}

    def _alone(self) -> dict:
        """What the trained file is loaded with: it holds the whole network."""
        return {name: value for name, value in self.options.items() if name != "visual_weights"}


def _refuse_replacing(output: Path, replace: bool) -> None:
    """Raises:
    InputError: if the output, or a file that is written beside it, exists and may not be replaced.
    """
    refuse_existing(output, replace)
    for path in (log_path(output), card_path(output), best_path(output), state_path(output)):
        if path.exists() and not replace:
            fix = "go on with the interrupted run by --resume, choose another output, or pass --force to replace it"
            raise InputError(f"{path} exists already, and this run would write it beside {output.name}", wanted="names that are free", fix=fix)


def _backbone(arguments: argparse.Namespace) -> DepthNetwork | None:
    name = arguments.backbone
    if name is None:
        return None
    entry = catalog.NETWORKS.get(name)
    if entry is None or not entry.demo or arguments.weights is not None:
        raise UsageError(f"--backbone {name}", wanted="a small network of the catalog, such as evp-tiny, and no --weights")
    backbone = catalog.load(name, scene=(arguments.scene or SCENE) if "scene" in entry.options else None)
    if not backbone.origin.sha256:
        raise UsageError(f"--backbone {name}: there are no demo weights of it", fix="train it first, or leave out --backbone")
    return backbone


def recipe_for(arguments: argparse.Namespace, variant: str, settings: Mapping[str, int | None]) -> Recipe:
    """The recipe of ``--model`` with what the command line says instead.

    Args:
        variant, settings: of the network that learns.

    Raises:
        UsageError: if there is none, or the learning rate is none.
    """
    recipe = recipe_of(arguments.model, variant, arguments.learn)
    if recipe is None:
        was = f"--learn {arguments.learn}: there is no such recipe of {arguments.model}, variant {variant}"
        raise UsageError(was, wanted=" or ".join(parts_of(arguments.model, variant)) or "no --learn")
    if arguments.learn == "clip" and not settings.get("captions"):
        raise UsageError("--learn clip, and the network keeps no CLIP", fix="give --set captions=1 and --captions FILE too, or leave it out")
    if arguments.weights is not None:
        recipe = recipe.carried_on()
    if arguments.batch:
        recipe = replace(recipe, batch=arguments.batch)
    if arguments.lr is not None:
        if not 0 < arguments.lr < 10:
            raise UsageError(f"--lr {arguments.lr} is no learning rate", wanted="a number above 0 and below 10")
        recipe = replace(recipe, rate=arguments.lr, least_rate=recipe.least_rate * arguments.lr / recipe.rate)
    if arguments.precision:
        recipe = replace(recipe, precision=arguments.precision)
    if arguments.hint_alone is not None:
        if not recipe.hint:
            raise UsageError("--hint-alone, and the recipe has no hint", fix="leave it out")
        recipe = replace(recipe, hint_alone=arguments.hint_alone)
    frozen = tuple(part for setting, part in SWITCHED.items() if settings.get(setting) == 0)
    recipe = replace(recipe, trained=tuple(pattern for pattern in recipe.trained if not pattern.startswith(frozen)))
    if arguments.accumulate > recipe.batch:
        raise UsageError(f"--accumulate {arguments.accumulate}", wanted=f"at most the step's {recipe.batch} pictures")
    return recipe


def device_for(name: str) -> torch.device:
    """The device of that name; several processes of one machine take one GPU each.

    Raises:
        UsageError: for an unknown name.
        EnvironmentMismatchError: if there is no such GPU.
    """
    if name != "cpu" and not name.startswith("cuda"):
        raise UsageError(f"there is no device {name!r}", wanted="cpu, cuda or cuda:N")
    if name == "cpu":
        return torch.device("cpu")
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    number = name.partition(":")[2]
    if not number.isdigit() or not torch.cuda.is_available() or int(number) >= torch.cuda.device_count():
        raise EnvironmentMismatchError(f"PyTorch finds no {name} here", fix="use --device cpu, or install a PyTorch for this GPU")
    return torch.device(name)
