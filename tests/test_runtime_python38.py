"""The runtime alone, and the child process that builds engines for TensorRT 8, run on Python 3.8, which is what JetPack 5 has."""

import ast
import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
from python38 import find_python38

import fathom
from fathom.runtime.sequences import pairwise, zip_equal

ROOT = Path(fathom.__file__).parent
BUILDING = ["__init__", "export/__init__", "export/plan/__init__", "export/plan/build_child", "export/tensorrt/__init__"]
BUILDING += [f"export/tensorrt/{name}" for name in ("builder", "constrained_build", "engine_layers", "finished_engine", "timing_cache")]
SOURCES = [*sorted((ROOT / "runtime").rglob("*.py")), *[ROOT / f"{name}.py" for name in BUILDING]]
NEWER_NAMES = {  # module -> what came after 3.8
    "itertools": {"pairwise", "batched"},
    "functools": {"cache"},
    "math": {"lcm", "nextafter", "ulp", "cbrt", "exp2"},
    "asyncio": {"to_thread", "timeout", "TaskGroup"},
    "types": {"NoneType", "EllipsisType", "UnionType"},
    "typing": {"Annotated", "TypeAlias", "ParamSpec", "Self", "Never", "override"},
    "enum": {"StrEnum"},
    "contextlib": {"chdir", "aclosing"},
    "zoneinfo": {"ZoneInfo"},
    "tomllib": {"load", "loads"},
    "graphlib": {"TopologicalSorter"},
}
NEWER_METHODS = {"removeprefix", "removesuffix", "is_relative_to", "with_stem", "hardlink_to", "readlink", "bit_count", "unparse", "stdlib_module_names"}
NEWER_KEYWORDS = {"zip": {"strict"}, "dataclass": {"slots", "kw_only", "match_args"}, "field": {"kw_only"}, "shutdown": {"cancel_futures"}}
SETS_AND_NUMBERS = {  # where | is no union of dictionaries or types
    "runtime/artefact/plan.py": ["set(manifest.files) | {MANIFEST}"],
    "runtime/files.py": ["os.W_OK | os.X_OK"],
    "runtime/onnxruntime/backend.py": ["found.keys() | wanted.keys()"],
    "runtime/tensorrt/adapters/library_by_hand.py": ["os.RTLD_NOLOAD | os.RTLD_NOW"],
    "runtime/ros/messages.py": ["red << 16 | green << 8", "red << 16 | green << 8 | blue"],
    "runtime/outputs/writers.py": ["(mm > MAX_MM) | (mm < 1)"],
}
GENERIC = {"list", "dict", "set", "tuple", "type", "frozenset", "Callable", "Iterable", "Iterator", "Sequence", "Mapping", "deque", "Future", "Generator"}


def _never_evaluated(tree):
    """Annotations where the file has the future import, and what stands under ``if TYPE_CHECKING``."""
    future = any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body)
    for node in ast.walk(tree):
        for part in ("annotation", "returns"):
            if future and getattr(node, part, None) is not None:
                yield from map(id, ast.walk(getattr(node, part)))
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from (id(inner) for statement in node.body for inner in ast.walk(statement))


def _problems(source, allowed=()):
    """Everything in a file that Python 3.8 does not have; a SyntaxError for what its grammar does not know."""
    tree = ast.parse(source, feature_version=(3, 8))
    passed = set(_never_evaluated(tree))
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if id(node) in passed:
            continue
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{line}: {node.module}.{a.name}" for a in node.names if a.name in NEWER_NAMES.get(node.module, ()))
        elif isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            if node.attr in NEWER_METHODS | NEWER_NAMES.get(owner, set()):
                yield f"{line}: .{node.attr}"
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func).rpartition(".")[2]
            yield from (f"{line}: {called}({word.arg}=)" for word in node.keywords if word.arg in NEWER_KEYWORDS.get(called, ()))
        elif isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.BitOr):
            if ast.unparse(node) not in allowed:
                yield f"{line}: {ast.unparse(node)}"
        elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in GENERIC:
            yield f"{line}: {ast.unparse(node)}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_newer_than_python_3_8(path):
    assert list(_problems(path.read_text(), SETS_AND_NUMBERS.get(str(path.relative_to(ROOT)), ()))) == []


@pytest.mark.parametrize(
    "newer",
    [
        "match x:\n    case 1: pass",
        "with (open(a) as b, open(c) as d): pass",
        "a = b | c",
        "a |= {}",
        "zip(a, b, strict=True)",
        "from itertools import pairwise",
        "import functools\nfunctools.cache",
        "x.removeprefix('a')",
        "def f(a: int | None): pass",
        "A = tuple[int, ...]",
        "pool.shutdown(cancel_futures=True)",
        "@dataclass(slots=True)\nclass A: pass",
        "isinstance(x, int | str)",
    ],
)
def test_the_search_finds_what_is_newer(newer):
    with contextlib.suppress(SyntaxError):
        assert list(_problems(newer))


def test_the_search_passes_over_annotations():
    assert list(_problems("from __future__ import annotations\nx: int | None = None\ndef f(a: list[int]) -> dict[str, int] | None: pass")) == []
    assert list(_problems("if TYPE_CHECKING:\n    A = Callable[[int], None]")) == []


def test_zip_of_equal_sequences():
    assert list(zip_equal([1, 2], "ab", (3, 4))) == [(1, "a", 3), (2, "b", 4)] and list(zip_equal([], [])) == []
    for unequal in ([1, 2], [1]), ([1], [1, 2]), ([], [1]):
        with pytest.raises(ValueError, match="ended before"):
            list(zip_equal(*unequal))
    assert list(pairwise([1, 2, 3])) == [(1, 2), (2, 3)] and list(pairwise([1])) == [] == list(pairwise([]))


def test_a_real_python_3_8_compiles_it():
    python = find_python38()
    if python is None:
        pytest.skip("no Python 3.8 on this machine")
    code = "import sys\nfor name in sys.argv[1:]: compile(open(name).read(), name, 'exec', dont_inherit=True)"
    done = subprocess.run([python, "-c", code, *map(str, SOURCES)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_process_that_compiles_for_tensorrt_8_needs_no_other_package(tmp_path):
    """Python 3.8 of a board that has TensorRT's bindings and not even NumPy; without a 3.8 here, this Python without its packages."""
    (tmp_path / "fathom").symlink_to(ROOT)
    code = "import sys, fathom.export.plan.build_child as child\nfor task in ('tensorrt8', 'tensorrt-version'): child._task(task)\n"
    code += "print(*(module.__file__ for name, module in sys.modules.items() if name.partition('.')[0] == 'fathom'), sep='\\n')"
    environment = {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([find_python38() or sys.executable, "-S", "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    loaded = {Path(name).relative_to(tmp_path / "fathom") for name in done.stdout.split()}
    assert len(loaded) > 15 and loaded <= {path.relative_to(ROOT) for path in SOURCES}  # all of it is looked through above
