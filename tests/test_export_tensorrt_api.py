"""Every TensorRT name that we use must be in TensorRT 10.3, 10.16, 11.4 and TensorRT-RTX 1.7.1, or stand behind ``hasattr``; those of the build for
TensorRT 8 in 8.5 and 8.6.

The dumps in ``data/trt_api`` list classes and members of the Python packages.
"""

import ast
import json
from pathlib import Path

import pytest

import fathom.export.tensorrt.build as module
import fathom.runtime.tensorrt.logger as logger
from fathom.export.tensorrt import builder, constrained_build, finished_engine, timing_cache
from fathom.runtime.tensorrt.adapters import tactic_sources
from fathom.runtime.tensorrt.rtx_targets import BUILT_FOR

ALL = {file.stem: json.loads(file.read_text()) for file in sorted((Path(__file__).parent / "data" / "trt_api").glob("*.json"))}
DUMPS = {name: api for name, api in ALL.items() if not name.startswith("api_8")}  # TensorRT 8 has a build of its own
GUARDED = {  # used only where ``hasattr`` found them first: TensorRT-RTX's cross-compilation
    ("IBuilderConfig", "set_compute_capability"),
    ("IBuilderConfig", "num_compute_capabilities"),
    ("trt", "ComputeCapability"),
}
OBJECTS = {  # our variable -> the class it holds
    "trt": "trt",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "engine": "IHostMemory",
    "layer": "ILayer",
    "tensor": "ITensor",
    "error": "ParserError",
    "held": "DataType",
}
PLAIN = {  # attributes of enum members and Python objects, not of TensorRT
    ("DataType", "name"),
    ("ILogger", "__init__"),
    ("IProgressMonitor", "__init__"),
}


def _members(dump, name):
    entry = dump.get(name)
    return set(entry["members"]) if isinstance(entry, dict) and "members" in entry else set()


def _used(source, more=()):
    """(class, member) for every attribute that is read or set on one of ``OBJECTS`` (or ``more``), and on enums reached through ``trt``."""
    found, objects = set(), {**OBJECTS, **dict(more)}
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Attribute):
            continue
        if isinstance(node.value, ast.Name) and node.value.id in objects:
            found.add((objects[node.value.id], node.attr))
        inner = node.value
        if isinstance(inner, ast.Attribute) and isinstance(inner.value, ast.Name) and inner.value.id == "trt":
            found.add((inner.attr, node.attr))
        if isinstance(inner, ast.Call) and isinstance(inner.func, ast.Attribute) and inner.func.attr == "get_output":
            found.add(("ITensor", node.attr))
    return found


USED = (
    _used(Path(module.__file__).read_text())
    | _used(Path(builder.__file__).read_text())
    | _used(Path(logger.__file__).read_text())
    | _used(Path(timing_cache.__file__).read_text(), {"cache": "ITimingCache"})
    | _used(Path(finished_engine.__file__).read_text(), {"engine": "ICudaEngine", "inspector": "EngineInspector", "runtime": "Runtime"})
)


def test_the_dumps_are_there():
    assert set(DUMPS) == {"api_10_3", "api_10_16", "api_11_4", "api_rtx"} and set(ALL) - set(DUMPS) == {"api_8_5", "api_8_6"}


def test_the_reader_sees_what_we_use():
    assert {
        ("Builder", "build_serialized_network"),
        ("OnnxParser", "parse_from_file"),
        ("BuilderFlag", "TF32"),
        ("trt", "ILogger"),
        ("ITensor", "dtype"),
        ("EngineInspector", "get_engine_information"),
    } <= USED
    assert len(USED) > 30


@pytest.mark.parametrize("dump", DUMPS)
def test_everything_used_is_in_every_api(dump):
    api, missing = DUMPS[dump], []
    for owner, member in sorted(USED - GUARDED - PLAIN):
        if owner == "trt":
            ok = member in api or member in ("__version__", "__name__")
        elif owner == "ComputeCapability":
            ok = True
        else:
            ok = member in _members(api, owner)
        if not ok:
            missing.append(f"{owner}.{member}")
    assert not missing


def test_what_is_guarded_is_missing_somewhere_and_there_in_rtx():
    for owner, member in GUARDED:
        there = [name for name, api in DUMPS.items() if (member in api if owner == "trt" else member in _members(api, owner))]
        assert there == ["api_rtx"], (owner, member)
    assert 'hasattr(config, "set_compute_capability")' in Path(module.__file__).read_text()


@pytest.mark.parametrize("dump", DUMPS)
def test_the_names_that_are_looked_up_as_text_are_there_too(dump):
    assert set(module.COUNTED) <= _members(DUMPS[dump], "LayerType")
    if dump == "api_rtx":
        assert {target.upper() for target in BUILT_FOR} <= _members(DUMPS[dump], "ComputeCapability")


@pytest.mark.parametrize("dump", DUMPS)
def test_the_classes_we_derive_from_have_the_methods_we_override(dump):
    assert "log" in _members(DUMPS[dump], "ILogger")
    assert {"phase_start", "step_complete", "phase_finish"} <= _members(DUMPS[dump], "IProgressMonitor")


def test_no_enum_is_written_as_a_number():
    tree = ast.parse(Path(module.__file__).read_text())
    shifts = [node for node in ast.walk(tree) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.LShift)]
    for node in shifts:
        assert not isinstance(node.right, ast.Constant) or node.right.value >= 20, "flags are renumbered between versions: use the enum"


@pytest.mark.parametrize("release", ["8_5", "8_6"])
def test_every_name_that_the_constrained_build_uses_is_in_the_real_packages(release):
    api = ALL[f"api_{release}"]
    objects = {"runtime": "Runtime", "engine": "ICudaEngine", "inspector": "EngineInspector", "plan": "IHostMemory"}
    used = _used(Path(constrained_build.__file__).read_text(), objects) | _used(Path(tactic_sources.__file__).read_text(), objects)
    named = {("ILayer", "precision"), ("ILayer", "set_output_type"), ("IBuilderConfig", "set_tactic_sources"), ("ParserError", "node")}
    assert named <= used and len(used) > 40
    missing = [(owner, member) for owner, member in used - PLAIN if member not in (api if owner == "trt" else _members(api, owner)) and member != "__version__"]
    assert missing == []
    assert {*constrained_build.UNCONSTRAINED} <= _members(api, "LayerType") and {*constrained_build.FLOATS} <= _members(api, "DataType")
    shared = (
        _used(Path(builder.__file__).read_text())
        | _used(Path(logger.__file__).read_text())
        | _used(Path(timing_cache.__file__).read_text(), {"cache": "ITimingCache"})
    )
    shared |= _used(Path(finished_engine.__file__).read_text(), objects)
    assert {("ITimingCache", "serialize"), ("EngineInspector", "get_engine_information"), ("ILogger", "INTERNAL_ERROR")} <= shared
    known = {owner: set(api) | {"__version__"} if owner == "trt" else _members(api, owner) for owner, _ in shared}
    assert [(owner, member) for owner, member in shared - PLAIN if member not in known[owner]] == []
