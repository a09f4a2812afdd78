"""Files and folders that are often given instead of a plan or a bundle: each is told by its name, with the command that it belongs to."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from ..errors import InputError

ONNX = "an ONNX file"
WANTED = "a plan made by depth-build, or a bundle made by depth-export"
BUNDLE_MANIFEST = "bundle.json"
OF_WEIGHTS = "depth-export --model NAME --weights FILE makes a bundle of it"
OF_ONNX = "depth-export --onnx FILE --contract CONTRACT.json -o bundle/ makes a bundle of it"
FROM_ONNX = "export the network to ONNX, then depth-export --onnx FILE --contract CONTRACT.json"
PICTURE = ("a picture", "the plan goes behind --engine, photos after it")
POINTER = ("a Git LFS pointer", "git lfs pull, or download the file itself")
CHECKPOINT = ("a PyTorch checkpoint", OF_WEIGHTS)
FIRST_BYTES = (  # offset, bytes, what it is, fix
    (0, (b"ftrt", b"ptrt", b"vtrt"), "a TensorRT engine alone", "depth-build makes plans: engines with what their numbers mean"),
    (0, (b"GGUF",), "a GGUF file of a language model", ""),
    (4, (b"TFL3",), "a TensorFlow Lite file", FROM_ONNX),
    (4, (b"ORTM",), "a model in ONNX Runtime's own format", "give the .onnx file that it was made of to depth-export --onnx"),
    (0, (b"\x89HDF",), "an HDF5 file", FROM_ONNX),
    (0, (b"\xff\xd8\xff", b"\x89PNG", b"RIFF"), *PICTURE),
    (4, (b"ftyp",), *PICTURE),
    (0, (b"version https://git-lfs",), *POINTER),
    (0, (b"<!DOCTYPE", b"<!doctype", b"<html", b"<HTML"), "a web page", "download the file itself"),
    (0, (b"<?xml",), "XML, such as OpenVINO's", FROM_ONNX),
    (0, (b"\x1f\x8b", b"\xfd7zXZ", b"BZh", b"\x28\xb5\x2f\xfd"), "a compressed file", "unpack it"),
    (257, (b"ustar",), "a tar archive", "unpack it"),
    (0, (b"{",), "JSON text", ""),
    (8, (b"{",), "a safetensors checkpoint", OF_WEIGHTS),
    (0, (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), *CHECKPOINT),
)
ZIP = b"PK\x03\x04"
ONNX_FIELDS = b"\x12\x1a\x22\x28\x32\x3a\x42"  # what follows the version of an ONNX file, as protobuf marks it
MAX_ONNX_VERSION = 64
IN_CHECKPOINTS = (b"data.pkl", b".format_version", b"constants.pkl")  # the first member of a PyTorch zip is one of these
LOOKED_AT = 512


def refuse_other_kinds(path: Path) -> None:
    """Look at a file that should be a plan.

    Raises:
        InputError: if it is something else that can be recognised: a part of a bundle, a checkpoint, an ONNX file, an engine, a picture …
    """
    if path.exists() and not path.is_file():  # a pipe or a device may keep its reader waiting for good
        raise InputError(f"{path} is no plain file", wanted=WANTED)
    try:
        with open(path, "rb") as file:
            head = file.read(LOOKED_AT)
    except OSError:
        return  # opening it reports why
    if not head.startswith(ZIP) and (bundle := _bundle_around(path)):
        raise InputError(f"{path} is a part of a bundle", wanted=WANTED, fix=f"give the whole bundle: {bundle}")
    what, fix = recognise(head)
    if head.startswith(ZIP) and path.suffix.lower() in (".pt", ".pth", ".ckpt", ".tar"):
        what, fix = CHECKPOINT
    if what:
        raise InputError(f"{path} is {what}, not a plan", wanted=WANTED, fix=fix)


def refuse_other_folders(path: Path) -> None:
    """Look at what should be a bundle and has no manifest.

    Raises:
        InputError: always, with what was found there.
    """
    if path.is_file():
        refuse_other_kinds(path)
        if path.suffix.lower() == ".plan":
            raise InputError(f"{path} is a plan, which is built already", wanted="a bundle, the directory that depth-export made")
        raise InputError(f"{path} is not a bundle", wanted="a directory made by depth-export")
    if not path.is_dir():
        raise InputError(f"{path} is not a bundle: it does not exist", wanted="a directory made by depth-export")
    names: list[str] = []
    with suppress(OSError):
        names = sorted(os.listdir(path))
    for name in names:
        if name.lower().endswith(".plan") or (path / name / BUNDLE_MANIFEST).is_file():
            raise InputError(f"{path} is not a bundle, but holds {name}", wanted=WANTED, fix=f"give {path / name}")
    for endings, what, fix in (((".onnx",), "ONNX files", OF_ONNX), ((".safetensors", ".bin", ".pt", ".pth", ".ckpt"), "checkpoints", OF_WEIGHTS)):
        if found := next((name for name in names if name.lower().endswith(endings)), ""):
            raise InputError(f"{path} is not a bundle: it holds {what} ({found}) and no {BUNDLE_MANIFEST}", wanted=WANTED, fix=fix)
    raise InputError(f"{path} is not a bundle (it holds no {BUNDLE_MANIFEST})", wanted="a directory made by depth-export")


def recognise(head: bytes) -> tuple[str, str]:
    """What a file is by its first bytes, and the way to go with it; two empty strings where they tell nothing, or it may be a plan."""
    if head.startswith(ZIP):
        return CHECKPOINT if any(name in head for name in IN_CHECKPOINTS) else ("", "")
    for offset, magics, what, fix in FIRST_BYTES:
        if head[offset:].startswith(magics):
            return what, fix
    if len(head) > 2 and head[0] == 8 and head[1] <= MAX_ONNX_VERSION and head[2] in ONNX_FIELDS:
        return ONNX, OF_ONNX
    return "", ""


def _bundle_around(path: Path) -> Path | None:
    """The bundle in whose folders a file lies."""
    return next((folder for folder in list(path.parents)[:2] if (folder / BUNDLE_MANIFEST).is_file()), None)
