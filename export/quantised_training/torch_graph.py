"""A stage graph that PyTorch runs and learns: its weights are tensors with gradients, its Q/DQ is straight-through."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from ...calibration.graph.stage_graph import StageGraph
from ...calibration.quantisation.correct import bias_place
from ...calibration.quantisation.formats import FORMATS, Format
from ...calibration.quantisation.quantize import QUANTISABLE
from .operators import run_node
from .straight_through import on_grid, weight_scales

BY_KIND = {form.kind: form for form in FORMATS.values()}
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

    Attributes:
        graph: what it was made of.
        nodes: in running order, with their attributes by name.
        weights: those constants, by name.
        constants: the others.
    """

    def __init__(self, graph: StageGraph, learned: Iterable[str] = (), device: torch.device | str = "cpu"):
        self.graph, self.inputs, self.outputs = graph, graph.inputs, graph.outputs
        self.nodes = [(node, {a.name: helper.get_attribute_value(a) for a in node.attribute}) for node in graph.model.graph.node]
        self._last = {name: place for place, (node, _) in enumerate(self.nodes) for name in node.input}
        quantising = [(node, attributes) for node, attributes in self.nodes if node.op_type == "QuantizeLinear"]
        scales = {node.input[1] for node, _ in quantising}
        self._form: dict[str, Format] = {}  # by name of what QuantizeLinear makes
        self._axis = {node.output[0]: attributes.get("axis") for node, attributes in quantising}
        learned = set(learned)
        self.weights: dict[str, Tensor] = {}
        self.constants: dict[str, Tensor] = {}
        for name, tensor in graph.constants.items():
            if name in learned:
                self.weights[name] = torch.from_numpy(np.array(graph.array(name))).to(device).requires_grad_()
            elif name not in scales and tensor.data_type not in BY_KIND:
                values = torch.from_numpy(np.array(graph.array(name)))
                self.constants[name] = values if tensor.data_type in SHAPES else values.to(device)
        self._scales: dict[str, Tensor] = {}  # of quantised activations, by name of what QuantizeLinear makes
        for node, attributes in quantising:
            kind = graph.constants[node.input[2]].data_type if len(node.input) > 2 else attributes["output_dtype"]
            self._form[node.output[0]] = BY_KIND[kind]
            if node.input[0] not in graph.constants:
                self._scales[node.output[0]] = torch.tensor(float(graph.array(node.input[1])), device=device)

    def copied_weights(self) -> dict[str, Tensor]:
        """The weights as they are now."""
        return {name: tensor.detach().clone() for name, tensor in self.weights.items()}

    def set_weights(self, values: dict[str, Tensor]) -> None:
        """Put other values into the weights."""
        with torch.no_grad():
            for name, tensor in self.weights.items():
                tensor.copy_(values[name])

    def __call__(self, feeds: dict[str, Tensor], peaks: dict[str, float] | None = None) -> dict[str, Tensor]:
        """The outputs by name, for a dict that holds at least the inputs.

        Args:
            peaks: where given, takes in the greatest magnitude of every floating-point tensor.

        Raises:
            UsageError: see ``run_node``.
        """
        values: dict[str, Tensor] = {}
        for node, values in self.walk(feeds):
            if peaks is not None:
                _look(node, values, peaks)
        return {name: values[name] for name in self.outputs}

    def walk(self, feeds: dict[str, Tensor]) -> Iterator[tuple[onnx.NodeProto, dict[str, Tensor]]]:
        """Run one node after the other.

        Yields:
            every node when it has run, and by name the tensors that are still wanted, which may be replaced; after the last one the outputs are there.
        """
        values = {name: feeds[name] for name in self.inputs} | self.constants | self.weights
        scales: dict[str, Tensor] = {}  # of what QuantizeLinear makes
        for place, (node, attributes) in enumerate(self.nodes):
            if node.op_type == "QuantizeLinear":
                values[node.output[0]], scales[node.output[0]] = self.quantised(node, values[node.input[0]])
            elif node.op_type == "DequantizeLinear":
                values[node.output[0]] = values[node.input[0]] * scales[node.input[0]]
            elif node.op_type == "Constant" and "value" in attributes:
                values[node.output[0]] = torch.from_numpy(np.array(numpy_helper.to_array(attributes["value"])))
            else:
                made = run_node(node.op_type, [values[name] if name else None for name in node.input], attributes, len(node.output))
                values.update(zip(node.output, made, strict=False))
            yield node, values
            for name in node.input:
                if self._last[name] == place and name not in self.outputs:
                    values.pop(name, None)

    def form_of(self, node: onnx.NodeProto) -> Format:
        """The format that a QuantizeLinear node stores."""
        return self._form[node.output[0]]

    def quantised(self, node: onnx.NodeProto, tensor: Tensor) -> tuple[Tensor, Tensor]:
        """What a QuantizeLinear node stores of a tensor, and its scale: of a weight found anew, as typing finds it."""
        target = node.output[0]
        form, scale = self._form[target], self._scales.get(target)
        if scale is None:
            scale = weight_scales(tensor, self._axis[target], form)
        return on_grid(tensor, scale, form), scale


def _look(node: onnx.NodeProto, values: dict[str, Tensor], peaks: dict[str, float]) -> None:
    for name in node.output:
        tensor = values.get(name)  # an optional output may be left out
        if tensor is not None and tensor.is_floating_point() and math.isfinite(peak := float(tensor.detach().abs().amax())):  # a mask of -inf is no magnitude
            peaks[name] = max(peaks.get(name, 0.0), peak)
