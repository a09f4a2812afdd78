"""Quantisation-aware training of a calibrated bundle: photos in, a bundle out whose weights and ranges suit its precision plan."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ...calibration.calibrate import PLAN
from ...calibration.graph.chain import Chain
from ...calibration.observation.flow import Flow
from ...calibration.observation.images import Chosen
from ...calibration.observation.journal import Journal
from ...calibration.observation.observe import left_out, prepare_photos, silent
from ...calibration.observation.split import split
from ...calibration.search.evaluate import Evaluator
from ...calibration.search.objective import Budget, Score
from ...runtime.artefact.bundle import BundleDirectory
from ...runtime.errors import AccuracyError, InputError, UsageError
from ...runtime.files import refuse_existing
from ..precision.calibrated import require_calibration
from .bundle import write_learned_bundle
from .distil import Recipe, distil
from .photos import Batches
from .reconstruct import at_once, reconstruct
from .stages import LearningStage
from .torch_graph import TorchGraph

PEAK_WINDOWS = 64  # that the greatest magnitudes of the learned network are read from


def learn_quantised(
    plan: Path,
    data: Chosen,
    path: Path,
    recipe: Recipe,
    *,
    device: torch.device,
    force: bool = False,
    on_message: Callable[[str], None] = lambda text: None,
    on_step: Callable[[int], None] = lambda step: None,
) -> dict[str, Any]:
    """Train the weights of a bundle for its precision plan, and write them as a calibrated bundle.

    Teacher is the FP32 network of the bundle, student the same with the plan's Q/DQ; everything else computes in FP32. The photos are dealt out as
    ``depth-calibrate`` deals them (``split``): with the same data and seed, those that prove the result are of scenes that gave no range, chose nothing
    and are not learned from.

    Args:
        plan: ``precision_plan.json`` inside a calibrated bundle.
        data: photos; no depth is needed.
        path: of the bundle to write.
        on_message: called with remarks for people.
        on_step: called with the number of steps that are done.

    Returns:
        ``bundle``, ``recipe``, ``photos`` (learned from, proved on), ``loss`` (mean of the first and of the last tenth), ``fitted_layers``, ``compensated``
        (whether their weights make up for each other's rounding), ``distilled`` (whether the gradients came nearer than the closed form; if not, its
        weights are kept; both by the photos that choose), and scores (``Score.to_json``) against the FP32
        network on the photos of the proof: ``before`` (quantised by the plan), ``after``, ``fp32`` (the learned weights, not quantised).

    Raises:
        UsageError: if the plan quantises nothing, or a stage holds what cannot be learned through.
        InputError: if it is no plan of a calibrated bundle, the data cannot be read, or the path may not be written.
        AccuracyError: if the loss is not finite, or learning did not bring the quantised network nearer to FP32; nothing is written then.
    """
    if plan.name != PLAN or not plan.is_file():
        raise InputError(f"{plan} is no precision plan of a bundle", wanted=f"the {PLAN} inside a bundle", fix="calibrate it first (depth-calibrate)")
    refuse_existing(path, force)
    with BundleDirectory.open(plan.parent) as bundle, tempfile.TemporaryDirectory() as scratch:
        calibration = require_calibration(bundle, "")
        planned, table = calibration.plan, calibration.table
        if not any(region.choice.quantised for region in planned.regions):
            raise UsageError(f"{plan} quantises nothing", fix="calibrate with a wider --budget")
        chain = Chain(bundle, table.protocol, tuple(table.data.get("prompts", ())))
        journal = Journal(Path(scratch) / "journal", {})
        photos = prepare_photos(chain, data, journal, silent)
        parts = split(photos, data.evaluation_ids(), data.provenance()["kind"], left_out(journal), data.seed)
        learned_from = tuple(sorted((*parts.observe, *parts.select), key=lambda photo: photo.number))
        stages = [LearningStage(chain.graphs[spec.name], planned.of_stage(spec.name), table, spec.name, planned.also) for spec in chain.specs]
        judge = Evaluator(chain, {}, list(parts.prove), data.__getitem__, Flow(chain, data, journal), planned.also, "prove")
        choices = {stage.name: stage.choices for stage in stages}
        before = judge.score_stages(choices, {stage.name: stage.quantised for stage in stages})
        on_message(f"{len(learned_from)} photos to learn from, {len(parts.prove)} to prove on; moved {before.disagreement:.3%} before")
        teacher, student = [TorchGraph(chain.graphs[spec.name], (), device) for spec in chain.specs], [stage.student(device) for stage in stages]

        def judged(by: Evaluator) -> Score:
            for stage, learned in zip(stages, student, strict=True):
                stage.take(learned)
            return by.score_stages(choices, {stage.name: stage.quantised for stage in stages})

        batches = Batches(chain, data, learned_from, recipe.batch, recipe.seed, device)
        views = list(batches.each(at_once(teacher, next(batches.each(1))[0])))
        chooser = Evaluator(chain, {}, list(parts.select), data.__getitem__, Flow(chain, data, journal), planned.also, "select")
        in_closed_form, fitted, compensated, kept = _fit(teacher, student, views, lambda: judged(chooser))
        del views
        how = "weights make up for each other's rounding" if compensated else "each weight rounded to nearest"
        on_message(f"{fitted} layers fitted in closed form, {how}; moved {in_closed_form.disagreement:.3%} on the photos that choose")
        losses = distil(teacher, student, batches.of(parts.observe), chain.contract.output.tensor, recipe, lambda step, loss: on_step(step))
        del teacher
        distilled = judged(chooser)
        on_message(f"{recipe.steps} steps of distillation; moved {distilled.disagreement:.3%} on them")
        better = distilled.harm < in_closed_form.harm
        if not better:
            _put(student, kept)
        after = judged(judge)
        fp32 = judge.score_stages({}, {stage.name: stage.graph for stage in stages})
        if after.harm >= before.harm:
            was = f"after learning, the depth moves {after.disagreement:.3%} on the photos of the proof" if not after.failure else after.failure
            raise AccuracyError(
                was, wanted=f"less than the {before.disagreement:.3%} before", fix="learn from more photos, for more steps, or with a lower --lr"
            )
        tenth = max(1, len(losses) // 10)
        loss = {"first": sum(losses[:tenth]) / tenth, "last": sum(losses[-tenth:]) / tenth}
        facts = {"recipe": asdict(recipe), "photos": {"learned": len(learned_from), "proved": len(parts.prove)}, "loss": loss}
        facts |= {"fitted_layers": fitted, "compensated": compensated, "distilled": better}
        scenes = len({photo.scene for photo in parts.prove})
        within = after.within(Budget(**planned.budget))
        proof = {"photos": len(parts.prove), "scenes": scenes, "score": after.to_json(), "within": within, "rejected": []}
        told = {"fitted_layers": fitted, "steps": recipe.steps if better else 0, "seed": recipe.seed, "before": before.to_json()}
        told["data"] = data.provenance() | {"splits": parts.to_json()}
        write_learned_bundle(bundle, calibration, stages, path, told, proof, _peaks(stages, batches), force)
    scores = {"before": before.to_json(), "after": after.to_json(), "fp32": fp32.to_json()}
    return {"bundle": str(path), **facts, **scores}


def _fit(
    teacher: list[TorchGraph], student: list[TorchGraph], views: list[list[dict[str, torch.Tensor]]], judged: Callable[[], Score]
) -> tuple[Score, int, bool, list[dict[str, torch.Tensor]]]:
    """The student in closed form, in place, with or without weights that make up for each other's rounding: the one of the better score; that score, the
    number of fitted layers, whether the weights do, and the weights."""
    before, tried = [graph.copied_weights() for graph in student], []
    for compensate in (False, True):
        _put(student, before)
        fitted = reconstruct(teacher, student, views, compensate)
        tried.append((judged(), fitted, compensate, [graph.copied_weights() for graph in student]))
    best = min(tried, key=lambda found: found[0].harm)
    _put(student, best[3])
    return best


def _put(student: list[TorchGraph], weights: list[dict[str, torch.Tensor]]) -> None:
    for graph, values in zip(student, weights, strict=True):
        graph.set_weights(values)


def _peaks(stages: list[LearningStage], batches: Batches) -> dict[str, dict[str, float]]:
    """Greatest magnitude of every floating-point tensor of the learned FP32 stages."""
    found: dict[str, dict[str, float]] = {stage.name: {} for stage in stages}
    graphs = [TorchGraph(stage.graph) for stage in stages]
    with torch.no_grad():
        for feeds, _ in batches.each(PEAK_WINDOWS):
            values = {name: tensor.cpu() for name, tensor in feeds.items()}
            for graph, stage in zip(graphs, stages, strict=True):
                values |= graph(values, found[stage.name])
    return found
