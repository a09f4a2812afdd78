"""A bundle whose stages hold our operators where the build asks for them; the bundle on disk stays as it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx

from ...runtime.artefact.bundle import BundleDirectory
from ...runtime.artefact.operator_use import OPERATORS, total
from ...runtime.errors import UsageError
from .choice import OperatorChoice, check_stages
from .operators import use_operators


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
        model = onnx.load(str(source), load_external_data=False)
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
