"""Whether a repository holds together: configurations read back, ensemble maps against the models, models against their ONNX graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from ...runtime.errors import InputError
from .config_text import load_protobuf, read_config
from .model_configs import TYPES

CONFIG, VERSION = "config.pbtxt", "1"
Kind = tuple  # (data type, dims)


def check_models(folders: dict[str, Path]) -> dict[str, Any]:
    """Check the models of one network.

    Args:
        folders: name of a model -> its folder.

    Returns:
        the ``ModelConfig`` of each, read back from its file.

    Raises:
        InputError: if a file is no configuration, an ensemble maps a tensor that a model does not have or that has another type or shape there, or a
            model differs from its graph.
    """
    configs = {}
    for name, folder in folders.items():
        try:
            text = (folder / CONFIG).read_text()
        except OSError as error:
            raise InputError(f"{folder / CONFIG} cannot be read ({error.strerror})") from error
        config = configs[name] = read_config(text, f"{name}/{CONFIG}")
        if config.name != name:
            raise InputError(f"{name}/{CONFIG} is for a model called {config.name!r}", wanted=f"the name of its folder, {name!r}")
    for name, config in configs.items():
        if config.platform == "ensemble":
            _check_ensemble(name, config, configs)
        elif config.backend == "onnxruntime":
            _check_graph(name, config, folders[name] / VERSION / "model.onnx")
    return configs


def _kinds(tensors: Any, most: int) -> dict[str, Kind]:
    """Types and shapes by name; the batch of models that batch is the first dimension."""
    return {tensor.name: (tensor.data_type, ((-1,) if most else ()) + tuple(tensor.dims)) for tensor in tensors}


def _check_ensemble(name: str, config: Any, configs: dict[str, Any]) -> None:
    known = _kinds(config.input, config.max_batch_size)
    for step in config.ensemble_scheduling.step:
        if step.model_name not in configs:
            raise InputError(f"{name}: a step wants the model {step.model_name!r}", wanted=f"one of {', '.join(sorted(configs))}")
        model = configs[step.model_name]
        if config.max_batch_size > model.max_batch_size:
            raise InputError(f"{name} batches {config.max_batch_size}, and its step {step.model_name} {model.max_batch_size}", wanted="no more than each step")
        takes, makes = _kinds(model.input, model.max_batch_size), _kinds(model.output, model.max_batch_size)
        if set(step.input_map) != set(takes) or not set(step.output_map) <= set(makes):
            differing = sorted((set(step.input_map) ^ set(takes)) | (set(step.output_map) - set(makes)))
            raise InputError(f"{name}: the step {step.model_name} maps {', '.join(differing)}", wanted=f"{sorted(takes)} in, some of {sorted(makes)} out")
        for key, value in step.input_map.items():
            if value not in known:
                raise InputError(f"{name}: {step.model_name} takes {value!r}, which no step before it makes", wanted=f"one of {', '.join(sorted(known))}")
            if known[value] != takes[key]:
                raise InputError(f"{name}: {value} is {_words(known[value])}, and {step.model_name} takes {_words(takes[key])}", wanted="the same")
        for key, value in step.output_map.items():
            if value in known:
                raise InputError(f"{name}: {step.model_name} makes {value!r}, which is there already", wanted="one step for each tensor")
            known[value] = makes[key]
    for tensor, kind in _kinds(config.output, config.max_batch_size).items():
        if known.get(tensor) != kind:
            there = _words(known[tensor]) if tensor in known else "made by no step"
            raise InputError(f"{name}: its output {tensor!r} is {there}", wanted=_words(kind))


def _check_graph(name: str, config: Any, path: Path) -> None:
    graph = onnx.load(str(path / "model.onnx" if path.is_dir() else path), load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    sides = (("takes", config.input, [t for t in graph.input if t.name not in weights]), ("makes", config.output, graph.output))
    for what, described, held in sides:
        wanted = {tensor.name: _kind(tensor) for tensor in held}
        found = _kinds(described, config.max_batch_size)
        for tensor in sorted(set(found) | set(wanted)):
            if tensor not in found or tensor not in wanted or not _alike(found[tensor], wanted[tensor]):
                says, holds = (_words(side[tensor]) if tensor in side else "nothing" for side in (found, wanted))
                raise InputError(f"{name}: its graph {what} {tensor} as {holds}, its configuration says {says}", wanted="the same")


def _kind(value: Any) -> Kind:
    proto, held = load_protobuf().DataType, value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(held.elem_type).name
    return proto.Value(TYPES[dtype]) if dtype in TYPES else 0, tuple(d.dim_value if d.HasField("dim_value") else -1 for d in held.shape.dim)


def _alike(described: Kind, held: Kind) -> bool:
    """A graph may leave a size open that the manifest, and so the configuration, knows."""
    sizes = len(described[1]) == len(held[1]) and all(size in (of, -1) or of == -1 for size, of in zip(held[1], described[1], strict=True))
    return described[0] == held[0] and sizes


def _words(kind: Kind) -> str:
    return f"{load_protobuf().DataType.Name(kind[0])} {list(kind[1])}"
