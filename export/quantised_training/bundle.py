"""A bundle of learned stages: graphs, goldens, calibration table and precision plan, as if the network had been exported and calibrated with these weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ...calibration.artefact import model_fingerprint
from ...calibration.calibrate import PLAN, TABLE, Calibrated, add_to_bundle
from ...calibration.precision.rounding import fp16_overflows
from ...runtime.artefact.bundle import MANIFEST, BundleDirectory
from ...runtime.artefact.manifest import BundleManifest
from ...runtime.artefact.spec import network_inputs
from ...runtime.certificate.probes import PROBES
from ...runtime.errors import InputError
from ...runtime.files import whole_directory
from ..bundle.bundle_files import GOLDEN, STAGES, finish_bundle
from ..graph.onnx_checks import check_graph
from ..parity.parity import measure_parity
from ..precision.calibrated import Calibration
from .distil import run_chain
from .stages import LearningStage
from .torch_graph import TorchGraph


def write_learned_bundle(
    source: BundleDirectory,
    calibration: Calibration,
    stages: list[LearningStage],
    path: Path,
    facts: dict[str, Any],
    proof: dict[str, Any],
    peaks: dict[str, dict[str, float]],
    force: bool,
) -> BundleManifest:
    """Write the bundle; it appears when it is whole.

    The golden tensors are what PyTorch makes of the learned FP32 graphs for the golden inputs of the source; ONNX Runtime must give them back.

    Args:
        source: where the network comes from; contract, islands and files besides stages are its own.
        calibration: of the source.
        stages: what was learned.
        facts: how it was learned, for the table.
        proof: for the plan.
        peaks: stage -> tensor -> greatest magnitude of every floating-point tensor of the learned FP32 graphs.

    Raises:
        InputError: if the path may not be written, or the source has no golden tensors.
        AccuracyError: if ONNX Runtime does not give what PyTorch gives.
    """
    old = source.manifest
    if not old.goldens:
        raise InputError(f"{source.path_of_bundle} has no golden tensors", fix="export it again")
    with whole_directory(path, force, MANIFEST) as folder:
        (folder / STAGES).mkdir()
        (folder / GOLDEN).parent.mkdir()
        entries = []
        for entry, stage in zip(old.stages, stages, strict=True):
            file = f"{STAGES}/{stage.name}.onnx"
            stage.graph.save(folder / file)
            check_graph(folder / file, entry.spec)
            entries.append(replace(entry, file=file))
        _write_goldens(source, stages, folder / GOLDEN)
        golden, reference = folder / GOLDEN, f"PyTorch {torch.__version__} FP32"
        probes = None if old.network.untrained else folder / PROBES
        pairs = tuple((entry.spec, folder / entry.file) for entry in entries)
        report = measure_parity(pairs, golden, old.contract.output.tensor, reference=reference, probes=probes)
        report.require()
        own = {name for entry in old.stages for name in old.stage_files(entry)} | {*old.goldens, PROBES, TABLE, PLAN}
        for name in old.files.keys() - own:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(source.read(name))
        origin = dict(old.network.weights)
        how = f"{facts['fitted_layers']} layers were fitted in closed form" + (f", then {facts['steps']} steps of distillation" if facts["steps"] else "")
        note = f"These weights were made from those named here, so that they suit the precision plan: {how}."
        origin |= {"kind": origin["kind"] if old.network.untrained else "trained", "warnings": [*origin["warnings"], note]}
        manifest = finish_bundle(folder, replace(old.network, weights=origin), old.contract, tuple(entries), report)
        add_to_bundle(BundleDirectory.open(folder), _calibrated(calibration, manifest, stages, facts, proof, peaks))
    return manifest


def _write_goldens(source: BundleDirectory, stages: list[LearningStage], file: Path) -> None:
    held = load_file(str(source.path(source.manifest.goldens[0])))
    inputs = {name: held[name] for name in network_inputs(source.manifest.specs())}
    with torch.no_grad():
        made = run_chain([TorchGraph(stage.graph) for stage in stages], inputs)
    save_file({name: tensor.contiguous().clone() for name, tensor in {**inputs, **made}.items()}, str(file))


def _calibrated(
    calibration: Calibration,
    manifest: BundleManifest,
    stages: list[LearningStage],
    facts: dict[str, Any],
    proof: dict[str, Any],
    peaks: dict[str, dict[str, float]],
) -> Calibrated:
    """Table and plan of the learned network. What was measured on the weights before (evidence, variants) does not go with it."""
    table, plan, model = calibration.table, calibration.plan, model_fingerprint(manifest)
    known = {(fact["stage"], fact["tensor"]) for fact in plan.overflows}
    beyond = [f"{name} of {stage}" for stage, found in peaks.items() for name in fp16_overflows(found) if (stage, name) not in known]
    warnings = table.warnings + ((f"After learning, FP16 cannot hold {', '.join(beyond[:3])}.",) if beyond else ())
    ranges = {stage.name: stage.ranges for stage in stages}
    table = replace(table, model_sha256=model, data={**table.data, "learned": facts}, warnings=warnings, stages=ranges, peaks=peaks, shifts={})
    choices = {(stage.name, nodes): choice for stage in stages for nodes, choice in stage.choices.items()}
    regions = tuple(replace(region, choice=choices[region.stage, region.nodes], evidence={}) for region in plan.regions)
    return Calibrated(table, replace(plan, model_sha256=model, regions=regions, variants=(), proof=proof), 0)
