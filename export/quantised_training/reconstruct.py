"""Layer by layer, in closed form: the weights with which a quantised layer comes nearest to what the FP32 layer gives.

What a quantised layer reads is the FP32 tensor plus the errors of all rounding so far, that of its own input among them. Activations fill few directions of
the space of their channels, rounding fills all: least squares from what is really read to what FP32 gives (a Wiener filter for every layer) leaves out most
of what lies in directions that say nothing. Taken in running order, each layer also takes back what those before it did wrong. Layers are rebuilt one
after the other in Hubara et al. 2021 (AdaQuant, section 3.1) as well, by gradients; here how far a layer may go is decided on photos it was not fitted to. Then
its weights can be rounded so that they make up for each other (``compensated_rounding``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor

from ...calibration.quantisation.correct import bias_place
from ...calibration.quantisation.layer_rows import Geometry, geometry
from .compensated_rounding import compensated
from .operators import run_node
from .torch_graph import TorchGraph

HELD_NBYTES = 3 << 30
MOST_PLACES = 512  # of a window, drawn at random
WIDEST = 4096  # numbers that one output of a layer sums: the table of all their products must fit
STAY_NEAR = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # weights of the distance from the old weights, over the mean square of the input; the best is taken
LEAST_GAIN = 0.02  # part of the error that rounding otherwise must take away; for less, all weights of a layer are not moved
CHECKED = 4  # each so many-th photo judges them
Values = dict[str, Tensor]


def reconstruct(teacher: list[TorchGraph], student: list[TorchGraph], photos: list[list[Values]], compensate: bool) -> int:
    """Fit the quantised weights of a chain, and the biases behind them, in place.

    Convolutions, and products with one matrix of weights, are fitted if nobody else reads their weight. A layer keeps its weights where no others are better on
    the photos that judge.

    Args:
        teacher: the FP32 stages in running order.
        student: the same, quantised.
        photos: of each, the network's inputs for one or more windows; at least two photos.
        compensate: whether weights may make up for each other's rounding, where the photos that judge say that it helps.

    Returns:
        how many layers have other weights now.
    """
    if len(photos) < 2:
        raise ValueError(f"2 photos or more were wanted, got {len(photos)}")
    judging = [number % min(CHECKED, len(photos)) == 1 for number, views in enumerate(photos) for _ in views]
    theirs = [dict(view) for views in photos for view in views]
    ours = [dict(view) for view in theirs]
    with torch.no_grad():
        return sum(_stage(exact, rounded, theirs, ours, judging, compensate) for exact, rounded in zip(teacher, student, strict=True))


def at_once(stages: list[TorchGraph], view: Values) -> int:
    """Of how many photos, with their mirror images, every stage can be under way at once in FP32 and quantised."""
    values, most = dict(view), 1
    with torch.no_grad():
        for stage in stages:
            for _, held in stage.walk(values):
                most = max(most, sum(tensor.nbytes for name, tensor in held.items() if name not in stage.weights and name not in stage.constants))
            values |= {name: held[name] for name in stage.outputs}
    return max(2, HELD_NBYTES // (4 * most))


@dataclass(frozen=True)
class Layer:
    """A layer with a quantised weight.

    Args:
        node, attributes: that computes it.
        reads: how it reads its input.
        rounding: the QuantizeLinear node of its weight.
        weight: name of the constant.
        bias: name of the constant that is added to its output, or "".
        added: whether a node of its own adds it.
    """

    node: onnx.NodeProto
    attributes: dict
    reads: Geometry
    rounding: onnx.NodeProto
    weight: str
    bias: str
    added: bool


def layers_of(graph: TorchGraph) -> dict[str, Layer]:
    """The layers of a quantised graph that can be fitted, by the name of their output."""
    source = graph.graph

    def own(name: str) -> bool:
        return name in graph.weights and len(source.readers[name]) == 1

    found = {}
    for node, attributes in graph.nodes:
        back = source.maker.get(node.input[1]) if len(node.input) > 1 else None
        rounding = source.maker.get(back.input[0]) if back is not None and back.op_type == "DequantizeLinear" else None
        if rounding is None or not own(rounding.input[0]) or any(len(source.readers[name]) > 1 for name in (rounding.output[0], back.output[0])):
            continue
        reads = geometry(node, tuple(graph.weights[rounding.input[0]].shape))
        if reads is None or reads.kind == "pixels":
            continue
        adder, position = bias_place(source, node) or (node, len(node.input))
        bias = adder.input[position] if len(adder.input) > position and own(adder.input[position]) else ""
        found[node.output[0]] = Layer(node, attributes, reads, rounding, rounding.input[0], bias, adder.op_type == "Add")
    return found


def _stage(exact: TorchGraph, rounded: TorchGraph, theirs: list[Values], ours: list[Values], judging: list[bool], compensate: bool) -> int:
    """One stage of all windows side by side; what it makes is put to ``theirs`` and ``ours``."""
    layers, changed = layers_of(rounded), 0
    wanted = [_Targets(exact, values, set(layers)) for values in theirs]
    walks = [rounded.walk(values) for values in ours]
    values: list[Values] = []
    for steps in zip(*walks, strict=True):
        values = [held for _, held in steps]
        layer = layers.get(name := steps[0][0].output[0] if steps[0][0].output else "")
        if layer is None:
            continue
        targets = [found.of(name) for found in wanted]
        if all(target is not None and target.shape == held[name].shape for target, held in zip(targets, values, strict=True)):
            changed += _fit(rounded, layer, values, targets, judging, compensate)
    for mine, held, there, found in zip(ours, values, theirs, wanted, strict=True):
        mine.update({name: held[name] for name in rounded.outputs})
        there.update(found.outputs())
    return changed


class _Targets:
    """What an FP32 stage makes of one window, as far as it has been asked for."""

    def __init__(self, graph: TorchGraph, feeds: Values, wanted: set[str]):
        self._graph, self._wanted = graph, wanted
        self._walk: Iterator = graph.walk(feeds)
        self._values: Values = {}
        self._found: Values = {}

    def of(self, name: str) -> Tensor | None:
        """The tensor of that name, once; None if there is none."""
        while name not in self._found and self._step():
            pass
        return self._found.pop(name, None)

    def outputs(self) -> Values:
        while self._step():
            pass
        return {name: self._values[name] for name in self._graph.outputs}

    def _step(self) -> bool:
        if (step := next(self._walk, None)) is None:
            return False
        node, self._values = step
        self._found |= {name: self._values[name] for name in node.output if name in self._wanted}
        return True


def _fit(graph: TorchGraph, layer: Layer, values: list[Values], targets: list[Tensor], judging: list[bool], compensate: bool) -> bool:
    """Fit one layer and compute its output anew; whether its weights changed."""
    weight = graph.weights[layer.weight]
    rows = _Rows(layer, weight)
    if rows.width > WIDEST:
        return False
    parts = {judges: _Sums(rows, bool(layer.bias), weight.device) for judges in (False, True)}
    random = torch.Generator().manual_seed(0)
    for held, target, judges in zip(values, targets, judging, strict=True):
        parts[judges].add(*rows.of(held[layer.node.input[0]], target, random))
    before = rows.matrix(weight).double()
    tried = [before, *(parts[False].solve(before, near) for near in STAY_NEAR)]
    errors = [parts[True].error(found) for found in tried]
    best = min(range(len(errors)), key=errors.__getitem__)
    compensates = compensate and _gains(graph, layer, rows, tried[best], parts)
    everything = parts[False]
    everything.take_in(parts[True])
    found = everything.solve(before, STAY_NEAR[best - 1]) if best else before
    if compensates:
        found = _compensated(graph, layer, rows, found, everything)
    if best or compensates:
        weight.copy_(rows.shaped(found.float(), weight))
    stored, scale = graph.quantised(layer.rounding, weight)
    used = stored * scale
    bias = graph.weights[layer.bias] if layer.bias else None
    if bias is not None:
        needed = everything.bias(rows.matrix(used).double()).float()
        bias.copy_(bias + needed if layer.added else needed)
    for held in values:
        held[layer.node.input[1]] = used
        if bias is not None:
            held[layer.bias] = bias
        inputs = [held[name] if name else None for name in layer.node.input]
        (held[layer.node.output[0]],) = run_node(layer.node.op_type, inputs, layer.attributes, 1)
    return bool(best or compensates)


def _gains(graph: TorchGraph, layer: Layer, rows: _Rows, weights: Tensor, parts: dict[bool, _Sums]) -> bool:
    """Whether weights [G, D, O] that make up for each other's rounding are better than the nearest ones, on the photos that judge."""
    stored, scale = graph.quantised(layer.rounding, rows.shaped(weights.float(), graph.weights[layer.weight]))
    nearest, compensating = rows.matrix(stored * scale).double(), _compensated(graph, layer, rows, weights, parts[False])
    return parts[True].error(compensating) < (1 - LEAST_GAIN) * parts[True].error(nearest)


