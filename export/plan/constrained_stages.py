"""The stages of a plan for TensorRT 8.5 or 8.6: lowered for its parser, the precision of every node listed beside the graph."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import onnx

from ...calibration.precision.fp32_rules import MOVING
from ...runtime.artefact.spec import StageSpec, TensorSpec
from ...runtime.tensorrt.adapters.releases import tier_of
from ...trt_plugins.functions import DOMAIN
from ..child.child import run_child
from ..graph.product_types import PRODUCTS
from ..lowering.lowering import LoweredStage, lower_stage
from ..operators.plugin_graph import write_plugin_graph
from ..operators.split import Piece, split_stage
from ..operators.typed_cuts import type_pieces

EPILOGUES = ("Relu", "LeakyRelu", "Elu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Add", "Mul", "BatchNormalization")  # fuse into a product
NOT_COMPUTED = (*MOVING, "Cast", "Shape", "QuantizeLinear", "DequantizeLinear")  # they move numbers: no precision of theirs can be lost


def installed_tensorrt(device: int = 0) -> tuple[str, str]:
    """Version of the TensorRT that engines are built with here, and compute capability (``sm87``) of the GPU that it builds for; empty if
    none can be asked, and the compiler says then what it lacks.

    Args:
        device: number of the GPU.

    Raises:
        EnvironmentMismatchError: if it cannot be loaded, or there is no GPU of that number.
    """
    found = run_child({"task": "tensorrt-version", "device": device}, what="looking for TensorRT").values
    return found["version"], found["target"]


def constrained_release(version: str) -> str:
    """``8.5`` or ``8.6`` if a TensorRT is of these; an empty string if it takes typed graphs.

    Raises:
        EnvironmentMismatchError: if it is of no tier that is known.
    """
    tier = tier_of(version)
    return "" if tier.strongly_typed else tier.name


class ConstrainedStages:
    """Lowered graphs in a folder, and what their compiler is asked to do.

    Args:
        release: ``8.5`` or ``8.6``.
        folder: for the graphs; made if it is not there.
        precision: of the plan.
    """

    def __init__(self, release: str, folder: Path, precision: str):
        self._release, self._folder, self._precision = release, folder, precision
        self._stages: dict[str, tuple[LoweredStage, StageSpec, dict[str, str]]] = {}
        self._pieces: dict[str, tuple[Path, StageSpec, dict[str, str]]] = {}  # parts of stages that are engines of their own

    def lower(self, source: Path, spec: StageSpec, typed: StageSpec, fp32: set[str], int8: set[str]) -> None:
        """Write the graph of one stage.

        Args:
            source: FP32, with Q/DQ where INT8 is wanted.
            spec, typed: of the stage in FP32, and with the types that the plan wants at its boundary.
            fp32, int8: names of the nodes that the plan wants in them; all others are FP16, unless the plan is FP32.

        Raises:
            BuildFailedError: see ``lower_stage``.
        """
        folder = self._folder / spec.name
        folder.mkdir(parents=True)
        lowered = lower_stage(source, folder, spec, self._release)
        kinds, graph = {}, onnx.load(str(lowered.graph), load_external_data=False).graph
        for node in graph.node:
            origin = lowered.origin.get(node.name, node.name)
            wide = self._precision == "fp32" or node.name in lowered.fp32 or origin in fp32
            kinds[node.name] = "int8" if origin in int8 else "fp32" if wide else "fp16"
        kinds.update(dict.fromkeys(_epilogues(graph, kinds), "free"))
        self._stages[spec.name] = lowered, _boundary(lowered.spec, typed), kinds

    def graph(self, name: str) -> tuple[StageSpec, Path]:
        """A stage's graph and its own spec, for ONNX Runtime."""
        return self._stages[name][0].spec, self._stages[name][0].graph

    def spec(self, name: str) -> StageSpec:
        """What the engine of a stage takes and makes."""
        return self._stages[name][1]

    def cut(self, name: str, unread: Collection[str]) -> tuple[Piece, ...]:
        """A stage cut around our operators, with the types that the plan wants at the cuts; empty for a stage without operators.

        Args:
            unread: outputs that no stage reads.

        Raises:
            BuildFailedError: see ``split_stage`` and ``type_pieces``.
        """
        lowered, spec, kinds = self._stages[name]
        pieces = split_stage(lowered.graph, spec)
        if not pieces:
            return ()
        operators = {node.name for node in onnx.load(str(lowered.graph), load_external_data=False).graph.node if node.domain == DOMAIN}
        pieces = type_pieces(pieces, spec, all(kinds[operator] == "fp16" for operator in operators), unread)
        for piece in pieces:
            if piece.graph is not None:
                nodes = onnx.load(str(piece.graph), load_external_data=False).graph.node
                self._pieces[piece.spec.name] = piece.graph, piece.spec, {node.name: kinds[node.name] for node in nodes}
        return pieces

    def request(self, name: str, target: Path, batch: tuple[int, int, int], plugins: dict[str, Any] | None = None) -> dict[str, Any]:
        """Of a stage, or of a part of one; see ``constrained_build.build_constrained_engine``."""
        source, spec, kinds = self._pieces[name] if name in self._pieces else (self.graph(name)[1], *self._stages[name][1:])
        graph = onnx.load(str(source), load_external_data=False).graph
        ops, sides = {node.name: node.op_type for node in graph.node}, (*graph.value_info, *graph.input, *graph.output)
        floats = {value.name for value in sides if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
        computed = {node.name for node in graph.node if node.op_type not in NOT_COMPUTED and not floats.isdisjoint((*node.input, *node.output))}
        operators = [node.name for node in graph.node if node.domain == DOMAIN]
        return {
            "task": "tensorrt8",
            "stage": name,
            "source": str(write_plugin_graph(source) if operators else source),
            "operators": operators,
            "plugins": plugins if operators else None,
            "target": str(target),
            "batch": list(batch),
            "precision": self._precision,
            "nodes": list(kinds.items()),
            "products": [name for name, op in ops.items() if op in PRODUCTS],
            "exact": [name for name in ops if kinds[name] == "fp32" and name in computed],
            "half": [tensor.name for tensor in spec.inputs + spec.outputs if tensor.dtype == "float16"],
        }

    def drop(self, name: str) -> None:
        """The graph of a stage that is compiled is not needed any more."""
        shutil.rmtree(self._folder / name)


def _epilogues(graph: onnx.GraphProto, kinds: dict[str, str]) -> set[str]:
    """FP16 nodes that work on nothing but what an INT8 product makes: its kernel does them as well, and cannot while they are held to FP16."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = set()
    for node in graph.node:
        while kinds[node.name] == "int8" or node.name in found:
            following = readers.get(node.output[0], [])
            if len(following) != 1 or following[0].op_type not in EPILOGUES or kinds[following[0].name] != "fp16":
                break
            node = following[0]
            found.add(node.name)
    return found


def _boundary(lowered: StageSpec, typed: StageSpec) -> StageSpec:
    """Types as the plan wants them, but INT32 for INT64."""
    sides = []
    for narrow, side in ((lowered.inputs, typed.inputs), (lowered.outputs, typed.outputs)):
        sides.append(tuple(TensorSpec(t.name, n.dtype if t.dtype == "int64" else t.dtype, t.shape) for n, t in zip(narrow, side, strict=True)))
    return StageSpec(typed.name, *sides)
