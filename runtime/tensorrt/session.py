"""What the GPU thread of a TensorRT backend holds: device, engines, and lanes on which jobs run side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..artefact.contract import Protocol
from ..artefact.manifest import PlanManifest
from ..artefact.spec import DTYPES
from ..cuda.device import Device
from ..cuda.open_device import open_device
from ..cuda.resources import Event, PinnedBuffer
from ..errors import DeviceLostError, EnvironmentMismatchError, FathomError, OutOfMemoryError
from ..kernels.device_kernels import DeviceKernels
from ..photo.preprocess import Placed
from ..sequences import pairwise
from .cache import RuntimeCache
from .chain import Chain
from .compatibility import check_header, check_plan, check_streams, import_tensorrt
from .device_photos import DevicePhotos
from .engine import Engine, make_logger

if TYPE_CHECKING:
    from ..artefact.plan import PlanFile

SLOTS = 2


@dataclass(frozen=True)
class RunJob:
    """Tensors in, tensors out; checked already."""

    inputs: dict[str, np.ndarray]
    keep: frozenset[str]


@dataclass(frozen=True)
class TimeJob:
    """The same tensors through the network again and again, timed on the device: as a whole, or stage after stage."""

    inputs: dict[str, np.ndarray]
    runs: int
    by_stage: bool = False


@dataclass(frozen=True)
class PhotoJob:
    """Photos in, maps out."""

    photos: list[np.ndarray]
    placed: list[tuple[Placed, ...]]
    protocol: Protocol
    batch: int


class Slot:
    """Page-locked memory for one job on its way, and the event at its end."""

    def __init__(self, device: Device, chain: Chain):
        self.busy = False
        self.done = Event(device)
        self.tensors = {name: PinnedBuffer(device, chain.shapes[name], DTYPES[spec.dtype]) for name, spec in {**chain.inputs, **chain.outputs}.items()}

    def part(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The first elements of a tensor's memory in a shape."""
        return self.tensors[name].array.reshape(-1)[: int(np.prod(shape, dtype=np.int64))].reshape(shape)


class Lane:
    """A chain of stages with its own stream, and two slots: while one job runs the next is filled."""

    def __init__(self, session: TensorRTSession):
        self.chain = Chain(session.device, session.engines, session.batch, session.keep, session.logger, session.cache, session.graphs)
        self.slots = [Slot(session.device, self.chain) for _ in range(SLOTS)]
        self.photos: list[DevicePhotos] = []
        if session.kernels:
            self.photos = [DevicePhotos(session.device, self.chain, session.contract, session.batch[0], session.kernels) for _ in self.slots]

    def idle_slot(self) -> int | None:
        """Number of a slot without a job."""
        return next((k for k, slot in enumerate(self.slots) if not slot.busy), None)


@dataclass
class Sent:
    """A job on the device; see ``gpu_worker.Pending``."""

    device: Device
    slot: Slot
    collect: Callable[[], Any]

    def reached(self) -> bool:
        """See ``gpu_worker.Pending.reached``."""
        with self.device:
            return self.slot.done.reached

    def finish(self) -> Any:
        """See ``gpu_worker.Pending.finish``."""
        try:
            with self.device:
                self.slot.done.wait()
                return self.collect()
        finally:
            self.slot.busy = False