def _compensated(graph: TorchGraph, layer: Layer, rows: _Rows, weights: Tensor, sums: _Sums) -> Tensor:
    weight = rows.shaped(weights.float(), graph.weights[layer.weight])
    scale = graph.quantised(layer.rounding, weight)[1]
    return compensated(weights, rows.matrix(scale.expand_as(weight)), sums.products()[0], graph.form_of(layer.rounding))


class _Sums:
    """Sums over rows x [G, rows, D] and y [G, rows, O] from which least squares are solved; of what differs from the mean, where there is a bias."""

    def __init__(self, rows: _Rows, biased: bool, device: torch.device):
        self.biased, self.count = biased, 0
        sizes = {"xx": (rows.width, rows.width), "xy": (rows.width, rows.outputs), "yy": (rows.outputs,), "x": (rows.width,), "y": (rows.outputs,)}
        self.of = {name: torch.zeros(rows.groups, *size, dtype=torch.float64, device=device) for name, size in sizes.items()}

    def add(self, x: Tensor, y: Tensor) -> None:
        x, y = x.double(), y.double()  # sums of products in FP32 may have no root
        sums = {"xx": x.transpose(1, 2) @ x, "xy": x.transpose(1, 2) @ y, "yy": y.square().sum(1), "x": x.sum(1), "y": y.sum(1)}
        for name, value in sums.items():
            self.of[name] += value
        self.count += x.shape[1]

    def take_in(self, other: _Sums) -> None:
        """The rows of another too."""
        for name in self.of:
            self.of[name] += other.of[name]
        self.count += other.count

    def products(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of the inputs with each other [G, D, D], with the outputs [G, D, O], and the squares of those [G, O]."""
        xx, xy, yy = (self.of[name] for name in ("xx", "xy", "yy"))
        if not self.biased:
            return xx, xy, yy
        x, y = self.of["x"], self.of["y"]
        return xx - x[:, :, None] * x[:, None] / self.count, xy - x[:, :, None] * y[:, None] / self.count, yy - y.square() / self.count

    def solve(self, before: Tensor, near: float) -> Tensor:
        """The weights [G, D, O] with the least squared error plus ``near`` times the input's mean square times the squared distance from those before."""
        xx, xy, _ = self.products()
        keep = near * torch.clamp(xx.diagonal(dim1=1, dim2=2).mean(1), min=1e-30)[:, None, None]
        eye = torch.eye(xx.shape[1], dtype=xx.dtype, device=xx.device)
        return torch.cholesky_solve(xy + keep * before, torch.linalg.cholesky(xx + keep * eye))

    def error(self, weights: Tensor) -> float:
        """Squared error of all outputs."""
        xx, xy, yy = self.products()
        return float((weights * (xx @ weights - 2 * xy)).sum() + yy.sum())

    def bias(self, weights: Tensor) -> Tensor:
        """[G O] that leaves no mean error."""
        return ((self.of["y"] - (self.of["x"][:, None] @ weights)[:, 0]) / self.count).reshape(-1)


class _Rows:
    """A layer as products of rows with a matrix, [G, rows, D] times [G, D, O]; G: groups of a convolution."""

    def __init__(self, layer: Layer, weight: Tensor):
        self._reads, self._turned = layer.reads, bool(layer.attributes.get("transB", 0))
        self._convolves, self.groups = layer.reads.kind == "patches", layer.reads.groups
        self.width = layer.reads.width // self.groups
        self.outputs = weight.numel() // self.width // self.groups

    def of(self, x: Tensor, y: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Some rows of a layer's input and output."""
        if self._convolves:
            top, left, bottom, right = self._reads.pads
            padded = F.pad(x, (left, right, top, bottom))
            x = F.unfold(padded, self._reads.kernel, self._reads.dilations, 0, self._reads.strides).transpose(1, 2)  # [B, places, C k k]
            y = y.permute(0, 2, 3, 1)
        x, y = x.reshape(-1, self.groups, self.width), y.reshape(-1, self.groups, self.outputs)
        some = torch.randperm(len(x), generator=random)[:MOST_PLACES].to(x.device)
        return x[some].transpose(0, 1), y[some].transpose(0, 1)

    def matrix(self, weight: Tensor) -> Tensor:
        """[G, D, O]."""
        if self._convolves:
            return weight.reshape(self.groups, self.outputs, self.width).transpose(1, 2)
        return (weight.T if self._turned else weight)[None]

    def shaped(self, matrix: Tensor, weight: Tensor) -> Tensor:
        """The matrix in the shape of the weight."""
        if self._convolves:
            return matrix.transpose(1, 2).reshape(weight.shape)
        return matrix[0].T if self._turned else matrix[0]
