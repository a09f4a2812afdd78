"""The node of ROS 2: the newest picture counts, and none ends it."""

import dataclasses
import importlib
import importlib.util
import queue
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ros_messages import PHOTOS, K, camera_info, raw

from fathom.runtime.photo.depth_map import DepthMap
from fathom.runtime.pipeline import Pipeline


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
