"""Messages of ROS 2 as drivers send them, and bags of them, written and read by rosbags."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from noise_photos import photo


def raw(encoding, pixels, pad=0):
    rows = pixels.reshape(len(pixels), -1)
    data = np.pad(rows, ((0, 0), (0, pad))).reshape(-1)
    return SimpleNamespace(height=pixels.shape[0], width=pixels.shape[1], step=rows.shape[1] + pad, encoding=encoding, is_bigendian=0, data=data)


PHOTOS = [photo(60, 80, k) for k in range(4)]
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


def bgr(pixels):
    return raw("bgr8", np.ascontiguousarray(pixels[..., ::-1]))


def read(path):
    from rosbags.highlevel import AnyReader

    with AnyReader([path]) as reader:
        return [(connection.topic, stamp, reader.deserialize(data, connection.msgtype)) for connection, stamp, data in reader.messages()]
