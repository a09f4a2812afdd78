"""The plugin classes compiled for the host: against a stand-in of TensorRT's plugin interface, and against the public headers of every release
whose folder FATHOM_TENSORRT_INCLUDE names. With a real lean runtime at hand (tensorrt-lean-cu12, -cu13) its registry loads the library too.
"""

import ctypes
import dataclasses
import hashlib
import re
import shutil
from types import SimpleNamespace

import kernel_host
import numpy as np
import plugin_host
import pytest
from onnx import AttributeProto
from test_trt_plugins_operators import CONSTANTS, exact_attention, exact_bins, exact_norm, fp16_steps, read_back, some_attention, some_bins, some_norm, stored

from fathom.export.lowering.plugin_checks import BINS, MOST_CHANNELS_OF_A_GROUP, MOST_TOKENS, MOST_WIDTH, PLUGINS
from fathom.runtime.errors import EnvironmentMismatchError
from fathom.runtime.tensorrt.adapters import library_by_hand
from fathom.runtime.tensorrt.operators.plugins import load_plugins, read_library
from fathom.trt_plugins import build_kernels, build_plugins

needs_compiler = pytest.mark.skipif(not kernel_host.compiler(), reason="no C++ compiler")
needs_headers = pytest.mark.skipif(not plugin_host.header_folders(), reason="FATHOM_TENSORRT_INCLUDE names no folder of TensorRT headers")
REAL = plugin_host.header_folders() if kernel_host.compiler() and plugin_host.cuda_include() else []
STAND_INS = ["8.5", "11.1"] if kernel_host.compiler() else []
OPERATORS = ("BinsExpectation", "GroupNormSilu", "CrossAttention")
FIELDS = dict(zip(("alpha", "least_temperature", "greatest_temperature"), CONSTANTS, strict=True))


def release_of(given):
    return f"stand-in of {given}" if isinstance(given, str) else ".".join(map(str, build_plugins.tensorrt_version(given)))


@pytest.fixture(scope="module", params=[*STAND_INS, *REAL], ids=release_of)
def plugins(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plugins")
    return plugin_host.HostPlugins(plugin_host.stand_in_headers(folder, request.param) if isinstance(request.param, str) else request.param, folder)


def rows(*types_of_tensors):
    """Rows of (type, layout) from words such as "half pixels"."""
    types = {"half": "float16", "float": "float32"}
    return {tuple((types[word.split()[0]], word.split()[1]) for word in row) for row in types_of_tensors}


@pytest.mark.parametrize(
    ("name", "inputs", "outputs", "table"),
    [
        ("BinsExpectation", 3, 1, rows(["half planes"] * 4, ["half pixels"] * 4, ["float planes"] * 4)),
        (
            "GroupNormSilu",
            3,
            1,
            rows(
                ["half planes", "float planes", "float planes", "half planes"],
                ["half pixels", "float planes", "float planes", "half pixels"],
                ["float planes"] * 4,
            ),
        ),
        ("CrossAttention", 3, 2, rows(["half planes"] * 5, ["float planes"] * 5)),
    ],
)
def test_a_plugin_takes_the_formats_of_its_table_and_no_other(plugins, name, inputs, outputs, table):
    """Of all rows of four types and four layouts a tensor."""
    assert plugins.formats_taken(name, inputs, outputs) == table


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    ("name", "ranks", "sizes"),
    [
        ("BinsExpectation", (4, 4, 4), [[(0, 0), 1, (0, 2), (0, 3)]]),
        ("GroupNormSilu", (5, 1, 1), [[(0, axis) for axis in range(5)]]),
        ("CrossAttention", (4, 4, 4), [[(0, axis) for axis in range(4)], [(0, 0), (0, 2), (1, 3)]]),
    ],
)
def test_a_plugin_infers_shapes_and_types(plugins, name, ranks, sizes, half):
    assert plugins.shapes_made(name, ranks, len(sizes), half) == sizes


def test_bytes_of_another_length_make_no_plugin(plugins):
    assert [plugins.library.takes_other_bytes(name.encode()) for name in OPERATORS] == [0, 0, 0]


def test_the_library_is_registered_by_hand_where_the_registry_opens_none(plugins, monkeypatch):
    """TensorRT 8.5: once, taken away after the last user, and not at all beside somebody else's creator of one of the names."""
    if not hasattr(plugins.library, "stand_in_registry"):
        pytest.skip("this release loads libraries, or its registry is not ours to make")
    native = plugins.library
    native.stand_in_registry.restype = ctypes.c_void_p
    address = native.stand_in_registry()
    held = lambda: native.creators_held(ctypes.c_void_p(address))  # noqa: E731
    monkeypatch.setattr(library_by_hand, "native_registry", lambda: address)
    trt = SimpleNamespace(__name__="tensorrt", __version__="8.5.2.2", get_plugin_registry=lambda: SimpleNamespace())
    library = read_library(plugins.path)
    first, second = (load_plugins(trt, plugins.path, library) for _ in range(2))
    assert held() == 3
    first.close()
    first.close()
    assert held() == 3
    second.close()
    assert held() == 0
    load_plugins(trt, plugins.path, library).close()
    assert held() == 0
    native.take_a_name(ctypes.c_void_p(address))
    with pytest.raises(EnvironmentMismatchError, match="has operators of these names already"):
        load_plugins(trt, plugins.path, library)
    assert held() == 1
    monkeypatch.undo()
    with pytest.raises(EnvironmentMismatchError, match=r"loaded without libnvinfer\.so\.8"):
        load_plugins(trt, plugins.path, library)


