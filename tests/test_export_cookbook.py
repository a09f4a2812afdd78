"""The contracts of docs/contracts on random-weight graphs of the published forms: depth as the authors' own formula makes it of the graph's numbers."""

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import fathom
from fathom.export.foreign.contract_file import read_contract
from fathom.export.foreign.foreign import write_foreign_bundle
from fathom.runtime.errors import UsageError
from fathom.runtime.photo.depth_map import Intrinsics
from fathom.runtime.pipeline import Pipeline

DOCS = Path(fathom.__file__).parent / "docs"
KERNEL = (np.random.default_rng(3).standard_normal((1, 3, 5, 5)) / 10).astype(np.float32)
IMAGENET = (np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225]))
HALF = (np.array([0.5] * 3), np.array([0.5] * 3))
FX = 700.0


def network(normalised):
    """conv and sigmoid by PyTorch: [3, h, w] -> [h, w]."""
    tensor = torch.from_numpy(np.ascontiguousarray(normalised, np.float32))[None]
    return torch.sigmoid(torch.nn.functional.conv2d(tensor, torch.from_numpy(KERNEL), padding=2))[0, 0].numpy()


def after(mean_std):
    return lambda x: network((x - mean_std[0][:, None, None]) / mean_std[1][:, None, None])


def mirrored(run):
    return lambda x: (run(x) + run(x[:, :, ::-1])[:, ::-1]) / 2


# name: (input, its shape, output, rank of the output, pixels [3, h, w] in [0, 1] -> what the authors' code makes of the output)
FORMS = {
    "midas-small": ("input", (1, 3, 256, 256), "output", 3, after(IMAGENET)),
    "midas-dpt": ("input", (1, 3, 384, 384), "output", 3, after(HALF)),
    "depth-anything-v2": ("pixel_values", ("b", 3, "h", "w"), "predicted_depth", 3, after(IMAGENET)),
    "depth-anything-v2-metric-indoor": ("pixel_values", ("b", 3, "h", "w"), "predicted_depth", 3, after(IMAGENET)),
    "depth-anything-3-metric": ("pixel_values", ("b", 3, 504, 504), "depth", 4, lambda x: after(IMAGENET)(x) * FX / 300),
    "metric3d": ("image", (1, 3, 616, 812), "pred_depth", 4, lambda x: network(255 * x / 1000) * FX / 1000),
    "monodepth2": ("input", (1, 3, 192, 640), "disp", 4, lambda x: 5.4 / (1 / 100 + (1 / 0.1 - 1 / 100) * network(x))),
    "zoedepth": ("pixel_values", ("b", 3, "h", "w"), "predicted_depth", 3, mirrored(after(HALF))),
    "fastdepth": ("0", (1, 3, 224, 224), "350", 4, network),
}


def graph(path, name, takes, shape, makes, rank):
    """The network of that form; Metric3D's takes pixels up to 255 and divides them itself."""
    weights = [numpy_helper.from_array(KERNEL, "kernel"), numpy_helper.from_array(np.float32(1000), "thousand")]
    nodes, last = [], takes
    if name == "metric3d":
        nodes, last = [helper.make_node("Div", [takes, "thousand"], ["scaled"])], "scaled"
    nodes += [helper.make_node("Conv", [last, "kernel"], ["c"], pads=[2] * 4), helper.make_node("Sigmoid", ["c"], ["s"])]
    if rank == 3:
        weights.append(numpy_helper.from_array(np.array([1]), "axes"))
    nodes.append(helper.make_node("Squeeze", ["s", "axes"], [makes]) if rank == 3 else helper.make_node("Identity", ["s"], [makes]))
    out = [shape[0], *([1] if rank == 4 else []), *shape[2:]]
    ends = [helper.make_tensor_value_info(takes, TensorProto.FLOAT, shape)], [helper.make_tensor_value_info(makes, TensorProto.FLOAT, out)]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", *ends, weights), opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("name", FORMS)
def test_each_contract_gives_what_the_authors_code_gives(name, tmp_path):
    takes, shape, makes, rank, truth = FORMS[name]
    contract = read_contract(DOCS / "contracts" / f"{name}.json")
    write_foreign_bundle(graph(tmp_path / "net.onnx", name, takes, shape, makes, rank), contract, tmp_path / "bundle")
    height, width = contract.contract.input.window
    photo = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)  # of the window's size: nothing is resized
    with Pipeline.open(tmp_path / "bundle") as pipeline:
        camera = Intrinsics(FX, FX, width / 2, height / 2)
        if contract.form.values == "focal-depth":
            with pytest.raises(UsageError, match="focal length"):
                pipeline.predict(photo)
        found = pipeline.predict(photo, intrinsics=camera)
    assert found.valid.all()
    np.testing.assert_allclose(found.values, truth(photo.transpose(2, 0, 1) / np.float32(255)), rtol=2e-4)


def test_the_page_names_every_contract():
    page = (DOCS / "contract.md").read_text()
    named = set(re.findall(r"\(contracts/([a-z0-9-]+)\.json\)", page))
    assert named == set(FORMS) == {path.stem for path in (DOCS / "contracts").glob("*.json")}
    assert json.loads(re.search(r"```json\n(.*?)```", page, re.S)[1]) == json.loads((DOCS / "contracts" / "fastdepth.json").read_text())
