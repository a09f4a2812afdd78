"""How this interpreter starts one of our commands: by the modules that an installed command runs."""

from __future__ import annotations

import sys

MODULES = {
    "depth-export": "export.commands.export_command",
    "depth-calibrate": "export.commands.calibrate_command",
    "depth-build": "export.commands.build_command",
    "depth-run": "runtime.commands.run",
    "depth-train": "export.commands.train_command",
    "depth-bench": "benchmarks.bench_command",
}


def command_line(program: str) -> list[str]:
    """The words before its arguments."""
    return [sys.executable, "-m", f"fathom.{MODULES[program]}"]
