"""Checks whether a plan fits this machine, before any engine is deserialised: TensorRT itself fails with an assertion."""

from __future__ import annotations

from importlib import metadata
from types import ModuleType
from typing import Any

from ..artefact.manifest import PlanManifest
from ..cuda.device import Device
from ..cuda.open_device import open_device
from ..errors import EnvironmentMismatchError, UsageError
from ..jetson import read_jetson, tensorrt_fix
from .adapters.open_adapter import open_adapter
from .adapters.releases import release
from .loading import MODULES
from .rtx_targets import why_not_here

RTX_MAGIC, VERSION_AT = b"vtrt", slice(24, 28)  # of an engine's header: major, minor, patch, build, one byte each
CUDA_MAJORS = (11, 12, 13, 14)
DRIVERS = {12: "525", 13: "580"}  # NVIDIA's oldest driver branch for a CUDA major release


def open_gpu(manifest: PlanManifest, index: int) -> Device:
    """The GPU that is to run a plan.

    Raises:
        EnvironmentMismatchError: if there is none, naming what runs elsewhere.
    """
    try:
        return open_device(index)
    except EnvironmentMismatchError as error:
        targets = ", ".join(manifest.targets) or "no named target"
        was = f"this plan holds {manifest.backend} engines (for {targets}), which need an NVIDIA GPU, and none can be used: {error.was}"
        raise EnvironmentMismatchError(was, wanted=error.wanted, fix=f"{error.fix}; or depth-build BUNDLE --backend onnxruntime, for the CPU") from error


def check_plan(manifest: PlanManifest, trt: ModuleType, device: Device) -> None:
    """Compare what the plan was built with and for with what is here.

    Raises:
        EnvironmentMismatchError: if version, GPU or driver do not fit, with the command that fixes it.
    """
    backend, built, here = manifest.backend, manifest.backend_version, trt.__version__
    rebuild = f"depth-build BUNDLE --backend {backend} -o x.plan with the {backend} that is installed here"
    if release(built) != release(here):
        raise EnvironmentMismatchError(
            f"the plan was built with {backend} {built}, and {here} is installed here",
            wanted="the same release: its engines are valid for no other",
            fix=rebuild if read_jetson() else f"pip install '{backend}=={built}', or {rebuild}",
        )
    if manifest.targets and device.target not in manifest.targets:
        known = {"tensorrt": "on this machine"}.get(backend, f"--target {device.target}")
        if refused := why_not_here(trt, device.target):
            known = f"for the backend tensorrt or onnxruntime: {refused}"
        raise EnvironmentMismatchError(
            f"the plan was built for {', '.join(manifest.targets)}, and GPU {device.index} ({device.name}) is {device.target}",
            wanted=f"a plan for {device.target}",
            fix=f"build it again {known}",
        )
    major = cuda_major(MODULES[backend])
    if major and device.driver[0] < major:
        branch = f" (release {DRIVERS[major]} or later)" if major in DRIVERS else ""
        raise EnvironmentMismatchError(
            f"the NVIDIA driver here knows CUDA {device.driver[0]}.{device.driver[1]}, and {MODULES[backend]} {here} needs CUDA {major}",
            wanted=f"a driver for CUDA {major}{branch}",
            fix=tensorrt_fix(backend, f"update the driver, or pip install {backend}-cu{device.driver[0]}"),
        )


def check_streams(manifest: PlanManifest, trt: ModuleType, streams: int) -> None:
    """Raise UsageError if so many runs cannot share the engines: TensorRT 8 gives a range of batches to one run at a time."""
    if streams > 1 and manifest.batch[0] != manifest.batch[2] and not open_adapter(trt).shares_profiles:
        raise UsageError(
            f"{streams} streams were asked for, and TensorRT {trt.__version__} lets one run at a time use an engine for batches of {manifest.batch[0]} to "
            f"{manifest.batch[2]}",
            wanted="one stream, or a plan with a fixed batch",
            fix=f"leave --streams out, or depth-build BUNDLE --batch {manifest.batch[1]}",
        )


def check_header(trt: ModuleType, runtime: Any, engine: memoryview, stage: str) -> None:
    """Look at the first bytes of an engine, and let TensorRT-RTX judge them; plain TensorRT has no such question.

    Raises:
        EnvironmentMismatchError: if it says that the engine cannot run here.
    """
    if not hasattr(runtime, "get_engine_validity"):
        return
    size = int(runtime.engine_header_size)
    if len(engine) < size:
        raise EnvironmentMismatchError(f"the engine of stage {stage} has {len(engine)} bytes", wanted="a whole engine", fix="build the plan again")
    built = ".".join(str(part) for part in engine[VERSION_AT]) if engine[: len(RTX_MAGIC)] == RTX_MAGIC else "an unknown release"
    if built != trt.__version__ and engine[: len(RTX_MAGIC)] == RTX_MAGIC:
        raise EnvironmentMismatchError(
            f"the engine of stage {stage} was built with TensorRT-RTX {built}, and {trt.__version__} is installed here",
            wanted="the same release: an engine is valid for no other",
            fix=f"pip install 'tensorrt-rtx=={built}', or depth-build the plan again",
        )
    validity, diagnostics = runtime.get_engine_validity(bytes(engine[:size]))
    if validity == trt.EngineValidity.INVALID:
        raise EnvironmentMismatchError(
            f"TensorRT-RTX {trt.__version__} says that the engine of stage {stage} (built with {built}) cannot run here (diagnostics {diagnostics})",
            wanted="an engine for this release, GPU and driver",
            fix="depth-build the plan again; depth-doctor tells what is here",
        )


def cuda_major(module: str) -> int | None:
    """The CUDA major release that the installed wheels of a package were built for; None if they do not say."""
    for major in CUDA_MAJORS:
        try:
            metadata.distribution(f"{module}_cu{major}")
            return major
        except metadata.PackageNotFoundError:
            continue
    return None
