"""TensorRT and TensorRT-RTX engines, executed back to back on one GPU; see ``backend.Backend``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from ..artefact.spec import DTYPES, StageSpec, TensorSpec, network_inputs
from ..photo.raw_maps import RawMaps
from .device_photos import PhotoJob
from .gpu_worker import GpuWorker
from .jobs import LayerJob, RunJob, StageJob, TimeJob
from .session import TensorRTSession

if TYPE_CHECKING:
    from ..artefact.contract import Protocol
    from ..artefact.plan import PlanFile
    from ..photo.preprocess import Placed


class TensorRTBackend:
    """Executes a plan for ``tensorrt`` or ``tensorrt-rtx``. May be used from any thread; one thread of its own makes all CUDA calls.

    Attributes:
        stages: in running order.
        concurrent: how many runs in flight keep the device busy.
        remarks: what was opened, in words: memory, graphs, kernel cache, warm-up.
        environment: what the numbers depend on beside the plan, in words: ``tensorrt``, ``gpu``, ``target``, ``driver``.
    """

    def __init__(self, plan: PlanFile, index: int = 0, streams: int = 1, graphs: bool = True, warm_up: int = 2, kernels: bool = True):
        """Check that the plan fits this machine, load its engines, warm up.

        Args:
            index: which GPU.
            streams: how many runs may be on the device at the same time, each with its own memory for activations.
            graphs: replay the stages as CUDA graphs where shapes are fixed.
            warm_up: runs on zeros before the first prediction.
            kernels: pre- and post-process photos on the GPU where the protocol allows it.

        Raises:
            EnvironmentMismatchError: if package, version, GPU or driver do not fit; found before anything is deserialised.
            InputError: if an engine is not what the manifest says.
            OutOfMemoryError: if the device memory does not suffice.
        """
        self.stages: tuple[StageSpec, ...] = plan.manifest.specs()
        self.concurrent = 2 * streams  # one on the device, one on its way to or from it
        self._made = {tensor.name: tensor for stage in self.stages for tensor in stage.outputs}
        self._inputs = network_inputs(self.stages)
        taken = {tensor.name for stage in self.stages for tensor in stage.inputs}
        self._ends = frozenset(self._made.keys() - taken)
        self._batch = plan.manifest.batch
        start = time.perf_counter()
        remarks: list[str] = []
        limits: list[int] = []
        self.environment: dict[str, str] = {}

        def open_session() -> TensorRTSession:
            session = TensorRTSession(plan, index, streams, graphs, kernels)
            try:
                session.prepare(warm_up)
            except BaseException as error:
                session.abandon(error)
                raise
            remarks.extend(session.remarks())
            self.environment.update(session.environment())
            limits.append(session.photo_limit_nbytes)
            return session

        self._worker = GpuWorker(open_session)
        self._photo_limit_nbytes = limits[0]
        self.remarks = (*remarks, f"ready after {time.perf_counter() - start:.1f} s, warmed up with {warm_up} runs")

    def run(self, inputs: dict[str, np.ndarray], keep: frozenset[str] = frozenset()) -> dict[str, np.ndarray]:
        """See ``backend.Backend.run``."""
        return self.timed_run(inputs, keep)[0]

    def timed_run(self, inputs: dict[str, np.ndarray], keep: frozenset[str] = frozenset()) -> tuple[dict[str, np.ndarray], float]:
        """As ``run``, and how many milliseconds the stages took on the device, without waiting and copies."""
        if not keep <= self._made.keys():
            raise ValueError(f"no stage makes {sorted(keep - self._made.keys())}")
        self._check(inputs)
        return self._worker.submit(RunJob(inputs, keep or self._ends)).result()

    def run_stage(self, name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one stage alone.

        Args:
            name: of the stage.
            inputs: every tensor that it takes, by name, whether it comes from outside or from an earlier stage.

        Returns:
            every tensor that it makes, by name.

        Raises:
            ValueError: if there is no such stage, or an input is not what it takes.
            FathomError: if it fails.
        """
        index = [stage.name for stage in self.stages].index(name)
        symbols: dict[str, int] = {}
        if set(inputs) != (wanted := {tensor.name for tensor in self.stages[index].inputs}):
            raise ValueError(f"inputs {sorted(inputs)}, wanted exactly {sorted(wanted)}")
        for tensor in self.stages[index].inputs:
            _check_input(tensor, inputs[tensor.name], symbols)
        shapes = {key: tuple(symbols.get(size, self._batch[0]) if isinstance(size, str) else size for size in t.shape) for key, t in self._inputs.items()}
        return self._worker.submit(StageJob(index, shapes, inputs)).result()

    def device_times_ms(self, inputs: dict[str, np.ndarray], runs: int) -> list[float]:
        """Milliseconds that the device takes for all stages, run after run, without the copies from and to the host; arguments as in ``run``."""
        self._check(inputs)
        return self._worker.submit(TimeJob(inputs, runs)).result()

    def stage_times_ms(self, inputs: dict[str, np.ndarray], runs: int) -> dict[str, list[float]]:
        """Milliseconds that the device takes for each stage, run after run; arguments as in ``run``. The stages are started one by one, not as one
        CUDA graph."""
        self._check(inputs)
        times_ms = self._worker.submit(TimeJob(inputs, runs, by_stage=True)).result()
        return {stage.name: times_ms[place :: len(self.stages)] for place, stage in enumerate(self.stages)}

    def layer_times_ms(self, inputs: dict[str, np.ndarray], runs: int) -> dict[str, dict[str, list[float]]]:
        """Milliseconds of each layer, by stage and by the compiler's name for it, run after run, as TensorRT's profiler tells them; arguments as in ``run``.
        A stage that is a kernel of ours has no layers. Where the time goes, not how much it is: a profiled run is slower."""
        self._check(inputs)
        return self._worker.submit(LayerJob(inputs, runs)).result()

    def _check(self, inputs: dict[str, np.ndarray]) -> None:
        if set(inputs) != set(self._inputs):
            raise ValueError(f"inputs {sorted(inputs)}, wanted exactly {sorted(self._inputs)}")
        symbols: dict[str, int] = {}
        for name, array in inputs.items():
            _check_input(self._inputs[name], array, symbols)
        for size in symbols.values():
            if not self._batch[0] <= size <= self._batch[2]:
                raise ValueError(f"a batch of {size}, wanted {self._batch[0]} to {self._batch[2]} for this plan")

    def predict_photos(
        self, photos: list[np.ndarray], placed: list[tuple[Placed, ...]], protocol: Protocol, batch: int, text: dict[str, np.ndarray]
    ) -> RawMaps:
        """Photos to maps without leaving the GPU. Groups that would take too much device memory go one after the other.

        Args:
            photos: uint8 [H, W, 3] each.
            placed: the steps of the protocol on each photo.
            batch: windows per run.
            text: tensors of words by name, [windows of all photos, ...]; empty for a network that takes none.
        """
        job = PhotoJob(photos, placed, protocol, batch, text)
        if len(photos) > 1 and job.nbytes() > self._photo_limit_nbytes:
            middle, rows = len(photos) // 2, len(photos) // 2 * (len(next(iter(text.values()))) // len(photos) if text else 0)
            first = self.predict_photos(photos[:middle], placed[:middle], protocol, batch, {name: array[:rows] for name, array in text.items()})
            if first.why_cpu:
                return first
            rest = self.predict_photos(photos[middle:], placed[middle:], protocol, batch, {name: array[rows:] for name, array in text.items()})
            return rest if rest.why_cpu else RawMaps(first.maps + rest.maps, first.network_ms + rest.network_ms)
        return self._worker.submit(job).result()

    def photo_parts_ms(self, photo: np.ndarray, placed: tuple[Placed, ...], protocol: Protocol, batch: int, text: dict[str, np.ndarray]) -> dict[str, float]:
        """Where the device's time for one photo goes, see ``RawMaps.parts_ms``; empty where it is shaped on the CPU. Arguments as in ``predict_photos``."""
        return self._worker.submit(PhotoJob([photo], [placed], protocol, batch, text, timed=True)).result().parts_ms

    def interrupt(self) -> None:
        """See ``backend.Backend.interrupt``. What is on the device already runs to its end."""
        self._worker.interrupt()

    def close(self) -> None:
        """See ``backend.Backend.close``."""
        self._worker.close()


def _check_input(spec: TensorSpec, array: Any, symbols: dict[str, int]) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != DTYPES[spec.dtype]:
        raise ValueError(f"tensor {spec.name} is {getattr(array, 'dtype', type(array).__name__)}, wanted {spec.dtype}")
    spec.bind(array.shape, symbols)
