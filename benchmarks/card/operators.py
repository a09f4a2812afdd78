"""The operators of ``trt_plugins`` on a GPU against the same mathematics in PyTorch: how long, and how close to double precision. As JSON.

    python -m fathom.benchmarks.card.operators -o benchmarks/results/operators_CARD.json

Sizes are those of EVP on photos of 480 x 480. Every subject is a CUDA graph of ``REPEATS`` runs between two events, so that launching from Python
does not count; subjects take turns in shuffled order. Tensors are FP16; PyTorch computes in FP32 between them, as the kernels do, eagerly and
compiled by ``torch.compile`` in mode max-autotune-no-cudagraphs. Inputs stay in the L2 cache between runs, as they do behind the layer that wrote them.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

from ...runtime.commands.command import run_command
from ...runtime.cuda.open_device import open_device
from ...runtime.cuda.resources import DeviceBuffer, Event, Stream
from ...runtime.kernels.device_kernels import DeviceKernels
from ...runtime.kernels.operators import group_norm_workspace, launch_bins_expectation, launch_cross_attention, launch_group_norm_silu
from ..machine.system import describe
from ..record.record import study, write_record
from ..record.statistics import interval_of_ratio

REPEATS, ROUNDS, WARM_UP = 20, 40, 5
CONSTANTS = (300.0, 0.0212, 50.0)
BINS = {"bins of EVP at 480 x 480": ((1, 4, 480, 480), (1, 64, 120, 120), (1, 1, 240, 240))}
NORMS = {"norm and SiLU [128, 512, 512]": (1, 128, 512, 512), "norm and SiLU [640, 32, 32]": (1, 640, 32, 32), "norm and SiLU [320, 64, 64]": (1, 320, 64, 64)}
ATTENTIONS = {"attention [8, 1024, 80], 40 tokens": (8, 1024, 80, 40), "attention [8, 256, 160], 40 tokens": (8, 256, 160, 40)}


def bins(torch: Any, shape: Any, centers: Any, attractors: Any) -> Any:
    """The published formula in the type of its inputs."""
    functional, size = torch.nn.functional, attractors.shape[-2:]
    p0, p1, t0, t1 = (functional.softplus(shape) + 1e-4).split(1, 1)
    p, temperature = p0 / (p0 + p1), CONSTANTS[1] + (CONSTANTS[2] - CONSTANTS[1]) * t0 / (t0 + t1)
    k = torch.arange(64, device=shape.device, dtype=shape.dtype)[:, None, None] + 1e-7
    n = 63 + 1e-7
    coefficients = n * np.log(n) - k * k.log() - (n - k) * (n - k + 1e-7).log()
    logits = (coefficients + torch.floor(k) * p.clamp(1e-4, 1).log() + (63 - torch.floor(k)) * (1 - p).clamp(1e-4, 1).log()) / temperature
    middle = functional.interpolate(centers, size, mode="bilinear", align_corners=True)
    distance = functional.softplus(attractors)[:, :, None] - middle[:, None]
    middle = middle + (distance / (1 + CONSTANTS[0] * distance**2)).mean(1)
    full = functional.interpolate(middle, shape.shape[-2:], mode="bilinear", align_corners=True)
    return (logits.softmax(1) * full).sum(1, keepdim=True)


def norm(torch: Any, x: Any, scale: Any, shift: Any) -> Any:
    """SiLU of the group norm."""
    return torch.nn.functional.silu(torch.nn.functional.group_norm(x, 32, scale, shift, 1e-5))


def attention(torch: Any, query: Any, keys: Any, values: Any) -> tuple[Any, Any]:
    """Attended, and the mean of the probabilities over the heads."""
    probabilities = (query * query.shape[-1] ** -0.5 @ keys).softmax(-1)
    return probabilities @ values, probabilities.mean(1)


class Trial:
    """One operator at one size.

    Args:
        formula: in PyTorch.
        inputs: of it, FP32.
        launch: callable(kernels on a stream, addresses of inputs, outputs and scratch).
        outputs: their shapes.
        scratch: bytes.
    """

    def __init__(self, formula: Callable[..., Any], inputs: list[np.ndarray], launch: Callable[..., None], outputs: list[tuple[int, ...]], scratch: int = 0):
        self.formula, self.inputs, self.launch, self.outputs, self.scratch = formula, inputs, launch, outputs, max(scratch, 1)


def trials(generator: np.random.Generator) -> dict[str, Trial]:
    """Every case with random numbers."""
    found = {}
    for name, shapes in BINS.items():
        data = [generator.normal(0, 2, shapes[0]), generator.gamma(1, 3, shapes[1]), generator.normal(0, 2, shapes[2])]
        start = lambda on, at, shapes=shapes: launch_bins_expectation(on, (*at[:3], at[3]), shapes, True, CONSTANTS)  # noqa: E731
        found[name] = Trial(bins, data, start, [(1, 1, *shapes[0][2:])])
    for name, shape in NORMS.items():
        data = [generator.normal(0.3, 2, shape), generator.normal(1, 0.2, shape[1]), generator.normal(0, 0.2, shape[1])]
        start = lambda on, at, shape=shape: launch_group_norm_silu(on, tuple(at), shape, 32, 1e-5, True)  # noqa: E731
        found[name] = Trial(norm, data, start, [shape], group_norm_workspace(shape, 32, True))
    for name, (heads, positions, width, tokens) in ATTENTIONS.items():
        shapes = (1, heads, positions, width), (1, heads, width, tokens), (1, heads, tokens, width)
        data = [generator.normal(0, 1, shape) for shape in shapes]
        start = lambda on, at, shapes=shapes, width=width: launch_cross_attention(on, tuple(at[:5]), shapes, width**-0.5, True)  # noqa: E731
        found[name] = Trial(attention, data, start, [shapes[0], (1, positions, tokens)])
    return found


class Ours:
    """Our kernel in a CUDA graph of its own."""

    def __init__(self, device: Any, kernels: DeviceKernels, trial: Trial):
        self._device, self._trial, self._stream = device, trial, Stream(device)
        fp32 = trial.formula is norm  # scale and shift
        arrays = [a.astype(np.float32 if fp32 and k else np.float16) for k, a in enumerate(trial.inputs)]
        buffers = [DeviceBuffer(device, a.nbytes) for a in arrays]
        for array, buffer in zip(arrays, buffers, strict=True):
            self._stream.upload(array, buffer)
        self._results = [DeviceBuffer(device, int(np.prod(shape)) * 2) for shape in trial.outputs]
        self._held = [*buffers, *self._results, DeviceBuffer(device, trial.scratch)]
        at, on = [buffer.address for buffer in self._held], kernels.on(self._stream)
        trial.launch(on, at)  # loads the kernels before anything is captured
        self._stream.synchronize()
        self._graph = self._stream.capture(lambda: [trial.launch(on, at) for _ in range(REPEATS)] and True)
        self._start, self._end = Event(device), Event(device)

    def run_us(self) -> float:
        """One run, in microseconds."""
        with self._device:
            self._start.record(self._stream)
            self._graph.launch(self._stream)
            self._end.record(self._stream)
            self._end.wait()
            return self._end.since_ms(self._start) * 1e3 / REPEATS

    def outputs(self) -> list[np.ndarray]:
        """What it made."""
        found = [np.empty(shape, np.float16) for shape in self._trial.outputs]
        with self._device:
            for buffer, array in zip(self._results, found, strict=True):
                self._stream.download(buffer, array)
            self._stream.synchronize()
        return found


class Torch:
    """The formula in PyTorch in a CUDA graph."""

    def __init__(self, torch: Any, trial: Trial, compiled: bool, narrow: bool):
        self._torch = torch
        inputs = [torch.from_numpy(a.astype(np.float32 if trial.formula is norm and k else np.float16)).cuda() for k, a in enumerate(trial.inputs)]

        def call(*tensors: Any) -> Any:
            wide = [tensor if narrow and trial.formula is not norm else tensor.float() for tensor in tensors]
            if narrow and trial.formula is norm:
                wide = [tensors[0], *(tensor.half() for tensor in tensors[1:])]
            made = trial.formula(torch, *wide)
            return [tensor.half() for tensor in (made if isinstance(made, tuple) else (made,))]

        work = torch.compile(call, mode="max-autotune-no-cudagraphs") if compiled else call
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream), torch.inference_mode():
            for _ in range(3):
                work(*inputs)
            torch.cuda.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=stream):
                for _ in range(REPEATS):
                    self._results = work(*inputs)

    def run_us(self) -> float:
        """One run, in microseconds."""
        start, end = (self._torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        self._graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e3 / REPEATS

    def outputs(self) -> list[np.ndarray]:
        """What it made."""
        return [tensor.cpu().numpy() for tensor in self._results]


def measure(torch: Any, device: Any, kernels: DeviceKernels, trial: Trial, compiled: bool) -> dict[str, Any]:
    """Times and errors of every subject of one case."""
    exact = trial.formula(torch, *(torch.from_numpy(a.astype(np.float16).astype(np.float64)) for a in trial.inputs))
    exact = [tensor.numpy() for tensor in (exact if isinstance(exact, tuple) else (exact,))]
    with device:
        subjects: dict[str, Any] = {"kernel": Ours(device, kernels, trial)}
    subjects["pytorch eager, FP32 inside"] = Torch(torch, trial, False, False)
    subjects["pytorch eager, FP16"] = Torch(torch, trial, False, True)
    if compiled:
        subjects["torch.compile, FP32 inside"] = Torch(torch, trial, True, False)
    samples: dict[str, list[float]] = {name: [] for name in subjects}
    order = list(subjects)
    shuffle = random.Random(0)
    for number in range(ROUNDS + WARM_UP):
        shuffle.shuffle(order)
        for name in order:
            took = subjects[name].run_us()
            if number >= WARM_UP:
                samples[name].append(took)
    rows = {}
    for name, subject in subjects.items():
        errors = [float(np.linalg.norm(made.astype(np.float64) - true) / np.linalg.norm(true)) for made, true in zip(subject.outputs(), exact, strict=True)]
        low, high = interval_of_ratio(samples["kernel"], samples[name])
        ratio = {"ratio": statistics.median(samples["kernel"]) / statistics.median(samples[name]), "interval": [low, high]}
        rows[name] = {"median_us": statistics.median(samples[name]), "samples_us": samples[name], "relative_error": errors, "kernel_over_this": ratio}
        print(f"{name:<30} {rows[name]['median_us']:8.2f} us   error {max(errors):.2e}   kernel / this {ratio['ratio']:.2f}", flush=True)
    return rows


def _run(arguments: argparse.Namespace) -> int:
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device, found = open_device(), {}
    with device:
        kernels = DeviceKernels(device)
    for name, trial in trials(np.random.default_rng(0)).items():
        print(name, flush=True)
        found[name] = measure(torch, device, kernels, trial, not arguments.no_compile)
    results = {"system": describe(), "gpu": device.name, "repeats": REPEATS, "rounds": ROUNDS, "operators": found}
    write_record(arguments.output, study("operators", results, ("torch", "triton", "numpy", "cuda-bindings"), "card"), True)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Measure and write the JSON; returns the exit code."""
    parser = argparse.ArgumentParser(prog="operators", description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    arguments = parser.parse_args(argv)
    return run_command(lambda: _run(arguments))


if __name__ == "__main__":
    raise SystemExit(main())
