"""A bundle whose stages hold our operators where the build asks for them; the bundle on disk stays as it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
from onnx import helper

from ...runtime.artefact.bundle import BundleDirectory
from ...runtime.artefact.operator_use import OPERATORS, total
from ...runtime.errors import UsageError
from .choice import OperatorChoice, check_stages
from .operators import use_operators

BATCHES = 3, 5


class RewrittenBundle(BundleDirectory):
    """A bundle some of whose graphs are taken from elsewhere.

    Attributes:
        counts: stage -> operator -> how many nodes were made.
        gone: stage -> names of the nodes whose work the operators do.
    """

    def __init__(self, bundle: BundleDirectory, graphs: dict[str, Path], counts: dict[str, dict[str, int]], gone: dict[str, set[str]]):
        super().__init__(bundle.path_of_bundle, bundle.manifest, bundle.manifest_sha256, bundle.signed)
        self._graphs, self.counts, self.gone = graphs, counts, gone

    def path(self, name: str) -> Path:
        """See ``BundleDirectory.path``."""
        return self._graphs[name] if name in self._graphs else super().path(name)


def rewrite_bundle(bundle: BundleDirectory, choices: tuple[OperatorChoice, ...], folder: Path) -> RewrittenBundle:
    """Put operators into the stages that ask for them.

    Args:
        bundle: open; its stages are FP32.
        choices: which operator where.
        folder: for the new graphs; made if it is not there. Their weights are copied.

    Raises:
        UsageError: if a stage is not there, or the network has no place for an operator that was asked for.
    """
    check_stages(choices, (stage.spec.name for stage in bundle.manifest.stages))
    graphs: dict[str, Path] = {}
    counts: dict[str, dict[str, int]] = {}
    gone: dict[str, set[str]] = {}
    for stage in bundle.manifest.stages:
        names = tuple(op for op in OPERATORS if any(choice.operator == op and choice.stage in ("", stage.spec.name) for choice in choices))
        if not names:
            continue
        source = bundle.path(stage.file)
        model = _with_shapes(onnx.load(str(source), load_external_data=False))
        before = {node.name for node in model.graph.node}
        found = {name: count for name, count in use_operators(model, names).items() if count}
        if found:
            counts[stage.spec.name], gone[stage.spec.name] = found, before - {node.name for node in model.graph.node}
            place = folder / stage.spec.name
            place.mkdir(parents=True)
            if (data := Path(f"{source}.data")).exists():
                shutil.copyfile(data, place / data.name)  # readers of ONNX refuse links
            (place / source.name).write_bytes(model.SerializeToString(deterministic=True))
            graphs[stage.file] = place / source.name
    for choice in choices:
        if choice.operator not in (counts.get(choice.stage, {}) if choice.stage else total(counts.values())):
            where = f"stage {choice.stage}" if choice.stage else "the network"
            raise UsageError(
                f"--operators: {where} has no place for {choice.operator}", fix="leave it out; docs/plugins.md tells what it computes, and of which sizes"
            )
    return RewrittenBundle(bundle, graphs, counts, gone)


def _with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The shapes that a stage is cut by: graphs made elsewhere carry none, and behind an operator of ours nobody infers them.

    They are inferred for two batches, because ONNX loses sight of a free batch at many a Reshape: sizes that differ as the batches do are the batch.
    """
    known = {value.name for value in (*model.graph.value_info, *model.graph.output) if value.type.tensor_type.HasField("shape")}
    if all(name in known for node in model.graph.node for name in node.output if name):
        return model
    try:
        small, large = (_inferred(model, batch) for batch in BATCHES)
    except Exception:  # ONNX cannot infer every shape; a stage that cannot be cut then says so
        return model
    told = {value.name: value for value in model.graph.value_info}
    for name in sorted(small.keys() & large.keys() - known):
        (kind, sizes), (_, others) = small[name], large[name]
        if len(sizes) == len(others) and all(size == other or (size, other) == BATCHES for size, other in zip(sizes, others, strict=True)):
            shape = [size if size == other else "batch" for size, other in zip(sizes, others, strict=True)]
            (told[name] if name in told else model.graph.value_info.add()).CopyFrom(helper.make_tensor_value_info(name, kind, shape))
    return model


def _inferred(model: onnx.ModelProto, batch: int) -> dict[str, tuple[int, list[int]]]:
    """Type and sizes of the tensors between nodes for one batch, of those whose every size can be inferred."""
    fixed = onnx.ModelProto.FromString(model.SerializeToString())
    del fixed.graph.value_info[:]
    for value in (*fixed.graph.input, *fixed.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == "batch":
                dim.dim_value = batch
    tensors = {value.name: value.type.tensor_type for value in onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph.value_info}
    sizes = {name: [dim.dim_value for dim in tensor.shape.dim] for name, tensor in tensors.items() if tensor.HasField("shape")}
    return {name: (tensors[name].elem_type, found) for name, found in sizes.items() if all(found)}
