"""What the pipeline wants from whatever executes the engines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from .errors import EnvironmentMismatchError, UsageError
from .manifest import BundleManifest
from .spec import StageSpec

if TYPE_CHECKING:
    import numpy as np

    from .bundle import BundleDirectory
    from .plan import PlanFile

DEVICES = ("cpu", "cuda")


class Backend(Protocol):
    """Executes the stages of one artefact. Not bound to a thread; calls come one at a time.

    Attributes:
        stages: in running order.
    """

    stages: tuple[StageSpec, ...]

    def run(self, inputs: dict[str, np.ndarray], keep: frozenset[str] = frozenset()) -> dict[str, np.ndarray]:
        """Run all stages.

        Args:
            inputs: every tensor that no stage makes, by name, with the dtype and shape of its spec. An array that is not
                C-contiguous is copied.
            keep: names of the tensors to return; if empty, the outputs that no later stage takes. All others are freed as soon
                as no later stage needs them.

        Raises:
            ValueError: if an input is missing, unknown, or of another dtype or shape, or ``keep`` names no tensor a stage makes.
            FathomError: if the engine fails, or its output is not what the manifest says.
        """
        ...

    def interrupt(self) -> None:
        """Make a ``run`` that is under way in another thread end soon, with an error, and refuse any other."""
        ...

    def close(self) -> None:
        """Free everything; may be called twice."""
        ...


def open_backend(artefact: PlanFile | BundleDirectory, device: str | None = None, threads: int | None = None) -> Backend:
    """The backend that an artefact was built for; bundles run on ONNX Runtime.

    Args:
        artefact: open; must stay open as long as the backend.
        device: ``cpu`` or ``cuda``; None for the artefact's own (ONNX Runtime: ``cpu``).
        threads: CPU threads of one operator; None for all cores.

    Raises:
        UsageError: if the device or the number of threads makes no sense.
        EnvironmentMismatchError: if this machine or installation cannot execute it.
        InputError: if an engine is broken.
    """
    if device is not None and device not in DEVICES:
        raise UsageError(f"there is no device {device!r}", wanted=" or ".join(DEVICES))
    if threads is not None and not 1 <= threads <= 1024:
        raise UsageError(f"{threads} threads", wanted="1 to 1024")
    backend = "onnxruntime" if isinstance(artefact.manifest, BundleManifest) else artefact.manifest.backend
    if backend != "onnxruntime":
        raise EnvironmentMismatchError(
            f"this plan holds {backend} engines (for {', '.join(artefact.manifest.targets) or 'no named target'}), which need an NVIDIA GPU, "
            "and this release of Fathom has no CUDA runtime yet that drives them",
            wanted="a plan for onnxruntime",
            mend="depth-build BUNDLE --backend onnxruntime -o x.plan; or unzip this plan and give its engines to trtexec or to TensorRT's own runtime",
        )
    from .onnxruntime_backend import OnnxRuntimeBackend

    return OnnxRuntimeBackend(artefact, device or "cpu", threads)
