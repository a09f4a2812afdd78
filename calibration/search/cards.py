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


# Dense rates from NVIDIA's own papers: "Ampere GA102" v2.1, "Ada" v2.01 and "RTX Blackwell" GPU architecture, "Jetson AGX Orin series" v1.2 (its
# GPU alone, without the two DLAs), the module data sheet of Orin Nano 8 GB in its 25 W mode, the data sheets of L4 and H100 SXM. Sparse figures
# are halved. FP8 is with FP32 sums; the RTX 3060's tensor rates are the RTX 3090's by SMs and boost clock, which meets its published 101 sparse TFLOPS.
CARDS: dict[str, Card] = {
    "orin-nano": _card("Jetson Orin Nano 8 GB, 25 W", 2.09, 17, 33, 102),
    "orin-agx": _card("Jetson AGX Orin 64 GB", 5.3, 42.5, 85, 204.8),
    "rtx3060": _card("GeForce RTX 3060", 12.7, 25.5, 102, 360),
    "rtx3090": _card("GeForce RTX 3090", 35.6, 71, 284, 936),
    "rtx4090": _card("GeForce RTX 4090", 82.6, 165.2, 660.6, 1008, fp8=330.3),
    "rtx5090": _card("GeForce RTX 5090", 104.8, 209.5, 838, 1792, fp8=419),
    "l4": _card("L4", 30.3, 121, 242, 300, fp8=242),
    "h100": _card("H100 SXM", 66.9, 989.4, 1978.9, 3350, fp8=1978.9),
}
DEFAULT_CARD = "rtx3090"
