"""What the GPU thread of a TensorRT backend holds: device, engines, and lanes on which jobs run side by side."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..artefact.spec import DTYPES
from ..cuda.device import Device
from ..cuda.driver_release import driver_release
from ..cuda.resources import Event, PinnedBuffer
from ..kernels.device_kernels import DeviceKernels, open_kernels
from ..photo.raw_maps import RawMaps
from ..sequences import pairwise
from .cache import RuntimeCache
from .chain import Chain
from .compatibility import check_header, check_plan, check_streams, open_gpu
from .device_photos import DevicePhotos, PhotoJob, SlotEvents
from .engine import Engine
from .jobs import LayerJob, RunJob, StageJob, TimeJob
from .layer_times import time_layers
from .loading import import_tensorrt
from .logger import make_logger
from .operators.kernel_stage import SUFFIX, KernelStage
from .operators.plugins import Plugins, open_plugins

if TYPE_CHECKING:
    from ..artefact.manifest import PlanStage
    from ..artefact.plan import PlanFile

SLOTS = 2
MOST_PHOTO_NBYTES = 1 << 30


class Slot:
    """Page-locked memory for one job on its way, and the events along it."""

    def __init__(self, device: Device, chain: Chain):
        self.busy, self.events = False, SlotEvents(device)
        self.tensors = {name: PinnedBuffer(device, chain.shapes[name], DTYPES[spec.dtype]) for name, spec in {**chain.inputs, **chain.outputs}.items()}

    def part(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The first elements of a tensor's memory in a shape."""
        return self.tensors[name].array.reshape(-1)[: int(np.prod(shape, dtype=np.int64))].reshape(shape)


class Lane:
    """A chain of stages with its own stream, and two slots: while one job runs the next is filled."""

    def __init__(self, session: TensorRTSession):
        self.slots: list[Slot] = []
        self.photos: list[DevicePhotos] = []
        self.chain = Chain(session.device, session.engines, session.batch, session.keep, session.logger, session.cache_file, session.graphs)
        try:
            self.slots += [Slot(session.device, self.chain) for _ in range(SLOTS)]
            if session.kernels:
                for slot in self.slots:
                    self.photos.append(DevicePhotos(session.device, self.chain, session.contract, session.batch[0], session.kernels, slot.events))
        except BaseException:
            self.close()
            raise

    def idle_slot(self) -> int | None:
        """Number of a slot without a job."""
        return next((k for k, slot in enumerate(self.slots) if not slot.busy), None)

    def settle(self, slot: Slot) -> None:
        """After a failure: wait until nothing on the device uses this slot's memory any more."""
        for stream in (self.chain.stream, slot.events.copies):
            with suppress(Exception), self.chain.device:  # the failure itself is reported
                stream.synchronize()
        slot.busy = False

    def close(self) -> None:
        """Release the contexts while the device still works; closing the device releases the rest."""
        self.chain.close()


@dataclass
class Sent:
    """A job on the device; see ``gpu_worker.Pending``."""

    device: Device
    lane: Lane
    slot: Slot
    collect: Callable[[], Any]

    def wait(self) -> None:
        """See ``gpu_worker.Pending.wait``."""
        with self.device:
            self.slot.events.done.wait()

    def finish(self) -> Any:
        """See ``gpu_worker.Pending.finish``."""
        try:
            with self.device:
                self.slot.events.done.wait()
                result = self.collect()
        except BaseException:
            self.lane.settle(self.slot)
            raise
        self.slot.busy = False
        return result


