"""All stages of a plan back to back on one stream: one block for their tensors, one arena for their scratch memory, one CUDA graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import numpy as np

from ..artefact.spec import DTYPES, TensorSpec, network_inputs
from ..cuda.device import Device
from ..cuda.resources import DeviceBuffer, Graph, Stream
from ..errors import InputError
from ..sequences import zip_equal
from .engine import Engine, failure
from .memory_plan import Lifetime, plan_memory
from .operators.kernel_stage import KernelStage


class Chain:
    """Execution contexts and memory for one run at a time. Used inside ``with device:`` by one thread.

    Attributes:
        stream: carries everything, in order.
        inputs: tensors from outside, by name.
        outputs: tensors that stay readable after the last stage, by name.
        max_batch: largest batch.
        nbytes: device memory of tensors and arena.
    """

    def __init__(
        self, device: Device, engines: list[Engine | KernelStage], batch: tuple[int, int, int], keep: frozenset[str], logger: Any, cache: Any, graphs: bool
    ):
        """Make contexts and memory for the maximum batch.

        Args:
            keep: outputs that must stay readable beside those which no later stage takes.
            cache: TensorRT-RTX's compiled kernels, or None.
            graphs: replay the work as CUDA graphs where that is possible.

        Raises:
            OutOfMemoryError: if the device memory does not suffice.
            InputError: if an engine makes other shapes than the manifest says.
        """
        self.device, self.max_batch, self._engines, self._logger = device, batch[2], engines, logger
        self._contexts: list[Any] = []
        self.stream = Stream(device)
        self._blocks: list[DeviceBuffer] = []
        self._graph: Graph | None = None
        self._captures_itself = any(engine.adapter.captures_itself for engine in engines)
        self._wants_graph = graphs and batch[0] == batch[2] and device.supports_graphs and not self._captures_itself
        taken = {tensor.name for engine in engines for tensor in engine.spec.inputs}
        self.inputs = network_inputs(engine.spec for engine in engines)
        self.outputs: dict[str, TensorSpec] = {t.name: t for engine in engines for t in engine.spec.outputs if t.name not in taken or t.name in keep}
        self.shapes: dict[str, tuple[int, ...]] = {}
        try:
            for engine in engines:
                self._contexts.append(engine.create_context(cache, graphs))
            self.set_shapes({name: tuple(batch[2] if isinstance(size, str) else size for size in spec.shape) for name, spec in self.inputs.items()})
            self._allocate()
        except BaseException:
            self.close()
            raise

    def set_shapes(self, inputs: dict[str, tuple[int, ...]]) -> None:
        """Give the shapes of the inputs to all stages, and learn the shapes of everything else.

        Raises:
            ValueError: if a shape is not what the manifest says.
            InputError: if an engine makes another shape than the manifest says, or does not take one.
        """
        if all(self.shapes.get(name) == shape for name, shape in inputs.items()):
            return
        symbols: dict[str, int] = {}
        for name, spec in self.inputs.items():
            spec.bind(inputs[name], symbols)
        shapes = dict(inputs)
        self._logger.forget()
        for engine, context in zip_equal(self._engines, self._contexts):
            stage = engine.spec
            for tensor in stage.inputs:
                if not context.set_input_shape(tensor.name, shapes[tensor.name]):
                    raise InputError(f"stage {stage.name} does not take tensor {tensor.name} as {shapes[tensor.name]} ({self._logger.errors()})")
            missing = context.infer_shapes()
            if missing:
                raise InputError(f"stage {stage.name} wants more about {', '.join(missing)}", wanted="shapes that follow from the inputs")
            for tensor in stage.outputs:
                shapes[tensor.name] = tuple(context.get_tensor_shape(tensor.name))
                try:
                    tensor.bind(shapes[tensor.name], symbols)
                except ValueError as error:
                    raise InputError(f"stage {stage.name}: {error}", wanted="what the manifest says", fix="build the plan again") from error
        self.shapes = shapes

    def take(self, inputs: dict[str, np.ndarray]) -> None:
        """``set_shapes`` to those of some inputs, and copy the inputs to their device memory, in stream order."""
        self.set_shapes({name: array.shape for name, array in inputs.items()})
        for name, array in inputs.items():
            self.upload(name, np.ascontiguousarray(array))

    def _allocate(self) -> None:
        stages = [engine.spec for engine in self._engines]
        specs = {tensor.name: tensor for stage in stages for tensor in stage.inputs + stage.outputs}
        lifetimes = []
        for name, spec in specs.items():
            uses = [k for k, stage in enumerate(stages) if any(tensor.name == name for tensor in stage.inputs)]
            made = next((k for k, stage in enumerate(stages) if any(tensor.name == name for tensor in stage.outputs)), -1)
            # Index inputs share memory with nothing: warm-up and timing run again on the same inputs, and bytes that another tensor left are no indices.
            stays = name in self.outputs or (made < 0 and np.issubdtype(DTYPES[spec.dtype], np.integer))
            lifetimes.append(Lifetime(name, self.nbytes_of(name, spec), made, len(stages) if stays else max([made, *uses])))
        offsets, size = plan_memory(lifetimes)
        block = DeviceBuffer(self.device, size)
        self._blocks.append(block)
        arena = DeviceBuffer(self.device, max(max(engine.activation_nbytes for engine in self._engines), 1))
        self._blocks.append(arena)
        self.nbytes = block.nbytes + arena.nbytes
        self.addresses = {name: block.address + offset for name, offset in offsets.items()}
        for engine, context in zip_equal(self._engines, self._contexts):
            engine.adapter.set_device_memory(context, arena.address, arena.nbytes)
            for tensor in engine.spec.inputs + engine.spec.outputs:
                if not context.set_tensor_address(tensor.name, self.addresses[tensor.name]):
                    raise failure(f"stage {engine.spec.name}: tensor {tensor.name} cannot be bound", self._logger)

    def nbytes_of(self, name: str, spec: TensorSpec) -> int:
        """Bytes of a tensor in its present shape."""
        return int(np.prod(self.shapes[name], dtype=np.int64)) * DTYPES[spec.dtype].itemsize

    def upload(self, name: str, source: np.ndarray) -> None:
        """Copy an input to its device memory, in stream order."""
        self.device.upload(self.addresses[name], source, self.stream.handle)

    def download(self, name: str, target: np.ndarray) -> None:
        """Copy a tensor out, in stream order."""
        self.device.download(target, self.addresses[name], self.stream.handle)

    def run(self) -> None:
        """Send all stages to the stream; as one graph once it is recorded.

        Raises:
            FathomError: if a stage does not start, or the device is lost.
        """
        if self._graph is not None:
            self._graph.launch(self.stream)
            return
        for index in range(len(self._engines)):
            self.run_stage(index)

    def run_stage(self, index: int) -> None:
        """Send one stage to the stream."""
        self._logger.forget()
        if not self._engines[index].execute(self._contexts[index], self.stream):
            error = failure(f"stage {self._engines[index].spec.name} failed", self._logger)
            self.stream.synchronize()  # raises if the device was lost
            raise error

    @contextmanager
    def profiled(self, index: int, profiler: Any) -> Iterator[None]:
        """While it lasts, a stage that is run tells TensorRT's profiler how long its layers took."""
        context = self._contexts[index]
        context.profiler = profiler
        try:
            yield
        finally:
            context.profiler = None

    def warm_up(self, runs: int) -> None:
        """Run on zeros: kernels are loaded and compiled now instead of in the first prediction. Then record the graph."""
        for name, spec in self.inputs.items():
            self.upload(name, np.zeros(self.shapes[name], DTYPES[spec.dtype]))
        for _ in range(runs):
            self.run()
        self.stream.synchronize()
        if self._wants_graph and self._graph is None:
            self._graph = self.stream.capture(self._capture)
            if self._graph is not None:
                self._graph.launch(self.stream)
                self.stream.synchronize()

    def _capture(self) -> bool:
        return all(engine.execute(context, self.stream) for engine, context in zip_equal(self._engines, self._contexts))

    @property
    def replays(self) -> str:
        """Whether the stages run as one CUDA graph, in words."""
        if self._graph is not None:
            return "one CUDA graph over all stages"
        if self._captures_itself:
            return "TensorRT-RTX's own CUDA graphs"
        return "stage by stage"

    def close(self) -> None:
        """Release contexts and memory; may be called twice."""
        if not self.device.lost and not self.stream.closed:
            with suppress(Exception):  # already reported where it happened; only memory is left to release
                self.stream.synchronize()
        with ExitStack() as stack:
            for owner in (self.stream, *self._blocks):
                stack.callback(owner.close)
            stack.callback(self._contexts.clear)
            if self._graph is not None:
                stack.callback(self._graph.close)
        self._blocks.clear()
        self._graph = None
