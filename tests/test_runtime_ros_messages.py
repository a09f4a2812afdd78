"""Pictures, cameras, depth and clouds as messages of ROS 2."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from ros_messages import PHOTOS, camera_info, compressed, raw

from fathom.runtime.errors import InputError
from fathom.runtime.photo.depth_map import DepthMap, Intrinsics
from fathom.runtime.ros.messages import camera_of, cloud_fields, depth_fields, distorted, is_rectified, photo_of, scaled_info, topics_for


def test_encodings_and_padded_rows_become_rgb():
    rgb = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    np.testing.assert_array_equal(photo_of(raw("rgb8", rgb, pad=7)), rgb)
    np.testing.assert_array_equal(photo_of(raw("bgr8", rgb[..., ::-1])), rgb)
    np.testing.assert_array_equal(photo_of(raw("bgra8", np.dstack([rgb[..., ::-1], rgb[..., :1]]))), rgb)
    np.testing.assert_array_equal(photo_of(raw("mono8", rgb[..., :1])), np.repeat(rgb[..., :1], 3, axis=2))


@pytest.mark.parametrize("change", [{"encoding": "16UC1"}, {"height": 60}, {"step": 3}, {"width": 2**31}, {"data": np.zeros(0, np.uint8)}])
def test_images_that_cannot_be_are_refused(change):
    message = raw("rgb8", np.zeros((6, 5, 3), np.uint8))
    with pytest.raises(InputError):
        photo_of(SimpleNamespace(**{**vars(message), **change}))


def test_a_camera_is_scaled_so_that_points_stay_where_they_are():
    info = camera_info(640, 480, [500, 0, 319.5, 0, 510, 239.5, 0, 0, 1], [500, 0, 319.5, -40, 0, 510, 239.5, 0, 0, 0, 1, 0])
    half = scaled_info(info, 320, 240)
    assert half["k"].tolist() == [250, 0, 159.5, 0, 255, 119.5, 0, 0, 1] and half["p"][3] == -20
    camera = camera_of(info, 320, 240)
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == (250, 255, 159.5, 119.5)
    assert camera_of(camera_info(k=[0.0] * 9), 320, 240) is None


@pytest.mark.parametrize(
    ("picture", "binning", "roi"),
    [
        ((640, 480), (0, 1), {"width": 640, "height": 480}),
        ((320, 240), (2, 2), {}),
        ((320, 480), (2, 1), {}),
        ((213, 160), (3, 3), {}),
        ((160, 120), (2, 2), {}),  # binned, then made half as wide
        ((200, 100), (0, 0), {"x_offset": 200, "y_offset": 160, "width": 200, "height": 100}),
        ((440, 320), (0, 0), {"x_offset": 200, "y_offset": 160}),
        ((66, 25), (3, 4), {"x_offset": 200, "y_offset": 160, "width": 200, "height": 100, "do_rectify": True}),
    ],
)
def test_a_window_of_the_sensor_and_binning_move_the_camera(picture, binning, roi):
    """A point in space falls onto the sensor's pixel u, and that lies in the picture where the driver put it."""
    info = camera_info(640, 480, [500, 0, 310, 0, 510, 215, 0, 0, 1], [480, 0, 305, -40, 0, 490, 220, 0, 0, 0, 1, 0], binning, **roi)
    by = [binning[0] or 1, binning[1] or 1] if picture != (160, 120) else [4, 4]
    start, x, y, z = [roi.get("x_offset", 0), roi.get("y_offset", 0)], 0.3, -0.2, 2.0

    def shown(sensor):
        return [(pixel + 0.5 - first) / times - 0.5 for pixel, first, times in zip(sensor, start, by, strict=True)]

    camera, made = camera_of(info, *picture), scaled_info(info, *picture)
    raw_pixel, rectified = shown([500 * x / z + 310, 510 * y / z + 215]), shown([(480 * x - 40) / z + 305, 490 * y / z + 220])
    np.testing.assert_allclose([camera.fx * x / z + camera.cx, camera.fy * y / z + camera.cy], raw_pixel, rtol=1e-9)
    np.testing.assert_allclose((made["k"].reshape(3, 3) @ [x, y, z] / z)[:2], raw_pixel, rtol=1e-9)
    np.testing.assert_allclose((made["p"].reshape(3, 4) @ [x, y, z, 1] / z)[:2], rectified, rtol=1e-9)
    assert (made["width"], made["height"], made["binning_x"], made["binning_y"]) == (*picture, 0, 0) and "roi" not in made


