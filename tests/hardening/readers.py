"""Every reader of a file from outside: how a good one is made, how it is damaged, and what the commands do with it.

A reader may take what it is given, or refuse it with exit code 3 or 10. Anything else is a fault.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hardening import artefact_readers as artefacts
from hardening import checkpoint_readers as checkpoints
from hardening import data_readers as data
from hardening.mutate import damage_bytes

TESTS = Path(__file__).parent.parent


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


TORCH = ("torch", "fathom.models.checkpoint", "fathom.models.clip.torchscript_archive")
CALIBRATION = ("fathom.calibration.ranges.table", "fathom.calibration.precision.precision_plan", "fathom.calibration.search.stage_times")
DATA = ("fathom.calibration.observation.images", "h5py", "scipy.io", "PIL.Image")
READERS: dict[str, Reader] = {
    "plan": Reader(artefacts.plan_seeds, artefacts.plan_damage, artefacts.read_plan, "x.plan", 15, ("fathom.runtime.commands.inspection",)),
    "plan, run": Reader(artefacts.plan_seeds, artefacts.open_damage, artefacts.read_open, "x.plan", 1, ("fathom.runtime.pipeline", "onnxruntime")),
    "bundle": Reader(
        artefacts.bundle_seeds, artefacts.manifest_damage, artefacts.read_bundle, "bundle/bundle.json", 12, ("fathom.runtime.commands.inspection",)
    ),
    "contract": Reader(artefacts.contract_seeds, artefacts.manifest_damage, artefacts.read_contract, "c.json", 15, ("fathom.export.foreign.contract_file",)),
    "camera and scale": Reader(
        artefacts.small_json_seeds, artefacts.manifest_damage, artefacts.read_small_json, "k.json", 6, ("fathom.runtime.scale.camera_scale",)
    ),
    "measurements": Reader(artefacts.csv_seeds, damage_bytes, artefacts.read_csv, "m.csv", 3, ("fathom.runtime.scale.measurements",)),
    "signature": Reader(
        artefacts.signature_seeds, damage_bytes, artefacts.read_signature, "x.minisig", 2, ("fathom.runtime.artefact.signature", "test_runtime_trust")
    ),
    "safetensors": Reader(checkpoints.safetensors_seeds, checkpoints.safetensors_damage, checkpoints.read_checkpoint, "x.safetensors", 9, TORCH),
    "torch checkpoint": Reader(checkpoints.torch_seeds, checkpoints.torch_damage, checkpoints.read_checkpoint, "x.pt", 7, TORCH),
    "TorchScript archive": Reader(checkpoints.torchscript_seeds, checkpoints.torch_damage, checkpoints.read_torchscript, "x.pt", 7, TORCH),
    "calibration": Reader(artefacts.calibration_seeds, artefacts.manifest_damage, artefacts.read_calibration, "t.json", 9, CALIBRATION),
    "NYU .mat": Reader(data.mat_seeds, damage_bytes, data.read_mat, "x.mat", 3, DATA),
    "NYU splits.mat": Reader(data.splits_seeds, damage_bytes, data.read_splits, "splits.mat", 2, DATA),
    "depth PNG": Reader(data.depth_seeds, damage_bytes, data.read_pair, "depth.png", 4, DATA),
    "pair's meta.json": Reader(data.meta_seeds, artefacts.manifest_damage, data.read_pair, "meta.json", 2, DATA),
    "photo": Reader(data.photo_seeds, damage_bytes, data.read_photo, "p.jpg", 4, ("PIL.Image", "fathom.runtime.photo.photo")),
    "list": Reader(data.list_seeds, damage_bytes, data.read_list, "l.txt", 2, DATA),
    "refs pickle": Reader(data.refer_seeds, data.pickled, data.read_refer, "refcoco/refs(unc).p", 1, ("fathom.benchmarks.accuracy.mask_command", *DATA)),
    "MCAP": Reader(data.bag_seeds, damage_bytes, data.read_bag, "x.mcap", 1, ("rosbags.highlevel", "fathom.runtime.ros.bag", "fathom.runtime.ros.messages")),
}

if str(TESTS) not in sys.path:
    sys.path.insert(0, str(TESTS))
