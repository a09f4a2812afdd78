"""GPUs by name: published peak rates and bandwidths, for the modelled cost of a precision."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """Peak rates of a GPU.

    Args:
        name: of the card the rates are from.
        macs_per_ms: precision -> dense multiply-adds per millisecond; FP16 and BF16 with FP32 sums, FP32 on plain cores. A precision the card has no
            tensor cores for is not there.
        nbytes_per_ms: of its memory.
    """

    name: str
    macs_per_ms: dict[str, float]
    nbytes_per_ms: float


def _card(name: str, fp32: float, half: float, int8: float, gigabytes: float, fp8: float = 0.0) -> Card:
    """From TFLOPS, TOPS (two operations per multiply-add) and GB/s."""
    rates = {"fp32": fp32, "fp16": half, "bf16": half, "int8": int8} | ({"fp8": fp8} if fp8 else {})
    return Card(name, {precision: 1e9 * rate / 2 for precision, rate in rates.items()}, 1e6 * gigabytes)


# Dense rates. Where only a sparse one is published it is halved; where only the sums in FP16 are, FP16 with FP32 sums is half of that on GeForce cards.
CARDS: dict[str, Card] = {
    # NVIDIA Jetson Orin Nano Super data sheet (December 2024): 67 sparse INT8 TOPS, 102 GB/s, 1024 cores at 1.02 GHz; FP16 is half of INT8.
    "orin-nano": _card("Jetson Orin Nano 8 GB, 25 W", 2.09, 17, 33, 102),
    # "NVIDIA Jetson AGX Orin Series" technical brief v1.2: GPU alone 170 sparse INT8 TOPS and 5.3 FP32 TFLOPS, 204.8 GB/s; FP16 is half of INT8.
    "orin-agx": _card("Jetson AGX Orin 64 GB", 5.3, 42.5, 85, 204.8),
    # GeForce RTX 3060 product page: 13 shader and 101 (sparse) tensor TFLOPS, 3584 cores at 1.777 GHz, 192 bits of 15 Gbps. Rates per SM as of GA102.
    "rtx3060": _card("GeForce RTX 3060", 12.7, 25.5, 102, 360),
    # "NVIDIA Ampere GA102 GPU Architecture" v2.0, appendix A, table of the RTX 3090.
    "rtx3090": _card("GeForce RTX 3090", 35.6, 71, 284, 936),
    # "NVIDIA Ada GPU Architecture" v2.01, appendix A, table of the RTX 4090; FP8 with FP32 sums.
    "rtx4090": _card("GeForce RTX 4090", 82.6, 165.2, 660.6, 1008, fp8=330.3),
    # "NVIDIA RTX Blackwell GPU Architecture", appendix, table of the RTX 5090; FP8 with FP32 sums.
    "rtx5090": _card("GeForce RTX 5090", 104.8, 209.5, 838, 1792, fp8=419),
    # NVIDIA L4 data sheet: 30.3 TFLOPS, and sparse 242 FP16, 485 INT8, 485 FP8; 300 GB/s.
    "l4": _card("L4", 30.3, 121, 242, 300, fp8=242),
    # "NVIDIA H100 Tensor Core GPU Architecture", table of peak rates, SXM5; bandwidth of the H100 SXM data sheet.
    "h100": _card("H100 SXM", 66.9, 989.4, 1978.9, 3350, fp8=1978.9),
}
DEFAULT_CARD = "rtx3090"
