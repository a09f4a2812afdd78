"""The stages of a bundle on their way into a plan: typed, checked against the golden tensors, compiled in child processes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from ... import __version__
from ...runtime.artefact.bundle import BundleDirectory
from ...runtime.artefact.manifest import GOLDENS, Initializer, PlanManifest, PlanStage
from ...runtime.artefact.operator_use import OperatorUse
from ...runtime.artefact.spec import StageSpec, TensorSpec
from ...runtime.certificate.probes import PROBES
from ..child.child import Progress, default_limit_nbytes, run_child
from ..operators.plugin_graph import library_beside, write_plugin_graph
from ..operators.rewritten_bundle import RewrittenBundle
from ..operators.split import Piece, split_stage
from ..parity.parity import GRAPH_ONLY, ParityReport, Tolerances, measure_parity
from ..parity.rounding_probes import write_typed_probes
from ..precision.calibrated import Calibration, planned_boundaries, type_all_by_plan
from ..precision.rounded import write_rounded_stage
from ..precision.typed import TypedStage, boundary_types, type_stage
from .build_options import BuildOptions
from .built_stage import BuiltStage, with_fixed_batch
from .compile_requests import onnxruntime_request, plugin_facts, tensorrt_request
from .constrained_stages import ConstrainedStages, constrained_release, installed_tensorrt
from .goldens import collect_goldens, golden_tensors
from .kernel_stages import golden_cuts, kernel_stage
from .plan_file import file_facts
from .timing_cache_file import timing_cache_file

FP16_TOLERANCES = Tolerances(isolated_relative=5e-2, chained=2e-2)
INT8_TOLERANCES = Tolerances(isolated_relative=0.9, chained=0.2)  # catches a broken graph; the plan's evidence speaks for the depth


class StageBuilder:
    """The stages of one bundle on their way through a scratch folder beside the plan.

    Args:
        bundle: open; its stages are FP32.
        options: see there.
        scratch: an empty folder.
        on_progress: called with (what is done now, part done from 0 to 1).
        calibration: what the stages are typed by, or None.
        compare: hold typed graphs and engines against the golden tensors; off only where the depth is not looked at.
    """

    def __init__(
        self, bundle: BundleDirectory, options: BuildOptions, scratch: Path, on_progress: Progress, calibration: Calibration | None, compare: bool = True
    ):
        self.bundle, self.options, self.scratch, self.on_progress, self.calibration = bundle, options, scratch, on_progress, calibration
        self.manifest, self.compare = bundle.manifest, compare
        self.limit = options.limit_nbytes or default_limit_nbytes()
        plain = options.backend == "tensorrt"
        self.version, target = installed_tensorrt(options.device) if plain else ("", "")
        self.targets = ((target,) if target else ()) if plain else options.targets  # plain TensorRT compiles for the GPU that is here
        self._timing_cache = options.timing_cache or (timing_cache_file(self.version, target) if plain else "")
        self._quantised: dict[str, dict[str, str]] = {}  # stage -> of its quantised nodes, to what
        self._graphs: dict[str, tuple[Path, StageSpec, int, int]] = {}  # stage -> graph, spec, nodes in FP32, bytes of weights
        self._typed: dict[str, TypedStage] = {}
        self._graphs_case = scratch / "case.safetensors"  # what the typed graphs of a quantised plan give for the golden inputs
        self._probes: Path | None = None  # of the plan, where its own graphs were looked at
        self._keeps_case = options.planned and options.backend != "onnxruntime"
        self._cuts, self._cut_cases = bool(options.operators) and options.backend != "onnxruntime" and not options.plugins, []
        release = constrained_release(self.version) if plain else ""
        if plain:
            options.check_card(self.version, target, bool(release))
        self._constrained = ConstrainedStages(release, scratch / "lowered", options.precision) if release else None
        self._library = library_beside(options.plugins, scratch, self.version) if options.plugins else None

    def type_stages(self) -> ParityReport | None:
        """Make the graphs that the compiler reads; FP16 ones, and those for TensorRT 8, are checked against the golden tensors."""
        report = self._type_stages()
        lowered = None if self._constrained is None else self._lower_stages(self._constrained)
        return report or lowered

    def _lower_stages(self, constrained: ConstrainedStages) -> ParityReport | None:
        """TensorRT 8 reads graphs without types but with Q/DQ; the precision of each node is passed to it separately."""
        found, int8 = self.calibration, self.options.precision == "int8"
        plain = self.scratch / "plain"
        if int8:
            plain.mkdir()
            type_all_by_plan(self.bundle, found, plain, "int8", True, lambda what, done: self.on_progress(what, 0.2))
        for stage in self.manifest.stages:
            name, typed = stage.spec.name, self._typed.get(stage.spec.name)
            regions = found.regions(name, self.options.precision) if found and typed else ()
            fp32 = {node for region in regions if region.choice.precision in ("fp32", "bf16") for node in region.nodes} | set(typed.fp32 if typed else ())
            source = plain / f"{name}.typed.onnx" if int8 else self.bundle.path(stage.file)
            self.on_progress(f"{name}: lowering", 0.22)
            constrained.lower(source, stage.spec, typed.spec if typed else stage.spec, fp32, self._in(name, "int8"))
            graph, _, count, weights = self._graphs[name]
            self._graphs[name] = constrained.graph(name)[1], constrained.spec(name), count, weights
            if graph.parent == self.scratch:
                for file in (graph, Path(f"{graph}.data")):
                    file.unlink(missing_ok=True)
        if int8:
            shutil.rmtree(plain)
        return self._compare(
            INT8_TOLERANCES if int8 else Tolerances(), "", {s.spec.name: constrained.graph(s.spec.name) for s in self.manifest.stages}, False, 0.25
        )

    def _type_stages(self) -> ParityReport | None:
        stages, output = self.manifest.stages, self.manifest.contract.output.tensor
        if self.options.precision == "fp32":
            for stage in stages:
                graph = self.bundle.path(stage.file)
                data = Path(f"{graph}.data")
                self._graphs[stage.spec.name] = (graph, stage.spec, 0, data.stat().st_size if data.exists() else graph.stat().st_size)
            return None
        if self.options.simulated:
            return self._round_stages()
        if self.calibration is not None:
            return self._type_by_plan(self.calibration)
        types = boundary_types(self.manifest.specs(), output)
        for number, stage in enumerate(stages):
            self.on_progress(f"{stage.spec.name}: typing {self.options.precision}", 0.02 + 0.08 * number / len(stages))
            target = self.scratch / f"{stage.spec.name}.onnx"
            typed = self._typed[stage.spec.name] = type_stage(self.bundle.path(stage.file), target, stage.spec, islands=stage.fp32_islands, boundaries=types)
            self._graphs[stage.spec.name] = (target, typed.spec, len(typed.fp32), max(typed.weights_nbytes, target.stat().st_size))
        if self.options.cuda:
            return None  # the engines are these graphs, and are run against the golden tensors when they are finished
        return self._compare(FP16_TOLERANCES, GRAPH_ONLY, {name: (spec, graph) for name, (graph, spec, _, _) in self._graphs.items()}, False, 0.1)

    def _round_stages(self) -> None:
        """What ``type_stages`` does for FP16, FP8 and INT4 on ONNX Runtime; the finished engines are checked against the golden tensors."""
        found, stages = self.calibration, self.manifest.stages
        types = planned_boundaries(self.bundle, found) if found else boundary_types(self.manifest.specs(), self.manifest.contract.output.tensor)
        for number, stage in enumerate(stages):
            name = stage.spec.name
            self.on_progress(f"{name}: rounding to {self.options.precision}", 0.02 + 0.08 * number / len(stages))
            graph = self.bundle.path(stage.file)
            target = self.scratch / f"{name}.rounded.onnx"
            regions = found.regions(name, self.options.precision) if found else ()
            write_rounded_stage(graph, target, stage, regions, types, found.table if found else None, found.plan.also if found else ())
            data = Path(f"{target}.data")
            self._graphs[name] = (target, stage.spec, 0, data.stat().st_size if data.exists() else target.stat().st_size)

    def _type_by_plan(self, calibration: Calibration) -> ParityReport | None:
        """What ``type_stages`` does where a precision plan says more than ``fp16``."""
        precision, cuda = self.options.precision, self.options.cuda
        plain = self.options.backend == "onnxruntime" and not cuda
        found = type_all_by_plan(self.bundle, calibration, self.scratch, precision, plain, lambda what, done: self.on_progress(what, 0.02 + 0.08 * done))
        for name, stage in found.items():
            self._quantised[name], self._typed[name] = stage.quantised, stage.typed
            graph = stage.compared if cuda else stage.graph  # the CUDA provider has BF16 kernels for few operators: FP32 there
            self._graphs[name] = (graph, stage.typed.spec, len(stage.typed.fp32), max(stage.typed.weights_nbytes, graph.stat().st_size))
        if plain or cuda:
            return None
        tolerances = INT8_TOLERANCES if self.options.planned else FP16_TOLERANCES
        return self._compare(tolerances, GRAPH_ONLY, {name: (stage.typed.spec, stage.compared) for name, stage in found.items()}, False, 0.1)

    @property
    def constrained(self) -> bool:
        """Whether the compiler is a TensorRT 8."""
        return self._constrained is not None

    def build_all(self) -> list[tuple[PlanStage, dict[str, Path], BuiltStage]]:
        """Compile stage after stage, those with operators of ours in pieces where no plugin runs them."""
        built = []
        for number, stage in enumerate(self.manifest.stages):
            start, width = 0.3 + 0.6 * number / len(self.manifest.stages), 0.6 / len(self.manifest.stages)
            graph, spec, fp32, weights = self._graphs[stage.spec.name]
            pieces = self._pieces(stage.spec.name, graph, spec) if self._cuts else ()
            if not pieces:
                built.append(self._compile(stage.spec.name, spec.name, graph, spec, (fp32, weights), (start, width)))
                continue
            case = self.scratch / f"{spec.name}.cuts.safetensors"
            if self.compare and self.manifest.goldens and golden_cuts(self.bundle, stage, pieces, case, self.limit):
                self._cut_cases.append(case)
            for place, piece in enumerate(pieces):
                if piece.graph is None:
                    built.append(kernel_stage(piece, self._fixed(piece.spec), self.scratch))
                else:
                    part = (start + width * place / len(pieces), width / len(pieces))
                    built.append(self._compile(stage.spec.name, piece.spec.name, piece.graph, piece.spec, (0, piece.weights_nbytes), part))
            if self._constrained is not None:
                self._constrained.drop(stage.spec.name)
        return built

    def _pieces(self, name: str, graph: Path, spec: StageSpec) -> tuple[Piece, ...]:
        """A stage cut around our operators; empty if it has none."""
        if self._constrained is None:
            return split_stage(graph, spec)
        read = {tensor.name for one in self.manifest.specs() for tensor in one.inputs}
        return self._constrained.cut(name, {tensor.name for tensor in spec.outputs} - read)

    def _compile(
        self, stage: str, name: str, graph: Path, spec: StageSpec, counted: tuple[int, int], part: tuple[float, float]
    ) -> tuple[PlanStage, dict[str, Path], BuiltStage]:
        """Compile a stage, or a piece of one, in a child process; ``counted``: nodes in FP32, bytes of weights; ``part``: of all progress."""
        (fp32, weights), (start, width) = counted, part
        request, files = self._request(name, graph, stage)
        limits = {"limit_nbytes": self.limit, "device": self.options.device}
        found = run_child(request, what=f"stage {name}", on_progress=lambda what, done: self.on_progress(what, start + width * done), **limits)
        values, engine = found.values, files[f"engines/{Path(request['target']).name}"]
        self.version = values["version"]
        if graph.parent == self.scratch:
            Path(f"{graph}.data").unlink(missing_ok=True)
        if self._constrained is not None and name == stage:  # the parts of a stage share their weights
            self._constrained.drop(name)
        table = tuple(Initializer(TensorSpec(i["name"], i["dtype"], tuple(i["shape"])), i["offset"]) for i in values.get("initializers", ()))
        names = sorted(files)
        counts = values.get("counts")
        precision = "fp32" if self.options.precision == "fp16" and counts and not {"half", "untold"} & counts.keys() else self.options.precision
        if self.options.planned:
            lowest = self.calibration.plan.precision(stage)
            precision = lowest if self.options.backend != "onnxruntime" or self.options.simulated or lowest == "int8" else "fp32"
        entry = PlanStage(
            self._fixed(spec), next(n for n in names if files[n] == engine), precision, next((n for n in names if n.endswith(".weights")), ""), table
        )
        facts = BuiltStage.of(name, files.values(), weights, fp32, found)
        return entry, files, facts

    def _request(self, name: str, graph: Path, stage: str) -> tuple[dict[str, Any], dict[str, Path]]:
        """The request to the child, and which files it will make, by their names in the plan."""
        if self.options.backend == "onnxruntime":
            return onnxruntime_request(self.options, name, graph, self.scratch)
        target = self.scratch / f"{name}.engine"
        plain = self.options.backend == "tensorrt"
        small = {"workspace": self.options.workspace_nbytes, "timing_cache": self._timing_cache} if plain else {}
        small |= {"inspect": plain or bool(self.options.layers), "layers": str(self._told(name)) if self.options.layers else ""}
        if self._constrained is not None:
            request = self._constrained.request(name, target, self.options.batch, plugin_facts(self.options, self._library))
            return {**request, **small}, {f"engines/{name}.engine": target}
        graph = write_plugin_graph(graph) if self._library and stage in self.bundle.counts else graph
        request = tensorrt_request(self.options, name, graph, target, self._library, self._quantised.get(stage, {}))
        return {**request, **small}, {f"engines/{name}.engine": target}

    def _in(self, stage: str, low: str) -> set[str]:
        """The nodes of a stage that are quantised to ``int8``, ``fp8`` or ``int4``."""
        return {node for node, kind in self._quantised.get(stage, {}).items() if kind == low}

    def _told(self, name: str) -> Path:
        return self.scratch / f"{name}.layers.json"

    def layer_information(self, manifest: PlanManifest) -> dict[str, str]:
        """Stage of the plan -> what its engine tells of its layers, where ``options.layers`` asked for it; kernel stages tell nothing."""
        files = {stage.spec.name: self._told(stage.spec.name) for stage in manifest.stages}
        return {name: file.read_text() for name, file in files.items() if file.exists()}

    def _fixed(self, spec: StageSpec) -> StageSpec:
        return spec if self.options.backend == "onnxruntime" else with_fixed_batch(spec, self.options.batch)

    def check_engines(self, stages: list[PlanStage]) -> ParityReport | None:
        """Run finished ONNX Runtime engines against the golden tensors."""
        found = {stage.spec.name: (stage.spec, self.scratch / Path(stage.engine).name) for stage in stages}
        low = INT8_TOLERANCES if self.options.planned else FP16_TOLERANCES
        tolerances = Tolerances(isolated_relative=1e-3) if self.options.precision == "fp32" else low
        return self._compare(tolerances, GRAPH_ONLY if self.options.simulated or self.options.precision == "fp16" else "", found, True, 0.9)

    def _compare(self, tolerances: Tolerances, label: str, graphs: dict[str, tuple[StageSpec, Path]], engines: bool, at: float) -> ParityReport | None:
        if not self.compare or not self.manifest.goldens:
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
            save=self._graphs_case if self._keeps_case else None,
            on_progress=lambda what, done: self.on_progress(what, at + (0.05 if engines else 0.2) * done),
        )
        report.require()
        if label == GRAPH_ONLY and not engines and PROBES in self.manifest.files and self.options.backend != "onnxruntime" and not self._cuts:
            self._probes = self.scratch / "probes.bin"
            specs = tuple(spec for spec, _ in graphs.values())
            tensors = golden_tensors((*self._case(), golden), specs, self.options.precision, self.manifest.contract.output.tensor)
            write_typed_probes(graphs, tensors, self.bundle.path(PROBES), self._probes, lambda what, done: self.on_progress(what, at + 0.2))
        return report

    def _case(self) -> tuple[Path, ...]:
        return (self._graphs_case,) if self._keeps_case else ()

    def plan(self, built: list[tuple[PlanStage, dict[str, Path], BuiltStage]]) -> tuple[PlanManifest, dict[str, Path | bytes]]:
        """Manifest and sources of the plan, of what ``build_all`` made."""
        stages, files = [stage for stage, _, _ in built], {name: file for _, made, _ in built for name, file in made.items()}
        manifest, options = self.manifest, self.options
        sources: dict[str, Path | bytes] = {name: file for name, file in files.items() if file.stat().st_size or not name.endswith(".weights")}
        stages = [stage if stage.weights in sources else replace(stage, weights="", initializers=()) for stage in stages]
        if (text := manifest.contract.text) and text.tokenizer:
            sources[text.tokenizer] = self.bundle.path(text.tokenizer)
        goldens: tuple[Initializer, ...] = ()
        if self.compare and manifest.goldens:
            specs = tuple(stage.spec for stage in stages)
            files = (*self._case(), *self._cut_cases, self.bundle.path(manifest.goldens[0]))
            goldens, raw = collect_goldens(files, specs, options.precision, manifest.contract.output.tensor)
            sources[GOLDENS] = raw
            if PROBES in manifest.files and options.backend != "onnxruntime" and not self._cuts:
                sources[PROBES] = self._probes or self.bundle.path(PROBES)
        made = PlanManifest(
            manifest.network,
            manifest.contract,
            tuple(stages),
            {name: file_facts(file) for name, file in sources.items()},
            {**manifest.made_with, "fathom": __version__, options.backend: self.version},
            backend=options.backend,
            backend_version=self.version,
            targets=self.targets or (("cpu",) if options.backend == "onnxruntime" else ()),
            precision=options.precision,
            batch=options.batch,
            bundle_sha256=self.bundle.manifest_sha256,
            goldens=goldens,
            operators=self._operator_use(),
        )
        return made, sources

    def _operator_use(self) -> OperatorUse | None:
        if not isinstance(self.bundle, RewrittenBundle):
            return None
        how = "kernel-stages" if self._cuts else "plugins" if self._library else "bodies"
        return OperatorUse(self.bundle.counts, how, self._library)
