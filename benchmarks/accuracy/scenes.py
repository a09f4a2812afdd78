"""What a network that must be told the kind of scene is told of a sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...datasets.rooms.rooms import NYU_NAMES
from ...runtime.errors import InputError

if TYPE_CHECKING:
    from ...datasets.sample import Sample
    from ...runtime.artefact.contract import Contract


def scene_of(contract: Contract, sample: Sample) -> str | None:
    """The first of the network's scenes that the name of the sample and its folder holds, as VPD's published evaluation takes it from the folder's name;
    None for a network that is not told. So ``study_room_0004`` is a ``study``: what comes first in the network's list wins.

    Raises:
        InputError: if it holds none.
    """
    text = contract.text
    if text is None or text.kind != "choice":
        return None
    name = f"{NYU_NAMES.get(sample.scene, sample.scene)} {sample.id}"
    found = next((word for word in text.classes if word in name), None)
    if found is None:
        fix = "measure on data that names its rooms, or export the network with --scene NAME"
        raise InputError(f"{name.strip()!r} names none of the network's scenes", wanted=f"one of {', '.join(text.classes)}", fix=fix)
    return found
