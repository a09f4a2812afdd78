"""Every reader of a file from outside: how a good one is made, how it is damaged, and what the commands do with it.

A reader may take what it is given, or refuse it with exit code 3 or 10. Anything else is a fault.
"""

from __future__ import annotations

import io
import json
import random
import struct
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hardening.mutate import MAGICS, PICKLE_TOKENS, damage_bytes, damage_json, damage_zip, json_bytes, unzipped, zipped

TESTS = Path(__file__).parent.parent
SHA = "0" * 64


@dataclass(frozen=True)
class Reader:
    """One kind of file.

    Args:
        seeds: makes the good files, in a folder that may hold what they stand beside; returns their bytes.
        damage: (draw, one of the seeds) -> bytes.
        read: reads a path as the commands do; everything a photo or a network would need of it is looked at.
        name: of the file that ``read`` is given.
        share: of a run's cases.
        imports: what is loaded before the first case, so that no case pays for it.
    """

    seeds: Callable[[Path], list[bytes]]
    damage: Callable[[random.Random, bytes], bytes]
    read: Callable[[Path], Any]
    name: str
    share: int
    imports: tuple[str, ...] = ()


# --- plans and bundles


def _plan_seeds(folder: Path) -> list[bytes]:
    return [(TESTS / "data" / "plans" / "small-0.1.0.plan").read_bytes()]


def _plan_damage(draw: random.Random, seed: bytes) -> bytes:
    kind = draw.randrange(10)
    if kind < 3:
        return damage_bytes(draw, seed)
    members = unzipped(seed)
    if kind < 8:  # the manifest says something odd, and its checksum is right
        members["plan.json"] = json_bytes(draw, damage_json(draw, json.loads(members["plan.json"])))
        return zipped(list(members.items()))
    return damage_zip(draw, members)


def _read_plan(path: Path) -> Any:
    from fathom.runtime.artefact.plan import PlanFile
    from fathom.runtime.commands.inspection import describe

    with PlanFile.open(path) as plan:
        describe(plan.manifest)
        for name in plan.manifest.files:
            plan.read(name)


def _open_damage(draw: random.Random, seed: bytes) -> bytes:
    members = unzipped(seed)
    members["plan.json"] = json.dumps(damage_json(draw, json.loads(members["plan.json"]))).encode("utf-8", "surrogatepass")
    return zipped(list(members.items()))


def _read_open(path: Path) -> Any:
    """The plan's manifest says something odd about whole engines: opened, and shown a photo."""
    from fathom.runtime.errors import AccuracyError, EnvironmentMismatchError, InputError
    from fathom.runtime.pipeline import Pipeline

    try:
        with Pipeline.open(path, threads=1) as pipeline:
            pipeline.predict(np.zeros((32, 48, 3), np.uint8))
    except (EnvironmentMismatchError, AccuracyError) as error:  # it says that it is for another card, or its weights lie elsewhere and give NaN
        raise InputError(str(error)) from error


