"""The options of ``depth-build``, checked before any work."""

from __future__ import annotations

from dataclasses import dataclass

from ...runtime.artefact.manifest import BACKENDS
from ...runtime.errors import UsageError
from ...runtime.tensorrt.rtx_targets import BUILT_FOR, why_no_fp8, why_refused
from ..operators.choice import OperatorChoice

PLANNED = ("int8", "fp8", "int4")
BUILDABLE = ("fp32", "fp16", *PLANNED)


@dataclass(frozen=True)
class BuildOptions:
    """What to build.

    Args:
        backend: ``onnxruntime``, ``tensorrt`` or ``tensorrt-rtx``.
        precision: ``fp32``, ``fp16`` (for ONNX Runtime on a CPU simulated, to measure accuracy), or ``int8``, ``fp8``, ``int4`` (by
            the precision plan of a calibrated bundle; the last two name what it holds beside INT8, and are simulated for ONNX Runtime as FP16 is).
        targets: for TensorRT-RTX compute capabilities (``sm86``), empty for all it compiles for; for ONNX Runtime ``cpu`` or ``cuda``,
            empty for ``cpu``.
        batch: min, opt and max.
        limit_nbytes: memory that one compiler may take; 0 for most of what is available.
        workspace_nbytes: plain TensorRT: device memory that one layer may take for scratch; 0 for no limit.
        timing_cache: plain TensorRT: file with what the compiler measured; empty for one in the user's cache.
        device: TensorRT: number of the GPU that it builds for (plain TensorRT) and that runs the plan's own case.
        layers: TensorRT: file for what the engines tell of their layers; empty for none.
        operators: our own operators, and where; none by default.
        plugins: plain TensorRT: the library that has them, for engines that call it; empty for kernel stages between the engines.

    Raises:
        UsageError: if the parts do not go together.
    """

    backend: str = "onnxruntime"
    precision: str = "fp32"
    targets: tuple[str, ...] = ()
    batch: tuple[int, int, int] = (1, 1, 1)
    limit_nbytes: int = 0
    workspace_nbytes: int = 0
    timing_cache: str = ""
    device: int = 0
    layers: str = ""
    operators: tuple[OperatorChoice, ...] = ()
    plugins: str = ""

    def __post_init__(self):
        if self.backend not in BACKENDS:
            raise UsageError(f"there is no backend {self.backend!r}", wanted=" or ".join(BACKENDS))
        if self.precision not in BUILDABLE:
            raise UsageError(f"there is no precision {self.precision!r} to build", wanted=", ".join(BUILDABLE))
        if self.backend == "onnxruntime":
            if self.targets not in ((), ("cpu",), ("cuda",)):
                raise UsageError(f"--target {','.join(self.targets)} goes with tensorrt-rtx", wanted="cpu or cuda for onnxruntime")
            if self.cuda and self.planned:
                was = f"ONNX Runtime's CUDA provider has {self.precision.upper()} kernels for few operators, and computes the rest in FP32"
                raise UsageError(was, fix="--precision fp16, or --backend tensorrt")
        elif self.targets and self.backend != "tensorrt-rtx":
            raise UsageError(f"--target goes with tensorrt-rtx; {self.backend} builds for the machine it runs on", fix="leave --target out")
        for target in self.targets if self.backend == "tensorrt-rtx" else ():
            if reason := why_refused(target):
                raise UsageError(f"the target {target} is refused: {reason}", wanted=", ".join(BUILT_FOR))
            if self.precision == "fp8" and (reason := why_no_fp8(target)):
                raise UsageError(f"--precision fp8: {reason}", wanted=", ".join(t for t in BUILT_FOR if not why_no_fp8(t)), fix="--precision int8 or fp16")
        if self.backend != "tensorrt" and (self.workspace_nbytes or self.timing_cache):
            raise UsageError(f"--workspace and --timing-cache go with tensorrt; {self.backend} measures nothing while it builds", fix="leave them out")
        if self.backend == "onnxruntime" and (self.device or self.layers):
            raise UsageError("--device and --layers go with tensorrt and tensorrt-rtx, whose engines are built for GPUs", fix="leave them out")
        if self.operators and self.planned:
            was = f"--operators with --precision {self.precision}: a calibration knows nothing of our operators"
            raise UsageError(was, fix="--precision fp16, or leave --operators out")
        if self.plugins and (self.backend != "tensorrt" or not self.operators):
            was = f"{self.backend} takes no plugins" if self.operators else "--plugins without --operators"
            raise UsageError(was, wanted="--plugins with --backend tensorrt and --operators", fix="leave --plugins out")
        if len(set(self.targets)) != len(self.targets):
            raise UsageError(f"a target is named twice: {', '.join(self.targets)}")
        min_batch, opt_batch, max_batch = self.batch
        if not 1 <= min_batch <= opt_batch <= max_batch <= 1024:
            raise UsageError(f"the batch {min_batch}:{opt_batch}:{max_batch}", wanted="1 <= min <= opt <= max <= 1024")

    def check_card(self, version: str, target: str, constrained: bool) -> None:
        """Refuse what plain TensorRT of a version cannot build for the card that is here; ``constrained`` is a TensorRT 8.

        Raises:
            UsageError: for FP8 and INT4.
        """
        if constrained and self.precision in ("fp8", "int4"):
            fix = f"--precision fp16, or calibrate without {self.precision}, then --precision int8"
            raise UsageError(f"TensorRT {version} does not know {self.precision.upper()}", wanted="TensorRT 10.3 or later", fix=fix)
        if self.precision == "fp8" and (reason := why_no_fp8(target)):
            raise UsageError(f"--precision fp8: {reason}", fix="--precision int8 or fp16")

    @property
    def cuda(self) -> bool:
        """Whether the plan is for ONNX Runtime's CUDA provider."""
        return self.backend == "onnxruntime" and self.targets == ("cuda",)

    @property
    def planned(self) -> bool:
        """Whether only a calibrated bundle says what computes in what."""
        return self.precision in PLANNED

    @property
    def simulated(self) -> bool:
        """Whether FP16, FP8 and INT4 are rounding inside FP32 graphs."""
        return self.backend == "onnxruntime" and self.precision in ("fp16", "fp8", "int4") and not self.cuda
