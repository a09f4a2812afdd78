"""The parity gate: does every stage give what PyTorch gives, alone and in the chain?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runtime.artefact.spec import StageSpec
from ...runtime.errors import AccuracyError
from ..child.child import Progress, run_child

ISOLATED_RELATIVE = 1e-4
CHAINED = 1e-3
GRAPH_ONLY = "graph-only"  # ONNX Runtime takes the sums of FP16 graphs in FP32 on the CPU (see half_sums): proves the graph, not the precision


@dataclass(frozen=True)
class Tolerances:
    """What may differ.

    Args:
        isolated_relative: largest |a - b| over largest |b|, of every tensor a stage makes from golden inputs (where only the chain was
            run: from its own).
        chained: mean |a - b| / |b| of the depth when each stage is fed by the one before it; for a mask, the share of pixels that change
            their class.
    """

    isolated_relative: float = ISOLATED_RELATIVE
    chained: float = CHAINED

    def __post_init__(self):
        for name in ("isolated_relative", "chained"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}: a number between 0 and 1 was wanted, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class ParityRow:
    """One tensor in one mode.

    Args:
        stage, mode, tensor: where; the mode is ``isolated`` or ``chained``.
        max_abs: largest absolute difference, in the tensor's own unit.
        rmse: root of the mean squared difference.
        relative: ``max_abs`` over the largest absolute golden value.
        problem: ``""``, or what is wrong with the tensor in itself.
    """

    stage: str
    mode: str
    tensor: str
    max_abs: float
    rmse: float
    relative: float
    problem: str


@dataclass(frozen=True)
class ParityReport:
    """All rows and the verdict.

    Args:
        rows: see ``ParityRow``.
        output_error, output_max_abs: of the network's output at the end of the chain.
        tolerances: what was allowed.
        reference, runner: the two sides (``PyTorch 2.13.0 FP32``, ``ONNX Runtime 1.31.1 CPU``).
        label: ``""``, or ``graph-only`` for FP16 graphs on the CPU.
        measure: what ``output_error`` is: ``abs_rel``, or ``changed_pixels`` for a mask.
    """

    rows: tuple[ParityRow, ...]
    output_error: float
    output_max_abs: float
    tolerances: Tolerances
    reference: str
    runner: str
    label: str = ""
    measure: str = "abs_rel"

    @property
    def failures(self) -> tuple[str, ...]:
        """Why it does not pass: tensors that are broken, then those over tolerance, each in running order, then the output; empty if it passes."""
        limits = self.tolerances
        judged = "isolated" if any(row.mode == "isolated" for row in self.rows) else "chained"
        found = [f"stage {row.stage}, {row.tensor} ({row.mode}): {row.problem}" for row in self.rows if row.problem]
        found += [
            f"stage {row.stage}, {row.tensor} ({judged}): relative error {row.relative:.2e}, at most {limits.isolated_relative:.0e}"
            for row in self.rows
            if row.mode == judged and not row.problem and not row.relative <= limits.isolated_relative
        ]
        if not self.output_error <= limits.chained:
            found.append(f"the output at the end of the chain: {self.measure} {self.output_error:.2e}, at most {limits.chained:.0e}")
        return tuple(found)

    def table(self) -> str:
        """For people: one line per tensor, isolated beside chained."""
        lines = [f"{'stage':<12} {'tensor':<14} {'mode':<9} {'max abs':>10} {'rmse':>10} {'relative':>10}"]
        for row in self.rows:
            lines.append(f"{row.stage:<12} {row.tensor:<14} {row.mode:<9} {row.max_abs:>10.3e} {row.rmse:>10.3e} {row.relative:>10.3e} {row.problem}".rstrip())
        label = f" ({self.label})" if self.label else ""
        sides = f"{self.runner} against {self.reference}{label}"
        lines.append(f"output, chained: {self.measure} {self.output_error:.3e}, max abs {self.output_max_abs:.3e}; {sides}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """For the bundle."""
        return {
            "passed": not self.failures,
            "reference": self.reference,
            "runner": self.runner,
            "label": self.label,
            "tolerances": {name: getattr(self.tolerances, name) for name in self.tolerances.__dataclass_fields__},
            "rows": [{name: getattr(row, name) for name in row.__dataclass_fields__} for row in self.rows],
            "depth": {self.measure: self.output_error, "max_abs": self.output_max_abs},
        }

    def require(self) -> None:
        """Pass or raise.

        Raises:
            AccuracyError: with the failures; the table is for the caller to print.
        """
        if failures := self.failures:
            more = f" (and {len(failures) - 3} more)" if len(failures) > 3 else ""
            raise AccuracyError(
                f"the stages do not give what {self.reference} gave: {'; '.join(failures[:3])}{more}",
                wanted=f"isolated {self.tolerances.isolated_relative:.0e}, chained {self.measure} {self.tolerances.chained:.0e}",
                fix="see the table for the first stage that differs; nothing was written",
            )


def measure_parity(
    stages: tuple[tuple[StageSpec, Path], ...],
    golden: Path,
    output: str,
    *,
    reference: str,
    tolerances: Tolerances | None = None,
    label: str = "",
    isolated: bool = True,
    engines: bool = False,
    save: Path | None = None,
    probes: Path | None = None,
    limit_nbytes: int = 0,
    on_progress: Progress | None = None,
) -> ParityReport:
    """Run all stages in a child process and compare them with the golden tensors.

    Args:
        stages: spec and graph of each, in running order.
        golden: safetensors file with inputs and every boundary tensor.
        output: name of the network's output tensor.
        reference: where the golden tensors come from, for the report.
        tolerances: the defaults are for FP32 against FP32.
        label: see ``ParityReport``.
        isolated: also run every stage on golden inputs; without it a forward pass is saved, and the chain alone must hold.
        engines: the graphs are ONNX Runtime engines, run as they will be run; otherwise with little memory.
        save: file for the tensors of the chained run.
        probes: file for what 1 % of every single weight does to its stage (see ``weight_probes``); FP32 graphs only.
        limit_nbytes: see ``run_child``.
        on_progress: see ``run_child``.

    Raises:
        BuildFailedError, OutOfMemoryError: if the child fails.
        AccuracyError: if a golden tensor is missing, not finite or constant. A report over tolerance is returned; call ``require()``.
    """
    request = {
        "task": "parity",
        "stages": [_stage_json(spec, file) for spec, file in stages],
        "golden": str(golden),
        "output": output,
        "engines": engines,
        "isolated": isolated,
        "save": str(save or ""),
        "probes": str(probes or ""),
    }
    found = run_child(request, what="parity", limit_nbytes=limit_nbytes, on_progress=on_progress).values
    rows = tuple(ParityRow(**row) for row in found["rows"])
    depth = found["depth"]
    measure = "changed_pixels" if "changed_pixels" in depth else "abs_rel"
    runner = f"ONNX Runtime {found['version']} CPU" + ("" if engines else ", long group norms summed in two steps")
    return ParityReport(rows, depth[measure], depth["max_abs"], tolerances or Tolerances(), reference, runner, label, measure)


def _stage_json(spec: StageSpec, file: Path) -> dict[str, Any]:
    sides = {side: [{"name": t.name, "dtype": t.dtype} for t in getattr(spec, side)] for side in ("inputs", "outputs")}
    return {"name": spec.name, "file": str(file), **sides}
