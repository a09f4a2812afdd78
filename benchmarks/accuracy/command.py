"""``depth-bench accuracy``: one table with the PyTorch row, the plan rows and the differences."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...runtime.commands.command import common_flags, warn
from ...runtime.commands.progress import Progress
from ...runtime.errors import AccuracyError, InputError, UsageError
from ...runtime.files import refuse_existing
from .mask_command import measures_masks, run_masks

if TYPE_CHECKING:
    from ..evaluation.evaluation import Evaluation
    from .accuracy import Row

SHOWN = ("abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "silog", "delta1", "delta2", "delta3")
DEFAULT_EVALUATION = {"nyu": "nyu-eigen", "nyu-folder": "nyu-eigen", "kitti": "kitti-garg"}
BENCHMARK_PROTOCOL = {"nyu": "nyu-benchmark", "nyu-folder": "nyu-benchmark", "kitti": "kitti-benchmark"}
REFERENCE_OPTIONS = ("visual_weights", "text_pack", "texts", "bins", "tokenizer")

EPILOG = """\
The first row is the one that the others are compared with: PyTorch if --reference is given, else the first engine.
With -o the measurement is remembered image by image in OUTPUT.journal until it is complete: run the same command again after an interruption.
A picture that does not fit the evaluation or the protocol is left out, counted and named.
On nyu, nyu-folder and kitti data a network is shown the photo as its paper's evaluation did, elsewhere by its protocol for pictures of any size.
Exit code 4: a prediction held NaN, infinity or depths not above zero, or a --budget was not kept.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``depth-bench accuracy``."""
    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--engine", action="append", default=[], metavar="PLAN|BUNDLE", help="what to measure; may be given several times")
    parser.add_argument("--reference", metavar="BUNDLE", help="also measure the PyTorch network this bundle was exported from, as the first row")
    parser.add_argument("--reference-weights", metavar="FILE", help="the checkpoint that bundle was exported from")
    for option in REFERENCE_OPTIONS:
        parser.add_argument(f"--reference-{option.replace('_', '-')}", metavar="FILE", help=f"as depth-export was given --{option.replace('_', '-')}")
    parser.add_argument("--reference-device", metavar="DEVICE", help="of PyTorch: cpu, cuda or cuda:N (default: --device, else cpu)")
    data = "nyu:FILE.mat, nyu-folder:DIR, kitti:DIR:LIST, pairs:DIR[:test], rooms:N[:SEED][:HxW]; for networks that draw masks refer:DIR:refcoco[:testA]"
    parser.add_argument("--data", metavar="DATA", help=data)
    parser.add_argument("--captions", metavar="FILE", help="for networks that read captions: a JSON object from the photos' ids to sentences")
    parser.add_argument(
        "--evaluation", metavar="NAME", help="which pixels count and how; --evaluation list shows all (default: by the kind of data, else full)"
    )
    fits = "none, median, scale-shift, scale-shift-inverse (default: the evaluation's, or what relative maps need); named in the result"
    parser.add_argument("--alignment", metavar="FIT", help=fits)
    parser.add_argument("--protocol", metavar="NAME", help="how photos are shown to the networks (default: by the kind of data; depth-inspect lists them)")
    parser.add_argument("--limit", type=_positive, metavar="N", help="only the first N images")
    parser.add_argument(
        "--budget", action="append", type=_budget, default=[], metavar="METRIC=PERCENT%", help="fail if a row's metric is off the first row's by more"
    )
    parser.add_argument("--batch", type=_positive, metavar="N", help="windows per network run")
    parser.add_argument("--threads", type=_positive, metavar="N", help="CPU threads (default: all cores)")
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda or cuda:N (default: the artefact's own; ONNX Runtime: cpu)")
    parser.add_argument("--details", action="store_true", help="also the worst pictures with their error maps, and what each stage's precision costs")
    parser.add_argument("-o", "--output", metavar="RESULT.json", help="the full record: every image's score, the data's hash, the evaluation")
    common_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table, write the record; returns the exit code."""
    if measures_masks(arguments.data):
        _check(arguments)
        return run_masks(arguments, _argv(arguments), _reference_options(arguments))
    from ..evaluation.published import EVALUATIONS
    from ..machine.system import describe
    from ..record.record import header, write_record
    from .accuracy import measure, to_json
    from .journal import Journal
    from .rows import fitted, open_rows

    evaluation = _evaluation(arguments)
    if evaluation is None:
        return 0
    _check(arguments)
    output = Path(arguments.output) if arguments.output else None
    source, provenance = open_data(arguments.data, arguments.captions)
    count = min(len(source), arguments.limit or len(source))
    shown = {name: getattr(arguments, name) for name in ("protocol", "device", "reference_device", "threads", "batch")}
    benchmark = papers_protocol(arguments.data)
    rows = open_rows(arguments.engine, arguments.reference, arguments.reference_weights, _reference_options(arguments), benchmark=benchmark, **shown)
    if arguments.alignment is None:
        evaluation = fitted(evaluation, rows)
    packages = ("numpy", "onnxruntime", *(("torch",) if any(row.kind == "pytorch" for row in rows) else ()))
    record = header("accuracy", _argv(arguments), packages, provenance["seed"]) | {"system": describe()}
    run_facts = {"data": provenance, "count": count, "evaluation": evaluation.to_json(), "rows": [[row.name, row.kind, row.facts] for row in rows]}
    journal_path = output.with_name(f"{output.name}.journal") if output else None
    with Journal(journal_path, {**run_facts, "made_with": record["meta"]["version"]}, arguments.force) as journal:
        with Progress(count * len(rows), "images", arguments.quiet) as progress:
            if arguments.alignment is None and evaluation.alignment != EVALUATIONS[evaluation.name].alignment:
                progress.message(f"the maps are relative, not metres: each is fitted to the truth ({evaluation.alignment}); --alignment chooses another fit")
            if arguments.protocol is None and any(row.facts["protocol"] == benchmark for row in rows):
                progress.message(f"photos are shown by the papers' protocol, {benchmark}, not by single-image; --protocol chooses another")
            if journal.done:
                progress.message(f"going on where the journal {journal_path} ends")
            try:
                results = measure(rows, source, count, evaluation, journal, progress.advance, progress.message)
            except KeyboardInterrupt:
                if journal_path and journal.done:
                    progress.message(f"{len(journal.done)} parts are kept in {journal_path}; the same command goes on from there")
                raise
        record |= to_json(results, provenance, evaluation, count)
        if arguments.details:
            _details(record, rows, source, count, evaluation, arguments)
        if output:
            write_record(output, record, arguments.force)
        journal.remove()
    for row in record["rows"]:
        if row["skipped"]:
            example = row["skipped"][0]
            warn(f"{row['name']}: {len(row['skipped'])} of {count} images were left out, the first: {example['id']} ({example['reason']})")
    _print(record, arguments.json)
    return judge(record, arguments.budget)


