"""The photos of a run: files, folders, globs and lists, here or in a bucket, and rows of Parquet; each with the name of its outputs."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError, missing_package
from ..files import read_text
from ..photo.photo import find_photos, is_named_as_photo, unique_stems
from ..sequences import zip_equal

URI = re.compile(r"[a-z][a-z0-9+.-]*://.+", re.S)
LIST, PARQUET = ".txt", ".parquet"
MOST_LIST_BYTES = 1 << 30
PICTURE_COLUMNS = ("photo", "image", "picture", "bytes", "jpg", "jpeg", "png", "content", "data")
NAME_COLUMNS = ("name", "path", "file_name", "filename", "file", "key", "id", "uri", "url")


@dataclass(frozen=True)
class Rows:
    """Photos in Parquet.

    Args:
        path: for the file system.
        filesystem: pyarrow's, or None for local files.
        picture, name: columns with the bytes of picture files (or a struct that holds ``bytes``), and with what each is called.
    """

    path: str
    filesystem: Any
    picture: str
    name: str


@dataclass
class Sources:
    """What was found.

    Args:
        names: path of a file, or what a row is called -> name of its outputs, relative and without ending.
        files: pyarrow's file systems (None for local files) with the paths to read from them.
        rows: Parquet.
    """

    names: dict[str, str] = field(default_factory=dict)
    files: list[tuple[Any, list[str]]] = field(default_factory=list)
    rows: list[Rows] = field(default_factory=list)


def load_arrow() -> Any:
    """The package ``pyarrow``, with its file systems.

    Raises:
        EnvironmentMismatchError: if it is not installed.
    """
    try:
        import pyarrow.fs
    except ImportError as error:
        raise missing_package("pyarrow", "ray", "the library by which Ray reads and writes") from error
    return pyarrow


def is_uri(text: str) -> bool:
    """Whether it names something in a bucket (``s3://…``) rather than a local path."""
    return bool(URI.fullmatch(text))


def is_parquet(text: str) -> bool:
    """Whether it names Parquet: a file or a folder, here or in a bucket (whose address may end in ``?key=value``)."""
    return (text.partition("?")[0] if is_uri(text) else text).rstrip("/").endswith(PARQUET)


def find_sources(arguments: list[str], on_message: Callable[[str], None] = lambda text: None) -> Sources:
    """Expand what a user typed. ``x.txt`` is a list of photos, one per line; ``x.parquet`` a file or folder of rows.

    Raises:
        InputError: if something is not there, holds no photo, or two rows are called the same.
    """
    sources, local = Sources(), []
    found: list[tuple[str, str]] = []  # key, and what to name its outputs after
    for argument in _unlisted(arguments):
        if is_parquet(argument):
            rows = _rows(argument)
            sources.rows.append(rows)
            found += [(word, word if is_named_as_photo(Path(word)) else f"{word}.row") for word in _called(rows)]
        elif is_uri(argument):
            filesystem, some = _expand(argument)
            sources.files.append((filesystem, [path for path, _ in some]))
            found += some
        else:
            local.append(argument)
    if local:
        photos = find_photos(local, on_message)
        some = [(str(photo.path.resolve()), photo.stem + photo.path.suffix) for photo in photos]
        sources.files.append((None, [path for path, _ in some]))
        found += some
    keys = [key for key, _ in found]
    if len(set(keys)) < len(keys):
        seen: set[str] = set()
        twice = next(key for key in keys if key in seen or seen.add(key))
        raise InputError(f"two photos are called {twice!r}", wanted="a name of its own for each, as outputs are named by it")
    for key, relative in found:
        if not [part for part in relative.split("/") if part not in ("", ".", "..", ".row")]:
            raise InputError(f"a photo is called {key!r}", wanted="a name that a file can have")
    sources.names.update(zip_equal(keys, unique_stems([(f"/{key.strip('/')}", relative) for key, relative in found])))
    return sources


def _unlisted(arguments: list[str]) -> list[str]:
    found = []
    for argument in arguments:
        if is_uri(argument) or not argument.lower().endswith(LIST) or not Path(argument).is_file():
            found.append(argument)
            continue
        try:
            found += [line for line in map(str.strip, read_text(argument, MOST_LIST_BYTES).splitlines()) if line and not line.startswith("#")]
        except (OSError, ValueError) as error:
            raise InputError(f"{argument} cannot be read as a list ({error})", wanted="one photo per line") from error
    return list(dict.fromkeys(found))


def _filesystem(uri: str) -> tuple[Any, str]:
    fs = load_arrow().fs
    try:
        return fs.FileSystem.from_uri(uri)
    except Exception as error:  # ArrowInvalid and whatever a driver raises
        raise InputError(f"{uri} cannot be opened ({' '.join(str(error).split())[:300]})", wanted="s3://…, gs://… or what pyarrow knows") from error


def _expand(uri: str) -> tuple[Any, list[tuple[str, str]]]:
    """File system, and of each photo the path and what to name its outputs after."""
    fs = load_arrow().fs
    plain, mark, query = uri.partition("?")  # such as endpoint_override: no wildcard in addresses
    parts = plain.split("/")
    fixed = next((index for index, part in enumerate(parts) if index > 2 and glob.has_magic(part)), None)
    filesystem, base = _filesystem("/".join(parts[:fixed]) + mark + query)
    base = base.rstrip("/")
    try:
        if fixed is None:
            info = filesystem.get_file_info(base)
            if info.type == fs.FileType.File:
                return filesystem, [(base, base.rpartition("/")[2])]
            items = filesystem.get_file_info(fs.FileSelector(base)) if info.type == fs.FileType.Directory else []
            fits = re.compile(r"[^/]+")
        else:
            items = filesystem.get_file_info(fs.FileSelector(base, recursive=True, allow_not_found=True))
            fits = _pattern("/".join(parts[fixed:]))
    except OSError as error:
        raise InputError(f"{uri} cannot be listed ({' '.join(str(error).split())[:300]})", fix="check the address and the credentials") from error
    relative = ((item.path, item.path[len(base) :].lstrip("/")) for item in items if item.type == fs.FileType.File)
    found = sorted((path, name) for path, name in relative if fits.fullmatch(name) and is_named_as_photo(Path(name)))
    if not found:
        raise InputError(f"{uri} holds no photos", wanted="files like .jpg or .png" + ("" if fixed else " directly in it; for folders in it /**/*.jpg"))
    return filesystem, found


def _pattern(words: str) -> re.Pattern[str]:
    """A glob as a regular expression; ``**`` crosses folders."""
    made = re.escape(words).replace(r"\*\*/", "(?:.*/)?").replace(r"\*\*", ".*").replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
    return re.compile(made.replace(r"\[", "[").replace(r"\]", "]").replace("[!", "[^"))


def _rows(argument: str) -> Rows:
    load_arrow()
    import pyarrow
    import pyarrow.dataset

    filesystem, path = _filesystem(argument) if is_uri(argument) else (None, str(Path(argument).resolve()))
    try:
        schema = pyarrow.dataset.dataset(path, format="parquet", filesystem=filesystem).schema
    except (OSError, ValueError) as error:
        raise InputError(f"{argument} is no Parquet ({' '.join(str(error).split())[:300]})", wanted="a file or a folder of them") from error
    types, kinds = pyarrow.types, {column.name: column.type for column in schema}

    def holds_bytes(kind: Any) -> bool:
        inside = [kind.field(index) for index in range(kind.num_fields)] if types.is_struct(kind) else []
        return types.is_binary(kind) or types.is_large_binary(kind) or any(part.name == "bytes" and holds_bytes(part.type) for part in inside)

    pictures = [name for name, kind in kinds.items() if holds_bytes(kind)]
    words = [name for name, kind in kinds.items() if types.is_string(kind) or types.is_large_string(kind) or types.is_integer(kind)]
    picture = next((name for name in PICTURE_COLUMNS if name in pictures), pictures[0] if len(pictures) == 1 else None)
    name = next((name for name in NAME_COLUMNS if name in words), words[0] if len(words) == 1 else None)
    if picture is None or name is None:
        was = f"{argument} has the columns {', '.join(f'{key} ({kind})' for key, kind in kinds.items())}"
        raise InputError(was, wanted=f"bytes of picture files in {' or '.join(PICTURE_COLUMNS[:3])}, and a name for each in {' or '.join(NAME_COLUMNS[:3])}")
    return Rows(path, filesystem, picture, name)


def _called(rows: Rows) -> list[str]:
    import pyarrow.dataset

    table = pyarrow.dataset.dataset(rows.path, format="parquet", filesystem=rows.filesystem).to_table(columns=[rows.name])
    return [str(word) for word in table[rows.name].to_pylist()]
