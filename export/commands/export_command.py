"""``depth-export``: a network, or any depth ONNX file, as a bundle; with ``-o x.plan`` as a plan at once."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ...runtime.commands.command import common_flags, warn
from ...runtime.errors import UsageError
from .command_line import build_flags, build_options, file_nbytes, refuse_empty_values, require_packages, run_and_close

PACKAGES = ("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "safetensors")
FOREIGN_PACKAGES = ("onnx", "onnxruntime", "safetensors")
LOAD_OPTIONS = ("text_pack", "texts", "scene", "visual_weights", "bins", "tokenizer")  # flags that only some networks take; catalog.load refuses the others
EPILOG = """\
examples:
  depth-export --model evp-tiny -o evp-tiny/
  depth-export --model evp --weights model.safetensors -o evp/
  depth-export --model evp --weights model.safetensors -o evp.plan --backend tensorrt-rtx --precision fp16
  depth-export --model evp --weights model.safetensors -o evp.plan --backend tensorrt-rtx --precision int8 --data nyu:nyu_depth_v2_labeled.mat
  depth-export --onnx fastdepth.onnx --contract fastdepth.json -o fastdepth/
The exported stages are run with ONNX Runtime and compared with PyTorch; if they differ, the exit code is 4 and nothing is written.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``depth-export``."""
    parser = argparse.ArgumentParser(
        prog="depth-export",
        description="Export a depth network as a bundle.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    refuse_empty_values(parser)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", metavar="NAME", help="a network of the catalog")
    source.add_argument("--onnx", metavar="FILE", help="a network that exists as an ONNX file; needs --contract")
    source.add_argument("--list", action="store_true", help="list the networks and what weights they want, and leave")
    parser.add_argument("-o", "--output", metavar="DIR|PLAN", help="the bundle to make; a name that ends in .plan is built at once")
    network = parser.add_argument_group("a network of the catalog")
    network.add_argument("--weights", metavar="FILE", help="checkpoint, as published (.safetensors, .ckpt, .pth, .pt)")
    network.add_argument(
        "--variant", metavar="NAME", help="which published set of constants, such as nyu or kitti (default: what the weights were trained with, else the first)"
    )
    network.add_argument("--text-pack", metavar="FILE", help="safetensors with text embeddings other than the checkpoint's")
    network.add_argument("--texts", metavar="FILE", help="captions (JSON, or one a line) for the CLIP in the checkpoint, whose mean every photo gets")
    network.add_argument("--scene", metavar="NAME", help="kind of room, once for all photos (default: depth-run --scene tells it)")
    network.add_argument("--visual-weights", metavar="FILE", help="the image encoder's file, for networks that are published in two")
    network.add_argument("--bins", metavar="FILE|METRES", help="learned depth bins, or depths such as 1,1.5,2,2.25,2.5,2.75,3, for networks that may have some")
    trained = "a number that the paper varies, such as experts=8, as the weights were trained with; files of depth-train say it themselves"
    network.add_argument("--set", metavar="NAME=N", action="append", help=trained)
    network.add_argument("--tokenizer", metavar="FILE", help="tokenizer.json of the text tower, for networks that are asked in words")
    network.add_argument("--random-init", action="store_true", help="random weights, for benchmarks; every artefact says so")
    network.add_argument("--seed", type=int, help="of the random weights (default: 0)")
    foreign = parser.add_argument_group("an ONNX file")
    foreign.add_argument("--contract", metavar="FILE", help="JSON: preprocessing, output kind, unit and range")
    foreign.add_argument("--name", help="what the network is called (default: the file's name)")
    foreign.add_argument("--licence", help="of the weights, written into the bundle (default: unknown)")
    building = parser.add_argument_group("for -o x.plan")
    parser.set_defaults(build_flags=build_flags(building))
    data = "images to calibrate on, for --precision int8: nyu:FILE.mat, pairs:DIR, images:DIR (see depth-calibrate); may be given several times"
    building.add_argument("--data", metavar="DATA", action="append", help=data)
    building.add_argument("--prompt", action="append", help="words to calibrate with, for a network that is asked in words; may be given several times")
    building.add_argument("--budget", metavar="BUDGET", help="greatest change from FP32 (default: abs_rel=0.5%%,delta1=0.2pp)")
    common_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run ``depth-export``; returns the exit code."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.list:
        return _list(arguments)
    if not arguments.model and not arguments.onnx:
        parser.error("one of --model and --onnx is needed (--list shows the networks)")
    if not arguments.output:
        parser.error("-o is needed: the bundle (or .plan) to make")
    return run_and_close("depth-export", arguments.output, arguments.quiet, lambda on_message, on_progress: _run(arguments, on_message, on_progress))


def _list(arguments: argparse.Namespace) -> int:
    from ...models.catalog import DEMO_WEIGHTS, NETWORKS

    for name, entry in NETWORKS.items():
        if arguments.json:
            facts = {key: getattr(entry, key) for key in ("summary", "weights", "licence", "variants", "options", "demo")}
            print(json.dumps({"name": name, **facts}))
        else:
            small = "seeded random numbers, untrained"
            if (DEMO_WEIGHTS / f"{name}.safetensors").is_file():
                others = f"; other variants: {small}" if len(entry.variants) > 1 else ""
                small = f"demo weights that ship with Fathom, models/weights/{name}.md says what they are worth{others}"
            weights = small if entry.demo else entry.weights or "none published"
            print(f"{name}\n  {entry.summary}\n  variants: {', '.join(entry.variants)}\n  weights: {weights}\n  licence: {entry.licence}")
    return 0


def _run(arguments: argparse.Namespace, on_message: Any, on_progress: Any) -> int:
    from ...runtime.memory_limit import refuse_limit_for_pytorch

    if arguments.model:
        refuse_limit_for_pytorch()
    _check_flags(arguments)
    output = Path(arguments.output)
    if not _is_plan(output):
        manifest = _bundle(arguments, output, arguments.force, on_message, on_progress)
        _result(arguments, {"bundle": str(output), "network": manifest.network.name, "weights": manifest.network.weights["kind"], "parity": manifest.parity})
        return 0
    require_packages(("onnx",), "export", "graphs are read and written with it")
    options = build_options(arguments)
    from ..child.scratch import scratch_beside
    from ..plan.build import build_plan, check_outputs, summary

    check_outputs(output, options, arguments.force)
    calibrate = _calibration(arguments, options, on_message) if arguments.data else None
    with scratch_beside(output) as scratch:
        bundle = scratch / "bundle"
        exported, calibrated = (0.3, 0.7) if calibrate else (0.5, 0.5)
        _bundle(arguments, bundle, False, on_message, lambda what, done: on_progress(what, exported * done))
        if calibrate:
            calibrate(bundle, scratch, lambda what, done: on_progress(what, exported + (calibrated - exported) * done))
        report = build_plan(
            bundle,
            output,
            options,
            force=arguments.force,
            on_message=on_message,
            on_progress=lambda what, done: on_progress(what, calibrated + (1 - calibrated) * done),
        )
    on_message(summary(report, file_nbytes(arguments.output)))
    _result(arguments, {"plan": str(output), "network": report.manifest.network.name, "backend": options.backend, "precision": options.precision})
    return 0


def _calibration(arguments: argparse.Namespace, options: Any, on_message: Any) -> Any:
    """What calibrates a bundle: called with it, a folder for half-done work and the progress. Data and budget are looked at now."""
    from ...calibration.calibrate import Settings
    from ...calibration.observation.images import Chosen
    from ...calibration.search.objective import Budget
    from ..plan.mixture_clock import clock_if_possible
    from ..plan.time_stages import times_if_possible
    from ..precision.calibrated import calibrate_bundle

    budget = Budget.parse(arguments.budget) if arguments.budget else Budget()
    data = Chosen(*arguments.data)

    def calibrate(bundle: Path, scratch: Path, on_progress: Any) -> None:
        measured = times_if_possible(bundle, scratch / "times", options, on_message=on_message, on_progress=lambda what, done: on_progress(what, 0.0))
        clock = clock_if_possible(bundle, scratch / "mixture", options, on_message) if measured else None
        settings = Settings(budget, prompts=tuple(arguments.prompt or ()), measured=measured, clock=clock)
        calibrate_bundle(bundle, data, settings, scratch, on_message, on_progress)

    return calibrate


def _is_plan(output: Path) -> bool:
    return output.suffix.lower() == ".plan"


def _check_flags(arguments: argparse.Namespace) -> None:
    given = ["--" + name.replace("_", "-") for name in arguments.build_flags if getattr(arguments, name) is not None]
    if given and not _is_plan(Path(arguments.output)):
        raise UsageError(f"{' and '.join(given)} can only go with -o x.plan", fix="name the output x.plan, or run depth-build on the bundle")
    if arguments.precision in ("fp8", "int4"):
        fix = f"export a bundle, then depth-calibrate --precisions fp32,fp16,{arguments.precision} and depth-build"
        raise UsageError(f"--precision {arguments.precision} is for calibrated bundles", fix=fix)
    if (arguments.precision == "int8") != bool(arguments.data):
        was = "--precision int8 needs images to calibrate on" if not arguments.data else "--data goes with --precision int8"
        fix = "pass --data nyu:FILE.mat, pairs:DIR or images:DIR; or export a bundle, run depth-calibrate on it and depth-build"
        raise UsageError(was, fix=fix if not arguments.data else "leave it out")
    for flag in ("budget", "prompt"):
        if getattr(arguments, flag) is not None and not arguments.data:
            raise UsageError(f"--{flag} goes with --data", fix="leave it out")
    for flag in ("weights", "variant", "set", *LOAD_OPTIONS):
        if arguments.onnx and getattr(arguments, flag) is not None:
            raise UsageError(f"--{flag.replace('_', '-')} does not go with --onnx", fix="leave it out")
    if arguments.onnx and arguments.random_init:
        raise UsageError("--random-init does not go with --onnx", fix="leave it out")
    if arguments.onnx and not arguments.contract:
        raise UsageError("--onnx needs --contract FILE: an ONNX file does not say what its pixels and numbers mean", fix="see docs/contract.md")
    if arguments.model and arguments.contract:
        raise UsageError("--contract does not go with --model, which brings its own", fix="leave it out")
    for flag in ("name", "licence"):
        if arguments.model and getattr(arguments, flag) is not None:
            raise UsageError(f"--{flag} does not go with --model, which brings its own", fix="leave it out")
    if arguments.onnx or arguments.weights:
        _refuse_seed(arguments)


def _refuse_seed(arguments: argparse.Namespace) -> None:
    """Where no weight is random."""
    if arguments.seed is not None:
        raise UsageError("--seed is of random weights, and these are not random", fix="leave it out, or pass --random-init for a benchmark")


def _check_prompts(arguments: argparse.Namespace, contract: Any) -> None:
    """Before minutes of exporting."""
    if arguments.data:
        from ...calibration.graph.chain import check_prompts

        check_prompts(contract, arguments.prompt or ())


def _bundle(arguments: argparse.Namespace, path: Path, force: bool, on_message: Any, on_progress: Any) -> Any:
    if arguments.onnx:
        require_packages(FOREIGN_PACKAGES, "export", "graphs are read, run and written with it")
        from ..foreign.contract_file import read_contract
        from ..foreign.foreign import write_foreign_bundle

        contract = read_contract(arguments.contract)
        _check_prompts(arguments, contract.contract)
        facts = {"name": arguments.name or "", "licence": arguments.licence or "unknown"}
        return write_foreign_bundle(arguments.onnx, contract, path, force=force, on_message=on_message, on_progress=on_progress, **facts)
    from ...runtime.files import refuse_existing

    require_packages(PACKAGES, "export", "networks are exported with it")
    refuse_existing(path, force)  # before minutes of loading
    from ...models.catalog import load, parse_settings
    from ..bundle.bundle import write_bundle

    on_progress(f"loading {arguments.model}", 0.0)
    options = {
        "variant": arguments.variant,
        "random_init": arguments.random_init,
        "seed": arguments.seed or 0,
        "settings": parse_settings(arguments.set or ()),
        **{name: getattr(arguments, name) for name in LOAD_OPTIONS},
    }
    network = load(arguments.model, arguments.weights or _downloaded(arguments, on_progress), **options)
    _check_prompts(arguments, network.contract)
    if network.origin.kind != "random-init":
        _refuse_seed(arguments)
    for warning in network.origin.warnings:
        warn(warning)
    return write_bundle(network, path, force=force, release=True, on_message=on_message, on_progress=on_progress)


def _downloaded(arguments: argparse.Namespace, on_progress: Any) -> Path | None:
    """The published weights from the hub, kept in the user's cache; None where there are none to download, or random ones are wanted."""
    from ...models.catalog import NETWORKS
    from ...models.hub import download
    from ...runtime.tensorrt.user_cache import cache_folder

    entry = NETWORKS.get(arguments.model)
    if entry is None or entry.hub is None or arguments.random_init or arguments.variant not in (None, entry.variants[0]):
        return None
    _refuse_seed(arguments)
    found = download(entry.hub, cache_folder("hub"), lambda done, total: on_progress(f"downloading {entry.hub.repository}: {done:,} of {total:,} bytes", 0.0))
    if entry.hub.doubt:
        warn(entry.hub.doubt)
    return found


def _result(arguments: argparse.Namespace, facts: dict[str, Any]) -> None:
    if arguments.json:
        print(json.dumps(facts, allow_nan=False))
    else:
        print(facts.get("bundle") or facts["plan"])


if __name__ == "__main__":
    sys.exit(main())
