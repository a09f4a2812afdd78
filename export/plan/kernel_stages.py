"""Stages cut around our operators on their way into a plan: the files of the kernel stages, and golden tensors for what flows at the cuts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ...runtime.artefact.bundle import BundleDirectory
from ...runtime.artefact.manifest import BundleStage, Initializer, PlanStage
from ...runtime.artefact.spec import StageSpec, TensorSpec
from ...runtime.tensorrt.operators.kernel_stage import SUFFIX
from ..child.child import run_child
from ..operators.split import Piece, name_in_stage
from .built_stage import BuiltStage

ALIGNMENT = 256  # of the constants in their file, and so on the device


def kernel_stage(piece: Piece, spec: StageSpec, scratch: Path) -> tuple[PlanStage, dict[str, Path], BuiltStage]:
    """The entry of a kernel stage in the plan, its files by their names there, and its line in the report."""
    name = spec.name
    facts = {"operator": piece.operator, "inputs": piece.inputs, "outputs": piece.outputs, "parameters": piece.parameters}
    files = {f"engines/{name}{SUFFIX}": scratch / f"{name}{SUFFIX}"}
    files[f"engines/{name}{SUFFIX}"].write_text(json.dumps(facts, allow_nan=False) + "\n")
    raw, table = bytearray(), []
    for tensor, values in sorted(piece.constants.items()):
        raw += bytes(-len(raw) % ALIGNMENT)
        table.append(Initializer(TensorSpec(tensor, values.dtype.name, values.shape), len(raw)))
        raw += np.ascontiguousarray(values).tobytes()
    if raw:
        files[f"engines/{name}.weights"] = scratch / f"{name}.weights"
        files[f"engines/{name}.weights"].write_bytes(raw)
    precision = "fp16" if spec.outputs[0].dtype == "float16" else "fp32"
    entry = PlanStage(spec, f"engines/{name}{SUFFIX}", precision, f"engines/{name}.weights" if raw else "", tuple(table))
    return entry, files, BuiltStage(name, len(raw), len(raw), {piece.operator: 1}, 0, {}, 0, "", 0.0, 0)


def golden_cuts(bundle: BundleDirectory, stage: BundleStage, pieces: Iterable[Piece], target: Path, limit_nbytes: int) -> bool:
    """Write what the FP32 graph of a stage gives at the cuts for the golden inputs, as the golden tensors of the plan's own case.

    Args:
        bundle: whose graph of this stage has the operators.
        pieces: of the stage.
        target: safetensors file to write.
        limit_nbytes: memory that the process may take.

    Returns:
        whether anything was written.

    Raises:
        BuildFailedError: if ONNX Runtime cannot run the graph.
    """
    whole = {tensor.name for tensor in stage.spec.tensors}
    names = sorted({tensor.name for piece in pieces for tensor in piece.spec.tensors} - whole)
    if not names:
        return False
    request = {
        "task": "inner-tensors",
        "stage": stage.spec.name,
        "file": str(bundle.path(stage.file)),
        "golden": str(bundle.path(bundle.manifest.goldens[0])),
        "inputs": [{"name": tensor.name, "dtype": tensor.dtype} for tensor in stage.spec.inputs],
        "tensors": {name: name_in_stage(stage.spec.name, name) for name in names},
        "save": str(target),
    }
    run_child(request, what=f"stage {stage.spec.name}: tensors at the cuts", limit_nbytes=limit_nbytes)
    return True
