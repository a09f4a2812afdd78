"""How far engines of each precision may be from the golden tensors."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerance:
    """What may differ; see ``comparison.Difference`` and ``comparison.compare_output``.

    The golden tensors are PyTorch's in FP32; those of an INT8, FP8 or INT4 plan are what its typed graph gives in ONNX Runtime, which was held against
    PyTorch when the plan was built, so that the error of quantisation, which was chosen, does not hide one of the compiler.

    - fp32: TensorRT without TF32 differs by the order of its sums: about sqrt(n) * 6e-8 for n terms, 1e-5 for the longest. 1e-4 leaves
      room for Winograd convolutions; ONNX Runtime is held to the same share of the greatest value. A single weight tensor that is off by
      1 % shows.
    - fp16: one rounding is at most 4.9e-4; some hundred of them in a row add up like sqrt(n): 7e-3 for 200. 2e-2 is three times that,
      as for graphs. Roundings go up as often as down, so the gain stays within 1e-3; 4e-3 detects a stage that is off by
      1 %; no bound detects a tensor whose influence is smaller than rounding.
    - bf16: one rounding is at most 3.9e-3, eight times that of FP16; on average over all values the gain still shows 1 %.
    - int8: engine and graph round the same numbers to the same steps, except where a sum in another order falls on the other side of a
      half: single values one step of 1/127 off, in some hundredths of them, and more in what follows. 0.1 and 6e-3.
    - fp8: the same, with steps of up to 1/16 of a value instead of 1/127 of the greatest.
    - int4: weights alone are rounded, once and for all when the plan is built; what is left is the FP16 around them.

    The depth at the end may differ by its mean relative error; of a mask, that share of pixels may change its class.

    Args:
        rms, gain: limits for every tensor between stages.
        depth: ``abs_rel`` of the depth, or ``changed_pixels`` of a mask.
    """

    rms: float
    gain: float
    depth: float


TOLERANCES = {
    "fp32": Tolerance(1e-4, 1e-4, 1e-3),
    "fp16": Tolerance(2e-2, 4e-3, 2e-2),
    "bf16": Tolerance(8e-2, 8e-3, 4e-2),
    "int8": Tolerance(1e-1, 6e-3, 5e-2),
    "fp8": Tolerance(1e-1, 6e-3, 5e-2),
    "int4": Tolerance(2e-2, 4e-3, 2e-2),
}
