"""``depth-bench report``: results as one page for whoever decides."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...runtime.commands.command import common_flags
from ...runtime.errors import UsageError
from ...runtime.files import refuse_existing, whole_file

EPILOG = """\
The page holds everything: it opens from disk, loads nothing, follows the system's light or dark, and prints. OUTPUT.md gives Markdown without
drawings. Accuracy and latency of a network stand in one table only if they were measured by one protocol.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``depth-bench report``."""
    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "results", metavar="RESULT.json", nargs="+", help="made by depth-bench accuracy (of depth or masks) and latency; at most one of each kind for a network"
    )
    parser.add_argument("-o", "--output", metavar="REPORT.html", required=True, help="the page, or Markdown if it ends with .md")
    common_flags(parser, json=False)


def run(arguments: argparse.Namespace) -> int:
    """Read, draw, write; returns the exit code."""
    output = Path(arguments.output)
    if output.suffix not in (".html", ".md"):
        raise UsageError(f"{output.name} is neither a page nor Markdown", wanted="a name that ends with .html or .md")
    refuse_existing(output, arguments.force)
    write_report(arguments.results, [output], arguments.force)
    if not arguments.quiet:
        print(output)
    return 0


def write_report(results: list[str] | list[Path], outputs: list[Path], force: bool = False) -> None:
    """Write the report of some results, each output in the form of its ending.

    Raises:
        InputError: if the results are broken or do not go together, or an output cannot be written.
        EnvironmentMismatchError: if matplotlib is missing.
    """
    from .build import build_report
    from .html import html
    from .markdown import markdown

    report = build_report(results)
    for output in outputs:
        text = markdown(report) if output.suffix == ".md" else html(report)
        with whole_file(output, force) as part:
            part.write_text(text, "utf-8")
