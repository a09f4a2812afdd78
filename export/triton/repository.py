"""A plan or bundle as a model repository that NVIDIA Triton loads as it is."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from ...runtime.artefact.bundle import BundleDirectory
from ...runtime.artefact.manifest import Manifest, PlanManifest
from ...runtime.artefact.plan import MANIFEST, PlanFile
from ...runtime.errors import InputError, UsageError
from ...runtime.files import whole_directory
from ...runtime.serving.photo_model import ARTEFACTS
from ...runtime.tensorrt.operators.kernel_stage import SUFFIX
from .check import CONFIG, VERSION, check_models
from .config_text import config_text, load_protobuf, read_config
from .model_configs import BACKENDS, PREFIX, ensemble_config, facts_of, photo_config, stage_config

WHAT = ("photo", "ensemble")
MODEL_NAME = re.compile(r"[A-Za-z0-9_-](\.?[A-Za-z0-9_-])*")  # Triton refuses ".." and "/"; clients put the name into addresses as it is
MODEL_PY = '"""Photos to depth by Fathom: pip install fathom-depth where Triton\'s Python backend runs."""\n\n' + (
    'from fathom.runtime.serving.photo_model import TritonPythonModel\n\n__all__ = ["TritonPythonModel"]\n'
)


@dataclass(frozen=True)
class Repository:
    """What was written.

    Args:
        photo, ensemble: names of these models, or ``""``.
        stages: stage -> name of its model.
        remarks: what was left out, and why.
    """

    photo: str
    ensemble: str
    stages: dict[str, str]
    remarks: tuple[str, ...] = ()


def write_repository(
    source: str | Path, path: str | Path, what: tuple[str, ...] = WHAT, force: bool = False, on_message: Callable[[str], None] = lambda text: None
) -> Repository:
    """Write the models of one network into a repository, which may hold others already; all of them, or none.

    Args:
        source: plan (file) or bundle (directory); every byte is checked first.
        path: of the repository; made if it is not there.
        what: ``photo``, ``ensemble`` (with the stages), or both.
        force: replace models of these names that Fathom wrote.
        on_message: told remarks for people.

    Raises:
        InputError, ChecksumError: if the source is not sound, its network's name suits no model of Triton, or a name is taken.
        UsageError: if the source cannot be served so.
        EnvironmentMismatchError: if ``tritonclient`` is not installed.
    """
    load_protobuf()
    source, path, remarks = Path(source), Path(path), []
    with BundleDirectory.open(source) if source.is_dir() else PlanFile.open(source) as artefact:
        manifest = artefact.manifest
        name, backend = manifest.network.name, manifest.backend if isinstance(manifest, PlanManifest) else "onnxruntime"
        if not MODEL_NAME.fullmatch(name):
            was = f"the network is called {name!r}, and so would be models of Triton"
            raise InputError(was, wanted="letters, digits, '_', '-' and single dots between them", fix="depth-export --onnx FILE --name NAME, and build again")
        if "ensemble" in what and (was := _not_served(manifest, backend)):
            if "photo" not in what:
                raise UsageError(was, wanted="engines for tensorrt or onnxruntime alone", fix="--models photo serves this plan by Fathom's own runtime")
            remarks.append(f"{was}: the photo model alone is written, and runs them by Fathom's own runtime")
            what = ("photo",)
        sha256 = artefact.manifest_sha256 if isinstance(artefact, BundleDirectory) else hashlib.sha256(artefact.read(MANIFEST)).hexdigest()
        facts = facts_of(manifest, sha256)
        stages = {spec.name: f"{name}-{spec.name}" for spec in manifest.specs()} if "ensemble" in what else {}
        made = Repository(f"{name}-photo" if "photo" in what else "", name if stages else "", stages, tuple(remarks))
        configs = {model: stage_config(model, manifest, spec, facts) for spec in manifest.specs() for model in [stages.get(spec.name)] if model}
        if made.photo:
            configs[made.photo] = photo_config(made.photo, manifest, facts)
        if made.ensemble:
            configs[made.ensemble] = ensemble_config(made.ensemble, manifest, stages, facts)
        for words in remarks:
            on_message(words)
        path.mkdir(parents=True, exist_ok=True)
        for model in configs:
            _refuse_strangers(path / model)
        with ExitStack() as parts:  # the ensemble is entered first and so appears last, when its stages are there
            folders = {model: parts.enter_context(whole_directory(path / model, force, CONFIG)) for model in reversed(list(configs))}
            for model, config in configs.items():
                on_message(f"writing {model}")
                (folders[model] / VERSION).mkdir()
                (folders[model] / CONFIG).write_text(config_text(config))
            for stage in manifest.stages:
                if stage.spec.name in stages:
                    _write_engine(artefact, stage, folders[stages[stage.spec.name]] / VERSION)
            if made.photo:
                _write_photo_model(source, manifest, folders[made.photo] / VERSION)
            check_models(folders)
    return made


