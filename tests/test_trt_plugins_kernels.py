"""The CUDA kernels against the NumPy reference: the same source, compiled for the host and run pixel by pixel."""

import hashlib
import json
import re
import subprocess
from pathlib import Path

import kernel_host
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

import fathom
from fathom.runtime.artefact.contract import Contract, Crop, ImageInput, OutputContract, Pad, Protocol, Require, Resize
from fathom.runtime.errors import InputError
from fathom.runtime.kernels import device_kernels
from fathom.runtime.kernels.antialias import ANTIALIAS, antialias_record, filter_table, passes
from fathom.runtime.kernels.operators import BINS_EXPECTATION, CROSS_ATTENTION, GROUP_NORM
from fathom.runtime.kernels.records import INSPECT, POSTPROCESS, PREPROCESS, WINDOW, gather_of, postprocess_record, preprocess_record
from fathom.runtime.photo.postprocess import Assembly, way_back
from fathom.runtime.photo.preprocess import place_steps, shape_photo, window_tensor, windows_of
from fathom.trt_plugins import build_kernels

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KERNELS = Path(fathom.__file__).parent / "runtime" / "kernels"
needs_compiler = pytest.mark.skipif(not kernel_host.compiler(), reason="no C++ compiler")


def contract_for(steps, photo_size, lefts=(0,), fills=(), flip=False, window_width=None, canvas_extra=(0, 0), planes=1, upsample="bilinear-corners"):
    placed = place_steps(steps, *photo_size)
    height, width = placed[-1].after if placed else photo_size
    window = (height, window_width or width - max(lefts + fills))
    image = ImageInput("image", window, (window[0] + canvas_extra[0], window[1] + canvas_extra[1]), MEAN, STD)
    kind = ("metric", "m", "far") if planes == 1 else ("mask", "", "")
    output = OutputContract("depth", kind[0], kind[1], 1e-3, 10.0, kind[2], upsample)
    protocol = Protocol("test", steps, lefts, fills, flip, "")
    return Contract(image, output, (protocol,)), protocol, placed


def address(array):
    return array.ctypes.data


def resized_by_kernel(host, part, size, interpolation):
    """A filtered resize of uint8 [h, w, 3], one pass after the other."""
    for across, (height, width) in passes(part.shape[:2], size):
        table = filter_table(part.shape[0 if across else 1], height if across else width, interpolation)
        target = np.full((height, width, 3), 7, np.uint8)
        record = antialias_record(address(part), part.strides[0], address(target), (height, width), address(table), table.shape[1] - 2, across)
        device_kernels.launch_antialias(host.launch, record)
        part = target
    return part


def pre_by_kernel(host, photo, contract, protocol, gather, dtype):
    windows = windows_of(protocol)
    if gather.filtered:
        top, left, height, width = gather.region
        photo = resized_by_kernel(host, photo[top : top + height, left : left + width], gather.resized, gather.filtered)
    out = np.full((len(windows), 3, *contract.input.canvas), 7, dtype)
    for window, item in zip(windows, out, strict=True):
        record = preprocess_record(gather, window, contract.input, address(photo), address(item), dtype == np.float16)
        device_kernels.launch_preprocess(host.launch, record)
    return out


def pre_by_reference(photo, contract, protocol, placed):
    picture = shape_photo(photo, placed)
    return np.stack([window_tensor(picture, window, contract.input) for window in windows_of(protocol)])


def post_by_kernel(host, tensor, contract, protocol, placed, size):
    back, looked_at = way_back(placed, protocol, contract.input.window)
    gather = gather_of(back, size)
    windows = np.array([(window.left, window.flip, window.fill) for window in windows_of(protocol)], WINDOW)
    values, valid = np.full(gather.photo, 7, np.float32), np.full(gather.photo, 7, np.uint8)
    record = postprocess_record(
        gather, looked_at, contract.output, tensor.shape, tensor.dtype == np.float16, address(tensor), address(windows), address(values), address(valid)
    )
    device_kernels.launch_postprocess(host.launch, record)
    return values, valid


