"""What an operator saves by arithmetic: bytes that a stage moves through device memory with plain nodes and with the operator, and times at a card's peak.

    python -m fathom.export.operators.traffic evp/stages/bins.onnx evp/stages/vae.onnx

"Plain" is a compiler that fuses pointwise nodes into each other and into the softmax or the sum behind them, and nothing else: every other node reads
its inputs from memory and writes its output there. Caches, launches and tails are left out. No measurement: it bounds what one could show.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from ...calibration.search.cards import CARDS
from ...runtime.commands.command import run_command
from ...trt_plugins.functions import DOMAIN, default_attributes
from .operators import RULES, use_operators

TARGETS = ("h100", "rtx4090", "orin-agx")
ARITHMETIC = ("Abs", "Add", "Clip", "Div", "Erf", "Exp", "Log", "Max", "Min", "Mul", "Neg", "Pow", "Reciprocal", "Sqrt", "Sub")
ACTIVATIONS = ("Gelu", "LeakyRelu", "Relu", "Sigmoid", "Softplus", "Tanh")
POINTWISE = frozenset((*ARITHMETIC, *ACTIVATIONS, "Cast", "Equal", "Expand", "Greater", "Less", "Slice", "Split", "Where"))
VIEWS = frozenset(("Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"))  # the same bytes by another name
ABSORBING = frozenset(("Softmax", "ReduceMean", "ReduceSum"))  # the pointwise nodes before them are computed as they read
READS = {"InstanceNormalization": 2, "LayerNormalization": 2}  # statistics first, then the values again
PLAIN_NBYTES = {"BinsExpectation": 4, "GroupNormSilu": 2, "CrossAttention": 2}  # of a value: typing keeps the bins' region in FP32
KERNEL_NBYTES = 2
WHOLE_GROUP = 40960  # FP16 values of a group that group_norm_silu.cuh reads once
# FP32 operations a pixel, about: for each of 64 bins 9 to interpolate, 5 for the logit, 5 for the exponential and the two sums, and 19 to interpolate and pull
# a centre at 0.42 places of the middle grid; the four numbers' logarithms and the mode.
BIN_OPERATIONS = 2000


@dataclass(frozen=True)
class Saving:
    """One operator in one stage, all its places together, batch 1.

    Args:
        places: how many there are.
        plain_nbytes, kernel_nbytes: through device memory, without and with the operator.
        operations: of the kernel.
        precision: of these operations, as in ``calibration.search.cards``: FP16 are those of tensor cores.
    """

    places: int
    plain_nbytes: int
    kernel_nbytes: int
    operations: int
    precision: str = "fp32"

    def times_us(self, card: str) -> tuple[float, float]:
        """Microseconds at the peak rates of a card of ``calibration.search.cards``: plain (bytes alone), and the kernel (bytes or operations)."""
        rates = CARDS[card]
        plain, kernel = (1e3 * nbytes / rates.nbytes_per_ms for nbytes in (self.plain_nbytes, self.kernel_nbytes))
        return plain, max(kernel, 1e3 * self.operations / 2 / rates.macs_per_ms[self.precision])


def saving(model: onnx.ModelProto, operator: str) -> Saving | None:
    """What an operator saves in an exported stage (FP32, without operators); None where it has no place. The model is not changed."""
    fused = onnx.ModelProto.FromString(model.SerializeToString())
    places = use_operators(fused, (operator,))[operator]
    if not places:
        return None
    value_nbytes = PLAIN_NBYTES[operator]
    plain, rest, own = _Traffic(model, value_nbytes), _Traffic(fused, value_nbytes), _Traffic(fused, KERNEL_NBYTES)
    precision = "fp16" if operator == "CrossAttention" else "fp32"
    return Saving(places, plain.nbytes() - rest.nbytes() + rest.of_operators(), own.of_operators(), own.operations(), precision)


class _Traffic:
    """Bytes of a graph whose free dimension is 1."""

    def __init__(self, model: onnx.ModelProto, value_nbytes: int):
        graph, self._value_nbytes = model.graph, value_nbytes
        self._viewed: dict[str, str] = {}
        for node in graph.node:
            if node.op_type in VIEWS:
                self._viewed[node.output[0]] = self._viewed.get(node.input[0], node.input[0])
        self._nodes = [node for node in graph.node if node.op_type not in VIEWS]
        self._shapes, self._kinds = {}, {}
        for value in [*graph.value_info, *graph.input, *graph.output]:
            kind = value.type.tensor_type
            self._shapes[value.name], self._kinds[value.name] = [d.dim_value or 1 for d in kind.shape.dim], kind.elem_type
        for tensor in graph.initializer:
            self._shapes[tensor.name], self._kinds[tensor.name] = list(tensor.dims), tensor.data_type
        self._maker = {name: node for node in self._nodes for name in node.output}
        self._outputs = {self._viewed.get(value.name, value.name) for value in graph.output}

    def nbytes(self) -> int:
        """Of everything."""
        kept = {name for node in self._nodes if not self._fuses(node) for name in node.output} | self._outputs
        kept |= {name for node in self._nodes if not self._fuses(node) and node.op_type not in ABSORBING for name in self._inputs(node) if name in self._maker}
        total = sum(self._size(name) for name in kept)  # written
        for node in self._nodes:
            if not self._fuses(node) and node.op_type not in ABSORBING:
                total += self._reads(node)
            elif not kept.isdisjoint(node.output):
                total += sum(map(self._size, self._read(self._inputs(node), kept)))
        return total

    def of_operators(self) -> int:
        """Of the operators of ours alone."""
        return sum(self._reads(node) + sum(map(self._size, node.output)) for node in self._own())

    def operations(self) -> int:
        """Operations of the operators of ours, where they count beside their bytes."""
        total = 0
        for node in self._own():
            shape = self._shapes[node.input[0]]
            if node.op_type == "BinsExpectation":
                total += BIN_OPERATIONS * prod(shape[2:])
            elif node.op_type == "CrossAttention":
                total += 6 * prod(shape) * self._shapes[node.input[1]][3]  # scores, high and low part of the sum: a multiplication and an addition each
        return total

    def _own(self) -> Iterable[onnx.NodeProto]:
        return (node for node in self._nodes if node.domain == DOMAIN)

    def _inputs(self, node: onnx.NodeProto) -> list[str]:
        return [self._viewed.get(name, name) for name in node.input if name]

    def _fuses(self, node: onnx.NodeProto) -> bool:
        one_value = node.op_type in ABSORBING and node.op_type != "Softmax" and self._count(node.input[0]) == self._count(node.output[0])
        return not node.domain and (node.op_type in POINTWISE or one_value)  # a mean over one value is the value

    def _read(self, names: Iterable[str], kept: set[str]) -> set[str]:
        """Tensors in memory that pointwise nodes lead back to."""
        found, wanted, seen = set(), list(names), set()
        while wanted:
            name = wanted.pop()
            if name in seen:
                continue
            seen.add(name)
            if name in kept or name not in self._maker:
                found.add(name)
            else:
                wanted.extend(self._inputs(self._maker[name]))
        return found

    def _reads(self, node: onnx.NodeProto) -> int:
        sizes = [self._size(name) for name in node.input if name]
        times = READS.get(node.op_type, 1)
        if node.domain == DOMAIN and node.op_type == "GroupNormSilu":
            given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
            groups = (default_attributes("GroupNormSilu") | given)["groups"]
            times = 1 if self._count(node.input[0]) <= groups * WHOLE_GROUP else 2
        return times * sizes[0] + sum(sizes[1:])

    def _count(self, name: str) -> int:
        return prod(self._shapes[name])

    def _size(self, name: str) -> int:
        kind = self._kinds[name]
        return self._count(name) * (self._value_nbytes if kind == TensorProto.FLOAT else helper.tensor_dtype_to_np_dtype(kind).itemsize)


HEAD = "| stage | operator | places | MB plain | MB of the kernel | G operations | " + " | ".join(f"{CARDS[card].name}, us" for card in TARGETS) + " |"


def row(stage: str, operator: str, found: Saving) -> str:
    """A line of the table under ``HEAD``."""
    times = [" -> ".join(_short(time) for time in found.times_us(card)) for card in TARGETS]
    cells = [stage, operator, str(found.places), *(_short(n / 1e6) for n in (found.plain_nbytes, found.kernel_nbytes)), f"{found.operations / 1e9:.2g}"]
    return "| " + " | ".join([*cells, *times]) + " |"


def _short(number: float) -> str:
    return f"{number:.0f}" if number >= 1000 else f"{number:.3g}"


def main(argv: list[str] | None = None) -> int:
    """Print the table of some exported stages; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m fathom.export.operators.traffic", description=__doc__.splitlines()[0])
    parser.add_argument("stage", nargs="+", type=Path, help="graphs of a bundle, such as evp/stages/bins.onnx")
    return run_command(lambda: _print(parser.parse_args(argv).stage))


def _print(files: list[Path]) -> int:
    print(HEAD, "|" + "---|" * HEAD.count(" | ") + "---|", sep="\n")
    for file in files:
        model = onnx.load(str(file), load_external_data=False)
        for operator in RULES:
            if (found := saving(model, operator)) is not None:
                print(row(file.stem, operator, found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
