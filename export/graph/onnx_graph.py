"""One stage of a network as an ONNX file: named after its modules, its weights beside it, the same bytes every time."""

from __future__ import annotations

import logging
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import torch
from torch import nn

from ... import __version__
from ...models.network import Stage
from ...runtime.artefact.spec import StageSpec
from ...runtime.errors import BuildFailedError, FathomError, OutOfMemoryError, tells_of_no_memory
from . import translations
from .model_writer import write_model
from .onnx_checks import check_graph, check_norms
from .optimise import optimise

OPSET = 18  # TensorRT 10.3 reads up to 20; nothing in these networks needs more than 18
TRACE_BATCH = 2  # a batch of 1 would invite the tracer to treat it as a constant
MAX_BATCH = 1024
SCOPES, FOLDED_FROM = "pkg.torch.onnx.name_scopes", "pkg.onnxscript.optimizer.folded_from"


@dataclass(frozen=True)
class ExportedGraph:
    """What was written.

    Args:
        file: the ONNX graph; the weights lie beside it in ``<file>.data``.
        nodes: how many nodes the graph has.
        weights_nbytes: size of the weights file.
        norms: recognised normalisations by ONNX operator.
    """

    file: Path
    nodes: int
    weights_nbytes: int
    norms: dict[str, int]


def export_graph(stage: Stage, folder: Path) -> ExportedGraph:
    """Trace a stage with a free batch and write ``<stage>.onnx`` and ``<stage>.onnx.data`` into ``folder``.

    Nodes are called ``<module path>/<op>_<counter>``, initialisers like the parameters they come from. The weights are written one
    tensor at a time from the module's own memory.

    Raises:
        ValueError: if a module is in training mode, or a free dimension is not called ``batch``.
        BuildFailedError: if the exporter refuses the module, or the graph does not meet the spec (see ``onnx_checks``).
        OutOfMemoryError: if memory runs out while it is traced.
    """
    training = [name or type(stage.module).__name__ for name, module in stage.module.named_modules() if module.training]
    if training:
        raise ValueError(f"stage {stage.spec.name}: {training[0]} is in training mode, call eval() first")
    model = _trace(stage)
    _transpose_lazily(model.graph)
    with _quiet():
        optimise(model)
    _name_everything(model, set(dict(stage.module.named_parameters())) | set(dict(stage.module.named_buffers())), stage.spec)
    norms = check_norms(model.graph, stage.module, stage.spec.name)
    file = folder / f"{stage.spec.name}.onnx"
    nbytes = write_model(model, file)
    check_graph(file, stage.spec)
    return ExportedGraph(file, len(model.graph), nbytes, norms)


def _trace(stage: Stage) -> ir.Model:
    spec, batch = stage.spec, torch.export.Dim("batch", min=1, max=MAX_BATCH)
    arguments, shapes = [], []
    for tensor in spec.inputs:
        free = {axis: size for axis, size in enumerate(tensor.shape) if isinstance(size, str)}
        if set(free.values()) - {"batch"}:
            raise ValueError(f"stage {spec.name}, tensor {tensor.name}: only a dimension called 'batch' may be free, got {sorted(set(free.values()))}")
        arguments.append(torch.zeros([TRACE_BATCH if axis in free else size for axis, size in enumerate(tensor.shape)], dtype=getattr(torch, tensor.dtype)))
        shapes.append(dict.fromkeys(free, batch))
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                stage.module,
                tuple(arguments),
                dynamo=True,
                optimize=False,
                verbose=False,
                opset_version=OPSET,
                dynamic_shapes=_arguments_tree(stage.module, shapes),
                input_names=[tensor.name for tensor in spec.inputs],
                output_names=[tensor.name for tensor in spec.outputs],
                custom_translation_table=translations.table(),
            )
    except FathomError:
        raise
    except Exception as error:  # the exporter raises a dozen kinds, its own and torch's
        if tells_of_no_memory(error) or any(isinstance(cause, Exception) and tells_of_no_memory(cause) for cause in (error.__cause__, error.__context__)):
            raise OutOfMemoryError(f"stage {spec.name}: no memory is left to trace it", fix="free memory, or use a machine with more") from error
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise BuildFailedError(f"stage {spec.name}: torch.onnx.export failed ({type(error).__name__}: {first[:400]})") from error
    return program.model


