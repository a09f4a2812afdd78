"""ONNX Runtime's ``quantize_static``: every calibrator, symmetric (what TensorRT takes) and with the defaults for CPUs; FP8 as far as it goes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .arms import Arm

METHODS = ("MinMax", "Entropy", "Percentile")
LAYERS = ["Conv", "ConvTranspose", "MatMul", "Gemm"]


class _Reader:
    """Calibration inputs for ``quantize_static``."""

    def __init__(self, name: str, inputs: np.ndarray):
        self._name, self._inputs = name, inputs
        self.rewind()

    def rewind(self) -> None:
        self._left: Iterator[np.ndarray] = iter(self._inputs)

    def get_next(self) -> dict[str, np.ndarray] | None:
        found = next(self._left, None)
        return None if found is None else {self._name: found[None]}


def onnxruntime_arms(network: Path, tensor: str, inputs: np.ndarray, folder: Path) -> Iterator[Arm]:
    """Quantise a network.

    Args:
        network: of opset 18 or later.
        tensor: name of its input.
        inputs: to calibrate with, [N, C, H, W].
        folder: for the files.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    clean = folder / "clean.onnx"
    quant_pre_process(str(network), str(clean), skip_symbolic_shape=True)
    symmetric = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
    settings: list[tuple[str, str, str, Any, Any, dict[str, bool]]] = []
    for method in METHODS:
        settings.append((f"{method}, symmetric", "int8", method, QuantType.QInt8, QuantType.QInt8, symmetric))
        settings.append((f"{method}, asymmetric", "int8", method, QuantType.QUInt8, QuantType.QInt8, {}))
    for method in ("Distribution", "MinMax"):
        settings.append((f"FP8, {method}", "fp8", method, QuantType.QFLOAT8E4M3FN, QuantType.QFLOAT8E4M3FN, symmetric))
    for title, bits, method, activation, weight, extra in settings:
        name, target = f"ONNX Runtime, {title}", folder / f"onnxruntime_{len(title)}_{method}.onnx"
        try:
            quantize_static(
                str(clean),
                str(target),
                _Reader(tensor, inputs),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=LAYERS,
                per_channel=True,
                activation_type=activation,
                weight_type=weight,
                calibrate_method=getattr(CalibrationMethod, method),
                extra_options=extra,
            )
        except Exception as error:  # whatever a peer raises is its result
            yield Arm(name, bits, failed=(str(error).strip().splitlines() or [type(error).__name__])[0][:300])
        else:
            yield Arm(name, bits, target)
