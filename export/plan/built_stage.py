"""What became of one stage of a plan, for the report of a build."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ...runtime.artefact.spec import StageSpec, TensorSpec
from ..child.child import ChildResult


@dataclass(frozen=True)
class BuiltStage:
    """What became of one stage.

    Args:
        name: of the stage.
        engine_nbytes, weights_nbytes: of the engine, and of the weights it was made from.
        layers: convolutions and matrix products by the type they really hold; empty for ONNX Runtime.
        fp32_nodes: how many nodes stay FP32 in an FP16 stage.
        stored: dtype -> how many weights were found in the engine byte for byte, and how many were looked for; TensorRT-RTX only.
        activations_nbytes: device memory for intermediate results, as the compiler says; 0 if it does not.
        told: what the finished engine tells of its layers, in words; empty where it was not asked.
        seconds, peak_nbytes: of the compiler's process.
    """

    name: str
    engine_nbytes: int
    weights_nbytes: int
    layers: dict[str, int]
    fp32_nodes: int
    stored: dict[str, tuple[int, int]]
    activations_nbytes: int
    told: str
    seconds: float
    peak_nbytes: int

    @classmethod
    def of(cls, name: str, files: Iterable[Path], weights_nbytes: int, fp32_nodes: int, found: ChildResult) -> BuiltStage:
        """Of a stage that a compiler's process has finished."""
        values = found.values
        return cls(
            name,
            sum(file.stat().st_size for file in files),
            weights_nbytes,
            values.get("counts", {}),
            fp32_nodes,
            {kind: tuple(counts) for kind, counts in values.get("stored", {}).items()},
            values.get("activations_nbytes", 0),
            values.get("told", ""),
            found.seconds,
            found.peak_nbytes,
        )


def with_fixed_batch(spec: StageSpec, batch: tuple[int, int, int]) -> StageSpec:
    """The spec with the batch that a TensorRT engine fixes, if min and max batch are one."""
    min_batch, opt_batch, max_batch = batch
    if min_batch != max_batch:
        return spec
    sides = []
    for side in (spec.inputs, spec.outputs):
        sides.append(tuple(TensorSpec(t.name, t.dtype, tuple(opt_batch if size == "batch" else size for size in t.shape)) for t in side))
    return StageSpec(spec.name, *sides)