def _arguments_tree(module: nn.Module, shapes: list[dict]) -> tuple:
    """``dynamic_shapes`` mirrors the signature of ``forward``: one tuple inside if it takes ``*args``."""
    import inspect

    variadic = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in inspect.signature(module.forward).parameters.values())
    return (tuple(shapes),) if variadic else tuple(shapes)


def _transpose_lazily(graph: ir.Graph) -> None:
    """Turn ``Transpose(weight)`` into a weight that is transposed while it is written: folding would copy every linear layer."""
    for node in list(graph):
        weight = node.inputs[0] if node.inputs else None
        if node.op_type != "Transpose" or weight is None or not weight.is_initializer() or len(list(weight.uses())) != 1:
            continue
        perm = [int(axis) for axis in node.attributes["perm"].value] if "perm" in node.attributes else list(range(len(weight.shape)))[::-1]
        source = weight.const_value
        shape = ir.Shape([source.shape[axis] for axis in perm])

        def transposed(source=source, perm=perm):
            return ir.tensor(source.numpy().transpose(perm).copy())

        output = node.outputs[0]
        name, props = weight.name, dict(weight.metadata_props)
        value = ir.Value(name=name, shape=shape, type=weight.type, const_value=ir.LazyTensor(transposed, dtype=source.dtype, shape=shape, name=name))
        value.metadata_props.update(props)
        ir.convenience.replace_all_uses_with(output, value)
        graph.remove(node, safe=True)
        del graph.initializers[name]
        graph.initializers.add(value)


def _module_path(node: ir.Node) -> str | None:
    found = re.findall(r"'([^']*)'", node.metadata_props.get(SCOPES, ""))
    return found[-2] if len(found) >= 2 and not found[-2].startswith("_empty_nn_module_stack") else None


def _name_everything(model: ir.Model, parameters: set[str], spec: StageSpec) -> None:
    """Names that are the same in every export and lead back to the module; machine paths and stack traces go."""
    graph, counters = model.graph, Counter()
    weighted = ("Conv", "ConvTranspose", "MatMul", "Gemm")
    before = ""
    for node in graph:
        path = _module_path(node)
        weight = node.inputs[1] if node.op_type in weighted and len(node.inputs) > 1 else None
        if weight is not None and weight.is_initializer() and weight.name in parameters:
            path = weight.name.rpartition(".")[0]
        if path is None:  # made by an optimisation: it stands where its first input was made
            makers = [value.producer() for value in node.inputs if value is not None and value.producer() is not None]
            path = makers[0].name.rpartition("/")[0] if makers else before
        before = path
        prefix = f"{path}/{node.op_type}" if path else node.op_type
        node.name = f"{prefix}_{counters[prefix]}"
        counters[prefix] += 1
        for index, value in enumerate(node.outputs):
            if not value.is_graph_output():
                value.name = node.name if len(node.outputs) == 1 else f"{node.name}:{index}"
    _name_initialisers(graph, parameters)
    for name, value in zip([t.name for t in spec.inputs], graph.inputs, strict=True):
        value.name = name
    graph.name, graph.doc_string = spec.name, None
    model.producer_name, model.producer_version, model.doc_string, model.domain = "fathom", __version__, None, None
    values = [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    for item in (model, graph, *graph, *values):
        item.metadata_props.clear()
        item.doc_string = None


def _name_initialisers(graph: ir.Graph, parameters: set[str]) -> None:
    taken = {name for name in graph.initializers if name in parameters}
    for name, value in list(graph.initializers.items()):
        if name in parameters:
            continue
        sources = [source for source in re.findall(r"'([^']*)'", value.metadata_props.get(FOLDED_FROM, "")) if source in parameters]
        user, index = next(iter(value.uses()))
        stem = wanted = f"{sources[0]}" if sources else f"{user.name}:in{index}"
        number = 1
        while wanted in taken:
            wanted, number = f"{stem}.folded{number}", number + 1
        taken.add(wanted)
        del graph.initializers[name]
        value.name = wanted
        value.const_value.name = wanted
        graph.initializers.add(value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop the exporter's remarks about optional packages that are not installed."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir", "torch._export")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
