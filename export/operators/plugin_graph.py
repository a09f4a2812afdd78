"""A stage for a parser that has our plugins, and the library that has them."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx

from ...runtime.artefact.plugin_library import PluginLibrary
from ...runtime.tensorrt.operators.plugins import check_release, read_library
from ...trt_plugins.functions import without_bodies


def write_plugin_graph(source: Path) -> Path:
    """Write the graph of a stage without the bodies of our operators, beside it and with the same weights."""
    model = onnx.load(str(source), load_external_data=False)
    without_bodies(model)
    target = source.with_name(f"{source.stem}.plugins.onnx")
    target.write_bytes(model.SerializeToString(deterministic=True))
    return target


def library_beside(path: str | Path, folder: Path, version: str) -> PluginLibrary:
    """What a library is, and the same bytes in ``folder``, where the candidate of the plan is run before it gets its name.

    Args:
        version: of the TensorRT that is to load it.

    Raises:
        InputError: if it is no library of ours.
        EnvironmentMismatchError: if it is for another TensorRT.
    """
    library = read_library(path)
    check_release(path, library, version)
    shutil.copyfile(path, folder / library.file)
    return library