class TensorRTSession:
    """See ``gpu_worker.Session``; made, used and closed by one thread. Arguments and errors: see ``TensorRTBackend``."""

    def __init__(self, plan: PlanFile, index: int, streams: int, graphs: bool, kernels: bool):
        manifest = plan.manifest
        self.contract, self.batch, self.graphs, self.streams = manifest.contract, manifest.batch, graphs, streams
        self.keep = frozenset({manifest.contract.output.tensor})
        self.engines: list[Engine | KernelStage] = []
        self.lanes: list[Lane] = []
        self.kernels: DeviceKernels | None = None
        self.cache_file: RuntimeCache | None = None
        self.plugins: Plugins | None = None
        self.kernels_remark = ""
        self.device = open_gpu(manifest, index)
        self.any_thread = self.device.any_thread
        try:
            trt = import_tensorrt(manifest.backend)
            check_plan(manifest, trt, self.device)
            check_streams(manifest, trt, streams)
            self._trt, self.release = trt, trt.__version__
            with self.device:
                self.free_before, _ = self.device.memory()
                self.plugins = open_plugins(trt, manifest.operators, plan.path)
                self._load(trt, plan, kernels)
        except BaseException as error:
            self.abandon(error)
            raise

    def _load(self, trt: Any, plan: PlanFile, kernels: bool) -> None:
        self.logger = make_logger(trt)
        self._runtime = trt.Runtime(self.logger)
        for stage in plan.manifest.stages:  # all headers first: a plan that does not fit costs no memory
            if not stage.engine.endswith(SUFFIX):
                with plan.view(stage.engine) as raw:
                    check_header(trt, self._runtime, raw, stage.spec.name)
        needed = any(stage.engine.endswith(SUFFIX) for stage in plan.manifest.stages)
        opened, self.kernels_remark = open_kernels(self.device, kernels, needed)
        self.kernels = opened if kernels else None
        for stage in plan.manifest.stages:
            with plan.view(stage.engine) as raw:
                if stage.engine.endswith(SUFFIX):
                    self.engines.append(self._kernel_stage(plan, stage, opened, raw))
                else:
                    self.engines.append(Engine(trt, self._runtime, self.logger, stage.spec, raw, self.batch))
        self.weights_nbytes = sum(plan.manifest.files[name].size for stage in plan.manifest.stages for name in plan.manifest.stage_files(stage))
        if hasattr(trt, "IRuntimeCache"):
            first = next(engine.engine for engine in self.engines if isinstance(engine, Engine))
            self.cache_file = RuntimeCache(trt, first, plan.manifest, self.device)

    def _kernel_stage(self, plan: PlanFile, stage: PlanStage, kernels: DeviceKernels, raw: memoryview) -> KernelStage:
        with plan.view(stage.weights) if stage.weights else nullcontext() as weights:
            return KernelStage(self.device, kernels, stage, raw, weights, self.batch[2])

    def prepare(self, warm_up: int) -> None:
        """Make the lanes and run each ``warm_up`` times on zeros."""
        with self.device:
            for _ in range(self.streams):
                self.lanes.append(Lane(self))
                self.lanes[-1].chain.warm_up(warm_up)
            if self.cache_file:
                self.cache_file.save()
            self.free_after, _ = self.device.memory()
        self.photo_limit_nbytes = min(MOST_PHOTO_NBYTES, self.free_after // (2 * SLOTS * self.streams))  # half of what is free, for all slots together

    def remarks(self) -> list[str]:
        """What was opened, in words."""
        device, lane = self.device, self.lanes[0].chain
        words = [
            f"GPU {device.index}: {device.name}, {device.target}, driver for CUDA {device.driver[0]}.{device.driver[1]}, {device.binding}",
            f"device memory: {(self.free_before - self.free_after) / 2**20:.0f} MiB taken; engines {self.weights_nbytes / 2**20:.0f} MiB, "
            f"tensors and largest stage {lane.nbytes / 2**20:.0f} MiB" + (f" x {self.streams} streams" if self.streams > 1 else ""),
            f"stages run as {lane.replays}" if "graph" in lane.replays.lower() else "stages run one by one, without a CUDA graph",
        ]
        if self.kernels:
            words.append(f"photos: at most {self.photo_limit_nbytes / 2**20:.0f} MiB of device memory for each of {SLOTS * self.streams} groups on their way")
        if self.cache_file:
            words.append(self.cache_file.remark)
        return words + ([self.kernels_remark] if self.kernels_remark else [])

    def environment(self) -> dict[str, str]:
        """What the results of the engines depend on beside the plan: strings under ``tensorrt``, ``gpu``, ``target`` and ``driver``."""
        device = self.device
        driver = " ".join(filter(None, (driver_release(), f"for CUDA {device.driver[0]}.{device.driver[1]}")))
        return {"tensorrt": self.release, "gpu": device.name, "target": device.target, "driver": driver}

    def has_idle_slot(self) -> bool:
        """See ``gpu_worker.Session.has_idle_slot``."""
        return any(lane.idle_slot() is not None for lane in self.lanes)

    def begin(self, job: RunJob | PhotoJob | TimeJob | StageJob | LayerJob) -> Sent:
        """See ``gpu_worker.Session.begin``; enqueues on the least-loaded lane."""
        lane = min(self.lanes, key=lambda lane: sum(slot.busy for slot in lane.slots))
        number = lane.idle_slot()
        slot = lane.slots[number]
        slot.busy = True  # also while it is made free of a job that failed half-way
        try:
            with self.device:
                if isinstance(job, PhotoJob):
                    collect = self._send_photos(lane, number, job)
                else:
                    if isinstance(job, RunJob):
                        collect = self._send(lane.chain, slot, job)
                    elif isinstance(job, LayerJob):
                        collect = time_layers(self._trt, lane.chain, self.engines, job)
                    else:
                        collect = self._time(lane.chain, job) if isinstance(job, TimeJob) else self._send_stage(lane.chain, job)
                    slot.events.done.record(lane.chain.stream)
        except BaseException:
            lane.settle(slot)
            raise
        return Sent(self.device, lane, slot, collect)

    def _send_photos(self, lane: Lane, number: int, job: PhotoJob) -> Callable[[], RawMaps]:
        events, why = lane.slots[number].events, self.kernels_remark.replace("photos are shaped on the CPU: ", "", 1)
        if not why and (nbytes := job.nbytes()) > self.photo_limit_nbytes:
            why = f"a photo takes {nbytes / 2**20:.0f} MiB on the GPU, and {self.photo_limit_nbytes / 2**20:.0f} MiB are the limit here"
        events.done.record(events.copies)  # for a job that stays here; the others record it at their end
        return (lambda: RawMaps(why_cpu=why)) if why else lane.photos[number].send(job)

    def _time(self, chain: Chain, job: TimeJob) -> Callable[[], list[float]]:
        chain.take(job.inputs)
        steps = [partial(chain.run_stage, index) for index in range(len(self.engines))] if job.by_stage else [chain.run]
        marks: list[Event] = []

        def forget() -> None:
            for mark in marks:
                mark.close()

        def collect() -> list[float]:
            try:
                return [later.since_ms(earlier) for earlier, later in pairwise(marks)]
            finally:
                forget()

        try:
            marks += [Event(self.device) for _ in range(job.runs * len(steps) + 1)]
            marks[0].record(chain.stream)
            for number, mark in enumerate(marks[1:]):
                steps[number % len(steps)]()
                mark.record(chain.stream)
        except BaseException:
            forget()
            raise
        return collect

    def _send(self, chain: Chain, slot: Slot, job: RunJob) -> Callable[[], tuple[dict[str, np.ndarray], float]]:
        """Copies go through the lane's stream too: the places of inputs and outputs belong to one run at a time."""
        events = slot.events
        chain.set_shapes({name: array.shape for name, array in job.inputs.items()})
        for name, array in job.inputs.items():
            pinned = slot.part(name, array.shape)
            np.copyto(pinned, array)  # any strides become contiguous here
            chain.upload(name, pinned)
        events.began.record(chain.stream)
        if not job.keep <= chain.outputs.keys():
            kept = self._run_stagewise(chain, job.keep)
            events.ended.record(chain.stream)
            return lambda: (kept, events.ended.since_ms(events.began))
        chain.run()
        events.ended.record(chain.stream)
        parts = {name: slot.part(name, chain.shapes[name]) for name in job.keep}
        for name, pinned in parts.items():
            chain.download(name, pinned)
        return lambda: ({name: pinned.copy() for name, pinned in parts.items()}, events.ended.since_ms(events.began))

    def _send_stage(self, chain: Chain, job: StageJob) -> Callable[[], dict[str, np.ndarray]]:
        chain.set_shapes(job.shapes)
        for name, array in job.inputs.items():
            chain.upload(name, np.ascontiguousarray(array))
        chain.run_stage(job.index)
        outputs = {tensor.name: np.empty(chain.shapes[tensor.name], DTYPES[tensor.dtype]) for tensor in self.engines[job.index].spec.outputs}
        for name, array in outputs.items():
            chain.download(name, array)
        chain.stream.synchronize()
        return lambda: outputs

    def _run_stagewise(self, chain: Chain, keep: frozenset[str]) -> dict[str, np.ndarray]:
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

    def abandon(self, error: BaseException) -> None:
        """Close after an error whose frames may hold contexts and engines: they must not outlive the device."""
        traceback.clear_frames(error.__traceback__)
        self.close()

    def close(self) -> None:
        """See ``gpu_worker.Session.close``. May be called twice."""
        device = self.device
        if device.closed:
            return
        with ExitStack() as stack:  # backwards, and every step even if one before it failed
            stack.callback(device.close)
            if self.plugins is not None:
                stack.callback(self.plugins.close)
            stack.callback(self._forget)
            if not device.lost:
                stack.enter_context(device)
                for owner in (*self.engines, *self.lanes):
                    stack.callback(owner.close)
                if self.cache_file and self.lanes:
                    stack.callback(self.cache_file.save)

    def _forget(self) -> None:
        self.lanes.clear()
        self.engines.clear()
        self.cache_file = self._runtime = None
