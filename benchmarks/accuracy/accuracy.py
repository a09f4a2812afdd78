"""Engines against the truth and against each other on a data set: streaming, one engine at a time, resumable."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...datasets.depth_metrics import METRICS, MeanScore, Score
from ...runtime.errors import AccuracyError, FathomError, InputError, UsageError, missing_package
from ..evaluation.evaluation import Evaluation, collect, counted, judge, overall
from ..evaluation.map_scale import map_scale, scale_of_maps
from ..evaluation.shaping import shape_pair
from ..record.statistics import LEVEL, RESAMPLES, SEED, interval_of_mean, interval_of_relative_change
from .duration import duration, expected_s
from .journal import Journal
from .words import camera_of, words_of

if TYPE_CHECKING:
    from ...datasets.sample import Sample
    from ...datasets.source import Source
    from ...runtime.photo.depth_map import DepthMap
    from ...runtime.pipeline import Pipeline


LONG_S = 600.0


@dataclass(frozen=True)
class Row:
    """One line of the table before it is measured.

    Args:
        name: unique among the rows.
        kind: ``engine`` or ``pytorch``.
        open: opens the pipeline; called once, and only if something is left to measure.
        facts: what identifies it (network, SHA-256, backend, precision, protocol, flip, untrained), as JSON values.
    """

    name: str
    kind: str
    open: Callable[[], Pipeline]
    facts: dict[str, Any]


@dataclass(frozen=True)
class RowResult:
    """One line of the table.

    Args:
        mean: over all images.
        scores: of every group, in order.
        scales: likewise, of every image that is scored alone (``map_scale``).
        ids: of the images of every group.
        failures: (id, reason) of images without a usable prediction.
        skipped: (id, reason) of images that do not fit the evaluation or the protocol; they count for nothing.
        content_sha256: over the digests of all samples in order.
    """

    row: Row
    mean: MeanScore
    scores: tuple[tuple[Score, ...], ...]
    scales: tuple[tuple[dict[str, Any] | None, ...], ...]
    ids: tuple[tuple[str, ...], ...]
    failures: tuple[tuple[str, str], ...]
    skipped: tuple[tuple[str, str], ...]
    content_sha256: str


def read_samples(source: Source, numbers: range) -> Iterator[Sample]:
    """Samples one by one, with the errors of ``datasets`` as errors for people.

    Raises:
        InputError: if a file is missing or broken.
        EnvironmentMismatchError: if h5py or scipy is not installed.
    """
    for number in numbers:
        try:
            yield source[number]
        except ImportError as error:
            raise missing_package(error.name or "h5py", "bench", "to read this data set") from error
        except (ValueError, OSError) as error:
            raise InputError(str(error), wanted="data as --data names them", fix="check the files and the words after --data") from error


def measure(
    rows: list[Row],
    source: Source,
    count: int,
    evaluation: Evaluation,
    journal: Journal,
    advance: Callable[[int], None],
    on_message: Callable[[str], None] | None = None,
) -> list[RowResult]:
    """Run every row over the first ``count`` samples, each by the protocol that its facts name.

    Args:
        advance: told how many images are done.
        on_message: told before a row's first image how long all will take, if that is long.

    Raises:
        InputError: if the data cannot be read, or no image fits. An image that does not fit, or on which a network fails, does not stop
            the others; the result names it.
        UsageError: if there is no such protocol, or the evaluation cannot speak about the networks' output.
    """
    return [_measure_row(number, row, source, count, evaluation, journal, advance, on_message) for number, row in enumerate(rows)]


def _measure_row(number, row, source, count, evaluation, journal, advance, on_message) -> RowResult:
    groups = [range(start, min(start + evaluation.group, count)) for start in range(0, count, evaluation.group)]
    left = [index for index in range(len(groups)) if (number, index) not in journal.done]
    advance(sum(len(groups[index]) for index in range(len(groups)) if (number, index) in journal.done))
    if left:
        with row.open() as pipeline:
            images = sum(len(groups[index]) for index in left)
            if on_message and (expected := expected_s(pipeline, row.facts["protocol"], images)) > LONG_S:
                on_message(f"{row.name}: {images} images will take about {duration(expected)}; --limit N measures fewer")
            for index in left:
                journal.add(number, index, _measure_group(pipeline, source, groups[index], evaluation, row.facts["protocol"]))
                advance(len(groups[index]))
    entries = [journal.done[number, index] for index in range(len(groups))]
    scores = tuple(tuple(map(Score.from_json, entry["scores"])) for entry in entries)
    content = hashlib.sha256("".join(digest for entry in entries for digest in entry["digests"]).encode()).hexdigest()
    mean = overall(evaluation, scores)
    failures = tuple((name, reason) for entry in entries for name, reason in entry["failures"])
    mean.failed += sum(entry["lost"] for entry in entries)
    skipped = tuple((name, reason) for entry in entries for name, reason in entry["skipped"])
    if count and len(skipped) == count:
        raise InputError(f"{row.name}: none of the {count} images fits: {skipped[0][0]}: {skipped[0][1]}", fix="another --evaluation or --protocol")
    scales, ids = (tuple(tuple(entry[name]) for entry in entries) for name in ("scales", "ids"))
    return RowResult(row, mean, scores, scales, ids, failures, skipped, content)


def _measure_group(pipeline: Pipeline, source: Source, numbers: range, evaluation: Evaluation, protocol: str) -> dict[str, Any]:
    """Score one group; ``lost`` counts images that gave no map at all, ``skipped`` names those that do not fit."""
    images, scores, scales, ids, digests, failures, skipped, lost = [], [], [], [], [], [], [], 0
    for sample in read_samples(source, numbers):
        ids.append(sample.id)
        digests.append(sample.digest())
        try:
            rgb, truth_m, valid = shape_pair(sample.rgb, sample.depth_m, sample.valid, evaluation.shape)
            mask = counted(evaluation, truth_m, valid)
            scene = words_of(pipeline.contract, sample)
        except (FathomError, ValueError) as error:
            skipped.append((sample.id, f"does not fit the evaluation {evaluation.name}: {_was(error)}"))
            continue
        if not mask.any():
            scores.append(Score(None, 0))
            scales.append(None)
            continue
        try:
            depth = pipeline.predict(rgb, protocol, camera_of(pipeline.contract, sample, evaluation.shape), scene)
        except AccuracyError as error:
            failures.append((sample.id, str(error)))
            lost += 1
            continue
        except InputError as error:
            skipped.append((sample.id, f"does not fit the protocol {protocol}: {_was(error)}"))
            continue
        if depth.not_positive and evaluation.clamp_m is None:
            failures.append((sample.id, f"{depth.not_positive} pixels of the map are not above zero"))
            lost += 1
            continue
        images.append(collect(evaluation, *_values(depth, evaluation), truth_m, valid))
        if evaluation.pooling == "images":
            scores += judge(evaluation, images)
            scales.append(map_scale(evaluation, images[0], sample.intrinsics and sample.intrinsics[0] / sample.rgb.shape[1]))
            images = []
    if images:
        scores += judge(evaluation, images)
    failures += [("", f"{score.not_finite} pixels not finite, {score.not_positive} not above zero") for score in scores if score.failed]
    found = {"ids": ids, "digests": digests, "scores": [score.to_json() for score in scores], "scales": scales}
    return {**found, "failures": failures, "skipped": skipped, "lost": lost}


def _was(error: Exception) -> str:
    if not isinstance(error, FathomError):
        return str(error)
    return f"{error.was}, wanted {error.wanted}" if error.wanted else error.was


def _values(depth: DepthMap, evaluation: Evaluation) -> tuple[np.ndarray, np.ndarray]:
    """Prediction and where there is one; refuses maps that this evaluation cannot speak about."""
    if depth.kind == "mask":
        raise UsageError("this network draws masks, not depth", wanted="a depth network")
    if depth.kind == "relative" and evaluation.alignment == "none" and not evaluation.min_max:
        raise UsageError("this network's maps are relative, they are not metres", fix="name a fit with --alignment, or use --evaluation llm-mde-min-max")
    if depth.kind == "relative" and depth.larger_is == "near" and evaluation.alignment != "scale-shift-inverse":
        raise UsageError("this network's maps grow toward the camera", fix="--alignment scale-shift-inverse")
    return depth.values, depth.valid


def differences(result: MeanScore, base: MeanScore) -> dict[str, dict[str, float | None]] | None:
    """Each metric minus the base's, absolute and as a share of the base (None where the base is 0)."""
    if result.means is None or base.means is None:
        return None
    absolute = {name: result.means[name] - base.means[name] for name in METRICS}
    return {"absolute": absolute, "relative": {name: absolute[name] / base.means[name] if base.means[name] else None for name in METRICS}}