def post_by_reference(tensor, contract, protocol, placed, photo_size):
    assembly = Assembly(contract, protocol, placed, photo_size)
    for window, item in zip(windows_of(protocol), tensor, strict=True):
        assembly.add(window, item)
    return assembly.finish()


CASES = {
    "evp single image": ((Resize(44, 48, "bilinear-corners"), Pad(4, 0, 0, 0)), (37, 55), {}),
    "nyu protocol": ((Require(48, 64),), (48, 64), {"lefts": (0, 2, 16), "flip": True, "window_width": 48}),
    "kitti crop and pad": ((Crop(35, 121, "bottom-center"), Pad(3, 0, 0, 0)), (37, 124), {"lefts": (0, 40, 73), "window_width": 48, "canvas_extra": (2, 8)}),
    "half pixel centres": ((Resize(60, 71, "bilinear"),), (37, 55), {}),
    "shrunk": ((Resize(17, 23, "bilinear"),), (61, 83), {"flip": True}),
    "nearest": ((Resize(60, 71, "nearest"),), (37, 55), {}),
    "crop, resize, crop": ((Crop(30, 40, "top-left", 3, 5), Resize(44, 52, "bilinear"), Crop(40, 44, "center")), (37, 55), {}),
    "windows with a hole filled": ((Require(20, 100),), (20, 100), {"lefts": (0, 60), "fills": (25,), "window_width": 40, "flip": True}),
    "the whole photo, filtered": ((Resize(24, 32, "bicubic-antialias"),), (61, 83), {"flip": True}),
    "filtered, then cut": ((Crop(50, 80, "top-left", 3, 2), Resize(24, 40, "bilinear-antialias"), Crop(20, 36, "center")), (61, 83), {}),
    "filtered, in windows": ((Resize(24, 60, "bilinear-antialias"),), (61, 83), {"lefts": (0, 12, 28), "window_width": 32, "flip": True}),
    "as it is": ((), (20, 30), {"canvas_extra": (4, 2)}),
}


@needs_compiler
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_preprocessing_equals_the_reference(host, name, dtype):
    steps, size, more = CASES[name]
    contract, protocol, placed = contract_for(steps, size, **more)
    photo = np.random.default_rng(3).integers(0, 256, (*size, 3), dtype=np.uint8)
    got = pre_by_kernel(host, photo, contract, protocol, gather_of(placed, size), dtype)
    wanted = pre_by_reference(photo, contract, protocol, placed)
    error = np.abs(got.astype(np.float32) - wanted) * np.reshape(STD, (1, 3, 1, 1))  # in units of the input range 0 to 1
    assert error.max() < (1 / 255 if dtype == np.float16 else 2e-5)
    assert not got[:, :, contract.input.window[0] :].any() and not got[..., contract.input.window[1] :].any()


