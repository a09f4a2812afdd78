"""What an earlier ``depth-run`` has done already, and whether new results may stand beside it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    from ..photo.photo import PhotoFile
    from ..pipeline import Pipeline

    Targets = dict[PhotoFile, dict[str, Path]]


def split_done(targets: Targets) -> tuple[Targets, Targets]:
    """Photos all of whose files are there, and the others. Files get their name only when they are whole, so that being there says enough."""
    done = {photo: files for photo, files in targets.items() if all(path.is_file() for path in files.values())}
    return done, {photo: files for photo, files in targets.items() if photo not in done}


def refuse_other_results(done: Targets, pipeline: Pipeline, protocol: str | None) -> None:
    """Two networks' or protocols' depth in one folder would pass for one: what the PNG files say of themselves must be what comes now.

    Raises:
        InputError: naming the first file of another network, protocol or scale.
    """
    from PIL import Image

    scale = "" if pipeline.scale is None else pipeline.scale.words
    wanted = {"Manifest-SHA256": pipeline.origin.sha256, "Protocol": pipeline.protocol(protocol).name, "Correction": scale}
    for path in (files[kind] for files in done.values() for kind in ("png16", "color") if kind in files):
        texts: dict[str, Any] = {}
        with suppress(OSError, ValueError, SyntaxError), Image.open(path, formats=("PNG",)) as image:
            texts = image.text
        for key, value in wanted.items():
            if (found := texts.get(f"Fathom-{key}", "")) != value:
                was = f"{path} is of another {key.split('-')[0].lower()} ({found[:40] or 'none'})"
                raise InputError(was, wanted=f"{value[:40] or 'none'}, as what comes now", fix="another --output, or --force instead of --skip-existing")


def refuse_other_scale(correction: Any, path: Path) -> None:
    """What has no room for words (NPY, EXR, videos) is known by ``scale.json`` beside it.

    Raises:
        InputError: if that tells of another correction than now, or of one where now is none.
    """
    if path.is_file() and (correction is None or path.read_text(errors="replace") != correction.json()):
        raise InputError(f"{path} says that the results in its folder have another scale", wanted="one scale per folder", fix="another --output")
