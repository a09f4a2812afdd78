"""Bags of ROS 2 in and out, and flying pixels."""

import dataclasses
import importlib
import importlib.util
import io
import json
import queue
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from fathom.runtime.commands import run
from fathom.runtime.errors import InputError
from fathom.runtime.photo.depth_edges import flying
from fathom.runtime.photo.depth_map import DepthMap, Intrinsics
from fathom.runtime.pipeline import Pipeline
from fathom.runtime.ros.bag import BagWriter
from fathom.runtime.ros.messages import camera_of, cloud_fields, depth_fields, distorted, is_rectified, photo_of, scaled_info, topics_for

NAN = np.float32(np.nan)


def step_scene(seed, height=480, width=640):
    """A slanted wall with nearer boxes whose edges are blended over one pixel; returns depth and where the blends are."""
    draw = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    depth = (5 + 0.002 * columns + 0.001 * rows).astype(np.float32)
    planted = np.zeros((height, width), bool)
    for _ in range(6):
        top, left = int(draw.integers(5, height - 130)), int(draw.integers(5, width - 130))
        tall, wide, near = int(draw.integers(40, 120)), int(draw.integers(40, 120)), np.float32(draw.uniform(1, 3))
        ring = np.zeros_like(planted)
        ring[top - 1 : top + tall + 1, left - 1 : left + wide + 1] = True
        ring[top : top + tall, left : left + wide] = False
        depth[ring] += (near - depth[ring]) * draw.uniform(0.25, 0.75, int(ring.sum())).astype(np.float32)
        depth[top : top + tall, left : left + wide], planted[top : top + tall, left : left + wide] = near, False
        planted |= ring
    return depth, planted


def test_flying_pixels_are_found_and_surfaces_stay():
    for seed in range(10):
        depth, planted = step_scene(seed)
        found = flying(depth)
        assert found[planted].mean() >= 0.9
        assert found[~planted].mean() < 0.005


def test_a_clean_jump_and_unknown_depth_are_no_flying_pixels():
    clean = np.full((20, 20), 2, np.float32)
    clean[:, 10:] = 5
    clean[5:8] = 0
    assert not flying(clean).any()


def test_flying_pixels_cost_under_two_milliseconds():
    depth, _ = step_scene(0)
    times = []
    for _ in range(30):
        begun = time.perf_counter()
        flying(depth)
        times.append(time.perf_counter() - begun)
    assert min(times) < 0.002


def raw(encoding, pixels, pad=0):
    rows = pixels.reshape(len(pixels), -1)
    data = np.pad(rows, ((0, 0), (0, pad))).reshape(-1)
    return SimpleNamespace(height=pixels.shape[0], width=pixels.shape[1], step=rows.shape[1] + pad, encoding=encoding, is_bigendian=0, data=data)


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
    np.testing.assert_array_equal(fields["data"].view("<f4"), [np.float32(1.5), NAN])
    assert (fields["encoding"], fields["step"]) == ("32FC1", 8)
    with pytest.raises(InputError, match="REP 118"):
        depth_fields(DepthMap(depth.values, depth.valid, "relative", "", 0, 1, "near"))


PHOTOS = [np.random.default_rng(k).integers(0, 256, (60, 80, 3), dtype=np.uint8) for k in range(4)]


K, P = [50.0, 0, 39.5, 0, 50, 29.5, 0, 0, 1], [50.0, 0, 39.5, 0, 0, 50, 29.5, 0, 0, 0, 1, 0]
WHOLE = {"x_offset": 0, "y_offset": 0, "height": 0, "width": 0, "do_rectify": False}


def compressed(picture, form, kind="PNG", **how):
    """A CompressedImage of a picture of Pillow's."""
    held = io.BytesIO()
    picture.save(held, kind, **how)
    return SimpleNamespace(format=form, data=np.frombuffer(held.getvalue(), np.uint8))


def camera_info(full_width=80, full_height=60, k=K, p=P, binning=(0, 0), **roi):
    """What a driver says of its camera: the sensor, and which window of it the pictures are."""
    facts = {"distortion_model": "plumb_bob", "d": np.zeros(5), "k": np.float64(k), "r": np.eye(3).reshape(-1), "p": np.float64(p)}
    facts |= {"binning_x": binning[0], "binning_y": binning[1], "roi": SimpleNamespace(**WHOLE | roi)}
    return SimpleNamespace(height=full_height, width=full_width, **facts)


