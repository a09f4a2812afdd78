"""A kernel stage: one of our own kernels between two engines, with the interface of an engine.

Its file in the plan, ``<stage>.kernel.json``, names the operator, its tensors in the operator's order, and its parameters; inputs that are
constant lie in the stage's weights. TensorRT-RTX takes no plugins, so there this is the only way an operator of ours runs inside a network.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ...artefact.spec import TensorSpec, fields
from ...cuda.resources import DeviceBuffer, Stream
from ...errors import InputError
from ...kernels.device_kernels import DeviceKernels
from ...kernels.operators import group_norm_workspace, launch_bins_expectation, launch_cross_attention, launch_group_norm_silu
from ...sequences import zip_equal

if TYPE_CHECKING:
    from ...artefact.manifest import PlanStage
    from ...cuda.device import Device

SUFFIX = ".kernel.json"
REAL, WHOLE = (int, float), (int,)
PARAMETERS: dict[str, dict[str, Any]] = {
    "BinsExpectation": {"alpha": REAL, "least_temperature": REAL, "greatest_temperature": REAL},
    "GroupNormSilu": {"groups": WHOLE, "epsilon": REAL},
    "CrossAttention": {"scale": REAL},
}
WIDE = {"GroupNormSilu": (1, 2)}  # inputs that are FP32 whatever the others are
OUTPUTS = {"BinsExpectation": 1, "GroupNormSilu": 1, "CrossAttention": 2}


class KernelStage:
    """See ``engine.Engine``, whose attributes and methods these are.

    Raises:
        InputError: if the file is not one of a kernel stage, or the stage's tensors are not the operator's.
        OutOfMemoryError: if its constants do not fit on the device.
    """

    def __init__(self, device: Device, kernels: DeviceKernels, stage: PlanStage, raw: memoryview, weights: memoryview | None, max_batch: int):
        self.spec, self.adapter, self._kernels = stage.spec, NoAdapter(), kernels
        self._buffer: DeviceBuffer | None = None
        constants = {item.tensor.name: item for item in stage.initializers}
        try:
            kinds = {"operator": str, "inputs": list, "outputs": list, "parameters": dict}
            operator, self.inputs, self.outputs, parameters = fields(json.loads(bytes(raw)), "kernel stage", **kinds)
            if operator not in PARAMETERS:
                raise ValueError(f"there is no operator {operator!r}")
            tensors = {tensor.name: tensor for tensor in (*self.spec.tensors, *(item.tensor for item in constants.values()))}
            self._operator, self._values = operator, _values(operator, parameters)
            self._is_half = _check_tensors(operator, [tensors[name] for name in self.inputs], [tensors[name] for name in self.outputs])
            if {*self.inputs, *self.outputs} != set(tensors):
                raise ValueError(f"it reads {self.inputs} and makes {self.outputs}, and has {sorted(tensors)}")
            largest = {name: tuple(max_batch if isinstance(size, str) else size for size in tensor.shape) for name, tensor in tensors.items()}
            self.activation_nbytes = self._scratch_nbytes([largest[name] for name in self.inputs])
        except (ValueError, KeyError, TypeError) as error:
            wanted = "an operator of ours with its tensors and parameters"
            raise InputError(f"kernel stage {stage.spec.name}: {error}", wanted=wanted, fix="build the plan again") from error
        self._constants = {name: item.tensor.shape for name, item in constants.items()}
        if constants and weights is not None:
            self._buffer = DeviceBuffer(device, len(weights))
            self._upload(device, np.frombuffer(weights, np.uint8))
        self._places = {name: self._buffer.address + item.offset for name, item in constants.items()} if self._buffer else {}

    def _upload(self, device: Device, values: np.ndarray) -> None:
        stream = Stream(device)
        try:
            device.upload(self._buffer.address, values.copy(), stream.handle)
            stream.synchronize()
        finally:
            stream.close()

    def _scratch_nbytes(self, shapes: list[tuple[int, ...]]) -> int:
        return group_norm_workspace(shapes[0], self._values["groups"], self._is_half) if self._operator == "GroupNormSilu" else 0

    def create_context(self, cache: Any = None, graphs: bool = True) -> KernelContext:
        """What holds the shapes and addresses of one run at a time."""
        return KernelContext(self)

    def shapes_made(self, shapes: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Shapes of the outputs, from those of all inputs in the operator's order."""
        first = shapes[0]
        if self._operator == "BinsExpectation":
            return [(first[0], 1, *first[2:])]
        return [first] if self._operator == "GroupNormSilu" else [first, (first[0], first[2], shapes[1][3])]

    def constant_shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of an input that is constant."""
        return self._constants.get(name)

    def execute(self, context: KernelContext, stream: Stream) -> bool:
        """Send the kernel to a stream."""
        launch, values, half = self._kernels.on(stream), self._values, self._is_half
        shapes = context.input_shapes()
        places = [self._places.get(name) or context.addresses[name] for name in (*self.inputs, *self.outputs)]
        if self._operator == "BinsExpectation":
            constants = (values["alpha"], values["least_temperature"], values["greatest_temperature"])
            launch_bins_expectation(launch, (places[0], places[1], places[2], places[3]), shapes, half, constants)
        elif self._operator == "GroupNormSilu":
            addresses = (places[0], places[1], places[2], places[3], context.scratch)
            launch_group_norm_silu(launch, addresses, shapes[0], values["groups"], values["epsilon"], half)
        else:
            launch_cross_attention(launch, (places[0], places[1], places[2], places[3], places[4]), shapes, values["scale"], half)
        return True

    def close(self) -> None:
        """Release the constants; the kernels belong to the device. May be called twice."""
        if self._buffer is not None:
            self._buffer.close()
            self._buffer = None


class KernelContext:
    """The part of an execution context that the chain calls."""

    def __init__(self, stage: KernelStage):
        self._stage = stage
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.scratch = 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """Set the shape of an input; False if it does not fit the stage's spec."""
        tensor = next(tensor for tensor in self._stage.spec.inputs if tensor.name == name)
        self.shapes[name] = tuple(shape)
        return len(shape) == len(tensor.shape) and all(isinstance(size, str) or size == got for size, got in zip_equal(tensor.shape, shape))

    def infer_shapes(self) -> list[str]:
        """Inputs whose shapes are missing."""
        return [tensor.name for tensor in self._stage.spec.inputs if tensor.name not in self.shapes]

    def input_shapes(self) -> list[tuple[int, ...]]:
        """Of all inputs, those that are constant too, in the operator's order."""
        return [self._stage.constant_shape(name) or self.shapes[name] for name in self._stage.inputs]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Of an input as set, of an output as it follows."""
        if name in self.shapes:
            return self.shapes[name]
        return self._stage.shapes_made(self.input_shapes())[self._stage.outputs.index(name)]

    def set_tensor_address(self, name: str, address: int) -> bool:
        """Set the address of a tensor."""
        self.addresses[name] = address
        return True


class NoAdapter:
    """The part of an engine's adapter that the chain uses."""

    captures_itself = False

    def set_device_memory(self, context: KernelContext, address: int, nbytes: int) -> None:
        """Scratch memory."""
        context.scratch = address