def test_the_checker_of_graphs_knows_what_the_creators_ask_for(plugins):
    names = {AttributeProto.FLOAT: 1, AttributeProto.INT: 5}
    wanted = {f"{op} {field} {names[kind]} 1" for op, plugin in PLUGINS.items() for field, kind in plugin.fields.items()}
    text = ctypes.create_string_buffer(4096)
    assert 0 < plugins.library.fields_wanted(text, 4096) < 4096 and set(text.value.decode().split("\n")) - {""} == wanted
    source = "".join(file.read_text() for file in kernel_host.SOURCES.glob("*.cuh"))
    constants = dict(re.findall(r"(BIN_COUNT|GREATEST_GROUP|MOST_TOKENS|MOST_WIDTH) = (\d+)", source))
    limits = {"BIN_COUNT": BINS, "GREATEST_GROUP": MOST_CHANNELS_OF_A_GROUP, "MOST_TOKENS": MOST_TOKENS, "MOST_WIDTH": MOST_WIDTH}
    assert {name: int(number) for name, number in constants.items()} == limits


def test_what_an_engine_keeps_of_a_plugin_is_what_it_was_given(plugins):
    """No value is the operator's default: one that was lost on the way would show."""
    tensors, constants = some_bins(np.random.default_rng(70)), (40.0, 0.3, 7.0)
    depth = np.zeros((tensors[0].shape[0], 1, *tensors[0].shape[2:]), np.float16)
    assert plugins.run("BinsExpectation", dict(zip(FIELDS, constants, strict=True)), tensors, [depth]) == 0
    assert fp16_steps(depth, exact_bins(*tensors, constants)) <= 2 < fp16_steps(depth, exact_bins(*tensors))
    x, scale, shift, groups = some_norm(np.random.default_rng(71), 1)
    y = np.zeros_like(x)
    assert plugins.run("GroupNormSilu", {"epsilon": 0.5, "groups": groups}, [x, scale, shift], [y]) == 0
    assert fp16_steps(y, exact_norm(x, scale, shift, groups, 0.5).reshape(x.shape)) <= 2


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_bins_plugin_computes_what_its_kernel_does(plugins, channels_last):
    tensors = some_bins(np.random.default_rng(7))
    depth = np.zeros((tensors[0].shape[0], 1, *tensors[0].shape[2:]), np.float16)
    arrays = [stored(t, channels_last) for t in (*tensors, depth)]
    shapes = [t.shape for t in (*tensors, depth)]
    assert plugins.run("BinsExpectation", FIELDS, arrays[:3], arrays[3:], shapes, range(4) if channels_last else ()) == 0
    assert fp16_steps(read_back(arrays[3], 1, channels_last), exact_bins(*tensors)) <= 2
    assert plugins.library.bounds_broken() == 0


def test_the_bins_plugin_refuses(plugins):
    tensors = [np.zeros(shape, np.float16) for shape in ((1, 4, 8, 8), (1, 64, 2, 2), (1, 1, 4, 4), (1, 1, 8, 8))]
    run = lambda arrays, fields=FIELDS, **more: plugins.run("BinsExpectation", fields, arrays[:3], arrays[3:], **more)  # noqa: E731
    assert run(tensors, dry=True) == 0
    assert plugins.run("Nothing", {}, tensors[:3], tensors[3:]) == 1
    assert run(tensors, {**FIELDS, "least_temperature": 60.0}) == 2  # hotter than the greatest
    assert run(tensors, {**FIELDS, "alpha": 300}) == 2  # a whole number where a real one is wanted
    assert run(tensors, channels_last=(1,)) == 4  # formats mixed
    assert run([tensors[0].astype(np.float32), *tensors[1:]]) == 4
    assert run([tensors[0], np.zeros((1, 64, 5, 2), np.float16), *tensors[2:]]) in (5, 6)  # coarse above middle


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("number", [0, 1])
def test_the_norm_plugin_computes_what_its_kernels_do(plugins, number, channels_last):
    x, scale, shift, groups = some_norm(np.random.default_rng(8), number)  # number 0 is too long for shared memory
    arrays = [stored(x, channels_last), scale, shift, stored(np.zeros_like(x), channels_last)]
    shapes = [x.shape, scale.shape, shift.shape, x.shape]
    fields = {"groups": groups, "epsilon": 1e-5}
    assert plugins.run("GroupNormSilu", fields, arrays[:3], arrays[3:], shapes, (0, 3) if channels_last else ()) == 0
    assert fp16_steps(read_back(arrays[3], x.shape[1], channels_last), exact_norm(x, scale, shift, groups, 1e-5).reshape(x.shape)) <= 2
    assert plugins.run("GroupNormSilu", {"groups": x.shape[1] + 1}, arrays[:3], arrays[3:], shapes, (0, 3) if channels_last else ()) in (5, 6)
    assert plugins.run("GroupNormSilu", {"groups": 0}, arrays[:3], arrays[3:], shapes) == 2
    assert plugins.library.bounds_broken() == 0


