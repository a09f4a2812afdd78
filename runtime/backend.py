"""The interface between the pipeline and what executes the engines: ONNX Runtime or TensorRT."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

from .artefact.manifest import BundleManifest
from .artefact.spec import StageSpec
from .errors import EnvironmentMismatchError, UsageError

if TYPE_CHECKING:
    import numpy as np

    from .artefact.bundle import BundleDirectory
    from .artefact.plan import PlanFile

MAX_STREAMS = 16
DEVICE = re.compile(r"(cpu|cuda)(?::([0-9]{1,3}))?")


class Backend(Protocol):
    """Executes the stages of one artefact. Not bound to a thread.

    Attributes:
        stages: in running order.
        concurrent: how many calls of ``run`` may be under way at the same time.
        remarks: what was opened and what memory it takes, in words.
    """

    stages: tuple[StageSpec, ...]
    concurrent: int
    remarks: tuple[str, ...]

    def run(self, inputs: dict[str, np.ndarray], keep: frozenset[str] = frozenset()) -> dict[str, np.ndarray]:
        """Run all stages.

        Args:
            inputs: every tensor that no stage makes, by name, with the dtype and shape of its spec. An array that is not
                C-contiguous is copied.
            keep: names of the tensors to return; if empty, the outputs that no later stage takes. All others are released as
                soon as no later stage needs them.

        Raises:
            ValueError: if an input is missing, unknown, or of another dtype or shape, or ``keep`` names no tensor a stage makes.
            FathomError: if the engine fails, or its output is not what the manifest says.
        """
        ...

    def interrupt(self) -> None:
        """Make a ``run`` that is under way in another thread end soon, with an error, and refuse any other."""
        ...

    def close(self) -> None:
        """Release everything; may be called twice."""
        ...


def open_backend(artefact: PlanFile | BundleDirectory, device: str | int | None = None, threads: int | None = None, streams: int = 1) -> Backend:
    """The backend that an artefact was built for; bundles run on ONNX Runtime.

    Args:
        artefact: open; must stay open as long as the backend.
        device: ``cpu``, ``cuda``, ``cuda:N``, or the number N of a GPU; None for the artefact's own (ONNX Runtime: what the plan is for, else ``cpu``).
        threads: CPU threads of one operator; None for all cores.
        streams: TensorRT: runs that may be on the GPU at the same time, each with its own memory.

    Raises:
        UsageError: if there is no such device, or threads or streams are out of range.
        EnvironmentMismatchError: if this machine or installation cannot execute it.
        InputError: if an engine is broken.
        AccuracyError: if TensorRT engines do not give the plan's golden tensors here; asked once per plan, release, GPU and driver.
    """
    kind, index = parse_device(device)
    if threads is not None and not 1 <= threads <= 1024:
        raise UsageError(f"{threads} threads", wanted="1 to 1024")
    if not 1 <= streams <= MAX_STREAMS:
        raise UsageError(f"{streams} streams", wanted=f"1 to {MAX_STREAMS}")
    backend = "onnxruntime" if isinstance(artefact.manifest, BundleManifest) else artefact.manifest.backend
    if backend == "onnxruntime":
        from .onnxruntime.backend import OnnxRuntimeBackend

        return OnnxRuntimeBackend(artefact, kind or ("cuda" if "cuda" in getattr(artefact.manifest, "targets", ()) else "cpu"), threads, index)
    if kind == "cpu":
        raise EnvironmentMismatchError(
            f"this plan holds {backend} engines, which need an NVIDIA GPU",
            wanted="a plan for onnxruntime, to run on the CPU",
            fix="depth-build BUNDLE --backend onnxruntime -o x.plan",
        )
    from .certificate.certificate import certify
    from .tensorrt.backend import TensorRTBackend

    found = TensorRTBackend(artefact, index, streams)
    try:
        found.remarks = (*found.remarks, certify(artefact, found))
    except BaseException:
        found.close()
        raise
    return found


def parse_device(device: str | int | None) -> tuple[str | None, int]:
    """Kind and number of a device: ``cuda:1`` and 1 are GPU 1, ``cuda`` is GPU 0; None has no kind.

    Raises:
        UsageError: if it is none of these.
    """
    if device is None:
        return None, 0
    found = DEVICE.fullmatch(f"cuda:{device}" if isinstance(device, int) else device)
    if not found or (found[1] == "cpu" and found[2]):
        raise UsageError(f"there is no device {device!r}", wanted="cpu, cuda, or cuda:N")
    return found[1], int(found[2] or 0)
