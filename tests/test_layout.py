"""The house: who may import whom, what the lean runtime loads, how long a file may be."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import fathom

ROOT = Path(fathom.__file__).parent
OURS = {
    "runtime": set(),
    "datasets": set(),
    "models": {"runtime", "datasets"},
    "trt_plugins": set(),
    "calibration": {"runtime", "datasets"},
    "export": {"runtime", "datasets", "models", "trt_plugins", "calibration"},
    "benchmarks": {"runtime", "datasets"},
}
OTHERS = {
    "runtime": {
        "numpy",
        "PIL",
        "onnxruntime",
        "tensorrt",
        "tensorrt_rtx",
        "cuda",
        "pycuda",
        "tqdm",
        "tokenizers",
        "av",
        "cv2",
        "rosbags",
        "cryptography",
        "ray",
        "pyarrow",
        "triton_python_backend_utils",
        "OpenEXR",
    },
    "datasets": {"numpy", "PIL", "h5py", "scipy"},
    "models": {"torch", "transformers", "diffusers", "open_clip", "safetensors", "tokenizers", "numpy", "huggingface_hub"},
    "trt_plugins": {"onnx", "cuda"},
    "calibration": {"numpy", "onnx", "onnxruntime", "tqdm"},
    "export": {"torch", "onnx", "onnxscript", "onnx_ir", "onnxruntime", "tensorrt", "tensorrt_rtx", "numpy", "safetensors", "ml_dtypes"}
    | {"tritonclient", "google"},  # google: protobuf
    "benchmarks": {"numpy", "h5py", "onnxruntime", "matplotlib", "PIL"},
}
AT_ONCE = {"runtime": {"numpy", "PIL"}}  # everything else in runtime/ is imported where it is used
PYTORCH_REFERENCE = {
    "benchmarks/pytorch_reference.py",
    "benchmarks/latency/pytorch_latency.py",
    "benchmarks/studies/evp_fullsize.py",
    "benchmarks/studies/vpd_scenes.py",
    "benchmarks/card/operators.py",
}
ROOM_FILES = 15
RUNTIME_PARTS_OF_MODELS = {"spec", "contract", "errors", "text_input", "encoder", "files", "command", "progress", "memory_limit"}
RUNTIME_PARTS_OF_MODELS |= {"preprocess", "postprocess", "depth_map"}  # photos are learned from as they are shown later


def _imports(path: Path):
    """Yield (first name of an absolute import or path of a relative one, line, relative?, at module level?)."""
    package = path.relative_to(ROOT).parent.parts
    tree = ast.parse(path.read_text())
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield (alias.name.split(".")[0],), node.lineno, False, id(node) in top
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module.split(".")[0],), node.lineno, False, id(node) in top
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            for alias in node.names:
                yield (*base, *(node.module or alias.name).split(".")), node.lineno, True, id(node) in top


def _sources(folder: str):
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("folder", OURS)
def test_a_folder_imports_only_what_lies_below_it(folder):
    for path in _sources(folder):
        inside = str(path.relative_to(ROOT))
        for name, line, relative, at_once in _imports(path):
            where = f"{inside}:{line}"
            if relative:
                allowed = OURS[folder] | ({"models"} if inside in PYTORCH_REFERENCE else set())
                in_root = len(name) == 1 and name[0] == "__version__"
                assert name[0] == folder or name[0] in allowed or in_root, f"{where}: {folder}/ may not import {'/'.join(name)}"
                if folder == "models" and name[0] == "runtime":
                    assert name[-1] in RUNTIME_PARTS_OF_MODELS, f"{where}: models/ may use only {RUNTIME_PARTS_OF_MODELS} of runtime/"
            else:
                assert name[0] not in {"fathom", *OURS}, f"{where}: write the import of {name[0]} with dots"
                outside = name[0] not in sys.stdlib_module_names
                reference = {"torch", "onnx"} if inside in PYTORCH_REFERENCE else set()
                assert not outside or name[0] in OTHERS[folder] | reference, f"{where}: {folder}/ may not import {name[0]}"
                if outside and at_once and folder in AT_ONCE:
                    assert name[0] in AT_ONCE[folder], f"{where}: import {name[0]} where it is used, not at module level"


def test_every_folder_is_covered():
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert folders == set(OURS)


def _rooms_and_files():
    """Every import between two of our files: (importer, imported), as paths without their ending, ``__init__`` left out."""
    files = {path.relative_to(ROOT).with_suffix("").parts for folder in OURS for path in _sources(folder) if path.name != "__init__.py"}
    for file in sorted(files):
        for name, _, relative, _ in _imports(ROOT / Path(*file).with_suffix(".py")):
            if relative and name in files:
                yield file, name


def _circle(edges):
    """A circle in a directed graph of (from, to) pairs, as a list of nodes; [] if there is none."""
    after = {}
    for start, end in edges:
        if start != end:
            after.setdefault(start, set()).add(end)
    done, path = set(), []

    def visit(node):
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        path.append(node)
        found = next((circle for following in sorted(after.get(node, ())) if (circle := visit(following))), [])
        path.pop()
        done.add(node)
        return found

    return next((circle for node in sorted(after) if (circle := visit(node))), [])


def test_the_search_for_circles_finds_one():
    assert _circle([("a", "b"), ("b", "c"), ("c", "b")]) == ["b", "c", "b"]
    assert _circle([("a", "b"), ("a", "c"), ("b", "c"), ("c", "c")]) == []


def test_no_circle_between_files_or_rooms():
    edges = list(_rooms_and_files())
    assert len(edges) > 300
    assert not _circle(edges)
    rooms = [tuple(file[:-1] if len(file) > 2 else file for file in edge) for edge in edges]  # a file at a folder's root is a room of its own
    assert not _circle(rooms)


def test_no_room_is_a_row_of_files():
    rooms = {path.parent for folder in OURS for path in _sources(folder)}
    crowded = {str(room.relative_to(ROOT)): n for room in rooms if (n := len(list(room.glob("[!_]*.py")))) > ROOM_FILES}
    assert not crowded


def test_the_runtime_loads_without_the_exporting_world():
    heavy = {"torch", "transformers", "diffusers", "onnx", "onnxruntime", "safetensors", "open_clip", "fathom.models", "fathom.export"}
    modules = [".".join(("fathom", *path.relative_to(ROOT).with_suffix("").parts)) for path in (ROOT / "runtime").rglob("[!_]*.py")]
    code = f"""
