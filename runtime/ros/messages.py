"""ROS 2 messages of cameras to photos, and maps to the fields of messages. Needs no ROS: messages are any objects with those fields.

Depth follows REP 118: 32FC1, metres along the optical axis, NaN where there is none (REP 117).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..errors import InputError
from ..photo.depth_map import SHAPE_TOLERANCE, DepthMap, Intrinsics
from ..photo.photo import decode_photo

CHANNELS = {"rgb8": (3, (0, 1, 2)), "bgr8": (3, (2, 1, 0)), "8UC3": (3, (2, 1, 0)), "rgba8": (4, (0, 1, 2)), "bgra8": (4, (2, 1, 0)), "mono8": (1, (0, 0, 0))}
CHANNELS["8UC1"] = CHANNELS["mono8"]
DISTANCES = ("16UC1", "32FC1")
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
    """As photos are read, but for EXIF's orientation: CameraInfo and whoever overlays the map go by the stored pixels."""
    words = str(message.format)
    if words.partition(";")[0].strip() in DISTANCES:  # the transports write the encoding first: "16UC1; png compressed"
        raise InputError(f"a compressed image of {words!r}, which is distances", wanted="a picture", fix="--topic, of the colour or grey camera")
    try:
        raw = bytes(memoryview(message.data))
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"a message that is no sensor_msgs/CompressedImage ({error})", wanted="format and data") from error
    return decode_photo(raw, f"a compressed image ({words!r})", upright=False)


def camera_of(info: Any, width: int, height: int, rectified: bool = False) -> Intrinsics | None:
    """Intrinsics of a picture of that size from a ``sensor_msgs/CameraInfo``; None if it is not calibrated (K is 0, or P).

    Args:
        rectified: P, not K, is for such pictures.

    Raises:
        InputError: if the picture is not the one that CameraInfo tells of, or K (P) is no camera's.
    """
    k, p = _matrices(info, width, height)
    name, found = ("P", p) if rectified else ("K", k)
    if found[0, 0] == 0:
        return None
    try:
        return Intrinsics(*map(float, (found[0, 0], found[1, 1], found[0, 2], found[1, 2])), width, height).on(width, height)
    except ValueError as error:
        raise InputError(f"CameraInfo holds {name} = {found.round(3).tolist()} ({error})", wanted="a calibrated camera, or zeros") from error


def _matrices(info: Any, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """K [3, 3] and P [3, 4] for a picture of that size.

    In the message they are for the whole sensor, of which the driver may send a window (``roi``, in the sensor's pixels) and several pixels as one
    (``binning``). A picture of another size has to be the whole sensor resized: of a window nobody could tell.

    Raises:
        InputError: if the message is damaged, or the picture has another size or shape than it says.
    """
    with _as_camera_info():
        k, p, roi = np.array(info.k, np.float64).reshape(3, 3), np.array(info.p, np.float64).reshape(3, 4), info.roi
        axes = [(width, int(info.width), int(roi.x_offset), int(roi.width), max(1, int(info.binning_x)))]
        axes += [(height, int(info.height), int(roi.y_offset), int(roi.height), max(1, int(info.binning_y)))]
    if not (k[0, 0] or p[0, 0]):
        return k, p
    cut = any(offset or window not in (0, full) for _, full, offset, window, _ in axes)
    factors, stretches = [], []
    for size, full, offset, window, binning in axes:
        seen = (window if cut and window else full - offset) / binning
        fits = np.floor(seen) <= size <= np.ceil(seen) and not 0 < full < offset + window
        if cut and not fits:
            raise _another_picture(info, axes)
        factors.append(1 / binning if fits or not full else size / full)
        stretches.append(factors[-1] * binning)
    if abs(stretches[0] / stretches[1] - 1) > SHAPE_TOLERANCE:
        raise _another_picture(info, axes)
    for matrix in (k, p):
        for row, factor in enumerate(factors):
            if matrix[row, row]:
                matrix[row, 2] -= axes[row][2]
                matrix[row] *= factor
                matrix[row, 2] += (factor - 1) / 2  # pixel centres have whole coordinates: the picture's edge is at -0.5
    return k, p


def _another_picture(info: Any, axes: list[tuple[int, ...]]) -> InputError:
    (width, *_), (height, *_) = axes
    roi, binning = info.roi, f"{axes[0][4]}x{axes[1][4]}"
    tells = f"{info.width}x{info.height}, region of interest {roi.width}x{roi.height} at {roi.x_offset},{roi.y_offset}, binning {binning}"
    return InputError(
        f"the picture has {width}x{height} pixels, which does not fit its CameraInfo ({tells})",
        wanted="the CameraInfo of this picture",
        fix="--intrinsics fx,fy,cx,cy, in pixels of this picture",
    )


def distorted(info: Any) -> bool:
    """Whether the lens has distortion: a pixel's ray is then not that of a pinhole camera."""
    with _as_camera_info():
        return bool(np.any(np.array(info.d, np.float64) != 0))


@contextmanager
def _as_camera_info() -> Iterator[None]:
    try:
        yield
    except (AttributeError, TypeError, ValueError, OverflowError) as error:  # a bag brings its own description of its messages, and that can be damaged
        raise InputError(f"a message that is no sensor_msgs/CameraInfo ({error})", wanted="width, height, d, k, r, p, binning and roi") from error


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


def scaled_info(info: Any, width: int, height: int, rectified: bool = False) -> dict[str, Any]:
    """Fields of a ``CameraInfo`` for a picture of that size, but the header and region of interest, which is all zeros: K and P are for this
    picture, the lens is carried through. A rectified picture is one of a pinhole camera: K is as P, without distortion.

    Raises:
        InputError: if the picture is not the one that CameraInfo tells of.
    """
    k, p = _matrices(info, width, height)
    if rectified:
        return {**_pinhole(p[:, :3], width, height), "p": p.reshape(-1)}
    with _as_camera_info():
        lens = {"distortion_model": str(info.distortion_model), "d": np.array(info.d, np.float64), "r": np.array(info.r, np.float64).reshape(9)}
    return {"height": height, "width": width, "k": k.reshape(-1), "p": p.reshape(-1), "binning_x": 0, "binning_y": 0, **lens}


def pinhole_info(camera: Intrinsics, width: int, height: int) -> dict[str, Any]:
    """The same of a camera without a ``CameraInfo``: no distortion, rectified as it is.

    Raises:
        InputError: if the picture has another shape than the camera's.
    """
    camera = camera.on(width, height)
    return _pinhole(np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]]), width, height)


def _pinhole(k: np.ndarray, width: int, height: int) -> dict[str, Any]:
    lens = {"distortion_model": "plumb_bob", "d": np.zeros(5), "r": np.eye(3).reshape(-1)}
    p = np.hstack([k, np.zeros((3, 1))])
    return {"height": height, "width": width, "k": k.reshape(-1), "p": p.reshape(-1), "binning_x": 0, "binning_y": 0, **lens}


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
    base = _plain(topic).rsplit("/", 1)[0]
    return {
        "camera_info": f"{base}/camera_info",
        "depth": f"{base}/depth/image_raw",
        "depth_info": f"{base}/depth/camera_info",
        "points": f"{base}/depth/points",
    }


def is_rectified(topic: str) -> bool:
    """Whether pictures of that topic are rectified, by the names that ``image_proc`` gives: ``image_rect``, ``image_rect_color``, ..."""
    return _plain(topic).rpartition("/")[2].startswith("image_rect")


def _plain(topic: str) -> str:
    return topic[: -len("/compressed")] if topic.endswith("/compressed") else topic