def _values(operator: str, parameters: dict[str, Any]) -> dict[str, Any]:
    found = dict(zip_equal(PARAMETERS[operator], fields(parameters, operator, **PARAMETERS[operator])))
    good = all(math.isfinite(value) for value in found.values())
    if operator == "BinsExpectation":
        good = good and found["alpha"] >= 0 and 0 < found["least_temperature"] < found["greatest_temperature"]
    elif operator == "GroupNormSilu":
        good = good and found["groups"] >= 1 and found["epsilon"] > 0
    if not good:
        raise ValueError(f"{operator} with {found}")
    return found


def _check_tensors(operator: str, inputs: list[TensorSpec], outputs: list[TensorSpec]) -> bool:
    """Whether the tensors are FP16; ValueError if they are not the operator's."""
    wide = WIDE.get(operator, ())
    types = {tensor.dtype for place, tensor in enumerate(inputs) if place not in wide}.union(tensor.dtype for tensor in outputs)
    ranks = [len(tensor.shape) for tensor in inputs]
    fits = len(inputs) == 3 and len(outputs) == OUTPUTS[operator] and types in ({"float16"}, {"float32"})
    fits = fits and all(inputs[place].dtype == "float32" for place in wide)
    if not fits or (ranks[0] < 3 if operator == "GroupNormSilu" else ranks != [4, 4, 4]):
        raise ValueError(f"tensors {[(tensor.name, tensor.dtype, tensor.shape) for tensor in (*inputs, *outputs)]}")
    for place in wide:
        if math.prod(inputs[place].shape) != inputs[0].shape[1]:
            raise ValueError(f"{inputs[place].name} has the shape {inputs[place].shape}, and there are {inputs[0].shape[1]} channels")
    return types == {"float16"}
