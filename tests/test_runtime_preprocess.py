"""The way of a photo into the network, against PyTorch, Pillow and numbers worked out by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fathom.runtime.artefact.contract import Contract, Crop, ImageInput, OutputContract, Pad, Protocol, Require, Resize
from fathom.runtime.errors import InputError
from fathom.runtime.photo.preprocess import check_photo, check_windows, network_inputs, place_steps, shape_photo, windows_of

OUTPUT = OutputContract("depth", "metric", "m", 1e-3, 10.0, "far", "bilinear-corners")


def photo_of(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def one_window(steps, window, mean=(0.0,) * 3, std=(1.0,) * 3, canvas=None):
    protocol = Protocol("test", steps, (0,), (), False, "")
    return Contract(ImageInput("image", window, canvas or window, mean, std), OUTPUT, (protocol,)), protocol


def test_evp_single_image_equals_the_published_code():
    """Resize to 440x480 with aligned corners, 40 black rows on top, then x * 2 - 1."""
    contract, protocol = one_window((Resize(440, 480, "bilinear-corners"), Pad(40, 0, 0, 0)), (480, 480), (0.5,) * 3, (0.5,) * 3)
    photo = photo_of(333, 517)
    tensor = torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 255
    tensor = torch.nn.functional.interpolate(tensor, (440, 480), mode="bilinear", align_corners=True)
    tensor = torch.nn.functional.pad(tensor, (0, 0, 40, 0)) * 2 - 1
    (got,) = network_inputs(photo, contract, protocol, 1)
    assert got.dtype == np.float32 and got.flags.c_contiguous
    np.testing.assert_allclose(got, tensor.numpy(), atol=5e-5)
    assert (got[:, :, :40] == -1).all()


def test_windows_flips_and_batches_come_in_order():
    protocol = Protocol("test", (), (0, 22), (160,), True, "")
    contract = Contract(ImageInput("image", (480, 480), (480, 480), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), OUTPUT, (protocol,))
    photo = photo_of(480, 640)
    batches = list(network_inputs(photo, contract, protocol, 4))
    assert [len(batch) for batch in batches] == [4, 2]
    got = np.concatenate(batches)
    whole = (photo / 255.0 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    for k, left in enumerate((0, 22, 160)):
        wanted = whole[:, left : left + 480].transpose(2, 0, 1)
        np.testing.assert_allclose(got[2 * k], wanted, atol=1e-6)
        np.testing.assert_allclose(got[2 * k + 1], wanted[:, :, ::-1], atol=1e-6)
    assert [(w.left, w.flip, w.fill) for w in windows_of(protocol)][-2:] == [(160, False, True), (160, True, True)]


def test_the_canvas_is_zero_after_normalisation():
    contract, protocol = one_window((), (4, 6), (0.5,) * 3, (0.25,) * 3, canvas=(8, 8))
    (got,) = network_inputs(photo_of(4, 6), contract, protocol, 1)
    assert got.shape == (1, 3, 8, 8)
    assert not got[:, :, 4:].any() and not got[:, :, :, 6:].any()
    np.testing.assert_allclose(got[0, :, :4, :6], (photo_of(4, 6).transpose(2, 0, 1) / 255 - 0.5) / 0.25, atol=1e-6)


def test_sizes_and_offsets_by_hand():
    kitti = place_steps((Crop(352, 1216, "bottom-center"),), 375, 1242)[0]
    assert (kitti.top, kitti.left, kitti.after) == (23, 13, (352, 1216))  # H - 352, int((W - 1216) / 2)
    fastdepth = place_steps((Resize(250, 0, "bilinear", 304), Crop(228, 304, "center"), Resize(224, 224, "bilinear")), 480, 640)
    assert [place.after for place in fastdepth] == [(250, 333), (228, 304), (224, 224)]
    assert (fastdepth[1].top, fastdepth[1].left) == (11, 14)
    assert place_steps((Resize(250, 0, "bilinear", 304),), 480, 480)[0].after == (250, 304)
    depthclip = place_steps((Require(480, 640), Crop(416, 544, "top-left", 56, 60)), 480, 640)[1]
    assert (depthclip.top, depthclip.left) == (56, 60)


def test_antialias_on_a_cropped_photo_is_pillows_own():
    photo = photo_of(90, 120)
    placed = place_steps((Crop(80, 100, "top-left", 5, 10), Resize(32, 40, "bicubic-antialias")), 90, 120)
    wanted = np.asarray(Image.fromarray(photo).crop((10, 5, 110, 85)).resize((40, 32), Image.Resampling.BICUBIC)) / 255.0
    np.testing.assert_allclose(shape_photo(photo, placed), wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("steps", "size", "words"),
    [
        ((Require(480, 640),), (481, 640), "exactly 640x480"),
        ((Crop(352, 1216, "bottom-center"),), (352, 1215), "at least 1216x352"),
        ((Resize(16000, 0, "bilinear"),), (100, 110), "at most 16384"),
    ],
)
def test_a_photo_that_does_not_fit_is_refused_with_both_sizes(steps, size, words):
    with pytest.raises(InputError, match=words):
        place_steps(steps, *size)


def test_windows_must_lie_on_the_picture():
    protocol = Protocol("test", (), (0, 22), (), False, "")
    image = ImageInput("image", (480, 480), (480, 480), (0.0,) * 3, (1.0,) * 3)
    check_windows(protocol, image, 480, 502)
    for height, width in ((480, 501), (481, 640)):
        with pytest.raises(InputError, match="the protocol test"):
            check_windows(protocol, image, height, width)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 30), st.integers(1, 30), st.sampled_from(["bilinear", "bicubic-antialias"]), st.integers(0, 5))
def test_a_shaped_photo_stays_in_range(h, w, height, width, kind, pad):
    placed = place_steps((Resize(height, width, kind), Pad(pad, 0, 0, pad)), h, w)
    picture = shape_photo(photo_of(h, w), placed)
    assert picture.dtype == np.float32 and picture.shape == (*placed[-1].after, 3)
    assert picture.min() >= 0 and picture.max() <= 1 + 1e-6


@pytest.mark.parametrize(
    "wrong", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8), "photo.jpg", None]
)
def test_only_byte_photos_are_taken(wrong):
    with pytest.raises(ValueError):
        check_photo(wrong)
