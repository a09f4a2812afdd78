"""Tensors and stages by name: what flows between the engines of a network."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ..sequences import zip_equal

DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "int64": np.dtype(np.int64),
    "int32": np.dtype(np.int32),
    "uint8": np.dtype(np.uint8),
    "bool": np.dtype(np.bool_),
}
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8", "int4")
NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
TENSOR_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./:-]{0,255}")  # networks made elsewhere call their tensors "0" or "input.1"
FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}(/[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}){0,3}")  # in an artefact: no "..", at most three folders
NETWORK_NAME = re.compile(r"[^./\\\x00-\x1f\x7f-\x9f][^/\\\x00-\x1f\x7f-\x9f]{0,127}")  # becomes the name of files: no path, no control characters
MAX_DIMENSION = 1 << 24


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of one tensor at a stage boundary.

    Args:
        name: the tensor's name, equal in every stage that touches it.
        dtype: a key of ``DTYPES``.
        shape: positive integers, or a symbol (``"batch"``) where the size is free.

    Raises:
        ValueError: if the name, the dtype or the shape is not of that form.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __post_init__(self):
        if not isinstance(self.name, str) or not TENSOR_NAME.fullmatch(self.name):
            raise ValueError(f"not a tensor name: {self.name!r}")
        if self.dtype not in DTYPES:
            raise ValueError(f"tensor {self.name}: unknown dtype {self.dtype!r}, wanted one of {', '.join(DTYPES)}")
        if not isinstance(self.shape, tuple) or len(self.shape) > 8:
            raise ValueError(f"tensor {self.name}: a shape is a tuple of at most 8 dimensions, got {self.shape!r}")
        for size in self.shape:
            symbol = isinstance(size, str) and NAME.fullmatch(size)
            number = isinstance(size, int) and not isinstance(size, bool) and 0 < size <= MAX_DIMENSION
            if not (symbol or number):
                raise ValueError(f"tensor {self.name}: {size!r} is no dimension (1 to {MAX_DIMENSION}, or a symbol)")

    def bind(self, shape: tuple[int, ...], symbols: dict[str, int]) -> None:
        """Match a concrete shape, recording what each symbol stands for.

        Raises:
            ValueError: if the rank or a size differs, or a symbol already stands for another size.
        """
        if len(shape) != len(self.shape):
            raise ValueError(f"tensor {self.name} has shape {tuple(shape)}, wanted {self.shape}")
        for got, wanted in zip_equal(shape, self.shape):
            if (symbols.setdefault(wanted, got) if isinstance(wanted, str) else wanted) != got:
                raise ValueError(f"tensor {self.name} has shape {tuple(shape)}, wanted {self.shape} with {symbols}")

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TensorSpec:
        """From JSON values; see ``fields``.

        Raises:
            ValueError: if a key is missing, unknown or of the wrong kind.
        """
        name, dtype, shape = fields(data, "tensor", name=str, dtype=str, shape=list)
        return cls(name, dtype, tuple(shape))


def largest_tensor(tensors: Iterable[TensorSpec], symbols: dict[str, int]) -> str:
    """Name, shape and size of the largest one, for messages; a symbol that stands for nothing yet counts once."""

    def sized(tensor: TensorSpec) -> tuple[int, TensorSpec, list[int]]:
        shape = [symbols.get(size, 1) if isinstance(size, str) else size for size in tensor.shape]
        return prod(shape) * DTYPES[tensor.dtype].itemsize, tensor, shape

    nbytes, tensor, shape = max(map(sized, tensors), key=lambda one: one[0])
    return f"{tensor.name} {shape} with {nbytes / 2**20:.3g} MiB"


@dataclass(frozen=True)
class StageSpec:
    """A part of a network that becomes one engine, meeting its neighbours only at named tensors.

    Raises:
        ValueError: if the name is not lower-case words, there is no input or output, or a tensor appears twice.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __post_init__(self):
        if not isinstance(self.name, str) or not NAME.fullmatch(self.name):
            raise ValueError(f"not a stage name: {self.name!r}")
        if not self.inputs or not self.outputs:
            raise ValueError(f"stage {self.name} needs at least one input and one output")
        names = [tensor.name for tensor in self.inputs + self.outputs]
        if len(set(names)) != len(names):
            raise ValueError(f"stage {self.name} names a tensor twice: {names}")

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """All of them, inputs first."""
        return self.inputs + self.outputs

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"name": self.name, "inputs": [t.to_json() for t in self.inputs], "outputs": [t.to_json() for t in self.outputs]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> StageSpec:
        """From JSON values.

        Raises:
            ValueError: if a key is missing, unknown or of the wrong kind.
        """
        name, inputs, outputs = fields(data, "stage", name=str, inputs=list, outputs=list)
        return cls(name, tuple(map(TensorSpec.from_json, inputs)), tuple(map(TensorSpec.from_json, outputs)))


def network_inputs(stages: Iterable[StageSpec]) -> dict[str, TensorSpec]:
    """The tensors of a stage chain that come from outside, because no stage makes them, by name in the order of their first use."""
    stages = tuple(stages)
    made = {tensor.name for stage in stages for tensor in stage.outputs}
    return {tensor.name: tensor for stage in stages for tensor in stage.inputs if tensor.name not in made}


def check_chain(stages: tuple[StageSpec, ...]) -> None:
    """Each stage's inputs come from the outside or from an earlier stage, with one meaning per name.

    Raises:
        ValueError: if a stage name is used twice, a tensor is made twice, or two stages disagree about one tensor.
    """
    known: dict[str, TensorSpec] = {}
    made: set[str] = set()
    if len({stage.name for stage in stages}) != len(stages):
        raise ValueError(f"a stage name is used twice: {[stage.name for stage in stages]}")
    for stage in stages:
        for tensor in stage.inputs:
            if known.setdefault(tensor.name, tensor) != tensor:
                raise ValueError(f"stage {stage.name} wants {tensor}, but elsewhere it is {known[tensor.name]}")
        for tensor in stage.outputs:
            if tensor.name in known:
                raise ValueError(f"stage {stage.name} makes {tensor.name}, which is there already")
            known[tensor.name] = tensor
            made.add(tensor.name)


def fields(data: Any, what: str, /, **kinds: type | tuple[type, ...]) -> list[Any]:
    """The values of exactly the keys in ``kinds``, in that order, each of its kind.

    Raises:
        ValueError: if ``data`` is no object, a key is missing or unknown, or a value is of another kind.
    """
    if not isinstance(data, dict):
        raise ValueError(f"{what}: an object was wanted, got {type(data).__name__}")
    if set(data) != set(kinds):
        raise ValueError(f"{what}: keys {sorted(map(str, data))}, wanted exactly {sorted(kinds)}")
    for key, kind in kinds.items():
        allowed = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(data[key], allowed) or (isinstance(data[key], bool) and bool not in allowed):
            raise ValueError(f"{what}.{key}: {data[key]!r} is not of the wanted kind ({', '.join(k.__name__ for k in allowed)})")
    return [data[key] for key in kinds]
