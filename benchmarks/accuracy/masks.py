"""Networks that draw what words mean against the masks of people: one sample per sentence, resumable, sizes as the published evaluation has them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ...datasets.mask_metrics import MaskTotals
from ...runtime.errors import AccuracyError, InputError, UsageError
from ...runtime.photo.preprocess import place_steps, shape_photo
from ..record.statistics import LEVEL, RESAMPLES, SEED, interval_of_mean, interval_of_relative_change
from .accuracy import LONG_S, Row
from .duration import duration, expected_s

if TYPE_CHECKING:
    from ...datasets.referring.refer import Referred, Referring
    from ...runtime.pipeline import Pipeline
    from .journal import Journal

EVALUATIONS = {
    "refer-window": "VPD's and EVP's published code: photo and mask are brought to the network's window, the mask by its nearest pixels, and compared there",
    "refer-photo": "compared on the photo's own pixels",
}


def read_referred(source: Referring, numbers: range) -> Iterator[Referred]:
    """Samples one by one, with the errors of ``datasets`` as errors for people.

    Raises:
        InputError: if a file is missing or broken.
    """
    for number in numbers:
        try:
            yield source[number]
        except (ValueError, OSError) as error:
            raise InputError(str(error), wanted="REFER's files and COCO's train2014", fix="check the files and the words after --data") from error


def measure_masks(
    rows: list[Row],
    source: Referring,
    count: int,
    evaluation: str,
    journal: Journal,
    advance: Callable[[int], None],
    on_message: Callable[[str], None] = lambda words: None,
) -> list[list[dict[str, Any]]]:
    """Every row's samples: ``id``, ``digest``, ``intersection`` and ``union`` in pixels, ``failure`` where the network gave no mask.

    Args:
        evaluation: of ``EVALUATIONS``.
        journal: keeps each sample.
        advance: told how many sentences are done.
        on_message: told before a row's first sentence how long all will take, if that is long.

    Raises:
        InputError: if a photo cannot be read.
        UsageError: if a network draws no masks.
    """
    for number, row in enumerate(rows):
        if row.facts["output"] != "mask":
            raise UsageError(f"{row.name} gives depth, not masks", wanted="a network for referring segmentation, such as evp-refer")
        left = [index for index in range(count) if (number, index) not in journal.done]
        advance(count - len(left))
        if left:
            with row.open() as pipeline:
                if (expected := expected_s(pipeline, row.facts["protocol"], len(left))) > LONG_S:
                    on_message(f"{row.name}: {len(left)} sentences will take about {duration(expected)}; --limit N measures fewer")
                for index in left:
                    sample = next(read_referred(source, range(index, index + 1)))
                    journal.add(number, index, _score(pipeline, sample, evaluation, row.facts["protocol"]))
                    advance(1)
    return [[journal.done[number, index] for index in range(count)] for number in range(len(rows))]


def _score(pipeline: Pipeline, sample: Referred, evaluation: str, protocol: str) -> dict[str, Any]:
    facts = {"id": sample.id, "digest": sample.digest(), "intersection": 0, "union": 0, "failure": ""}
    rgb, truth = sample.rgb, sample.mask
    if evaluation == "refer-window":
        steps = pipeline.protocol(protocol).steps
        rgb = np.rint(255 * shape_photo(rgb, place_steps(steps, *rgb.shape[:2]))).astype(np.uint8)
        truth = np.array(Image.fromarray(truth).resize(rgb.shape[1::-1], Image.Resampling.NEAREST))
    try:
        found = pipeline.predict(rgb, protocol, prompt=sample.prompt)
    except AccuracyError as error:
        return {**facts, "failure": str(error)}
    totals = MaskTotals().add(found.values > 0.5, truth)
    return {**facts, "intersection": totals.intersection, "union": totals.union}


def totals_of(samples: list[dict[str, Any]]) -> MaskTotals:
    """Of those that gave a mask."""
    totals = MaskTotals()
    for sample in samples:
        if not sample["failure"]:
            totals = totals.merge(MaskTotals.of(sample["intersection"], sample["union"]))
    return totals


def overlaps_of(samples: list[dict[str, Any]]) -> list[float]:
    """IoU of each."""
    return [sample["intersection"] / sample["union"] if sample["union"] else 0.0 for sample in samples]


def _changes(means: dict[str, float], base: dict[str, float], overlaps: list[float], others: list[float]) -> dict[str, Any]:
    """Each metric minus the base's, absolute and as a share of the base (None where that is 0), and where the change of mIoU lies."""
    absolute = {name: means[name] - base[name] for name in means}
    relative = {name: absolute[name] / base[name] if base[name] else None for name in means}
    interval = interval_of_relative_change(overlaps, others)
    return {"absolute": absolute, "relative": relative, "relative_interval": {"mIoU": list(interval) if interval else None}}


