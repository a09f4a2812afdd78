"""The plugin classes against the public headers of TensorRT: set FATHOM_TENSORRT_INCLUDE to their folders, one per release."""

import ctypes
import hashlib
import shutil

import kernel_host
import numpy as np
import plugin_host
import pytest
from test_trt_plugins_operators import CONSTANTS, exact_attention, exact_bins, exact_norm, fp16_steps, read_back, some_attention, some_bins, some_norm, stored

from fathom.trt_plugins import build_kernels, build_plugins

pytestmark = [
    pytest.mark.skipif(not kernel_host.compiler() or plugin_host.cuda_include() is None, reason="no C++ compiler or no CUDA headers"),
    pytest.mark.skipif(not plugin_host.header_folders(), reason="FATHOM_TENSORRT_INCLUDE names no folder of TensorRT headers"),
]
FIELDS = dict(zip(("alpha", "least_temperature", "greatest_temperature"), CONSTANTS, strict=True))


@pytest.fixture(scope="module", params=plugin_host.header_folders(), ids=lambda folder: ".".join(map(str, build_plugins.tensorrt_version(folder))))
def plugins(request, tmp_path_factory):
    return plugin_host.HostPlugins(request.param, tmp_path_factory.mktemp("plugins"))


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
