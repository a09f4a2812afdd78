"""The unfolded network in PyTorch as a subject of the latency table: eager or compiled, FP32 or FP16 by autocast."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.artefact.spec import StageSpec
from ...runtime.errors import EnvironmentMismatchError, FathomError, OutOfMemoryError, UsageError, missing_package

MODES = ("eager-fp32", "eager-fp16", "compile-fp32", "compile-fp16")


class TorchLatencyBackend:
    """Runs a network on a device; see ``runtime.backend.Backend``. TF32 is off: fp32 means fp32.

    Args:
        network: in eval mode.
        stages: of the bundle that it was exported to.
        mode: one of ``MODES``.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
    """

    def __init__(self, network: Any, stages: tuple[StageSpec, ...], mode: str, device: str):
        import torch

        if mode not in MODES:
            raise UsageError(f"there is no mode {mode!r}", wanted=", ".join(MODES))
        if device != "cpu" and not torch.cuda.is_available():
            raise EnvironmentMismatchError("this PyTorch has no CUDA", fix="install the CUDA build of PyTorch, or leave out --device")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self._torch, self._device = torch, torch.device(device)
        self.stages, self.concurrent, self.remarks = stages, 1, (f"PyTorch {torch.__version__}, {mode}, on {device}",)
        self._half, self._output = mode.endswith("fp16"), network.contract.output.tensor
        self._network = network.to(self._device)
        self._call = torch.compile(network) if mode.startswith("compile") else network
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
        return [self._torch.from_numpy(np.ascontiguousarray(inputs[name])).to(self._device) for name in self._names]

    def _forward(self, tensors: list[Any]) -> Any:
        torch = self._torch
        try:
            with torch.inference_mode(), torch.autocast(self._device.type, torch.float16, enabled=self._half):
                return self._call(*tensors)
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError("PyTorch ran out of memory", fix="close other programs on this GPU") from error
        except RuntimeError as error:
            raise FathomError(f"PyTorch failed ({' '.join(str(error).split())[:300]})") from error

    def interrupt(self) -> None:
        """PyTorch cannot be stopped in the middle; the run ends by itself."""

    def close(self) -> None:
        """Let the network go."""
        self._network = self._call = None


def open_torch(bundle: str | Path, mode: str, device: str, weights: str | Path | None = None, options: Mapping[str, str] | None = None) -> TorchLatencyBackend:
    """The network that a bundle was exported from; ``weights`` and ``options`` as in ``pytorch_reference.open_reference``.

    Raises:
        FathomError: see ``pytorch_reference.open_reference``.
    """
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise missing_package("torch", "export", "PyTorch, to time it") from error
    from ...runtime.artefact.bundle import BundleDirectory
    from ..pytorch_reference import load_network

    with BundleDirectory.open(bundle) as artefact:
        network = load_network(artefact, weights, options)
        return TorchLatencyBackend(network, artefact.manifest.specs(), mode, device)
