"""Every operator on the host against what it replaces: the same mathematics node by node, each result rounded to FP16."""

import kernel_host
import numpy as np
import pytest
import torch
from test_trt_plugins_operators import (
    exact_attention,
    exact_bins,
    exact_norm,
    run_attention,
    run_bins,
    run_norm,
    some_attention,
    some_bins,
)

from fathom.benchmarks.card import operators

pytestmark = pytest.mark.skipif(not kernel_host.compiler(), reason="no C++ compiler")
CASES = 40


def unfused(formula, *tensors):
    """PyTorch on FP16 tensors: sums inside a node are FP32, what leaves it is FP16. Its norm and its softmax are one node each."""
    made = formula(torch, *(torch.from_numpy(np.asarray(tensor, np.float16)) for tensor in tensors))
    return [tensor.numpy() for tensor in (made if isinstance(made, tuple) else (made,))]


def off(found, exact):
    """Relative error of every output."""
    return [float(np.linalg.norm(np.float64(got) - true) / np.linalg.norm(true)) for got, true in zip(found, exact, strict=True)]


def bins(host, generator):
    tensors = some_bins(generator)
    return [run_bins(host, *tensors)], unfused(operators.bins, *tensors), [exact_bins(*tensors)]


def norm(host, generator):
    channels, mean, deviation = 32 * int(generator.integers(1, 4)), generator.choice([0, 1, 10]), generator.choice([0.3, 1, 3])
    x = generator.normal(mean, deviation, (generator.integers(1, 3), channels, *generator.integers(3, 20, 2))).astype(np.float16)
    scale, shift = (generator.normal(center, 0.3, channels).astype(np.float16).astype(np.float32) for center in (1, 0))
    return [run_norm(host, x, scale, shift, 32, 1e-5)], unfused(operators.norm, x, scale, shift), [exact_norm(x, scale, shift, 32, 1e-5).reshape(x.shape)]


def attention(host, generator):
    tensors = some_attention(generator)
    scale = float(np.float32(tensors[0].shape[-1] ** -0.5))
    return run_attention(host, *tensors, scale), unfused(operators.attention, *tensors), exact_attention(*tensors, scale)[:2]


@pytest.mark.parametrize("operator", [bins, norm, attention])
def test_an_operator_is_closer_to_double_precision_than_the_fp16_graph_it_replaces(host, operator):
    generator, ours, theirs = np.random.default_rng(25), [], []
    for _ in range(CASES):
        found, plain, exact = operator(host, generator)
        ours.append(off(found, exact))
        theirs.append(off(plain, exact))
    ours, theirs = np.square(ours), np.square(theirs)
    assert (ours <= theirs * 1.05 + 1e-12).all()  # in each case; a map of one token is 1 in both
    assert (np.sqrt(ours.mean(0)) < 0.75 * np.sqrt(theirs.mean(0))).all()
    assert host.library.bounds_broken() == 0
