"""``depth-calibrate`` on any machine: the calibration, and a clock for its mixtures where there is a card to build for."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

from ...calibration.calibrate_command import main as calibrate_main

PACKAGES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}  # backend -> package, the first that is here


def main(arguments: list[str] | None = None) -> int:
    """Run the command; see ``--help``."""
    return calibrate_main(arguments, _find_clock)


def _find_clock(bundle: Path, on_message: Callable[[str], None]):
    backend = next((name for name, package in PACKAGES.items() if importlib.util.find_spec(package)), None)
    if backend is None:
        return None
    from ..plan.build_options import BuildOptions
    from ..plan.mixture_clock import clock_if_possible

    return clock_if_possible(bundle, bundle.absolute().parent / f".{bundle.absolute().name}.clock", BuildOptions(backend, "int8"), on_message)


if __name__ == "__main__":
    sys.exit(main())
