"""Any depth network that exists as an ONNX file: a bundle of one stage, with the contract its owner writes down."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto
from safetensors.numpy import save_file

from ...calibration.graph.stage_graph import opset_of
from ...runtime.artefact.bundle import MANIFEST
from ...runtime.artefact.contract import Contract
from ...runtime.artefact.manifest import BundleManifest, BundleStage, NetworkFacts
from ...runtime.artefact.other_kinds import LOOKED_AT, ONNX, recognise
from ...runtime.artefact.spec import NETWORK_NAME, StageSpec, TensorSpec
from ...runtime.certificate.probes import PROBES
from ...runtime.errors import BuildFailedError, InputError
from ...runtime.files import sha256_of, whole_directory
from ..bundle.bundle_files import GOLDEN, STAGES, finish_bundle
from ..child.child import Progress, run_child
from ..graph.inner_graphs import all_nodes
from ..graph.onnx_checks import refusals
from ..graph.onnx_weights import EXTERNAL_FROM_NBYTES, WeightsWriter, point_outside, read_array
from ..onnxruntime.int8_constants import own_int8_constants
from ..parity.parity import measure_parity
from .adapters import DEPTH_FORM, adapt_input, adapt_output, keep_output, output_shape
from .contract_file import ForeignContract
from .embedded import open_up
from .unfit import refuse_unfit
from .widen import HALF, widen, widened

STAGE = "network"
MAX_GRAPH_NBYTES = (1 << 31) - 1


def write_foreign_bundle(
    graph: str | Path,
    foreign: ForeignContract,
    path: str | Path,
    *,
    name: str = "",
    licence: str = "unknown",
    force: bool = False,
    on_message: Callable[[str], None] | None = None,
    on_progress: Progress | None = None,
) -> BundleManifest:
    """Make a bundle of one ONNX file.

    The golden tensors are ONNX Runtime's own first answer (there is no PyTorch network to ask): they show later that an engine computes
    what the file says, not that the file is right.

    Args:
        graph: the ONNX file; weights beside it are followed, but never out of its folder.
        foreign: what goes in and what comes out, and how the graph itself wants and gives it.
        path: of the bundle.
        name: of the network; the file's name without it.
        licence: of the weights.
        force: replace an earlier bundle of that name.
        on_message, on_progress: see ``write_bundle``.

    Raises:
        InputError: if the file is no ONNX graph, is unsafe, or does not fit the contract.
        BuildFailedError: if ONNX Runtime cannot run it.
        AccuracyError: if its output is NaN, infinite or constant.
    """
    graph, on_message, on_progress = Path(graph), on_message or (lambda text: None), on_progress or (lambda what, done: None)
    on_progress("reading the graph", 0.0)
    contract, form = foreign.contract, foreign.form
    name = name or graph.stem
    if not NETWORK_NAME.fullmatch(name):
        raise InputError(f"the network would be called {name!r}", wanted="up to 128 characters without / and \\, not beginning with a dot", fix="pass --name")
    model = _read(graph)
    model = open_up(model, graph.parent)
    keep_output(model, form, graph.name)
    refuse_unfit(model, graph)
    for remark in _remarks(model):  # of what the output depends on, with functions in their places
        on_message(remark)
    if widen(model):
        on_message("the graph computes in FP16 or BF16; the bundle is FP32, as every bundle, and depth-build --precision fp16 makes FP16 of it again")
    own_int8_constants(model)
    batch = adapt_input(model, contract, form, graph.name)
    shape = output_shape(model)
    with whole_directory(path, force, MANIFEST) as folder:
        (folder / STAGES).mkdir()
        (folder / GOLDEN).parent.mkdir()
        file = folder / STAGES / f"{STAGE}.onnx"
        if shape is None or (len(shape) == 4 and shape[1] is None):  # which axis is which can only be seen in an output
            _rewrite(_copy(model), graph.parent, file)
            shape = _answer(file, contract, form.output, batch, folder / GOLDEN)
        batch = adapt_output(model, contract, form, shape, batch, graph.name)
        parameters = _rewrite(_copy(model), graph.parent, file)
        _check(file, graph)
        on_progress("running it once", 0.3)
        spec = _first_run(file, contract, batch, folder / GOLDEN)
        on_progress("comparing", 0.6)
        golden, reference = folder / GOLDEN, "ONNX Runtime's own first run"
        report = measure_parity(((spec, file),), golden, contract.output.tensor, reference=reference, probes=folder / PROBES)
        on_message(report.table())
        report.require()
        origin = {"kind": "foreign", "file": graph.name, "sha256": sha256_of(graph), "licence": licence, "warnings": []}
        config = {"opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}}
        facts = NetworkFacts(name, "", config, parameters, origin)
        manifest = finish_bundle(folder, facts, contract, (BundleStage(spec, f"{STAGES}/{file.name}", "fp32", (DEPTH_FORM,)),), report)
        on_progress("written", 1.0)
    return manifest


def _read(graph: Path) -> onnx.ModelProto:
    try:
        size = graph.stat().st_size
        if size > MAX_GRAPH_NBYTES:
            raise InputError(f"{graph} has {size / 1e9:.1f} GB", wanted="a graph below 2 GB with its weights beside it")
        model = onnx.load(str(graph), load_external_data=False)
    except OSError as error:
        raise InputError(f"{graph} cannot be read ({error.strerror or error})", wanted="an ONNX file") from error
    except Exception as error:  # protobuf's decoding errors have no common base
        raise _no_onnx(graph, " ".join(str(error).split())[:200] or type(error).__name__) from error
    if not model.graph.node or not model.graph.output:
        raise _no_onnx(graph, "no nodes and outputs")
    return model


def _no_onnx(graph: Path, why: str) -> InputError:
    with open(graph, "rb") as file:
        what, fix = recognise(file.read(LOOKED_AT))
    if what and what != ONNX:
        return InputError(f"{graph} is {what}", wanted="an ONNX file", fix=fix)
    return InputError(f"{graph} holds no whole ONNX graph ({why})", wanted="an ONNX file", fix="copy or export it again")


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.ModelProto.FromString(model.SerializeToString())


def _answer(file: Path, contract: Contract, output: str, batch: int | str, golden: Path) -> list[int]:
    """The shape of what the graph gives for an example picture, which is kept with it as golden tensors."""
    count = batch if isinstance(batch, int) else 1
    save_file({contract.input.tensor: example_picture(contract, count)}, str(golden))
    request = {"task": "first-run", "stage": STAGE, "file": str(file), "output": output, "golden": str(golden)}
    try:
        return run_child(request, what="the first run").values["shape"]
    except BuildFailedError as error:
        height, width = contract.input.canvas
        fix = error.fix or f"if the network was made for another size than the contract's canvas, {height}x{width}, say that one (often multiples of 14 or 32)"
        raise BuildFailedError(error.was, wanted=error.wanted, fix=fix) from error


def _first_run(file: Path, contract: Contract, batch: int | str, golden: Path) -> StageSpec:
    """Keep the first output as golden tensors; returns the spec with the sizes that the output really has."""
    image, output = contract.input, contract.output
    shape = _answer(file, contract, output.tensor, batch, golden)
    channels = 2 if output.kind == "mask" else 1
    if len(shape) != 4 or shape[0] != (batch if isinstance(batch, int) else 1) or shape[1] != channels:
        raise InputError(f"the output {output.tensor} has the shape {shape}", wanted=f"[batch, {channels}, height, width]")
    if not any(_same_proportions(shape[2:], size) for size in (image.window, image.canvas)):
        raise InputError(
            f"the output {output.tensor} is {shape[2]}x{shape[3]}, and the window {image.window[0]}x{image.window[1]}",
            wanted="a map of the window, smaller or larger, but of its proportions",
            fix="name another output in the contract, or convert the network",
        )
    picture = TensorSpec(image.tensor, "float32", (batch, 3, *image.canvas))
    return StageSpec(STAGE, (picture,), (TensorSpec(output.tensor, "float32", (batch, *shape[1:])),))


def _same_proportions(size: list[int], other: tuple[int, int]) -> bool:
    """Within a tenth and a pixel: networks round their sizes up and down."""
    lows, highs = (tuple((side + one) / whole for side, whole in zip(size, other, strict=True)) for one in (-1, 1))
    return max(lows) <= 1.1 * min(highs)


def example_picture(contract: Contract, batch: int = 1, seed: int = 0) -> np.ndarray:
    """A smooth seeded picture as the network wants it, float32 [batch, 3, canvas height, canvas width]: noise would exercise little."""
    image, rng = contract.input, np.random.default_rng(seed)
    height, width = image.window
    rows, columns = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    picture = np.zeros((batch, 3, height, width))
    for _ in range(12):
        down, across = rng.uniform(-6, 6, (2, batch, 3, 1, 1))
        picture += np.sin(2 * np.pi * (down * rows + across * columns + rng.uniform(0, 1, (batch, 3, 1, 1)))) / 8
    mean, std = (np.array(v).reshape(3, 1, 1) for v in (image.mean, image.std))
    canvas = np.zeros((batch, 3, *image.canvas), np.float32)
    canvas[..., :height, :width] = (np.clip(0.5 + picture, 0, 1) - mean) / std
    return canvas


def _remarks(model: onnx.ModelProto) -> list[str]:
    opset = opset_of(model)
    remarks = [f"the graph has opset {opset} and keeps it" + ("" if 9 <= opset <= 20 else "; TensorRT 10.3 reads 9 to 20, ONNX Runtime reads it")]
    kinds = [node.op_type for node in all_nodes(model.graph)]
    if quantised := sum("Quantize" in kind or kind.startswith("QLinear") or kind.endswith("Integer") for kind in kinds):
        remarks.append(f"the graph is quantised already, in {quantised} nodes, and keeps that: fp32 of this bundle and its plans means what the file computes")
    return remarks + [f"TensorRT will not compile {refusal}" for refusal in refusals(model)]


def _rewrite(model: onnx.ModelProto, source: Path, file: Path) -> int:
    """The same graph with a name on every node, its weights in FP32 in one file beside it; returns how many weights it has."""
    taken, parameters = set(), 0
    for index, node in enumerate(model.graph.node):
        node.name = node.name if node.name and node.name not in taken else f"{node.op_type}_{index}"
        node.ClearField("doc_string")
        taken.add(node.name)
    for item in (model, model.graph):
        item.ClearField("doc_string")
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in model.graph.input if v.name not in constants]
    del model.graph.input[:]  # old exporters list the weights as inputs too
    model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, 4)  # from here on a weight need not be an input
    data = Path(f"{file}.data")
    with WeightsWriter(data) as writer:
        for tensor in model.graph.initializer:
            if tensor.data_type == TensorProto.STRING:
                continue
            values = widened(read_array(tensor, source), tensor.data_type)
            parameters += values.size
            if values.nbytes >= EXTERNAL_FROM_NBYTES:
                point_outside(tensor, data.name, writer.add(values))
                tensor.data_type = TensorProto.FLOAT if tensor.data_type in HALF else tensor.data_type
            elif tensor.data_location == TensorProto.EXTERNAL or tensor.data_type in HALF:
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(values), tensor.name))
        nbytes = writer.nbytes
    if not nbytes:
        data.unlink()
    file.write_bytes(model.SerializeToString(deterministic=True))
    return parameters


def _check(file: Path, graph: Path) -> None:
    try:
        onnx.checker.check_model(str(file))
    except onnx.checker.ValidationError as error:
        raise InputError(f"the ONNX checker refuses {graph.name} ({str(error).splitlines()[0]})", fix="export the network again") from error
