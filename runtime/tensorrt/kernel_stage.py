"""A kernel stage: one of our own kernels between two engines, with the interface of an engine.

Its file in the plan, ``<stage>.kernel.json``, names the operator and its parameters. TensorRT-RTX takes no plugins, so there this is the
only way an operator of ours runs inside a network.
"""

from __future__ import annotations

import json
import math
from typing import Any

from ..artefact.spec import StageSpec, TensorSpec, fields
from ..cuda.resources import Stream
from ..errors import InputError
from ..kernels.device_kernels import DeviceKernels
from ..kernels.operators import launch_bins_expectation
from ..sequences import zip_equal

SUFFIX = ".kernel.json"
PARAMETERS = ("alpha", "least_temperature", "greatest_temperature")


class KernelStage:
    """See ``engine.Engine``, whose attributes and methods these are.

    Raises:
        InputError: if the file is not one of a kernel stage, or the stage's tensors are not the operator's.
    """

    activation_nbytes = 0

    def __init__(self, kernels: DeviceKernels, spec: StageSpec, raw: memoryview):
        self.spec, self.adapter, self._kernels = spec, NoAdapter(), kernels
        try:
            data = json.loads(bytes(raw))
            operator, *values = fields(data, "kernel stage", operator=str, **dict.fromkeys(PARAMETERS, (int, float)))
            if operator != "BinsExpectation" or not all(map(math.isfinite, values)) or values[0] < 0 or not 0 < values[1] < values[2]:
                raise ValueError(f"{operator} with {dict(zip_equal(PARAMETERS, values))}")
            self._constants = (float(values[0]), float(values[1]), float(values[2]))
            _check_tensors(spec)
        except ValueError as error:
            wanted = "BinsExpectation of three tensors of four dimensions and one type to one tensor of that type, with its three parameters"
            raise InputError(f"kernel stage {spec.name}: {error}", wanted=wanted, fix="build the plan again") from error

    def create_context(self, cache: Any = None, graphs: bool = True) -> KernelContext:
        """What holds the shapes and addresses of one run at a time."""
        return KernelContext(self.spec)

    def execute(self, context: KernelContext, stream: Stream) -> bool:
        """Send the kernel to a stream."""
        names = [tensor.name for tensor in self.spec.inputs + self.spec.outputs]
        shape, centers, attractors, depth = (context.addresses[name] for name in names)
        shapes = [context.shapes[tensor.name] for tensor in self.spec.inputs]
        is_fp16 = self.spec.inputs[0].dtype == "float16"
        launch_bins_expectation(self._kernels.on(stream), (shape, centers, attractors, depth), shapes, is_fp16, self._constants)
        return True

    def close(self) -> None:
        """Nothing to release: the kernels belong to the device."""


class KernelContext:
    """The part of an execution context that the chain calls."""

    def __init__(self, spec: StageSpec):
        self._spec = spec
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """Set the shape of an input; False if it does not fit the stage's spec."""
        tensor = next(tensor for tensor in self._spec.inputs if tensor.name == name)
        self.shapes[name] = tuple(shape)
        return len(shape) == len(tensor.shape) and all(isinstance(size, str) or size == got for size, got in zip_equal(tensor.shape, shape))

    def infer_shapes(self) -> list[str]:
        """Inputs whose shapes are missing."""
        return [tensor.name for tensor in self._spec.inputs if tensor.name not in self.shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Of an input as set, of the output as it follows: [B, 1, H, W]."""
        batch, _, height, width = self.shapes[self._spec.inputs[0].name]
        return self.shapes.get(name, (batch, 1, height, width))

    def set_tensor_address(self, name: str, address: int) -> bool:
        """Set the address of a tensor."""
        self.addresses[name] = address
        return True


class NoAdapter:
    """The part of an engine's adapter that the chain uses."""

    captures_itself = False

    def set_device_memory(self, context: KernelContext, address: int, nbytes: int) -> None:
        """A kernel needs no scratch memory."""


def _check_tensors(spec: StageSpec) -> None:
    tensors: tuple[TensorSpec, ...] = (*spec.inputs, *spec.outputs)
    types = {tensor.dtype for tensor in tensors}
    if len(spec.inputs) != 3 or len(spec.outputs) != 1 or any(len(tensor.shape) != 4 for tensor in tensors) or types not in ({"float16"}, {"float32"}):
        raise ValueError(f"tensors {[(tensor.name, tensor.dtype, tensor.shape) for tensor in tensors]}")
