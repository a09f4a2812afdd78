"""The unfolded network in PyTorch as a subject of the latency table: eager or compiled; FP32, real half, or autocast."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.artefact.spec import StageSpec
from ...runtime.errors import EnvironmentMismatchError, FathomError, OutOfMemoryError, UsageError, missing_package
from ...runtime.pipeline import Pipeline

WAYS = ("eager", "compile", "max-autotune")
PRECISIONS = ("fp32", "fp16", "autocast")
MODES = tuple(f"{way}-{precision}" for way in WAYS for precision in PRECISIONS)
LABELS = {
    "eager": "PyTorch eager",
    "compile": "torch.compile, mode default",
    "max-autotune": "torch.compile, mode max-autotune",
    "fp32": "FP32, TF32 off",
    "fp16": "real half: weights, tensors and sums in FP16",
    "autocast": "FP32 weights, autocast to FP16",
}


class TorchLatencyBackend:
    """Runs a network on a device; see ``runtime.backend.Backend``. TF32 is off: fp32 means fp32.

    Args:
        network: in eval mode.
        stages: of the bundle that it was exported to.
        mode: one of ``MODES``.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        threads: of one operator on the CPU; None for PyTorch's own choice.
    """

    def __init__(self, network: Any, stages: tuple[StageSpec, ...], mode: str, device: str, threads: int | None = None):
        import torch

        if mode not in MODES:
            raise UsageError(f"there is no mode {mode!r}", wanted=", ".join(MODES))
        if device != "cpu" and not torch.cuda.is_available():
            raise EnvironmentMismatchError("this PyTorch has no CUDA", fix="install the CUDA build of PyTorch, or leave out --device")
        if threads:
            torch.set_num_threads(threads)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        way, precision = next((way, mode[len(way) + 1 :]) for way in WAYS if mode.startswith(f"{way}-"))
        self._torch, self._device = torch, torch.device(device)
        words = f"{LABELS[way]} {torch.__version__}, {LABELS[precision]}, on {device}"
        self.stages, self.concurrent, self.remarks = stages, 1, (words,)
        self._autocast, self._half, self._output = precision == "autocast", precision == "fp16", network.contract.output.tensor
        self._network = network.to(self._device, torch.float16) if self._half else network.to(self._device)
        self._call = network
        if way != "eager":
            self._call = torch.compile(network, mode="max-autotune" if way == "max-autotune" else "default")
        text = network.contract.text
        self._names = [network.contract.input.tensor, *(name for name in ((text.ids, text.mask) if text else ()) if name)]

    def run(self, inputs: dict[str, np.ndarray], keep: frozenset[str] = frozenset()) -> dict[str, np.ndarray]:
        """The network's output, from host memory to host memory."""
        return {self._output: self._forward(self._upload(inputs)).float().cpu().numpy()}

    def device_times_ms(self, inputs: dict[str, np.ndarray], runs: int) -> list[float]:
        """Between two CUDA events around each run; empty on a CPU, which has no such boundary."""
        if self._device.type == "cpu":
            return []
        tensors, cuda = self._upload(inputs), self._torch.cuda
        times_ms = []
        for _ in range(runs):
            start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
            start.record()
            self._forward(tensors)
            end.record()
            end.synchronize()
            times_ms.append(start.elapsed_time(end))
        return times_ms

    def _upload(self, inputs: dict[str, np.ndarray]) -> list[Any]:
        tensors = [self._torch.from_numpy(np.ascontiguousarray(inputs[name])).to(self._device) for name in self._names]
        return [tensor.half() if self._half and tensor.is_floating_point() else tensor for tensor in tensors]

    def _forward(self, tensors: list[Any]) -> Any:
        torch = self._torch
        try:
            with torch.inference_mode(), torch.autocast(self._device.type, torch.float16, enabled=self._autocast):
                return self._call(*tensors)
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError("PyTorch ran out of memory", fix="close other programs on this GPU") from error
        except Exception as error:  # the compiler's exceptions share no base class
            raise FathomError(f"PyTorch failed ({' '.join(str(error).split())[:300]})") from error

    def interrupt(self) -> None:
        """PyTorch cannot be stopped in the middle; the run ends by itself."""

    def close(self) -> None:
        """Let the network go."""
        self._network = self._call = None


def import_torch() -> Any:
    """The package.

    Raises:
        EnvironmentMismatchError: if it is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise missing_package("torch", "export", "PyTorch, to time it") from error
    return torch


def open_torch(
    bundle: str | Path,
    mode: str,
    device: str,
    threads: int | None = None,
    weights: str | Path | None = None,
    options: Mapping[str, str] | None = None,
) -> Pipeline:
    """The network that a bundle was exported from, behind the bundle's own contract; ``weights`` and ``options`` as in
    ``pytorch_reference.open_reference``.

    Raises:
        FathomError: see ``pytorch_reference.open_reference``.
    """
    import_torch()
    from ...runtime.artefact.bundle import BundleDirectory
    from .. import pytorch_reference

    artefact = BundleDirectory.open(bundle)
    try:
        network = pytorch_reference.load_network(artefact, weights, options)
        return Pipeline(artefact, TorchLatencyBackend(network, artefact.manifest.specs(), mode, device, threads), 1)
    except BaseException:
        artefact.close()
        raise
