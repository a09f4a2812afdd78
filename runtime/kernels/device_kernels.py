"""Our own CUDA kernels, loaded from the cubins and the PTX that ship with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..cuda.device import Device
from ..cuda.resources import Module, Stream
from ..errors import DeviceLostError, FathomError, OutOfMemoryError
from .antialias import ANTIALIAS
from .records import INSPECT, POSTPROCESS, PREPROCESS

IMAGES = Path(__file__).parent
BLOCK = (32, 8, 1)
MODULE_OF = {
    "fathom_antialias": "antialias",
    "fathom_preprocess": "preprocess",
    "fathom_postprocess": "postprocess",
    "fathom_inspect": "postprocess",
    "fathom_bins_expectation": "bins_expectation",
    "fathom_group_norm_silu": "group_norm_silu",
    "fathom_group_norm_partial": "group_norm_silu",
    "fathom_group_norm_apply": "group_norm_silu",
    "fathom_cross_attention_40": "cross_attention",
    "fathom_cross_attention_80": "cross_attention",
    "fathom_cross_attention_128": "cross_attention",
}
INSPECT_BLOCKS, INSPECT_THREADS = 16, 256
NOTHING_FOUND = np.array([0, 0x7FFFFFFF, -0x80000000], np.int32)


class Launch(Protocol):
    """Starts one kernel: name, grid, block, struct."""

    def __call__(self, name: str, grid: tuple[int, int, int], block: tuple[int, int, int], parameters: np.ndarray) -> Any: ...


class DeviceKernels:
    """The loaded modules of one device.

    Raises:
        EnvironmentMismatchError: if neither the cubins nor the PTX fit this device and driver.
    """

    def __init__(self, device: Device):
        self._modules: dict[str, Module] = {}
        try:
            for name in dict.fromkeys(MODULE_OF.values()):
                self._modules[name] = _load(device, name)
        except BaseException:
            self.close()
            raise

    def on(self, stream: Stream) -> Launch:
        """A function that starts kernels on a stream."""

        def launch(name: str, grid: tuple[int, int, int], block: tuple[int, int, int], parameters: np.ndarray) -> None:
            self._modules[MODULE_OF[name]].launch(name, grid, block, parameters, stream)

        return launch

    def close(self) -> None:
        """Unload them; may be called twice."""
        for module in self._modules.values():
            module.close()
        self._modules.clear()


def open_kernels(device: Device, wanted: bool, needed: bool) -> tuple[DeviceKernels | None, str]:
    """Our kernels, or None and the remark why photos are shaped on the CPU.

    Args:
        wanted: for photos, which can be shaped without them.
        needed: by a kernel stage, which cannot run without them.

    Raises:
        EnvironmentMismatchError: if they are needed and do not fit this device and driver.
        DeviceLostError, OutOfMemoryError: as the device says.
    """
    try:
        opened = DeviceKernels(device) if wanted or needed else None
    except FathomError as error:
        if needed or isinstance(error, (DeviceLostError, OutOfMemoryError)):
            raise
        return None, f"photos are shaped on the CPU: {error}"
    return opened, "" if wanted else "photos are shaped on the CPU: our kernels were not wanted"


def launch_antialias(launch: Launch, record: np.ndarray) -> None:
    """One pass of a filtered resize; see ``antialias.antialias_record``."""
    assert record.dtype == ANTIALIAS
    launch("fathom_antialias", _grid(int(record["width"]), int(record["height"])), BLOCK, record)


def launch_preprocess(launch: Launch, record: np.ndarray) -> None:
    """One window: uint8 photo to [3, canvas height, canvas width]; see ``records.preprocess_record``."""
    assert record.dtype == PREPROCESS
    launch("fathom_preprocess", _grid(int(record["canvas_width"]), int(record["canvas_height"])), BLOCK, record)


def launch_postprocess(launch: Launch, record: np.ndarray) -> None:
    """All windows of one photo to its map; see ``records.postprocess_record``."""
    assert record.dtype == POSTPROCESS
    launch("fathom_postprocess", _grid(int(record["photo_width"]), int(record["photo_height"])), BLOCK, record)


def launch_inspect(launch: Launch, tensor: int, found: int, items: int, item_size: int, is_fp16: bool) -> None:
    """Count what is not finite and find the extremes of each item.

    Args:
        tensor: address of [items, item_size].
        found: address of int32 [items, 3], set to ``NOTHING_FOUND`` before; read with ``read_inspection``.
    """
    record = np.zeros((), INSPECT)
    record["tensor"], record["found"], record["items"], record["item_size"], record["tensor_is_half"] = tensor, found, items, item_size, is_fp16
    launch("fathom_inspect", (INSPECT_BLOCKS, items, 1), (INSPECT_THREADS, 1, 1), record)


def read_inspection(found: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """From int32 [items, 3]: number of values that are not finite (int), smallest and largest finite value (float32) of each item."""
    bits = np.where(found[:, 1:] >= 0, found[:, 1:], found[:, 1:] ^ 0x7FFFFFFF).astype(np.int32)
    extremes = np.ascontiguousarray(bits).view(np.float32)
    return found[:, 0], extremes[:, 0], extremes[:, 1]


def _grid(width: int, height: int) -> tuple[int, int, int]:
    return -(-width // BLOCK[0]), -(-height // BLOCK[1]), 1


def _load(device: Device, name: str) -> Module:
    try:
        return Module(device, (IMAGES / f"{name}.fatbin").read_bytes())
    except (DeviceLostError, OutOfMemoryError):
        raise
    except FathomError:  # no cubin for this GPU, or an older driver: the driver's own compiler takes the PTX
        return Module(device, (IMAGES / f"{name}.ptx").read_bytes())
