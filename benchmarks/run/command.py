"""``depth-bench run``: accuracy, latency with all details, and the report of both, in one command that can be interrupted."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ...runtime.commands.command import common_flags
from ...runtime.errors import FathomError, InputError, UsageError
from ...runtime.files import whole_file
from ..accuracy import command as accuracy_command
from ..accuracy import mask_command
from ..accuracy.mask_command import measures_masks, open_masks
from ..latency import command as latency_command

if TYPE_CHECKING:
    from .estimate import Plan

STATE, ACCURACY, LATENCY = "run.json", "accuracy.json", "latency.json"
FORMAT = "fathom-run"
ROOMS = "rooms:50:8"
EPILOG = """\
Writes OUTPUT/accuracy.json, latency.json, report.html and report.md. An estimate of the time comes first. Interrupted, the same command goes
on where it stopped. Without --engine the bundle itself is measured on ONNX Runtime. --quick takes about a minute on a CPU, with little of
everything: a first impression, with wide intervals. Exit code 4: an engine gave no usable depth for an image; the report names it.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``depth-bench run``."""
    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter
    parser.add_argument("bundle", metavar="BUNDLE", help="made by depth-export")
    parser.add_argument("--engine", action="append", default=[], metavar="PLAN", help="a plan of that bundle; may be given several times")
    parser.add_argument("--data", default=ROOMS, metavar="DATA", help="as depth-bench accuracy takes it; masks want refer:… (default: %(default)s)")
    parser.add_argument("--captions", metavar="FILE", help="as depth-bench accuracy takes it")
    parser.add_argument("--evaluation", metavar="NAME", help="as depth-bench accuracy takes it")
    parser.add_argument("--protocol", metavar="NAME", help="how photos are shown, in accuracy and latency alike (default: by the kind of data)")
    parser.add_argument("--reference-weights", metavar="FILE", help="the checkpoint the bundle was exported from, for the row of PyTorch")
    for option in accuracy_command.REFERENCE_OPTIONS:
        parser.add_argument(f"--reference-{option.replace('_', '-')}", metavar="FILE", help=f"as depth-export was given --{option.replace('_', '-')}")
    parser.add_argument("--pytorch", default="eager-fp32", metavar="MODES", help="as depth-bench latency takes it; '' for none (default: %(default)s)")
    parser.add_argument("--device", default="cpu", metavar="DEVICE", help="of PyTorch: cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    parser.add_argument("--quick", action="store_true", help="about a minute on a CPU, for a first impression")
    parser.add_argument("-o", "--output", metavar="FOLDER", required=True)
    common_flags(parser, json=False)


def run(arguments: argparse.Namespace) -> int:
    """Estimate, measure what is missing, draw; returns the exit code.

    Raises:
        FathomError: what a part says of its own result, after the other part and the report: the same if it was measured in an earlier call.
    """
    from ..report.command import write_report

    folder = Path(arguments.output)
    key = _key(arguments)
    plan, protocol = _resumed(folder, key, arguments.force), _protocol(arguments)
    if plan is None:
        plan = _plan(arguments, protocol)
        folder.mkdir(parents=True, exist_ok=True)
        for name in (ACCURACY, LATENCY, f"{ACCURACY}.journal"):
            (folder / name).unlink(missing_ok=True)
        with whole_file(folder / STATE, force=True) as part:
            part.write_text(json.dumps({"format": FORMAT, "key": key, "plan": plan.to_json()}) + "\n")
    _say(arguments, plan.words())
    start, code, failure = time.monotonic(), 0, None
    for name, words in _steps(arguments, plan, protocol).items():
        path = folder / name
        try:
            code = max(code, _judged(arguments, path) if path.is_file() else _step(arguments, name, [*words, "-o", str(path)]))
        except FathomError as error:
            if not path.is_file():
                raise
            failure = failure or error  # measured and written down, but a result that fails
    found = [folder / name for name in (ACCURACY, LATENCY) if (folder / name).is_file()]
    if not found:
        return code or 6
    write_report(found, [folder / "report.html", folder / "report.md"], force=True)
    _say(arguments, f"took {time.monotonic() - start:.0f} s")
    print(folder / "report.html")
    if failure is not None:
        raise failure
    return code


def _steps(arguments: argparse.Namespace, plan: Plan, protocol: str) -> dict[str, list[str]]:
    """The command line of every step by the file it makes."""
    engines = [word for engine in arguments.engine for word in ("--engine", engine)]
    threads = ["--threads", str(arguments.threads or os.cpu_count() or 1)]
    common = [*threads, "--protocol", protocol, *(["--quiet"] if arguments.quiet else [])]
    steps = {}
    if plan.images:
        given = [word for name, path in _network_files(arguments).items() for word in (f"--reference-{name.replace('_', '-')}", path)]
        reference = ["--reference", arguments.bundle, *given, "--reference-device", arguments.device] if arguments.pytorch else []
        evaluation = ["--evaluation", arguments.evaluation] if arguments.evaluation else []
        evaluation += ["--captions", arguments.captions] if arguments.captions else []
        measured = engines or ["--engine", arguments.bundle]
        words = ["accuracy", *reference, *measured, "--data", arguments.data, "--limit", str(plan.images), *evaluation, *common]
        words += [] if measures_masks(arguments.data) else ["--details"]
        steps[ACCURACY] = words
    runtime = [] if engines else ["--onnxruntime", "cpu"]
    given = [word for name, path in _network_files(arguments).items() for word in (f"--{name.replace('_', '-')}", path)]
    pytorch = ["--pytorch", arguments.pytorch, *given, "--device", arguments.device] if arguments.pytorch else []
    rounds = ["--rounds", str(plan.rounds), "--warm-up", str(plan.warm_up)]
    steps[LATENCY] = ["latency", arguments.bundle, *engines, *runtime, *pytorch, *rounds, *common, "--details"]
    return steps


def _network_files(arguments: argparse.Namespace) -> dict[str, str]:
    """Files that PyTorch's network is made from, by the option of ``depth-export``: ``weights`` and what else that was given."""
    found = {name: getattr(arguments, f"reference_{name}") for name in ("weights", *accuracy_command.REFERENCE_OPTIONS)}
    return {name: path for name, path in found.items() if path}


