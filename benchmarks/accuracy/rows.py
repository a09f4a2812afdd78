"""The rows of an accuracy table: which artefacts, identified by their manifests, and the fit that relative maps need."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from ...runtime.artefact.contract import Contract, Protocol
from ...runtime.artefact.manifest_json import manifest_bytes
from ...runtime.commands.command import warn
from ...runtime.commands.inspection import read_manifest
from ...runtime.errors import UsageError
from ...runtime.pipeline import Pipeline
from ..evaluation.evaluation import Evaluation
from .accuracy import Row

UNTRAINED = "random weights: the numbers mean nothing"


def open_rows(
    engines: Iterable[str | Path],
    reference: str | Path | None = None,
    reference_weights: str | Path | None = None,
    reference_options: Mapping[str, str] | None = None,
    *,
    protocol: str | None = None,
    benchmark: str | None = None,
    device: str | None = None,
    reference_device: str | None = None,
    threads: int | None = None,
    batch: int | None = None,
) -> list[Row]:
    """One row for each artefact, the first for PyTorch if there is a ``reference``; no network is loaded yet.

    Args:
        engines: plans or bundles.
        reference: a bundle whose PyTorch network is measured too.
        reference_weights: the checkpoint it was exported from.
        reference_options: what else that export was given; see ``open_reference``.
        protocol: how photos are shown; None for ``benchmark`` where the network has it, else each one's first.
        benchmark: the protocol of the papers for this data (``nyu-benchmark``, ``kitti-benchmark``).
        device, threads, batch: see ``Pipeline.open``.
        reference_device: of PyTorch; None for ``device``, else the CPU.

    Raises:
        InputError: if an artefact is broken.
        UsageError: if it has no such protocol.
    """
    rows: list[Row] = []
    if reference:
        where = reference_device or device or "cpu"

        def torch_pipeline() -> Pipeline:
            from ..pytorch_reference import open_reference

            return open_reference(reference, reference_weights, batch, where, reference_options)

        rows.append(_row(Path(reference), "pytorch", protocol, benchmark, where, torch_pipeline, rows))
    for engine in engines:

        def pipeline(path: str | Path = engine) -> Pipeline:
            return Pipeline.open(path, device, threads, batch)

        rows.append(_row(Path(engine), "engine", protocol, benchmark, device, pipeline, rows))
    return rows


def protocol_of(path: str | Path, contract: Contract, name: str | None, benchmark: str | None) -> Protocol:
    """How photos are shown to an artefact: by the protocol of that name; without one by ``benchmark`` where it is there, else by the first.

    Raises:
        UsageError: if there is no protocol of that name.
    """
    known = {protocol.name: protocol for protocol in contract.protocols}
    if name is None:
        return known.get(benchmark, contract.protocols[0])
    if name not in known:
        raise UsageError(f"{path} has no protocol {name!r}", wanted=" or ".join(known))
    return known[name]


def fitted(evaluation: Evaluation, rows: list[Row]) -> Evaluation:
    """The evaluation with a fit that relative maps need, if all rows are of such networks and it has none."""
    if evaluation.alignment != "none" or evaluation.min_max or any(row.facts["output"] != "relative" for row in rows):
        return evaluation
    grows = {row.facts["larger_is"] for row in rows}
    return dataclasses.replace(evaluation, alignment="scale-shift-inverse" if "near" in grows else "median")


def _row(path: Path, kind: str, protocol_name: str | None, benchmark: str | None, device: str | None, opener: Callable[[], Pipeline], rows: list[Row]) -> Row:
    """Identify an artefact from its manifest."""
    manifest = read_manifest(path)
    protocol = protocol_of(path, manifest.contract, protocol_name, benchmark)
    network = manifest.network.called
    bundle = path.is_dir()
    name = f"{network} (PyTorch)" if kind == "pytorch" else path.absolute().name
    if any(row.name == name for row in rows):
        name = f"{name} ({1 + len(rows)})"
    if manifest.network.untrained:
        warn(f"{path} holds {UNTRAINED}")
    facts = {
        "network": network,
        "manifest_sha256": hashlib.sha256(manifest_bytes(manifest)).hexdigest(),
        "backend": "pytorch" if kind == "pytorch" else "onnxruntime" if bundle else manifest.backend,
        "device": device or ("cpu" if kind == "pytorch" or bundle or manifest.backend == "onnxruntime" else "cuda"),
        "precision": "fp32" if kind == "pytorch" else "/".join(sorted({stage.precision for stage in manifest.stages})),
        "protocol": protocol.name,
        "windows": len(protocol.lefts + protocol.fill_lefts),
        "flip": protocol.flip,
        "output": manifest.contract.output.kind,
        "larger_is": manifest.contract.output.larger_is,
        "untrained": manifest.network.untrained,
    }
    return Row(name, kind, opener, facts)
