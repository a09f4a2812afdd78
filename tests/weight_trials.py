"""Engines with one wrong weight: the typed graphs of a bundle in ONNX Runtime, judged as a plan's certificate judges engines."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from fathom.export.onnxruntime.half_sums import sum_in_fp32
from fathom.export.parity.rounding_probes import widened, with_rounding
from fathom.export.plan.goldens import golden_tensors
from fathom.export.precision.calibrated import read_calibration, type_all_by_plan
from fathom.export.precision.typed import boundary_types, type_stage
from fathom.runtime.artefact.bundle import BundleDirectory
from fathom.runtime.certificate.comparison import difference
from fathom.runtime.certificate.probes import LESS, PROBES, TOGETHER, sample, unpack_probes
from fathom.runtime.certificate.tolerance import TOLERANCES


@dataclass(frozen=True)
class Judged:
    """What is said of one engine.

    Args:
        moved: how far its outputs are from those of the right engine, over the root mean square of the golden tensor; the largest of its outputs.
        size: whether the size or the scale of the error is over tolerance.
        suspect: the weight that it looks like, or None.
    """

    moved: float
    size: bool
    suspect: str | None

    @property
    def caught(self):
        return self.size or self.suspect is not None


class StageTrial:
    """One stage as an engine whose weights can be changed.

    Attributes:
        weights: names as the bundle has them.
        right: of the engine as it is.
    """

    def __init__(self, spec, graph, golden, probes, precision):
        self.spec, self._golden, self._probes, self._precision = spec, golden, probes, precision
        self._model = model = onnx.load(str(graph))
        arrays = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
        self._held = {
            name: f"{name}:scale" if f"{name}:scale" in arrays else name for name in (probes.weights if probes else ()) if name not in (TOGETHER, LESS)
        }
        self._held = {name: held for name, held in self._held.items() if held in arrays}
        self.weights = tuple(self._held)
        self._arrays = {name: arrays[held] for name, held in self._held.items()}
        changeable = onnx.ModelProto.FromString(model.SerializeToString())
        for name, held in self._held.items():
            kind = onnx.helper.np_dtype_to_tensor_dtype(self._arrays[name].dtype)
            changeable.graph.input.append(onnx.helper.make_tensor_value_info(held, kind, self._arrays[name].shape))
        self._session = opened(changeable)
        self._made = self.run({})
        self.right = self.judge({})

    def run(self, factors, inputs=None):
        """Outputs by name for golden inputs, or for these, with some weights multiplied (name -> factor)."""
        changed = {}
        for name, factor in factors.items():
            values = self._arrays[name]
            changed[self._held[name]] = np.asarray((values.astype(np.float32) * np.float32(factor)).astype(values.dtype))
        return self._run(self._session, {**self._golden, **(inputs or {})}, changed)

    def golden(self, name):
        """A golden tensor."""
        return self._golden[name]

    def _run(self, session, tensors, changed):
        kinds = {value.name: np.float32 if value.type == "tensor(float)" else None for value in session.get_inputs()}
        feeds = {tensor.name: np.ascontiguousarray(np.asarray(tensors[tensor.name], dtype=tensor.dtype), kinds[tensor.name]) for tensor in self.spec.inputs}
        names = [tensor.name for tensor in self.spec.outputs]
        return dict(zip(names, session.run(names, {**feeds, **changed}), strict=True))

    def other_compilers(self, count):
        """Yield what is said of right engines that round elsewhere: less and less joined, other operators joined, some weights rounded anew."""
        import onnxruntime

        levels = onnxruntime.GraphOptimizationLevel
        for level in (levels.ORT_DISABLE_ALL, levels.ORT_ENABLE_BASIC, levels.ORT_ENABLE_EXTENDED, levels.ORT_ENABLE_ALL):
            yield self._judge(self._run(opened(self._model, level), self._golden, {}))
        for seed in range(count if self._precision != "fp32" else 0):
            rng = np.random.default_rng([7, seed])
            yield self._judge(
                self._run(opened(widened(self._model, rng.choice([0.1, 0.3, 0.5, 0.8, 1.0]), rng, 0.125), levels.ORT_DISABLE_ALL), self._golden, {})
            )

    def judge(self, factors):
        """The engine with some weights multiplied (name -> factor)."""
        return self._judge(self.run(factors))

    def _judge(self, got):
        tolerance = TOLERANCES[self._precision]
        found = [difference(value, self._golden[name]) for name, value in got.items()]
        over = any(one.problem or not one.rms <= tolerance.rms or not abs(one.gain) <= tolerance.gain for one in found)
        names = [name for name, value in got.items() if value.dtype.kind == "f"]
        moved = [got[name].astype(np.float64) - self._made[name] for name in names]
        scale = [np.sqrt(np.mean(self._golden[name].astype(np.float64) ** 2)) for name in names]
        suspect = None
        if self._probes is not None and not over:
            suspect = self._probes.suspect(sample([got[name] for name in names], [self._golden[name] for name in names]), self._precision)
        far = max((float(np.sqrt(np.mean(one**2))) / size for one, size in zip(moved, scale, strict=True) if size), default=0.0)
        return Judged(far, bool(over), suspect.weight if suspect else None)


def opened(model, level=None):
    """A session of one thread; ``level``: of ONNX Runtime's own optimisation."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL if level is None else level
    sum_in_fp32(model)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def chained_from(trials, number, factors, output):
    """The network's output where stage ``number`` of a list of trials is given golden inputs and some weights are multiplied."""
    known = trials[number].run(factors)
    for trial in trials[number + 1 :]:
        known |= trial.run({}, {name: value for name, value in known.items() if name in {tensor.name for tensor in trial.spec.inputs}})
    return known.get(output)


