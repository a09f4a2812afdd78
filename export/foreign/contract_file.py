"""The JSON file that ``depth-export --contract`` reads: the contract of the bundle, and how the ONNX file itself wants and gives its numbers.

What only the file needs to know (channel order, pixels up to 255, disparity instead of depth) is turned into nodes of the graph at
export. The contract that travels in the bundle then always speaks of RGB pixels in [0, 1] and of depth.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runtime.artefact.contract import Contract, Protocol, Require
from ...runtime.artefact.spec import TENSOR_NAME
from ...runtime.errors import FathomError, InputError
from ...runtime.files import read_text
from ...runtime.photo.preprocess import check_windows, place_steps

MAX_CONTRACT_NBYTES = 1 << 20
FORMS = {"depth": (), "inverse-depth": ("scale",), "scaled-disparity": ("near", "far", "scale"), "focal-depth": ("focal_px",)}
TRIED_SIZES = ((480, 640), (640, 480), (375, 1242), (1080, 1920), (1920, 1080), (228, 304), (224, 224), (3000, 4000), (192, 640))


@dataclass(frozen=True)
class GraphForm:
    """How an ONNX file wants pixels and gives numbers.

    Args:
        input, output: names of its tensors; any string that ONNX allows.
        channels: ``rgb`` or ``bgr``.
        values: what the output's numbers are: ``depth``; ``inverse-depth`` (depth = scale / value); ``scaled-disparity`` (a share d in [0, 1]:
            depth = scale / (1 / far + (1 / near - 1 / far) d), as monodepth2's sigmoid); ``focal-depth`` (metres = value fx / focal_px).
        numbers: the constants of that form, by name.
    """

    input: str
    output: str
    channels: str = "rgb"
    values: str = "depth"
    numbers: tuple[tuple[str, float], ...] = ()

    def __post_init__(self):
        if self.channels not in ("rgb", "bgr"):
            raise ValueError(f"graph.channels: {self.channels!r}, wanted rgb or bgr")
        if self.values not in FORMS:
            raise ValueError(f"graph.values.form: {self.values!r}, wanted {', '.join(FORMS)}")
        found = dict(self.numbers)
        if set(found) != set(FORMS[self.values]) or not all(math.isfinite(value) and value > 0 for value in found.values()):
            raise ValueError(f"graph.values: {found}, wanted positive numbers {', '.join(FORMS[self.values]) or 'nothing'} for {self.values}")
        if self.values == "scaled-disparity" and not found["near"] < found["far"]:
            raise ValueError(f"graph.values: near {found['near']:g} and far {found['far']:g}, wanted near below far")


@dataclass(frozen=True)
class ForeignContract:
    """A contract, and the form of the graph that is to keep it."""

    contract: Contract
    form: GraphForm


def read_contract(file: str | Path) -> ForeignContract:
    """The JSON file that ``--contract`` names; see docs/contract.md.

    Raises:
        InputError: if it is missing or not a contract; the message says which key is wrong.
    """
    file = Path(file)
    try:
        data = json.loads(read_text(file, MAX_CONTRACT_NBYTES))
        return foreign_contract(data)
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror or error})", wanted="a contract as JSON") from error
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(
            f"{file} is not a contract: {error}", wanted="the keys input, output and protocols", fix="see docs/contract.md for an example"
        ) from error


def foreign_contract(data: Any) -> ForeignContract:
    """From JSON values.

    Raises:
        ValueError: if a key is missing, unknown or of the wrong kind, or if the numbers cannot be meant.
        OverflowError: if a whole number is too large for a float.
    """
    if not isinstance(data, dict):
        raise ValueError(f"an object was wanted, got {type(data).__name__}")
    data = {key: dict(value) if isinstance(value, dict) else value for key, value in data.items()}
    graph = data.pop("graph", {})
    if not isinstance(graph, dict) or set(graph) - {"channels", "pixels", "values"}:
        raise ValueError(f"graph: {graph!r}, wanted an object with channels, pixels and values, or some of them")
    names = {}
    for part in ("input", "output"):
        if isinstance(data.get(part), dict) and isinstance(data[part].get("tensor"), str):
            names[part] = data[part]["tensor"]
            data[part]["tensor"] = safe_name(names[part])
    if len(set(names.values())) == 2 and data["input"]["tensor"] == data["output"]["tensor"]:
        data["output"]["tensor"] = safe_name(f"depth_{data['output']['tensor']}")
    _fold_pixels(data, graph.get("pixels", 1))
    values = graph.get("values", {"form": "depth"})
    if isinstance(values, str):
        values = {"form": values}
    if not isinstance(values, dict) or not isinstance(values.get("form"), str):
        raise ValueError(f"graph.values: {values!r}, wanted an object with form")
    numbers = {"scale": 1.0} if "scale" in FORMS.get(values["form"], ()) else {}
    for name, value in values.items():
        if name != "form":
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ValueError(f"graph.values.{name}: {value!r} is no number")
            numbers[name] = float(value)
    focal = numbers.get("focal_px", 0.0) if values["form"] == "focal-depth" else 0.0
    if focal and isinstance(data.get("output"), dict):
        data["output"]["focal_px"] = focal
    contract = Contract.from_json(data)
    form = GraphForm(names["input"], names["output"], graph.get("channels", "rgb"), values["form"], tuple(sorted(numbers.items())))
    if form.values in ("inverse-depth", "scaled-disparity") and contract.output.larger_is != "far":
        raise ValueError(f"output.larger_is: {contract.output.larger_is!r}; graph.values {form.values} makes depth of the output, so larger is far")
    for protocol in contract.protocols:
        _require_possible(protocol, contract)
    return ForeignContract(contract, form)


def safe_name(name: str) -> str:
    """A tensor name that artefacts allow, as near to ``name`` as can be."""
    if TENSOR_NAME.fullmatch(name):
        return name
    kept = re.sub(r"[^A-Za-z0-9_./:-]", "_", name)[:200]
    return kept if TENSOR_NAME.fullmatch(kept) else f"tensor_{kept}"


def _fold_pixels(data: dict[str, Any], pixels: Any) -> None:
    """Mean and standard deviation for pixels up to 255 become those for pixels up to 1.

    Raises:
        ValueError: if they are neither.
    """
    if pixels not in (1, 255) or isinstance(pixels, bool):
        raise ValueError(f"graph.pixels: {pixels!r}, wanted 1 or 255: the largest pixel value that input.mean and input.std are for")
    picture = data.get("input")
    if not isinstance(picture, dict):
        return
    for key in ("mean", "std"):
        numbers = picture.get(key)
        if isinstance(numbers, (list, tuple)) and all(isinstance(n, (int, float)) and not isinstance(n, bool) for n in numbers):
            picture[key] = [n / pixels for n in numbers]
            if any(abs(n) > 1 for n in picture[key]):
                raise ValueError(
                    f"input.{key} {list(numbers)} cannot be of pixels in [0, {pixels}]; divide by 255"
                    + (', or say "graph": {"pixels": 255}' if pixels == 1 else "")
                )


def _require_possible(protocol: Protocol, contract: Contract) -> None:
    """Refuse a protocol that gives the network's window for no photo at all.

    Raises:
        ValueError: naming the protocol, with what happens to a photo of 480x640.
    """
    asked = tuple((step.height, step.width) for step in protocol.steps if isinstance(step, Require))
    problem = ""
    for height, width in (*asked, *TRIED_SIZES, contract.input.window):
        try:
            placed = place_steps(protocol.steps, height, width)
            check_windows(protocol, contract.input, *(placed[-1].after if placed else (height, width)))
            return
        except FathomError as error:
            problem = problem or f"of a photo of {height}x{width}: {error}"
    raise ValueError(f"protocol {protocol.name}: its steps never give the window {list(contract.input.window)} ({problem})")
