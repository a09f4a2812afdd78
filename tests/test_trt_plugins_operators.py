"""The operators' kernels, compiled as C++, against NumPy in double precision: at most two FP16 steps from the exact value."""

import re
from pathlib import Path

import kernel_host
import numpy as np
import pytest

from fathom.runtime.kernels import operators

needs_compiler = pytest.mark.skipif(not kernel_host.compiler(), reason="no C++ compiler")
SHAPES = 500


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    return kernel_host.HostKernels(tmp_path_factory.mktemp("operators"))


def address(array):
    return array.ctypes.data


def stored(array, channels_last):
    """[B, C, ...] as the kernel reads it: planes, or pixels of channels padded to a multiple of eight (the padding is poison)."""
    if not channels_last:
        return np.ascontiguousarray(array)
    moved = np.moveaxis(array, 1, -1)
    padding = -moved.shape[-1] % 8 if array.dtype == np.float16 else 0
    return np.ascontiguousarray(np.pad(moved, [(0, 0)] * (array.ndim - 1) + [(0, padding)], constant_values=np.nan))


def read_back(array, channels, channels_last):
    return np.moveaxis(array[..., :channels], -1, 1) if channels_last else array


def fp16_steps(got, exact):
    """Distance in steps of FP16 at the exact value; where either is not finite both must be alike (Inf stands for an overflow)."""
    exact = np.where(np.abs(exact) >= 65520, np.sign(exact) * np.inf, exact)
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(exact))
    fine = np.isfinite(exact)
    step = np.exp2(np.maximum(np.floor(np.log2(np.maximum(np.abs(exact[fine]), 2.0**-14))), -14) - 10)
    return float((np.abs(got[fine].astype(np.float64) - exact[fine]) / step).max(initial=0))


def softplus(x):
    return np.logaddexp(0, x)


def corner_resize(x, size):
    """Bilinear with aligned corners, [..., h, w] to [..., *size], in double precision."""
    for axis, wanted in ((-2, size[0]), (-1, size[1])):
        position = np.arange(wanted) * (x.shape[axis] - 1) / max(wanted - 1, 1)
        low = np.floor(position + 1e-9).astype(int)
        high, weight = np.minimum(low + 1, x.shape[axis] - 1), np.maximum(position - low, 0)
        weight = weight[:, None] if axis == -2 else weight
        x = np.take(x, low, axis) * (1 - weight) + np.take(x, high, axis) * weight
    return x


CONSTANTS = (300.0, 0.0212, 50.0)


def exact_bins(shape, centers, attractors):
    """The published formula, step by step, in double precision."""
    shape, centers, attractors = (a.astype(np.float64) for a in (shape, centers, attractors))
    centers = corner_resize(centers, attractors.shape[-2:])
    distance = softplus(attractors)[:, :, None] - centers[:, None]
    centers = corner_resize(centers + (distance / (1 + 300 * distance**2)).mean(1), shape.shape[-2:])
    p0, p1, t0, t1 = np.moveaxis(softplus(shape) + 1e-4, 1, 0)
    p, temperature = p0 / (p0 + p1), (50 - 0.0212) * t0 / (t0 + t1) + 0.0212
    k, n = np.arange(64)[:, None, None] + 1e-7, 63 + 1e-7
    coefficients = n * np.log(n) - k * np.log(k) - (n - k) * np.log(n - k + 1e-7)
    success, failure = (np.log(np.clip(q, 1e-4, 1))[:, None] for q in (p, 1 - p))
    logits = (coefficients + np.arange(64)[:, None, None] * success + (63 - np.arange(64)[:, None, None]) * failure) / temperature[:, None]
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return (weights * centers).sum(1, keepdims=True) / weights.sum(1, keepdims=True)


def run_bins(host, shape, centers, attractors, channels_last=False):
    inputs = [stored(a, channels_last) for a in (shape, centers, attractors)]
    depth = stored(np.full((shape.shape[0], 1, *shape.shape[2:]), 7, shape.dtype), channels_last)
    addresses = tuple(map(address, (*inputs, depth)))
    shapes = [a.shape for a in (shape, centers, attractors)]
    operators.launch_bins_expectation(host.launch, addresses, shapes, shape.dtype == np.float16, CONSTANTS, channels_last)
    return read_back(depth, 1, channels_last)


def some_bins(generator):
    """Random shapes, one-pixel grids among them, and numbers from sharp to flat distributions."""
    batch, count = generator.integers(1, 3), generator.integers(1, 5)
    full = generator.integers(1, 45, 2)
    middle = [generator.integers(1, side + 1) for side in full]
    coarse = [generator.integers(1, side + 1) for side in middle]
    shape = generator.normal(0, generator.uniform(0.1, 12), (batch, 4, *full)).astype(np.float16)
    centers = generator.gamma(1, generator.choice([0.1, 3, 30]), (batch, 64, *coarse)).astype(np.float16)
    attractors = generator.normal(0, generator.uniform(0.1, 12), (batch, count, *middle)).astype(np.float16)
    return shape, centers, attractors


@needs_compiler
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:divide by zero:RuntimeWarning")
def test_bins_expectation_is_within_two_fp16_steps(host):
    generator, worst = np.random.default_rng(20), 0.0
    for number in range(SHAPES):
        tensors = some_bins(generator)
        if number % 5 == 1:  # ties: success as likely as failure, all bins alike
            tensors[0][:] = generator.choice([0, 1, -1])
            tensors[1][:] = generator.choice([0.5, 2])
        if number % 5 == 2:
            for tensor in tensors:
                tensor.flat[generator.integers(tensor.size)] = generator.choice([np.nan, np.inf, -np.inf])
        if number % 5 == 2 and np.isneginf(tensors[1]).any():
            tensors[1][np.isneginf(tensors[1])] = np.inf  # a centre is a softplus: never below 0
        worst = max(worst, fp16_steps(run_bins(host, *tensors, channels_last=number % 2 == 1), exact_bins(*tensors)))
    assert worst <= 2
    assert host.library.bounds_broken() == 0


@needs_compiler
def test_bins_expectation_in_fp32(host):
    tensors = [tensor.astype(np.float32) for tensor in some_bins(np.random.default_rng(21))]
    np.testing.assert_allclose(run_bins(host, *tensors), exact_bins(*tensors), rtol=3e-4)


@pytest.mark.parametrize(
    "wrong", [((1, 4, 8, 8), (1, 64, 2, 2), (1, 1, 9, 4)), ((1, 3, 8, 8), (1, 64, 2, 2), (1, 1, 4, 4)), ((1, 4, 8, 8), (1, 64, 4, 4), (1, 1, 2, 2))]
)
def test_bins_that_do_not_go_together_are_refused(wrong):
    with pytest.raises(ValueError, match="wanted"):
        operators.launch_bins_expectation(None, (0, 0, 0, 0), wrong, True, CONSTANTS)


def test_the_table_of_coefficients_is_the_formula():
    text = (kernel_host.SOURCES / "bins_expectation.cuh").read_text()
    table = [float(number) for number in re.findall(r"[\d.]+(?:e-\d+)?(?=f)", re.search(r"COEFFICIENTS\[BIN_COUNT\] = \{(.*?)\};", text, re.S).group(1))]
    k, n = np.arange(64) + 1e-7, 63 + 1e-7
    np.testing.assert_array_equal(np.float32(table), np.float32(n * np.log(n) - k * np.log(k) - (n - k) * np.log(n - k + 1e-7)))
