"""Intel NNCF on ONNX: post-training quantisation, with accuracy control, and its FP8 mode; in an environment of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .arms import Arm, run_script

DROP = 0.01  # of what moves the depth, on the photos it was calibrated with
CODE = """
import sys, numpy as np, onnx, nncf, onnxruntime
source, target, data, tensor, output, mode, drop = sys.argv[1:]
images, model = np.load(data, allow_pickle=False), onnx.load(source)
items = nncf.Dataset([image[None] for image in images], lambda image: {tensor: image})
def depth(model):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda image: session.run([output], {tensor: image})[0]
wanted = {image.tobytes(): depth(model)(image[None]) for image in images}
def stays(model, images):
    run, values = depth(model), []
    for image in images:
        found, wide = run(image), wanted[image[0].tobytes()]
        counts = wide > 0
        values.append(1 - float(np.mean(np.abs(found[counts] - wide[counts]) / wide[counts])))
    return float(np.mean(values)), values
from nncf.common.hardware import qspaces
if mode.endswith("signed"):  # its own parameter for that (signedness_to_force) is refused for every target device
    for space in (qspaces.q8_a, qspaces.q8_a_sym, qspaces.q8_a_ch):
        object.__setattr__(space, "signedness_to_force", True)
preset = nncf.QuantizationPreset.PERFORMANCE
if mode.startswith("plain"):
    found = nncf.quantize(model, items, preset=preset, subset_size=len(images), fast_bias_correction=False)
elif mode == "fp8":
    found = nncf.quantize(model, items, mode=nncf.QuantizationMode.FP8_E4M3, subset_size=len(images))
else:
    raw = nncf.Dataset([image[None] for image in images])
    found = nncf.quantize_with_accuracy_control(model, items, raw, stays, max_drop=float(drop), drop_type=nncf.DropType.ABSOLUTE,
        preset=preset, subset_size=len(images))
onnx.save(found, target)
"""
SIGNED = "signed activations"  # the form that TensorRT reads; by itself NNCF makes those behind a ReLU unsigned
MODES = {
    "plain": ("NNCF, bias correction", "int8"),
    "plain signed": (f"NNCF, bias correction, {SIGNED}", "int8"),
    "accuracy": (f"NNCF, accuracy-aware ({DROP:.0%} moved)", "int8"),
    "accuracy signed": (f"NNCF, accuracy-aware ({DROP:.0%} moved), {SIGNED}", "int8"),
    "fp8": ("NNCF, FP8", "fp8"),
}


def nncf_arms(python: Path, network: Path, tensors: tuple[str, str], inputs: np.ndarray, folder: Path) -> Iterator[Arm]:
    """Quantise a network; a failure is a result too.

    Args:
        network: of opset 21 or later.
        tensors: names of its input and output.
        inputs: to calibrate with, [N, C, H, W].
        folder: for the files.
    """
    data = folder / "nncf.npy"
    np.save(data, inputs, allow_pickle=False)
    for mode, (name, bits) in MODES.items():
        target = folder / f"nncf_{mode.replace(' ', '_')}.onnx"
        failed = run_script(python, CODE, str(network), str(target), str(data), *tensors, mode, str(DROP))
        yield Arm(name, bits, failed=failed) if failed else Arm(name, bits, target)
