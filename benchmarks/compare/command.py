"""``depth-bench compare``: what changed between two results, and whether the gates hold."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import TYPE_CHECKING

from ...runtime.commands.command import common_flags

if TYPE_CHECKING:
    from .compare import Verdict

EPILOG = """\
A and B are results of depth-bench, or folders made by depth-bench run. With A alone, its rows are compared with its first: they took turns in
one session, which finds changes of a few percent. Two sessions can only tell changes that are larger than the sessions' own unrest, less so if
both timed the same PyTorch network, over which the times are then taken. The words: of 100 comparisons of a thing with itself, at most 5 say
better or worse anywhere.
A gate file: {"gates": [{"row": "*.plan", "metric": "latency_ms.photo.p99", "max": 33}, {"metric": "abs_rel", "max_change": 0.005}]}
Exit codes: 4 a gate on accuracy is broken, 9 a gate on performance, 6 another machine or other clocks, 3 another protocol.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``depth-bench compare``."""
    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter
    parser.add_argument("a", metavar="A", help="result, or folder of results, from before")
    parser.add_argument("b", metavar="B", nargs="?", help="result, or folder of results, of now")
    parser.add_argument("--gate", metavar="FILE", help="limits to hold B to (A, if it is alone)")
    parser.add_argument("--allow", default="", metavar="WHAT", help="compare although these differ, comma-separated: machine, clocks, protocol")
    common_flags(parser, force=False)


def run(arguments: argparse.Namespace) -> int:
    """Compare, print, hold against the gates; returns the exit code."""
    from .compare import check_allowed, compare, read_side
    from .gate import check, read_gates

    allow = [word.strip() for word in arguments.allow.split(",") if word.strip()]
    check_allowed(allow)
    gates = read_gates(arguments.gate) if arguments.gate else []
    a = read_side(arguments.a)
    b = read_side(arguments.b) if arguments.b else None
    verdicts = compare(a, b, allow) if not gates or b is not None or any(len(record["rows"]) > 1 for record in a.values()) else []
    for verdict in verdicts if arguments.json else ():
        print(json.dumps(dataclasses.asdict(verdict)))
    if not arguments.json and verdicts:
        print(table(verdicts))
    kept = check(gates, a, b)
    if kept and not arguments.quiet:
        print("\n".join(["gates kept:", *kept]), file=sys.stderr)
    return 0


def table(verdicts: list[Verdict]) -> str:
    """For people: a line for each quantity."""
    lines = [f"{'row':32} {'quantity':22} {'A':>11} {'B':>11} {'change':>9} {'where it lies':>21}  verdict"]
    for item in verdicts:
        found = item.found
        numbers = ["-" if value is None else f"{value:.5g}" for value in (item.a, item.b)]
        change = "-" if found.change is None else f"{found.change:+.2%}"
        interval = "-" if found.low is None else f"{found.low:+.2%} to {found.high:+.2%}"
        more = f" ({found.reason})" if found.reason else ""
        lines.append(f"{item.row:32} {item.quantity:22} {numbers[0]:>11} {numbers[1]:>11} {change:>9} {interval:>21}  {found.word}{more}")
    return "\n".join([*lines, *sorted({f"by {item.design}" for item in verdicts})])
