"""Two sets of records, row by row; or one record, row against row."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...datasets.depth_metrics import LARGER_IS_BETTER
from ...datasets.mask_metrics import METRICS as MASK_METRICS
from ...runtime.errors import EnvironmentMismatchError, InputError, UsageError
from ..machine.system import CLOCKS, MACHINE
from ..record.record import read_record
from .change import CALM, MIDDLE, Change, one_session, pairs, two_sessions, unknown

KINDS = ("accuracy", "masks", "latency")
METRICS = ("abs_rel", "delta1")
BOUNDARIES = ("device", "host", "photo")
ALLOWED = ("machine", "clocks", "protocol")
LATENCY_PROTOCOL = ("scenario", "protocol", "input_shape", "photo_shape", "prompt")


@dataclass(frozen=True)
class Verdict:
    """One quantity of one row.

    Args:
        row: its name in B.
        quantity: ``photo ms``, ``stage unet ms``, ``abs_rel`` …
        a, b: medians in milliseconds, or means of a metric.
        found: what the samples say.
        design: how they were compared.
    """

    row: str
    quantity: str
    a: float | None
    b: float | None
    found: Change
    design: str


@dataclass(frozen=True)
class _Question:
    row: str
    quantity: str
    a: float | None
    b: float | None
    design: str
    samples: tuple[list[float], list[float]] | None
    reason: str = ""


def read_side(path: str | Path) -> dict[str, dict[str, Any]]:
    """Records by kind (``KINDS``): of one file, or of ``accuracy.json`` and ``latency.json`` in a folder.

    Raises:
        InputError: if there is none, or one is broken.
    """
    path = Path(path)
    if not path.is_dir():
        record = read_record(path, KINDS)
        return {record["kind"]: record}
    files = [file for file in (path / "accuracy.json", path / "latency.json") if file.is_file()]
    if not files:
        raise InputError(f"{path} holds neither accuracy.json nor latency.json", wanted="a result, or a folder made by depth-bench run")
    return {record["kind"]: record for record in (read_record(file, KINDS) for file in files)}


def compare(a: dict[str, dict[str, Any]], b: dict[str, dict[str, Any]] | None, allow: Collection[str] = ()) -> list[Verdict]:
    """Every quantity that both sides have samples of.

    Args:
        a: records by kind.
        b: the other side; None to compare the rows of A with its first.
        allow: of ``ALLOWED``: differences that do not matter here.

    Raises:
        EnvironmentMismatchError: if they were measured on other machines, or with other clocks.
        InputError: if they were measured by other protocols, or have no row in common.
    """
    questions: list[_Question] = []
    for kind, record in a.items():
        other = record if b is None else b.get(kind)
        if other is None:
            continue
        if b is not None:
            refuse_strangers(record, other, allow)
        matched = list(_matched(record, other, b is None))
        for first, second in matched:
            if kind == "accuracy":
                questions += _accuracy(first, second)
            elif kind == "masks":
                questions += _masks(first, second)
            elif first is not None:
                _refuse_settings(first, second, allow)
                questions += _latency(record, other, first, second, b is None)
    if not questions:
        raise InputError("there is nothing to compare", wanted="the same kind of result with rows of the same names on both sides")
    count = sum(question.samples is not None for question in questions) or 1
    return [_answer(question, count) for question in questions]


def refuse_strangers(a: dict[str, Any], b: dict[str, Any], allow: Collection[str]) -> None:
    """Raise if the records cannot be compared and this is not allowed; see ``compare``."""
    for what, names in (("machine", MACHINE), ("clocks", CLOCKS)):
        unlike = [name for name in names if a["system"].get(name) != b["system"].get(name)]
        if unlike and what not in allow:
            name = unlike[0]
            was = f"{name} was {a['system'].get(name)!r} in A and is {b['system'].get(name)!r} in B"
            raise EnvironmentMismatchError(was, wanted="results of one machine, set alike", fix=f"measure again, or say that it is the same: --allow {what}")
    held = [sorted(record.get("conditions", {}).get("throttling", [])) for record in (a, b)]
    if held[0] != held[1] and "clocks" not in allow:
        was = f"the clocks were held back by {', '.join(held[0]) or 'nothing'} in A and by {', '.join(held[1]) or 'nothing'} in B"
        raise EnvironmentMismatchError(was, wanted="the same clocks on both sides", fix="cool the machine and measure again, or --allow clocks")
    if "protocol" in allow:
        return
    if a["kind"] != "latency":
        unlike = [name for name in ("evaluation", "data") if _essence(a[name]) != _essence(b[name])]
    else:
        unlike = [name for name in LATENCY_PROTOCOL if a.get(name) != b.get(name)]
    if unlike:
        raise InputError(f"A and B were measured by another {unlike[0]}", wanted="one protocol on both sides", fix="measure again, or --allow protocol")


def _essence(facts: dict[str, Any]) -> Any:
    return facts.get("content_sha256") or facts


def _refuse_settings(first: dict[str, Any], second: dict[str, Any], allow: Collection[str]) -> None:
    for name in ("device", "threads"):
        if first.get(name) != second.get(name) and "protocol" not in allow:
            was = f"{second['name']}: {name} was {first.get(name)!r} and is {second.get(name)!r}"
            raise InputError(was, wanted="one setting on both sides", fix="measure again, or --allow protocol")


def _matched(a: dict[str, Any], b: dict[str, Any], same: bool) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Rows that belong together: by name, then the only ones that are left; of one record, each with the first that was measured."""
    rows_a = [row for row in a["rows"] if not row.get("is_skipped")]
    rows_b = [row for row in b["rows"] if not row.get("is_skipped")]
    if same:
        yield from ((rows_a[0], row) for row in rows_a[1:])
        return
    named = {row["name"]: row for row in rows_a}
    left = [row for row in rows_b if row["name"] not in named]
    for row in rows_b:
        if row["name"] in named:
            yield named.pop(row["name"]), row
    if len(named) == len(left) == 1:
        yield next(iter(named.values())), left[0]


