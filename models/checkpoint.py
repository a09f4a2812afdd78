"""Reading published checkpoints: never unpickling code, never holding a big file twice, refusing by name what does not fit."""

from __future__ import annotations

import json
import math
import pickle
import re
import struct
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..runtime.errors import InputError
from ..runtime.files import BoundedReader, sha256_of

MAX_HEADER_BYTES = 100 << 20  # of a safetensors file, as in the reference reader
NAMES_SHOWN = 8
FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
PLAIN_DTYPES = (*FLOAT_DTYPES, torch.int64, torch.int32)
SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
}
WRAPPERS = ("model", "state_dict", "model_state_dict", "module", "net", "network", "params", "weights")  # keys that training scripts put around them
EMA_WRAPPERS = ("model_ema", "state_dict_ema", "ema_state_dict", "ema", "params_ema")  # taken where there is nothing else
TORCH_ENDINGS = (".ckpt", ".pth", ".pt", ".bin", ".tar")
OTHER_KINDS = ((b"GGUF", "a GGUF file"), (b"\x89HDF", "an HDF5 file"), (b"\x1f\x8b", "a compressed file"))
ZIP = b"PK\x03\x04"
PICKLE, MAX_WRAPPERS = b"\x80", 4
AGAIN = "download it again, and compare its size and SHA-256 with the published ones"


@dataclass(frozen=True)
class Checkpoint:
    """A file of weights: its tensors by published name, any common prefix removed. Every tensor lies aligned to 64 bytes."""

    file: str
    nbytes: int
    sha256: str
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class Key:
    """Where a published tensor goes: this package's name, and the shape it has in the file."""

    own: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class KeyTable:
    """What a checkpoint of one network must hold.

    Args:
        wanted: published name -> ``Key``.
        constants: published names of constants of the network: they may be missing, and must have this value.
        counters: published names of counters that may be missing, with the value they then get.
        ignored: published names that may be there and are not used, with their shape (None: any).
    """

    wanted: dict[str, Key]
    constants: dict[str, Tensor] = field(default_factory=dict)
    counters: dict[str, Tensor] = field(default_factory=dict)
    ignored: dict[str, tuple[int, ...] | None] = field(default_factory=dict)


