"""Maps corrected by a camera's scale and shift, after a check that the correction was made for this network, protocol and camera."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import InputError
from ..photo.depth_map import DepthMap, Origin
from .camera_scale import CameraScale


def refuse_scale(scale: CameraScale, kind: str, origin: Origin, protocol: str, scene: str | None = None) -> None:
    """Raise unless maps of that kind, network, protocol and scene (told, or built into the network) can be corrected so.

    Raises:
        InputError: if the network's output is not metric, or the correction was measured with another network, protocol or scene.
    """
    if kind != "metric":
        raise InputError(f"the network's output is {kind}, without a unit", wanted="metric depth for a scale", fix="leave --scale out")
    scale.refuse_other(origin.network, protocol, scene or origin.scene)


def corrected(maps: Sequence[DepthMap], scale: CameraScale | None, mask_edges: bool = False, scene: str | None = None) -> list[DepthMap]:
    """The maps, without flying pixels if asked for, and corrected if there is a correction.

    Raises:
        InputError: if it was measured with another network, protocol, scene or camera than a map's, or the metres hang on a camera that only one of
            the two was told.
        AccuracyError: if it leaves a map no depth above zero.
    """
    if mask_edges:
        maps = [depth.without_flying() for depth in maps]
    if scale is None:
        return list(maps)
    for depth in maps:
        camera = (depth.intrinsics.fx, depth.values.shape[1]) if depth.intrinsics else ()
        scale.refuse_other(depth.origin.network, depth.protocol, scene or depth.origin.scene, *camera)
        if depth.camera and scale.network and bool(scale.fx) != (depth.camera == "told"):
            was, now = ("with", "without") if scale.fx else ("without", "with")
            raise InputError(f"{scale.name} was measured {was} --intrinsics, on which this network's metres hang", fix=f"measure it again {now} them")
    return [depth.corrected(scale.scale, scale.shift_m, scale.words) for depth in maps]
