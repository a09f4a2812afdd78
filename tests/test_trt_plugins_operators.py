"""The operators' kernels, compiled as C++, against NumPy in double precision: at most two FP16 steps from the exact value."""

import re
import shutil

import kernel_host
import numpy as np
import pytest

from fathom.runtime.kernels import operators

needs_compiler = pytest.mark.skipif(not kernel_host.compiler(), reason="no C++ compiler")
SHAPES = 500
EVP_NORMS, EVP_LONG_NORM = [(640, 32), (320, 64), (960, 64)], (128, 512)  # channels and side
EVP_ATTENTIONS = [(1024, 80, 40), (256, 160, 40), (256, 160, 77)]  # positions, width of a head, tokens


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


def fp16_steps(got, exact, magnitude=0.0):
    """Distance in steps of FP16 at the exact value, or at 1/256 of a sum's magnitude where the sum cancels further.

    Where either is not finite both must be alike; Inf stands for an overflow.
    """
    exact = np.where(np.abs(exact) >= 65520, np.sign(exact) * np.inf, exact)
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(exact))
    fine = np.isfinite(exact)
    step = np.exp2(np.maximum(np.floor(np.log2(np.maximum(np.maximum(np.abs(exact), magnitude / 256)[fine], 2.0**-14))), -14) - 10)
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


def exact_bins(shape, centers, attractors, constants=CONSTANTS):
    """The published formula, step by step, in double precision; constants: strength of the attractors, least and greatest temperature."""
    alpha, least, greatest = constants
    shape, centers, attractors = (a.astype(np.float64) for a in (shape, centers, attractors))
    centers = corner_resize(centers, attractors.shape[-2:])
    distance = softplus(attractors)[:, :, None] - centers[:, None]
    centers = corner_resize(centers + (distance / (1 + alpha * distance**2)).mean(1), shape.shape[-2:])
    p0, p1, t0, t1 = np.moveaxis(softplus(shape) + 1e-4, 1, 0)
    p, temperature = p0 / (p0 + p1), (greatest - least) * t0 / (t0 + t1) + least
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
def test_bins_expectation_at_the_size_of_evp(host):
    generator = np.random.default_rng(26)
    shape, attractors = (generator.normal(0, 2, size).astype(np.float16) for size in ((1, 4, 480, 480), (1, 1, 240, 240)))
    tensors = shape, generator.gamma(1, 3, (1, 64, 120, 120)).astype(np.float16), attractors
    assert fp16_steps(run_bins(host, *tensors), exact_bins(*tensors)) <= 2


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


def exact_norm(x, scale, shift, groups, epsilon):
    """SiLU of the group norm, in double precision."""
    batch, channels = x.shape[:2]
    x = x.astype(np.float64).reshape(x.shape[0], groups, -1)
    normed = (x - x.mean(2, keepdims=True)) / np.sqrt(x.var(2, keepdims=True) + epsilon)
    z = normed.reshape(batch, channels, -1) * scale[:, None].astype(np.float64) + shift[:, None]
    return z / (1 + np.exp(-z))


def run_norm(host, x, scale, shift, groups, epsilon, channels_last=False):
    source, y = stored(x, channels_last), stored(np.full_like(x, 7), channels_last)
    scratch = np.full(operators.group_norm_workspace(x.shape, groups, x.dtype == np.float16) + 1, 7, np.uint8)
    addresses = tuple(map(address, (source, scale, shift, y, scratch)))
    operators.launch_group_norm_silu(host.launch, addresses, x.shape, groups, epsilon, x.dtype == np.float16, channels_last)
    assert scratch[-1] == 7  # nothing behind what was asked for
    return read_back(y, x.shape[1], channels_last)


def some_norm(generator, number):
    """Random shapes: groups of one channel, one pixel, odd sizes; every tenth in 32 groups, every 25th longer than the registers of a block."""
    groups, size = int(generator.integers(1, 9)), int(generator.integers(1, 7))
    if number % 10 == 9:
        groups, size = 32, int(generator.integers(1, 4))
    height, width = generator.integers(1, 24, 2) if number % 25 else generator.integers(120, 160, 2)
    if number % 25 == 0:
        groups, size = 2, 3
    x = generator.normal(generator.choice([0, 1, 300]), generator.choice([0.01, 1, 30]), (generator.integers(1, 3), groups * size, height, width))
    scale, shift = (generator.normal(0, 1, groups * size).astype(np.float32) for _ in range(2))
    return x.astype(np.float16), scale, shift, groups