def read_checkpoint(path: str | Path, *anchors: str) -> Checkpoint:
    """Read ``.safetensors``, ``.ckpt``, ``.pth`` or ``.pt``.

    Args:
        anchors: names of which every checkpoint of the kind has one, the longest form first (see ``strip_prefix``); what stands before it
            in this file (``module.``, a wrapper class's attribute) is removed.

    Raises:
        InputError: if the file is missing, cut short, no checkpoint, or would run code when unpickled.
    """
    path = Path(path)
    tensors = read_tensors(path)
    return Checkpoint(path.name, path.stat().st_size, sha256_of(path), strip_prefix(tensors, *anchors))


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a file by the names they have in it; see ``read_checkpoint``."""
    path = Path(path)
    if path.is_dir():
        raise _refuse_folder(path)
    if not path.is_file():
        raise InputError(f"there is no file {path}", wanted="a .safetensors, .ckpt, .pth or .pt file")
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise InputError(f"{path.name} cannot be read ({error.strerror or error})", wanted="a readable file") from error
    if not start:
        raise InputError(f"{path.name} is empty", fix=AGAIN)
    if start.startswith(b"version https://"):
        raise InputError(f"{path.name} is a Git LFS pointer, not the weights", fix="git lfs pull, or download the file itself")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise InputError(f"{path.name} is a web page, not the weights", fix=AGAIN)
    if start.startswith((ZIP, PICKLE)) and start[8:9] != b"{":  # what it is decides, not what it is called
        if path.suffix.lower() == ".safetensors":  # PyTorch goes by the name
            raise InputError(f"{path.name} is a PyTorch checkpoint or another zip, no safetensors file", fix="rename it to .pt, or download it again")
        return _read_torch(path)
    if path.suffix.lower() == ".safetensors" or start[8:9] == b"{":
        return _read_safetensors(path)
    if path.suffix.lower() in TORCH_ENDINGS:
        return _read_torch(path)
    what = next((what for magic, what in OTHER_KINDS if start.startswith(magic)), "")
    was = f"{path.name} is {what}" if what else f"{path.name} has an unknown ending, and does not begin like a checkpoint"
    raise InputError(was, wanted=".safetensors, .ckpt, .pth, .pt or .pth.tar")


def _refuse_folder(path: Path) -> InputError:
    found = sorted(item.name for item in path.iterdir() if item.suffix.lower() in (".safetensors", *TORCH_ENDINGS))
    if any(item.name.endswith(".index.json") for item in path.iterdir()):
        return InputError(f"{path} is a folder, with weights in several files", wanted="one file", fix="save its state dict into one .safetensors")
    fix = f"give {path / found[0]}" if found else ""
    return InputError(f"{path} is a folder{f' with {len(found)} checkpoints' if found else ''}", wanted="a .safetensors, .ckpt, .pth or .pt file", fix=fix)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else MAX_HEADER_BYTES + 1
        if length > MAX_HEADER_BYTES:
            raise InputError(f"{path.name} is no safetensors file", fix=AGAIN)
        raw = file.read(length)
    try:
        header = json.loads(raw) if len(raw) == length else None
        ends = [entry["data_offsets"][1] for name, entry in (header or {}).items() if name != "__metadata__"]
        wanted = 8 + length + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise InputError(f"{path.name} is no safetensors file", fix=AGAIN) from error
    if header is None or size < wanted:
        said = f"{wanted:,} bytes" if header is not None else "more"
        raise InputError(f"{path.name} is cut short: it has {size:,} bytes", wanted=f"{said}, as its header says", fix=AGAIN)
    try:
        with safe_open(path, framework="pt", device="cpu") as checked, path.open("rb") as file:
            return {name: _read_aligned(file, checked, name, header[name], 8 + length) for name in checked.keys()}  # noqa: SIM118 (safe_open is no mapping)
    except (SafetensorError, ValueError, RuntimeError, OSError) as error:
        raise InputError(f"{path.name} is a broken safetensors file ({error})", fix=AGAIN) from error


def _read_aligned(file: BinaryIO, checked: safe_open, name: str, entry: dict, start: int) -> Tensor:
    """One tensor in memory of its own, which PyTorch aligns to 64 bytes.

    A mapped tensor lies wherever the file has it: kernels that meet unaligned memory are slower and add in another order, and
    overwriting the file changes a network that is running.
    """
    dtype = SAFETENSORS_DTYPES.get(entry["dtype"])
    if dtype is None:
        return checked.get_tensor(name).clone()
    tensor = torch.empty(entry["shape"], dtype=dtype)
    if tensor.numel():
        file.seek(start + entry["data_offsets"][0])
        if file.readinto(tensor.view(-1).view(torch.uint8).numpy()) != tensor.nbytes:
            raise OSError(f"tensor {name} is cut short")
    return tensor


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        zipped = zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # a damaged end, of a file of many disks
        zipped = False
    with path.open("rb") as file:
        if not zipped and file.read(4) == ZIP:
            raise InputError(f"{path.name} is cut short: it has {path.stat().st_size:,} bytes and no end", fix=AGAIN)
    if zipped:
        _refuse_other_zips(path)
    try:
        if zipped:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        else:
            with BoundedReader(path) as file:  # the old format believes any length that it reads
                content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refuse_pickle(path, str(error)) from error
    except Exception as error:  # PyTorch raises nearly anything on broken bytes (AssertionError, struct.error, BadZipFile, ...)
        raise InputError(f"{path.name} is a broken checkpoint ({str(error).splitlines()[0] if str(error) else type(error).__name__})", fix=AGAIN) from error
    content = _unwrap(content, path.name)
    return {name: tensor.detach().clone() for name, tensor in content.items()}  # mapped so far, and only what is wanted: see _read_aligned


def _unwrap(content: object, name: str) -> Mapping[str, Tensor]:
    """The state dict inside what a training script saved: under the usual keys, or the only one there is."""
    whole, depth = content, 0
    while isinstance(content, Mapping) and not _is_state_dict(content) and depth < MAX_WRAPPERS:
        inside = {key: value for key, value in content.items() if isinstance(value, Mapping)}
        key = next((key for key in (*WRAPPERS, *EMA_WRAPPERS) if key in inside), None)
        if key is None:
            found = [key for key, value in inside.items() if _holds_weights(value)]
            if len(found) > 1:
                raise InputError(f"{name} holds several state dicts: {', '.join(map(str, found))}", wanted="one", fix="save the one that is meant alone")
            if not found:
                break
            key = found[0]
        content, depth = inside[key], depth + 1
    if isinstance(content, Mapping) and _is_state_dict(content):
        return content
    found = ", ".join(map(str, list(whole)[:NAMES_SHOWN])) if isinstance(whole, Mapping) else type(whole).__name__
    raise InputError(f"{name} holds no state dict, but {found or 'nothing'}", wanted="tensors by name, as they are or under the key 'model'")


def _holds_weights(value: Mapping, depth: int = 0) -> bool:
    return _is_state_dict(value) or (depth < MAX_WRAPPERS and any(isinstance(one, Mapping) and _holds_weights(one, depth + 1) for one in value.values()))


def _is_state_dict(value: object) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


def _refuse_other_zips(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, RuntimeError):
        return  # PyTorch then says what is broken
    if any(name.endswith("/constants.pkl") for name in names) and any("/code/" in name for name in names):
        raise InputError(
            f"{path.name} is a TorchScript archive, a program with its weights",
            wanted="the weights alone",
            fix=f"on a machine you can lose: torch.save(torch.jit.load({path.name!r}, map_location='cpu').state_dict(), 'weights.pt')",
        )
    if names and not any(name.endswith("data.pkl") for name in names):
        raise InputError(f"{path.name} is a zip of {', '.join(names[:3])}", wanted="a checkpoint", fix="unpack it first")


def _refuse_pickle(path: Path, message: str) -> InputError:
    culprit = re.search(r"GLOBAL ([\w.]+)|[Uu]nsupported (?:global|class)\D*?([\w.]+\.\w+)", message)
    if culprit:
        name = culprit[1] or culprit[2]
        return InputError(
            f"{path.name} holds pickled Python code ({name}), which could do anything when loaded",
            wanted="tensors only",
            fix="on a machine you can lose, load it once with weights_only=False and save its ['model'] alone as .safetensors",
        )
    return InputError(f"{path.name} is no PyTorch checkpoint, or is damaged", fix=AGAIN)


def strip_prefix(tensors: dict[str, Tensor], *anchors: str) -> dict[str, Tensor]:
    """Remove what stands before an anchor, if it stands before every name; a wrapper such as DataParallel or Lightning put it there.

    Numbers without the prefix that are no weights (counters and sums of metrics that were saved along, one element each) are left out.

    Args:
        anchors: the first one that the file has, bare or behind a prefix, decides. Where one form of a file has an anchor inside a module
            (``query_tokens``, ``qformer.query_tokens``), an anchor of that form comes first.

    Raises:
        InputError: if other weights stand beside those with the prefix.
    """
    for anchor in anchors:
        if anchor in tensors:
            return tensors
        for name in tensors:
            if name.endswith("." + anchor):
                return _without(tensors, name[: -len(anchor)])
    return tensors


def _without(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    beside = [other for other in tensors if not other.startswith(prefix)]
    if any(tensors[other].numel() > 1 for other in beside):
        raise InputError(
            f"the network's tensors lie under the prefix {prefix!r}, and {len(beside)} others beside them: {', '.join(beside[:NAMES_SHOWN])}",
            wanted="one network",
            fix=f"save the tensors under {prefix!r} alone",
        )
    return {other[len(prefix) :]: tensor for other, tensor in tensors.items() if other.startswith(prefix)}


def by_rules(name: str, rules: Iterable[tuple[str, str]]) -> str:
    """The published name of a tensor, by the first rule (regular expression, expansion) that fits all of ``name``.

    Raises:
        ValueError: if no rule fits.
    """
    for pattern, published in rules:
        if match := re.fullmatch(pattern, name):
            return match.expand(published)
    raise ValueError(f"no rule for {name}")


def fill(module: nn.Module, checkpoint: Checkpoint, table: KeyTable, network: str) -> None:
    """Give ``module`` (usually on the meta device) exactly the tensors of the checkpoint, in FP32, without copying those that are.

    Raises:
        InputError: if a tensor is missing, unexpected, misshapen, of a foreign kind or not finite; up to ``NAMES_SHOWN`` are named.
    """
    have, kind = checkpoint.tensors, f"{checkpoint.file} does not fit {network}"
    may_lack = table.constants | table.counters
    complain(kind, "missing", [n for n in table.wanted if n not in have and n not in may_lack])
    complain(kind, "unexpected", [n for n in have if n not in table.wanted and n not in table.ignored])
    shapes = {n: key.shape for n, key in table.wanted.items()} | {n: s for n, s in table.ignored.items() if s is not None}
    wrong = [f"{n} {list(have[n].shape)} instead of {list(shape)}" for n, shape in shapes.items() if n in have and tuple(have[n].shape) != shape]
    complain(kind, "misshapen", wrong)
    targets = module.state_dict()
    broken, foreign, filled = [], [], {}
    for name, key in table.wanted.items():
        tensor, target = have.get(name, may_lack.get(name)), targets[key.own]
        if tensor.layout != torch.strided or tensor.dtype not in (PLAIN_DTYPES if name in may_lack else FLOAT_DTYPES):
            foreign.append(f"{name} ({tensor.dtype})")
        elif not finite(tensor):
            broken.append(name)
        elif name in table.constants and not torch.equal(tensor.double(), table.constants[name].double()):
            foreign.append(f"{name} (a constant of the network, with another value)")
        else:
            filled[key.own] = tensor.to(target.dtype).reshape(target.shape)
    complain(kind, "not finite", broken)
    complain(kind, "of another kind", foreign)
    module.load_state_dict(filled, strict=True, assign=True)
    module.requires_grad_(False).eval()


def complain(kind: str, what: str, names: Iterable[str]) -> None:
    """Refuse if there is any name.

    Raises:
        InputError: naming the first few and their number.
    """
    names = sorted(names)
    if names:
        rest = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
        raise InputError(f"{kind}: {len(names)} tensor(s) {what}: {', '.join(names[:NAMES_SHOWN])}{rest}", fix="give the checkpoint of this network")


def finite(tensor: Tensor) -> bool:
    """True if no element is NaN or Inf. One sum, and every element only where that overflows."""
    return not tensor.is_floating_point() or math.isfinite(tensor.sum(dtype=torch.float32).item()) or bool(tensor.isfinite().all())
