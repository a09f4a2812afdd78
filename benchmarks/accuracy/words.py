"""What a network is told of a sample beside its photo: the kind of scene, a caption, the camera."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...datasets.rooms.rooms import NYU_NAMES
from ...runtime.errors import InputError
from ...runtime.photo.depth_map import Intrinsics
from ...runtime.photo.preprocess import place_steps, shape_camera

if TYPE_CHECKING:
    from ...datasets.sample import Sample
    from ...runtime.artefact.contract import Contract, Step


def words_of(contract: Contract, sample: Sample) -> str | None:
    """What the network is told beside the photo: the sample's caption, or the kind of scene; None for a network that is not told anything.

    The scene is the first of the network's that the name of the sample and its folder holds, as VPD's published evaluation takes it from the
    folder's name. So ``study_room_0004`` is a ``study``: what comes first in the network's list wins.

    Raises:
        InputError: if there is no caption, or the name holds none of the scenes.
    """
    text = contract.text
    if text is not None and text.kind == "prompt":
        if not sample.caption:
            fix = "give --captions FILE, a JSON object from the photos' ids to captions"
            raise InputError(f"{sample.id} has no caption", wanted="one for every photo", fix=fix)
        return sample.caption
    if text is None or text.kind != "choice":
        return None
    name = f"{NYU_NAMES.get(sample.scene, sample.scene)} {sample.id}"
    found = next((word for word in text.classes if word in name), None)
    if found is None:
        fix = "measure on data that names its rooms, or export the network with --scene NAME"
        raise InputError(f"{name.strip()!r} names none of the network's scenes", wanted=f"one of {', '.join(text.classes)}", fix=fix)
    return found


def camera_of(contract: Contract, sample: Sample, steps: tuple[Step, ...]) -> Intrinsics | None:
    """The camera of a network whose metres depend on it, of the photo after the evaluation's steps; None for others, and where nobody knows it."""
    if not contract.output.focal_px or sample.intrinsics is None:
        return None
    return shape_camera(Intrinsics(*sample.intrinsics), place_steps(steps, *sample.rgb.shape[:2]))
