"""A bundle to a plan: type every stage, check the typed graphs, compile each in a child process, write one file."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ...runtime.artefact.bundle import BundleDirectory
from ...runtime.artefact.engine_layers import layers_json
from ...runtime.artefact.manifest import BundleStage, PlanManifest
from ...runtime.artefact.operator_use import count_words
from ...runtime.certificate.known_faults import known_faults
from ...runtime.cuda.open_device import open_device
from ...runtime.errors import UsageError
from ...runtime.files import refuse_existing, whole_file
from ...runtime.tensorrt.rtx_targets import BUILT_FOR, why_no_fp8
from ..child.child import GIB, Progress
from ..child.scratch import scratch_beside
from ..operators.rewritten_bundle import rewrite_bundle
from ..parity.parity import ParityReport
from ..precision.calibrated import Calibration, read_calibration, require_calibration
from ..precision.rounded import SIMULATED
from .build_options import BuildOptions
from .built_stage import BuiltStage
from .constrained_stages import constrained_release, installed_tensorrt
from .plan_file import write_plan
from .prove_candidate import prove_candidate
from .stage_builder import StageBuilder


@dataclass(frozen=True)
class BuildReport:
    """The plan's manifest, what became of each stage, and how the graphs or engines compare with the golden tensors."""

    manifest: PlanManifest
    stages: tuple[BuiltStage, ...]
    parity: ParityReport | None


def build_plan(
    bundle_path: str | Path,
    path: str | Path,
    options: BuildOptions,
    *,
    force: bool = False,
    on_message: Callable[[str], None] | None = None,
    on_progress: Progress | None = None,
) -> BuildReport:
    """Build a plan.

    On a machine that can run TensorRT engines, they are then run on the golden tensors: a plan that does not give them is kept beside ``path``
    as ``x.rejected.plan``.

    FP16 stages are typed first and run once with ONNX Runtime against the golden tensors (``graph-only``: it computes partly in FP32),
    engines for ONNX Runtime are run as they are; FP16 is simulated in them (see ``rounded``). The plan appears only if that, the compiler
    and the precision check agree.

    Args:
        bundle_path: directory made by ``depth-export``.
        path: of the plan.
        options: see ``BuildOptions``.
        force: replace an existing file.
        on_message: called with remarks for people.
        on_progress: called with (what is done now, part done from 0 to 1).

    Raises:
        InputError, ChecksumError: if the bundle is not sound or the plan may not be written.
        UsageError: if the bundle does not allow what was asked for.
        AccuracyError, PrecisionError, BuildFailedError, OutOfMemoryError, EnvironmentMismatchError: see there.
    """
    path, on_progress, on_message = Path(path), on_progress or (lambda what, done: None), on_message or (lambda text: None)
    check_outputs(path, options, force)
    on_progress("checking the bundle", 0.0)
    bundle = BundleDirectory.open(bundle_path)
    for stage in bundle.manifest.stages:
        _check_stage(stage, options)
    if options.backend == "tensorrt" and options.precision in ("fp8", "int4"):  # before anyone calibrates for what it does not know
        version, target = installed_tensorrt(options.device)
        options.check_card(version, target, bool(constrained_release(version)))
    calibration = None if options.precision == "fp32" else require_calibration(bundle, options.precision) if options.planned else read_calibration(bundle)
    if calibration is not None:
        for verdict in calibration.plan.verdicts.values() if options.planned else ():
            on_message(verdict)
    if options.simulated:
        on_message(SIMULATED.format(options.precision.upper()))
    if options.backend == "tensorrt-rtx" and not options.targets:
        options = replace(options, targets=tuple(t for t in BUILT_FOR if options.precision != "fp8" or not why_no_fp8(t)))
    with scratch_beside(path) as scratch:
        if options.operators:
            bundle, calibration = _with_operators(bundle, calibration, options, scratch / "operators", on_message)
        builder = StageBuilder(bundle, options, scratch, on_progress, calibration)
        for fault in known_faults(options.backend, builder.version, builder.targets, options.precision):
            on_message(fault.words)
        parity = builder.type_stages()
        if parity is not None:
            on_message(parity.table())
        built = builder.build_all()
        if options.backend == "onnxruntime":
            parity = builder.check_engines([stage for stage, _, _ in built])
            if parity is not None:
                on_message(parity.table())
        on_progress("writing the plan", 0.95)
        manifest, sources = builder.plan(built)
        candidate = scratch / "candidate.plan"
        write_plan(candidate, manifest, sources)
        on_progress("running the plan's own case", 0.97)
        if options.backend != "onnxruntime" and manifest.goldens:
            prove_candidate(candidate, path, builder.constrained, on_message, options.device)
        if options.layers:
            with whole_file(options.layers, force) as part:
                part.write_text(layers_json(manifest, builder.layer_information(manifest)))
        with whole_file(path, force) as part:
            os.replace(candidate, part)
    on_progress("written", 1.0)
    return BuildReport(manifest, tuple(facts for _, _, facts in built), parity)


