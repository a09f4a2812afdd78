"""Photos to maps without leaving the GPU: our kernels before and after the stages."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..artefact.contract import Contract, Protocol
from ..artefact.spec import DTYPES
from ..cuda.device import Device
from ..cuda.resources import DeviceBuffer, PinnedBuffer
from ..kernels.device_kernels import NOTHING_FOUND, DeviceKernels, launch_inspect, launch_postprocess, launch_preprocess, read_inspection
from ..kernels.records import WINDOW, Gather, gather_of, postprocess_record, preprocess_record
from ..photo.preprocess import Placed, windows_of
from ..sequences import zip_equal

if TYPE_CHECKING:
    from .chain import Chain

    Maps = list[tuple[np.ndarray, np.ndarray]]


class DevicePhotos:
    """The buffers of one job on its way; they grow to the largest job they met."""

    def __init__(self, device: Device, chain: Chain, contract: Contract, least: int, kernels: DeviceKernels):
        self._device, self._chain, self._contract, self._least = device, chain, contract, least
        self._launch = kernels.on(chain.stream)
        self._buffers: dict[str, DeviceBuffer] = {}
        self._pinned: dict[str, PinnedBuffer] = {}

    def send(self, photos: list[np.ndarray], placed: list[tuple[Placed, ...]], protocol: Protocol, batch: int) -> Callable[[], Maps | None]:
        """Send everything to the stream, ``batch`` windows per run; returns what collects the maps once the stream got there (None: they need the CPU)."""
        gathers = [gather_of(steps, photo.shape[:2]) for photo, steps in zip_equal(photos, placed)]
        if None in gathers or len(self._chain.inputs) != 1:
            return lambda: None
        windows = windows_of(protocol)
        chain, contract, count = self._chain, self._contract, len(windows) * len(photos)
        output = chain.outputs[contract.output.tensor]
        item_shape = self._item_shape(output.name)
        item_nbytes = int(np.prod(item_shape)) * DTYPES[output.dtype].itemsize
        pixels = [photo.shape[0] * photo.shape[1] for photo in photos]
        starts = np.concatenate([[0], np.cumsum(pixels)]).tolist()
        sizes = {"photos": starts[-1] * 3, "windows": len(windows) * WINDOW.itemsize, "outputs": count * item_nbytes, "found": count * 12}
        address = self._reserve({**sizes, "values": starts[-1] * 4, "valid": starts[-1]})

        source = self._pin("photos")
        for photo, start in zip(photos, starts):
            source[start * 3 : start * 3 + photo.size].reshape(photo.shape)[:] = photo
        self._upload("photos", starts[-1] * 3)
        self._pin("windows")[: sizes["windows"]] = np.array([(w.left, w.flip, w.fill) for w in windows], WINDOW).view(np.uint8)
        self._upload("windows", sizes["windows"])
        self._pin("found")[: sizes["found"]] = np.tile(NOTHING_FOUND, count).view(np.uint8)
        self._upload("found", sizes["found"])

        self._run(gathers, windows, starts, address, item_nbytes, batch)
        is_fp16 = output.dtype == "float16"
        launch_inspect(self._launch, address["outputs"], address["found"], count, int(np.prod(item_shape)), is_fp16)
        for number, gather in enumerate(gathers):
            tensor = address["outputs"] + number * len(windows) * item_nbytes
            places = (address["values"] + starts[number] * 4, address["valid"] + starts[number])
            shape = (len(windows), *item_shape)
            launch_postprocess(self._launch, postprocess_record(gather, contract.input, contract.output, shape, is_fp16, tensor, address["windows"], *places))
        for name, nbytes in (("found", sizes["found"]), ("values", starts[-1] * 4), ("valid", starts[-1])):
            self._device.download(self._pin(name)[:nbytes], self._buffers[name].address, chain.stream.handle)
        return lambda: self._collect(gathers, starts, count)

    def _run(self, gathers: list[Gather], windows: tuple, starts: list[int], address: dict[str, int], item_nbytes: int, batch: int) -> None:
        """All windows of all photos through the network, as many at a time as it takes; outputs are collected in that order."""
        chain, contract = self._chain, self._contract
        image, output = chain.inputs[contract.input.tensor], chain.outputs[contract.output.tensor]
        order = [(number, window) for number in range(len(gathers)) for window in windows]
        canvas_nbytes = 3 * contract.input.canvas[0] * contract.input.canvas[1] * DTYPES[image.dtype].itemsize
        for start in range(0, len(order), batch):
            some = order[start : start + batch]
            size = max(len(some), self._least)
            chain.set_shapes({image.name: (size, 3, *contract.input.canvas)})
            for place in range(size):
                number, window = some[min(place, len(some) - 1)]  # an engine with a least batch gets the last window again
                record = preprocess_record(
                    gathers[number],
                    window,
                    contract.input,
                    address["photos"] + starts[number] * 3,
                    chain.addresses[image.name] + place * canvas_nbytes,
                    image.dtype == "float16",
                )
                launch_preprocess(self._launch, record)
            chain.run()
            chain.stream.copy(chain.addresses[output.name], address["outputs"] + start * item_nbytes, len(some) * item_nbytes)

    def _item_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._chain.shapes[name][1:])

    def _reserve(self, sizes: dict[str, int]) -> dict[str, int]:
        """Addresses of buffers that are at least so large."""
        small = [name for name, size in sizes.items() if name not in self._buffers or self._buffers[name].nbytes < size]
        if small:
            self._chain.stream.synchronize()  # nobody may still use what is replaced
        for name in small:
            for old in (self._buffers.pop(name, None), self._pinned.pop(name, None)):
                if old is not None:
                    old.close()
            self._buffers[name] = DeviceBuffer(self._device, sizes[name])
            if name != "outputs":
                self._pinned[name] = PinnedBuffer(self._device, (sizes[name],), np.dtype(np.uint8))
        return {name: buffer.address for name, buffer in self._buffers.items()}

    def _pin(self, name: str) -> np.ndarray:
        return self._pinned[name].array

    def _upload(self, name: str, nbytes: int) -> None:
        self._device.upload(self._buffers[name].address, self._pin(name)[:nbytes], self._chain.stream.handle)

    def _collect(self, gathers: list[Gather], starts: list[int], count: int) -> Maps | None:
        bad, least, greatest = read_inspection(self._pin("found")[: count * 12].view(np.int32).reshape(count, 3))
        if bad.any() or (least == greatest).any():
            return None
        values, valid = self._pin("values")[: starts[-1] * 4].view(np.float32), self._pin("valid")[: starts[-1]].view(np.bool_)
        return [
            (values[a:b].reshape(gather.photo).copy(), valid[a:b].reshape(gather.photo).copy()) for gather, a, b in zip_equal(gathers, starts[:-1], starts[1:])
        ]
