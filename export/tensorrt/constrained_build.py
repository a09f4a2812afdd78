"""One lowered stage to one engine for TensorRT 8.5 and 8.6, which know no strong typing: precision is a constraint on every layer.

Runs in the child process (``build_child``), with nothing but the standard library and the package ``tensorrt``, so that the Python 3.8 that JetPack 5
has its bindings for can be that process. What each layer really got is read from the finished engine.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from types import ModuleType
from typing import Any

from ...runtime.errors import BuildFailedError, EnvironmentMismatchError, PrecisionError
from ...runtime.tensorrt.adapters.tactic_sources import limit_sources
from ...runtime.tensorrt.loading import import_tensorrt
from ...runtime.tensorrt.logger import make_logger
from .builder import MAX_PROBLEMS, BuildLog, make_builder, make_config, requested_plugins, set_batch, take_timings, write_engine
from .engine_layers import layer_types
from .finished_engine import layer_information, load_engine

UNCONSTRAINED = ("CONSTANT", "SHAPE", "QUANTIZE", "DEQUANTIZE", "ASSERTION")
FLOATS = ("FLOAT", "HALF")
MISMARKED = "incorrectly marked as an int8 node"
FUSED_REGION = "Could not find any implementation for node {ForeignNode"
WANTS_CUBLAS = (
    "this release takes the matrix products of attention and MLP blocks from cuBLAS 11, which is not here: JetPack 5 has it; elsewhere pip install "
    "nvidia-cublas-cu11 and put its lib folder on LD_LIBRARY_PATH"
)


def build_constrained_engine(request: dict[str, Any], send: Callable[..., None]) -> dict[str, Any]:
    """Compile one stage.

    Args:
        request: ``stage``, ``source`` (ONNX, lowered), ``target`` (file to write), ``batch`` ([min, opt, max]), ``precision``, ``nodes`` (name and
            ``fp32``, ``fp16``, ``int8`` or ``free`` of every node, in running order; what is free is left to the compiler), ``products`` (names of the
            convolutions and matrix products), ``exact`` (names of the nodes that must not compute in anything but FP32), ``half`` (inputs and outputs
            that are FP16), ``operators`` (names of the nodes that are operators of ours), ``plugins``, ``workspace``, ``timing_cache`` and ``layers`` (see
            ``build.build_engine``).
        send: sends one event to the parent.

    Returns:
        ``nbytes`` of the engine, ``version``, ``counts`` (products by the type they got; ``untold`` for those that the compiler merged into a region
        of its own), ``told`` (how much of what must be FP32 was read back, and in what our operators compute, in words; may be empty),
        ``activations_nbytes``.

    Raises:
        EnvironmentMismatchError: if there is no GPU; if the library of our operators is not for this release.
        BuildFailedError: naming the stage and, where the parser knows it, the node.
        PrecisionError: if the engine computes a node in another precision than the plan says.
    """
    trt = import_tensorrt("tensorrt")
    with requested_plugins(trt, request):
        return _build(trt, request, send)


def _build(trt: ModuleType, request: dict[str, Any], send: Callable[..., None]) -> dict[str, Any]:
    stage = request["stage"]
    log = BuildLog(send)
    logger = make_logger(trt, log)
    builder = make_builder(trt, logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
    parser = trt.OnnxParser(network, logger)
    send("progress", what=f"{stage}: reading the graph", done=0.0)
    _parse(trt, parser, request, logger)
    config = make_config(trt, builder, stage, logger)
    has_cublas = limit_sources(trt, config)
    if request["precision"] != "fp32":
        for flag in (trt.BuilderFlag.FP16, trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS):
            config.set_flag(flag)
        if any(kind == "int8" for _, kind in request["nodes"]):  # without Q/DQ the flag asks for a calibrator
            config.set_flag(trt.BuilderFlag.INT8)
        constrain(trt, network, [tuple(node) for node in request["nodes"]])
    _set_boundaries(trt, network, set(request["half"]))
    set_batch(builder, network, config, request, logger)
    send("progress", what=f"{stage}: compiling", done=0.1)
    cache = take_timings(trt, config, request, log, logger)
    plan, words = builder.build_serialized_network(network, config), ""
    if plan is None and MISMARKED in (words := logger.errors()):  # what fuses into an INT8 layer was held to FP16
        send("progress", what=f"{stage}: compiling again, with nothing held but FP32", done=0.5)
        free_half(trt, network)
        logger.forget()
        plan = builder.build_serialized_network(network, config)
        words = logger.errors() if plan is None else ""
    cache.keep(config)
    del parser, network, builder, config  # each holds the weights, or more; the engine is looked into next
    if plan is None:
        was = f"stage {stage}: tensorrt {trt.__version__} could not compile the network: {words or logger.errors()}"
        raise BuildFailedError(was, fix=WANTS_CUBLAS if FUSED_REGION in was and not has_cublas else "")
    engine = load_engine(trt, logger, plan, stage)
    counts, told = _check_precision(layer_information(trt, engine, request.get("layers", "")), request)
    activations, nbytes = int(engine.device_memory_size), write_engine(plan, request["target"])
    send("progress", what=f"{stage}: written", done=1.0)
    return {"nbytes": nbytes, "version": trt.__version__, "counts": counts, "told": told, "activations_nbytes": activations}


def tensorrt_version(request: dict[str, Any], send: Callable[..., None]) -> dict[str, Any]:
    """``version`` of the package ``tensorrt`` that the child finds, and ``target``: compute capability of the GPU (``sm87``), or empty.

    Args:
        request: ``device``, number of the GPU; the first (0) need not be there yet.
        send: not used.

    Raises:
        EnvironmentMismatchError: if there is no such package, or of no tier that is known; if a GPU that was named by its number is not there.
    """
    version = import_tensorrt("tensorrt").__version__
    try:
        from ...runtime.cuda.open_device import open_device

        device = open_device(request["device"])
    except (ImportError, EnvironmentMismatchError) as error:
        if request["device"] and not isinstance(error, ImportError):
            raise
        return {"version": version, "target": ""}  # this Python may have TensorRT and no NumPy; whoever compiles says what else is missing
    target = device.target
    device.close()
    return {"version": version, "target": target}


def _parse(trt: ModuleType, parser: Any, request: dict[str, Any], logger: Any) -> None:
    if parser.parse_from_file(request["source"]) and not parser.num_errors:
        return
    problems, nodes = [], request["nodes"]
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        place = error.node()  # this parser tells the number of a node
        node = f"node {nodes[place][0]}" if 0 <= place < len(nodes) else "the graph"
        problems.append(f"{node}: {' '.join(str(error.desc()).split())[:400]} [{error.code()}]")
    more = f" (and {len(problems) - MAX_PROBLEMS} more)" if len(problems) > MAX_PROBLEMS else ""
    raise BuildFailedError(
        f"stage {request['stage']}: tensorrt {trt.__version__} cannot read the graph: {'; '.join(problems[:MAX_PROBLEMS]) or logger.errors()}{more}",
        wanted="operators and types that it knows",
        fix="change that part of the network, or use --backend onnxruntime",
    )


def constrain(trt: ModuleType, network: Any, nodes: list[tuple[str, str]]) -> None:
    """Ask every layer for the precision of the node it was made for, and every output of it for the same type.

    A layer bears the name of its node, or that name and a number. Helper layers without one (the parser adds them before the layer they serve) go
    with the next that has one. Layers of INT8 nodes, and free ones, are left to their Q/DQ; constants, shapes and integers have nothing to ask for.
    A plugin in FP16 is asked for by its outputs alone: its table of formats ties the inputs to them, and some of those are FP32 always.
    """
    kinds, types = dict(nodes), {"fp32": trt.DataType.FLOAT, "fp16": trt.DataType.HALF}
    left_alone = {getattr(trt.LayerType, name) for name in UNCONSTRAINED}
    floats = {getattr(trt.DataType, name) for name in FLOATS}
    following = "fp32"
    for index in reversed(range(network.num_layers)):
        layer = network.get_layer(index)
        kind = kinds.get(layer.name) or kinds.get(re.sub(r"_\d+$", "", layer.name))
        following = kind = kind or following
        outputs = [layer.get_output(place) for place in range(layer.num_outputs)]
        if kind not in types or layer.type in left_alone or not outputs or outputs[0].is_shape_tensor or outputs[0].dtype not in floats:
            continue
        if kind == "fp32" or layer.type != trt.LayerType.PLUGIN_V2:
            layer.precision = types[kind]
        for place, tensor in enumerate(outputs):
            if tensor.dtype in floats and not tensor.is_network_output:
                layer.set_output_type(place, types[kind])


def free_half(trt: ModuleType, network: Any) -> None:
    """Take back what was asked for in FP16; what must be FP32 stays held, and the compiler has to obey or end."""
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.precision_is_set and layer.precision == trt.DataType.HALF:
            layer.reset_precision()
            for place in range(layer.num_outputs):
                if layer.output_type_is_set(place):
                    layer.reset_output_type(place)


def _set_boundaries(trt: ModuleType, network: Any, half: set) -> None:
    """The types of what crosses a stage's boundary."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    for tensor in inputs + [network.get_output(index) for index in range(network.num_outputs)]:
        if tensor.name in half:
            tensor.dtype = trt.DataType.HALF


