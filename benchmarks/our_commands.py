"""How this interpreter runs one of our commands: by the modules that an installed command runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module

MODULES = {
    "depth-export": "export.commands.export_command",
    "depth-calibrate": "export.commands.calibrate_command",
    "depth-build": "export.commands.build_command",
    "depth-run": "runtime.commands.run",
    "depth-inspect": "runtime.commands.inspection",
    "depth-train": "export.commands.train_command",
    "depth-bench": "benchmarks.bench_command",
}


def command_line(program: str) -> list[str]:
    """The words before its arguments, for a process of its own."""
    return [sys.executable, "-m", f"fathom.{MODULES[program]}"]


def main_of(program: str) -> Callable[[list[str]], int]:
    """What it runs in this process: takes its arguments, gives its exit code."""
    return import_module(f"fathom.{MODULES[program]}").main