def _accuracy(first: dict[str, Any], second: dict[str, Any]) -> Iterator[_Question]:
    for metric in METRICS:
        a, b = scores_of(first, metric), scores_of(second, metric)
        means = [row["means"][metric] if row["means"] else None for row in (first, second)]
        shared = [name for name in a if name in b]
        reason = "" if len(shared) == len(a) == len(b) else "other images were scored"
        samples = ([a[name] for name in shared], [b[name] for name in shared]) if shared and not reason else None
        yield _Question(second["name"], metric, *means, "pairs of images", samples, reason or ("" if shared else "images were not scored one by one"))


def _masks(first: dict[str, Any], second: dict[str, Any]) -> Iterator[_Question]:
    """Overlaps sentence by sentence; the overall one through how much each sentence moves it."""
    sides = [{sample["id"]: (sample["intersection"], sample["union"]) for sample in row["samples"]} for row in (first, second)]
    reason = "" if sides[0].keys() == sides[1].keys() else "other sentences were scored"
    for metric, samples_of in (("mIoU", _overlaps), ("oIoU", _shares_of_overall)):
        means = [row["means"][metric] if row["means"] else None for row in (first, second)]
        samples = tuple(samples_of([side[name] for name in sides[0]]) for side in sides) if not reason and sides[0] else None
        yield _Question(second["name"], metric, *means, "pairs of sentences", samples, reason or ("" if samples else "no sentence was scored"))


def _overlaps(pixels: list[tuple[int, int]]) -> list[float]:
    return [both / either if either else 0.0 for both, either in pixels]


def _shares_of_overall(pixels: list[tuple[int, int]]) -> list[float]:
    """Samples whose mean is the sum of intersections over that of unions, and whose scatter is that of this ratio (linearised)."""
    both, either = (np.array(side, np.float64) for side in zip(*pixels, strict=True))
    ratio = both.sum() / max(either.sum(), 1.0)
    return (ratio + (both - ratio * either) / max(either.mean(), 1e-9)).tolist()


def scores_of(row: dict[str, Any], metric: str) -> dict[str, float]:
    """A metric by image, of a row of accuracy whose images were scored one by one."""
    found = {}
    for group in row["groups"]:
        if len(group["ids"]) == len(group["scores"]):
            found |= {name: score["values"][metric] for name, score in zip(group["ids"], group["scores"], strict=True) if score["values"]}
    return found


def _latency(a: dict[str, Any], b: dict[str, Any], first: dict[str, Any], second: dict[str, Any], same: bool) -> Iterator[_Question]:
    anchor = None if same else _anchor(a, b, first, second)
    series = [(f"{boundary} ms", lambda row, boundary=boundary: row["sample_times_ms"].get(boundary)) for boundary in BOUNDARIES]
    names = [stage["name"] for stage in first["stages"] if any(stage["name"] == other["name"] for other in second["stages"])]
    series += [(f"stage {name} ms", lambda row, name=name: next(s for s in row["stages"] if s["name"] == name)["sample_times_ms"]) for name in names]
    for quantity, of in series:
        ours, theirs = of(first), of(second)
        if not ours or not theirs:
            continue
        medians = (float(np.median(ours)), float(np.median(theirs)))
        if same:
            yield _Question(second["name"], quantity, *medians, "one session", (ours, theirs))
        elif anchor is not None:
            boundary = quantity.removesuffix(" ms") if quantity.removesuffix(" ms") in BOUNDARIES else "host"
            bases = [row["sample_times_ms"].get(boundary) for row in anchor]
            if all(bases):
                samples = tuple([x / y for x, y in zip(times, base, strict=True)] for times, base in zip((ours, theirs), bases, strict=True))
                yield _Question(second["name"], quantity, *medians, f"two sessions, over {anchor[0]['name']}", samples)
        else:
            yield _Question(second["name"], quantity, *medians, "two sessions", (ours, theirs))


def _anchor(a: dict[str, Any], b: dict[str, Any], first: dict[str, Any], second: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """A row that is the same thing in both sessions and took turns with these: what disturbed a session disturbed it too."""
    if first.get("manifest_sha256") == second.get("manifest_sha256") and first.get("backend") == "pytorch":
        return None
    known = ("manifest_sha256", "backend", "mode", "precision", "device", "threads")
    for row in a["rows"]:
        for other in b["rows"]:
            skipped = row.get("is_skipped") or other.get("is_skipped")
            if not skipped and row is not first and other is not second and row["backend"] == "pytorch" and all(row.get(k) == other.get(k) for k in known):
                return row, other
    return None


def _answer(question: _Question, quantities: int) -> Verdict:
    if question.samples is None:
        change = question.b / question.a - 1 if question.a and question.b is not None else None
        found = unknown(question.reason, change)
    elif question.design.startswith("pairs"):
        found = pairs(*question.samples, quantities, larger_is_better=question.quantity in (*LARGER_IS_BETTER, *MASK_METRICS))
    elif question.design == "one session":
        found = one_session(*question.samples, quantities)
    else:
        found = two_sessions(*question.samples, quantities, share=CALM if question.design == "two sessions" else MIDDLE)
    return Verdict(question.row, question.quantity, question.a, question.b, found, question.design)


def check_allowed(words: Collection[str]) -> None:
    """Raise UsageError for a word that is none of ``ALLOWED``."""
    unknown_words = set(words) - set(ALLOWED)
    if unknown_words:
        raise UsageError(f"--allow {', '.join(sorted(unknown_words))}", wanted=", ".join(ALLOWED))