def _not_served(manifest: Manifest, backend: str) -> str:
    """What Triton cannot run stage by stage, in words; "" if there is nothing."""
    if backend not in BACKENDS:
        return f"Triton has no backend for {backend} engines"
    if any(stage.precision == "int8" for stage in manifest.stages) and backend == "onnxruntime":
        return "Triton's ONNX Runtime cannot be told to add up INT8 products exactly on every processor"
    kernels = [stage.spec.name for stage in manifest.stages if isinstance(manifest, PlanManifest) and stage.engine.endswith(SUFFIX)]
    return f"Triton has no backend for the kernel stages of our operators ({', '.join(kernels)})" if kernels else ""


def _refuse_strangers(folder: Path) -> None:
    """Nobody's own model of that name is replaced.

    Raises:
        InputError: if there is one.
    """
    if not folder.exists():
        return
    try:
        ours = any(key.startswith(PREFIX) for key in read_config((folder / CONFIG).read_text(), str(folder / CONFIG)).parameters)
    except (OSError, ValueError, InputError):
        ours = False
    if not ours:
        raise InputError(f"{folder} is there already and was not written by depth-triton", wanted="a free name", fix="another repository")


def _write_engine(artefact: Any, stage: Any, folder: Path) -> None:
    """The engine of one stage under the name that Triton's backend looks for."""
    if isinstance(artefact, BundleDirectory):
        target = folder / "model.onnx"
        data = f"{stage.file}.data"
        if data not in artefact.manifest.files:
            shutil.copyfile(artefact.path(stage.file), target)
            return
        target.mkdir()
        shutil.copyfile(artefact.path(stage.file), target / "model.onnx")
        shutil.copyfile(artefact.path(data), target / Path(data).name)
        return
    if artefact.manifest.backend != "onnxruntime":
        _write(artefact, stage.engine, folder / "model.plan")
        return
    if not stage.weights:
        _write(artefact, stage.engine, folder / "model.onnx")
        return
    (folder / "model.onnx").mkdir()  # a graph with its weights beside it is a folder, whose file Triton takes
    _write(artefact, stage.engine, folder / "model.onnx" / "model.onnx")
    _write(artefact, stage.weights, folder / "model.onnx" / _weights_name(artefact.read(stage.engine), stage.spec.name))


def _weights_name(graph: bytes, stage: str) -> str:
    """What a graph calls the file of its weights."""
    tensors = onnx.ModelProto.FromString(graph).graph.initializer
    names = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    if len(names) != 1 or any(Path(name).name != name or name in ("", ".", "..", "model.onnx") for name in names):
        raise InputError(f"the graph of stage {stage} names its weights {sorted(names)}", wanted="one file beside it", fix="build the plan again")
    return names.pop()


def _write(plan: PlanFile, name: str, target: Path) -> None:
    with plan.view(name) as view, open(target, "wb") as file:
        file.write(view)


def _write_photo_model(source: Path, manifest: Manifest, folder: Path) -> None:
    (folder / "model.py").write_text(MODEL_PY)
    if isinstance(manifest, PlanManifest):
        shutil.copyfile(source, folder / ARTEFACTS[0])
        return
    for name in ("bundle.json", *manifest.files):
        (folder / ARTEFACTS[1] / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, folder / ARTEFACTS[1] / name)