class TensorRTSession:
    """See ``gpu_worker.Session``; made, used and closed by one thread. Arguments and errors: see ``TensorRTBackend``."""

    def __init__(self, plan: PlanFile, index: int, streams: int, graphs: bool, kernels: bool):
        manifest = plan.manifest
        self.contract, self.batch, self.graphs, self.streams = manifest.contract, manifest.batch, graphs, streams
        self.keep = frozenset({manifest.contract.output.tensor})
        self.engines: list[Engine] = []
        self.lanes: list[Lane] = []
        self.kernels: DeviceKernels | None = None
        self.cache_file: RuntimeCache | None = None
        self.kernels_remark = ""
        self.device = _open_gpu(manifest, index)
        try:
            trt = import_tensorrt(manifest.backend)
            check_plan(manifest, trt, self.device)
            check_streams(manifest, trt, streams)
            with self.device:
                self.free_before, _ = self.device.memory()
                self._load(trt, plan, kernels)
        except BaseException:
            self.close()
            raise

    def _load(self, trt: Any, plan: PlanFile, kernels: bool) -> None:
        self.logger = make_logger(trt)
        self._runtime = trt.Runtime(self.logger)
        for check in (True, False):  # all headers first: a plan that does not fit costs no memory
            for stage in plan.manifest.stages:
                with plan.view(stage.engine) as raw:
                    if check:
                        check_header(trt, self._runtime, raw, stage.spec.name)
                    else:
                        self.engines.append(Engine(trt, self._runtime, self.logger, stage.spec, raw, self.batch))
        self.weights_nbytes = sum(plan.manifest.files[stage.engine].size for stage in plan.manifest.stages)
        if hasattr(trt, "IRuntimeCache"):
            self.cache_file = RuntimeCache(trt, self.engines[0].engine, plan.manifest, self.device)
        if kernels:
            try:
                self.kernels = DeviceKernels(self.device)
            except (DeviceLostError, OutOfMemoryError):
                raise
            except FathomError as error:
                self.kernels_remark = f"photos are shaped on the CPU: {error}"

    @property
    def cache(self) -> Any:
        """TensorRT-RTX's runtime cache, or None."""
        return self.cache_file.cache if self.cache_file else None

    def prepare(self, warm_up: int) -> None:
        """Make the lanes and run them on zeros."""
        with self.device:
            for _ in range(self.streams):
                self.lanes.append(Lane(self))
                self.lanes[-1].chain.warm_up(warm_up)
            if self.cache_file:
                self.cache_file.save()
            self.free_after, _ = self.device.memory()

    def remarks(self) -> list[str]:
        """What was opened, in words."""
        device, lane = self.device, self.lanes[0].chain
        words = [
            f"GPU {device.index}: {device.name}, {device.target}, driver for CUDA {device.driver[0]}.{device.driver[1]}, {device.binding}",
            f"device memory: {(self.free_before - self.free_after) / 2**20:.0f} MiB taken; engines {self.weights_nbytes / 2**20:.0f} MiB, "
            f"tensors and largest stage {lane.nbytes / 2**20:.0f} MiB" + (f" x {self.streams} streams" if self.streams > 1 else ""),
            f"stages run as {lane.replays}" if "graph" in lane.replays.lower() else "stages run one by one, without a CUDA graph",
        ]
        if self.cache_file:
            words.append(self.cache_file.remark)
        return words + ([self.kernels_remark] if self.kernels_remark else [])

    def has_idle_slot(self) -> bool:
        """See ``gpu_worker.Session.has_idle_slot``."""
        return any(lane.idle_slot() is not None for lane in self.lanes)

    def begin(self, job: RunJob | PhotoJob | TimeJob) -> Sent:
        """See ``gpu_worker.Session.begin``; enqueues on the least-loaded lane."""
        lane = min(self.lanes, key=lambda lane: sum(slot.busy for slot in lane.slots))
        number = lane.idle_slot()
        slot = lane.slots[number]
        with self.device:
            if isinstance(job, RunJob):
                collect = self._send(lane.chain, slot, job)
            elif isinstance(job, TimeJob):
                collect = self._time(lane.chain, job)
            elif lane.photos:
                collect = lane.photos[number].send(job.photos, job.placed, job.protocol, job.batch)
            else:
                collect = _nothing
            slot.done.record(lane.chain.stream)
        slot.busy = True
        return Sent(self.device, slot, collect)

    def _time(self, chain: Chain, job: TimeJob) -> Callable[[], list[float]]:
        chain.set_shapes({name: array.shape for name, array in job.inputs.items()})
        for name, array in job.inputs.items():
            chain.upload(name, np.ascontiguousarray(array))
        steps = [partial(chain.run_stage, index) for index in range(len(self.engines))] if job.by_stage else [chain.run]
        marks = [Event(self.device) for _ in range(job.runs * len(steps) + 1)]
        marks[0].record(chain.stream)
        for number, mark in enumerate(marks[1:]):
            steps[number % len(steps)]()
            mark.record(chain.stream)

        def collect() -> list[float]:
            times_ms = [later.since_ms(earlier) for earlier, later in pairwise(marks)]
            for mark in marks:
                mark.close()
            return times_ms

        return collect

    def _send(self, chain: Chain, slot: Slot, job: RunJob) -> Callable[[], dict[str, np.ndarray]]:
        chain.set_shapes({name: array.shape for name, array in job.inputs.items()})
        for name, array in job.inputs.items():
            pinned = slot.part(name, array.shape)
            np.copyto(pinned, array)  # any strides become contiguous here
            chain.upload(name, pinned)
        if not job.keep <= chain.outputs.keys():
            kept = self._run_slowly(chain, job.keep)
            return lambda: kept
        chain.run()
        parts = {name: slot.part(name, chain.shapes[name]) for name in job.keep}
        for name, pinned in parts.items():
            chain.download(name, pinned)
        return lambda: {name: pinned.copy() for name, pinned in parts.items()}

    def _run_slowly(self, chain: Chain, keep: frozenset[str]) -> dict[str, np.ndarray]:
        """Stage by stage, each output read before its place is used again."""
        kept = {}
        for index, engine in enumerate(self.engines):
            chain.run_stage(index)
            for tensor in engine.spec.outputs:
                if tensor.name in keep:
                    kept[tensor.name] = np.empty(chain.shapes[tensor.name], DTYPES[tensor.dtype])
                    chain.download(tensor.name, kept[tensor.name])
            chain.stream.synchronize()
        return kept

    def close(self) -> None:
        """See ``gpu_worker.Session.close``. May be called twice."""
        device = self.device
        if device.closed:
            return
        try:
            if not device.lost:
                with device:
                    if self.cache_file and self.lanes:
                        self.cache_file.save()
                    self._free()
        finally:
            self.lanes.clear()
            self.engines.clear()
            device.close()

    def _free(self) -> None:
        for lane in self.lanes:
            lane.chain.close()
        for engine in self.engines:
            engine.close()
        self.cache_file = self._runtime = None


def _open_gpu(manifest: PlanManifest, index: int) -> Device:
    try:
        return open_device(index)
    except EnvironmentMismatchError as error:
        targets = ", ".join(manifest.targets) or "no named target"
        was = f"this plan holds {manifest.backend} engines (for {targets}), which need an NVIDIA GPU, and none can be used: {error.was}"
        raise EnvironmentMismatchError(was, wanted=error.wanted, fix=f"{error.fix}; or depth-build BUNDLE --backend onnxruntime, for the CPU") from error


def _nothing() -> None:
    return None
