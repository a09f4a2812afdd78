"""What 1 % of every single weight does to the outputs of its stage: the lines that ``runtime.certificate.probes`` looks along."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ...calibration.search.cost import macs
from ...runtime.certificate.probes import LESS, MOST_WEIGHTS, STEP, TOGETHER, StageProbes, sample
from ...runtime.errors import BuildFailedError, tells_of_no_memory
from ...runtime.onnxruntime.optimisers import EXACT_INT8
from ...runtime.onnxruntime.threads import threads_asked
from ..graph.inner_graphs import inner_graphs
from ..onnxruntime.build import refusal

MOST_MACS = 3 * 10**11  # for all runs of a stage: tens of seconds
MOST_NBYTES = 256 << 20  # of a stage's weights: several copies are in memory
SEGMENTS = 6
NOISES, NOISE = 8, 2.0**-11  # share of itself that rounding takes from a weight at most


def probe_stage(ort: Any, file: Path, inputs: dict[str, np.ndarray], outputs: list[str]) -> StageProbes | None:
    """Try every weight of a stage; None if that takes too long or too much memory, or its graph has branches or loops.

    A weight is tried on the part of the graph behind it; what comes before is computed once.

    Args:
        ort: the package ``onnxruntime``.
        file: the FP32 graph, its weights beside it.
        inputs: golden, by name.
        outputs: names of the outputs that are kept, in the order of the stage's spec.

    Raises:
        OutOfMemoryError: if memory runs out.
    """
    data = Path(f"{file}.data")
    if file.stat().st_size + (data.stat().st_size if data.exists() else 0) > MOST_NBYTES:
        return None
    outline = onnx.load(str(file), load_external_data=False)
    names = _weights(outline)
    costs = _costs(outline)
    if not names or not outputs or len(names) + NOISES > MOST_WEIGHTS or sum(costs) * (len(names) + NOISES) > MOST_MACS:
        return None
    if any(inner_graphs(node) for node in outline.graph.node) or (not any(costs) and len(outline.graph.node) > 1 and _has_products(outline)):
        return None
    try:
        return _probe(_Parts(ort, onnx.load(str(file)), costs, inputs, outputs), names, outputs)
    except BuildFailedError:
        return None  # a foreign graph may want its constants to be constant; without these lines its plan is proved by size and scale alone


def _probe(parts: _Parts, names: list[str], outputs: list[str]) -> StageProbes | None:
    golden = [parts.known[name] for name in outputs]
    lines: list[np.ndarray] = []
    kept: dict[str, np.ndarray] = {}
    for weights, run in parts.segments(names):
        for name, values in weights.items():
            if (line := _line(run({name: values * np.float32(1 + STEP)}), golden)) is not None:
                lines.append(line)
                kept[name] = values
    if not kept:
        return None
    run, rng = parts.runner(0, list(kept)), np.random.default_rng(0)
    changes = [{name: values * np.float32(1 + step) for name, values in kept.items()} for step in (STEP, -STEP)]
    changes += [{name: _rounded(values, rng) for name, values in kept.items()} for _ in range(NOISES)]
    more = [_line(run(one), golden) for one in changes]
    if any(line is None for line in more):
        return None
    return StageProbes.of((*kept, TOGETHER, LESS), np.stack(lines + more))


def _line(got: list[np.ndarray] | None, golden: list[np.ndarray]) -> np.ndarray | None:
    """The difference as it is kept; None if ONNX Runtime did not take the change, or the shapes or the finiteness of the outputs hang on it."""
    if got is None or any(value.shape != true.shape or not np.isfinite(value).all() for value, true in zip(got, golden, strict=True)):
        return None
    return sample(got, golden)


def _is_constant(values: np.ndarray) -> bool:
    """Whether a tensor is a single number of a formula, which FP16 holds exactly, and no learned one."""
    with np.errstate(over="ignore"):
        return values.size == 1 and bool((values.astype(np.float16).astype(np.float32) == values).all())


def _rounded(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each number as far off as FP16 may round it; single ones as they are."""
    return values if values.size == 1 else np.float32(values * (1 + NOISE * rng.uniform(-1, 1, values.shape)))


def _weights(model: onnx.ModelProto) -> list[str]:
    """Names of the floating-point constants that nodes compute with; sizes and factors of a resize are none."""
    sizes = {name for node in model.graph.node if node.op_type in ("Resize", "Upsample") for name in node.input[1:]}
    return [item.name for item in model.graph.initializer if item.data_type == TensorProto.FLOAT and item.name not in sizes]


def _costs(model: onnx.ModelProto) -> list[int]:
    """Multiply-adds of each node, for a batch of one."""
    values = _shaped(model)
    if len(values) < len(model.graph.node):
        values = _shaped(onnx.shape_inference.infer_shapes(model))
    shapes: dict[str, tuple[int, ...] | None] = {v.name: tuple(d.dim_value or 1 for d in v.type.tensor_type.shape.dim) for v in values}
    shapes.update({item.name: tuple(item.dims) for item in model.graph.initializer})
    return [macs(node, shapes) for node in model.graph.node]


