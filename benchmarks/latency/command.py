"""``depth-bench latency``: one network, several ways to run it, in turns on the same tensors."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...runtime.commands.command import common_flags, warn
from ...runtime.commands.progress import Progress
from ...runtime.errors import FathomError, OutOfMemoryError, UsageError
from ...runtime.files import refuse_existing

if TYPE_CHECKING:
    import numpy as np

    from ...runtime.artefact.contract import Protocol
    from .latency import Query, Subject

PROMPT = "the chair on the left"
PACKAGES = ("numpy", "onnxruntime", "torch", "tensorrt", "tensorrt-rtx")
SWEEP_LIMIT_MS = 2000
EPILOG = """\
Three boundaries, never mixed in one column: device (the network alone, between two CUDA events), host (tensors in host memory to tensors in
host memory), photo (a decoded photo to its finished map, with the protocol's windows and flips). What cannot be opened here keeps its row and
says why. The JSON holds every sample, the versions and the devices.
--details also measures the stages one by one, the layers of engines, what a photo takes beside the network, growing batches, energy, and cold start and
memory of each subject in a process of its own.
"""
PYTORCH_OPTIONS = ("visual_weights", "text_pack", "texts", "bins", "tokenizer")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``depth-bench latency``."""
    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter
    parser.add_argument("bundle", metavar="BUNDLE", nargs="?", help="made by depth-export; for --onnxruntime and --pytorch")
    parser.add_argument("--engine", action="append", default=[], metavar="PLAN", help="a plan of the same bundle; may be given several times")
    modes = "comma-separated: eager, compile (torch.compile, default) or max-autotune, each with -fp32, -fp16 (real half) or -autocast"
    parser.add_argument("--pytorch", default="", metavar="MODES", help=modes)
    parser.add_argument("--weights", metavar="FILE", help="of PyTorch: the checkpoint the bundle was exported from")
    for option in PYTORCH_OPTIONS:
        parser.add_argument(f"--{option.replace('_', '-')}", metavar="FILE", help="of PyTorch: as depth-export was given it")
    parser.add_argument("--onnxruntime", default="", metavar="DEVICES", help="the bundle itself, comma-separated: cpu, tuned (fastest threads), cuda")
    parser.add_argument("--device", default="cpu", metavar="DEVICE", help="of PyTorch: cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--protocol", metavar="NAME", help="how the photo is shown (default: the bundle's first; depth-inspect lists them)")
    parser.add_argument("--rounds", type=_count, default=50, metavar="N", help="samples of each (default: %(default)s)")
    parser.add_argument("--warm-up", type=_count, default=5, metavar="N", help="rounds before that do not count (default: %(default)s)")
    parser.add_argument("--photo", metavar="FILE", help="photo for the boundary photo (default: made up, 640x480 or as the protocol wants)")
    parser.add_argument("--threads", type=_count, metavar="N", help="CPU threads (default: all cores)")
    parser.add_argument("--details", action="store_true", help="also stages, layers, batches, energy, cold start and memory")
    parser.add_argument("-o", "--output", metavar="RESULT.json", help="the full record")
    common_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table, write the record; returns the exit code (6 if nothing could be timed, 7 if for want of memory)."""
    from ..machine.conditions import Conditions
    from ..machine.system import describe
    from ..record.record import header, write_record
    from . import latency
    from .layers import layer_lines
    from .opening import open_subject
    from .photo_parts import photo_parts_lines

    if not (arguments.pytorch or arguments.onnxruntime or arguments.engine):
        raise UsageError("nothing to time", fix="give --engine, --onnxruntime or --pytorch")
    if (arguments.pytorch or arguments.onnxruntime) and not arguments.bundle:
        raise UsageError("--pytorch and --onnxruntime want the bundle", fix="name it first: depth-bench latency BUNDLE …")
    if arguments.output:
        refuse_existing(Path(arguments.output), arguments.force)
    query, facts = _query(arguments)
    if facts["network"]["untrained"]:
        warn("the weights are random: times are real, the depth means nothing")
    record = header("latency", _argv(arguments), PACKAGES, latency.SEED) | {"system": describe(), "scenario": "SingleStream", **facts}
    record |= {"min_query_count": arguments.rounds, "warm_up_query_count": arguments.warm_up, "confidence": latency.confidence()}
    subjects: list[Subject] = []
    memory = _DeviceMemory()
    try:
        for name, artefact, opened, known in _wanted(arguments):
            subjects.append(open_subject(name, artefact, opened, known, None if known["device"] == "cpu" else memory.free_mib))
        conditions = Conditions()
        with Progress(arguments.rounds + arguments.warm_up, "rounds", arguments.quiet) as progress:

            def on_round() -> None:
                conditions.sample()
                progress.advance()

            latency.take_turns(subjects, query, arguments.rounds, arguments.warm_up, on_round)
        record["conditions"] = conditions.close()
        if arguments.details:
            for subject in subjects:
                _details(subject, query, arguments)
        record["rows"] = latency.to_json(subjects)
        words = (latency.table(record["rows"]), *photo_parts_lines(record["rows"]), *layer_lines(record["rows"]))
        print(json.dumps(record) if arguments.json else "\n".join(words), flush=True)
        if arguments.output:
            write_record(arguments.output, record, arguments.force)
        for subject in subjects:
            if not arguments.quiet:
                for remark in subject.remarks:
                    print(f"{subject.name}: {remark}", file=sys.stderr)
        return judge(record)
    finally:
        for subject in subjects:
            subject.close()
        memory.close()


def judge(record: dict[str, Any]) -> int:
    """The exit code that a record of latency deserves: 0 if anything was timed, 7 if nothing for want of memory, else 6."""
    if not all(row["is_skipped"] for row in record["rows"]):
        return 0
    return OutOfMemoryError.exit_code if all(row.get("skip_code") == OutOfMemoryError.exit_code for row in record["rows"]) else 6


def _wanted(arguments: argparse.Namespace) -> list[tuple[str, str, Any, dict[str, Any]]]:
    """Name, artefact, how it is opened, and what is known of it; one for every row."""
    from ...runtime.commands.inspection import read_manifest
    from .opening import fastest_threads, open_pipeline, open_torch_pipeline

    bundle, threads, found = arguments.bundle, arguments.threads, []
    given = (arguments.weights, {name: value for name in PYTORCH_OPTIONS if (value := getattr(arguments, name)) is not None})
    for mode in _words(arguments.pytorch):
        known = {"backend": "pytorch", "mode": mode, "device": arguments.device, "threads": threads}
        found.append((f"pytorch {mode}", bundle, lambda mode=mode: open_torch_pipeline(bundle, mode, arguments.device, threads, *given), known))
    for device in _words(arguments.onnxruntime):
        name, count, where = f"onnxruntime {device}", threads, device
        if device == "tuned":
            count, where = fastest_threads(bundle), "cpu"
            name = f"onnxruntime cpu, threads tuned to {count}"
        known = {"backend": "onnxruntime", "device": where, "threads": count}
        found.append((name, bundle, lambda where=where, count=count: open_pipeline(bundle, where, count), known))
    for engine in arguments.engine:
        backend = getattr(read_manifest(engine), "backend", "onnxruntime")
        known = {"backend": backend, "device": "cpu" if backend == "onnxruntime" else "cuda", "threads": threads}
        name = Path(engine).absolute().name
        name = f"{name} ({1 + len(found)})" if any(name == other[0] for other in found) else name
        found.append((name, engine, lambda engine=engine: open_pipeline(engine, None, threads), known))
    return found


def _details(subject: Subject, query: Query, arguments: argparse.Namespace) -> None:
    """Everything beside the turns: batches, energy, cold start and memory; what fails says why."""
    from ..machine.energy import energy_per_query, open_meter
    from .first_query import first_query
    from .layers import layer_rows
    from .opening import greatest_batch, tensors_nbytes, weights_nbytes
    from .photo_parts import photo_parts
    from .sweep import sweep

    if subject.skip_reason or subject.pipeline is None:
        return
    manifest, backend, facts = subject.pipeline.manifest, subject.backend, subject.facts
    subject.memory |= {"weights_nbytes": weights_nbytes(manifest), "tensors_nbytes": tensors_nbytes(manifest)}
    if facts["backend"] == "pytorch":  # the artefact's files are not what PyTorch holds
        subject.memory["weights_nbytes"] = manifest.network.parameters * (2 if facts["mode"].endswith("fp16") else 4)
        subject.memory["tensors_nbytes"] = None
    greatest = greatest_batch(manifest)
    some_rounds = max(3, arguments.rounds // 10)
    subject.details["sweep"] = sweep(backend, query.inputs, greatest, some_rounds, SWEEP_LIMIT_MS)
    meter = open_meter(facts["device"] != "cpu")
    subject.details["energy"] = energy_per_query(meter, lambda: query.ask(subject.pipeline))
    if meter is not None:
        meter.close()
    try:
        subject.details["photo_parts_ms"] = photo_parts(subject.pipeline, query, some_rounds, subject.samples_ms["photo"])
        subject.details["layers"] = layer_rows(backend, query.inputs, some_rounds)
    except FathomError as error:
        subject.remarks = (*subject.remarks, f"its parts and layers could not all be timed: {error}")
    try:
        device = facts["device"] if subject.artefact == arguments.bundle else None
        found = first_query(
            subject.artefact,
            device,
            facts["threads"],
            query.protocol,
            facts.get("mode", ""),
            arguments.weights,
            {name: getattr(arguments, name) for name in PYTORCH_OPTIONS if getattr(arguments, name)},
        )
    except FathomError as error:
        subject.details["cold_start_ms"] = {"is_skipped": True, "skip_reason": str(error)}
        return
    subject.details["cold_start_ms"] = {"is_skipped": False, "skip_reason": "", **found.pop("cold_start_ms")}
    subject.memory |= found


def _query(arguments: argparse.Namespace) -> tuple[Query, dict[str, Any]]:
    """The tensors that the photo becomes, and what the bundle is."""
    import numpy as np

    from ...runtime.commands.inspection import read_manifest
    from ...runtime.photo.preprocess import network_inputs
    from .latency import Query
    from .opening import any_camera

    manifest = read_manifest(arguments.bundle or arguments.engine[0])
    network, contract = manifest.network, manifest.contract
    protocol = next((item for item in contract.protocols if arguments.protocol in (None, item.name)), None)
    if protocol is None:
        raise UsageError(f"there is no protocol {arguments.protocol!r}", wanted=" or ".join(item.name for item in contract.protocols))
    photo = _photo(arguments.photo, protocol)
    text = contract.text
    inputs = {contract.input.tensor: next(iter(network_inputs(photo, contract, protocol, 1)))}
    if text is not None:  # any ids take equally long
        inputs[text.ids] = np.full((1, text.length), text.pad_id, np.int64)
        if text.mask:
            inputs[text.mask] = np.ones((1, text.length), np.float32)
    prompt = text.some_words(PROMPT) if text is not None else None
    facts = {"name": network.called, "untrained": network.untrained, "parameters": network.parameters}
    about = {"network": facts, "protocol": protocol.name, "input_shape": list(inputs[contract.input.tensor].shape), "photo_shape": list(photo.shape[:2])}
    return Query(inputs, photo, any_camera(photo), prompt, protocol.name, arguments.details), about | {"prompt": prompt}


def _photo(path: str | None, protocol: Protocol) -> np.ndarray:
    from ...runtime.photo.photo import read_photo
    from .opening import made_up_photo

    return read_photo(path) if path else made_up_photo(protocol)


class _DeviceMemory:
    """Free memory of GPU 0. Its context is held all the while, so that no subject is charged for making it."""

    def __init__(self) -> None:
        from ...runtime.cuda.open_device import open_device

        try:
            self._device = open_device()
        except FathomError:
            self._device = None

    def free_mib(self) -> float | None:
        """None where there is no device to ask."""
        if self._device is None:
            return None
        try:
            with self._device:
                return self._device.memory()[0] / 2**20
        except FathomError:
            return None

    def close(self) -> None:
        """Let the context go."""
        if self._device is not None:
            self._device.close()


def _argv(arguments: argparse.Namespace) -> list[str]:
    words = ["depth-bench", "latency", *([arguments.bundle] if arguments.bundle else [])]
    words += [word for engine in arguments.engine for word in ("--engine", engine)]
    for name in ("pytorch", "weights", *PYTORCH_OPTIONS, "onnxruntime", "device", "protocol", "rounds", "warm_up", "photo", "threads"):
        value = getattr(arguments, name)
        words += [f"--{name.replace('_', '-')}", str(value)] if value else []
    return [*words, *(["--details"] if arguments.details else [])]


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text!r}; wanted a whole number from 1 to 1000000")
    return int(text)