def check_outputs(path: Path, options: BuildOptions, force: bool) -> None:
    """Before any work: whether plan and layers may be written, and the GPU that they want is here.

    Raises:
        InputError: if one exists and ``force`` is False, or its folder cannot be written.
        UsageError: if both are one file.
        EnvironmentMismatchError: if there is no such GPU.
    """
    refuse_existing(path, force)
    if options.layers:
        if Path(options.layers).resolve() == path.resolve():
            raise UsageError(f"--layers and the plan are both {path}", wanted="two files", fix="another name for --layers, such as layers.json")
        refuse_existing(Path(options.layers), force)
    if options.backend == "tensorrt-rtx" and (options.device or options.layers):
        open_device(options.device).close()  # TensorRT-RTX compiles without a GPU, but only on one does an engine run or tell of its layers


def _check_stage(stage: BundleStage, options: BuildOptions) -> None:
    if stage.precision != "fp32":
        raise UsageError(f"stage {stage.spec.name} of the bundle is {stage.precision} already", wanted="an fp32 bundle", fix="build from the exported bundle")
    fixed = {tensor.shape[0] for tensor in stage.spec.inputs if tensor.shape and isinstance(tensor.shape[0], int)}
    if fixed and set(options.batch) - fixed:
        raise UsageError(f"stage {stage.spec.name} has the fixed batch {min(fixed)}", wanted=f"--batch {min(fixed)}")


def _with_operators(
    bundle: BundleDirectory, calibration: Calibration | None, options: BuildOptions, folder: Path, on_message: Callable[[str], None]
) -> tuple[BundleDirectory, Calibration | None]:
    rewritten = rewrite_bundle(bundle, options.operators, folder)
    on_message(f"our own operators: {count_words(rewritten.counts)}")
    return rewritten, calibration.without(rewritten.gone) if calibration else None


def summary(report: BuildReport, nbytes: int) -> str:
    """For people: one line per stage and the size of the plan."""
    lines = [f"{'stage':<12} {'engine MB':>9} {'weights MB':>10} {'layers':<22} {'activations MB':>14} {'seconds':>8} {'peak GiB':>8}"]
    for stage in report.stages:
        layers = ", ".join(f"{count} {kind}" for kind, count in sorted(stage.layers.items())) or "-"
        activations = f"{stage.activations_nbytes / 1e6:.1f}" if stage.activations_nbytes else "-"
        numbers = f"{activations:>14} {stage.seconds:>8.1f} {stage.peak_nbytes / GIB:>8.2f}"
        lines.append(f"{stage.name:<12} {stage.engine_nbytes / 1e6:>9.1f} {stage.weights_nbytes / 1e6:>10.1f} {layers:<22} {numbers}")
    lines += [f"{stage.name}: the engine has {stage.told}" for stage in report.stages if stage.told]
    for kind in sorted({kind for stage in report.stages for kind in stage.stored}):
        found, of = (sum(stage.stored[kind][place] for stage in report.stages if kind in stage.stored) for place in (0, 1))
        lines.append(f"{found} of {of} {kind} weights were found in the engines byte for byte")
    lines.append(f"plan: {nbytes / 1e6:.1f} MB")
    return "\n".join(lines)
