"""``bundle.json`` and ``plan.json``: what is in an artefact, read strictly.

Both list every file with its size and SHA-256. A version this release does not know is refused, so is any key it does not know.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from .contract import Contract
from .errors import InputError
from .spec import PRECISIONS, StageSpec, TensorSpec, check_chain, fields

VERSION = 1
BACKENDS = ("onnxruntime", "tensorrt", "tensorrt-rtx")
FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}(/[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}){0,3}")
SHA256 = re.compile(r"[0-9a-f]{64}")
MAX_MANIFEST_BYTES = 16 << 20
MAX_FILES = 4096
MAX_FILE_BYTES = 1 << 40


@dataclass(frozen=True)
class FileFacts:
    """Size in bytes and SHA-256 of one file of an artefact."""

    size: int
    sha256: str

    def __post_init__(self):
        if not 0 <= self.size <= MAX_FILE_BYTES:
            raise ValueError(f"absurd file size {self.size}")
        if not SHA256.fullmatch(self.sha256):
            raise ValueError(f"not a SHA-256: {self.sha256!r}")


@dataclass(frozen=True)
class NetworkFacts:
    """Which network this is and where its numbers come from.

    ``weights`` holds ``kind`` (``published``, ``trained``, ``demo``, ``random-init``, ``foreign``), ``file``, ``sha256``,
    ``licence`` and ``warnings``.
    """

    name: str
    variant: str
    config: dict[str, Any]
    parameters: int
    weights: dict[str, Any]

    def __post_init__(self):
        kinds = {"kind": str, "file": str, "sha256": str, "licence": str, "warnings": list}
        fields(self.weights, "network.weights", **kinds)

    @property
    def untrained(self) -> bool:
        """True if the weights are random: the depth is meaningless."""
        return self.weights["kind"] == "random-init"


@dataclass(frozen=True)
class BundleStage:
    """One ONNX stage of a bundle.

    Args:
        spec: name and tensors.
        file: path of the ONNX graph inside the bundle; its weights lie beside it in ``<file>.data``.
        precision: of the graph as it stands.
        fp32_islands: regular expressions over module paths that stay FP32 when the stage is typed FP16.
        folded: what was folded into constants at export, as counts by kind.
    """

    spec: StageSpec
    file: str
    precision: str
    fp32_islands: tuple[str, ...] = ()
    folded: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Initializer:
    """One weight tensor of an ONNX Runtime engine: where it lies in the stage's weights file."""

    tensor: TensorSpec
    offset: int