def _judged(arguments: argparse.Namespace, path: Path) -> int:
    """The exit code of a part that was measured in an earlier call; raises as that call did."""
    from ..record.record import read_record

    _say(arguments, f"{path.name} is there already")
    record = read_record(path)
    judges = {"accuracy": lambda: accuracy_command.judge(record, []), "masks": lambda: mask_command.judge(record)}
    return judges.get(record["kind"], lambda: latency_command.judge(record))()


def _step(arguments: argparse.Namespace, name: str, words: list[str]) -> int:
    """Carry one command out as a user would type it."""
    _say(arguments, f"$ {shlex.join(['depth-bench', *words])}")
    command = accuracy_command if name == ACCURACY else latency_command
    parser = argparse.ArgumentParser(prog=f"depth-bench {words[0]}", allow_abbrev=False)
    command.add_arguments(parser)
    return command.run(parser.parse_args(words[1:]))


def _protocol(arguments: argparse.Namespace) -> str:
    """How photos are shown to all parts: as --protocol says, else as the papers show this kind of data, else by the bundle's first."""
    from ...runtime.commands.inspection import read_manifest
    from ..accuracy.rows import protocol_of

    contract = read_manifest(arguments.bundle).contract
    return protocol_of(arguments.bundle, contract, arguments.protocol, accuracy_command.papers_protocol(arguments.data)).name


def _plan(arguments: argparse.Namespace, protocol: str) -> Plan:
    from ...runtime.commands.inspection import read_manifest
    from ..latency.opening import open_pipeline, open_torch_pipeline
    from .estimate import plan, probe

    manifest = read_manifest(arguments.bundle)
    if not Path(arguments.bundle).is_dir():
        raise UsageError(f"{arguments.bundle} is no bundle", wanted="a folder made by depth-export", fix="name plans with --engine")
    text = manifest.contract.text
    prompt = text.some_words(latency_command.PROMPT) if text is not None else None
    files = _network_files(arguments)
    if files and not arguments.pytorch:
        raise UsageError(f"--reference-{next(iter(files)).replace('_', '-')} without PyTorch", fix="leave it out, or name a mode with --pytorch")
    weights = files.pop("weights", None)
    modes = [word.strip() for word in arguments.pytorch.split(",") if word.strip()]
    compiled = sum(not mode.startswith("eager") for mode in modes)
    engines = arguments.engine or [arguments.bundle]
    probes = [probe(engine, lambda engine=engine: open_pipeline(engine, None, arguments.threads), protocol, prompt) for engine in engines]
    if modes:
        given = ("eager-fp32", arguments.device, arguments.threads, weights, files)
        opened = probe("pytorch", lambda: open_torch_pipeline(arguments.bundle, *given), protocol, prompt)
        probes += [opened] * len(modes)
    images = 0
    if measures_masks(arguments.data):
        images = len(open_masks(arguments.data))
    elif manifest.contract.output.kind != "mask":
        source, _ = accuracy_command.open_data(arguments.data, arguments.captions)
        images = len(source)
    return plan([found for found in probes if found is not None], images, arguments.quick, compiled)


def _key(arguments: argparse.Namespace) -> str:
    """What decides the numbers: the words of the command, and what the artefacts hold."""
    from ...runtime.artefact.manifest_json import manifest_bytes
    from ...runtime.commands.inspection import read_manifest

    words = {name: getattr(arguments, name) for name in ("data", "captions", "evaluation", "protocol", "pytorch", "device", "threads", "quick")}
    digest = hashlib.sha256(json.dumps(words, sort_keys=True).encode())
    for artefact in (arguments.bundle, *arguments.engine):
        digest.update(Path(artefact).name.encode() + manifest_bytes(read_manifest(artefact)))
    return digest.hexdigest()


def _resumed(folder: Path, key: str, force: bool) -> Plan | None:
    """The plan of the run that was begun in a folder; None for a new one."""
    from .estimate import Plan

    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        state = json.loads((folder / STATE).read_text("utf-8"))
        ours = state["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder} holds something else than a run of depth-bench", fix="choose another --output") from error
    if force or not ours:
        return None
    if state["key"] != key:
        raise InputError(f"{folder} holds another run", wanted="the same words and artefacts", fix="choose another --output, or pass --force to begin anew")
    return Plan(**state["plan"])


def _say(arguments: argparse.Namespace, words: str) -> None:
    if not arguments.quiet:
        print(words, file=sys.stderr, flush=True)
