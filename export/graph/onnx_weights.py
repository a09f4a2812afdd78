"""The weights of an ONNX graph: one file beside it, written and read one tensor at a time, equal tensors stored once."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from ...runtime.errors import InputError

EXTERNAL_FROM_NBYTES = 1024  # smaller ones stay in the graph: shapes, axes and scalars must be readable without the weights file
ALIGNMENT, PAGE = 64, 4096


@dataclass(frozen=True)
class Extent:
    """Where a tensor lies in the weights file."""

    offset: int
    nbytes: int


class WeightsWriter:
    """Appends tensors to a file; bytes that are there already are not written again.

    Tensors of a page and more begin at a page, so that they can be mapped; smaller ones at 64 bytes.
    """

    def __init__(self, path: Path):
        self._file = open(path, "wb")  # noqa: SIM115 - closed by __exit__
        self._end = 0
        self._known: dict[bytes, Extent] = {}

    def add(self, array: np.ndarray) -> Extent:
        """Write one C-contiguous little-endian array, of any dtype whose elements are whole bytes."""
        data = memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8)) if array.size else memoryview(b"")
        key = hashlib.blake2b(data, digest_size=16).digest()
        if key in self._known:
            return self._known[key]
        offset = -(-self._end // (step := PAGE if len(data) >= PAGE else ALIGNMENT)) * step
        self._file.write(bytes(offset - self._end))
        self._file.write(data)
        self._end = offset + len(data)
        self._known[key] = Extent(offset, len(data))
        return self._known[key]

    def __enter__(self) -> WeightsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def nbytes(self) -> int:
        """Size of the file so far."""
        return self._end


def external_extent(tensor: TensorProto) -> tuple[str, int, int | None] | None:
    """File name, offset and length of a tensor that lies outside the graph, or None.

    Raises:
        InputError: if offset or length is no number.
    """
    if tensor.data_location != TensorProto.EXTERNAL:
        return None
    facts = {entry.key: entry.value for entry in tensor.external_data}
    try:
        return facts.get("location", ""), int(facts.get("offset", "0") or 0), int(facts["length"]) if facts.get("length") else None
    except ValueError as error:
        raise _broken(tensor, error) from error


def safe_data_path(folder: Path, location: str, tensor: str) -> Path:
    """The file an ONNX graph names for its weights, if it lies in the graph's own folder.

    Raises:
        InputError: if the name is absolute, climbs out, is a link to elsewhere, or the file is missing.
    """
    wrong = InputError(
        f"the tensor {tensor} says its weights lie in {location!r}", wanted="a file beside the graph", fix="do not use this graph, or convert it again"
    )
    path = folder / location
    try:
        if "\\" in location and not path.exists():  # written on Windows
            path = folder / location.replace("\\", "/")
        inside, is_file = os.path.realpath(folder), path.is_file()
        outside = not location or os.path.isabs(location) or os.path.commonpath([inside, os.path.realpath(path)]) != inside
    except (OSError, ValueError) as error:  # no name that a file can have
        raise wrong from error
    if outside:
        raise wrong
    if not is_file:
        raise InputError(f"{path}, which holds the weights of the graph, is missing", fix="copy it beside the graph")
    return path


def read_array(tensor: TensorProto, folder: Path) -> np.ndarray:
    """The values of an initialiser; one that lies outside the graph is mapped, not read.

    Raises:
        InputError: if its file is unsafe, missing or too short, or its values are not of the type and shape that it names.
    """
    extent = external_extent(tensor)
    try:
        if extent is None:
            return onnx.numpy_helper.to_array(tensor)
        dtype, count = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)), math.prod(tensor.dims)
        if min(tensor.dims, default=0) < 0:
            raise ValueError(f"its shape is {list(tensor.dims)}")
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise _broken(tensor, error) from error
    location, offset, length = extent
    path = safe_data_path(folder, location, tensor.name)
    nbytes = -(-count // 2) if tensor.data_type == TensorProto.INT4 else count * dtype.itemsize
    if offset < 0 or nbytes != (length if length is not None else nbytes) or offset + nbytes > path.stat().st_size:
        raise InputError(f"{path} does not hold all of the tensor {tensor.name}", wanted=f"{nbytes} bytes at {offset}", fix="copy or export it again")
    if not count:
        return np.zeros(tuple(tensor.dims), dtype)
    if tensor.data_type == TensorProto.INT4:
        pairs = np.fromfile(path, np.uint8, nbytes, offset=offset)
        nibbles = np.stack([pairs & 15, pairs >> 4], axis=1).reshape(-1)[:count].view(np.int8)
        return np.where(nibbles > 7, nibbles - 16, nibbles).astype(dtype).reshape(tuple(tensor.dims))
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=tuple(tensor.dims))


def _broken(tensor: TensorProto, error: Exception) -> InputError:
    return InputError(f"the tensor {tensor.name!r} is broken ({error})", wanted="values of a known type in its shape", fix="copy or export the graph again")


class Constants(Mapping):
    """The initialisers of a graph by name. Each look-up maps the file anew, so that nothing read stays in memory."""

    def __init__(self, model: onnx.ModelProto, folder: Path):
        self._tensors, self._folder = {tensor.name: onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in model.graph.initializer}, folder

    def __getitem__(self, name: str) -> np.ndarray:
        return read_array(self._tensors[name], self._folder)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def point_outside(tensor: TensorProto, location: str, extent: Extent) -> None:
    """Make an initialiser refer to bytes in a file beside the graph."""
    for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data"):
        tensor.ClearField(field)
    del tensor.external_data[:]
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(extent.offset)), ("length", str(extent.nbytes))):
        tensor.external_data.add(key=key, value=value)