@dataclass(frozen=True)
class PlanStage:
    """One engine of a plan.

    Args:
        spec: name and tensors, batch fixed where the engine fixes it.
        engine: path inside the plan: a raw TensorRT plan, or an ONNX graph for ONNX Runtime.
        precision: what the stage was built in.
        weights: path inside the plan of an ONNX Runtime engine's weights, or ``""``.
        initializers: the tensors in that file.
    """

    spec: StageSpec
    engine: str
    precision: str
    weights: str = ""
    initializers: tuple[Initializer, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """Facts that a bundle and a plan share.

    Args:
        network: name, variant, config, parameters, origin of the weights.
        contract: input, output, protocols.
        stages: ``BundleStage`` or ``PlanStage``, in running order.
        files: every other file of the artefact, by path.
        made_with: versions of Fathom and of the packages that made it.
    """

    network: NetworkFacts
    contract: Contract
    stages: tuple[Any, ...]
    files: dict[str, FileFacts]
    made_with: dict[str, str]

    def __post_init__(self):
        specs = tuple(stage.spec for stage in self.stages)
        if not specs:
            raise ValueError("there is no stage")
        check_chain(specs)
        if len(self.files) > MAX_FILES:
            raise ValueError(f"{len(self.files)} files, at most {MAX_FILES} were wanted")
        for name in self.files:
            if not FILE_NAME.fullmatch(name):
                raise ValueError(f"unsafe file name {name!r}")
        for stage in self.stages:
            if stage.precision not in PRECISIONS:
                raise ValueError(f"stage {stage.spec.name}: unknown precision {stage.precision!r}")
            for name in self.stage_files(stage):
                if name not in self.files:
                    raise ValueError(f"stage {stage.spec.name} names the file {name!r}, which is not listed")
        outputs = {tensor.name for spec in specs for tensor in spec.outputs}
        inputs = {tensor.name for spec in specs for tensor in spec.inputs} - outputs
        if self.contract.input.tensor not in inputs:
            raise ValueError(f"no stage takes the input tensor {self.contract.input.tensor!r}")
        if self.contract.output.tensor not in outputs:
            raise ValueError(f"no stage makes the output tensor {self.contract.output.tensor!r}")

    def stage_files(self, stage: Any) -> tuple[str, ...]:
        """The files of one stage."""
        raise NotImplementedError

    def specs(self) -> tuple[StageSpec, ...]:
        """The specs of all stages, in running order."""
        return tuple(stage.spec for stage in self.stages)


@dataclass(frozen=True)
class BundleManifest(Manifest):
    """``bundle.json``: a portable directory of ONNX stages.

    Args:
        goldens: paths of the safetensors files with PyTorch FP32 inputs and stage outputs.
        parity: the table of the parity gate (see ``export/parity.py``), or ``{}``.
    """

    goldens: tuple[str, ...] = ()
    parity: dict[str, Any] = field(default_factory=dict)

    def stage_files(self, stage: BundleStage) -> tuple[str, ...]:
        """The ONNX graph; its ``.data`` beside it where there is one."""
        data = stage.file + ".data"
        return (stage.file, data) if data in self.files else (stage.file,)


@dataclass(frozen=True)
class PlanManifest(Manifest):
    """``plan.json``: engines for one backend, in one file.

    Args:
        backend: one of ``BACKENDS``.
        backend_version: of the package that compiled the engines.
        targets: compute capabilities (``sm86``), or ``cpu``.
        precision: what was asked for.
        batch: least, usual and greatest batch size.
        bundle_sha256: of the ``bundle.json`` it was built from.
    """

    backend: str = "onnxruntime"
    backend_version: str = ""
    targets: tuple[str, ...] = ()
    precision: str = "fp32"
    batch: tuple[int, int, int] = (1, 1, 1)
    bundle_sha256: str = ""

    def __post_init__(self):
        super().__post_init__()
        if self.backend not in BACKENDS:
            raise ValueError(f"unknown backend {self.backend!r}, wanted one of {', '.join(BACKENDS)}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"unknown precision {self.precision!r}")
        if len(self.batch) != 3 or not all(isinstance(b, int) for b in self.batch) or not 1 <= self.batch[0] <= self.batch[1] <= self.batch[2] <= 1024:
            raise ValueError(f"batch: 1 <= least <= usual <= greatest <= 1024 was wanted, got {self.batch}")
        if not SHA256.fullmatch(self.bundle_sha256):
            raise ValueError(f"bundle_sha256: {self.bundle_sha256!r}")
        for stage in self.stages:
            size = self.files[stage.weights].size if stage.weights else 0
            for item in stage.initializers:
                if not 0 <= item.offset <= size - _nbytes(item.tensor):
                    raise ValueError(f"stage {stage.spec.name}: the weight {item.tensor.name} lies outside its file")

    def stage_files(self, stage: PlanStage) -> tuple[str, ...]:
        """The engine, and its weights where they are apart."""
        return (stage.engine, stage.weights) if stage.weights else (stage.engine,)


def _nbytes(tensor: TensorSpec) -> int:
    from .spec import DTYPES

    count = DTYPES[tensor.dtype].itemsize
    for size in tensor.shape:
        if not isinstance(size, int):
            raise ValueError(f"the weight {tensor.name} has a free dimension")
        count *= size
    return count


def manifest_to_json(manifest: Manifest) -> dict[str, Any]:
    """As JSON values, with format and version."""
    data: dict[str, Any] = {
        "format": "fathom-bundle" if isinstance(manifest, BundleManifest) else "fathom-plan",
        "version": VERSION,
        "network": {name: getattr(manifest.network, name) for name in manifest.network.__dataclass_fields__},
        "contract": manifest.contract.to_json(),
        "files": {name: {"size": facts.size, "sha256": facts.sha256} for name, facts in sorted(manifest.files.items())},
        "made_with": dict(sorted(manifest.made_with.items())),
    }
    if isinstance(manifest, BundleManifest):
        data["stages"] = [
            {**s.spec.to_json(), "file": s.file, "precision": s.precision, "fp32_islands": list(s.fp32_islands), "folded": s.folded} for s in manifest.stages
        ]
        data |= {"goldens": list(manifest.goldens), "parity": manifest.parity}
    else:
        data["stages"] = [
            {
                **s.spec.to_json(),
                "engine": s.engine,
                "precision": s.precision,
                "weights": s.weights,
                "initializers": [{**i.tensor.to_json(), "offset": i.offset} for i in s.initializers],
            }
            for s in manifest.stages
        ]
        data |= {
            "backend": manifest.backend,
            "backend_version": manifest.backend_version,
            "targets": list(manifest.targets),
            "precision": manifest.precision,
            "batch": list(manifest.batch),
            "bundle_sha256": manifest.bundle_sha256,
        }
    return data


def manifest_bytes(manifest: Manifest) -> bytes:
    """Canonical UTF-8 JSON: the same facts always give the same bytes."""
    return (json.dumps(manifest_to_json(manifest), indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def manifest_from_bytes(raw: bytes, kind: type[Manifest], where: str) -> Any:
    """Read ``bundle.json`` (``kind=BundleManifest``) or ``plan.json`` (``PlanManifest``).

    Raises:
        InputError: if it is no such manifest, of another version, or says something impossible; ``where`` is named.
    """
    wanted_format = "fathom-bundle" if kind is BundleManifest else "fathom-plan"
    if len(raw) > MAX_MANIFEST_BYTES:
        raise InputError(f"{where} holds {len(raw)} bytes of JSON", wanted=f"at most {MAX_MANIFEST_BYTES}")
    try:
        data = json.loads(raw.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON ({str(error) or type(error).__name__})", mend="export or build it again") from error
    if not isinstance(data, dict) or data.get("format") != wanted_format:
        got = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise InputError(f"{where} says its format is {got!r}", wanted=repr(wanted_format))
    if data.get("version") != VERSION:
        raise InputError(
            f"{where} has format version {data.get('version')!r}", wanted=f"version {VERSION}", mend="use the Fathom release that made it, or make it again"
        )
    try:
        return (_bundle if kind is BundleManifest else _plan)(data)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise InputError(f"{where} is not a valid manifest: {error}", mend="export or build it again") from error


def _no_constant(name: str):
    raise ValueError(f"{name} is not JSON")


_SHARED = {"format": str, "version": int, "network": dict, "contract": dict, "files": dict, "made_with": dict, "stages": list}


def _shared(network: dict, contract: dict, files: dict, made_with: dict) -> dict[str, Any]:
    kinds = {"name": str, "variant": str, "config": dict, "parameters": int, "weights": dict}
    if len(files) > MAX_FILES or not all(isinstance(v, str) for v in made_with.values()):
        raise ValueError("files or made_with")
    return {
        "network": NetworkFacts(*fields(network, "network", **kinds)),
        "contract": Contract.from_json(contract),
        "files": {name: FileFacts(*fields(facts, f"files.{name}", size=int, sha256=str)) for name, facts in files.items()},
        "made_with": made_with,
    }


def _bundle(data: dict) -> BundleManifest:
    _, _, network, contract, files, made_with, stages, goldens, parity = fields(data, "bundle", **_SHARED, goldens=list, parity=dict)
    read = []
    kinds = {"name": str, "inputs": list, "outputs": list, "file": str, "precision": str, "fp32_islands": list, "folded": dict}
    for stage in stages:
        name, inputs, outputs, file, precision, islands, folded = fields(stage, "stage", **kinds)
        spec = StageSpec.from_json({"name": name, "inputs": inputs, "outputs": outputs})
        for pattern in islands:
            re.compile(pattern) if isinstance(pattern, str) and len(pattern) <= 256 else fields(pattern, "fp32_islands")
        read.append(BundleStage(spec, file, precision, tuple(islands), folded))
    for name in goldens:
        if name not in files:
            raise ValueError(f"the golden {name!r} is not listed among the files")
    return BundleManifest(**_shared(network, contract, files, made_with), stages=tuple(read), goldens=tuple(goldens), parity=parity)


def _plan(data: dict) -> PlanManifest:
    own = {"backend": str, "backend_version": str, "targets": list, "precision": str, "batch": list, "bundle_sha256": str}
    _, _, network, contract, files, made_with, stages, backend, version, targets, precision, batch, bundle_sha256 = fields(data, "plan", **_SHARED, **own)
    read = []
    kinds = {"name": str, "inputs": list, "outputs": list, "engine": str, "precision": str, "weights": str, "initializers": list}
    for stage in stages:
        name, inputs, outputs, engine, stage_precision, weights, initializers = fields(stage, "stage", **kinds)
        spec = StageSpec.from_json({"name": name, "inputs": inputs, "outputs": outputs})
        items = []
        for item in initializers:
            tensor_name, dtype, shape, offset = fields(item, "initializer", name=str, dtype=str, shape=list, offset=int)
            items.append(Initializer(TensorSpec(tensor_name, dtype, tuple(shape)), offset))
        read.append(PlanStage(spec, engine, stage_precision, weights, tuple(items)))
    if not all(isinstance(target, str) for target in targets):
        raise ValueError("targets: words were wanted")
    return PlanManifest(
        **_shared(network, contract, files, made_with),
        stages=tuple(read),
        backend=backend,
        backend_version=version,
        targets=tuple(targets),
        precision=precision,
        batch=tuple(batch),
        bundle_sha256=bundle_sha256,
    )
