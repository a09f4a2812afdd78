"""Photos to maps without leaving the GPU: our kernels before and after the stages, copies on a stream of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..artefact.contract import Contract, Protocol
from ..artefact.spec import DTYPES
from ..cuda.device import Device
from ..cuda.resources import DeviceBuffer, Event, PinnedBuffer, Stream
from ..kernels.antialias import antialias_record, filter_table, passes
from ..kernels.device_kernels import NOTHING_FOUND, DeviceKernels, launch_antialias, launch_inspect, launch_postprocess, launch_preprocess, read_inspection
from ..kernels.records import WINDOW, Gather, gather_of, postprocess_record, preprocess_record
from ..photo.postprocess import way_back
from ..photo.preprocess import Placed, windows_of
from ..photo.raw_maps import RawMaps
from ..sequences import pairwise, zip_equal
from .memory_plan import ALIGNMENT

if TYPE_CHECKING:
    from .chain import Chain


@dataclass(frozen=True)
class PhotoJob:
    """Photos that go from pixels to maps on the GPU.

    Args:
        photos: uint8 [H, W, 3] each.
        placed: the steps of the protocol on each photo.
        batch: windows per run.
        text: tensors of a network that takes words, by name: [windows of all photos, ...].
        timed: tell where the device's time went.
    """

    photos: list[np.ndarray]
    placed: list[tuple[Placed, ...]]
    protocol: Protocol
    batch: int
    text: dict[str, np.ndarray]
    timed: bool = False

    def nbytes(self) -> int:
        """Device memory that the photos, what they are resized to, and their maps take."""
        total = 0
        for photo, placed in zip_equal(self.photos, self.placed):
            pixels = photo.shape[0] * photo.shape[1]
            gather = gather_of(placed, photo.shape[:2])
            total += 8 * pixels + (sum(3 * h * w for _, (h, w) in passes(gather.region[2:], gather.resized)) if gather and gather.filtered else 0)
        return total


class SlotEvents:
    """The stream for one slot's copies, and the events that order it with the lane's stream."""

    def __init__(self, device: Device):
        self.copies = Stream(device)
        self.sent, self.arrived, self.began, self.ended, self.computed, self.done = (Event(device) for _ in range(6))

    def parts_ms(self) -> dict[str, float]:
        """See ``RawMaps.parts_ms``; all of them reached."""
        names = ("copy_in", "shaping", "network", "finishing", "copy_out")
        marks = (self.sent, self.arrived, self.began, self.ended, self.computed, self.done)
        return {name: later.since_ms(earlier) for name, (earlier, later) in zip_equal(names, pairwise(marks))}


class DevicePhotos:
    """The buffers of one slot, sized to the largest job so far; never shrunk."""

    def __init__(self, device: Device, chain: Chain, contract: Contract, min_batch: int, kernels: DeviceKernels, events: SlotEvents):
        self._device, self._chain, self._contract, self._min_batch, self._events = device, chain, contract, min_batch, events
        self._launch = kernels.on(chain.stream)
        self._buffers: dict[str, DeviceBuffer] = {}
        self._pinned: dict[str, PinnedBuffer] = {}

    def send(self, job: PhotoJob) -> Callable[[], RawMaps]:
        """Send everything to the streams, ``batch`` windows per run; returns what collects the maps once ``SlotEvents.done`` is reached."""
        placed, gathers = [], []
        for photo, steps in zip_equal(job.photos, job.placed):
            before, (back, map_size) = gather_of(steps, photo.shape[:2]), way_back(steps, job.protocol, self._contract.input.window)
            after = gather_of(back, photo.shape[:2])
            if before is None or after is None:
                return _cpu(f"the protocol {job.protocol.name} resizes more than once, or pads before it resizes")
            gathers.append(before)
            placed.append((after, map_size))
        unknown = self._chain.inputs.keys() - {self._contract.input.tensor} - job.text.keys()
        if unknown:
            return _cpu(f"the network takes the tensor {min(unknown)}, which is neither the photo nor words")
        windows = windows_of(job.protocol)
        chain, contract, count = self._chain, self._contract, len(windows) * len(job.photos)
        output = chain.outputs[contract.output.tensor]
        item_shape = tuple(chain.shapes[output.name][1:])
        item_nbytes = int(np.prod(item_shape)) * DTYPES[output.dtype].itemsize
        table, table_at = _tables(gathers)
        starts = np.concatenate([[0], np.cumsum([photo.shape[0] * photo.shape[1] for photo in job.photos])]).tolist()
        text = {name: np.ascontiguousarray(array, DTYPES[chain.inputs[name].dtype]) for name, array in job.text.items()}
        sources = {
            "windows": np.array([(w.left, w.flip, w.fill) for w in windows], WINDOW),
            "found": np.tile(NOTHING_FOUND, count),
            "filters": table,
            **{f"text {name}": array for name, array in text.items()},
        }
        between, resized = _room_to_resize(gathers)
        sizes = {"photos": starts[-1] * 3, "outputs": count * item_nbytes, "between": between, "resized": resized[-1]}
        sources = {name: array for name, array in sources.items() if array.nbytes}
        sizes.update({"values": starts[-1] * 4, "valid": starts[-1]}, **{name: array.nbytes for name, array in sources.items()})
        address = self._reserve({name: size for name, size in sizes.items() if size})
        table_at = {key: address["filters"] + place for key, place in table_at.items()}

        events, copies = self._events, self._events.copies
        source = self._pin("photos")
        for photo, start in zip(job.photos, starts):
            source[start * 3 : start * 3 + photo.size].reshape(photo.shape)[:] = photo
        events.sent.record(copies)
        self._upload("photos", starts[-1] * 3)
        for name, array in sources.items():
            self._pin(name)[: array.nbytes] = array.view(np.uint8).reshape(-1)
            self._upload(name, array.nbytes)
        events.arrived.record(copies)
        chain.stream.wait_for(events.arrived)

        pixels = [address["photos"] + start * 3 for start in starts[:-1]]
        for number, gather in enumerate(gathers):
            if gather.filtered:
                pixels[number] = self._resize(gather, pixels[number], table_at, address.get("between", 0), address["resized"] + resized[number])
        self._run(job, gathers, windows, pixels, address, item_nbytes)
        is_fp16 = output.dtype == "float16"
        launch_inspect(self._launch, address["outputs"], address["found"], count, int(np.prod(item_shape)), is_fp16)
        for number, (gather, map_size) in enumerate(placed):
            tensor = address["outputs"] + number * len(windows) * item_nbytes
            places = (address["values"] + starts[number] * 4, address["valid"] + starts[number])
            shape = (len(windows), *item_shape)
            launch_postprocess(self._launch, postprocess_record(gather, map_size, contract.output, shape, is_fp16, tensor, address["windows"], *places))
        events.computed.record(chain.stream)
        copies.wait_for(events.computed)
        for name, nbytes in (("found", count * 12), ("values", starts[-1] * 4), ("valid", starts[-1])):
            self._device.download(self._pin(name)[:nbytes], address[name], copies.handle)
        events.done.record(copies)
        return lambda: self._collect(gathers, starts, count, job.timed)

    def _resize(self, gather: Gather, photo: int, table_at: dict[tuple, int], between: int, target: int) -> int:
        """Send the passes of a filtered resize; returns where the result lies."""
        top, left, *region = gather.region
        row = gather.photo[1] * 3
        source = photo + top * row + left * 3
        steps = passes(tuple(region), gather.resized)
        for number, (across, size) in enumerate(steps):
            key = _key(gather, across)
            to = target if number == len(steps) - 1 else between
            launch_antialias(self._launch, antialias_record(source, row, to, size, table_at[key], filter_table(*key).shape[1] - 2, across))
            source, row = to, size[1] * 3
        return source

    def _run(self, job: PhotoJob, gathers: list[Gather], windows: tuple, pixels: list[int], address: dict[str, int], item_nbytes: int) -> None:
        """All windows of all photos through the network, as many at a time as it takes; outputs are collected in that order."""
        chain, contract, events = self._chain, self._contract, self._events
        image, output = chain.inputs[contract.input.tensor], chain.outputs[contract.output.tensor]
        order = [(number, window) for number in range(len(gathers)) for window in windows]
        canvas_nbytes = 3 * contract.input.canvas[0] * contract.input.canvas[1] * DTYPES[image.dtype].itemsize
        rows = {name: array[0].size * DTYPES[chain.inputs[name].dtype].itemsize for name, array in job.text.items()}
        for start in range(0, len(order), job.batch):
            some = order[start : start + job.batch]
            size = max(len(some), self._min_batch)
            shapes = {name: (size, *array.shape[1:]) for name, array in job.text.items()}
            chain.set_shapes({image.name: (size, 3, *contract.input.canvas), **shapes})
            for place in range(size):
                item = min(place, len(some) - 1)  # an engine with a minimum batch gets the last window again
                number, window = some[item]
                out = chain.addresses[image.name] + place * canvas_nbytes
                launch_preprocess(self._launch, preprocess_record(gathers[number], window, contract.input, pixels[number], out, image.dtype == "float16"))
                for name, nbytes in rows.items():
                    chain.stream.copy(address[f"text {name}"] + (start + item) * nbytes, chain.addresses[name] + place * nbytes, nbytes)
            if start == 0:
                events.began.record(chain.stream)
            chain.run()
            if start + job.batch >= len(order):
                events.ended.record(chain.stream)
            chain.stream.copy(chain.addresses[output.name], address["outputs"] + start * item_nbytes, len(some) * item_nbytes)

    def _reserve(self, sizes: dict[str, int]) -> dict[str, int]:
        """Addresses of buffers that are at least so large. The slot is idle: the buffers that are replaced are not in use."""
        for name, size in sizes.items():
            on_host = name not in ("outputs", "between", "resized")
            if name in self._buffers and self._buffers[name].nbytes >= size and (name in self._pinned or not on_host):
                continue
            for old in (self._buffers.pop(name, None), self._pinned.pop(name, None)):
                if old is not None:
                    old.close()
            self._buffers[name] = DeviceBuffer(self._device, size)
            if on_host:
                self._pinned[name] = PinnedBuffer(self._device, (size,), np.dtype(np.uint8))
        return {name: buffer.address for name, buffer in self._buffers.items()}

    def _pin(self, name: str) -> np.ndarray:
        return self._pinned[name].array

    def _upload(self, name: str, nbytes: int) -> None:
        self._device.upload(self._buffers[name].address, self._pin(name)[:nbytes], self._events.copies.handle)

    def _collect(self, gathers: list[Gather], starts: list[int], count: int, timed: bool) -> RawMaps:
        bad, low, high = read_inspection(self._pin("found")[: count * 12].view(np.int32).reshape(count, 3))
        if bad.any() or (low == high).any():
            return RawMaps(why_cpu="an output holds NaN, infinite or only equal values, and is looked into stage by stage")
        values, valid = self._pin("values")[: starts[-1] * 4].view(np.float32), self._pin("valid")[: starts[-1]].view(np.bool_)
        maps = [
            (values[a:b].reshape(gather.photo).copy(), valid[a:b].reshape(gather.photo).copy()) for gather, a, b in zip_equal(gathers, starts[:-1], starts[1:])
        ]
        return RawMaps(maps, self._events.ended.since_ms(self._events.began), parts_ms=self._events.parts_ms() if timed else {})


def _cpu(why: str) -> Callable[[], RawMaps]:
    return lambda: RawMaps(why_cpu=why)


def _key(gather: Gather, across: bool) -> tuple[int, int, str]:
    """Which ``filter_table`` one pass takes."""
    return (gather.region[2], gather.resized[0], gather.filtered) if across else (gather.region[3], gather.resized[1], gather.filtered)


def _tables(gathers: list[Gather]) -> tuple[np.ndarray, dict[tuple[int, int, str], int]]:
    """The filter tables that are wanted, each once, behind each other; and at which byte each begins."""
    wanted = {_key(gather, across) for gather in gathers if gather.filtered for across, _ in passes(gather.region[2:], gather.resized)}
    places, tables, end = {}, [np.empty(0, np.int32)], 0
    for key in sorted(wanted):
        places[key] = end
        tables.append(filter_table(*key).reshape(-1))
        end += tables[-1].nbytes
    return np.concatenate(tables), places


def _room_to_resize(gathers: list[Gather]) -> tuple[int, list[int]]:
    """Bytes between two passes (used by one photo after the other), and where each photo's result begins, with the end of the last."""
    between, starts = 0, [0]
    for gather in gathers:
        steps = passes(gather.region[2:], gather.resized) if gather.filtered else []
        between = max([between, *(3 * height * width for _, (height, width) in steps[:-1])])
        starts.append(starts[-1] + -(-(3 * gather.resized[0] * gather.resized[1] if steps else 0) // ALIGNMENT) * ALIGNMENT)
    return between, starts
