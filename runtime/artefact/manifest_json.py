"""``bundle.json`` and ``plan.json``: manifests as JSON, read strictly.

A version this release does not know is refused, so is any key it does not know.
"""

from __future__ import annotations

import json
import re
from typing import Any

from ..errors import InputError
from .contract import Contract
from .manifest import MAX_FILES, BundleManifest, BundleStage, FileFacts, Initializer, Manifest, NetworkFacts, PlanManifest, PlanStage
from .operator_use import OperatorUse
from .spec import StageSpec, TensorSpec, fields

VERSION = 1
HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")  # controls of terminals, ends of lines, turns of direction
UNSEEN = (("network", "config"), ("text", "template"))  # what no command prints and no output quotes: a prompt may have lines
MAX_MANIFEST_BYTES = 16 << 20


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
        data.update(goldens=list(manifest.goldens), parity=manifest.parity)
    else:
        data["stages"] = [
            {
                **s.spec.to_json(),
                "engine": s.engine,
                "precision": s.precision,
                "weights": s.weights,
                "initializers": _tensors_to_json(s.initializers),
            }
            for s in manifest.stages
        ]
        data.update(
            {
                "backend": manifest.backend,
                "backend_version": manifest.backend_version,
                "targets": list(manifest.targets),
                "precision": manifest.precision,
                "batch": list(manifest.batch),
                "bundle_sha256": manifest.bundle_sha256,
            }
        )
        if manifest.goldens:
            data["goldens"] = _tensors_to_json(manifest.goldens)
        if manifest.operators:
            data["operators"] = manifest.operators.to_json()
    return data


def _tensors_to_json(items: tuple[Initializer, ...]) -> list[dict[str, Any]]:
    return [{**item.tensor.to_json(), "offset": item.offset} for item in items]


def _tensors_from_json(items: list[Any], what: str) -> tuple[Initializer, ...]:
    read = []
    for item in items:
        name, dtype, shape, offset = fields(item, what, name=str, dtype=str, shape=list, offset=int)
        read.append(Initializer(TensorSpec(name, dtype, tuple(shape)), offset))
    return tuple(read)


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
        raise InputError(f"{where} is not JSON ({str(error) or type(error).__name__})", fix="export or build it again") from error
    if not isinstance(data, dict) or data.get("format") != wanted_format:
        got = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise InputError(f"{where} says its format is {got!r}", wanted=repr(wanted_format))
    if data.get("version") != VERSION:
        raise InputError(
            f"{where} has format version {data.get('version')!r}", wanted=f"version {VERSION}", fix="use the Fathom release that made it, or make it again"
        )
    try:
        _refuse_hidden(data)
        return (_bundle if kind is BundleManifest else _plan)(data)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError, re.error) as error:
        raise InputError(f"{where} is not a valid manifest: {error}", fix="export or build it again") from error


def _refuse_hidden(value: Any, what: str = "manifest") -> None:
    """Words of an artefact go to terminals and into headers of files, where a line break or an escape sequence would forge a line."""
    if isinstance(value, str):
        if HIDDEN.search(value):
            raise ValueError(f"{what}: {value[:80]!r} has characters that cannot be seen")
    elif isinstance(value, dict):
        for key, item in value.items():
            if (what, key) not in UNSEEN:
                _refuse_hidden(key, what), _refuse_hidden(item, key)
    elif isinstance(value, list):
        for item in value:
            _refuse_hidden(item, what)


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
    data = {"goldens": [], "operators": None, **data}  # plans of earlier releases have none
    _, _, network, contract, files, made_with, stages, backend, version, targets, precision, batch, bundle_sha256, goldens, operators = fields(
        data, "plan", **_SHARED, **own, goldens=list, operators=(dict, type(None))
    )
    read = []
    kinds = {"name": str, "inputs": list, "outputs": list, "engine": str, "precision": str, "weights": str, "initializers": list}
    for stage in stages:
        name, inputs, outputs, engine, stage_precision, weights, initializers = fields(stage, "stage", **kinds)
        spec = StageSpec.from_json({"name": name, "inputs": inputs, "outputs": outputs})
        read.append(PlanStage(spec, engine, stage_precision, weights, _tensors_from_json(initializers, "initializer")))
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
        goldens=_tensors_from_json(goldens, "golden"),
        operators=OperatorUse.from_json(operators) if operators is not None else None,
    )
