"""Mean and variance written out: what the rules for the three norms share.

In FP16 the squares overflow from 256 on, so these nodes always compute in FP32. A sum over a long span is taken in two steps
(``graph.long_sums``).
"""

from __future__ import annotations

import numpy as np

from ...graph.long_sums import row_length
from .editor import Steps


def normalise(steps: Steps, source: str, axes: list[int], epsilon: float) -> str:
    """(x - mean) / sqrt(variance + epsilon) over some axes of a float32 tensor; returns the tensor's name."""
    mean = steps.add("ReduceMean", [source], "mean", axes=axes, keepdims=1)
    centred = steps.add("Sub", [source, mean], "centred")
    squares = steps.add("Mul", [centred, centred], "squares")
    variance = steps.add("ReduceMean", [squares], "variance", axes=axes, keepdims=1)
    return _divide(steps, centred, variance, epsilon)


def normalise_groups(steps: Steps, source: str, groups: int, length: int, epsilon: float) -> str:
    """The same over each group of a tensor [batch, groups * length numbers in any shape]; returns a tensor [batch, groups, length / row, row].

    Args:
        groups: how many spans each picture has.
        length: numbers in a span.
    """
    row = row_length(length)
    shape = steps.constant("rows_shape", [0, groups, length // row, row], np.int64)
    rows = steps.add("Reshape", [source, shape], "rows")
    if row == length or row == 1:
        return normalise(steps, rows, [2, 3], epsilon)
    mean = steps.add("ReduceMean", [steps.add("ReduceMean", [rows], "row_means", axes=[3], keepdims=1)], "mean", axes=[2], keepdims=1)
    centred = steps.add("Sub", [rows, mean], "centred")
    squares = steps.add("Mul", [centred, centred], "squares")
    variance = steps.add("ReduceMean", [steps.add("ReduceMean", [squares], "row_variances", axes=[3], keepdims=1)], "variance", axes=[2], keepdims=1)
    return _divide(steps, centred, variance, epsilon)


def _divide(steps: Steps, centred: str, variance: str, epsilon: float) -> str:
    shifted = steps.add("Add", [variance, steps.constant("epsilon", epsilon)], "variance_eps")
    return steps.add("Div", [centred, steps.add("Sqrt", [shifted], "deviation")], "normed")
