"""Bags of ROS 2 in and out."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from ros_messages import PHOTOS, WHOLE, K, bgr, camera_info, compressed, read, record

from fathom.runtime.commands import run
from fathom.runtime.pipeline import Pipeline
from fathom.runtime.ros.bag import BagWriter


@pytest.fixture
def bag(tmp_path):
    """Four pictures of /cam/image_raw, the third broken, with CameraInfo, and one JPEG-like topic; returns the MCAP."""
    sent = []
    for number, photo in enumerate(PHOTOS):
        encoding = "yuv?" if number == 2 else "bgr8"
        sent.append((0, "/cam/image_raw", "Image", number, SimpleNamespace(**vars(bgr(photo)) | {"encoding": encoding})))
        sent.append((0, "/cam/camera_info", "CameraInfo", number, camera_info()))
    return record(tmp_path / "in", [*sent, (0, "/cam/image_raw/compressed", "CompressedImage", 0, compressed(Image.fromarray(PHOTOS[0]), "png"))])


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
