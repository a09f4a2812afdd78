"""The tests of the kernels' host build once more, with the shipped fatbins on a GPU: ``pytest -m gpu``."""

import types

import numpy as np
import pytest
import test_trt_plugins_kernels as pixel_tests
import test_trt_plugins_operators as operator_tests

from fathom.runtime.cuda.open_device import open_device
from fathom.runtime.cuda.resources import DeviceBuffer, Stream
from fathom.runtime.kernels.device_kernels import DeviceKernels

pytestmark = pytest.mark.gpu


class Card:
    """In the place of ``kernel_host.HostKernels``: an array that is asked for its address is copied to the device, and back after every launch."""

    def __init__(self):
        self._device = open_device()
        with self._device:
            self._stream, self._kernels = Stream(self._device), DeviceKernels(self._device)
        self._held: list[tuple[np.ndarray, DeviceBuffer]] = []
        self._stale = False
        self.library = types.SimpleNamespace(bounds_broken=lambda: 0)  # only the host build checks its indices

    def address(self, array):
        with self._device:
            if self._stale:
                self._drop()
            root = array
            while isinstance(root.base, np.ndarray) and root.base.flags.c_contiguous:
                root = root.base
            buffer = DeviceBuffer(self._device, max(root.nbytes, 1))
            self._stream.upload(root, buffer)
            self._held.append((root, buffer))
            return buffer.address + array.ctypes.data - root.ctypes.data

    def launch(self, name, grid, block, record):
        with self._device:
            self._kernels.on(self._stream)(name, grid, block, record)
            for array, buffer in self._held:
                if array.flags.writeable:
                    self._stream.download(buffer, array)
            self._stream.synchronize()
        self._stale = True

    def _drop(self):
        for _, buffer in self._held:
            buffer.close()
        self._held.clear()
        self._stale = False

    def close(self):
        with self._device:
            self._drop()
            self._kernels.close()
        self._device.close()


@pytest.fixture
def card(monkeypatch):
    card = Card()
    for module in (pixel_tests, operator_tests):
        monkeypatch.setattr(module, "address", card.address)
    yield card
    card.close()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("name", pixel_tests.CASES)
def test_photos_are_shaped_as_by_the_reference(card, name, dtype):
    pixel_tests.test_preprocessing_equals_the_reference(card, name, dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("name", pixel_tests.CASES)
def test_maps_are_finished_as_by_the_reference(card, name, planes, dtype):
    pixel_tests.test_postprocessing_equals_the_reference(card, name, planes, dtype)


def test_random_protocols_equal_the_reference(card):
    pixel_tests.test_any_protocol_that_is_one_gather_equals_the_reference(host=card)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_filtered_resizes_equal_pillow(card, interpolation):
    pixel_tests.test_filtered_resizes_equal_pillow(card, interpolation)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_what_is_not_finite_is_counted(card, dtype):
    pixel_tests.test_inspection_counts_and_finds_the_extremes(card, dtype)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("test", [name for name in dir(operator_tests) if name.startswith("test_") and ("fp16" in name or name.endswith("in_fp32"))])
def test_operators_equal_double_precision(card, test):
    getattr(operator_tests, test)(card)


@pytest.mark.parametrize("side", [40, 90])
def test_long_and_short_groups_in_fp32(card, side):
    operator_tests.test_group_norm_in_fp32_on_either_path(card, side)


def test_bins_at_the_size_of_evp(card):
    operator_tests.test_bins_expectation_at_the_size_of_evp(card)


@pytest.mark.parametrize(("channels", "side"), [*operator_tests.EVP_NORMS, operator_tests.EVP_LONG_NORM])
def test_norms_at_the_sizes_of_evp(card, channels, side):
    operator_tests.test_group_norm_and_silu_at_the_sizes_of_evp(card, channels, side)


@pytest.mark.parametrize(("positions", "width", "tokens"), operator_tests.EVP_ATTENTIONS)
def test_attention_at_the_sizes_of_evp(card, positions, width, tokens):
    operator_tests.test_cross_attention_at_the_sizes_of_evp(card, positions, width, tokens)