def masks_json(rows: list[Row], results: list[list[dict[str, Any]]], provenance: dict[str, Any], evaluation: str, count: int) -> dict[str, Any]:
    """What a record of masks holds besides its header; every row's differences are to the first row.

    Raises:
        InputError: if the data changed while it was measured.
    """
    contents = {hashlib.sha256("".join(sample["digest"] for sample in samples).encode()).hexdigest() for samples in results}
    if len(contents) != 1:
        raise InputError("the data changed while it was measured", wanted="the same pictures for every row", fix="remove the journal and measure again")
    found: list[dict[str, Any]] = []
    for row, samples in zip(rows, results, strict=True):
        good = [sample for sample in samples if not sample["failure"]]
        means = totals_of(good).metrics() if good and len(good) == len(samples) else None
        overlaps = overlaps_of(good)
        interval = interval_of_mean(overlaps) if means else None
        difference: dict[str, Any] | None = None
        if found:
            base = found[0]["means"]
            difference = {"to": found[0]["name"]} | (_changes(means, base, overlaps, overlaps_of(results[0])) if means and base else {})
        found.append(
            {
                "name": row.name,
                "kind": row.kind,
                **row.facts,
                "means": means,
                "means_interval": {"mIoU": list(interval)} if interval else None,
                "difference": difference,
                "images": len(good),
                "failed": len(samples) - len(good),
                "failures": [{"id": sample["id"], "reason": sample["failure"]} for sample in samples if sample["failure"]],
                "samples": [{name: sample[name] for name in ("id", "intersection", "union")} for sample in good],
            }
        )
    return {
        "data": {**provenance, "measured": count, "content_sha256": contents.pop()},
        "evaluation": {"name": evaluation, "source": EVALUATIONS[evaluation]},
        "confidence": {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED, "method": "percentile bootstrap over sentences"},
        "rows": found,
    }


def table(record: dict[str, Any]) -> str:
    """The rows as text, in per cent, and below them what the numbers are of."""
    rows, data, evaluation = record["rows"], record["data"], record["evaluation"]
    metrics = list(MaskTotals(1).metrics())
    width = max(len(row["name"]) for row in rows)
    lines = ["".join([" " * width, *(f"{name:>9}" for name in metrics), f"{'sentences':>11}"])]
    for row in rows:
        numbers = [f"{100 * row['means'][name]:>9.2f}" if row["means"] else f"{'FAILED':>9}" for name in metrics]
        lines.append("".join([row["name"].ljust(width), *numbers, f"{row['images']:>11}"]))
    lines += ["", f"in per cent; evaluation {evaluation['name']}: {evaluation['source']}"]
    lines.append(f"data {data['kind']}: {data['name']}, {data['measured']} of {data['count']} sentences")
    for row in rows:
        lines.append(f"{row['name']}: {row['backend']} {row['precision']}, protocol {row['protocol']}" + (", UNTRAINED WEIGHTS" if row["untrained"] else ""))
        lines += [f"  failed: {failure['id']}: {failure['reason']}" for failure in row["failures"][:5]]
    return "\n".join(lines)