def to_json(results: list[RowResult], provenance: dict[str, Any], evaluation: Evaluation, count: int) -> dict[str, Any]:
    """What a record of accuracy holds besides its header; every row's differences are to the first row."""
    contents = {result.content_sha256 for result in results}
    if len(contents) != 1:
        raise InputError("the data changed while it was measured", wanted="the same pictures for every row", fix="remove the journal and measure again")
    return {
        "data": {**provenance, "measured": count, "content_sha256": contents.pop()},
        "evaluation": evaluation.to_json(),
        "confidence": {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED, "method": "percentile bootstrap over images"},
        "rows": [_row_json(result, results[0]) for result in results],
    }


def _values_of(result: RowResult, metric: str) -> list[float] | None:
    """A metric of every image in order; None where images were scored together or weigh differently, or one failed."""
    if result.mean.means is None or any(len(ids) != 1 or len(scores) > 1 for ids, scores in zip(result.ids, result.scores, strict=True)):
        return None
    return [score.values[metric] for scores in result.scores for score in scores if score.values is not None]


def _intervals(result: RowResult) -> dict[str, list[float]] | None:
    """Where each mean lies."""
    found = {metric: interval for metric in METRICS if (values := _values_of(result, metric)) and (interval := interval_of_mean(values))}
    return {metric: list(interval) for metric, interval in found.items()} or None