def _shaped(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The tensors whose shapes a graph tells: some that were put in later have a type alone."""
    return [v for v in (*model.graph.value_info, *model.graph.input, *model.graph.output) if v.type.tensor_type.HasField("shape")]


def _has_products(model: onnx.ModelProto) -> bool:
    return any(node.op_type in ("Conv", "ConvTranspose", "MatMul", "Gemm") for node in model.graph.node)


class _Parts:
    """A stage as a row of suffixes of its graph, each fed with what the nodes before it make.

    Attributes:
        known: tensors by name, with the weights as they are: inputs, outputs, and what passes from part to part.
    """

    def __init__(self, ort: Any, model: onnx.ModelProto, costs: list[int], inputs: dict[str, np.ndarray], outputs: list[str]):
        self._ort, self._model, self._outputs = ort, model, outputs
        self._arrays = {item.name: item for item in model.graph.initializer}
        whole, total, reached = sum(costs), 0, 0
        self._starts = [0]
        for place, cost in enumerate(costs):
            if total * SEGMENTS >= whole * (reached + 1) and place > self._starts[-1]:
                self._starts.append(place)
                reached = total * SEGMENTS // max(whole, 1)
            total += cost
        self._makers = {name: place for place, node in enumerate(model.graph.node) for name in node.output if name}
        self.known = dict(inputs)
        wanted = list(dict.fromkeys([*outputs, *(name for start in self._starts for name in self._crossing(start))]))
        session = self._session(0, [], wanted)
        self.known.update(zip(wanted, session.run(wanted, self._feeds(session)), strict=True))

    def segments(self, names: list[str]) -> Iterator[tuple[dict[str, np.ndarray], Callable[..., Any]]]:
        """The weights of each part, and what runs the graph from there on with some of them replaced. It returns the stage's
        outputs, or None if ONNX Runtime takes no other value for them. Not tried are weights of zeros, and the single numbers of formulas (1, 0.5, -10000)."""
        uses: dict[str, int] = {}
        for place, node in enumerate(self._model.graph.node):
            for name in node.input:
                uses.setdefault(name, place)
        for start, end in zip(self._starts, [*self._starts[1:], len(self._model.graph.node)], strict=True):
            arrays = {name: numpy_helper.to_array(self._arrays[name]) for name in names if start <= uses.get(name, -1) < end}
            arrays = {name: values for name, values in arrays.items() if values.any() and not _is_constant(values)}
            if arrays:
                yield arrays, self.runner(start, list(arrays))

    def runner(self, start: int, names: list[str]) -> Callable[[dict[str, np.ndarray]], list[np.ndarray] | None]:
        """See ``segments``.

        Args:
            start: number of the node that is computed first.
            names: of the weights that may be replaced.
        """
        made = [name for name in self._outputs if self._makers.get(name, -1) >= start]
        session = self._session(start, names, made)
        feeds = self._feeds(session)

        def run(replaced: dict[str, np.ndarray]) -> list[np.ndarray] | None:
            try:
                found = dict(zip(made, session.run(made, {**feeds, **{name: np.asarray(value) for name, value in replaced.items()}}), strict=True))
            except Exception as error:  # onnxruntime raises its own kinds, which share no base class
                if tells_of_no_memory(error):
                    raise refusal("ONNX Runtime cannot run part of a graph", error) from error
                return None
            return [found.get(name, self.known[name]) for name in self._outputs]

        return run

    def _crossing(self, start: int) -> list[str]:
        """Tensors that nodes before ``start`` make and others read."""
        after = [*(name for node in self._model.graph.node[start:] for name in node.input)]
        return [name for name in dict.fromkeys(after) if self._makers.get(name, len(self._model.graph.node)) < start]

    def _session(self, start: int, names: list[str], outputs: list[str]) -> Any:
        """The graph from a node on; the weights ``names`` can be fed."""
        graph = onnx.GraphProto(name="part")
        graph.node.extend(self._model.graph.node[start:])
        read = {name for node in graph.node for name in node.input}
        graph.initializer.extend(item for item in self._model.graph.initializer if item.name in read)
        for value in self._model.graph.input:
            if value.name in read and value.name not in self._arrays:
                graph.input.append(value)
        for name in self._crossing(start):
            kind = helper.np_dtype_to_tensor_dtype(self.known[name].dtype)
            graph.input.append(helper.make_tensor_value_info(name, kind, self.known[name].shape))
        graph.input.extend(helper.make_tensor_value_info(name, self._arrays[name].data_type, self._arrays[name].dims) for name in names)
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        model = helper.make_model(graph, opset_imports=self._model.opset_import, ir_version=self._model.ir_version)
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = threads_asked()
        options.log_severity_level = 4
        options.add_session_config_entry(*EXACT_INT8)
        try:
            return self._ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise refusal("ONNX Runtime refuses part of a graph", error) from error

    def _feeds(self, session: Any) -> dict[str, np.ndarray]:
        return {value.name: self.known[value.name] for value in session.get_inputs() if value.name in self.known}
