"""One typed ONNX stage to one engine, for TensorRT 10.3 to 11.x and TensorRT-RTX through what their Python APIs share.

Runs in the child process (``build_child``). What only one of the packages has stands behind ``hasattr``; a test holds every name
used here against dumps of the four APIs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from ...runtime.errors import BuildFailedError, PrecisionError
from ...runtime.tensorrt.loading import import_tensorrt
from ...runtime.tensorrt.logger import make_logger
from ...runtime.tensorrt.rtx_targets import BUILT_FOR
from .builder import MAX_PROBLEMS, BuildLog, make_builder, make_config, requested_plugins, set_batch, take_timings, write_engine
from .finished_engine import ask_engine

QUANTISED = ("int8", "fp8", "int4")
COUNTED = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "EINSUM")


def build_engine(request: dict[str, Any], send: Callable[..., None]) -> dict[str, Any]:
    """Compile one stage.

    Args:
        request: ``stage``, ``backend``, ``source`` (typed ONNX), ``target`` (file to write), ``targets`` (compute capabilities, RTX
            only), ``batch`` ([min, opt, max]), ``precision``, ``fp16``, ``fp32`` and ``bf16`` (names of the convolutions
            and matrix products that the typed graph computes in FP16, FP32 and BF16), ``int8`` and ``fp8`` (those
            between dequantised inputs of that type), ``int4`` (those with such a weight); for plain
            TensorRT ``workspace`` (bytes that one layer may take on the device, 0 for no limit) and ``timing_cache`` (see ``TimingCache``);
            ``plugins`` (``library``, facts of ``PluginLibrary``, and ``path``; None or missing where the graph has no operator of ours);
            ``inspect`` (load the engine and ask it for its layers) and ``layers`` (file to keep the answer in, or empty).
        send: sends one event to the parent.

    Returns:
        ``nbytes`` of the engine, ``version``, ``counts`` (layers by type really held), ``activations_nbytes`` (0 if not told), ``stored`` and ``told``
        (see ``BuiltStage``).

    Raises:
        EnvironmentMismatchError: if there is no GPU (plain TensorRT).
        BuildFailedError: naming the stage and, where the parser knows it, the node.
        PrecisionError: if the parsed network holds another precision than the typed graph says, the engine's INT8 weights are not INT8, or the
            engine tells of layers in other types only.
    """
    trt = import_tensorrt(request["backend"])
    with requested_plugins(trt, request):
        return _build(trt, request, send)


def _build(trt: ModuleType, request: dict[str, Any], send: Callable[..., None]) -> dict[str, Any]:
    stage = request["stage"]
    log = BuildLog(send)
    logger = make_logger(trt, log)
    builder = make_builder(trt, logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    parser.set_flag(trt.OnnxParserFlag.NATIVE_INSTANCENORM)
    send("progress", what=f"{stage}: reading the graph", done=0.0)
    _parse(trt, parser, request["source"], stage, logger)
    counts = _check_precision(trt, network, request)
    config = make_config(trt, builder, stage, logger)
    config.progress_monitor = monitor = _monitor(trt, send, stage)
    _set_targets(trt, config, request, logger)
    set_batch(builder, network, config, request, logger)
    cache = take_timings(trt, config, request, log, logger)
    engine = builder.build_serialized_network(network, config)
    cache.keep(config)
    del monitor, parser, network, builder, config  # each holds the weights, or more; what is left is the engine
    if engine is None:
        raise BuildFailedError(f"stage {stage}: {request['backend']} could not compile the network: {logger.errors()}")
    nbytes = write_engine(engine, request["target"])
    stored = _check_stored(request) if request["backend"] == "tensorrt-rtx" else {}
    told = ask_engine(trt, logger, engine, request, send) if request.get("inspect") else ""
    send("progress", what=f"{stage}: written", done=1.0)
    return {"nbytes": nbytes, "version": trt.__version__, "counts": counts, "activations_nbytes": log.activations_nbytes, "stored": stored, "told": told}


def _monitor(trt: ModuleType, send: Callable[..., None], stage: str):
    class Monitor(trt.IProgressMonitor):
        def __init__(self):
            trt.IProgressMonitor.__init__(self)
            self._outer: dict[str, int] = {}

        def phase_start(self, phase_name, parent_phase, num_steps):
            if parent_phase is None:
                self._outer[phase_name] = max(1, num_steps)

        def step_complete(self, phase_name, step):
            if phase_name in self._outer:
                send("progress", what=f"{stage}: {phase_name}", done=min(1.0, (step + 1) / self._outer[phase_name]))
            return True

        def phase_finish(self, phase_name):
            self._outer.pop(phase_name, None)

    return Monitor()


def _parse(trt: ModuleType, parser: Any, source: str, stage: str, logger: Any) -> None:
    if parser.parse_from_file(source) and not parser.num_errors:
        return
    problems = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        node = f"node {error.node_name()} ({error.node_operator()})" if error.node_name() else "the graph"
        text = " ".join(str(error.desc()).split())
        problems.append(f"{node}: {text[:400]} [{error.code()}]")
    more = f" (and {len(problems) - MAX_PROBLEMS} more)" if len(problems) > MAX_PROBLEMS else ""
    raise BuildFailedError(
        f"stage {stage}: {trt.__name__} {trt.__version__} cannot read the graph: {'; '.join(problems[:MAX_PROBLEMS]) or logger.errors()}{more}",
        wanted="operators and types that it knows",
        fix="change that part of the network, or use --backend onnxruntime",
    )


def _check_precision(trt: ModuleType, network: Any, request: dict[str, Any]) -> dict[str, int]:
    """Count convolutions and matrix products by the type they hold; each must be what the typed graph says."""
    kinds = {getattr(trt.LayerType, name) for name in COUNTED}
    counts: dict[str, int] = {}
    wrong: list[str] = []
    wanted = {**dict.fromkeys(request["fp16"], trt.DataType.HALF), **dict.fromkeys(request["fp32"], trt.DataType.FLOAT)}
    wanted.update(dict.fromkeys(request.get("bf16", ()), trt.DataType.BF16))
    low = {name: kind for kind in QUANTISED for name in request.get(kind, ())}
    makers = _makers(network) if low else {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type not in kinds:
            continue
        held = layer.get_output(0).dtype
        kind = held.name.lower()
        if layer.name in low:
            kind = low[layer.name]
            if not _dequantised(trt, layer, makers, kind):
                wrong.append(f"{layer.name} does not read dequantised {kind.upper()}")
        counts[kind] = counts.get(kind, 0) + 1
        expected = wanted.get(layer.name)
        if (expected is not None and held != expected) or (request["precision"] == "fp32" and held != trt.DataType.FLOAT):
            wrong.append(f"{layer.name} computes in {held.name.lower()}")
        elif request["precision"] == "fp16" and expected is None and held != trt.DataType.HALF:
            wrong.append(f"{layer.name} computes in {held.name.lower()} and no FP32 island asks for it")
    if request["precision"] == "fp16" and request["fp16"] and not counts.get("half"):
        wrong.append("no convolution or matrix product computes in half")
    for kind in QUANTISED:
        if (asked := len(request.get(kind, ()))) > counts.get(kind, 0) and not wrong:
            wrong.append(f"{counts.get(kind, 0)} of {asked} {kind.upper()} layers are there")
    if wrong:
        raise PrecisionError(
            f"stage {request['stage']}: {len(wrong)} layers do not hold what was asked for: {'; '.join(wrong[:MAX_PROBLEMS])}",
            wanted=f"{request['precision']} outside the FP32 islands" if request["precision"] in ("fp32", "fp16") else "what the precision plan says",
            fix="build from a bundle that depth-export made",
        )
    return counts


def _check_stored(request: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Look for the weights in the finished engine; INT8 and FP8 ones must be there as they are (others may have been merged with a neighbour)."""
    from .engine_weights import stored_weights

    found = stored_weights(Path(request["target"]), Path(request["source"]))
    for kind, word in (("int8", "INT8"), ("float8_e4m3fn", "FP8")):
        if (seen := found.get(kind)) and seen.missing:
            raise PrecisionError(
                f"stage {request['stage']}: {len(seen.missing)} of {seen.looked_for} {word} weights are not in the engine as {word}, {seen.missing[0]} first",
                wanted="every one of them",
                fix="report it with the version of the backend",
            )
    return {kind: (weights.stored, weights.looked_for) for kind, weights in found.items()}


