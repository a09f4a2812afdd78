"""Two PyTorch operators written to ONNX in the form that compilers recognise, with the batch left free.

The exporter's own translations spell attention's key transpose and group norm's output shape with ``Shape``/``Slice``/``Concat``
chains as soon as the batch is symbolic. TensorRT then sees no attention pattern. Here every size but the batch is a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import opset18 as op


def _numbers(value: ir.Value) -> list[int]:
    """The sizes of all dimensions but the first."""
    return [int(size) for size in value.shape[1:]]


def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """softmax(scale * q @ k^T + mask) @ v with q, k, v [batch, heads, tokens, width], as Mul, Transpose, MatMul, Softmax, MatMul.

    The scale goes onto the queries: in FP16 the product of unscaled queries and keys may overflow.
    """
    if len(query.shape) != 4 or enable_gqa:
        raise ValueError(f"scaled_dot_product_attention on a tensor of rank {len(query.shape)} or with grouped queries has no translation")
    factor = 1.0 / math.sqrt(int(query.shape[3])) if scale is None else float(scale)
    scores = op.MatMul(op.Mul(query, op.Constant(value_float=factor)), op.Transpose(key, perm=[0, 1, 3, 2]))
    if is_causal:
        tokens, keys = int(query.shape[2]), int(key.shape[2])
        hidden = np.triu(np.full((tokens, keys), -np.inf, np.float32), 1)
        scores = op.Add(scores, op.Constant(value=ir.tensor(hidden)))
    elif attn_mask is not None and attn_mask.dtype == ir.DataType.BOOL:
        scores = op.Where(attn_mask, scores, op.Constant(value_float=-math.inf))
    elif attn_mask is not None:
        scores = op.Add(scores, attn_mask)
    return op.MatMul(op.Softmax(scores, axis=-1), value)


def group_norm(input, num_groups, weight=None, bias=None, eps=1e-05, cudnn_enabled=True):
    """Group norm of [batch, channels, ...] as one InstanceNormalization over the groups and a scale and shift per channel.

    ``GroupNormalization`` itself is broken in opset 18 and needs TensorRT 10.9 in opset 21.
    """
    channels, *rest = _numbers(input)
    ones, zeros = ([v] * num_groups for v in (1.0, 0.0))
    grouped = op.Reshape(input, op.Constant(value_ints=[0, num_groups, -1]))
    normed = op.InstanceNormalization(grouped, op.Constant(value_floats=ones), op.Constant(value_floats=zeros), epsilon=eps)
    normed = op.Reshape(normed, op.Constant(value_ints=[0, channels, *rest]))
    per_channel = op.Constant(value_ints=[channels] + [1] * len(rest))
    if weight is not None:
        normed = op.Mul(normed, op.Reshape(weight, per_channel))
    if bias is not None:
        normed = op.Add(normed, op.Reshape(bias, per_channel))
    return normed


def table() -> dict[Any, Callable]:
    """What ``torch.onnx.export`` takes as ``custom_translation_table``."""
    return {
        torch.ops.aten.scaled_dot_product_attention.default: attention,
        torch.ops.aten.group_norm.default: group_norm,
    }
