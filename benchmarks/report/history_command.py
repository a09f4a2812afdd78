"""``depth-bench history``: the same row over many results, as a line with its commits."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...runtime.commands.command import common_flags
from ...runtime.errors import UsageError
from ...runtime.files import refuse_existing, whole_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``depth-bench history``."""
    parser.add_argument("folder", metavar="DIR", help="results of depth-bench, in it and below it")
    parser.add_argument("-o", "--output", metavar="PAGE.html", help="the page, or Markdown if it ends with .md (default: Markdown on stdout)")
    common_flags(parser, json=False)


def run(arguments: argparse.Namespace) -> int:
    """Read, judge every step, draw; returns the exit code."""
    from .history import build_history
    from .html import html
    from .markdown import markdown

    output = Path(arguments.output) if arguments.output else None
    if output is not None:
        if output.suffix not in (".html", ".md"):
            raise UsageError(f"{output.name} is neither a page nor Markdown", wanted="a name that ends with .html or .md")
        refuse_existing(output, arguments.force)
    report = build_history(arguments.folder)
    if output is None:
        print(markdown(report), end="")
        return 0
    with whole_file(output, arguments.force) as part:
        part.write_text(markdown(report) if output.suffix == ".md" else html(report), "utf-8")
    if not arguments.quiet:
        print(output)
    return 0