@needs_compiler
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:overflow:RuntimeWarning")
def test_group_norm_and_silu_are_within_two_fp16_steps(host):
    generator, worst = np.random.default_rng(22), 0.0
    for number in range(SHAPES):
        x, scale, shift, groups = some_norm(generator, number)
        if number % 5 == 1:
            x[:] = x.flat[0]  # ties: no variance at all
        if number % 5 == 2:
            x.flat[generator.integers(x.size)] = generator.choice([np.nan, np.inf, -np.inf])
        epsilon = float(np.float32(generator.choice([1e-6, 1e-5])))
        got = run_norm(host, x, scale, shift, groups, epsilon, channels_last=number % 2 == 1)
        worst = max(worst, fp16_steps(got, exact_norm(x, scale, shift, groups, epsilon).reshape(x.shape)))
    assert worst <= 2
    assert host.library.bounds_broken() == 0


@needs_compiler
@pytest.mark.parametrize(("channels", "side"), [*EVP_NORMS, pytest.param(*EVP_LONG_NORM, marks=pytest.mark.slow)])
def test_group_norm_and_silu_at_the_sizes_of_evp(host, channels, side):
    generator = np.random.default_rng(27)
    x = generator.normal(0.3, 2, (1, channels, side, side)).astype(np.float16)
    scale, shift = (generator.normal(center, 0.2, channels).astype(np.float32) for center in (1, 0))
    assert fp16_steps(run_norm(host, x, scale, shift, 32, 1e-5), exact_norm(x, scale, shift, 32, 1e-5).reshape(x.shape)) <= 2


@needs_compiler
@pytest.mark.parametrize("side", [40, 90])
def test_group_norm_in_fp32_on_either_path(host, side):
    generator = np.random.default_rng(23)
    x = generator.normal(1000, 1, (2, 6, side, side)).astype(np.float32)  # a mean that would cost three digits of a plain sum of squares
    scale, shift = np.ones(6, np.float32), np.zeros(6, np.float32)
    assert bool(operators.group_norm_workspace(x.shape, 2, False)) == (side == 90)
    np.testing.assert_allclose(run_norm(host, x, scale, shift, 2, 1e-5), exact_norm(x, scale, shift, 2, 1e-5).reshape(x.shape), atol=3e-6)


def test_groups_that_do_not_divide_are_refused():
    for shape, groups in (((1, 10, 4, 4), 3), ((1, 600, 4, 4), 2), ((1, 32, 1 << 15, 1 << 15), 8), ((1, 4, 4, 4), 0)):
        with pytest.raises(ValueError, match="equal groups"):
            operators.group_norm_workspace(shape, groups, True)


def exact_attention(query, keys, values, scale):
    """Attended, map, and the magnitude of the sums behind attended, in double precision."""
    query, keys, values = (a.astype(np.float64) for a in (query, keys, values))
    scores = query @ keys * scale
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    probabilities = weights / weights.sum(-1, keepdims=True)
    return probabilities @ values, probabilities.mean(1), probabilities @ np.abs(values)


def run_attention(host, query, keys, values, scale):
    attended, found = np.full_like(query, 7), np.full((query.shape[0], query.shape[2], keys.shape[3]), 7, query.dtype)
    shapes = [a.shape for a in (query, keys, values)]
    operators.launch_cross_attention(host.launch, tuple(map(address, (query, keys, values, attended, found))), shapes, scale, query.dtype == np.float16)
    return attended, found


def some_attention(generator, dtype=np.float16):
    """Random shapes, one token and full length among them, more heads than a block takes at once; the text of every picture, or one for all."""
    batch, heads, positions = generator.integers(1, 4), generator.choice([1, 2, 3, 8, 9]), generator.integers(1, 40)
    width = generator.choice([1, 5, 16, 40, 80, 160])
    tokens, text = generator.choice([1, 2, 7, 40, 41, 77, 128], p=(0.15, 0.15, 0.2, 0.2, 0.1, 0.15, 0.05)), generator.choice([1, batch])
    shapes = (batch, heads, positions, width), (text, heads, width, tokens), (text, heads, tokens, width)
    return [generator.normal(0, size, shape).astype(dtype) for shape, size in zip(shapes, (generator.choice([0.1, 1, 5]), 1, 1), strict=True)]