def _check(arguments: argparse.Namespace) -> None:
    if not arguments.engine and not arguments.reference:
        raise UsageError("nothing to measure", fix="give --engine or --reference")
    if not arguments.data:
        raise UsageError("no data to measure on", fix="give --data, for example --data rooms:20:1")
    if arguments.reference_weights and not arguments.reference:
        raise UsageError("--reference-weights without --reference", fix="name the bundle with --reference")
    if arguments.output:
        refuse_existing(Path(arguments.output), arguments.force)


def _reference_options(arguments: argparse.Namespace) -> dict[str, str]:
    return {name: value for name in REFERENCE_OPTIONS if (value := getattr(arguments, f"reference_{name}")) is not None}


def _evaluation(arguments: argparse.Namespace) -> Evaluation | None:
    """The chosen evaluation, or None after the list was printed."""
    import dataclasses

    from ..evaluation.alignment import ALIGNMENTS
    from ..evaluation.published import EVALUATIONS

    if arguments.evaluation == "list":
        for evaluation in EVALUATIONS.values():
            print(f"{evaluation.name:18} {evaluation.source}")
        return None
    name = arguments.evaluation or DEFAULT_EVALUATION.get((arguments.data or "").partition(":")[0], "full")
    if name not in EVALUATIONS:
        raise UsageError(f"there is no evaluation {name!r}", wanted=f"one of {', '.join(EVALUATIONS)}")
    evaluation = EVALUATIONS[name]
    if arguments.alignment is not None:
        if arguments.alignment not in ALIGNMENTS:
            raise UsageError(f"there is no alignment {arguments.alignment!r}", wanted=f"one of {', '.join(ALIGNMENTS)}")
        evaluation = dataclasses.replace(evaluation, alignment=arguments.alignment)
    return evaluation


def papers_protocol(data: str) -> str | None:
    """By which protocol the papers show the photos of the data that ``--data`` names; None where they have none."""
    return BENCHMARK_PROTOCOL.get(data.partition(":")[0])


def _with_captions(source: Any, path: str) -> Any:
    from ...datasets.captions import Captioned

    try:
        return Captioned(source, path)
    except (OSError, ValueError) as error:
        raise InputError(str(error), wanted="a JSON object from the photos' ids to captions", fix="check the file behind --captions") from error


