"""What the builds for all releases of TensorRT share: plugins, builder, configuration, batch, measurements of earlier builds, the engine's file.

Runs in the child process, on the Python 3.8 of JetPack 5 as well (see ``constrained_build``).
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from ...runtime.artefact.plugin_library import PluginLibrary
from ...runtime.errors import BuildFailedError, EnvironmentMismatchError
from ...runtime.tensorrt.operators.plugins import load_plugins
from .timing_cache import TimingCache

MAX_PROBLEMS = 8
CHUNK = 1 << 24


class BuildLog:
    """Messages of a compiler: errors go to the parent process as they come, and the memory it announces is kept.

    Attributes:
        activations_nbytes: of the engine, as far as TensorRT says it; else 0.
        about_timing: what it said of measurements it was given, of any severity.
    """

    def __init__(self, send: Callable[..., None]):
        self.send, self.activations_nbytes = send, 0
        self.about_timing: list[str] = []

    def __call__(self, is_error: bool, text: str) -> None:
        """One message."""
        if "timing cache" in text.lower() or "TimingCache" in text or "UUID" in text:
            self.about_timing = [*self.about_timing[-5:], " ".join(text.split())[:300]]
        if is_error:
            self.send("log", text=text[:2000])
        elif found := re.search(r"Total Activation Memory: (\d+)", text):
            self.activations_nbytes = int(found.group(1))


@contextmanager
def requested_plugins(trt: ModuleType, request: dict[str, Any]) -> Iterator[None]:
    """The library that a request names, registered while the work lasts; nothing may hold a network or an engine that calls it when that ends.

    Raises:
        EnvironmentMismatchError: see ``load_plugins``.
    """
    if not request.get("plugins"):
        yield
        return
    plugins = load_plugins(trt, Path(request["plugins"]["path"]), PluginLibrary(**request["plugins"]["library"]))
    try:
        yield
    except BaseException as failure:
        traceback.clear_frames(failure.__traceback__)  # they hold the network, whose plugins are code of the library
        raise
    finally:
        plugins.close()


def make_builder(trt: ModuleType, logger: Any) -> Any:
    """``trt.Builder``.

    Raises:
        EnvironmentMismatchError: if there is no GPU for it.
    """
    try:
        return trt.Builder(logger)
    except TypeError as error:  # what the bindings make of a null pointer
        raise EnvironmentMismatchError(
            f"TensorRT {trt.__version__} cannot start building here ({logger.errors()})",
            wanted="an NVIDIA GPU and its driver",
            fix="build on the machine that runs it",
        ) from error


def make_config(trt: ModuleType, builder: Any, stage: str, logger: Any) -> Any:
    """A configuration whose engine tells of its layers in detail, and in which fp32 means fp32.

    Raises:
        BuildFailedError: if the builder makes none.
    """
    config = builder.create_builder_config()
    if config is None:
        raise BuildFailedError(f"stage {stage}: no builder configuration could be made ({logger.errors()})")
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.clear_flag(trt.BuilderFlag.TF32)
    return config


def set_batch(builder: Any, network: Any, config: Any, request: dict[str, Any], logger: Any) -> None:
    """A fixed batch goes into the network itself; a range becomes a profile, the same for every input.

    Raises:
        BuildFailedError: if the graph or the builder does not allow it.
    """
    stage, (min_batch, opt_batch, max_batch) = request["stage"], request["batch"]
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    free = [tensor for tensor in inputs if -1 in tuple(tensor.shape)]
    for tensor in free:
        if tuple(tensor.shape).count(-1) != 1 or tensor.shape[0] != -1:
            raise BuildFailedError(f"stage {stage}: the input {tensor.name} has the shape {tuple(tensor.shape)}", wanted="no free dimension but the batch")
    if min_batch == max_batch:
        for tensor in free:
            tensor.shape = (opt_batch, *tuple(tensor.shape)[1:])
        return
    if len(free) != len(inputs):
        raise BuildFailedError(f"stage {stage}: the batch of the graph is fixed", wanted="--batch 1", fix="leave --batch out")
    profile = builder.create_optimization_profile()
    for tensor in free:
        rest = tuple(tensor.shape)[1:]
        if profile.set_shape(tensor.name, (min_batch, *rest), (opt_batch, *rest), (max_batch, *rest)) is False:
            raise BuildFailedError(f"stage {stage}: the batch {request['batch']} was refused for {tensor.name} ({logger.errors()})")
    if config.add_optimization_profile(profile) < 0:
        raise BuildFailedError(f"stage {stage}: the batch {request['batch']} was refused ({logger.errors()})")


def take_timings(trt: ModuleType, config: Any, request: dict[str, Any], log: BuildLog, logger: Any) -> TimingCache:
    """Give the compiler the workspace and the measurements of earlier builds that a request names; what was said so far is forgotten.

    Returns:
        where the new measurements are kept afterwards (``keep``).
    """
    if request.get("workspace"):
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request["workspace"])
    cache = TimingCache(request.get("timing_cache", ""))
    if not cache.give_to(config):
        log.send("log", text=f"{request['stage']}: what earlier builds measured was not taken ({'; '.join(log.about_timing) or logger.errors()})")
    logger.forget()
    return cache


def write_engine(engine: Any, target: str) -> int:
    """Write a compiled network, piece by piece; returns its size in bytes."""
    nbytes = int(engine.nbytes)
    with open(target, "wb") as file, memoryview(engine) as view:
        for start in range(0, nbytes, CHUNK):
            file.write(view[start : start + CHUNK])
    return nbytes
