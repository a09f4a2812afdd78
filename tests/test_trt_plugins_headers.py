"""The plugin classes against the public headers of TensorRT: set FATHOM_TENSORRT_INCLUDE to their folders, one per release."""

import kernel_host
import numpy as np
import plugin_host
import pytest
from test_trt_plugins_operators import CONSTANTS, exact_bins, fp16_steps, read_back, some_bins, stored

pytestmark = [
    pytest.mark.skipif(not kernel_host.compiler() or plugin_host.cuda_include() is None, reason="no C++ compiler or no CUDA headers"),
    pytest.mark.skipif(not plugin_host.header_folders(), reason="FATHOM_TENSORRT_INCLUDE names no folder of TensorRT headers"),
]
FIELDS = dict(zip(("alpha", "least_temperature", "greatest_temperature"), CONSTANTS, strict=True))


@pytest.fixture(scope="module", params=plugin_host.header_folders(), ids=lambda folder: ".".join(map(str, plugin_host.version(folder))))
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
