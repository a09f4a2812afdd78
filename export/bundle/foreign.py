"""Any depth network that exists as an ONNX file: a bundle of one stage, with the contract its owner writes down."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from ...runtime.artefact.bundle import MANIFEST
from ...runtime.artefact.contract import Contract
from ...runtime.artefact.manifest import BundleManifest, BundleStage, NetworkFacts
from ...runtime.artefact.spec import DTYPES, StageSpec, TensorSpec
from ...runtime.errors import InputError
from ...runtime.files import sha256_of, whole_directory
from ..child.child import Progress, run_child
from ..graph.onnx_checks import refusals
from ..graph.onnx_weights import EXTERNAL_FROM_NBYTES, WeightsWriter, point_outside, read_array
from ..parity.parity import measure_parity
from .bundle_files import GOLDEN, STAGES, finish_bundle

STAGE = "network"
MAX_GRAPH_NBYTES = (1 << 31) - 1
MAX_CONTRACT_NBYTES = 1 << 20


def read_contract(file: str | Path) -> Contract:
    """The JSON file that ``--contract`` names.

    Raises:
        InputError: if it is missing or not a contract; the message says which key is wrong.
    """
    file = Path(file)
    try:
        if file.stat().st_size > MAX_CONTRACT_NBYTES:
            raise InputError(f"{file} has {file.stat().st_size} bytes", wanted=f"at most {MAX_CONTRACT_NBYTES}")
        return Contract.from_json(json.loads(file.read_text("utf-8")))
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror or error})", wanted="a contract as JSON") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f"{file} is not a contract: {error}", wanted="the keys input, output and protocols", fix="see docs/contract.md for an example"
        ) from error


def write_foreign_bundle(
    graph: str | Path,
    contract: Contract,
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
        contract: what goes in and what comes out.
        path: of the bundle.
        name: of the network; the file's name without it.
        licence: of the weights.
        force: replace an earlier bundle of that name.
        say, progress: see ``write_bundle``.

    Raises:
        InputError: if the file is no ONNX graph, is unsafe, or does not fit the contract.
        BuildFailedError: if ONNX Runtime cannot run it.
        AccuracyError: if its output is NaN, infinite or constant.
    """
    graph, on_message, on_progress = Path(graph), on_message or (lambda text: None), on_progress or (lambda what, done: None)
    on_progress("reading the graph", 0.0)
    model = _read(graph)
    spec = _spec(model, contract, graph)
    for remark in _remarks(model):
        on_message(remark)
    with whole_directory(path, force, MANIFEST) as folder:
        (folder / STAGES).mkdir()
        (folder / GOLDEN).parent.mkdir()
        file = folder / STAGES / f"{STAGE}.onnx"
        parameters = _rewrite(model, graph.parent, file)
        _check(file, graph)
        on_progress("running it once", 0.3)
        spec = _first_run(spec, file, contract, folder / GOLDEN)
        on_progress("comparing", 0.6)
        report = measure_parity(((spec, file),), folder / GOLDEN, contract.output.tensor, reference="ONNX Runtime's own first run")
        on_message(report.table())
        report.require()
        origin = {"kind": "foreign", "file": graph.name, "sha256": sha256_of(graph), "licence": licence, "warnings": []}
        config = {"opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}}
        facts = NetworkFacts(name or graph.stem, "", config, parameters, origin)
        manifest = finish_bundle(folder, facts, contract, (BundleStage(spec, f"{STAGES}/{file.name}", "fp32"),), report)
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
        raise InputError(f"{graph} is no ONNX file ({' '.join(str(error).split())[:200] or type(error).__name__})", wanted="an ONNX file") from error
    if not model.graph.node or not model.graph.output:
        raise InputError(f"{graph} holds no ONNX graph", wanted="a graph with nodes and outputs")
    return model


def _spec(model: onnx.ModelProto, contract: Contract, graph: Path) -> StageSpec:
    """The graph's inputs and outputs, held against the contract."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [_tensor(value, graph) for value in model.graph.input if value.name not in constants]
    outputs = [_tensor(value, graph) for value in model.graph.output]
    names = [t.name for t in inputs]
    if names != [contract.input.tensor]:
        raise InputError(f"{graph.name} takes {', '.join(names) or 'nothing'}", wanted=f"one input, called {contract.input.tensor!r} as the contract says")
    if contract.output.tensor not in [t.name for t in outputs]:
        made = ", ".join(t.name for t in outputs)
        raise InputError(f"{graph.name} makes {made}", wanted=f"an output called {contract.output.tensor!r} as the contract says")
    (image,) = inputs
    depth = next(t for t in outputs if t.name == contract.output.tensor)
    canvas = (3, *contract.input.canvas)
    if image.dtype != "float32" or len(image.shape) != 4 or any(isinstance(g, int) and g != w for g, w in zip(image.shape[1:], canvas, strict=True)):
        raise InputError(
            f"the input {image.name} of {graph.name} is {image.dtype} {list(image.shape)}",
            wanted=f"float32 [batch, {', '.join(map(str, canvas))}], the canvas of the contract",
            fix="change the contract's canvas, or convert the network for RGB pictures with channels first",
        )
    channels = 2 if contract.output.kind == "mask" else 1
    if depth.dtype != "float32" or len(depth.shape) != 4 or depth.shape[1] not in (channels, "free1"):
        raise InputError(f"the output {depth.name} of {graph.name} is {depth.dtype} {list(depth.shape)}", wanted=f"float32 [batch, {channels}, height, width]")
    batch = image.shape[0] if isinstance(image.shape[0], int) else "batch"
    return StageSpec(STAGE, (TensorSpec(image.name, "float32", (batch, *canvas)),), (TensorSpec(depth.name, "float32", (batch, *depth.shape[1:])),))


def _first_run(spec: StageSpec, file: Path, contract: Contract, golden: Path) -> StageSpec:
    """Keep the first answer as golden tensors; returns the spec with the sizes that the output really has."""
    (image,), (depth,) = spec.inputs, spec.outputs
    batch = image.shape[0] if isinstance(image.shape[0], int) else 1
    save_file({image.name: example_picture(contract, batch)}, str(golden))
    request = {"task": "first-run", "stage": STAGE, "file": str(file), "output": depth.name, "golden": str(golden)}
    shape = run_child(request, what="the first run").values["shape"]
    channels = 2 if contract.output.kind == "mask" else 1
    if len(shape) != 4 or shape[0] != batch or shape[1] != channels:
        raise InputError(f"the output {depth.name} has the shape {shape}", wanted=f"[{batch}, {channels}, height, width]")
    return StageSpec(STAGE, (image,), (TensorSpec(depth.name, "float32", (image.shape[0], *shape[1:])),))


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


def _tensor(value: onnx.ValueInfoProto, graph: Path) -> TensorSpec:
    kind = value.type.tensor_type
    names = {dtype: name for name, dtype in DTYPES.items()}
    try:
        dtype = names[np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type))]
        sizes = [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else f"free{axis}" for axis, d in enumerate(kind.shape.dim)]
        return TensorSpec(value.name, dtype, tuple(sizes))
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"the tensor {value.name!r} of {graph.name} cannot cross the edge of a stage ({error})", wanted="a tensor of floats") from error


def _remarks(model: onnx.ModelProto) -> list[str]:
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    remarks = [f"the graph has opset {opset} and keeps it" + ("" if 9 <= opset <= 20 else "; TensorRT 10.3 reads 9 to 20, ONNX Runtime reads it")]
    return remarks + [f"TensorRT will not compile {refusal}" for refusal in refusals(model)]


def _rewrite(model: onnx.ModelProto, source: Path, file: Path) -> int:
    """The same graph with a name on every node, its weights in one file beside it; returns how many weights it has."""
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
            values = read_array(tensor, source)
            parameters += values.size
            if values.nbytes >= EXTERNAL_FROM_NBYTES:
                point_outside(tensor, data.name, writer.add(values))
            elif tensor.data_location == TensorProto.EXTERNAL:
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
