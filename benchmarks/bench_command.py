"""``depth-bench``: measurements whose JSON is the truth. Nothing heavy is imported before the work starts."""

from __future__ import annotations

import argparse
import sys

from ..runtime.commands.command import run_command
from .accuracy import command as accuracy_command
from .compare import command as compare_command
from .latency import command as latency_command
from .report import command as report_command
from .report import history_command
from .reproduce import command as reproduce_command
from .run import command as run_command_of_all

COMMANDS = {
    "accuracy": ("measure engines against the truth and against PyTorch on a data set", accuracy_command),
    "latency": ("measure how long a network takes, engine by engine and in PyTorch", latency_command),
    "compare": ("tell what changed between two results, and hold it to gates", compare_command),
    "run": ("measure everything of a bundle and its plans, and report it", run_command_of_all),
    "reproduce": ("run a row of a paper's table and set it beside its published number", reproduce_command),
    "report": ("draw results as one page, or Markdown", report_command),
    "history": ("show the same rows over many results", history_command),
}


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``depth-bench``."""
    parser = argparse.ArgumentParser(prog="depth-bench", description="Measure engines, compare and show what was measured.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (summary, module) in COMMANDS.items():
        module.add_arguments(commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", allow_abbrev=False))
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run ``depth-bench``; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    return run_command(lambda: COMMANDS[arguments.command][1].run(arguments))


if __name__ == "__main__":
    sys.exit(main())
