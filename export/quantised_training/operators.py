"""The ONNX operators of our stages in PyTorch, so that gradients flow through an exported graph."""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor

from ...runtime.errors import UsageError

DTYPES = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.BOOL: torch.bool,
}


def run_node(op_type: str, inputs: list[Tensor | None], attributes: dict, outputs: int) -> tuple[Tensor, ...]:
    """What a node makes, by the words of opset 18 and later.

    Args:
        inputs: None for one that is left out; shapes and axes lie on the CPU.
        attributes: values by name.
        outputs: how many the node has.

    Raises:
        UsageError: if the operator, or a setting of it, is not known here.
    """
    if op_type not in OPERATORS:
        raise UsageError(f"a stage holds the operator {op_type}", wanted=f"only {', '.join(sorted(OPERATORS))}: others are not learned through")
    found = OPERATORS[op_type](*inputs, outputs=outputs, **attributes) if op_type == "Split" else OPERATORS[op_type](*inputs, **attributes)
    return found if isinstance(found, tuple) else (found,)


def _refuse(what: str) -> None:
    raise UsageError(f"a stage holds {what}", wanted="a graph without it: it is not learned through")


def _padded(x: Tensor, pads: list[int], auto_pad: bytes = b"NOTSET", value: float = 0.0) -> Tensor:
    """``x`` with ONNX's pads (all beginnings, then all ends) around its last axes."""
    if auto_pad not in (b"NOTSET", b"VALID"):
        _refuse(f"auto_pad {auto_pad.decode()}")
    half = len(pads) // 2
    both = [size for axis in reversed(range(half)) for size in (pads[axis], pads[half + axis])]
    return F.pad(x, both, value=value) if any(both) else x


def _conv(x, weight, bias=None, *, strides=(1, 1), pads=(0, 0, 0, 0), dilations=(1, 1), group=1, auto_pad=b"NOTSET", kernel_shape=()):
    return F.conv2d(_padded(x, list(pads), auto_pad), weight, bias, tuple(strides), 0, tuple(dilations), group)


def _conv_transpose(
    x, weight, bias=None, *, strides=(1, 1), pads=(0, 0, 0, 0), dilations=(1, 1), group=1, output_padding=(0, 0), auto_pad=b"NOTSET", kernel_shape=()
):
    if auto_pad != b"NOTSET" or tuple(pads[:2]) != tuple(pads[2:]):
        _refuse("a transposed convolution whose pads differ from side to side")
    return F.conv_transpose2d(x, weight, bias, tuple(strides), tuple(pads[:2]), tuple(output_padding), group, tuple(dilations))


def _average_pool(x, *, kernel_shape, strides=(1, 1), pads=(0, 0, 0, 0), ceil_mode=0, count_include_pad=0, auto_pad=b"NOTSET"):
    if tuple(pads[:2]) != tuple(pads[2:]) or auto_pad != b"NOTSET":
        _refuse("a pooling whose pads differ from side to side")
    return F.avg_pool2d(x, tuple(kernel_shape), tuple(strides), tuple(pads[:2]), bool(ceil_mode), bool(count_include_pad))


def _gemm(a, b, c=None, *, alpha=1.0, beta=1.0, transA=0, transB=0):
    found = alpha * ((a.T if transA else a) @ (b.T if transB else b))
    return found if c is None else found + beta * c


def _reduce(function: Callable) -> Callable:
    def reduce(x, axes=None, *, keepdims=1, noop_with_empty_axes=0):
        if axes is None and noop_with_empty_axes:
            return x
        return function(x, dim=tuple(axes.tolist()) if axes is not None else tuple(range(x.ndim)), keepdim=bool(keepdims))

    return reduce


def _resize(
    x,
    roi=None,
    scales=None,
    sizes=None,
    *,
    mode=b"nearest",
    coordinate_transformation_mode=b"half_pixel",
    nearest_mode=b"round_prefer_floor",
    antialias=0,
    **_,
):
    rule = (mode, coordinate_transformation_mode, nearest_mode if mode == b"nearest" else b"")
    if rule not in RESIZES or antialias or x.ndim != 4:
        _refuse(f"a Resize by {mode.decode()}, {coordinate_transformation_mode.decode()}")
    size = sizes.tolist() if sizes is not None else [math.floor(side * scale + 1e-4) for side, scale in zip(x.shape, scales.tolist(), strict=True)]
    if size[:2] != list(x.shape[:2]):
        _refuse("a Resize of channels")
    if rule[1:] == (b"half_pixel", b"round_prefer_floor") and any(now % before for now, before in zip(size, x.shape, strict=True)):
        _refuse("a Resize that must choose between two nearest pixels")
    name, corners = RESIZES[rule]
    return F.interpolate(x, tuple(size[2:]), mode=name, align_corners=corners)