@needs_compiler
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_postprocessing_equals_the_reference(host, name, planes, dtype):
    steps, size, more = CASES[name]
    contract, protocol, placed = contract_for(steps, size, planes=planes, upsample="nearest" if planes == 2 else "bilinear-corners", **more)
    generator = np.random.default_rng(4)
    shape = (len(windows_of(protocol)), planes, contract.input.window[0] // 2, contract.input.window[1] // 2)
    tensor = generator.uniform(0.5, 10, shape).astype(dtype)
    values, valid = post_by_kernel(host, tensor, contract, protocol, placed, size)
    wanted, wanted_valid = post_by_reference(tensor, contract, protocol, placed, size)
    np.testing.assert_array_equal(valid, wanted_valid)
    if planes == 1:
        assert np.abs(values - wanted).max() < 1e-3  # metres
    else:
        assert (values != wanted).mean() < 1e-3  # rounding may turn a tie


sides = st.integers(8, 40)
resizes = st.builds(Resize, sides, sides, st.sampled_from(["bilinear", "bilinear-corners", "nearest", "bilinear-antialias", "bicubic-antialias"]))
crops = st.builds(Crop, st.integers(4, 12), st.integers(4, 12), st.sampled_from(["center", "bottom-center", "top-left"]))
pads = st.builds(Pad, *[st.integers(0, 5)] * 4)


@needs_compiler
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much])
@given(st.lists(st.one_of(resizes, crops, pads), max_size=4), sides, sides, st.booleans(), st.integers(0, 1 << 30))
def test_any_protocol_that_is_one_gather_equals_the_reference(host, steps, height, width, flip, seed):
    size = (height, width)
    try:
        contract, protocol, placed = contract_for(tuple(steps), size, flip=flip, upsample="bilinear")
    except InputError:
        assume(False)
    gather = gather_of(placed, size)
    changing = [k for k, place in enumerate(placed) if isinstance(place.step, Resize) and place.before != place.after]
    pads = [place.step for place in placed[: changing[0]] if isinstance(place.step, Pad)] if changing else []
    padded_before = any(any((pad.top, pad.left, pad.bottom, pad.right)) for pad in pads)
    if gather is None:
        assert len(changing) > 1 or padded_before
        return
    assert len(changing) <= 1
    generator = np.random.default_rng(seed)
    photo = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
    got = pre_by_kernel(host, photo, contract, protocol, gather, np.float32)
    error = np.abs(got - pre_by_reference(photo, contract, protocol, placed)) * np.reshape(STD, (1, 3, 1, 1))
    assert error.max() < 1 / 255
    tensor = generator.uniform(0.5, 10, (len(windows_of(protocol)), 1, *contract.input.window)).astype(np.float32)
    values, valid = post_by_kernel(host, tensor, contract, protocol, placed, size)
    wanted, wanted_valid = post_by_reference(tensor, contract, protocol, placed, size)
    np.testing.assert_array_equal(valid, wanted_valid)
    assert np.abs(values - wanted).max() < 1e-3


def test_repeated_resizes_are_left_to_the_cpu():
    for steps in (
        (Resize(10, 10, "bilinear"), Resize(20, 20, "bilinear")),
        (Pad(1, 0, 0, 0), Resize(9, 9, "bilinear")),
    ):
        assert gather_of(place_steps(steps, 20, 30), (20, 30)) is None
    assert gather_of(place_steps((Resize(20, 30, "bilinear-antialias"),), 20, 30), (20, 30)).filtered == ""  # nothing to filter


@needs_compiler
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_filtered_resizes_equal_pillow(host, interpolation):
    """200 random sizes, from one pixel to shrinking and growing a hundred times, on noise: no byte differs by more than one step."""
    generator = np.random.default_rng(6)
    for number in range(200):
        height, width, rows, columns = (int(size) for size in np.exp(generator.uniform(0, np.log(150), 4)))
        photo = generator.integers(0, 2 if number % 2 else 256, (height, width, 3), dtype=np.uint8) * (255 if number % 2 else 1)
        wanted = np.asarray(Image.fromarray(photo).resize((columns, rows), getattr(Image.Resampling, interpolation.upper())))
        got = resized_by_kernel(host, photo, (rows, columns), f"{interpolation}-antialias")
        assert np.abs(got.astype(int) - wanted).max() <= 1, (height, width, rows, columns)


