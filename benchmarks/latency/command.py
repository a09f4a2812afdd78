"""``depth-bench latency``: one network, several ways to run it, in turns on the same tensors."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...runtime.commands.command import common_flags, warn
from ...runtime.errors import FathomError, UsageError
from ...runtime.files import refuse_existing, whole_file

if TYPE_CHECKING:
    import numpy as np

    from .latency import Subject

PROMPT = "the chair on the left"
EPILOG = """\
Three boundaries, never mixed in one column: device (the network alone, between two CUDA events), host (tensors in host memory to tensors in
host memory), photo (a decoded photo to its finished map, with the protocol's windows and flips). What cannot be opened here keeps its row and
says why. The JSON holds every sample, the versions and the devices.
"""
PYTORCH_OPTIONS = ("visual_weights", "text_pack", "bins", "tokenizer")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``depth-bench latency``."""
    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter
    parser.add_argument("bundle", metavar="BUNDLE", help="made by depth-export; runs on ONNX Runtime and, with --pytorch, in PyTorch")
    parser.add_argument("--engine", action="append", default=[], metavar="PLAN", help="a plan of the same bundle; may be given several times")
    parser.add_argument("--pytorch", default="", metavar="MODES", help="comma-separated: eager-fp32,eager-fp16,compile-fp32,compile-fp16")
    parser.add_argument("--weights", metavar="FILE", help="of PyTorch: the checkpoint the bundle was exported from")
    for option in PYTORCH_OPTIONS:
        parser.add_argument(f"--{option.replace('_', '-')}", metavar="FILE", help="of PyTorch: as depth-export was given it")
    parser.add_argument("--onnxruntime", default="", metavar="DEVICES", help="the bundle itself, comma-separated: cpu,cuda")
    parser.add_argument("--device", default="cpu", metavar="DEVICE", help="of PyTorch: cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--rounds", type=_count, default=50, metavar="N", help="samples of each (default: %(default)s)")
    parser.add_argument("--warm-up", type=_count, default=5, metavar="N", help="rounds before that do not count (default: %(default)s)")
    parser.add_argument("--photo", metavar="FILE", help="photo for the boundary photo (default: a made-up one of 640x480)")
    parser.add_argument("--threads", type=_count, metavar="N", help="CPU threads (default: all cores)")
    parser.add_argument("-o", "--output", metavar="RESULT.json", help="the full record")
    common_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table, write the record; returns the exit code (6 if nothing could be timed)."""
    from ..latency import latency

    modes, devices = _words(arguments.pytorch), _words(arguments.onnxruntime)
    if not (modes or devices or arguments.engine):
        raise UsageError("nothing to time", fix="give --engine, --onnxruntime or --pytorch")
    if arguments.output:
        refuse_existing(Path(arguments.output), arguments.force)
    photo = _photo(arguments.photo)
    inputs, facts = _inputs(arguments.bundle, photo)
    if facts["untrained"]:
        warn("the weights are random: times are real, the depth means nothing")
    subjects: list[Subject] = []
    memory = _DeviceMemory()
    try:
        for mode in modes:
            subjects.append(_open(f"pytorch {mode}", lambda mode=mode: _pytorch(arguments, mode), None if arguments.device == "cpu" else memory))
        for device in devices:
            subjects.append(
                _open(f"onnxruntime {device}", lambda device=device: _pipeline(arguments, arguments.bundle, device), None if device == "cpu" else memory)
            )
        for engine in arguments.engine:
            subjects.append(_open(Path(engine).stem, lambda engine=engine: _pipeline(arguments, engine, None), memory))
        latency.take_turns(subjects, inputs, photo, arguments.rounds, arguments.warm_up, facts["prompt"])
        record = {"what": "latency", **facts, "rounds": arguments.rounds, "warm_up": arguments.warm_up, "photo": list(photo.shape[:2])}
        record |= {"machine": _machine(), "rows": latency.to_json(subjects)}
        print(json.dumps(record) if arguments.json else latency.table(subjects), flush=True)
        if arguments.output:
            with whole_file(arguments.output, arguments.force) as part:
                part.write_text(json.dumps(record, indent=1) + "\n")
        for subject in subjects:
            if not arguments.quiet:
                for remark in subject.remarks:
                    print(f"{subject.name}: {remark}", file=sys.stderr)
        return 0 if any(subject.samples_ms for subject in subjects) else 6
    finally:
        for subject in subjects:
            subject.close()
        memory.close()


def _open(name: str, opened: Any, memory: _DeviceMemory | None) -> Subject:
    """A subject, with the device memory it took; one that cannot be opened says why."""
    from .latency import Subject

    free_before = memory.free_mib() if memory else None
    try:
        backend, pipeline = opened()
    except FathomError as error:
        return Subject(name, error=str(error))
    free_after = memory.free_mib() if memory else None
    taken_mib = round(free_before - free_after, 1) if free_before is not None and free_after is not None else None
    return Subject(name, backend, pipeline, taken_mib, backend.remarks)


def _pytorch(arguments: argparse.Namespace, mode: str) -> tuple[Any, None]:
    from .pytorch_latency import open_torch

    options = {name: value for name in PYTORCH_OPTIONS if (value := getattr(arguments, name)) is not None}
    return open_torch(arguments.bundle, mode, arguments.device, arguments.weights, options), None


def _pipeline(arguments: argparse.Namespace, artefact: str, device: str | None) -> tuple[Any, Any]:
    from ...runtime.pipeline import Pipeline

    pipeline = Pipeline.open(artefact, device, arguments.threads, batch=1)
    return pipeline.backend, pipeline


def _inputs(bundle: str, photo: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors that the photo becomes, and what the bundle is."""
    import numpy as np

    from ...runtime.artefact.bundle import BundleDirectory
    from ...runtime.photo.preprocess import network_inputs

    with BundleDirectory.open(bundle, verify=False) as artefact:
        manifest = artefact.manifest
        contract, text = manifest.contract, manifest.contract.text
        inputs = {contract.input.tensor: next(iter(network_inputs(photo, contract, contract.protocols[0], 1)))}
        if text is not None:  # any ids take equally long
            inputs[text.ids] = np.full((1, text.length), text.pad_id, np.int64)
            if text.mask:
                inputs[text.mask] = np.ones((1, text.length), np.float32)
        facts = {"network": manifest.network.name, "variant": manifest.network.variant, "untrained": manifest.network.untrained}
        facts["prompt"] = PROMPT if text is not None and text.kind == "prompt" else None
        return inputs, facts | {"protocol": contract.protocols[0].name, "shape": list(inputs[contract.input.tensor].shape)}


def _photo(path: str | None) -> np.ndarray:
    import numpy as np

    from ...runtime.photo.photo import read_photo

    if path:
        return read_photo(path)
    rows, columns = np.mgrid[0:480, 0:640]
    return np.stack([rows * 255 // 479, columns * 255 // 639, (rows + columns) * 255 // 1118], axis=2).astype(np.uint8)


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


def _machine() -> dict[str, Any]:
    from ...runtime.commands.doctor import examine

    return examine()


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text!r}; wanted a whole number from 1 to 1000000")
    return int(text)
