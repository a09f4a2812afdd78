"""``depth-bench reproduce``: a row of a paper's table, run by our own commands, the published number beside ours."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...runtime.commands.command import common_flags, warn
from ...runtime.errors import UsageError
from ..our_commands import command_line

if TYPE_CHECKING:
    from .row import Row
    from .steps import Step

EPILOG = """\
Without PAPER TABLE ROW, or with the first of them, it lists what there is. A row trains where its paper trained, exports and measures with
depth-train, depth-export and depth-bench accuracy; --show prints those commands instead. If a file is missing, the row says which.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``depth-bench reproduce``."""
    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter
    parser.add_argument("row", nargs="*", metavar="PAPER TABLE ROW", help="for example: evp 1 evp")
    parser.add_argument("--data", metavar="DATA", help="what to measure on: nyu:FILE.mat, nyu-folder:DIR:LIST.txt, kitti:DIR:LIST.txt or refer:DIR:refcoco")
    parser.add_argument("--train-data", metavar="DATA", help="what to learn from (default: the training part of nyu:FILE.mat)")
    parser.add_argument("--weights", metavar="FILE", help="the published file that the row starts from (default: EVP's from the hub)")
    parser.add_argument("--visual-weights", metavar="FILE", help="the image encoder's file, for networks that are published in two")
    parser.add_argument("--captions", metavar="FILE", help="a JSON object from picture to caption, for rows that learn from captions")
    parser.add_argument(
        "--tiny",
        action="store_true",
        help="try the row with the small network of the same architecture: the numbers mean nothing; needs no weights",
    )
    parser.add_argument("--steps", type=_positive, metavar="N", help="steps of training (default: the recipe's)")
    parser.add_argument("--limit", type=_positive, metavar="N", help="measure only the first N images")
    parser.add_argument(
        "--device", metavar="NAME", help="cpu, cuda or cuda:N: train there, and measure with PyTorch there (default: the CPU, measuring with ONNX Runtime)"
    )
    parser.add_argument("--show", action="store_true", help="print the commands, and leave")
    parser.add_argument("-o", "--output", metavar="DIR", help="keep weights, bundle and record in this folder; an interrupted training goes on from it")
    common_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """List, show or run; returns the exit code, a failed command's own included."""
    from .papers import find_row
    from .steps import Files, check_files, steps_of

    if len(arguments.row) < 3:
        return _list(arguments)
    if len(arguments.row) > 3:
        raise UsageError(f"{len(arguments.row)} words were given", wanted="PAPER TABLE ROW")
    row = find_row(*arguments.row)
    files = Files(arguments.data, arguments.train_data, arguments.weights, arguments.visual_weights, arguments.captions)
    check_files(row, files, arguments.tiny, arguments.device)
    if row.note:
        warn(row.note)
    if arguments.tiny:
        warn(f"{row.network}-tiny stands in for {row.network}: the numbers say nothing about the paper's")
    with contextlib.ExitStack() as stack:
        if arguments.output:
            folder = Path(arguments.output)
            if not arguments.show:
                folder.mkdir(parents=True, exist_ok=True)
        elif arguments.show:
            folder = Path()
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fathom-reproduce-")))
        for step in steps_of(row, files, folder, arguments.tiny, arguments.steps, arguments.limit, arguments.device):
            words = shlex.join((step.program, *step.arguments))
            if arguments.show:
                print(words)
                continue
            if not arguments.quiet:
                print(words, file=sys.stderr)
            if code := execute(step, arguments.force, arguments.quiet):
                return code
        if not arguments.show:
            record = json.loads((folder / "accuracy.json").read_text())
            _print(arguments, row, record)
    return 0


def execute(step: Step, force: bool, quiet: bool) -> int:
    """Run one command in a process of its own, its words for people on stderr; returns its exit code."""
    flags = [flag for flag, given in (("--force", force), ("--quiet", quiet)) if given]
    command = [*command_line(step.program), *step.arguments, "--json", *flags]
    return subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode


def _list(arguments: argparse.Namespace) -> int:
    from .papers import PAPERS, every_row

    words = arguments.row
    if words and words[0] not in PAPERS:
        raise UsageError(f"there is no paper {words[0]!r}", wanted=f"one of {', '.join(PAPERS)}")
    rows = [(paper, table, row) for paper, table, row in every_row() if words in ([], [paper.name], [paper.name, table.name])]
    if not rows:
        raise UsageError(f"{words[0]} has no table {words[1]!r}", wanted=f"one of {', '.join(table.name for table in PAPERS[words[0]].tables)}")
    for paper, table, row in rows:
        if arguments.json:
            facts = {"paper": paper.name, "table": table.name, "row": row.name, "network": row.network, "published": row.published}
            print(json.dumps(facts))
        else:
            numbers = ", ".join(f"{metric} {number}" for metric, number in row.published.items())
            print(f"{paper.name} {table.name} {row.name:16} {row.label}: {numbers}")
    return 0


def _print(arguments: argparse.Namespace, row: Row, record: dict[str, Any]) -> None:
    means, measured = record["rows"][0]["means"], record["rows"][0]["images"]
    ours = {metric: 100 * means["oIoU"] if metric == "oiou" else means[metric] for metric in row.published}
    protocol, evaluation = record["rows"][0]["protocol"], record["evaluation"]["name"]
    if arguments.json:
        facts = {"paper": arguments.row[0], "table": arguments.row[1], "row": row.name, "published": row.published, "ours": ours}
        print(json.dumps({**facts, "images": measured, "tiny": arguments.tiny, "evaluation": evaluation, "protocol": protocol}))
        return
    print(f"{row.label}, {measured} images, protocol {protocol}, evaluation {evaluation}")
    print(f"{'':10} {'published':>10} {'ours':>10}")
    for metric, number in row.published.items():
        print(f"{metric:10} {number:>10} {ours[metric]:>10.4f}")


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 10**9):
        raise argparse.ArgumentTypeError(f"{text!r}; wanted a whole number from 1")
    return int(text)
