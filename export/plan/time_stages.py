"""Every stage in every precision against the clock, on the card of this machine: the costs that ``depth-calibrate`` decides by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...calibration.artefact import model_fingerprint
from ...calibration.graph.chain import prepare
from ...calibration.graph.stage_graph import StageGraph
from ...calibration.precision.precision_plan import Choice, PrecisionPlan, RegionPlan
from ...calibration.precision.rounding import stays_fp32
from ...calibration.quantisation.quantize import activation_inputs
from ...calibration.ranges.table import CalibrationTable, TensorRange
from ...calibration.search.stage_times import StageTimes
from ...runtime.artefact.bundle import BundleDirectory
from ...runtime.artefact.plan import PlanFile
from ...runtime.artefact.spec import DTYPES, StageSpec, network_inputs
from ...runtime.cuda.open_device import open_device
from ...runtime.errors import FathomError, UsageError
from ...runtime.tensorrt.backend import TensorRTBackend
from ..child.child import Progress
from ..child.scratch import scratch_beside
from ..precision.calibrated import Calibration
from .build_options import BuildOptions
from .plan_file import write_plan
from .stage_builder import StageBuilder

PRECISIONS = ("fp32", "fp16", "int8")
WARM_UP, RUNS = 10, 50
UNKNOWN = TensorRange(1.0, "max", 1.0)


def time_stages(bundle_path: str | Path, beside: Path, options: BuildOptions, *, on_message: Callable[[str], None], on_progress: Progress) -> StageTimes:
    """Build all stages in FP32, FP16 and INT8, one precision after the other, and run each engine on the GPU of this machine.

    INT8 is wherever it can be, with made-up ranges: an engine takes as long as with real ones. Its depth means nothing, so it is thrown
    away again.

    Args:
        bundle_path: directory made by ``depth-export``; need not be calibrated.
        beside: engines are built in a scratch folder beside this path.
        options: backend, batch and memory; precision and targets are chosen here.
        on_message: called with remarks for people.
        on_progress: called with (what is done now, part done from 0 to 1).

    Returns:
        the median of ``RUNS`` runs of every stage between two CUDA events; no INT8 where a stage has no layer for it.

    Raises:
        UsageError: if the backend is not TensorRT, or does not build for this card.
        EnvironmentMismatchError: if there is no card, or its driver or the backend's package is missing.
        InputError, ChecksumError, PrecisionError, BuildFailedError, OutOfMemoryError: see ``build_plan``.
    """
    if options.backend == "onnxruntime":
        raise UsageError("stages are timed as TensorRT engines on a card", wanted="--backend tensorrt or tensorrt-rtx")
    device = open_device(options.device)
    card, target = device.name, device.target
    device.close()
    options = replace(options, targets=(target,) if options.backend == "tensorrt-rtx" else ())
    bundle = BundleDirectory.open(bundle_path)
    everywhere = int8_everywhere(bundle)
    times: dict[str, dict[str, float]] = {stage.spec.name: {} for stage in bundle.manifest.stages}
    version = ""
    for place, precision in enumerate(PRECISIONS):
        calibration = everywhere if precision == "int8" else None

        def precision_progress(what: str, done: float, place: int = place, precision: str = precision) -> None:
            on_progress(f"{precision}: {what}", (place + done) / len(PRECISIONS))

        with scratch_beside(beside) as scratch:
            version = build_timed(bundle, replace(options, precision=precision), calibration, scratch, precision_progress)
            precision_progress("running", 0.95)
            found = run_timed(scratch / "timed.plan", options)
        for stage, ms in found.items():
            if precision != "int8" or everywhere.plan.precision(stage) == "int8":
                times[stage][precision] = round(ms, 4)
    bundle.close()
    on_message("\n".join(f"{stage}: " + ", ".join(f"{precision} {ms:.3g} ms" for precision, ms in found.items()) for stage, found in times.items()))
    return StageTimes(f"{card} ({target}), {options.backend} {version}, batch {options.batch[1]}", times, model_fingerprint(bundle.manifest))


def times_if_possible(bundle_path: Path, beside: Path, options: BuildOptions, *, on_message: Callable[[str], None], on_progress: Progress) -> StageTimes | None:
    """``time_stages`` where this machine can build and run the engines, else None, with a remark: a plan can be made without."""
    if options.backend == "onnxruntime":
        return None
    try:
        return time_stages(bundle_path, beside, options, on_message=on_message, on_progress=on_progress)
    except FathomError as error:  # no card, one that the backend does not build for, too little memory for the FP32 engines
        on_message(f"no engine can be timed here ({error.was}): what INT8 saves is modelled")
        return None


def int8_everywhere(bundle: BundleDirectory) -> Calibration:
    """A plan with INT8 in every layer that can have it, and made-up ranges: good for timing, and for nothing else."""
    regions, ranges = [], {}
    for stage in bundle.manifest.stages:
        graph, name = StageGraph.load(bundle.path(stage.file)), stage.spec.name
        prepare(graph)
        inputs, stays = activation_inputs(graph), stays_fp32(graph, stage.fp32_islands)
        able = tuple(node.name for node in graph.model.graph.node if node.name in inputs and node.name not in stays)
        if able:
            regions.append(RegionPlan(name, "(all)", "block", able, Choice("int8", "max"), "for timing", {}))
        ranges[name] = {node.input[place]: UNKNOWN for node in graph.model.graph.node if node.name in able for place in inputs[node.name]}
    model = model_fingerprint(bundle.manifest)
    table = CalibrationTable(model, {"kind": "none"}, "", 1, 1, ("Made for timing: no image was looked at.",), ranges)
    return Calibration(table, PrecisionPlan(model, {}, "", {}, tuple(regions), (), {}, (), ()))


def build_timed(bundle: BundleDirectory, options: BuildOptions, calibration: Calibration | None, scratch: Path, on_progress: Progress) -> str:
    """Write ``timed.plan``; returns the version of the backend."""
    builder = StageBuilder(bundle, options, scratch, on_progress, calibration, compare=False)
    builder.type_stages()
    manifest, sources = builder.plan(builder.build_all())
    write_plan(scratch / "timed.plan", manifest, sources)
    return manifest.backend_version


def run_timed(path: Path, options: BuildOptions) -> dict[str, float]:
    """Median milliseconds of every stage of a plan."""
    with PlanFile.open(path, verify=False) as plan:
        backend = TensorRTBackend(plan, options.device, graphs=False, kernels=False)
        try:
            inputs = _zeros(backend.stages, options.batch[1])
            backend.stage_times_ms(inputs, WARM_UP)
            return {stage: float(np.median(taken)) for stage, taken in backend.stage_times_ms(inputs, RUNS).items()}
        finally:
            backend.close()


def _zeros(stages: tuple[StageSpec, ...], batch: int) -> dict[str, np.ndarray]:
    outside = network_inputs(stages)
    return {name: np.zeros(tuple(batch if isinstance(size, str) else size for size in t.shape), DTYPES[t.dtype]) for name, t in outside.items()}
