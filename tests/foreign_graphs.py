"""Depth networks of others as the tests write them: a convolution and a sigmoid, a contract for it, and what it must give."""

import numpy as np
import onnxruntime as ort
import torch

from fathom.runtime.artefact.bundle import BundleDirectory


def contract_json(**changes):
    """A contract for a network of 32x48 pixels; ``changes`` are merged into its parts."""
    data = {
        "input": {"tensor": "x", "window": [32, 48], "canvas": [32, 48], "mean": [0.5] * 3, "std": [0.25] * 3},
        "output": {"tensor": "y", "kind": "metric", "unit": "m", "near": 0.1, "far": 10.0, "larger_is": "far", "upsample": "bilinear"},
        "protocols": [
            {
                "name": "single-image",
                "steps": [{"op": "resize", "height": 32, "width": 48, "interpolation": "bilinear", "min_width": 0}],
                "lefts": [0],
                "fill_lefts": [],
                "flip": False,
                "source": "a test",
            }
        ],
    }
    for part, values in changes.items():
        data[part] = {**data[part], **values}
    return data


H, W = 32, 48
KERNEL = (np.random.default_rng(3).standard_normal((1, 3, 5, 5)) / 10).astype(np.float32)


def conv_sigmoid(picture):
    """What the network gives, by PyTorch: float32 [n, 3, h, w] -> [n, 1, h, w] in (0, 1)."""
    return torch.sigmoid(torch.nn.functional.conv2d(torch.from_numpy(picture), torch.from_numpy(KERNEL), padding=2)).numpy()


def answer(bundle, picture):
    """What the bundle's graph gives for a canonical picture, float32 RGB [n, 3, h, w]."""
    with BundleDirectory.open(bundle) as opened:
        (stage,) = opened.manifest.stages
        (image,), (depth,) = stage.spec.inputs, stage.spec.outputs
        session = ort.InferenceSession(str(opened.path(stage.file)))
        assert [value.name for value in session.get_outputs()] == [depth.name]
        return session.run(None, {image.name: picture})[0]


def picture(count=1):
    return np.random.default_rng(4).uniform(0, 1, (count, 3, H, W)).astype(np.float32)


PLAIN = {"mean": [0] * 3, "std": [1] * 3}