def _change_intervals(result: RowResult, base: RowResult) -> dict[str, list[float] | None] | None:
    """Where each relative change lies, images drawn together for both rows."""
    found: dict[str, list[float] | None] = {}
    for metric in METRICS:
        ours, theirs = _values_of(result, metric), _values_of(base, metric)
        if ours and theirs and len(ours) == len(theirs):
            interval = interval_of_relative_change(ours, theirs)
            found[metric] = list(interval) if interval else None
    return found or None


def _difference(result: RowResult, base: RowResult) -> dict[str, Any]:
    """Nothing where a row failed; a reason where it was measured on other images."""
    if {name for name, _ in result.skipped} != {name for name, _ in base.skipped}:
        return {"reason": "not every image fits both"}
    found = differences(result.mean, base.mean)
    return {**found, "relative_interval": _change_intervals(result, base)} if found else {}


def _row_json(result: RowResult, base: RowResult) -> dict[str, Any]:
    mean = result.mean
    return {
        "name": result.row.name,
        "kind": result.row.kind,
        **result.row.facts,
        "means": mean.means,
        "means_interval": _intervals(result),
        "difference": None if result is base else {"to": base.row.name, **_difference(result, base)},
        **{name: getattr(mean, name) for name in ("images", "empty", "failed", "pixels", "not_finite", "not_positive", "uncovered", "coverage")},
        "failures": [{"id": name, "reason": reason} for name, reason in result.failures],
        "skipped": [{"id": name, "reason": reason} for name, reason in result.skipped],
        "scale": scale_of_maps([each for scales in result.scales for each in scales]),
        "groups": [
            {"ids": list(ids), "scores": [score.to_json() for score in scores], "scales": list(scales)}
            for ids, scores, scales in zip(result.ids, result.scores, result.scales, strict=True)
        ],
    }