@pytest.mark.parametrize(
    ("picture", "binning", "roi"),
    [
        ((640, 480), (0, 0), {"x_offset": 160, "y_offset": 120, "width": 320, "height": 240}),  # the whole sensor after all, or the window enlarged?
        ((160, 120), (0, 0), {"x_offset": 160, "y_offset": 120, "width": 320, "height": 240}),
        ((320, 240), (0, 0), {"x_offset": 400, "y_offset": 120, "width": 320, "height": 240}),  # reaches over the edge
        ((640, 480), (2, 1), {}),
        ((480, 480), (0, 0), {}),
    ],
)
def test_a_picture_that_its_camera_info_does_not_tell_of_is_refused(picture, binning, roi):
    info = camera_info(640, 480, [500, 0, 319.5, 0, 510, 239.5, 0, 0, 1], binning=binning, **roi)
    for ask in (camera_of, scaled_info):
        with pytest.raises(InputError, match=f"{picture[0]}x{picture[1]} pixels.*640x480.*binning"):
            ask(info, *picture)


@pytest.mark.parametrize("damage", [{"k": [50.0]}, {"p": None}, {"roi": None}, {"width": "x"}, {"d": "x"}, {"r": [1.0]}])
def test_a_damaged_camera_info_is_told_as_one(damage):
    with pytest.raises(InputError, match="no sensor_msgs/CameraInfo"):
        info = SimpleNamespace(**vars(camera_info()) | damage)
        assert not distorted(info)
        scaled_info(info, 80, 60)


def test_a_cloud_projects_back_onto_its_pixels():
    draw = np.random.default_rng(2)
    values, photo = draw.uniform(0.5, 9, (48, 64)).astype(np.float32), draw.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    valid = draw.random((48, 64)) > 0.2
    depth = DepthMap(values * valid, valid, "metric", "m", 0.1, 10, "far", Intrinsics(60.0, 61.0, 30.2, 24.9))
    cloud = cloud_fields(depth, photo)
    points = cloud["data"].view(np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("rgb", "<u4")]))
    rows, columns = np.nonzero(valid)
    assert np.abs(points["x"] / points["z"] * 60 + 30.2 - columns).max() < 0.01 and np.abs(points["y"] / points["z"] * 61 + 24.9 - rows).max() < 0.01
    assert (points["rgb"] >> 16 == photo[valid][:, 0]).all() and (points["rgb"] & 255 == photo[valid][:, 2]).all()
    assert [name for name, *_ in cloud["fields"]] == ["x", "y", "z", "rgb"] and cloud["row_step"] == points.nbytes


def test_metres_and_nothing_else_are_32fc1():
    depth = DepthMap(np.float32([[1.5, 0]]), np.array([[True, False]]), "metric", "m", 0.1, 10, "far")
    fields = depth_fields(depth)
    np.testing.assert_array_equal(fields["data"].view("<f4"), np.float32([1.5, np.nan]))
    assert (fields["encoding"], fields["step"]) == ("32FC1", 8)
    with pytest.raises(InputError, match="REP 118"):
        depth_fields(DepthMap(depth.values, depth.valid, "relative", "", 0, 1, "near"))


def test_compressed_pictures_are_read_as_photos_are():
    deep = np.random.default_rng(5).integers(0, 1 << 16, (6, 5)).astype(np.uint16)
    grey = photo_of(compressed(Image.fromarray(deep), "mono16; png compressed "))
    assert np.abs(grey - deep[..., None] / 257).max() <= 0.5  # 16 bits to 8, full scale to full scale
    clear = np.dstack([PHOTOS[0], np.full((60, 80), 255, np.uint8)])
    clear[:30, :, 3] = 0
    shown = photo_of(compressed(Image.fromarray(clear), "rgba8; png compressed "))
    assert not shown[:30].any() and (shown[30:] == PHOTOS[0][30:]).all()
    lying = Image.Exif()
    lying[274] = 6  # on its side; but CameraInfo is of the pixels as they are sent
    assert photo_of(compressed(Image.fromarray(PHOTOS[0]), "rgb8; png compressed bgr8", exif=lying)).shape == (60, 80, 3)
    with pytest.raises(InputError, match="distances"):
        photo_of(compressed(Image.fromarray(deep), "16UC1; png compressed "))
    for data in (np.zeros(20, np.uint8), 5, None):
        with pytest.raises(InputError, match=r"CompressedImage|compressed image"):
            photo_of(SimpleNamespace(format="jpeg", data=data))


def test_topics_lie_beside_the_pictures():
    rectified = ("/a/image_rect", "/a/image_rect_color/compressed", "image_rect")
    assert all(map(is_rectified, rectified)) and not any(map(is_rectified, ("/a/image_raw", "/image_rect/image_raw/compressed", "/a/image_color")))
    assert topics_for("/a/b/image_raw/compressed")["camera_info"] == topics_for("/a/b/image_rect")["camera_info"] == "/a/b/camera_info"
