"""A bundle to a plan: type every stage, check the typed graphs, compile each in a child process, write one file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from .. import __version__
from ..runtime.bundle import BundleDirectory
from ..runtime.errors import PrecisionError, UsageError
from ..runtime.files import refuse_existing
from ..runtime.manifest import BundleStage, Initializer, PlanManifest, PlanStage
from ..runtime.spec import StageSpec, TensorSpec
from .build_options import BuildOptions
from .calibrated import Calibration, planned_boundaries, read_calibration, require_calibration, type_all_by_plan
from .child import GIB, Progress, default_limit_nbytes, run_child
from .parity import GRAPH_ONLY, ParityReport, Tolerances, measure_parity
from .plan_file import file_facts, write_plan
from .product_types import products_by_type
from .rounded import SIMULATED, write_rounded_stage
from .scratch import scratch_beside
from .tensorrt_build import TARGETS
from .typed import boundary_types, type_stage

FP16_TOLERANCES = Tolerances(isolated_relative=5e-2, chained=2e-2)
INT8_TOLERANCES = Tolerances(isolated_relative=0.9, chained=0.2)  # catches a broken graph; the plan's evidence speaks for the depth
MAX_ENGINE_RATIO, ENGINE_SLACK_NBYTES = 1.25, 64 << 20  # kernels of small networks outweigh their weights: 46 MB for a U-Net of 3 MB


@dataclass(frozen=True)
class BuiltStage:
    """What became of one stage.

    Args:
        name: of the stage.
        engine_nbytes, weights_nbytes: of the engine, and of the weights it was made from.
        layers: convolutions and matrix products by the type they really hold; empty for ONNX Runtime.
        fp32_nodes: how many nodes stay FP32 in an FP16 stage.
        activations_nbytes: device memory for intermediate results, as the compiler says; 0 if it does not.
        seconds, peak_nbytes: of the compiler's process.
    """

    name: str
    engine_nbytes: int
    weights_nbytes: int
    layers: dict[str, int]
    fp32_nodes: int
    activations_nbytes: int
    seconds: float
    peak_nbytes: int


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
    say: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> BuildReport:
    """Build a plan.

    FP16 stages are typed first and run once with ONNX Runtime against the golden tensors (``graph-only``: it computes partly in FP32),
    engines for ONNX Runtime are run as they are; FP16 is simulated in them (see ``rounded``). The plan appears only if that, the compiler
    and the precision check agree.

    Args:
        bundle_path: directory made by ``depth-export``.
        path: of the plan.
        options: see ``BuildOptions``.
        force: replace an existing file.
        say: told remarks for people.
        progress: told (what is done now, part done from 0 to 1).

    Raises:
        InputError, ChecksumError: if the bundle is not sound or the plan may not be written.
        UsageError: if the bundle does not allow what was asked for.
        AccuracyError, PrecisionError, BuildFailedError, OutOfMemoryError, EnvironmentMismatchError: see there.
    """
    path, tell, say = Path(path), progress or (lambda what, done: None), say or (lambda text: None)
    refuse_existing(path, force)
    tell("checking the bundle", 0.0)
    bundle = BundleDirectory.open(bundle_path)
    for stage in bundle.manifest.stages:
        _check_stage(stage, options)
    calibration = None if options.precision == "fp32" else require_calibration(bundle) if options.precision == "int8" else read_calibration(bundle)
    if calibration is not None:
        for verdict in calibration.plan.verdicts.values() if options.precision == "int8" else ():
            say(verdict)
    if options.backend == "onnxruntime" and options.precision == "fp16":
        say(SIMULATED)
    if options.backend == "tensorrt-rtx" and not options.targets:
        options = replace(options, targets=TARGETS)
    with scratch_beside(path) as scratch:
        builder = _Builder(bundle, options, scratch, tell, calibration)
        parity = builder.type_stages()
        if parity is not None:
            say(parity.table())
        built = [builder.build(stage, number) for number, stage in enumerate(bundle.manifest.stages)]
        if options.backend == "onnxruntime":
            parity = builder.check_engines([stage for stage, _, _ in built])
            if parity is not None:
                say(parity.table())
        tell("writing the plan", 0.95)
        manifest, sources = builder.plan([stage for stage, _, _ in built], {k: v for _, files, _ in built for k, v in files.items()})
        write_plan(path, manifest, sources, force)
    tell("written", 1.0)
    return BuildReport(manifest, tuple(facts for _, _, facts in built), parity)


def _check_stage(stage: BundleStage, options: BuildOptions) -> None:
    if stage.precision != "fp32":
        raise UsageError(f"stage {stage.spec.name} of the bundle is {stage.precision} already", wanted="an fp32 bundle", mend="build from the exported bundle")
    fixed = {tensor.shape[0] for tensor in stage.spec.inputs if tensor.shape and isinstance(tensor.shape[0], int)}
    if fixed and set(options.batch) - fixed:
        raise UsageError(f"stage {stage.spec.name} has the fixed batch {min(fixed)}", wanted=f"--batch {min(fixed)}")


class _Builder:
    """The stages of one bundle on their way through a scratch folder beside the plan."""

    def __init__(self, bundle: BundleDirectory, options: BuildOptions, scratch: Path, tell: Progress, calibration: Calibration | None):
        self.bundle, self.options, self.scratch, self.tell, self.calibration = bundle, options, scratch, tell, calibration
        self.manifest = bundle.manifest
        self.limit = options.limit_nbytes or default_limit_nbytes()
        self.version = ""
        self._int8: dict[str, tuple[str, ...]] = {}  # stage -> its nodes that compute in INT8
        self._graphs: dict[str, tuple[Path, StageSpec, int, int]] = {}  # stage -> graph, spec, nodes in FP32, bytes of weights

    def type_stages(self) -> ParityReport | None:
        """Make the graphs that the compiler reads; FP16 ones are checked against the golden tensors."""
        stages, output = self.manifest.stages, self.manifest.contract.output.tensor
        if self.options.precision == "fp32":
            for stage in stages:
                graph = self.bundle.path(stage.file)
                data = Path(f"{graph}.data")
                self._graphs[stage.spec.name] = (graph, stage.spec, 0, data.stat().st_size if data.exists() else graph.stat().st_size)
            return None
        if self.options.backend == "onnxruntime" and self.options.precision == "fp16":
            return self._round_stages()
        if self.calibration is not None:
            return self._type_by_plan(self.calibration)
        types = boundary_types(self.manifest.specs(), output)
        for number, stage in enumerate(stages):
            self.tell(f"{stage.spec.name}: typing {self.options.precision}", 0.02 + 0.08 * number / len(stages))
            target = self.scratch / f"{stage.spec.name}.onnx"
            typed = type_stage(self.bundle.path(stage.file), target, stage.spec, islands=stage.fp32_islands, boundaries=types)
            self._graphs[stage.spec.name] = (target, typed.spec, len(typed.fp32), max(typed.weights_nbytes, target.stat().st_size))
        return self._compare(FP16_TOLERANCES, GRAPH_ONLY, {name: (spec, graph) for name, (graph, spec, _, _) in self._graphs.items()}, False, 0.1)

    def _round_stages(self) -> None:
        """What ``type_stages`` does for FP16 on ONNX Runtime; the finished engines are checked against the golden tensors."""
        found, stages = self.calibration, self.manifest.stages
        types = planned_boundaries(self.bundle, found) if found else boundary_types(self.manifest.specs(), self.manifest.contract.output.tensor)
        for number, stage in enumerate(stages):
            name = stage.spec.name
            self.tell(f"{name}: rounding to fp16", 0.02 + 0.08 * number / len(stages))
            graph = self.bundle.path(stage.file)
            target = self.scratch / f"{name}.rounded.onnx"
            write_rounded_stage(graph, target, stage, found.regions(name, "fp16") if found else (), types)
            data = Path(f"{target}.data")
            self._graphs[name] = (target, stage.spec, 0, data.stat().st_size if data.exists() else target.stat().st_size)

    def _type_by_plan(self, calibration: Calibration) -> ParityReport | None:
        """What ``type_stages`` does where a precision plan says more than ``fp16``."""
        precision, plain = self.options.precision, self.options.backend == "onnxruntime"
        found = type_all_by_plan(self.bundle, calibration, self.scratch, precision, plain, lambda what, done: self.tell(what, 0.02 + 0.08 * done))
        for name, stage in found.items():
            self._int8[name] = stage.int8
            self._graphs[name] = (stage.graph, stage.typed.spec, len(stage.typed.fp32), max(stage.typed.weights_nbytes, stage.graph.stat().st_size))
        if plain:
            return None
        tolerances = INT8_TOLERANCES if precision == "int8" else FP16_TOLERANCES
        return self._compare(tolerances, GRAPH_ONLY, {name: (stage.typed.spec, stage.compared) for name, stage in found.items()}, False, 0.1)

    def build(self, stage: BundleStage, number: int) -> tuple[PlanStage, dict[str, Path], BuiltStage]:
        """Compile one stage in a child process."""
        name = stage.spec.name
        graph, spec, fp32, weights = self._graphs[name]
        start, width = 0.3 + 0.6 * number / len(self.manifest.stages), 0.6 / len(self.manifest.stages)
        request, files = self._request(name, graph)
        found = run_child(request, what=f"stage {name}", limit_nbytes=self.limit, progress=lambda what, done: self.tell(what, start + width * done))
        values, engine = found.values, files[f"engines/{Path(request['target']).name}"]
        self.version = values["version"]
        self._check_size(name, engine.stat().st_size, weights)
        if graph.parent == self.scratch:
            Path(f"{graph}.data").unlink(missing_ok=True)
        table = tuple(Initializer(TensorSpec(i["name"], i["dtype"], tuple(i["shape"])), i["offset"]) for i in values.get("initializers", ()))
        names = sorted(files)
        precision = "fp32" if self.options.precision == "fp16" and values.get("counts") and not values["counts"].get("half") else self.options.precision
        if self.options.precision == "int8":
            lowest = self.calibration.plan.precision(name)
            precision = lowest if self.options.backend != "onnxruntime" or lowest == "int8" else "fp32"
        entry = PlanStage(
            self._bind(spec), next(n for n in names if files[n] == engine), precision, next((n for n in names if n.endswith(".weights")), ""), table
        )
        facts = BuiltStage(
            name,
            sum(file.stat().st_size for file in files.values()),
            weights,
            values.get("counts", {}),
            fp32,
            values.get("activations_nbytes", 0),
            found.seconds,
            found.peak_nbytes,
        )
        return entry, files, facts

    def _request(self, name: str, graph: Path) -> tuple[dict[str, Any], dict[str, Path]]:
        """What the child is asked to do, and which files it will make, by their names in the plan."""
        if self.options.backend == "onnxruntime":
            folder = self.scratch / f"{name}.scratch"
            folder.mkdir()
            made = {f"engines/{name}.onnx": self.scratch / f"{name}.onnx", f"engines/{name}.weights": self.scratch / f"{name}.weights"}
            target, weights = (str(made[f"engines/{name}{suffix}"]) for suffix in (".onnx", ".weights"))
            return {"task": "onnxruntime", "stage": name, "source": str(graph), "target": target, "weights": weights, "scratch": str(folder)}, made
        target = self.scratch / f"{name}.engine"
        products = products_by_type(graph)
        request = {
            "task": "tensorrt",
            "stage": name,
            "backend": self.options.backend,
            "source": str(graph),
            "target": str(target),
            "targets": list(self.options.targets),
            "batch": list(self.options.batch),
            "precision": self.options.precision,
            "half": products.get(onnx.TensorProto.FLOAT16, []),
            "full": products.get(onnx.TensorProto.FLOAT, []),
            "brain": products.get(onnx.TensorProto.BFLOAT16, []),
            "int8": sorted({layer for kind in products.values() for layer in kind} & set(self._int8.get(name, ()))),
        }
        return request, {f"engines/{name}.engine": target}

    def _check_size(self, name: str, engine: int, weights: int) -> None:
        if self.options.precision in ("fp16", "int8") and self.options.backend != "onnxruntime" and engine > MAX_ENGINE_RATIO * weights + ENGINE_SLACK_NBYTES:
            raise PrecisionError(
                f"stage {name}: the engine has {engine / 1e6:.0f} MB for {weights / 1e6:.0f} MB of typed weights: some are stored in more bits",
                wanted=f"at most {MAX_ENGINE_RATIO} times the weights",
                mend="report it with the version of the backend",
            )

    def _bind(self, spec: StageSpec) -> StageSpec:
        """The spec with the batch that a TensorRT engine fixes; ONNX Runtime engines keep it free."""
        least, usual, greatest = self.options.batch
        if self.options.backend == "onnxruntime" or least != greatest:
            return spec
        sides = []
        for side in (spec.inputs, spec.outputs):
            sides.append(tuple(TensorSpec(t.name, t.dtype, tuple(usual if size == "batch" else size for size in t.shape)) for t in side))
        return StageSpec(spec.name, *sides)

    def check_engines(self, stages: list[PlanStage]) -> ParityReport | None:
        """Run finished ONNX Runtime engines against the golden tensors."""
        found = {stage.spec.name: (stage.spec, self.scratch / Path(stage.engine).name) for stage in stages}
        tolerances = {"int8": INT8_TOLERANCES, "fp16": FP16_TOLERANCES}.get(self.options.precision, Tolerances(isolated_relative=1e-3))
        return self._compare(tolerances, GRAPH_ONLY if self.options.precision == "fp16" else "", found, True, 0.9)

    def _compare(self, tolerances: Tolerances, label: str, graphs: dict[str, tuple[StageSpec, Path]], engines: bool, at: float) -> ParityReport | None:
        if not self.manifest.goldens:
            return None
        golden = self.bundle.path(self.manifest.goldens[0])
        report = measure_parity(
            tuple(graphs[stage.spec.name] for stage in self.manifest.stages),
            golden,
            self.manifest.contract.output.tensor,
            reference=self.manifest.parity.get("reference", "the golden tensors"),
            tolerances=tolerances,
            label=label,
            isolated=False,  # the bundle's gate did that; what is new here are the types and the engines
            engines=engines,
            progress=lambda what, done: self.tell(what, at + (0.05 if engines else 0.2) * done),
        )
        report.require()
        return report

    def plan(self, stages: list[PlanStage], files: dict[str, Path]) -> tuple[PlanManifest, dict[str, Path]]:
        """Manifest and sources of the plan."""
        manifest, options = self.manifest, self.options
        sources = {name: file for name, file in files.items() if file.stat().st_size or not name.endswith(".weights")}
        stages = [stage if stage.weights in sources else replace(stage, weights="", initializers=()) for stage in stages]
        if text := manifest.contract.text:
            sources[text.tokenizer] = self.bundle.path(text.tokenizer)
        made = PlanManifest(
            manifest.network,
            manifest.contract,
            tuple(stages),
            {name: file_facts(file) for name, file in sources.items()},
            {**manifest.made_with, "fathom": __version__, options.backend: self.version},
            backend=options.backend,
            backend_version=self.version,
            targets=("cpu",) if options.backend == "onnxruntime" else options.targets,
            precision=options.precision,
            batch=options.batch,
            bundle_sha256=self.bundle.manifest_sha256,
        )
        return made, sources


def summary(report: BuildReport, nbytes: int) -> str:
    """For people: one line per stage and the size of the plan."""
    lines = [f"{'stage':<12} {'engine MB':>9} {'weights MB':>10} {'layers':<22} {'activations MB':>14} {'seconds':>8} {'peak GiB':>8}"]
    for stage in report.stages:
        layers = ", ".join(f"{count} {kind}" for kind, count in sorted(stage.layers.items())) or "-"
        activations = f"{stage.activations_nbytes / 1e6:.1f}" if stage.activations_nbytes else "-"
        numbers = f"{activations:>14} {stage.seconds:>8.1f} {stage.peak_nbytes / GIB:>8.2f}"
        lines.append(f"{stage.name:<12} {stage.engine_nbytes / 1e6:>9.1f} {stage.weights_nbytes / 1e6:>10.1f} {layers:<22} {numbers}")
    lines.append(f"plan: {nbytes / 1e6:.1f} MB")
    return "\n".join(lines)
