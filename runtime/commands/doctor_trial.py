"""A network of one operator, compiled, loaded and run: the only proof that a GPU backend works here.

``python -m fathom.runtime.commands.doctor_trial tensorrt-rtx`` prints one JSON object. ``depth-doctor --try`` runs it as a process of its own,
because a native library that does not fit its machine may take the process with it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import numpy as np

from ..cuda.open_device import open_device
from ..cuda.resources import DeviceBuffer, Stream
from ..errors import FathomError
from ..tensorrt.adapters.open_adapter import open_adapter
from ..tensorrt.compatibility import check_header
from ..tensorrt.engine import Engine, failure
from ..tensorrt.loading import import_tensorrt
from ..tensorrt.logger import make_logger

TIMEOUT_S = 180


def try_backend(backend: str, index: int = 0) -> dict[str, Any]:
    """Build, load and run |x| on a GPU.

    Returns:
        ``ok``, ``words`` (how far it came, or what failed), ``build_ms``, ``load_ms``, ``run_ms``.

    Raises:
        FathomError: if anything fails.
    """
    from ..artefact.spec import StageSpec, TensorSpec

    trt = import_tensorrt(backend)
    logger = make_logger(trt)
    device = open_device(index)
    try:
        with device:
            start = time.perf_counter()
            raw = _build(trt, logger, backend, device.target)
            built = time.perf_counter()
            runtime = trt.Runtime(logger)
            with memoryview(raw) as view:
                check_header(trt, runtime, view, "trial")
                spec = StageSpec("trial", (TensorSpec("x", "float32", (1, 64)),), (TensorSpec("y", "float32", (1, 64)),))
                engine = Engine(trt, runtime, logger, spec, view, (1, 1, 1))
            context = engine.create_context(graphs=False)
            loaded = time.perf_counter()
            _run(engine, context, logger, device)
            done = time.perf_counter()
            del context
            engine.close()
            del runtime
        times = {"build_ms": built - start, "load_ms": loaded - built, "run_ms": done - loaded}
        return {"ok": True, "words": f"a trial engine ran on {device.name} ({device.target})", **{k: round(v * 1e3, 1) for k, v in times.items()}}
    finally:
        device.close()


def _build(trt: Any, logger: Any, backend: str, target: str) -> Any:
    builder = trt.Builder(logger)
    network = builder.create_network(open_adapter(trt).network_flags())
    x = network.add_input("x", trt.DataType.FLOAT, (1, 64))
    layer = network.add_unary(x, trt.UnaryOperation.ABS)
    layer.get_output(0).name = "y"
    network.mark_output(layer.get_output(0))
    config = builder.create_builder_config()
    open_adapter(trt).limit_sources(config)
    if backend == "tensorrt-rtx":
        config.num_compute_capabilities = 1  # where the release does not list this GPU, let it say so itself
        config.set_compute_capability(getattr(trt.ComputeCapability, target.upper(), trt.ComputeCapability.CURRENT), 0)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise failure("the trial network could not be compiled", logger)
    return engine


def _run(engine: Engine, context: Any, logger: Any, device: Any) -> None:
    stream, arena = Stream(device), DeviceBuffer(device, max(engine.activation_nbytes, 1))
    x, y = np.linspace(-3, 3, 64, dtype=np.float32), np.zeros(64, np.float32)
    buffers = {"x": DeviceBuffer(device, x.nbytes), "y": DeviceBuffer(device, y.nbytes)}
    engine.adapter.set_device_memory(context, arena.address, arena.nbytes)
    for name, buffer in buffers.items():
        context.set_tensor_address(name, buffer.address)
    stream.upload(x, buffers["x"])
    if not context.execute_async_v3(stream.address):
        raise failure("the trial engine did not run", logger)
    stream.download(buffers["y"], y)
    stream.synchronize()
    if not np.array_equal(y, np.abs(x)):
        raise FathomError("the trial engine gave wrong numbers", fix="update the NVIDIA driver")


def try_in_child(backend: str, index: int = 0) -> dict[str, Any]:
    """``try_backend`` in a process of its own; a crash or a hang is a failure like any other."""
    package = __name__.rpartition(".")[0]
    command = [sys.executable, "-m", f"{package}.doctor_trial", backend, str(index)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return {"ok": False, "words": f"no answer after {TIMEOUT_S} s"}
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        return {"ok": False, "words": f"the process ended with {how}: {' '.join(done.stderr.split())[-400:]}"}


def main(arguments: list[str]) -> int:
    """Prints one JSON object; returns 0 if the trial ran."""
    try:
        result = try_backend(arguments[0], int(arguments[1]) if len(arguments) > 1 else 0)
    except FathomError as error:
        result = {"ok": False, "words": str(error)}
    except Exception as error:  # whatever the native bindings throw
        result = {"ok": False, "words": f"{type(error).__name__}: {error}"}
    print(json.dumps(result))
    return 0 if result["ok"] else 6


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
