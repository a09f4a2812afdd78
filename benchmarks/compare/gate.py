"""Limits that a CI holds results to: a JSON file of them, and what of a result breaks one."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...datasets.depth_metrics import LARGER_IS_BETTER, METRICS
from ...datasets.mask_metrics import METRICS as MASK_METRICS
from ...runtime.errors import AccuracyError, FathomError, InputError, PerformanceError

LIMITS = ("max", "min", "max_change")
LARGER = {*LARGER_IS_BETTER, *MASK_METRICS, "samples_per_second"}


@dataclass(frozen=True)
class Gate:
    """One limit.

    Args:
        row: pattern of the names it holds for (``*`` and ``?``).
        metric: a metric of depth (``abs_rel``) or of masks (``mIoU``), or the way to a number of a latency row with dots: ``latency_ms.photo.p99``,
            ``memory.host_peak_nbytes``, ``stages.unet.latency_ms.p50``, ``sweep.4.samples_per_second``, ``fixed_rate.30.drop_rate``.
        kind: one of ``LIMITS``; ``max_change`` is the relative change for the worse, against side A.
        limit: the number.
    """

    row: str
    metric: str
    kind: str
    limit: float

    @property
    def kind_of_record(self) -> str:
        """Which result holds it."""
        return "accuracy" if self.metric in METRICS else "masks" if self.metric in MASK_METRICS else "latency"


def read_gates(path: str | Path) -> list[Gate]:
    """``{"gates": [{"row": "*.plan", "metric": "latency_ms.photo.p99", "max": 33}, …]}``; without ``row`` it holds for every engine.

    Raises:
        InputError: if the file is not of that form.
    """
    try:
        data = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as gates ({error})", wanted="a JSON file") from error
    entries = data.get("gates") if isinstance(data, dict) and set(data) == {"gates"} else None
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path} holds no gates", wanted='{"gates": [{"metric": "latency_ms.photo.p99", "max": 33}]}')
    return [_gate(entry, path) for entry in entries]


def _gate(entry: Any, path: str | Path) -> Gate:
    kinds = [kind for kind in LIMITS if isinstance(entry, dict) and kind in entry]
    known = {"row", "metric", *LIMITS}
    good = len(kinds) == 1 and set(entry) <= known and isinstance(entry.get("metric"), str) and isinstance(entry.get("row", ""), str)
    limit = entry.get(kinds[0]) if good else None
    if not good or isinstance(limit, bool) or not isinstance(limit, (int, float)):
        raise InputError(f"{path}: {json.dumps(entry)} is no gate", wanted=f"metric, one of {', '.join(LIMITS)} with a number, and row if it is not for all")
    return Gate(entry.get("row", "*"), entry["metric"], kinds[0], float(limit))


def check(gates: Iterable[Gate], a: dict[str, dict[str, Any]], b: dict[str, dict[str, Any]] | None) -> list[str]:
    """Hold side B (or A alone) to the gates; returns a line for each that was kept.

    Raises:
        AccuracyError: if one about metres or masks is broken; all that are broken are named.
        PerformanceError: if only others are.
        InputError: if a gate meets no row, or its number was not measured: what nobody measured has not passed.
    """
    kept, broken, accuracy = [], [], False
    for gate in gates:
        record = (a if b is None else b).get(gate.kind_of_record)
        rows = [row for row in (record or {"rows": []})["rows"] if _meant(gate, row)]
        if not rows:
            raise InputError(f"the gate on {gate.metric} meets no row {gate.row!r}", wanted="a result that holds what is gated")
        for row in rows:
            value = value_of(row, gate.metric)
            if value is None:
                raise InputError(f"{row['name']}: {gate.metric} was not measured", wanted=f"a number to hold against {gate.kind} {gate.limit:g}")
            words, ok = _judge(gate, row, value, a, b)
            if ok:
                kept.append(words)
            else:
                broken.append(words)
                accuracy |= gate.kind_of_record != "latency"
    if broken:
        kind: type[FathomError] = AccuracyError if accuracy else PerformanceError
        raise kind("; ".join(broken), wanted=f"all {len(kept) + len(broken)} gates kept")
    return kept


def _meant(gate: Gate, row: dict[str, Any]) -> bool:
    engine = row.get("backend") != "pytorch" or gate.row != "*"
    return engine and fnmatch.fnmatchcase(row["name"], gate.row)


def _judge(gate: Gate, row: dict[str, Any], value: float, a: dict[str, dict[str, Any]], b: dict[str, dict[str, Any]] | None) -> tuple[str, bool]:
    words = f"{row['name']}: {gate.metric} {value:.6g}"
    if gate.kind != "max_change":
        return f"{words} ({gate.kind} {gate.limit:g})", value <= gate.limit if gate.kind == "max" else value >= gate.limit
    record = a.get(gate.kind_of_record, {"rows": []})
    rows = [other for other in record["rows"] if not other.get("is_skipped")]
    base = next((other for other in rows if other["name"] == row["name"]), None) if b is not None else (rows or [None])[0]
    before = value_of(base, gate.metric) if base is not None else None
    if not before:
        raise InputError(f"{row['name']}: there is no {gate.metric} to hold the change against", wanted="the same row in A")
    change = value / before - 1
    worse = -change if gate.metric in LARGER or gate.metric.rpartition(".")[2] in LARGER else change
    return f"{words}, {change:+.3%} ({gate.kind} {gate.limit:.3%})", worse <= gate.limit


def value_of(row: dict[str, Any], metric: str) -> float | None:
    """A number of a row by its way; entries of lists are known by their ``name``, ``batch`` or ``rate_hz``. None if it is not there."""
    if metric in (*METRICS, *MASK_METRICS):
        return (row.get("means") or {}).get(metric)
    place: Any = row
    for word in metric.split("."):
        if isinstance(place, list):
            place = next((item for item in place if word in (str(item.get(key)) for key in ("name", "batch", "rate_hz"))), None)
        else:
            place = place.get(word) if isinstance(place, dict) else None
    return float(place) if isinstance(place, (int, float)) and not isinstance(place, bool) else None