def record(folder, sent):
    """An MCAP of (channel, topic, kind of message, number that says its times, message)."""
    pytest.importorskip("rosbags", reason="rosbags is not installed")
    from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
    from rosbags.rosbag2 import StoragePlugin, Writer
    from rosbags.typesys import Stores, get_typestore

    types, never = get_typestore(Stores.ROS2_HUMBLE), QosTime(0, 0)
    kinds, channels = types.types, {}
    with Writer(folder, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        for channel, topic, kind, number, message in sent:
            name = f"sensor_msgs/msg/{kind}"
            if (channel, topic) not in channels:
                qos = Qos(QosHistory.KEEP_LAST, channel, QosReliability.RELIABLE, QosDurability.VOLATILE, never, never, QosLiveliness.AUTOMATIC, never, False)
                channels[channel, topic] = writer.add_connection(topic, name, typestore=types, offered_qos_profiles=[qos])
            header = kinds["std_msgs/msg/Header"](stamp=kinds["builtin_interfaces/msg/Time"](sec=number, nanosec=7), frame_id="cam_optical")
            fields = dict(vars(message))
            if kind == "CameraInfo":
                fields["roi"] = kinds["sensor_msgs/msg/RegionOfInterest"](**vars(message.roi))
            writer.write(channels[channel, topic], 1000 + number, types.serialize_cdr(kinds[name](header=header, **fields), name))
    return next(folder.glob("*.mcap"))


def bgr(photo):
    return raw("bgr8", np.ascontiguousarray(photo[..., ::-1]))


@pytest.fixture
def bag(tmp_path):
    """Four pictures of /cam/image_raw, the third broken, with CameraInfo, and one JPEG-like topic; returns the MCAP."""
    sent = []
    for number, photo in enumerate(PHOTOS):
        encoding = "yuv?" if number == 2 else "bgr8"
        sent.append((0, "/cam/image_raw", "Image", number, SimpleNamespace(**vars(bgr(photo)) | {"encoding": encoding})))
        sent.append((0, "/cam/camera_info", "CameraInfo", number, camera_info()))
    return record(tmp_path / "in", [*sent, (0, "/cam/image_raw/compressed", "CompressedImage", 0, compressed(Image.fromarray(PHOTOS[0]), "png"))])


def read(path):
    from rosbags.highlevel import AnyReader

    with AnyReader([path]) as reader:
        return [(connection.topic, stamp, reader.deserialize(data, connection.msgtype)) for connection, stamp, data in reader.messages()]


def test_a_bag_becomes_a_bag_of_metres(tiny, bag, tmp_path, capsys):
    out = tmp_path / "out.mcap"
    words = ["--engine", str(tiny.plan), str(bag), "-o", str(out), "--topic", "/cam/image_raw", "--save", "ply", "--json"]
    assert run.main(words) == 3  # one picture is broken
    noted = capsys.readouterr()
    facts = json.loads(noted.out)
    assert (facts["frames"], facts["failed"]) == (3, 1) and "yuv?" in noted.err
    found = read(out)
    assert sorted({topic for topic, _, _ in found}) == ["/cam/depth/camera_info", "/cam/depth/image_raw", "/cam/depth/points"]
    maps = [(stamp, message) for topic, stamp, message in found if topic == "/cam/depth/image_raw"]
    assert [stamp for stamp, _ in maps] == [1000, 1001, 1003] and [message.header.stamp.sec for _, message in maps] == [0, 1, 3]
    with Pipeline.open(tiny.plan) as pipeline:
        for (_, message), photo in zip(maps, [PHOTOS[k] for k in (0, 1, 3)], strict=True):
            assert (message.encoding, message.header.frame_id, message.header.stamp.nanosec) == ("32FC1", "cam_optical", 7)
            np.testing.assert_array_equal(np.asarray(message.data).view("<f4").reshape(60, 80), pipeline.predict(photo).values)
    info = next(message for topic, _, message in found if topic == "/cam/depth/camera_info")
    assert info.k.tolist() == [50, 0, 39.5, 0, 50, 29.5, 0, 0, 1] and (info.width, info.height) == (80, 60)
    cloud = next(message for topic, _, message in found if topic == "/cam/depth/points")
    assert cloud.width == 4800 and len(cloud.data) == cloud.row_step
    assert not list(tmp_path.glob(".fathom*"))
    assert run.main(words) == 3 and "exists already" in capsys.readouterr().err


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


def test_a_window_of_the_sensor_keeps_its_points_in_a_bag(tiny, tmp_path):
    roi = {"x_offset": 100, "y_offset": 90, "width": 160, "height": 120}
    info = camera_info(400, 300, [100, 0, 190, 0, 100, 160, 0, 0, 1], [100, 0, 190, 0, 0, 100, 160, 0, 0, 0, 1, 0], (2, 2), **roi)
    inside = record(tmp_path / "in", [(0, "/cam/camera_info", "CameraInfo", 0, info), (0, "/cam/image_raw", "Image", 1, bgr(PHOTOS[0]))])
    words = ["--engine", str(tiny.plan), str(inside), "--save", "ply", "-q"]
    assert run.main([*words, "-o", str(tmp_path / "out.mcap")]) == 0
    found = {topic: message for topic, _, message in read(tmp_path / "out.mcap")}
    depth = np.asarray(found["/cam/depth/image_raw"].data).view("<f4").reshape(60, 80)
    cloud = np.asarray(found["/cam/depth/points"].data).view("<f4").reshape(-1, 4)
    rows, columns = np.mgrid[:60, :80]  # of the picture; its first pixel is the mean of the sensor's pixels 100 and 101, 90 and 91
    np.testing.assert_allclose(cloud[:, 0], ((columns * 2 + 100.5 - 190) / 100 * depth)[np.isfinite(depth)], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(cloud[:, 1], ((rows * 2 + 90.5 - 160) / 100 * depth)[np.isfinite(depth)], rtol=1e-4, atol=1e-5)
    told = found["/cam/depth/camera_info"]
    assert (told.width, told.height, told.binning_x, told.binning_y) == (80, 60, 0, 0) and vars(told.roi) | WHOLE == vars(told.roi)
    assert told.k.tolist() == [50, 0, 44.75, 0, 50, 34.75, 0, 0, 1] and told.p.tolist() == [50, 0, 44.75, 0, 0, 50, 34.75, 0, 0, 0, 1, 0]
    assert run.main([*words, "-o", str(tmp_path / "own.mcap"), "--intrinsics", "60,61,40,30"]) == 0  # what the user says of the camera is what is written
    own = {topic: message for topic, _, message in read(tmp_path / "own.mcap")}["/cam/depth/camera_info"]
    assert own.k.tolist() == [60, 0, 40, 0, 61, 30, 0, 0, 1] and own.p.tolist() == [60, 0, 40, 0, 0, 61, 30, 0, 0, 0, 1, 0] and not own.d.any()


def test_rectified_pictures_are_of_the_camera_p(tiny, tmp_path, capsys):
    info = camera_info(160, 120, p=[120, 0, 80.5, -24, 0, 122, 58.5, 0, 0, 0, 1, 0], binning=(2, 2))
    info.d[0] = 0.2
    inside = record(tmp_path / "in", [(0, "/cam/camera_info", "CameraInfo", 0, info), (0, "/cam/image_rect_color", "Image", 1, bgr(PHOTOS[0]))])
    assert run.main(["--engine", str(tiny.plan), str(inside), "--save", "ply", "-o", str(tmp_path / "out.mcap")]) == 0
    assert "distorted" not in capsys.readouterr().err
    found = {topic: message for topic, _, message in read(tmp_path / "out.mcap")}
    depth = np.asarray(found["/cam/depth/image_raw"].data).view("<f4").reshape(60, 80)
    cloud = np.asarray(found["/cam/depth/points"].data).view("<f4").reshape(-1, 4)
    rows, columns = np.mgrid[:60, :80]
    np.testing.assert_allclose(cloud[:, 0], ((columns - 40) / 60 * depth)[np.isfinite(depth)], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(cloud[:, 1], ((rows - 29) / 61 * depth)[np.isfinite(depth)], rtol=1e-4, atol=1e-5)
    told = found["/cam/depth/camera_info"]
    assert told.k.tolist() == [60, 0, 40, 0, 61, 29, 0, 0, 1] and told.p.tolist() == [60, 0, 40, -12, 0, 61, 29, 0, 0, 0, 1, 0]
    assert not told.d.any() and told.r.tolist() == np.eye(3).reshape(-1).tolist()


def test_a_picture_that_does_not_fit_its_camera_info_costs_itself_alone(tiny, tmp_path, capsys):
    infos = [camera_info(), camera_info(x_offset=8, width=64)]
    sent = [(0, "/cam/camera_info", "CameraInfo", 0, infos[0]), (0, "/cam/image_raw", "Image", 1, bgr(PHOTOS[0]))]
    sent += [(0, "/cam/camera_info", "CameraInfo", 2, infos[1]), (0, "/cam/image_raw", "Image", 3, bgr(PHOTOS[1]))]
    inside = record(tmp_path / "in", sent)
    assert run.main(["--engine", str(tiny.plan), str(inside), "-o", str(tmp_path / "out.mcap"), "--json"]) == 3
    noted = capsys.readouterr()
    assert (json.loads(noted.out)["frames"], json.loads(noted.out)["failed"]) == (1, 1) and "64x0 at 8,0" in noted.err


def test_compressed_pictures(tiny, bag, tmp_path, capsys):
    assert run.main(["--engine", str(tiny.plan), str(bag), "-o", str(tmp_path / "c.mcap"), "--topic", "/cam/image_raw/compressed", "-q", "--scale", "1.5"]) == 0
    assert "depth_m = 1.5 * network" in capsys.readouterr().out
    (message,) = [message for topic, _, message in read(tmp_path / "c.mcap") if topic == "/cam/depth/image_raw"]
    assert b"fathom.correction" in (tmp_path / "c.mcap").read_bytes() and b"1.5 * network" in (tmp_path / "c.mcap").read_bytes()
    with Pipeline.open(tiny.plan) as pipeline:
        np.testing.assert_array_equal(np.asarray(message.data).view("<f4").reshape(60, 80), pipeline.predict(PHOTOS[0]).values * np.float32(1.5))


def test_what_is_no_bag_or_topic_leaves_nothing(tiny, bag, tmp_path, capsys):
    def go(*words, out="o.mcap"):
        return run.main(["--engine", str(tiny.plan), "-o", str(tmp_path / out), *map(str, words)])

    assert go(bag) == 2 and "/cam/image_raw, /cam/image_raw/compressed" in capsys.readouterr().err
    assert go(bag, "--topic", "/nothing") == 2 and go(bag, out="o.bag") == 2 and go(bag, tmp_path / "x.jpg") == 2
    cut = tmp_path / "cut.mcap"
    cut.write_bytes(bag.read_bytes()[:5000])
    assert go(cut, "--topic", "/cam/image_raw") == 3
    assert not (tmp_path / "o.mcap").exists() and not list(tmp_path.glob(".fathom*"))


def test_every_publisher_of_a_topic_counts(tiny, tmp_path, capsys):
    sent = [(channel, "/cam/image_raw", "Image", number, bgr(PHOTOS[number])) for number, channel in enumerate((0, 1, 0))]
    words = ["--engine", str(tiny.plan), str(record(tmp_path / "in", sent)), "-o", str(tmp_path / "out.mcap"), "--json"]
    assert run.main(words) == 0 and json.loads(capsys.readouterr().out)["frames"] == 3
    assert [(stamp, message.header.stamp.sec) for _, stamp, message in read(tmp_path / "out.mcap")] == [(1000, 0), (1001, 1), (1002, 2)]


def test_a_bag_that_is_damaged_at_its_camera_info_is_an_input_that_is_named(tiny, bag, tmp_path, capsys):
    content = bytearray(bag.read_bytes())
    frame = content.find(b"cam_optical", content.find(np.float64(K).tobytes()) - 300)  # of the first CameraInfo: the length of its words stands before
    content[frame - 4 : frame] = b"\xff\xff\xff\x7f"
    damaged = tmp_path / "damaged.mcap"
    damaged.write_bytes(content)
    assert run.main(["--engine", str(tiny.plan), str(damaged), "-o", str(tmp_path / "o.mcap"), "--topic", "/cam/image_raw"]) == 3
    assert f"{damaged} is damaged" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged.mcap", "in"]


@pytest.mark.parametrize("step", ["open", "set_custom_data", "close"])
def test_a_bag_that_cannot_be_written_leaves_nothing(bag, tmp_path, monkeypatch, step):
    from rosbags.rosbag2 import Writer

    def fail(*_):
        raise OSError("no such luck")

    monkeypatch.setattr(Writer, step, fail)
    with pytest.raises(OSError, match="no such luck"), BagWriter(tmp_path / "o.mcap", "/cam/image_raw", facts={"a": "b"}):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_relative_maps_are_no_metres_in_a_bag(make_artefacts, bag, tmp_path, capsys):
    assert run.main(["--engine", str(make_artefacts("relative").plan), str(bag), "-o", str(tmp_path / "o.mcap"), "--topic", "/cam/image_raw"]) == 3
    assert "REP 118" in capsys.readouterr().err and not (tmp_path / "o.mcap").exists()


def test_topics_lie_beside_the_pictures():
    rectified = ("/a/image_rect", "/a/image_rect_color/compressed", "image_rect")
    assert all(map(is_rectified, rectified)) and not any(map(is_rectified, ("/a/image_raw", "/image_rect/image_raw/compressed", "/a/image_color")))
    assert topics_for("/a/b/image_raw/compressed")["camera_info"] == topics_for("/a/b/image_rect")["camera_info"] == "/a/b/camera_info"


def test_mask_edges_takes_flying_pixels_out_of_maps():
    values, planted = step_scene(3)
    depth = DepthMap(values, values > 0, "metric", "m", 0.1, 10, "far")
    masked = depth.without_flying()
    assert not masked.valid[planted].all() and (~masked.valid[planted]).mean() >= 0.9 and (masked.values[~masked.valid] == 0).all()
    relative = DepthMap(values, values > 0, "relative", "", 0, 10, "near")
    assert relative.without_flying() is relative


@pytest.fixture(scope="module")
def newest():
    path = Path(__file__).parent.parent / "docs/ros2/fathom_depth/fathom_depth/newest.py"
    spec = importlib.util.spec_from_file_location("newest_for_test", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.NewestDepth


def test_the_node_drops_what_is_old_and_survives_what_is_broken(newest, tiny):
    begun, go, sent, words = threading.Event(), threading.Event(), queue.Queue(), queue.Queue()
    with Pipeline.open(tiny.plan) as pipeline:

        def predict(photo, camera):
            begun.set()
            assert go.wait(10)
            return pipeline.predict(photo, None, camera)

        node = newest(predict, lambda *what: sent.put(what), words.put, points=True, rectified=True)
        pictures = [SimpleNamespace(**vars(raw("rgb8", photo)), header=number) for number, photo in enumerate(PHOTOS)]
        node.on_image(pictures[0])
        assert begun.wait(10)
        for picture in pictures[1:]:
            node.on_image(picture)
        go.set()
        found = [sent.get(timeout=10) for _ in range(2)]
        assert [header for header, *_ in found] == [0, 3] and node.dropped == 2
        for header, depth, info, cloud in found:
            np.testing.assert_array_equal(depth["data"].view("<f4").reshape(60, 80), pipeline.predict(PHOTOS[header]).values)
            assert info is None and cloud is None  # no camera is known
        node.on_image(SimpleNamespace(**{**vars(pictures[0]), "encoding": "yuv?"}))
        assert "yuv?" in words.get(timeout=10)
        node.on_info(camera_info(p=[60, 0, 40, -12, 0, 61, 29, 0, 0, 0, 1, 0]))
        node.on_image(pictures[1])
        header, _, info, cloud = sent.get(timeout=10)
        assert header == 1 and info["k"].tolist() == [60, 0, 40, 0, 61, 29, 0, 0, 1] and cloud is not None
        node.close()


def test_a_surprise_in_one_picture_does_not_end_the_node(newest):
    sent, words, surprises = queue.Queue(), queue.Queue(), [KeyError("surprise")]

    def predict(photo, camera):
        if surprises:
            raise surprises.pop()
        return DepthMap(photo[..., 0] + np.float32(1), photo[..., 0] >= 0, "metric", "m", 0.1, 300, "far")

    node = newest(predict, lambda *what: sent.put(what), words.put)
    picture = SimpleNamespace(**vars(raw("rgb8", PHOTOS[0])), header=0)
    node.on_image(picture)
    assert "KeyError" in words.get(timeout=10)
    node.on_image(picture)
    assert sent.get(timeout=10)[0] == 0
    node.close()


class Topics:
    """As much of rclpy as the node uses: parameters from a file, and what it subscribes to and publishes."""

    def __init__(self, name):
        self.said, self.published, self.listening = [], {}, {}

    def declare_parameter(self, name, default):
        return SimpleNamespace(value=self.parameters.get(name, default))

    def get_logger(self):
        return SimpleNamespace(info=self.said.append, warning=self.said.append)

    def create_publisher(self, kind, topic, qos):
        self.published[topic] = queue.Queue()
        return SimpleNamespace(publish=lambda message: self.published[topic].put((kind, qos, message)))

    def create_subscription(self, kind, topic, take, qos):
        self.listening[topic] = (kind, take)


@pytest.fixture
def node_module(monkeypatch):
    """The node's module over a stand-in for rclpy whose messages take only the fields of the real ones."""
    pytest.importorskip("rosbags", reason="rosbags is not installed")
    from rosbags.typesys import Stores, get_typestore

    known = get_typestore(Stores.ROS2_HUMBLE).types

    def fill(message, **values):
        for field, value in values.items():
            setattr(message, field, value)

    def kind_of(name):
        fields = [field.name for field in dataclasses.fields(known[f"sensor_msgs/msg/{name}"])]
        return type(name, (), {"__slots__": fields, "__init__": fill})

    kinds = {name: kind_of(name) for name in ("CameraInfo", "CompressedImage", "Image", "PointCloud2", "PointField")}
    policy = SimpleNamespace(KEEP_LAST="last", RELIABLE="reliable", BEST_EFFORT="best effort")
    qos = SimpleNamespace(HistoryPolicy=policy, ReliabilityPolicy=policy, QoSProfile=lambda **how: how, qos_profile_sensor_data="sensor")
    stand_ins = {"rclpy": SimpleNamespace(), "rclpy.node": SimpleNamespace(Node=Topics), "rclpy.qos": qos, "sensor_msgs": SimpleNamespace()}
    for name, module in {**stand_ins, "sensor_msgs.msg": SimpleNamespace(**kinds)}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.syspath_prepend(str(PACKAGE))
    for name in ("fathom_depth", "fathom_depth.newest", "fathom_depth.depth_node"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("fathom_depth.depth_node")
    for name in ("fathom_depth", "fathom_depth.newest", "fathom_depth.depth_node"):
        sys.modules.pop(name, None)


PACKAGE = Path(__file__).parent.parent / "docs/ros2/fathom_depth"


def test_the_node_publishes_real_messages_with_its_parameters(node_module, tiny, monkeypatch):
    import yaml

    (settings,) = yaml.safe_load((PACKAGE / "config/depth.yaml").read_text()).values()
    settings = settings["ros__parameters"]
    assert settings == node_module.PARAMETERS | {"mask_edges": True}  # the file sets what the node declares, and nothing else
    launch = (PACKAGE / "launch/depth.launch.py").read_text()
    monkeypatch.setattr(Topics, "parameters", {"engine": str(tiny.plan), "scale": "1.4", "mask_edges": False, "points": True, "reliable": True}, raising=False)
    node = node_module.DepthNode()
    assert "depth_m = 1.4 * network" in node.said[0]
    assert all(f'"{topic}": "' in launch for topic in (*node.published, *node.listening, "image/compressed"))
    node.listening["camera_info"][1](camera_info())
    node.listening["image"][1](SimpleNamespace(**vars(raw("rgb8", PHOTOS[0])), header="its own"))
    found = {topic: waiting.get(timeout=10) for topic, waiting in node.published.items()}
    with Pipeline.open(tiny.plan) as pipeline:
        wanted = pipeline.predict(PHOTOS[0]).values * np.float32(1.4)
    np.testing.assert_allclose(np.frombuffer(found["depth"][2].data, "<f4").reshape(60, 80), wanted, rtol=1e-6)
    assert all(message.header == "its own" and qos["reliability"] == "reliable" for _, qos, message in found.values())
    assert found["depth_info"][2].k.tolist() == K and found["points"][2].width == 4800 and found["points"][2].fields[0].name == "x"
    node.newest.close()
    node.pipeline.close()
