"""Readers of what the toolkit writes itself: plans, bundles, contracts, cameras, scales, measurements, signatures, calibration."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from hardening.mutate import damage_bytes, damage_json, damage_zip, json_bytes, unzipped, zipped

SMALL_PLAN = Path(__file__).parent.parent / "data" / "plans" / "small-0.1.0.plan"
SHA = "0" * 64


def plan_seeds(folder: Path) -> list[bytes]:
    return [SMALL_PLAN.read_bytes()]


def plan_damage(draw: random.Random, seed: bytes) -> bytes:
    kind = draw.randrange(10)
    if kind < 3:
        return damage_bytes(draw, seed)
    members = unzipped(seed)
    if kind < 8:  # the manifest says something odd, and its checksum is right
        members["plan.json"] = json_bytes(draw, damage_json(draw, json.loads(members["plan.json"])))
        return zipped(list(members.items()))
    return damage_zip(draw, members)


def read_plan(path: Path) -> Any:
    from fathom.runtime.artefact.plan import PlanFile
    from fathom.runtime.commands.inspection import describe

    with PlanFile.open(path) as plan:
        describe(plan.manifest)
        for name in plan.manifest.files:
            plan.read(name)


def open_damage(draw: random.Random, seed: bytes) -> bytes:
    members = unzipped(seed)
    members["plan.json"] = json.dumps(damage_json(draw, json.loads(members["plan.json"]))).encode("utf-8", "surrogatepass")
    return zipped(list(members.items()))


def read_open(path: Path) -> Any:
    """The plan's manifest says something odd about whole engines: opened, and shown a photo."""
    from fathom.runtime.errors import AccuracyError, EnvironmentMismatchError, InputError
    from fathom.runtime.pipeline import Pipeline

    try:
        with Pipeline.open(path, threads=1) as pipeline:
            pipeline.predict(np.zeros((32, 48, 3), np.uint8))
    except (EnvironmentMismatchError, AccuracyError) as error:  # it says that it is for another card, or its weights lie elsewhere and give NaN
        raise InputError(str(error)) from error


def bundle_seeds(folder: Path) -> list[bytes]:
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
    (folder / "c.json").write_bytes(contract_seeds(folder)[0])
    words = ["--onnx", str(folder / "g.onnx"), "--contract", str(folder / "c.json"), "-o", str(folder / "bundle"), "-q"]
    if not (folder / "bundle").exists() and export_command.main(words) != 0:
        raise RuntimeError("the bundle could not be exported")
    return [(folder / "bundle" / "bundle.json").read_bytes()]


def manifest_damage(draw: random.Random, seed: bytes) -> bytes:
    return damage_bytes(draw, seed) if draw.random() < 0.25 else json_bytes(draw, damage_json(draw, json.loads(seed)))


def read_bundle(path: Path) -> Any:
    from fathom.runtime.artefact.bundle import BundleDirectory
    from fathom.runtime.commands.inspection import describe

    with BundleDirectory.open(path.parent) as bundle:
        describe(bundle.manifest)


def contract_seeds(folder: Path) -> list[bytes]:
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


def read_contract(path: Path) -> Any:
    from fathom.export.foreign.contract_file import read_contract

    read_contract(path)


def small_json_seeds(folder: Path) -> list[bytes]:
    camera = {"fx": 518.9, "fy": 519.5, "cx": 325.6, "cy": 253.7, "width": 640, "height": 480}
    scale = {"form": "fathom-scale-1", "scale": 1.2, "shift_m": 0.05}
    return [json.dumps(item).encode() for item in (camera, {"intrinsics": [[500, 0, 320], [0, 500, 240], [0, 0, 1]]}, scale)]


def read_small_json(path: Path) -> Any:
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


def csv_seeds(folder: Path) -> list[bytes]:
    return [b"# photo,column,row,metres\na.jpg,10,20,1.5\n'b c.jpg', 3, 4, 2.25\nd.jpg,d_depth.png\n", "\ufeffa.jpg,1,2,3\r\n".encode()]


def read_csv(path: Path) -> Any:
    from fathom.runtime.scale.measurements import read_measurements

    read_measurements(path)


def signature_seeds(folder: Path) -> list[bytes]:
    import test_runtime_trust

    return [(test_runtime_trust.DATA / "signed.txt.minisig").read_bytes(), (test_runtime_trust.DATA / "owner.pub").read_bytes()]


def read_signature(path: Path) -> Any:
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


def calibration_seeds(folder: Path) -> list[bytes]:
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


def read_calibration(path: Path) -> Any:
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