def _check_precision(information: str, request: dict[str, Any]) -> tuple[dict[str, int], str]:
    """Hold the types that the engine tells of against the plan; returns how many products have which, and what became of FP32 nodes and of our
    operators in words."""
    kinds, exact, products = dict(request["nodes"]), set(request["exact"]), set(request["products"])
    got = layer_types(information, kinds, set(request["half"]))
    wrong = []
    for name in sorted(got):
        reads = got[name].reads
        if name in exact and (lower := got[name].own - {"float"}):
            wrong.append(f"{name} computes in {', '.join(sorted(lower))}")
        elif name in products and kinds[name] == "fp16" and request["precision"] == "fp16" and reads and "half" not in reads:
            wrong.append(f"{name} computes in {', '.join(sorted(reads))} and no FP32 island asks for it")
        elif name in products and kinds[name] == "int8" and reads and "int8" not in reads:
            wrong.append(f"{name} does not read INT8")
    counts = Counter(next((kind for kind in ("int8", "half", "float") if name in got and kind in got[name].reads), "untold") for name in products)
    if request["precision"] == "fp16" and "fp16" in {kinds[name] for name in products} and not counts["half"] and not counts["untold"]:
        wrong.append("no convolution or matrix product computes in half")
    if wrong:
        raise PrecisionError(
            f"stage {request['stage']}: {len(wrong)} layers do not hold what was asked for: {'; '.join(wrong[:MAX_PROBLEMS])}",
            wanted=f"{request['precision']} outside the FP32 islands" if request["precision"] != "int8" else "what the precision plan says",
            fix="report it with the version of TensorRT; --precision fp32 asks for nothing",
        )
    seen = sum("float" in got[name].own for name in exact & got.keys())
    told = [f"{len(exact)} nodes held to FP32: {seen} read back as FP32, {len(exact) - seen} merged into what it does not tell of"]
    told = told if exact and request["precision"] != "fp32" else []
    if request["operators"]:
        plugins = Counter("untold" if name not in got else "half" if "half" in (*got[name].own, *got[name].reads) else "float" for name in request["operators"])
        told.append(f"operators of ours: {', '.join(f'{count} {kind}' for kind, count in sorted(plugins.items()))}")
    return {kind: count for kind, count in sorted(counts.items()) if count}, "; ".join(told)