def stage_trials(path, precision, folder):
    """Yield the name and the ``StageTrial`` of every stage of a bundle, typed as ``depth-build`` does it; INT8 by its calibration."""
    import onnxruntime

    with BundleDirectory.open(path) as bundle:
        manifest, folder = bundle.manifest, Path(folder)
        specs, output = manifest.specs(), manifest.contract.output.tensor
        probes = unpack_probes(bundle.path(PROBES).read_bytes()) if PROBES in manifest.files else {}
        graphs = {stage.spec.name: (stage.spec, bundle.path(stage.file)) for stage in manifest.stages}
        if precision == "fp16":
            types = boundary_types(specs, output)
            for stage in manifest.stages:
                target = folder / f"{stage.spec.name}.onnx"
                typed = type_stage(bundle.path(stage.file), target, stage.spec, islands=stage.fp32_islands, boundaries=types)
                graphs[stage.spec.name] = typed.spec, target
        if precision == "int8":
            found = type_all_by_plan(bundle, read_calibration(bundle), folder, "int8", False, lambda what, done: None)
            graphs = {name: (stage.typed.spec, stage.compared) for name, stage in found.items()}
        golden = golden_tensors((bundle.path(manifest.goldens[0]),), tuple(spec for spec, _ in graphs.values()), precision, output)
        if precision == "int8":  # as in a plan: what the typed graphs give
            for spec, graph in graphs.values():
                session = onnxruntime.InferenceSession(onnx.load(str(graph)).SerializeToString(), providers=["CPUExecutionProvider"])
                feeds = {tensor.name: np.ascontiguousarray(golden[tensor.name], dtype=tensor.dtype) for tensor in spec.inputs}
                golden.update(zip([tensor.name for tensor in spec.outputs], session.run([t.name for t in spec.outputs], feeds), strict=True))
        for name, (spec, graph) in graphs.items():
            if name in probes and precision != "fp32":
                inputs = {tensor.name: np.ascontiguousarray(golden[tensor.name], dtype=tensor.dtype) for tensor in spec.inputs}
                outputs = {tensor.name: golden[tensor.name] for tensor in spec.outputs if np.dtype(tensor.dtype).kind == "f"}
                probes[name] = with_rounding(onnxruntime, onnx.load(str(graph)), inputs, outputs, probes[name]) or probes[name]
            yield name, StageTrial(spec, graph, golden, probes.get(name), precision)
