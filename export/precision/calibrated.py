"""Typing by what ``depth-calibrate`` found: the precision plan and the calibration table of a bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ...calibration.calibrate import PLAN, TABLE, Settings, add_to_bundle, calibrate
from ...calibration.observation.images import Chosen
from ...calibration.precision.precision_plan import Choice, PrecisionPlan, RegionPlan, read_plan
from ...calibration.precision.quantised_stage import write_quantised_stage
from ...calibration.ranges.table import CalibrationTable, read_table
from ...calibration.report import report_lines
from ...runtime.artefact.bundle import BundleDirectory
from ...runtime.artefact.manifest import BundleStage
from ...runtime.artefact.spec import StageSpec
from ...runtime.errors import UsageError
from .typed import TypedStage, boundary_types, type_stage


@dataclass(frozen=True)
class Calibration:
    """What belongs to a calibrated bundle."""

    table: CalibrationTable
    plan: PrecisionPlan

    def regions(self, stage: str, precision: str) -> tuple[RegionPlan, ...]:
        """The regions of a stage; quantised ones become FP16 if only ``fp16`` was asked for."""
        half = Choice("fp16")
        only_fp16 = precision == "fp16"
        return tuple(
            RegionPlan(r.stage, r.path, r.kind, r.nodes, half, r.reason, r.evidence, r.macs) if only_fp16 and r.choice.quantised else r
            for r in self.plan.of_stage(stage)
        )

    def without(self, gone: dict[str, set[str]]) -> Calibration:
        """The same for graphs that lack some nodes of some stages."""
        regions = [(region, tuple(name for name in region.nodes if name not in gone.get(region.stage, ()))) for region in self.plan.regions]
        return Calibration(self.table, replace(self.plan, regions=tuple(replace(region, nodes=nodes) for region, nodes in regions if nodes)))


@dataclass(frozen=True)
class PlannedStage:
    """One stage typed by its plan.

    Args:
        graph: what the compiler reads.
        compared: what ONNX Runtime can run of it: the same, or with the BF16 parts in FP32.
        typed: what typing did.
        quantised: node -> ``int8``, ``fp8`` or ``int4``, of those that are quantised.
    """

    graph: Path
    compared: Path
    typed: TypedStage
    quantised: dict[str, str]


def type_all_by_plan(
    bundle: BundleDirectory, calibration: Calibration, folder: Path, precision: str, plain: bool, on_progress: Callable[[str, float], None]
) -> dict[str, PlannedStage]:
    """Type every stage of a bundle into ``folder``; see ``type_by_plan``.

    Args:
        plain: leave everything that is not quantised in FP32.
        on_progress: called with (what is done now, part done from 0 to 1).
    """
    types = None if plain else planned_boundaries(bundle, calibration)
    found = {}
    for number, stage in enumerate(bundle.manifest.stages):
        name = stage.spec.name
        on_progress(f"{name}: typing by the precision plan", number / len(bundle.manifest.stages))
        graph = compared = folder / f"{name}.typed.onnx"
        typed, quantised = type_by_plan(bundle, stage, calibration, graph, precision=precision, boundaries=types)
        if typed.nodes.get("bfloat16"):  # ONNX Runtime has no BF16 kernels on a CPU
            compared = folder / f"{name}.compared.onnx"
            type_by_plan(bundle, stage, calibration, compared, precision=precision, boundaries=types, bf16=False)
        found[name] = PlannedStage(graph, compared, typed, quantised)
    return found


def read_calibration(bundle: BundleDirectory) -> Calibration | None:
    """Plan and table of a bundle, or None if it was never calibrated.

    Raises:
        InputError: if they are broken or belong to another network.
    """
    if PLAN not in bundle.manifest.files or TABLE not in bundle.manifest.files:
        return None
    return Calibration(read_table(bundle.path(TABLE), bundle.manifest), read_plan(bundle.path(PLAN), bundle.manifest))


def require_calibration(bundle: BundleDirectory, precision: str = "int8") -> Calibration:
    """Plan and table of a bundle, which hold what ``precision`` names.

    Args:
        precision: ``int8``, ``fp8``, ``int4``, or ``""`` for whatever the plan holds.

    Raises:
        UsageError: if it was never calibrated, naming the command that does it, or its plan holds other numbers than were asked for.
        InputError: if they are broken or belong to another network.
    """
    found = read_calibration(bundle)
    if found is None:
        name = bundle.path_of_bundle
        raise UsageError(
            f"{name} was never calibrated, so nobody knows which parts of it survive {precision.upper() or 'fewer bits'}",
            wanted="a bundle with a calibration table and a precision plan",
            fix=f"depth-calibrate {name} --data nyu:FILE.mat (or pairs:DIR, images:DIR), then build again",
        )
    if not precision:
        return found
    held = {region.choice.precision for region in found.plan.regions if region.choice.quantised}
    others = sorted(held - {"int8"})
    if precision == "int8" and others:
        raise UsageError(f"the precision plan holds {' and '.join(others).upper()} too", fix=f"--precision {others[0]}, or calibrate without {others[0]}")
    if precision != "int8" and precision not in held:
        was = f"the precision plan holds no {precision.upper()}"
        raise UsageError(was, wanted=f"a bundle that was calibrated with --precisions fp32,fp16,{precision}", fix="calibrate again, or --precision int8")
    return found


def calibrate_bundle(
    path: Path, data: Chosen, settings: Settings, folder: Path, on_message: Callable[[str], None], on_progress: Callable[[str, float], None]
) -> None:
    """What ``depth-calibrate`` does, on a bundle that is about to be built.

    Args:
        path: of the bundle; table and plan are put into it.
        data: images to calibrate on.
        settings: see there.
        folder: for the journal.
        on_message: called with the warnings about the images and the report.
        on_progress: called with (what is done now, part done from 0 to 1).

    Raises:
        UsageError, InputError, AccuracyError, OutOfMemoryError: see ``calibrate``.
    """
    with BundleDirectory.open(path) as bundle:
        result = calibrate(bundle, data, settings, folder / "calibration", _Phases(on_progress), on_message)
        for warning in result.table.warnings:
            on_message(f"warning: {warning}")
        add_to_bundle(bundle, result)
    on_message("\n".join(report_lines(result)))


class _Phases:
    """Turns the steps of a calibration into one part done: images, pictures through the stages, regions, whole variants, the proof."""

    def __init__(self, on_progress: Callable[[str, float], None]):
        self._phases, self._tell, self._begun, self._done, self._what = 5, on_progress, 0, 0, ""

    def __call__(self, what: str, total: int) -> None:
        """One step of ``what`` is done, of ``total``."""
        if what != self._what:
            self._what, self._begun, self._done = what, self._begun + 1, 0
        self._done += 1
        self._tell(f"calibrating: {what}", min(1.0, (self._begun - 1 + self._done / max(total, 1)) / self._phases))


def planned_boundaries(bundle: BundleDirectory, calibration: Calibration) -> dict[str, str]:
    """dtype of the tensors between stages, as the plan wants them."""
    manifest = bundle.manifest
    return boundary_types(manifest.specs(), manifest.contract.output.tensor, calibration.plan.keep_fp32)


def type_by_plan(
    bundle: BundleDirectory,
    stage: BundleStage,
    calibration: Calibration,
    target: Path,
    *,
    precision: str,
    boundaries: dict[str, str] | None,
    bf16: bool = True,
) -> tuple[TypedStage, dict[str, str]]:
    """Write the typed form of a stage as its plan says; returns what typing did, and of quantised nodes to what (``int8``, ``fp8``, ``int4``).

    Args:
        target: the graph to write; its weights go to ``<target>.data``.
        precision: ``fp16``, or one of those that a plan decides about.
        boundaries: dtype of inputs and outputs; None leaves everything that is not quantised in FP32, for ONNX Runtime on a CPU, which has
            no kernels for fewer bits.
        bf16: False writes BF16 regions in FP32: ONNX Runtime cannot run them at all on a CPU.

    Raises:
        InputError: if plan, table and graph do not fit together.
        BuildFailedError: if the graph cannot be typed.
    """
    regions = calibration.regions(stage.spec.name, precision)
    wide = target if boundaries is None else target.with_name(f"{target.stem}.wide.onnx")
    done = write_quantised_stage(bundle.path(stage.file), wide, regions, calibration.table, stage.spec.name, calibration.plan.also)
    made = set(done.nodes)
    quantised = {name: region.choice.precision for region in regions for name in region.nodes if name in made}
    if boundaries is None:
        data = Path(f"{target}.data")
        nbytes = data.stat().st_size if data.exists() else 0
        return TypedStage(StageSpec(stage.spec.name, stage.spec.inputs, stage.spec.outputs), {}, 0, {}, nbytes), quantised
    held = {name: region.choice.precision for region in regions for name in region.nodes if region.choice.precision in ("fp32", "bf16")}
    held = {name: kind if bf16 or kind == "fp32" else "fp32" for name, kind in held.items()}
    typed = type_stage(wide, target, stage.spec, islands=stage.fp32_islands, boundaries=boundaries, precisions=held)
    for file in (wide, Path(f"{wide}.data")):
        file.unlink(missing_ok=True)
    return typed, quantised