def open_data(text: str, captions: str | None = None) -> tuple[Any, dict[str, Any]]:
    """The source that ``--data`` names, with the captions of a file, and its provenance as JSON values.

    Raises:
        InputError: if it is missing or broken.
        UsageError: if there is no such kind of data, or it has no depth.
        EnvironmentMismatchError: if a package that reads it is missing.
    """
    from ...datasets.source import DataArgumentError, open_source
    from ...runtime.errors import missing_package

    try:
        source = open_source(text)
        if captions:
            source = _with_captions(source, captions)
        provenance = source.provenance.to_json()
    except ImportError as error:
        raise missing_package(error.name or "h5py", "bench", "to read this data set") from error
    except OSError as error:
        raise InputError(str(error), wanted="data as --data names them", fix="check the path") from error
    except DataArgumentError as error:
        raise UsageError(str(error)) from error
    except ValueError as error:
        raise InputError(str(error)) from error
    if provenance["kind"] == "images":
        raise UsageError("photos without depth cannot be measured", wanted="data with a true depth", fix="depth-run makes maps of them")
    return source, provenance


def _details(record: dict[str, Any], rows: list[Row], source: Any, count: int, evaluation: Evaluation, arguments: argparse.Namespace) -> None:
    """Add the worst pictures, and what each stage's precision costs."""
    from ...runtime.errors import FathomError
    from .pictures import draw_worst, worst_images
    from .stage_cost import stage_costs

    record["worst"] = draw_worst(rows, worst_images(record["rows"]), source, count, evaluation)
    bundle = arguments.reference or next((engine for engine in arguments.engine if Path(engine).is_dir()), None)
    for row, engine in zip(record["rows"][-len(arguments.engine) :] if arguments.engine else (), arguments.engine, strict=True):
        if row["precision"] == "fp32" or bundle is None:
            continue
        try:
            row["stages"] = stage_costs(engine, bundle, source, count, evaluation, row["protocol"], arguments.threads)
        except (FathomError, ValueError) as error:
            row["stages_skip_reason"] = str(error)


def _argv(arguments: argparse.Namespace) -> list[str]:
    words = ["depth-bench", "accuracy", *(word for engine in arguments.engine for word in ("--engine", engine))]
    reference = ("reference", "reference_weights", *(f"reference_{name}" for name in REFERENCE_OPTIONS), "reference_device")
    for name in (*reference, "data", "captions", "evaluation", "alignment", "protocol", "limit", "batch", "threads", "device"):
        value = getattr(arguments, name)
        words += [f"--{name.replace('_', '-')}", str(value)] if value else []
    words += [word for metric, percent in arguments.budget for word in ("--budget", f"{metric}={percent:g}%")]
    return [*words, *(["--details"] if arguments.details else [])]


def _print(record: dict[str, Any], as_json: bool) -> None:
    if as_json:
        for row in record["rows"]:
            print(json.dumps({key: value for key, value in row.items() if key != "groups"}))
        return
    from .table import table

    print(table(record, SHOWN, colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ))


def judge(record: dict[str, Any], budgets: list[tuple[str, float]]) -> int:
    """The exit code that a record of depth deserves.

    Raises:
        AccuracyError: if an image gave no usable depth, or a budget was not kept.
        InputError: if a row has no score, or a budget cannot be judged.
    """
    failed = [row for row in record["rows"] if row["failed"]]
    if failed:
        first = failed[0]
        example = next((failure for failure in first["failures"]), {"id": "", "reason": ""})
        raise AccuracyError(
            f"{first['name']}: {first['failed']} of {first['failed'] + first['images']} images gave no usable depth ({example['id']}: {example['reason']})",
            wanted="positive finite depths everywhere",
        )
    for row in record["rows"]:
        if row["means"] is None:
            raise InputError(
                f"no image of the data has a pixel that the evaluation {record['evaluation']['name']} counts", fix="another --evaluation or --data"
            )
        if budgets and row["difference"] and "reason" in row["difference"]:
            raise InputError(f"{row['name']} cannot be compared with {row['difference']['to']}: {row['difference']['reason']}", fix="another --protocol")
        for metric, percent in budgets if row["difference"] else ():
            share = row["difference"]["relative"][metric]
            if share is None and row["difference"]["absolute"][metric]:
                raise AccuracyError(f"{row['name']}: {metric} left 0", wanted=f"{metric} as in {row['difference']['to']}")
            if share is not None and abs(share) * 100 > percent:
                raise AccuracyError(f"{row['name']}: {metric} is {share:+.3%} off {row['difference']['to']}", wanted=f"at most {percent:g} %")
    return 0


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= 10**9:
        raise argparse.ArgumentTypeError(f"{text!r}; wanted a whole number from 1")
    return int(text)


def _budget(text: str) -> tuple[str, float]:
    from ...datasets.depth_metrics import METRICS

    metric, _, percent = text.partition("=")
    try:
        value = float(percent.removesuffix("%"))
    except ValueError:
        value = -1.0
    if metric not in METRICS or not percent.endswith("%") or not 0 <= value <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r}; wanted for example abs_rel=0.1%, with one of {', '.join(METRICS)}")
    return metric, value
