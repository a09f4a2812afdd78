"""The same rows over many results as lines, each result with its commit; what got worse is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...runtime.errors import InputError
from ..compare.change import Change
from ..compare.compare import compare
from ..record.record import read_record
from .document import Block, Given, Paragraph, Part, Report, Results, Section, Table
from .plots import Canvas, curves

QUANTITIES = {
    "accuracy": (("abs_rel", ("means", "abs_rel"), "metric"),),
    "masks": (("mIoU", ("means", "mIoU"), "metric"),),
    "latency": (("photo ms", ("latency_ms", "photo", "p50"), "ms"),),
}


@dataclass(frozen=True)
class Step:
    """One result in a line: its place among all, the row in it, and what the samples say of the step from the one before."""

    results: Results
    row: int
    found: Change | None


def read_history(folder: str | Path) -> list[Results]:
    """All results of accuracy, masks and latency below a folder, the oldest first; their address is the file's path in it.

    Raises:
        InputError: if there are none.
    """
    folder, found = Path(folder), []
    for path in sorted(folder.rglob("*.json")):
        try:
            record = read_record(path, tuple(QUANTITIES))
        except InputError:
            continue  # a result of something else, or no result
        found.append(Results(str(path.relative_to(folder)), record))
    if not found:
        raise InputError(f"{folder} holds no results", wanted="results of depth-bench accuracy, latency or run")
    return sorted(found, key=lambda results: results.record["meta"]["date"])


def lines_of(history: Sequence[Results], kind: str) -> dict[tuple[str, str], list[Step]]:
    """Steps by (network, name of the row), in order; a step is judged only where both results may be compared."""
    found: dict[tuple[str, str], list[Step]] = {}
    for results in history:
        if results.record["kind"] != kind:
            continue
        for place, row in enumerate(results.record["rows"]):
            if row.get("is_skipped") or (kind != "latency" and row["means"] is None):
                continue
            line = found.setdefault((row["network"], row["name"]), [])
            line.append(Step(results, place, _judged(line[-1].results, results, row["name"], QUANTITIES[kind][0][0]) if line else None))
    return found


def _holds(results: Results, network: str) -> bool:
    return any(row.get("network") == network for row in results.record["rows"])


def _judged(before: Results, after: Results, name: str, quantity: str) -> Change | None:
    from ...runtime.errors import FathomError

    try:
        verdicts = compare({before.record["kind"]: before.record}, {after.record["kind"]: after.record})
    except FathomError:
        return None
    return next((verdict.found for verdict in verdicts if verdict.row == name and verdict.quantity == quantity), None)


def build_history(folder: str | Path) -> Report:
    """The lines, drawn and as tables.

    Raises:
        InputError: see ``read_history``.
    """
    history = read_history(folder)
    sections: list[Section] = []
    worse: list[tuple[Part, ...]] = []
    for kind, quantities in QUANTITIES.items():
        lines = lines_of(history, kind)
        for (title, way, unit), network in ((quantity, network) for quantity in quantities for network in dict.fromkeys(key[0] for key in lines)):
            mine = {name: steps for (of, name), steps in lines.items() if of == network}
            holders = [id(results) for results in history if results.record["kind"] == kind and _holds(results, network)]
            rows, drawn = [], []
            for name, steps in mine.items():
                values = [step.results.value("rows", step.row, *way) for step in steps]
                drawn.append((name, [holders.index(id(step.results)) for step in steps], values))  # a row that some results lack leaves them out
                for step in steps:
                    meta, number = step.results, step.results.number("rows", step.row, *way, unit=unit)
                    word = step.found.word if step.found else "first" if step is steps[0] else "not comparable"
                    rows.append((Given(name), meta.given("meta", "commit"), meta.given("meta", "date"), number, word))
                    if word == "worse":
                        worse.append((Given(name), f" got worse in {title} with commit ", meta.given("meta", "commit"), "."))
            canvas = Canvas(f"{kind}-{network}", f"{network}: {title} over the results", 2.8)
            curves(canvas, drawn, "o")
            canvas.axes.xaxis.get_major_locator().set_params(integer=True)
            canvas.labels("result, oldest first", title)
            blocks: tuple[Block, ...] = (canvas.plot(), Table(("row", "commit", "date", title, "against the one before"), tuple(rows)))
            sections.append(Section(f"{network}: {title}", blocks, 2))
    first: tuple[Block, ...] = tuple(Paragraph(parts, "alarm") for parts in worse) or (
        Paragraph(("Nothing got worse, as far as the samples tell.",), "verdict"),
    )
    return Report("Results over time", (Section("Regressions", first, 2), *sections))
