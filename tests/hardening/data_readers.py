"""Readers of pictures and data sets: NYU, pairs, photos, lists, RefCOCO, bags."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from hardening.mutate import PICKLE_TOKENS, damage_bytes


def mat_seeds(folder: Path) -> list[bytes]:
    import test_datasets_nyu

    test_datasets_nyu.write_labeled(folder / "good.mat", 2)
    test_datasets_nyu.write_splits(folder / "splits.mat", [2], [1])
    return [(folder / "good.mat").read_bytes()]


def read_mat(path: Path) -> Any:
    look(f"nyu:{path}:all:raw")


def splits_seeds(folder: Path) -> list[bytes]:
    mat_seeds(folder)
    return [(folder / "splits.mat").read_bytes()]


def read_splits(path: Path) -> Any:
    look(f"nyu:{path.with_name('good.mat')}:test:raw")


def png(pixels: np.ndarray, **how: Any) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, **{"format": "PNG", **how})
    return buffer.getvalue()


def pair(folder: Path) -> None:
    (folder / "rgb.png").write_bytes(png(np.zeros((6, 8, 3), np.uint8)))
    (folder / "meta.json").write_text(json.dumps({"depth_scale": 1000, "size": [8, 6]}))


def depth_seeds(folder: Path) -> list[bytes]:
    pair(folder)
    return [png(np.arange(48, dtype=np.uint16).reshape(6, 8) * 1000)]


def meta_seeds(folder: Path) -> list[bytes]:
    pair(folder)
    (folder / "depth.png").write_bytes(png(np.arange(48, dtype=np.uint16).reshape(6, 8) * 1000))
    return [json.dumps({"depth_scale": 1000, "size": [8, 6], "intrinsics_fx_fy_cx_cy": [8, 8, 4, 3], "dataset": "NYU"}).encode()]


def read_pair(path: Path) -> Any:
    look(f"pairs:{path.parent}")


def look(text: str) -> None:
    """Open data as ``depth-calibrate`` does, and look at the first samples."""
    from fathom.calibration.observation.images import Chosen

    data = Chosen(text)
    data.provenance()
    for number in range(min(2, len(data))):
        data[number]


def photo_seeds(folder: Path) -> list[bytes]:
    from PIL import Image

    draw = np.random.default_rng(0)
    rgb, deep = draw.integers(0, 256, (12, 16, 3), dtype=np.uint8), draw.integers(0, 65536, (12, 16), dtype=np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    forms = ({"format": "JPEG", "exif": exif}, {"format": "WEBP"}, {"format": "TIFF", "compression": "tiff_lzw"}, {"format": "GIF"}, {"format": "BMP"})
    return [png(rgb), png(deep), png(draw.integers(0, 256, (12, 16, 4), dtype=np.uint8)), *(png(rgb, **form) for form in forms)]


def read_photo(path: Path) -> Any:
    from fathom.runtime.photo.photo import read_photo

    read_photo(path)


def list_seeds(folder: Path) -> list[bytes]:
    pair(folder)
    (folder / "d").mkdir(exist_ok=True)
    for name in ("rgb_1.png", "d/rgb_2.png"):
        (folder / name).write_bytes((folder / "rgb.png").read_bytes())
    for name in ("sync_depth_1.png", "d/sync_depth_2.png"):
        (folder / name).write_bytes(depth_seeds(folder)[0])
    lines = "rgb_1.png sync_depth_1.png 518.9\n# one more\n/d/rgb_2.png /d/sync_depth_2.png 518.9\nrgb_1.png None 1\n"
    return [lines.encode(), "\ufeff".encode() + lines.replace("\n", "\r\n").replace("/", "\\").encode(), lines.replace(" ", ",").encode("utf-16")]


def read_list(path: Path) -> Any:
    """As NYU's list and as KITTI's."""
    from fathom.runtime.errors import InputError

    refused = []
    for kind in ("nyu-folder", "kitti"):
        try:
            look(f"{kind}:{path.parent}:{path}")
        except InputError as error:
            refused.append(error)
    if len(refused) == 2:
        raise refused[0]


def refer_seeds(folder: Path) -> list[bytes]:
    import pickle

    home = folder / "refcoco"
    home.mkdir(exist_ok=True)
    (folder / "train2014").mkdir(exist_ok=True)
    names = [f"COCO_train2014_{number:012d}.jpg" for number in (1, 2)]
    for name in names:
        (folder / "train2014" / name).write_bytes(png(np.zeros((6, 8, 3), np.uint8), format="JPEG"))
    images = [{"id": number, "file_name": names[number - 1], "height": 6, "width": 8} for number in (1, 2)]
    masks = [{"id": number, "image_id": number, "segmentation": [[1, 1, 5, 1, 5, 4, 1, 4]]} for number in (1, 2)]
    (home / "instances.json").write_text(json.dumps({"images": images, "annotations": masks}))
    refs = [
        {
            "ref_id": number,
            "ann_id": number,
            "image_id": number,
            "file_name": f"COCO_train2014_{number:012d}_{number}.jpg",
            "split": "val",
            "sent_ids": [number],
            "sentences": [{"sent_id": number, "sent": "the cup", "raw": "the cup", "tokens": ["the", "cup"]}],
        }
        for number in (1, 2)
    ]
    return [pickle.dumps(refs, protocol) for protocol in (0, 2, 4)]


def read_refer(path: Path) -> Any:
    from fathom.benchmarks.accuracy.mask_command import open_masks
    from fathom.runtime.errors import InputError

    source = open_masks(f"refer:{path.parent.parent}:refcoco:val")
    for number in range(min(2, len(source))):
        try:
            source[number]
        except (ValueError, OSError) as error:
            raise InputError(str(error)) from error


def bag_seeds(folder: Path) -> list[bytes]:
    from rosbags.rosbag2 import StoragePlugin, Writer
    from rosbags.typesys import Stores, get_typestore

    types = get_typestore(Stores.ROS2_HUMBLE)
    kinds = types.types
    if not (folder / "bag").exists():
        with Writer(folder / "bag", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
            to = writer.add_connection("/cam/image_raw", "sensor_msgs/msg/Image", typestore=types)
            for second in range(2):
                header = kinds["std_msgs/msg/Header"](stamp=kinds["builtin_interfaces/msg/Time"](sec=second, nanosec=7), frame_id="cam")
                data = np.arange(4 * 6 * 3, dtype=np.uint8)
                fields = {"height": 4, "width": 6, "encoding": "rgb8", "is_bigendian": 0, "step": 18, "data": data}
                message = kinds["sensor_msgs/msg/Image"](header=header, **fields)
                writer.write(to, 1000 + second, types.serialize_cdr(message, "sensor_msgs/msg/Image"))
    return [next((folder / "bag").glob("*.mcap")).read_bytes()]


def read_bag(path: Path) -> Any:
    from fathom.runtime.errors import InputError
    from fathom.runtime.ros.bag import BagSource
    from fathom.runtime.ros.messages import photo_of

    with BagSource(path, None) as source:
        refused = None
        for _, message, _ in source:
            try:
                photo_of(message)
            except InputError as error:  # a broken picture does not stop the others
                refused = error
        if refused is not None:
            raise refused


def pickled(draw: random.Random, seed: bytes) -> bytes:
    return damage_bytes(draw, seed, PICKLE_TOKENS)
