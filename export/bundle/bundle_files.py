"""The files of a bundle: where they lie, and the manifest over them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ... import __version__
from ...runtime.artefact.bundle import MANIFEST
from ...runtime.artefact.contract import Contract
from ...runtime.artefact.manifest import BundleManifest, BundleStage, NetworkFacts
from ...runtime.artefact.manifest_json import manifest_bytes
from ..parity.parity import ParityReport
from ..plan.plan_file import file_facts

GOLDEN = "goldens/case0.safetensors"
STAGES = "stages"


def finish_bundle(folder: Path, facts: NetworkFacts, contract: Contract, stages: tuple[BundleStage, ...], report: ParityReport) -> BundleManifest:
    """Hash every file and write ``bundle.json``."""
    files = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            files[file.relative_to(folder).as_posix()] = file_facts(file)
    manifest = BundleManifest(facts, contract, stages, files, made_with(), goldens=(GOLDEN,), parity=report.to_json())
    (folder / MANIFEST).write_bytes(manifest_bytes(manifest))
    return manifest


def made_with() -> dict[str, str]:
    """Versions of what takes part in an export or a build."""
    found = {"fathom": __version__}
    for package in ("torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime", "diffusers", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