RESIZES = {
    (b"nearest", b"asymmetric", b"floor"): ("nearest", None),
    (b"nearest", b"half_pixel", b"round_prefer_floor"): ("nearest-exact", None),
    (b"linear", b"align_corners", b""): ("bilinear", True),
    (b"linear", b"half_pixel", b""): ("bilinear", False),
}


def _slice(x, starts, ends, axes=None, steps=None):
    places = range(len(starts)) if axes is None else axes.tolist()
    cut = [slice(None)] * x.ndim
    for axis, start, end, step in zip(places, starts.tolist(), ends.tolist(), [1] * len(starts) if steps is None else steps.tolist(), strict=True):
        if step < 1:
            _refuse("a Slice that runs backwards")
        cut[axis] = slice(start, end, step)
    return x[tuple(cut)]


def _split(x, sizes=None, *, axis=0, num_outputs=0, outputs=1):
    parts = sizes.tolist() if sizes is not None else -(-x.shape[axis] // (num_outputs or outputs))
    return torch.split(x, parts, axis)


def _reshape(x, shape, *, allowzero=0):
    return x.reshape([x.shape[place] if size == 0 and not allowzero else size for place, size in enumerate(shape.tolist())])


def _gather(x, index, *, axis=0):
    index = index.to(x.device).long()
    taken = x.index_select(axis, torch.where(index < 0, index + x.shape[axis], index).reshape(-1))
    return taken.reshape(*x.shape[: axis % x.ndim], *index.shape, *x.shape[axis % x.ndim + 1 :])


def _unsqueeze(x, axes):
    found = x
    for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes.tolist()):
        found = found.unsqueeze(axis)
    return found


def _layer_norm(x, scale, bias=None, *, axis=-1, epsilon=1e-5, stash_type=1):
    return F.layer_norm(x, x.shape[axis:], scale, bias, epsilon)


def _divide(a, b):
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _clip(x, least=None, greatest=None):
    return x if least is None and greatest is None else torch.clamp(x, least, greatest)


def _cast(x, *, to, saturate=1):
    if to not in DTYPES:
        _refuse(f"a Cast to type {to}")
    return x.to(DTYPES[to])


def _pad(x, pads, value=None, axes=None, *, mode=b"constant"):
    if mode != b"constant" or axes is not None:
        _refuse("a Pad of another mode than constant, or of some axes")
    return _padded(x, pads.tolist(), value=0.0 if value is None else float(value))


def _where(condition, a, b):
    return torch.where(condition.to(a.device), a, b)


OPERATORS: dict[str, Callable] = {
    "Abs": torch.abs,
    "Add": torch.add,
    "AveragePool": _average_pool,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda *parts, axis: torch.cat(parts, axis),
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Div": _divide,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Expand": lambda x, shape: x.broadcast_to(torch.broadcast_shapes(x.shape, tuple(shape.tolist()))),
    "Flatten": lambda x, *, axis=1: x.reshape(math.prod(x.shape[:axis]), -1),
    "Gather": _gather,
    "GatherElements": lambda x, index, *, axis=0: torch.gather(x, axis, index.to(x.device)),
    "Gelu": lambda x, *, approximate=b"none": F.gelu(x, approximate=approximate.decode()),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda x: x.mean(dim=tuple(range(2, x.ndim)), keepdim=True),
    "Greater": torch.gt,
    "Identity": lambda x: x,
    "InstanceNormalization": lambda x, scale, bias, *, epsilon=1e-5: F.instance_norm(x, weight=scale, bias=bias, eps=epsilon),
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda x, *, alpha=0.01: F.leaky_relu(x, alpha),
    "Less": torch.lt,
    "Log": torch.log,
    "MatMul": torch.matmul,
    "Mul": torch.mul,
    "Neg": torch.neg,
    "Pad": _pad,
    "Pow": torch.pow,
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "Relu": torch.relu,
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": lambda x, *, start=0, end=None: torch.tensor(x.shape[start:end], dtype=torch.int64),
    "Sigmoid": torch.sigmoid,
    "Slice": _slice,
    "Softmax": lambda x, *, axis=-1: torch.softmax(x, axis),
    "Softplus": F.softplus,
    "Split": _split,
    "Sqrt": torch.sqrt,
    "Sub": torch.sub,
    "Tanh": torch.tanh,
    "Transpose": lambda x, *, perm=None: x.permute(perm or tuple(reversed(range(x.ndim)))),
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
