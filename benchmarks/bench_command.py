"""``depth-bench``: measurements whose JSON is the truth. Nothing heavy is imported before the work starts."""

from __future__ import annotations

import argparse
import sys

from ..runtime.commands.command import run_command
from .accuracy import command as accuracy_command
from .latency import command as latency_command
from .reproduce import command as reproduce_command

COMMANDS = {
    "accuracy": ("engines against the truth and against PyTorch on a data set", accuracy_command),
    "latency": ("how long a network takes, engine by engine and in PyTorch", latency_command),
    "reproduce": ("a row of a paper's table beside its published number", reproduce_command),
}


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``depth-bench``."""
    parser = argparse.ArgumentParser(prog="depth-bench", description="Measure engines.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (summary, module) in COMMANDS.items():
        module.add_arguments(commands.add_parser(name, help=summary, description=f"Measure {summary}.", allow_abbrev=False))
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run ``depth-bench``; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    return run_command(lambda: COMMANDS[arguments.command][1].run(arguments))


if __name__ == "__main__":
    sys.exit(main())
