"""``depth-bench accuracy`` on the RefCOCO family: masks instead of depth."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...runtime.commands.progress import Progress
from ...runtime.errors import AccuracyError, InputError, UsageError

if TYPE_CHECKING:
    from ...datasets.referring.refer import Referring

DEPTH_ONLY = ("alignment", "details", "budget", "captions")


def measures_masks(data: str | None) -> bool:
    """Whether ``--data`` names masks and words."""
    return (data or "").startswith("refer:")


def run_masks(arguments: argparse.Namespace, argv: list[str], options: dict[str, str]) -> int:
    """Measure, print the table, write the record; returns the exit code.

    Args:
        argv: of the record.
        options: what the reference is opened with.

    Raises:
        AccuracyError: if a network gave no mask for a sentence.
        UsageError: for flags that say nothing about masks.
    """
    from ..machine.system import describe
    from ..record.record import header, write_record
    from .journal import Journal
    from .masks import EVALUATIONS, masks_json, measure_masks, table
    from .rows import open_rows

    evaluation = arguments.evaluation or next(iter(EVALUATIONS))
    if evaluation not in EVALUATIONS:
        raise UsageError(f"the evaluation {evaluation!r} is not one of masks", wanted=f"one of {', '.join(EVALUATIONS)}")
    for flag in DEPTH_ONLY:
        if getattr(arguments, flag):
            raise UsageError(f"--{flag} says nothing about masks", fix="leave it out")
    source = open_masks(arguments.data)
    count, provenance = min(len(source), arguments.limit or len(source)), source.provenance.to_json()
    shown = {name: getattr(arguments, name) for name in ("protocol", "device", "reference_device", "threads", "batch")}
    rows = open_rows(arguments.engine, arguments.reference, arguments.reference_weights, options, **shown)
    packages = ("numpy", "onnxruntime", *(("torch",) if any(row.kind == "pytorch" for row in rows) else ()))
    record: dict[str, Any] = header("masks", argv, packages) | {"system": describe()}
    run = {"data": provenance, "count": count, "evaluation": evaluation, "rows": [[row.name, row.kind, row.facts] for row in rows]}
    output = Path(arguments.output) if arguments.output else None
    path = output.with_name(f"{output.name}.journal") if output else None
    with Journal(path, {**run, "made_with": record["meta"]["version"]}, arguments.force) as journal:
        with Progress(count * len(rows), "sentences", arguments.quiet) as progress:
            if journal.done:
                progress.message(f"going on where the journal {path} ends")
            results = measure_masks(rows, source, count, evaluation, journal, progress.advance, progress.message)
        record |= masks_json(rows, results, provenance, evaluation, count)
        if output:
            write_record(output, record, arguments.force)
        journal.remove()
    if arguments.json:
        for row in record["rows"]:
            print(json.dumps({key: value for key, value in row.items() if key != "samples"}))
    else:
        print(table(record))
    return judge(record)


def judge(record: dict[str, Any]) -> int:
    """The exit code that a record of masks deserves.

    Raises:
        AccuracyError: if a sentence gave no mask.
    """
    for row in record["rows"]:
        if row["failed"]:
            first, count = row["failures"][0], record["data"]["measured"]
            raise AccuracyError(f"{row['name']}: {row['failed']} of {count} sentences gave no mask ({first['id']}: {first['reason']})")
    return 0


def open_masks(text: str) -> Referring:
    """What ``--data refer:…`` names.

    Raises:
        InputError: if a file is missing or broken.
    """
    from ...datasets.referring.refer import open_referring

    try:
        return open_referring(text)
    except OSError as error:
        raise InputError(str(error), wanted="refs(unc).p, instances.json and train2014", fix="check the path") from error
    except ValueError as error:
        raise InputError(str(error)) from error
