"""ROS 2 messages of cameras to photos, and maps to the fields of messages. Needs no ROS: messages are any objects with those fields.

Depth follows REP 118: 32FC1, metres along the optical axis, NaN where there is none (REP 117).
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from ..errors import InputError
from ..photo.depth_map import DepthMap, Intrinsics

CHANNELS = {"rgb8": (3, (0, 1, 2)), "bgr8": (3, (2, 1, 0)), "8UC3": (3, (2, 1, 0)), "rgba8": (4, (0, 1, 2)), "bgra8": (4, (2, 1, 0)), "mono8": (1, (0, 0, 0))}
CHANNELS["8UC1"] = CHANNELS["mono8"]
MOST_PIXELS = 1 << 28
FLOAT32 = 7  # sensor_msgs/PointField


def photo_of(message: Any) -> np.ndarray:
    """The picture of a ``sensor_msgs/Image`` or ``CompressedImage``.

    Returns:
        uint8 [H, W, 3], RGB.

    Raises:
        InputError: if the encoding is none of colour or grey in 8 bits, or the bytes do not fit the header.
    """
    if hasattr(message, "format"):
        return _decompressed(message)
    try:
        height, width, step, encoding = int(message.height), int(message.width), int(message.step), message.encoding
        data = np.frombuffer(memoryview(message.data), np.uint8)
    except (AttributeError, TypeError, ValueError) as error:  # a bag brings its own description of its messages, and that can be damaged
        raise InputError(f"a message that is no sensor_msgs/Image ({error})", wanted="height, width, step, encoding and data") from error
    if encoding not in CHANNELS:
        raise InputError(f"an image of encoding {encoding!r}", wanted=", ".join(CHANNELS), fix="publish one of these (image_proc converts Bayer)")
    count, order = CHANNELS[encoding]
    if not (0 < height * width <= MOST_PIXELS and step >= width * count and data.size >= step * height):
        raise InputError(f"an image of {width}x{height} with step {step} and {data.size} bytes", wanted="bytes that fit the header")
    pixels = data[: step * height].reshape(height, step)[:, : width * count].reshape(height, width, count)
    return np.ascontiguousarray(pixels[:, :, list(order)])


def _decompressed(message: Any) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(bytes(message.data)), formats=("JPEG", "PNG")) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"{image.width}x{image.height} pixels")
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"a compressed image ({message.format!r}) cannot be decoded ({error})", wanted="JPEG or PNG") from error


def camera_of(info: Any, width: int, height: int) -> Intrinsics | None:
    """Intrinsics of a picture of that size from a ``sensor_msgs/CameraInfo``; None if it is not calibrated (K is 0).

    Raises:
        InputError: if the picture has another shape, or K is no camera's.
    """
    k = [float(value) for value in info.k]
    if k[0] == 0:
        return None
    try:
        return Intrinsics(k[0], k[4], k[2], k[5], int(info.width), int(info.height)).on(width, height)
    except ValueError as error:
        raise InputError(f"CameraInfo holds K = {k} ({error})", wanted="a calibrated camera, or zeros") from error


def distorted(info: Any) -> bool:
    """Whether the lens has distortion: a pixel's ray is then not that of a pinhole camera."""
    return bool(np.any(np.asarray(info.d) != 0))


def depth_fields(depth: DepthMap) -> dict[str, Any]:
    """Fields of a 32FC1 ``sensor_msgs/Image`` but the header.

    Raises:
        InputError: if the map is not metric.
    """
    if depth.kind != "metric":
        raise InputError(f"the network's output is {depth.kind}, without a unit", wanted="metric depth: 32FC1 means metres (REP 118)")
    values = np.where(depth.valid, depth.values, np.float32(np.nan)).astype("<f4")
    height, width = values.shape
    data = values.reshape(-1).view(np.uint8)
    return {"height": height, "width": width, "encoding": "32FC1", "is_bigendian": 0, "step": 4 * width, "data": data}


def scaled_info(info: Any, width: int, height: int) -> dict[str, Any]:
    """Fields of a ``CameraInfo`` for a picture of that size, but the header and region of interest: K and P scaled, the rest carried through.

    Pixel centres have whole coordinates, so principal points move by half a pixel as well.
    """
    across, down = (width / info.width, height / info.height) if info.width and info.height else (1.0, 1.0)
    k, p = np.asarray(info.k, np.float64).reshape(3, 3).copy(), np.asarray(info.p, np.float64).reshape(3, 4).copy()
    for matrix in (k, p):
        for row, factor in ((0, across), (1, down)):
            if matrix[row, row]:
                matrix[row] *= factor
                matrix[row, 2] += (factor - 1) / 2
    fields = {name: getattr(info, name) for name in ("distortion_model", "d", "r", "binning_x", "binning_y")}
    return {"height": height, "width": width, "k": k.reshape(-1), "p": p.reshape(-1), **fields}


def cloud_fields(depth: DepthMap, photo: np.ndarray) -> dict[str, Any]:
    """Fields of a ``PointCloud2`` but the header: x right, y down, z forward (the optical frame), and ``rgb``; valid pixels only.

    ``fields`` is a list of (name, offset, datatype, count).

    Args:
        photo: uint8 [H, W, 3], RGB.
    """
    xyz = depth.points_m()
    points = np.empty(len(xyz), np.dtype([("xyz", "<f4", 3), ("rgb", "<u4")]))
    red, green, blue = photo[depth.valid].astype(np.uint32).T
    points["xyz"], points["rgb"] = xyz, red << 16 | green << 8 | blue
    fields = [(name, 4 * place, FLOAT32, 1) for place, name in enumerate(("x", "y", "z", "rgb"))]
    size = points.dtype.itemsize
    shape = {"height": 1, "width": len(points), "point_step": size, "row_step": size * len(points)}
    return {**shape, "fields": fields, "is_bigendian": False, "data": points.view(np.uint8).reshape(-1), "is_dense": True}


def topics_for(topic: str) -> dict[str, str]:
    """``/camera/image_raw`` (``/compressed``): where its ``camera_info`` comes from, and where ``depth``, ``depth_info`` and ``points`` go."""
    base = (topic[: -len("/compressed")] if topic.endswith("/compressed") else topic).rsplit("/", 1)[0]
    return {
        "camera_info": f"{base}/camera_info",
        "depth": f"{base}/depth/image_raw",
        "depth_info": f"{base}/depth/camera_info",
        "points": f"{base}/depth/points",
    }