@needs_compiler
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_inspection_counts_and_finds_the_extremes(host, dtype):
    tensor = np.random.default_rng(5).normal(0, 3, (4, 999)).astype(dtype)
    tensor[1, 7], tensor[1, 8], tensor[1, 9] = np.nan, np.inf, -np.inf
    tensor[2] = -2.5
    tensor[3] = np.nan
    found = np.tile(device_kernels.NOTHING_FOUND, (4, 1))
    device_kernels.launch_inspect(host.launch, address(tensor), address(found), 4, 999, dtype == np.float16)
    bad, least, greatest = device_kernels.read_inspection(found)
    assert bad.tolist() == [0, 3, 0, 999]
    finite = tensor[1][np.isfinite(tensor[1])]
    assert (least[0], greatest[0]) == (tensor[0].min(), tensor[0].max())
    assert (least[1], greatest[1]) == (finite.min(), finite.max())
    assert (least[2], greatest[2]) == (-2.5, -2.5)


@needs_compiler
def test_structs_are_laid_out_as_the_compiler_does(host):
    kinds = (PREPROCESS, POSTPROCESS, INSPECT, ANTIALIAS, BINS_EXPECTATION, GROUP_NORM, CROSS_ATTENTION)
    assert [host.library.size_of(k) for k in range(7)] == [kind.itemsize for kind in kinds]


def test_shipped_kernels_come_from_the_shipped_source():
    facts = json.loads((KERNELS / "kernels.json").read_text())
    assert facts["source_sha256"] == build_kernels.source_sha256(), "run python -m fathom.trt_plugins.build_kernels"
    for name in build_kernels.KERNELS:
        for file, digest in facts[name].items():
            assert hashlib.sha256((KERNELS / file).read_bytes()).hexdigest() == digest
    assert set(facts["architectures"]) >= {75, 80, 86, 87, 89, 90, 120}
    assert sum(path.stat().st_size for path in KERNELS.iterdir()) < 2 << 20
    for name in build_kernels.KERNELS:
        text = (KERNELS / f"{name}.ptx").read_text()
        assert re.search(r"\.version 6\.5\n\.target sm_75", text)  # an older driver refuses a newer version
        assert all(f".entry {kernel}" in text for kernel, module in device_kernels.MODULE_OF.items() if module == name)


@pytest.mark.slow
def test_compiling_again_gives_the_same_bytes(tmp_path):
    try:
        nvcc = build_kernels.find_nvcc()
    except FileNotFoundError:
        pytest.skip("no nvcc")
    shipped = json.loads((KERNELS / "kernels.json").read_text())
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    if f"release {shipped['nvcc']}," not in version:
        pytest.skip("another nvcc than the one that made the shipped kernels")
    assert build_kernels.build(tmp_path, nvcc) == shipped


OLD_NVCC = """#!/bin/sh
case "$1" in
--list-gpu-arch) printf 'compute_72\\ncompute_75\\ncompute_80\\n' ;;
--version) echo "Cuda compilation tools, release 11.4, V11.4.315" ;;
--help) echo "--fatbin" ;;
*)
    echo "$@" >> "$(dirname "$0")/log"
    while [ "$1" != "-o" ]; do shift; done
    printf '.version 7.4\\n.target sm_75\\n' > "$2"
    ;;
esac
"""


def test_the_compiler_of_an_older_board_is_asked_for_what_it_knows(tmp_path):
    """Xavier is sm_72, which nvcc 13 has dropped; its own compiler knows no newer boards and does not compress."""
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(OLD_NVCC)
    nvcc.chmod(0o755)
    facts = build_kernels.build(tmp_path / "out", nvcc)
    assert facts["architectures"] == [72, 75, 80] and facts["nvcc"] == "11.4"
    fatbins = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("-fatbin")]
    assert len(fatbins) == len(build_kernels.KERNELS)
    assert all("arch=compute_72,code=sm_72" in line and "compress" not in line and "sm_90" not in line for line in fatbins)


def test_a_missing_compiler_has_its_own_exit_code(monkeypatch, capsys):
    monkeypatch.setattr(build_kernels, "find_nvcc", lambda: (_ for _ in ()).throw(FileNotFoundError("nvcc was not found")))
    assert build_kernels.main([]) == 6
    assert "nvcc was not found" in capsys.readouterr().err