import importlib, json, sys
for name in {modules}: importlib.import_module(name)
print(json.dumps(sorted(set(sys.modules) & {heavy})))
"""
    assert json.loads(subprocess.check_output([sys.executable, "-c", code], text=True)) == []


def test_files_hold_one_concept():
    limits = {"models": 450, "tests": 600}
    long = {str(p.relative_to(ROOT)): n for folder in OURS for p in _sources(folder) if (n := len(p.read_text().splitlines())) > limits.get(folder, 330)}
    assert not long


def test_no_room_for_odds_and_ends():
    names = {path.name for folder in [*OURS, "tests"] for path in _sources(folder)}
    assert not names & {"utils.py", "common.py", "helpers.py", "misc.py"}
    assert not (ROOT / "tests" / "__init__.py").exists()


def test_nothing_unpickles():
    for folder in OURS:
        for path in _sources(folder):
            tree = ast.parse(path.read_text())
            for node in ast.walk(tree):
                if isinstance(node, ast.Call):
                    called = ast.unparse(node.func)
                    keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                    where = f"{path.relative_to(ROOT)}:{node.lineno}"
                    if called.endswith("torch.load"):
                        assert keywords.get("weights_only") == "True", f"{where}: torch.load without weights_only=True"
                    if called in ("np.load", "numpy.load"):
                        assert keywords.get("allow_pickle") == "False", f"{where}: np.load without allow_pickle=False"
                    assert called not in ("pickle.load", "pickle.loads", "torch.jit.load"), f"{where}: {called}"
                    assert keywords.get("strict") != "False" or "load_state_dict" not in called, f"{where}: strict=False"
