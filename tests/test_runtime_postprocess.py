"""The way back, against literal PyTorch versions of the published test-time code."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.runtime.artefact.contract import Contract, Crop, ImageInput, OutputContract, Pad, Protocol, Require, Resize
from fathom.runtime.errors import AccuracyError, InputError
from fathom.runtime.photo.postprocess import Assembly, check_output, undo_steps
from fathom.runtime.photo.preprocess import network_inputs, place_steps, windows_of

METRIC = OutputContract("depth", "metric", "m", 1e-3, 10.0, "far", "bilinear-corners")


class Net(torch.nn.Module):
    """Stands in for EVP: sees [-1, 1], puts out positive depth at half resolution, not symmetric under flips."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 1, 9, stride=2, padding=4)

    @torch.no_grad()
    def forward(self, x):
        ramp = torch.linspace(0, 2, x.shape[-1] // 2)
        return F.softplus(self.conv(x)) + ramp + 0.1


def run_ours(photo, contract, protocol, net, batch=3):
    windows = windows_of(protocol)
    placed = place_steps(protocol.steps, *photo.shape[:2])
    assembly = Assembly(contract, protocol, placed, photo.shape[:2])
    outputs = [item for x in network_inputs(photo, contract, protocol, batch) for item in net(torch.from_numpy(x)).numpy()]
    for window, item in zip(windows, outputs, strict=True):
        assembly.add(window, item)
    return assembly.finish()


def published_shift_windows(photo, net, side, count):
    """EVP depth/test.py: windows and their mirror images in one batch, both halves averaged, sums divided by coverage; NaN where none."""
    x = torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 255
    height, width = x.shape[2:]
    stride = (width - side) // (count - 1)
    pieces = [x[..., i * stride : i * stride + side] for i in range(count)]
    inputs = torch.cat(pieces + [piece.flip(3) for piece in pieces])
    outputs = F.interpolate(net(inputs * 2 - 1), (side, side), mode="bilinear", align_corners=True)
    outputs = (outputs[:count] + outputs[count:].flip(3)) / 2
    total, cover = torch.zeros(1, 1, height, width), torch.zeros(1, 1, height, width)
    for i in range(count):
        total[..., i * stride : i * stride + side] += outputs[i]
        cover[..., i * stride : i * stride + side] += 1
    return (total / cover)[0, 0].numpy()


@pytest.mark.parametrize(
    ("name", "size", "side", "count", "uncovered", "steps"),
    [
        ("nyu", (480, 640), 480, 8, 6, (Require(480, 640),)),
        ("kitti", (375, 1242), 352, 20, 9, (Crop(352, 1216, "bottom-center"),)),
    ],
)
def test_shift_windows_equal_the_published_code_and_leave_no_stripe(name, size, side, count, uncovered, steps):
    photo = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    net = Net()
    top, left = (size[0] - 352, (size[1] - 1216) // 2) if name == "kitti" else (0, 0)
    crop = photo[top:, left : left + 1216]
    wanted = published_shift_windows(crop, net, side, count)
    assert np.isnan(wanted[:, -uncovered:]).all() and np.isfinite(wanted[:, :-uncovered]).all()
    stride = (crop.shape[1] - side) // (count - 1)
    protocol = Protocol(name, steps, tuple(stride * i for i in range(count)), (crop.shape[1] - side,), True, "")
    contract = Contract(ImageInput("image", (side, side), (side, side), (0.5,) * 3, (0.5,) * 3), METRIC, (protocol,))
    values, valid = run_ours(photo, contract, protocol, net)
    assert values.shape == size and np.isfinite(values).all()
    inside, mask = values[top:, left : left + 1216], valid[top:, left : left + 1216]
    np.testing.assert_allclose(inside[:, :-uncovered], wanted[:, :-uncovered], rtol=2e-6)
    assert mask.all() and (inside > 0).all(), "the stripe that the published code leaves NaN is filled"
    assert valid.sum() == mask.size and not values[~valid].any(), "outside the crop nothing is claimed"


def test_fill_windows_count_only_where_no_other_window_looked():
    protocol = Protocol("fill", (), (0,), (4,), False, "")
    contract = Contract(ImageInput("image", (2, 6), (2, 6), (0.0,) * 3, (1.0,) * 3), METRIC, (protocol,))
    assembly = Assembly(contract, protocol, (), (2, 10))
    first, second = windows_of(protocol)
    assembly.add(first, np.arange(12, dtype=np.float32).reshape(1, 2, 6) + 1)
    assembly.add(second, np.arange(12, dtype=np.float32).reshape(1, 2, 6) + 101)
    values, valid = assembly.finish()
    assert values.tolist() == [[1, 2, 3, 4, 5, 6, 103, 104, 105, 106], [7, 8, 9, 10, 11, 12, 109, 110, 111, 112]] and valid.all()


def test_columns_no_window_sees_are_not_valid():
    protocol = Protocol("gap", (), (0,), (), False, "")
    contract = Contract(ImageInput("image", (2, 6), (2, 6), (0.0,) * 3, (1.0,) * 3), METRIC, (protocol,))
    assembly = Assembly(contract, protocol, (), (2, 10))
    assembly.add(windows_of(protocol)[0], np.arange(12, dtype=np.float32).reshape(1, 2, 6) + 1)
    values, valid = assembly.finish()
    assert valid[:, :6].all() and not valid[:, 6:].any() and not values[:, 6:].any()


def test_single_image_equals_the_published_code():
    """EVP inference.py: 440x480 with aligned corners, 40 black rows on top; on the way back they are dropped and the rest resized."""
    photo = np.random.default_rng(1).integers(0, 256, (333, 517, 3), dtype=np.uint8)
    net = Net()
    protocol = Protocol("single-image", (Resize(440, 480, "bilinear-corners"), Pad(40, 0, 0, 0)), (0,), (), False, "")
    contract = Contract(ImageInput("image", (480, 480), (480, 480), (0.5,) * 3, (0.5,) * 3), METRIC, (protocol,))
    x = F.interpolate(torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 255, (440, 480), mode="bilinear", align_corners=True)
    x = torch.cat([torch.zeros(1, 3, 40, 480), x], dim=2) * 2 - 1
    out = F.interpolate(net(x), (480, 480), mode="bilinear", align_corners=True)[:, :, 40:]
    wanted = F.interpolate(out, photo.shape[:2], mode="bilinear", align_corners=True)[0, 0].numpy()
    values, valid = run_ours(photo, contract, protocol, net)
    assert valid.all()
    np.testing.assert_allclose(values, wanted, rtol=5e-5)


def test_depthclip_is_pasted_at_its_place():
    """Crop rows 56:472, columns 60:604; the map is pasted into an empty 480x640 canvas."""
    photo = np.random.default_rng(2).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    protocol = Protocol("nyu-benchmark", (Require(480, 640), Crop(416, 544, "top-left", 56, 60)), (0,), (), True, "")
    contract = Contract(ImageInput("image", (416, 544), (416, 544), (0.5,) * 3, (0.5,) * 3), METRIC, (protocol,))
    net = Net()
    values, valid = run_ours(photo, contract, protocol, net, batch=2)
    x = torch.from_numpy(photo[56:472, 60:604]).permute(2, 0, 1)[None].float() / 255 * 2 - 1
    both = F.interpolate((net(x) + net(x.flip(3)).flip(3)) / 2, (416, 544), mode="bilinear", align_corners=True)[0, 0].numpy()
    wanted = np.zeros((480, 640), np.float32)
    wanted[56:472, 60:604] = both
    np.testing.assert_allclose(values, wanted, rtol=1e-5, atol=1e-6)
    assert np.array_equal(valid, wanted > 0)


@pytest.mark.parametrize("flip", [False, True])
def test_a_mask_is_the_argmax_of_upsampled_logits(flip):
    logits = np.random.default_rng(3).normal(size=(2 if flip else 1, 2, 8, 8)).astype(np.float32)
    protocol = Protocol("whole", (Resize(32, 32, "bilinear"),), (0,), (), flip, "")
    output = OutputContract("logits", "mask", "", 0.0, 1.0, "", "bilinear-corners")
    contract = Contract(ImageInput("image", (32, 32), (32, 32), (0.5,) * 3, (0.5,) * 3), output, (protocol,))
    assembly = Assembly(contract, protocol, place_steps(protocol.steps, 48, 40), (48, 40))
    for window, item in zip(windows_of(protocol), logits, strict=True):
        assembly.add(window, item)
    values, valid = assembly.finish()
    up = F.interpolate(torch.from_numpy(logits), (32, 32), mode="bilinear", align_corners=True)
    up = (up[:1] + up[1:].flip(3)) / 2 if flip else up
    up = F.interpolate(up, (48, 40), mode="bilinear", align_corners=False)
    assert valid.all() and np.mean(values == up.argmax(1)[0].numpy()) > 0.999
    assert set(np.unique(values)) == {0.0, 1.0}


@settings(max_examples=60, deadline=None)
@given(st.integers(20, 60), st.integers(20, 60), st.integers(0, 4), st.integers(0, 4), st.integers(8, 19), st.integers(8, 19), st.booleans())
def test_undoing_gives_back_the_photos_size_and_flat_maps(h, w, top, left, height, width, resized):
    steps = (Crop(height, width, "top-left", top // 4, left // 4), Pad(top, left, 2, 1)) + ((Resize(17, 23, "bilinear-corners"),) if resized else ())
    placed = place_steps(steps, h, w)
    planes, valid = undo_steps(np.full((1, *placed[-1].after), 2.5, np.float32), np.ones(placed[-1].after, bool), placed)
    assert planes.shape == (1, h, w) and valid.shape == (h, w)
    assert valid.sum() == height * width
    np.testing.assert_allclose(planes[0][valid], 2.5, rtol=1e-6)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_non_finite_output_is_refused_by_name(poison):
    tensor = np.random.default_rng(0).random((2, 1, 4, 4), dtype=np.float32)
    tensor[1, 0, 2, 2] = poison
    with pytest.raises(AccuracyError, match="output tensor depth holds 1 NaN or infinite"):
        check_output(tensor, METRIC)


def test_constant_output_is_refused_by_name():
    tensor = np.random.default_rng(0).random((2, 1, 4, 4), dtype=np.float32)
    check_output(tensor, METRIC)
    tensor[0] = 3
    with pytest.raises(AccuracyError, match="depth is 3 everywhere"):
        check_output(tensor, METRIC)


def test_an_output_of_another_shape_is_refused():
    with pytest.raises(InputError, match="contract"):
        check_output(np.zeros((1, 3, 4, 4), np.float32), METRIC)


def test_a_small_map_of_a_filtered_picture_is_enlarged_once_as_depthblip2_does():
    steps = (Require(480, 640), Crop(416, 544, "top-left", 56, 60), Resize(224, 224, "bilinear-antialias"))
    image = ImageInput("image", (224, 224), (224, 224), (0.5,) * 3, (0.5,) * 3)
    output = OutputContract("depth", "metric", "m", 1e-3, 10.0, "far", "bilinear-corners")
    protocol = Protocol("nyu-benchmark", steps, (0,), (), True, "")
    contract = Contract(image, output, (protocol,))
    windows = np.random.default_rng(0).uniform(1, 3, (2, 1, 16, 16)).astype(np.float32)
    assembly = Assembly(contract, protocol, place_steps(protocol.steps, 480, 640), (480, 640))
    for window, item in zip(windows_of(protocol), windows, strict=True):
        assembly.add(window, item)
    values, valid = assembly.finish()
    mean = (torch.from_numpy(windows[0]) + torch.from_numpy(windows[1]).flip(-1)) / 2
    wanted = torch.nn.functional.interpolate(mean[None], size=(416, 544), mode="bilinear", align_corners=True)[0, 0].numpy()
    assert np.abs(values[56:472, 60:604] - wanted).max() < 1e-5
    assert valid[56:472, 60:604].all() and valid.sum() == 416 * 544
