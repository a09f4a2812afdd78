"""The tensors of a TorchScript archive, read as data: nothing in the archive is executed.

OpenAI publishes CLIP (``RN50.pt``, ``ViT-B-32.pt``) as TorchScript. ``torch.jit.load`` would compile and run the code in the
archive, and ``torch.load(weights_only=True)`` refuses such files. The module tree in ``data.pkl`` is a pickle of a small dialect:
here its opcodes are interpreted one by one by a machine that has no opcode for calling anything. A class is only a name, an object
only a dictionary of attributes, and the few functions TorchScript writes are recognised by name and stand for plain data.
"""

from __future__ import annotations

import math
import pickletools
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...runtime.errors import InputError
from ...runtime.files import BoundedReader

STORAGES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
PLAIN_LISTS = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")
MAX_TREE_NBYTES = 64 << 20  # CLIP's module tree is far below 1 MB
MAX_MEMBERS = 100_000
MAX_VISITS = 100_000
MARK = object()


@dataclass(frozen=True)
class GlobalName:
    """A class or function by name; never looked up."""

    module: str
    name: str

    def __str__(self):
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, eq=False)
class StorageRef:
    """Where in the archive the numbers of a tensor are."""

    key: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True, eq=False)
class TensorRef:
    """A view on a storage."""

    storage: StorageRef
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class ModuleRecord:
    """A pickled module: its attributes and nothing else."""

    def __init__(self):
        self.attributes: dict[str, Any] = {}


