"""``depth-build``: a bundle to a plan."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...runtime.commands.command import common_flags
from ...runtime.errors import UsageError
from ...runtime.files import refuse_existing
from .command_line import build_flags, build_options, file_nbytes, refuse_empty_values, require_packages, run_and_close

EPILOG = """\
examples:
  depth-build evp/ -o evp.plan
  depth-build evp/ --backend tensorrt-rtx --precision fp16 --target sm86,sm89,sm120 -o evp.plan
  depth-build evp/ --backend tensorrt --stage-times times.json
TensorRT-RTX compiles without a GPU; tensorrt compiles for the GPU of the machine it runs on.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``depth-build``."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("depth-build", description="Compile a bundle into a plan.", epilog=EPILOG, formatter_class=form, allow_abbrev=False)
    refuse_empty_values(parser)
    parser.add_argument("bundle", metavar="BUNDLE", help="directory that depth-export made")
    made = parser.add_mutually_exclusive_group(required=True)
    made.add_argument("-o", "--output", metavar="PLAN", help="the plan to make")
    times = "instead of a plan: how long every stage takes on this machine's card in every precision, for depth-calibrate --stage-times"
    made.add_argument("--stage-times", metavar="FILE", help=times)
    build_flags(parser)
    common_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run ``depth-build``; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    work = _time if arguments.stage_times else _run
    made = arguments.stage_times or arguments.output
    return run_and_close("depth-build", made, arguments.quiet, lambda on_message, on_progress: work(arguments, on_message, on_progress))


def _time(arguments: argparse.Namespace, on_message: Any, on_progress: Any) -> int:
    require_packages(("onnx", "onnxruntime", "ml_dtypes"), "build", "graphs are read, typed and written with it")
    if arguments.precision or arguments.target:
        raise UsageError("--stage-times takes every precision on the card that is here", fix="leave --precision and --target out")
    if arguments.operators:
        raise UsageError("--stage-times is of the networks' own operators", fix="leave --operators out; depth-bench latency compares two plans")
    if arguments.layers:
        raise UsageError("--stage-times keeps no engine, so there are no layers to tell of", fix="leave --layers out")
    options, path = build_options(arguments), Path(arguments.stage_times)
    from ...calibration.search.stage_times import write_stage_times
    from ..plan.time_stages import time_stages

    refuse_existing(path, arguments.force)
    times = time_stages(arguments.bundle, path, options, on_message=on_message, on_progress=on_progress)
    write_stage_times(times, path, arguments.force)
    print(json.dumps(times.to_json(), allow_nan=False) if arguments.json else path)
    return 0


def _run(arguments: argparse.Namespace, on_message: Any, on_progress: Any) -> int:
    require_packages(("onnx", "onnxruntime", "ml_dtypes", "safetensors"), "build", "graphs are read, checked and written with it")
    options = build_options(arguments)
    from ..plan.build import build_plan, summary

    report = build_plan(arguments.bundle, arguments.output, options, force=arguments.force, on_message=on_message, on_progress=on_progress)
    nbytes = file_nbytes(arguments.output)
    on_message(summary(report, nbytes))
    if arguments.json:
        manifest = report.manifest
        facts = {key: getattr(manifest, key) for key in ("backend", "backend_version", "precision", "targets", "batch")}
        parity = report.parity.to_json() if report.parity else {}
        stages = [asdict(stage) for stage in report.stages]
        print(json.dumps({"plan": arguments.output, "nbytes": nbytes, **facts, "stages": stages, "parity": parity}, allow_nan=False))
    else:
        print(arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
