"""How long each layer of an engine takes, as TensorRT's own profiler tells it; for finding the slow ones, not for adding up.

A profiled run is not a CUDA graph, and the device waits between stages. Layers are what the compiler made of the nodes: their names are its own.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .operators.kernel_stage import KernelStage

if TYPE_CHECKING:
    from .chain import Chain
    from .engine import Engine
    from .jobs import LayerJob


def make_profiler(trt: ModuleType) -> Any:
    """A profiler whose ``times`` are (layer, milliseconds) in the order in which TensorRT told them."""

    class Profiler(trt.IProfiler):
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.times: list[tuple[str, float]] = []

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.times.append((layer_name, ms))

    return Profiler()


def time_layers(trt: ModuleType, chain: Chain, engines: list[Engine | KernelStage], job: LayerJob) -> Callable[[], dict[str, dict[str, list[float]]]]:
    """Run all of them; returns what gives, stage by stage, each layer's milliseconds, run after run. A stage that is a kernel of ours has no layers."""
    chain.take(job.inputs)
    found: dict[str, dict[str, list[float]]] = {engine.spec.name: {} for engine in engines}
    for number in range(job.runs):
        for index, engine in enumerate(engines):
            if isinstance(engine, KernelStage):
                chain.run_stage(index)
                continue
            profiler = make_profiler(trt)
            with chain.profiled(index, profiler):
                chain.run_stage(index)
                chain.stream.synchronize()
            for layer, ms in profiler.times:
                times_ms = found[engine.spec.name].setdefault(layer, [])
                times_ms += [0.0] * (number + 1 - len(times_ms))  # a name that comes twice in a run is one layer here
                times_ms[number] += ms
    return lambda: found
