"""A stage graph that PyTorch runs and learns: its weights are tensors with gradients, its Q/DQ is straight-through."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from ...calibration.graph.stage_graph import StageGraph
from ...calibration.quantisation.correct import bias_place
from ...calibration.quantisation.formats import FORMATS, Format
from ...calibration.quantisation.quantize import QUANTISABLE
from ...calibration.quantisation.smooth import Balance
from .operators import run_node
from .straight_through import activation_scale, on_grid, weight_scales

BY_KIND = {form.kind: form for form in FORMATS.values()}
BELOW = 1 - 2.0**-16  # a scale that is an FP16 number times this is rounded up to it again, whatever a logarithm did to its last bit
SHAPES = (TensorProto.INT64, TensorProto.INT32)  # constants of these types stay on the CPU


def learnable(graph: StageGraph) -> set[str]:
    """Names of the constants that learn: weights and biases of convolutions and products, and scale and shift of layer norms."""
    found: set[str] = set()
    for node in graph.model.graph.node:
        if node.op_type in (*QUANTISABLE, "LayerNormalization"):
            found.update(node.input[1:])
            place = bias_place(graph, node) if node.op_type in QUANTISABLE else None
            if place is not None and len(place[0].input) > place[1]:
                found.add(place[0].input[place[1]])
    return {name for name in found if name in graph.constants and graph.constants[name].data_type == TensorProto.FLOAT}


class TorchGraph:
    """One stage.

    Args:
        graph: prepared (``chain.prepare``), its quantised weights in FP32 (``quantize`` with ``stored=False``).
        learned: names of the constants that get gradients.
        device: where to compute.
        balances: constants that learn to share factors per channel, as SmoothQuant does.

    Attributes:
        weights: those constants, by name.
        log_factors: of every balance the logarithms of its factors [C], 0 at first, with gradients.
        log_amax: by name of a quantised activation, the logarithm of the magnitude that becomes its format's greatest number; scalars with gradients.
        greatest: by name of a quantised activation, the greatest magnitude that was seen so far.
    """

    def __init__(self, graph: StageGraph, learned: Iterable[str] = (), device: torch.device | str = "cpu", balances: Sequence[Balance] = ()):
        self.inputs, self.outputs = graph.inputs, graph.outputs
        self._nodes = [(node, {a.name: helper.get_attribute_value(a) for a in node.attribute}) for node in graph.model.graph.node]
        self._last = {name: place for place, (node, _) in enumerate(self._nodes) for name in node.input}
        quantising = [(node, attributes) for node, attributes in self._nodes if node.op_type == "QuantizeLinear"]
        scales = {node.input[1] for node, _ in quantising}
        self._form: dict[str, Format] = {}  # by name of what QuantizeLinear makes
        self._balances = tuple(balances)
        self.log_factors = [torch.zeros(balance.channels, device=device, requires_grad=True) for balance in balances]
        learned = set(learned) | {name for balance in balances for name, _ in balance.divided}
        self.weights: dict[str, Tensor] = {}
        self._constants: dict[str, Tensor] = {}
        for name, tensor in graph.constants.items():
            if name in learned:
                self.weights[name] = torch.from_numpy(np.array(graph.array(name))).to(device).requires_grad_()
            elif name not in scales and tensor.data_type not in BY_KIND:
                values = torch.from_numpy(np.array(graph.array(name)))
                self._constants[name] = values if tensor.data_type in SHAPES else values.to(device)
        self.log_amax: dict[str, Tensor] = {}
        self.greatest: dict[str, Tensor] = {}
        for node, attributes in quantising:
            kind = graph.constants[node.input[2]].data_type if len(node.input) > 2 else attributes["output_dtype"]
            self._form[node.output[0]] = form = BY_KIND[kind]
            if node.input[0] not in graph.constants:
                amax = float(graph.array(node.input[1])) * form.greatest * BELOW
                self.log_amax[node.input[0]] = torch.tensor(amax, device=device).log_().requires_grad_()
                self.greatest[node.input[0]] = torch.zeros((), device=device)

    def balanced(self) -> dict[str, Tensor]:
        """The weights as they are computed with: divided and multiplied by the factors of their balances."""
        values = dict(self.weights)
        for balance, log_factors in zip(self._balances, self.log_factors, strict=True):
            for side, factors in ((balance.divided, torch.exp(-log_factors)), (balance.multiplied, torch.exp(log_factors))):
                for name, axis in side:
                    shape = [1] * values[name].ndim
                    shape[axis] = -1
                    values[name] = values[name] * factors.reshape(shape)
        return values

    def amax(self, name: str) -> float:
        """The magnitude of a quantised activation that becomes its format's greatest number, such that its scale is the one computed with here."""
        form = next(self._form[node.output[0]] for node, _ in self._nodes if node.op_type == "QuantizeLinear" and node.input[0] == name)
        return float(activation_scale(self.log_amax[name].detach(), form)) * form.greatest * BELOW

    def __call__(self, feeds: dict[str, Tensor], peaks: dict[str, float] | None = None) -> dict[str, Tensor]:
        """The outputs by name, for a dict that holds at least the inputs.

        Args:
            peaks: where given, takes in the greatest magnitude of every floating-point tensor.

        Raises:
            UsageError: see ``run_node``.
        """
        values = {name: feeds[name] for name in self.inputs} | self._constants | self.balanced()
        scales: dict[str, Tensor] = {}  # of what QuantizeLinear makes
        for place, (node, attributes) in enumerate(self._nodes):
            if node.op_type == "QuantizeLinear":
                made = (self._quantise(node, values[node.input[0]], attributes, scales),)
            elif node.op_type == "DequantizeLinear":
                made = (values[node.input[0]] * scales[node.input[0]],)
            elif node.op_type == "Constant" and "value" in attributes:
                made = (torch.from_numpy(np.array(numpy_helper.to_array(attributes["value"]))),)
            else:
                made = run_node(node.op_type, [values[name] if name else None for name in node.input], attributes, len(node.output))
            values.update(zip(node.output, made, strict=False))
            if peaks is not None:
                _look(node, made, peaks)
            for name in node.input:
                if self._last[name] == place and name not in self.outputs:
                    values.pop(name, None)
        return {name: values[name] for name in self.outputs}

    def _quantise(self, node: onnx.NodeProto, tensor: Tensor, attributes: dict, scales: dict[str, Tensor]) -> Tensor:
        name, target, form = node.input[0], node.output[0], self._form[node.output[0]]
        if name not in self.log_amax:
            scales[target] = weight_scales(tensor, attributes.get("axis"), form)
            return on_grid(tensor, scales[target], form)
        with torch.no_grad():
            self.greatest[name] = torch.maximum(self.greatest[name], tensor.abs().amax())
        scales[target] = activation_scale(self.log_amax[name], form)
        return on_grid(tensor, scales[target], form)


def _look(node: onnx.NodeProto, made: tuple[Tensor, ...], peaks: dict[str, float]) -> None:
    for name, tensor in zip(node.output, made, strict=False):
        if tensor.is_floating_point() and math.isfinite(peak := float(tensor.detach().abs().amax())):  # a mask of -inf is no magnitude
            peaks[name] = max(peaks.get(name, 0.0), peak)
