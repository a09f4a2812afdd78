"""``depth-triton``: a plan or bundle to a model repository for NVIDIA Triton."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any

from ...runtime.commands.command import common_flags
from .command_line import require_packages, run_and_close

EPILOG = """\
It writes into REPOSITORY, which may hold other models already:
  NAME-photo   photos (JPEG, PNG, … or pixels) in, metres out; Triton's Python backend with Fathom's runtime: pip install fathom-depth in its image
  NAME         the network's tensor in, its output tensor out: an ensemble over
  NAME-STAGE   one model per stage, for Triton's onnxruntime or tensorrt backend
Both ways hold the weights once each; --models writes one of them.
"""
MODELS = {"photo": ("photo",), "ensemble": ("ensemble",), "both": ("photo", "ensemble")}


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``depth-triton``."""
    form = argparse.RawDescriptionHelpFormatter
    about = "Write a plan or bundle as a model repository that NVIDIA Triton loads as it is."
    parser = argparse.ArgumentParser("depth-triton", description=about, epilog=EPILOG, formatter_class=form, allow_abbrev=False)
    parser.add_argument("engine", metavar="PLAN|BUNDLE", help="what depth-build (a plan) or depth-export (a bundle) made")
    parser.add_argument("-o", "--output", required=True, metavar="REPOSITORY", help="folder of the repository; made if it is not there")
    parser.add_argument("--models", choices=MODELS, default="both", help="what to write (default: %(default)s)")
    common_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run ``depth-triton``; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    return run_and_close("depth-triton", arguments.output, arguments.quiet, lambda on_message, on_progress: _run(arguments, on_message))


def _run(arguments: argparse.Namespace, on_message: Any) -> int:
    require_packages(("tritonclient", "onnx"), "triton", "configurations are written by Triton's own classes, graphs are read with onnx")
    from ..triton.repository import write_repository

    made = write_repository(arguments.engine, arguments.output, MODELS[arguments.models], arguments.force, on_message)
    if arguments.json:
        print(json.dumps({"repository": arguments.output, **asdict(made)}))
    else:
        for name in [*made.stages.values(), *filter(None, (made.photo, made.ensemble))]:
            print(f"{arguments.output}/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
