"""Whether an engine holds its weights in the type that the typed graph gives them: their bytes are looked for in it.

TensorRT-RTX compiles kernels on the card and keeps the weights of convolutions and matrix products as they came, channels last. (Seen with
1.7.1; plain TensorRT orders them by the kernels it chose, so there is nothing to look for.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from ..graph.onnx_weights import Constants
from ..graph.product_types import PRODUCTS

LEAST_CHANNELS = 16  # shorter rows are padded
LOOKED_AT_NBYTES, LEAST_DISTINCT = 64, 12
ROWS_TRIED = 64
CHUNK_WORDS = 1 << 22
WORD = np.dtype("<u4")


@dataclass(frozen=True)
class StoredWeights:
    """What was found of one type.

    Args:
        stored: how many weights were found.
        looked_for: how many have a row of bytes that can be told from others.
        missing: names of those that were not found.
    """

    stored: int
    looked_for: int
    missing: tuple[str, ...]


def stored_weights(engine: Path, graph: Path) -> dict[str, StoredWeights]:
    """Look for the weight of every convolution and matrix product of a typed graph in its engine.

    Of each weight one row of channels is looked for, up to 64 bytes that differ among themselves.

    Returns:
        dtype (``int8``, ``float16``, ``float32``, ``bfloat16``) -> what was found.
    """
    needles: dict[str, list[bytes]] = {}
    kinds: dict[str, str] = {}
    for name, values, axes in _weights(graph):
        if rows := [row for axis in axes if (row := _row(values, axis))]:
            needles[name], kinds[name] = rows, values.dtype.name
    found = _look(engine, needles)
    result = {}
    for kind in sorted(set(kinds.values())):
        mine = [name for name in needles if kinds[name] == kind]
        result[kind] = StoredWeights(sum(name in found for name in mine), len(mine), tuple(name for name in mine if name not in found))
    return result


def _weights(graph: Path) -> Iterator[tuple[str, np.ndarray, tuple[int, ...]]]:
    """Name and values of every weight, once each, as it lies in the typed graph, and the axes that may be the innermost one in the engine."""
    model = onnx.load(str(graph), load_external_data=False)
    constants, makers = Constants(model, graph.parent), {name: node for node in model.graph.node for name in node.output}
    seen = set()
    for node in model.graph.node:
        if node.op_type not in PRODUCTS or len(node.input) < 2:
            continue
        name = node.input[1]
        if name in makers and makers[name].op_type == "DequantizeLinear":
            name = makers[name].input[0]
        if name in constants and name not in seen:
            seen.add(name)
            values = constants[name]
            axes = _innermost(node, values.shape)
            if all(values.shape[axis] >= LEAST_CHANNELS for axis in axes):
                yield name, values, axes


def _innermost(node: onnx.NodeProto, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes that may be innermost in the engine: a convolution's input channels, both of a 1x1 convolution or Gemm, which may be stored transposed."""
    if node.op_type.startswith("Conv"):
        return (1,) if any(size > 1 for size in shape[2:]) else (1, 0)
    return (0, 1) if node.op_type == "Gemm" else (len(shape) - 1,)


def _row(values: np.ndarray, axis: int) -> bytes:
    """Bytes along an axis that differ among themselves as much as any; empty if they could stand anywhere."""
    rows = np.moveaxis(values, axis, -1)[tuple(slice(0, ROWS_TRIED) for _ in range(values.ndim - 1))]
    rows = rows.reshape(-1, values.shape[axis])[:ROWS_TRIED, : LOOKED_AT_NBYTES // values.dtype.itemsize]
    best = max((np.ascontiguousarray(row).tobytes() for row in rows), key=lambda row: len(set(row)))
    return best if len(set(best)) >= LEAST_DISTINCT and any(best[: WORD.itemsize]) else b""


def _look(engine: Path, needles: dict[str, list[bytes]]) -> set[str]:
    """Names of those of which some row stands in the file, at a multiple of four bytes."""
    waiting: dict[int, list[tuple[bytes, str]]] = {}
    for name, rows in needles.items():
        for row in rows:
            waiting.setdefault(int.from_bytes(row[: WORD.itemsize], "little"), []).append((row, name))
    if not waiting:
        return set()
    beginnings = np.array(sorted(waiting), WORD)
    low = np.zeros(1 << 16, bool)  # a cheap sieve over the lower halves of the words
    low[beginnings & 0xFFFF] = True
    found: set[str] = set()
    words = np.memmap(engine, WORD, "r", shape=engine.stat().st_size // WORD.itemsize)
    whole = words.view(np.uint8)
    for start in range(0, len(words), CHUNK_WORDS):
        chunk = words[start : start + CHUNK_WORDS]
        places = np.flatnonzero(low[chunk & 0xFFFF])
        for place in places[np.isin(chunk[places], beginnings)]:
            at = (start + int(place)) * WORD.itemsize
            for row, name in waiting[int(chunk[place])]:
                if name not in found and whole[at : at + len(row)].tobytes() == row:
                    found.add(name)
    return found
