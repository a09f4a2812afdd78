"""A quantised layer as a matrix product: some rows of what it reads, and its weight, so that its output's error can be told from a sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from ..graph.stage_graph import StageGraph

MOST_ROWS, MOST_FLOATS = 512, 1 << 18  # of one layer's sample


@dataclass(frozen=True)
class Geometry:
    """How a layer reads its input.

    Args:
        kind: ``rows`` for matrix products, ``patches`` for convolutions, ``pixels`` for transposed ones.
        kernel, strides, pads, dilations: of a convolution, (height, width); pads top, left, bottom, right.
        groups: of its channels.
        width: how many numbers one row has.
    """

    kind: str
    width: int
    groups: int = 1
    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)

    @property
    def key(self) -> str:
        """Layers that read one tensor with equal keys read the same rows."""
        if self.kind != "patches":
            return self.kind
        return f"patches {self.kernel} {self.strides} {self.pads} {self.dilations}"

    @property
    def rows(self) -> int:
        """How many rows are kept."""
        return max(16, min(MOST_ROWS, MOST_FLOATS // max(self.width, 1)))


def geometry_of(graph: StageGraph, node: onnx.NodeProto) -> Geometry | None:
    """How a node with a constant weight reads its input; None if it is no layer of a kind that is known here."""
    if len(node.input) < 2 or node.input[1] not in graph.constants:
        return None
    return geometry(node, tuple(graph.constants[node.input[1]].dims))


def geometry(node: onnx.NodeProto, shape: tuple[int, ...]) -> Geometry | None:
    """The same of a node whose weight has this shape, wherever it comes from."""
    facts = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type in ("MatMul", "Gemm"):
        plain = not facts.get("transA", 0) and facts.get("alpha", 1.0) == 1.0 and facts.get("beta", 1.0) == 1.0
        return Geometry("rows", shape[1] if facts.get("transB", 0) else shape[0]) if len(shape) == 2 and plain else None
    if node.op_type not in ("Conv", "ConvTranspose") or len(shape) != 4 or facts.get("auto_pad", b"NOTSET") not in (b"NOTSET", b""):
        return None
    groups, strides = facts.get("group", 1), tuple(facts.get("strides", (1, 1)))
    if node.op_type == "ConvTranspose":
        return Geometry("pixels", shape[0], groups, shape[2:], strides)
    pads, dilations = tuple(facts.get("pads", (0, 0, 0, 0))), tuple(facts.get("dilations", (1, 1)))
    return Geometry("patches", shape[1] * groups * shape[2] * shape[3], groups, shape[2:], strides, pads, dilations)


def sample_rows(geometry: Geometry, values: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Some rows of what a layer reads: float32 [count or fewer, width], a patch with its channels first.

    Args:
        values: the tensor, [..., C] of a matrix product, [N, C, H, W] of a convolution.
    """
    there = int(np.prod(_grid(geometry, values.shape)))
    return _rows_at(geometry, values, random.integers(0, there, min(count, there)))


def greatest_rows(geometry: Geometry, values: np.ndarray, count: int) -> np.ndarray:
    """The rows in the middle of which the greatest magnitudes lie (at a border as near as can be): as ``sample_rows``."""
    sizes = np.abs(values).max(axis=-1 if geometry.kind == "rows" else 1)  # of every position
    places = np.argpartition(sizes.ravel(), -min(count, sizes.size))[-min(count, sizes.size) :]
    if geometry.kind == "patches":
        grid = _grid(geometry, values.shape)
        image, *at = np.unravel_index(places, sizes.shape)
        middle = [d * (k // 2) for d, k in zip(geometry.dilations, geometry.kernel, strict=True)]
        facts = zip(at, geometry.pads[:2], middle, geometry.strides, grid[1:], strict=True)
        places = np.ravel_multi_index((image, *(np.clip((x + pad - m) // step, 0, most - 1) for x, pad, m, step, most in facts)), grid)
    return _rows_at(geometry, values, places)


def _grid(geometry: Geometry, shape: tuple[int, ...]) -> tuple[int, ...]:
    """How many rows a tensor holds, along each of its axes."""
    if geometry.kind == "rows":
        return shape[:-1]
    n, _, h, w = shape
    if geometry.kind == "pixels":
        return n, h, w
    (kh, kw), (sh, sw), (dh, dw) = geometry.kernel, geometry.strides, geometry.dilations
    top, left, bottom, right = geometry.pads
    return n, (h + top + bottom - dh * (kh - 1) - 1) // sh + 1, (w + left + right - dw * (kw - 1) - 1) // sw + 1


def _rows_at(geometry: Geometry, values: np.ndarray, places: np.ndarray) -> np.ndarray:
    if geometry.kind == "rows":
        return values.reshape(-1, values.shape[-1])[places].astype(np.float32)
    image, row, column = np.unravel_index(places, _grid(geometry, values.shape))
    if geometry.kind == "pixels":
        return values[image, :, row, column].astype(np.float32)
    _, _, h, w = values.shape
    (kh, kw), (sh, sw), (dh, dw) = geometry.kernel, geometry.strides, geometry.dilations
    top, left, _, _ = geometry.pads
    rows = row[:, None] * sh - top + np.arange(kh) * dh  # [count, kh]
    columns = column[:, None] * sw - left + np.arange(kw) * dw  # [count, kw]
    inside = ((rows >= 0) & (rows < h))[:, :, None] & ((columns >= 0) & (columns < w))[:, None, :]  # [count, kh, kw]
    found = values[image[:, None, None], :, np.clip(rows, 0, h - 1)[:, :, None], np.clip(columns, 0, w - 1)[:, None, :]]  # [count, kh, kw, C]
    found = np.where(inside[..., None], found, 0).transpose(0, 3, 1, 2)
    return found.reshape(len(found), -1).astype(np.float32)


def weight_matrix(graph: StageGraph, node: onnx.NodeProto, weight: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The weight as [groups, width / groups, outputs of a group]; of a transposed convolution every tap is an output of its own."""
    if geometry.kind == "rows":
        facts = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        return np.asarray(weight.T if facts.get("transB", 0) else weight)[None]
    g = geometry.groups
    if geometry.kind == "patches":  # [O, I/g, kh, kw]
        return weight.reshape(g, weight.shape[0] // g, -1).transpose(0, 2, 1)
    return weight.reshape(g, weight.shape[0] // g, -1)  # [I, O/g, kh, kw]


def layer_output(rows: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """What the layer makes of some rows, without its bias: [count, groups, outputs of a group]."""
    groups, width, _ = matrix.shape
    parted = rows.reshape(len(rows), groups, width).transpose(1, 0, 2)  # [groups, count, width]
    return np.matmul(parted, matrix).transpose(1, 0, 2)


def by_channel(error: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The mean error of every output channel, [O], from that of ``layer_output`` [groups, outputs of a group]."""
    if geometry.kind != "pixels":
        return error.reshape(-1)
    taps = geometry.kernel[0] * geometry.kernel[1]
    return error.reshape(-1, taps).sum(axis=1) / (geometry.strides[0] * geometry.strides[1])