def _makers(network: Any) -> dict[str, Any]:
    """Tensor name -> the layer that makes it."""
    found = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        for output in range(layer.num_outputs):
            found[layer.get_output(output).name] = layer
    return found


def _dequantised(trt: ModuleType, layer: Any, makers: dict[str, Any], kind: str) -> bool:
    """Whether activation and weight (INT4: the weight) come from dequantising layers of that type, through nothing but changes of shape or type."""
    through = {getattr(trt.LayerType, name) for name in ("SHUFFLE", "CAST", "IDENTITY") if hasattr(trt.LayerType, name)}
    for position in (1,) if kind == "int4" else (0, 1):
        tensor = layer.get_input(position) if position < layer.num_inputs else None
        maker = makers.get(tensor.name) if tensor is not None else None
        while maker is not None and maker.type in through:
            maker = makers.get(maker.get_input(0).name)
        if maker is None or maker.type != trt.LayerType.DEQUANTIZE or maker.get_input(0).dtype != getattr(trt.DataType, kind.upper()):
            return False
    return True


def _set_targets(trt: ModuleType, config: Any, request: dict[str, Any], logger: Any) -> None:
    if not request["targets"]:
        return
    if not hasattr(config, "set_compute_capability"):
        raise BuildFailedError(f"{trt.__name__} compiles for the GPU of this machine only", wanted="no --target", fix="leave --target out")
    config.num_compute_capabilities = len(request["targets"])
    for index, target in enumerate(request["targets"]):
        capability = getattr(trt.ComputeCapability, target.upper(), None)
        if capability is None or not config.set_compute_capability(capability, index):
            raise BuildFailedError(f"{trt.__name__} {trt.__version__} does not take the target {target} ({logger.errors()})", wanted=", ".join(BUILT_FOR))
