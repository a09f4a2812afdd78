"""Writing a bundle: every stage exported, golden tensors beside them, and nothing under the asked name unless parity holds."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from ...models.network import DepthNetwork, Stage
from ...runtime.artefact.bundle import MANIFEST
from ...runtime.artefact.manifest import BundleManifest, BundleStage, NetworkFacts
from ...runtime.certificate.probes import PROBES
from ...runtime.errors import AccuracyError
from ...runtime.files import whole_directory
from ..child.child import Progress
from ..graph.onnx_graph import export_graph
from ..parity.parity import Tolerances, measure_parity
from .bundle_files import GOLDEN, STAGES, finish_bundle


def write_bundle(
    network: DepthNetwork,
    path: str | Path,
    *,
    force: bool = False,
    tolerances: Tolerances | None = None,
    release: bool = False,
    on_message: Callable[[str], None] | None = None,
    on_progress: Progress | None = None,
) -> BundleManifest:
    """Export a network as a bundle directory.

    The golden tensors come from the unfolded network in FP32; every stage must give them back within tolerance in ONNX Runtime, alone
    and in the chain, before the bundle appears under its name.

    Args:
        network: in eval mode, on the CPU, FP32.
        path: of the bundle.
        force: replace an earlier bundle of that name.
        tolerances: see ``parity.Tolerances``.
        release: give up the network's weights once they are written, so that the comparison has the memory. The network cannot be
            used afterwards.
        on_message: called with remarks for people, the parity table among them.
        on_progress: called with (what is done now, part done from 0 to 1).

    Raises:
        InputError: if the path may not be written.
        AccuracyError: if the gate fails; nothing is left then.
        BuildFailedError: if a stage cannot be exported.
    """
    on_progress, on_message = on_progress or (lambda what, done: None), on_message or (lambda text: None)
    with whole_directory(path, force, MANIFEST) as folder:
        on_progress("computing the golden tensors with PyTorch", 0.0)
        (folder / STAGES).mkdir()
        facts = network_facts(network)
        contract, extra = network.contract, network.artefact_files()
        write_goldens(network, folder / GOLDEN)
        stages = network.stages()
        entries = []
        for number, stage in enumerate(stages):
            on_progress(f"{stage.spec.name}: exporting", (1 + number) / (2 * len(stages) + 1))
            entries.append(_export(stage, folder))
        del stages, stage
        if release:
            network.to("meta")
        gc.collect()
        report = measure_parity(
            tuple((entry.spec, folder / entry.file) for entry in entries),
            folder / GOLDEN,
            contract.output.tensor,
            reference=f"PyTorch {torch.__version__} FP32",
            tolerances=tolerances,
            probes=None if facts.untrained else folder / PROBES,  # random weights are for timing
            on_progress=lambda what, done: on_progress(what, 0.5 + 0.5 * done),
        )
        on_message(report.table())
        report.require()
        for name, content in extra.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        manifest = finish_bundle(folder, facts, contract, tuple(entries), report)
        on_progress("written", 1.0)
    return manifest


def network_facts(network: DepthNetwork) -> NetworkFacts:
    """Name, sizes and origin of the weights."""
    origin = asdict(network.origin)
    origin["warnings"] = list(origin["warnings"])
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return NetworkFacts(network.name, network.variant, network.config_json(), parameters, origin)


def write_goldens(network: DepthNetwork, file: Path, batch: int = 1) -> None:
    """Inputs and every boundary tensor of the unfolded network, as safetensors.

    Raises:
        AccuracyError: if the network itself gives NaN or infinite values.
    """
    inputs = network.example_inputs(batch)
    with torch.no_grad():
        tensors = {**inputs, **network.boundaries(inputs)}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise AccuracyError(f"PyTorch itself gives NaN or infinite values in {name}", wanted="finite numbers", fix="check the weights")
    file.parent.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, str(file))


def _export(stage: Stage, folder: Path) -> BundleStage:
    written = export_graph(stage, folder / STAGES)
    return BundleStage(stage.spec, f"{STAGES}/{written.file.name}", "fp32", stage.fp32_islands, stage.folded)