def is_torchscript(path: Path | str) -> bool:
    """Whether the file is a zip with the code constants that only TorchScript archives have; reads the directory only."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError):
        return False
    return any(name.count("/") == 1 and name.endswith("/constants.pkl") for name in names)


def read_torchscript(path: Path | str) -> dict[str, Tensor]:
    """Every tensor attribute of the archived module tree by its dotted name, in the archive's own dtype.

    Raises:
        InputError: if the file cannot be read, is no TorchScript archive, or holds anything but modules, plain values and tensors
            whose storages lie whole and uncompressed in the archive.
    """
    path = Path(path)
    try:
        with BoundedReader(path) as file, zipfile.ZipFile(file) as archive:
            members = _members(archive, path.stat().st_size)
            root = _interpret(archive.read(members["data.pkl"]))
            return _tensors(root, archive, members)
    except OSError as error:
        raise InputError(f"{path.name} cannot be read: {error.strerror or error}", wanted="a TorchScript archive") from error
    except InputError as error:
        raise InputError(f"{path.name}: {error.was}", wanted=_WANTED, fix=_FIX) from error
    except (zipfile.BadZipFile, ValueError, TypeError, LookupError, EOFError, OverflowError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise InputError(f"{path.name} is broken: {error}", wanted=_WANTED, fix=_FIX) from error


_WANTED = "a TorchScript archive with plain modules and tensors, as OpenAI publishes CLIP"
_FIX = "download the file again and compare its SHA-256 with the published one"


def _members(archive: zipfile.ZipFile, file_nbytes: int) -> dict[str, zipfile.ZipInfo]:
    """The members by their name below the one top folder, checked before a byte of them is read."""
    infos = archive.infolist()
    if len(infos) > MAX_MEMBERS:
        raise InputError(f"{len(infos)} members")
    tops = {info.filename.split("/", 1)[0] for info in infos}
    members = {info.filename.split("/", 1)[-1]: info for info in infos}
    if len(tops) != 1 or len(members) != len(infos):
        raise InputError("its members are not one folder of different names")
    if "data.pkl" not in members or "constants.pkl" not in members:
        raise InputError("there is no data.pkl or no constants.pkl in it")
    if members["data.pkl"].file_size > MAX_TREE_NBYTES:
        raise InputError(f"its module tree has {members['data.pkl'].file_size} bytes")
    numbers = [info for name, info in members.items() if name.startswith("data/")]
    if any(info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size for info in numbers):
        raise InputError("its tensors are compressed")
    if sum(info.file_size for info in numbers) > file_nbytes:
        raise InputError("its tensors are larger than the file")
    if "byteorder" in members and (members["byteorder"].file_size > 16 or archive.read(members["byteorder"]) != b"little"):
        raise InputError("its byte order is not little")
    return members


def _interpret(tree: bytes) -> Any:
    """The value that a TorchScript pickle describes, made of records, tensor references and plain values."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def pop_to_mark() -> list[Any]:
        for index in range(len(stack) - 1, -1, -1):
            if stack[index] is MARK:
                items = stack[index + 1 :]
                del stack[index:]
                return items
        raise InputError("its module tree lacks a mark")

    for opcode, argument, _ in pickletools.genops(tree):
        match opcode.name:
            case "PROTO" | "FRAME":
                continue
            case "MARK":
                stack.append(MARK)
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(argument)
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "TUPLE":
                stack.append(tuple(pop_to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                items = tuple(stack[-count:])
                del stack[-count:]
                stack.append(items)
            case "APPEND":
                item = stack.pop()
                _as(list, stack[-1]).append(item)
            case "APPENDS":
                items = pop_to_mark()
                _as(list, stack[-1]).extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _as(dict, stack[-1])[key] = value
            case "SETITEMS":
                items = pop_to_mark()
                _as(dict, stack[-1]).update(zip(items[::2], items[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(GlobalName(*argument.split(" ", 1)))
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case "NEWOBJ":
                arguments, kind = stack.pop(), _as(GlobalName, stack.pop())
                if kind.module.split(".")[0] != "__torch__" or arguments != ():
                    raise InputError(f"its module tree makes an object of {kind}")
                stack.append(ModuleRecord())
            case "BUILD":
                attributes, record = _as(dict, stack.pop()), _as(ModuleRecord, stack[-1])
                record.attributes.update(attributes)
            case "REDUCE":
                arguments, function = _as(tuple, stack.pop()), _as(GlobalName, stack.pop())
                stack.append(_recognise(str(function), arguments))
            case "STOP":
                break
            case other:
                raise InputError(f"its module tree uses the pickle opcode {other}")
    if len(stack) != 1:
        raise InputError("its module tree does not end in one value")
    return stack[0]


def _as(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise InputError(f"its module tree has {type(value).__name__} where {kind.__name__} belongs")
    return value


def _storage(identifier: Any) -> StorageRef:
    """``("storage", torch.HalfStorage, "17", "cuda:0", 4096)``; the device is where it was saved and does not matter here."""
    if not isinstance(identifier, tuple) or len(identifier) != 5 or identifier[0] != "storage":
        raise InputError("its module tree refers to something that is no storage")
    _, kind, key, _, numel = identifier
    if not isinstance(kind, GlobalName) or kind.module != "torch" or kind.name not in STORAGES:
        raise InputError(f"its module tree has a storage of {kind}")
    if not isinstance(key, str) or not isinstance(numel, int) or numel < 0:
        raise InputError("its module tree has a storage without key or size")
    return StorageRef(key, STORAGES[kind.name], numel)


def _recognise(function: str, arguments: tuple) -> Any:
    """The plain data that a call in a TorchScript pickle stands for."""
    if function == "torch._utils._rebuild_tensor_v2" and len(arguments) in (6, 7):
        storage, offset, size, stride = arguments[:4]
        whole = all(isinstance(part, tuple) and all(type(n) is int and n >= 0 for n in part) for part in (size, stride))
        if not isinstance(storage, StorageRef) or type(offset) is not int or offset < 0 or not whole or len(size) != len(stride):
            raise InputError("its module tree has a tensor of no valid shape")
        return TensorRef(storage, offset, size, stride)
    if function == "collections.OrderedDict" and arguments == ():
        return {}
    if function.startswith("torch.jit._pickle."):
        name = function.rsplit(".", 1)[1]
        if name in PLAIN_LISTS and len(arguments) == 1:
            return arguments[0]
        if name == "restore_type_tag" and len(arguments) == 2:
            return arguments[0]
    raise InputError(f"its module tree wants {function} to be called")


def _tensors(root: Any, archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]) -> dict[str, Tensor]:
    """Walk the records and read the storages they refer to, each once."""
    storages: dict[str, Tensor] = {}
    found: dict[str, Tensor] = {}
    visits = 0

    def walk(record: ModuleRecord, prefix: str, above: tuple[ModuleRecord, ...]) -> None:
        nonlocal visits
        visits += 1
        if visits > MAX_VISITS or len(above) > 100 or record in above:
            raise InputError("its modules contain each other")
        for name, value in record.attributes.items():
            if not isinstance(name, str) or not name or "." in name:
                raise InputError(f"a module has an attribute called {name!r}")
            if isinstance(value, ModuleRecord):
                walk(value, f"{prefix}{name}.", (*above, record))
            elif isinstance(value, TensorRef):
                found[prefix + name] = _view(value, f"{prefix}{name}", storages, archive, members)

    walk(_as(ModuleRecord, root), "", ())
    return found


def _view(tensor: TensorRef, name: str, storages: dict[str, Tensor], archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]) -> Tensor:
    storage = tensor.storage
    if storage.key not in storages:
        info = members.get(f"data/{storage.key}")
        if info is None:
            raise InputError(f"the numbers of {name} are missing")
        if info.file_size != storage.numel * storage.dtype.itemsize:
            raise InputError(f"the numbers of {name} have {info.file_size} bytes, {storage.numel * storage.dtype.itemsize} were announced")
        raw = bytearray(archive.read(info))
        storages[storage.key] = torch.frombuffer(raw, dtype=storage.dtype).clone() if raw else torch.empty(0, dtype=storage.dtype)
    numbers = storages[storage.key]
    count = math.prod(tensor.size)
    last = tensor.offset + sum((size - 1) * stride for size, stride in zip(tensor.size, tensor.stride, strict=True))
    if numbers.dtype != storage.dtype or count > numbers.numel() or (count and last >= numbers.numel()):
        raise InputError(f"{name} reaches beyond its storage")
    return numbers.as_strided(tensor.size, tensor.stride, tensor.offset)