def test_the_attention_plugin_computes_what_its_kernel_does(plugins):
    tensors = some_attention(np.random.default_rng(9))
    attended, found = np.zeros_like(tensors[0]), np.zeros((tensors[0].shape[0], tensors[0].shape[2], tensors[1].shape[3]), np.float16)
    assert plugins.run("CrossAttention", {"scale": 0.5}, tensors, [attended, found]) == 0
    wanted, wanted_map, magnitude = exact_attention(*tensors, 0.5)
    assert max(fp16_steps(attended, wanted, magnitude), fp16_steps(found, wanted_map)) <= 2
    assert plugins.run("CrossAttention", {"scale": 0.5}, [tensors[0], tensors[2], tensors[1]], [attended, found]) in (5, 6)
    assert plugins.library.bounds_broken() == 0


def lean_runtime():
    """The bindings of a TensorRT without a builder; they load and take away plugins on machines without a GPU."""
    return pytest.importorskip("tensorrt_lean_bindings", reason="no lean runtime of TensorRT", exc_type=ImportError)


@needs_headers
@needs_compiler
def test_the_registry_of_tensorrt_loads_the_library_once_and_lets_it_go(tmp_path):
    """The real registry: every way to load twice, to unload twice, and to come back."""
    trt = lean_runtime()
    headers = [folder for folder in REAL if str(build_plugins.tensorrt_version(folder)[0]) == trt.__version__.split(".")[0]]
    if not headers:
        pytest.skip(f"no headers for TensorRT {trt.__version__}")
    path, registry = plugin_host.HostPlugins(headers[-1], tmp_path).path, trt.get_plugin_registry()
    ours = lambda: sorted(creator.name for creator in registry.all_creators if creator.name in OPERATORS)  # noqa: E731
    assert ours() == []
    library = read_library(path)
    first, second = load_plugins(trt, path, library), load_plugins(trt, path, library)
    assert ours() == sorted(OPERATORS) and registry.load_library(str(path)) is None
    fields = lambda **values: trt.PluginFieldCollection(  # noqa: E731
        [trt.PluginField(name, np.float32([value]), trt.PluginFieldType.FLOAT32) for name, value in values.items()]
    )
    creator = registry.get_creator("BinsExpectation", "1", "")
    assert creator.create_plugin("a", fields(alpha=100), trt.TensorRTPhase.BUILD) is not None
    assert creator.create_plugin("a", fields(least_temperature=60), trt.TensorRTPhase.BUILD) is None
    with pytest.raises(EnvironmentMismatchError, match="loaded already"):
        load_plugins(trt, path, dataclasses.replace(library, sha256="0" * 64))
    del creator
    first.close()
    first.close()
    assert ours() == sorted(OPERATORS)
    second.close()
    assert ours() == []
    third = load_plugins(trt, path, library)
    assert ours() == sorted(OPERATORS)
    third.close()
    assert ours() == []


@needs_headers
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_the_library_compiled_by_nvcc_lists_its_creators_however_often_it_is_opened(tmp_path):
    import _ctypes

    facts = build_plugins.build(plugin_host.header_folders()[-1], tmp_path / "plugins.so", build_kernels.find_nvcc(), (86,))
    assert facts["sha256"] == hashlib.sha256((tmp_path / "plugins.so").read_bytes()).hexdigest() and [p.name for p in tmp_path.iterdir()] == ["plugins.so"]
    for _ in range(2):
        library, again = (ctypes.CDLL(facts["library"]) for _ in range(2))
        count, listing = ctypes.c_int32(0), "getCreators" if build_plugins.tensorrt_version(plugin_host.header_folders()[-1])[0] >= 10 else "getPluginCreators"
        for opened in (library, again):
            getattr(opened, listing).restype = ctypes.c_void_p
            assert getattr(opened, listing)(ctypes.byref(count)) and count.value == 3
        _ctypes.dlclose(library._handle)
        _ctypes.dlclose(again._handle)


def test_missing_headers_have_their_own_exit_code(tmp_path, capsys):
    assert build_plugins.main(["--include", str(tmp_path), "-o", str(tmp_path / "x.so")]) == 6
    assert "NvInferVersion.h" in capsys.readouterr().err
