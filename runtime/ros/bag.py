"""MCAP files of ROS 2, read and written by ``rosbags``, without ROS."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, UsageError, missing_package
from ..files import whole_file
from ..photo.depth_map import DepthMap
from .messages import cloud_fields, depth_fields, topics_for

IMAGES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
INFO = "sensor_msgs/msg/CameraInfo"


def is_bag(text: str) -> bool:
    """Whether a command line's input is an MCAP file."""
    return Path(text).suffix.lower() == ".mcap"


class BagSource:
    """The pictures of one topic of a bag. A context manager.

    Raises:
        EnvironmentMismatchError: if ``rosbags`` is not installed.
        InputError: if it is no whole MCAP of ROS 2, or holds no pictures.
        UsageError: if the topic is not there or carries no pictures, or none is named and there are several.
    """

    def __init__(self, path: str | Path, topic: str | None):
        rosbags()
        from rosbags.highlevel import AnyReader
        from rosbags.typesys import Stores, get_typestore

        self.path = Path(path)
        try:
            self._reader = AnyReader([self.path], default_typestore=get_typestore(Stores.ROS2_HUMBLE))
            self._reader.open()
        except Exception as error:  # whatever a damaged file provokes
            raise InputError(f"{path} cannot be read ({error})", wanted="a whole MCAP file of ROS 2", fix="mcap recover, or record it again") from error
        try:
            pictures: dict[str, list[Any]] = {}
            for connection in self._reader.connections:  # a topic has a channel for each of its publishers
                if connection.msgtype in IMAGES:
                    pictures.setdefault(connection.topic, []).append(connection)
            if topic is None and not pictures:
                raise InputError(f"{path} holds no pictures", wanted=f"a topic of {' or '.join(IMAGES)}")
            if topic is None and len(pictures) == 1:
                (topic,) = pictures
            if topic not in pictures:
                was = f"there is no topic {topic} with pictures" if topic else f"{len(pictures)} topics carry pictures"
                raise UsageError(f"{path}: {was}", wanted=f"--topic, one of: {', '.join(sorted(pictures)) or 'none'}")
        except BaseException:
            self._reader.close()
            raise
        self.topic, self.frames = topic, sum(connection.msgcount for connection in pictures[topic])
        self._pictures = pictures[topic]
        self._infos = [one for one in self._reader.connections if one.topic == topics_for(topic)["camera_info"] and one.msgtype == INFO]

    def __iter__(self) -> Iterator[tuple[int, Any, Any]]:
        """(time of recording in ns, picture, the CameraInfo it belongs to or None), in the order of recording.

        Raises:
            InputError: if the file is damaged.
        """
        info = None
        try:
            for connection, _, raw in self._reader.messages(self._infos) if self._infos else ():
                info = self._reader.deserialize(raw, connection.msgtype)  # the first one, for pictures that were recorded before it
                break
            for connection, stamp_ns, raw in self._reader.messages([*self._pictures, *self._infos]):
                message = self._reader.deserialize(raw, connection.msgtype)
                if connection.msgtype == INFO:
                    info = message
                else:
                    yield stamp_ns, message, info
        except Exception as error:
            raise InputError(f"{self.path} is damaged ({error})", wanted="a whole MCAP file", fix="mcap recover, or record it again") from error

    def __enter__(self) -> BagSource:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()


class BagWriter:
    """An MCAP of depth maps that gets its name only when it is whole. A context manager; leaving it with an error writes nothing.

    Args:
        topic: of the pictures; the maps' topics lie beside it.
        facts: words that go into the bag's metadata.
    """

    def __init__(self, path: str | Path, topic: str, force: bool = False, facts: dict[str, str] | None = None):
        rosbags()
        from rosbags.typesys import Stores, get_typestore

        self._types, self._topics, self._connections, self._facts = get_typestore(Stores.ROS2_HUMBLE), topics_for(topic), {}, facts or {}
        self._whole = whole_file(path, force)

    def __enter__(self) -> BagWriter:
        from rosbags.rosbag2 import StoragePlugin, Writer

        with ExitStack() as stack:
            part = stack.enter_context(self._whole)
            folder = part.with_name(part.name + ".d")
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            self._bag = Writer(folder, version=9, storage_plugin=StoragePlugin.MCAP)
            self._bag.open()
            stack.push(self._finish)
            for key, value in self._facts.items():
                self._bag.set_custom_data(key, value)
            self._folder, self._part, self._open = folder, part, stack.pop_all()
        return self

    def write(self, stamp_ns: int, header: Any, depth: DepthMap, info: dict[str, Any] | None = None, photo: np.ndarray | None = None) -> None:
        """One map with the picture's own header (time and frame), its CameraInfo, and a cloud if the photo is given.

        Args:
            info: from ``scaled_info`` or ``pinhole_info``.

        Raises:
            InputError: if the map is not metric.
        """
        self._put("depth", "Image", stamp_ns, header, depth_fields(depth))
        if info is not None:
            whole = self._types.types["sensor_msgs/msg/RegionOfInterest"](x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
            self._put("depth_info", "CameraInfo", stamp_ns, header, {**info, "roi": whole})
        if photo is not None:
            fields = cloud_fields(depth, photo)
            field = self._types.types["sensor_msgs/msg/PointField"]
            self._put("points", "PointCloud2", stamp_ns, header, {**fields, "fields": [field(*one) for one in fields["fields"]]})

    def _put(self, what: str, kind: str, stamp_ns: int, header: Any, fields: dict[str, Any]) -> None:
        name = f"sensor_msgs/msg/{kind}"
        if what not in self._connections:
            self._connections[what] = self._bag.add_connection(self._topics[what], name, typestore=self._types)
        message = self._types.types[name](header=header, **fields)
        self._bag.write(self._connections[what], stamp_ns, self._types.serialize_cdr(message, name))

    def _finish(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            with suppress(Exception):  # the first error is the one to tell
                self._bag.close()
            return
        self._bag.close()
        (made,) = self._folder.glob("*.mcap")
        made.replace(self._part)

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)


def rosbags() -> None:
    """Raise EnvironmentMismatchError unless the package ``rosbags`` is there."""
    if find_spec("rosbags") is None:
        raise missing_package("rosbags", "ros", "rosbags, which reads and writes MCAP files")