@needs_compiler
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_cross_attention_and_its_map_are_within_two_fp16_steps(host):
    generator, worst = np.random.default_rng(24), 0.0
    for number in range(SHAPES):
        tensors = some_attention(generator)
        if number % 5 == 1:
            tensors[1][:] = 1  # ties: every token alike
        if number % 5 == 2:
            tensor = tensors[generator.integers(3)]
            tensor.flat[generator.integers(tensor.size)] = generator.choice([np.nan, np.inf, -np.inf])
        scale = float(np.float32(tensors[0].shape[-1] ** -0.5))
        wanted, wanted_map, magnitude = exact_attention(*tensors, scale)
        attended, found = run_attention(host, *tensors, scale)
        worst = max(worst, fp16_steps(attended, wanted, np.nan_to_num(magnitude)), fp16_steps(found, wanted_map))
    assert worst <= 2
    assert host.library.bounds_broken() == 0


@needs_compiler
@pytest.mark.parametrize(("positions", "width", "tokens"), EVP_ATTENTIONS)
def test_cross_attention_at_the_sizes_of_evp(host, positions, width, tokens):
    generator, scale = np.random.default_rng(28), float(np.float32(width**-0.5))
    tensors = [generator.normal(0, 1, shape).astype(np.float16) for shape in ((1, 8, positions, width), (1, 8, width, tokens), (1, 8, tokens, width))]
    wanted, wanted_map, magnitude = exact_attention(*tensors, scale)
    attended, found = run_attention(host, *tensors, scale)
    assert max(fp16_steps(attended, wanted, magnitude), fp16_steps(found, wanted_map)) <= 2


def test_attention_that_does_not_go_together_is_refused():
    fine = ((2, 8, 64, 40), (1, 8, 40, 77), (1, 8, 77, 40))
    for place, wrong in ((1, (3, 8, 40, 77)), (1, (1, 8, 40, 129)), (2, (1, 8, 40, 77)), (0, (2, 4, 64, 40))):
        with pytest.raises(ValueError, match="wanted"):
            operators.launch_cross_attention(None, (0,) * 5, [wrong if k == place else shape for k, shape in enumerate(fine)], 1.0, True)


BARRIERS = [
    (file.name, k) for file in sorted(kernel_host.SOURCES.glob("*.cuh")) for k in range(file.read_text().count("__syncthreads();"))
]  # every one of them


@needs_compiler
@pytest.mark.parametrize(("file", "number"), BARRIERS)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:divide by zero:RuntimeWarning", "ignore:overflow:RuntimeWarning")
def test_the_host_build_sees_a_barrier_that_is_missing(file, number, tmp_path, monkeypatch):
    """So what it finds right has every barrier that it needs; and every barrier is needed."""
    sources = shutil.copytree(kernel_host.SOURCES, tmp_path / "csrc")
    parts = (sources / file).read_text().split("__syncthreads();")
    (sources / file).write_text("__syncthreads();".join(parts[: number + 1]) + "__syncthreads();".join(parts[number + 1 :]))
    host = kernel_host.HostKernels(kernel_host.build(tmp_path, sources))
    monkeypatch.setattr(f"{__name__}.SHAPES", 60)
    compared = {
        "bins_expectation.cuh": test_bins_expectation_is_within_two_fp16_steps,
        "cross_attention.cuh": test_cross_attention_and_its_map_are_within_two_fp16_steps,
    }
    with pytest.raises(AssertionError):
        compared.get(file, test_group_norm_and_silu_are_within_two_fp16_steps)(host)


@needs_compiler
def test_the_host_build_counts_what_lies_outside(tmp_path):
    """The guard in front of the device is the ValueError; without it the checked index tells."""
    host = kernel_host.HostKernels(kernel_host.build(tmp_path))
    tensors = [np.zeros(shape, np.float16) for shape in ((1, 4, 8, 32), (1, 64, 2, 2), (1, 1, 64, 64), (1, 1, 8, 32))]
    record = np.zeros((), operators.BINS_EXPECTATION)
    for name, tensor in zip(("shape", "centers", "attractors", "depth"), tensors, strict=True):
        record[name] = address(tensor)
    for name, value in {"batch": 1, "height": 8, "width": 32, "middle_height": 64, "middle_width": 64, "coarse_height": 2, "coarse_width": 2}.items():
        record[name] = value
    record["attractor_count"], record["is_half"], record["alpha"], record["least_temperature"], record["greatest_temperature"] = 1, 1, *CONSTANTS
    host.launch("fathom_bins_expectation", (1, 1, 1), (256, 1, 1), record)
    assert host.library.bounds_broken() > 0