def _bundle_seeds(folder: Path) -> list[bytes]:
    """``bundle.json`` of an ONNX network; the bundle's other files go into the folder."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from fathom.export.commands import export_command

    weight = numpy_helper.from_array(np.full((1, 3, 3, 3), 0.1, np.float32), "w")
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 32, 48])
    depth = helper.make_tensor_value_info("depth", TensorProto.FLOAT, [1, 1, 32, 48])
    nodes = [helper.make_node("Conv", ["image", "w"], ["raw"], pads=[1] * 4), helper.make_node("Exp", ["raw"], ["depth"])]
    graph = helper.make_graph(nodes, "g", [image], [depth], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "g.onnx")
    (folder / "c.json").write_bytes(_contract_seeds(folder)[0])
    words = ["--onnx", str(folder / "g.onnx"), "--contract", str(folder / "c.json"), "-o", str(folder / "bundle"), "-q"]
    if not (folder / "bundle").exists() and export_command.main(words) != 0:
        raise RuntimeError("the bundle could not be exported")
    return [(folder / "bundle" / "bundle.json").read_bytes()]


def _manifest_damage(draw: random.Random, seed: bytes) -> bytes:
    return damage_bytes(draw, seed) if draw.random() < 0.25 else json_bytes(draw, damage_json(draw, json.loads(seed)))


def _read_bundle(path: Path) -> Any:
    from fathom.runtime.artefact.bundle import BundleDirectory
    from fathom.runtime.commands.inspection import describe

    with BundleDirectory.open(path.parent) as bundle:
        describe(bundle.manifest)


# --- contracts, cameras, scales, measurements, signatures


def _contract_seeds(folder: Path) -> list[bytes]:
    steps = [{"op": "resize", "height": 32, "width": 48, "interpolation": "bilinear", "min_width": 0}]
    protocol = {"name": "single-image", "steps": steps, "lefts": [0], "fill_lefts": [], "flip": False, "source": "made up"}
    picture = {"tensor": "image", "window": [32, 48], "canvas": [32, 48], "mean": [0.4, 0.5, 0.5], "std": [0.2, 0.2, 0.3]}
    output = {"tensor": "depth", "kind": "metric", "unit": "m", "near": 0.1, "far": 10, "larger_is": "far", "upsample": "bilinear"}
    plain = {"input": picture, "output": output, "protocols": [protocol]}
    crop = {"op": "crop", "height": 32, "width": 48, "anchor": "center", "top": 0, "left": 0}
    wide = {**protocol, "name": "windows", "steps": [{**steps[0], "width": 96}, crop | {"width": 80}], "lefts": [0, 32], "flip": True}
    pixels = {**picture, "mean": [104, 117, 123], "std": [1, 1, 1]}
    form = {"channels": "bgr", "pixels": 255, "values": {"form": "scaled-disparity", "near": 0.1, "far": 100, "scale": 5.4}}
    foreign = {"input": pixels, "output": output, "protocols": [protocol, wide], "graph": form}
    return [json.dumps(item).encode() for item in (plain, foreign)]


def _read_contract(path: Path) -> Any:
    from fathom.export.foreign.contract_file import read_contract

    read_contract(path)


def _small_json_seeds(folder: Path) -> list[bytes]:
    camera = {"fx": 518.9, "fy": 519.5, "cx": 325.6, "cy": 253.7, "width": 640, "height": 480}
    scale = {"form": "fathom-scale-1", "scale": 1.2, "shift_m": 0.05}
    return [json.dumps(item).encode() for item in (camera, {"intrinsics": [[500, 0, 320], [0, 500, 240], [0, 0, 1]]}, scale)]


def _read_small_json(path: Path) -> Any:
    """A camera's file and a scale's: each as both."""
    from fathom.runtime.errors import InputError
    from fathom.runtime.photo.intrinsics_file import read_intrinsics
    from fathom.runtime.scale.camera_scale import read_scale

    refused = []
    for read in (read_intrinsics, read_scale):
        try:
            read(str(path))
        except InputError as error:
            refused.append(error)
    if len(refused) == 2:
        raise refused[0]


def _csv_seeds(folder: Path) -> list[bytes]:
    return [b"# photo,column,row,metres\na.jpg,10,20,1.5\n'b c.jpg', 3, 4, 2.25\nd.jpg,d_depth.png\n", "\ufeffa.jpg,1,2,3\r\n".encode()]


def _read_csv(path: Path) -> Any:
    from fathom.runtime.scale.measurements import read_measurements

    read_measurements(path)


def _signature_seeds(folder: Path) -> list[bytes]:
    import test_runtime_trust

    return [(test_runtime_trust.DATA / "signed.txt.minisig").read_bytes(), (test_runtime_trust.DATA / "owner.pub").read_bytes()]


def _read_signature(path: Path) -> Any:
    """As a signature and as a key."""
    import test_runtime_trust

    from fathom.runtime.artefact.signature import check_signature, read_public_key
    from fathom.runtime.errors import FathomError

    refused = []
    data = test_runtime_trust.DATA
    for read in (
        lambda: check_signature((data / "signed.txt").read_bytes(), path.with_name("x"), read_public_key(str(data / "owner.pub"))),
        lambda: read_public_key(str(path)),
    ):
        try:
            read()
        except FathomError as error:
            refused.append(error)
    if len(refused) == 2:
        raise refused[0]


# --- checkpoints


def _tensors() -> dict[str, Any]:
    import torch

    torch.manual_seed(0)
    return {"a.weight": torch.randn(4, 3), "a.bias": torch.zeros(4), "b.half": torch.randn(5).half(), "b.count": torch.tensor(7)}


def _safetensors_seeds(folder: Path) -> list[bytes]:
    from safetensors.torch import save

    return [save(_tensors(), {"format": "pt"}), save({"x": _tensors()["a.weight"].to(dtype=__import__("torch").bfloat16)})]


def _safetensors_damage(draw: random.Random, seed: bytes) -> bytes:
    if draw.random() < 0.4:
        return damage_bytes(draw, seed)
    length = struct.unpack("<Q", seed[:8])[0]
    header = json_bytes(draw, damage_json(draw, json.loads(seed[8 : 8 + length])))
    return struct.pack("<Q", len(header)) + header + seed[8 + length :]


def _read_checkpoint(path: Path) -> Any:
    from fathom.models.checkpoint import read_checkpoint

    read_checkpoint(path, "a.weight")


def _torch_seeds(folder: Path) -> list[bytes]:
    import torch

    buffers = [io.BytesIO() for _ in range(3)]
    torch.save(_tensors(), buffers[0])
    torch.save({"model": _tensors(), "epoch": 3, "optimizer": {"lr": 0.1, "state": [1, 2]}}, buffers[1])
    torch.save(_tensors(), buffers[2], _use_new_zipfile_serialization=False)
    return [buffer.getvalue() for buffer in buffers]


def _torch_damage(draw: random.Random, seed: bytes) -> bytes:
    if draw.random() < 0.3 or not zipfile.is_zipfile(io.BytesIO(seed)):
        return damage_bytes(draw, seed, (*MAGICS, *PICKLE_TOKENS))
    return damage_zip(draw, unzipped(seed), PICKLE_TOKENS)


def _torchscript_seeds(folder: Path) -> list[bytes]:
    import warnings

    import torch
    from torch import nn

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        buffer = io.BytesIO()
        torch.jit.save(torch.jit.trace(nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4)).eval(), torch.zeros(1, 3, 5, 5)), buffer)
    return [buffer.getvalue()]


def _read_torchscript(path: Path) -> Any:
    from fathom.models.clip.torchscript_archive import is_torchscript, read_torchscript

    is_torchscript(path)
    read_torchscript(path)


# --- calibration


def _calibration_seeds(folder: Path) -> list[bytes]:
    from fathom.calibration.precision.precision_plan import Choice, PrecisionPlan, RegionPlan, Variant
    from fathom.calibration.ranges.table import CalibrationTable, TensorRange
    from fathom.calibration.search.objective import Budget, Score, failed
    from fathom.calibration.search.stage_times import StageTimes

    ranges = {"encoder": {"x": TensorRange(1.5, "mse", 2.0), "y": TensorRange(3.0, "max", 3.0, (1.0, 3.0))}}
    table = CalibrationTable(SHA, {"kind": "pairs", "count": 8}, "single-image", 8, 8, ("8 images are few.",), ranges, {"encoder": {"x": 2.0}})
    regions = (
        RegionPlan("encoder", "a", "norm", ("a/N_0",), Choice("fp32"), "because", {"fp16": failed("overflow").to_json()}, 0),
        RegionPlan("encoder", "b", "feed-forward", ("b/M_0",), Choice("int8", "mse", 0.5), "", {}, 12),
    )
    variants = (Variant("all fp32", 2.0, Score(0.1, 0.9, 0.0, 0.0, 0.0).to_json(), True),)
    overflows = ({"stage": "encoder", "tensor": "t", "region": "a", "peak": 1e6},)
    cost = {"kind": "modelled", "device": "x"}
    plan = PrecisionPlan(SHA, Budget().to_json(), "ground truth", cost, regions, ("f",), {"encoder": "s."}, overflows, variants)
    times = StageTimes("a card", {"encoder": {"fp16": 1.0, "int8": 0.5}}, SHA)
    return [json.dumps(item.to_json()).encode() for item in (table, plan, times)]


def _read_calibration(path: Path) -> Any:
    """A table, a precision plan, times: each as all three."""
    from fathom.calibration.artefact import read_artefact
    from fathom.calibration.precision.precision_plan import read_plan
    from fathom.calibration.ranges.table import read_table
    from fathom.calibration.search.stage_times import StageTimes
    from fathom.runtime.errors import InputError

    refused = []
    for read in (read_table, read_plan, lambda file: read_artefact(file, StageTimes.from_json, "holds no times", 1 << 20, "")):
        try:
            read(path)
        except InputError as error:
            refused.append(error)
    if len(refused) == 3:
        raise refused[0]


# --- data sets and pictures


def _mat_seeds(folder: Path) -> list[bytes]:
    import test_datasets_nyu

    test_datasets_nyu.write_labeled(folder / "good.mat", 2)
    test_datasets_nyu.write_splits(folder / "splits.mat", [2], [1])
    return [(folder / "good.mat").read_bytes()]


def _read_mat(path: Path) -> Any:
    _look(f"nyu:{path}:all:raw")


def _splits_seeds(folder: Path) -> list[bytes]:
    _mat_seeds(folder)
    return [(folder / "splits.mat").read_bytes()]


def _read_splits(path: Path) -> Any:
    _look(f"nyu:{path.with_name('good.mat')}:test:raw")


def _png(pixels: np.ndarray, **how: Any) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, **{"format": "PNG", **how})
    return buffer.getvalue()


def _pair(folder: Path) -> None:
    (folder / "rgb.png").write_bytes(_png(np.zeros((6, 8, 3), np.uint8)))
    (folder / "meta.json").write_text(json.dumps({"depth_scale": 1000, "size": [8, 6]}))


def _depth_seeds(folder: Path) -> list[bytes]:
    _pair(folder)
    return [_png(np.arange(48, dtype=np.uint16).reshape(6, 8) * 1000)]


def _meta_seeds(folder: Path) -> list[bytes]:
    _pair(folder)
    (folder / "depth.png").write_bytes(_png(np.arange(48, dtype=np.uint16).reshape(6, 8) * 1000))
    return [json.dumps({"depth_scale": 1000, "size": [8, 6], "intrinsics_fx_fy_cx_cy": [8, 8, 4, 3], "dataset": "NYU"}).encode()]


def _read_pair(path: Path) -> Any:
    _look(f"pairs:{path.parent}")


def _look(text: str) -> None:
    """Open data as ``depth-calibrate`` does, and look at the first samples."""
    from fathom.calibration.observation.images import Chosen

    data = Chosen(text)
    data.provenance()
    for number in range(min(2, len(data))):
        data[number]


def _photo_seeds(folder: Path) -> list[bytes]:
    from PIL import Image

    draw = np.random.default_rng(0)
    rgb, deep = draw.integers(0, 256, (12, 16, 3), dtype=np.uint8), draw.integers(0, 65536, (12, 16), dtype=np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    forms = ({"format": "JPEG", "exif": exif}, {"format": "WEBP"}, {"format": "TIFF", "compression": "tiff_lzw"}, {"format": "GIF"}, {"format": "BMP"})
    return [_png(rgb), _png(deep), _png(draw.integers(0, 256, (12, 16, 4), dtype=np.uint8)), *(_png(rgb, **form) for form in forms)]


def _read_photo(path: Path) -> Any:
    from fathom.runtime.photo.photo import read_photo

    read_photo(path)


def _list_seeds(folder: Path) -> list[bytes]:
    _pair(folder)
    (folder / "d").mkdir(exist_ok=True)
    for name in ("rgb_1.png", "d/rgb_2.png"):
        (folder / name).write_bytes((folder / "rgb.png").read_bytes())
    for name in ("sync_depth_1.png", "d/sync_depth_2.png"):
        (folder / name).write_bytes(_depth_seeds(folder)[0])
    lines = "rgb_1.png sync_depth_1.png 518.9\n# one more\n/d/rgb_2.png /d/sync_depth_2.png 518.9\nrgb_1.png None 1\n"
    return [lines.encode(), "\ufeff".encode() + lines.replace("\n", "\r\n").replace("/", "\\").encode(), lines.replace(" ", ",").encode("utf-16")]


def _read_list(path: Path) -> Any:
    """As NYU's list and as KITTI's."""
    from fathom.runtime.errors import InputError

    refused = []
    for kind in ("nyu-folder", "kitti"):
        try:
            _look(f"{kind}:{path.parent}:{path}")
        except InputError as error:
            refused.append(error)
    if len(refused) == 2:
        raise refused[0]


def _refer_seeds(folder: Path) -> list[bytes]:
    import pickle

    home = folder / "refcoco"
    home.mkdir(exist_ok=True)
    (folder / "train2014").mkdir(exist_ok=True)
    names = [f"COCO_train2014_{number:012d}.jpg" for number in (1, 2)]
    for name in names:
        (folder / "train2014" / name).write_bytes(_png(np.zeros((6, 8, 3), np.uint8), format="JPEG"))
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


def _read_refer(path: Path) -> Any:
    from fathom.benchmarks.accuracy.mask_command import open_masks
    from fathom.runtime.errors import InputError

    source = open_masks(f"refer:{path.parent.parent}:refcoco:val")
    for number in range(min(2, len(source))):
        try:
            source[number]
        except (ValueError, OSError) as error:
            raise InputError(str(error)) from error


def _bag_seeds(folder: Path) -> list[bytes]:
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


def _read_bag(path: Path) -> Any:
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


def _pickled(draw: random.Random, seed: bytes) -> bytes:
    return damage_bytes(draw, seed, PICKLE_TOKENS)


TORCH = ("torch", "fathom.models.checkpoint", "fathom.models.clip.torchscript_archive")
CALIBRATION = ("fathom.calibration.ranges.table", "fathom.calibration.precision.precision_plan", "fathom.calibration.search.stage_times")
DATA = ("fathom.calibration.observation.images", "h5py", "scipy.io", "PIL.Image")
READERS: dict[str, Reader] = {
    "plan": Reader(_plan_seeds, _plan_damage, _read_plan, "x.plan", 15, ("fathom.runtime.commands.inspection",)),
    "plan, run": Reader(_plan_seeds, _open_damage, _read_open, "x.plan", 1, ("fathom.runtime.pipeline", "onnxruntime")),
    "bundle": Reader(_bundle_seeds, _manifest_damage, _read_bundle, "bundle/bundle.json", 12, ("fathom.runtime.commands.inspection",)),
    "contract": Reader(_contract_seeds, _manifest_damage, _read_contract, "c.json", 15, ("fathom.export.foreign.contract_file",)),
    "camera and scale": Reader(_small_json_seeds, _manifest_damage, _read_small_json, "k.json", 6, ("fathom.runtime.scale.camera_scale",)),
    "measurements": Reader(_csv_seeds, damage_bytes, _read_csv, "m.csv", 3, ("fathom.runtime.scale.measurements",)),
    "signature": Reader(_signature_seeds, damage_bytes, _read_signature, "x.minisig", 2, ("fathom.runtime.artefact.signature", "test_runtime_trust")),
    "safetensors": Reader(_safetensors_seeds, _safetensors_damage, _read_checkpoint, "x.safetensors", 9, TORCH),
    "torch checkpoint": Reader(_torch_seeds, _torch_damage, _read_checkpoint, "x.pt", 7, TORCH),
    "TorchScript archive": Reader(_torchscript_seeds, _torch_damage, _read_torchscript, "x.pt", 7, TORCH),
    "calibration": Reader(_calibration_seeds, _manifest_damage, _read_calibration, "t.json", 9, CALIBRATION),
    "NYU .mat": Reader(_mat_seeds, damage_bytes, _read_mat, "x.mat", 3, DATA),
    "NYU splits.mat": Reader(_splits_seeds, damage_bytes, _read_splits, "splits.mat", 2, DATA),
    "depth PNG": Reader(_depth_seeds, damage_bytes, _read_pair, "depth.png", 4, DATA),
    "pair's meta.json": Reader(_meta_seeds, _manifest_damage, _read_pair, "meta.json", 2, DATA),
    "photo": Reader(_photo_seeds, damage_bytes, _read_photo, "p.jpg", 4, ("PIL.Image", "fathom.runtime.photo.photo")),
    "list": Reader(_list_seeds, damage_bytes, _read_list, "l.txt", 2, DATA),
    "refs pickle": Reader(_refer_seeds, _pickled, _read_refer, "refcoco/refs(unc).p", 1, ("fathom.benchmarks.accuracy.mask_command", *DATA)),
    "MCAP": Reader(_bag_seeds, damage_bytes, _read_bag, "x.mcap", 1, ("rosbags.highlevel", "fathom.runtime.ros.bag", "fathom.runtime.ros.messages")),
}

if str(TESTS) not in sys.path:
    sys.path.insert(0, str(TESTS))
