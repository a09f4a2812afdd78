"""The one table of GPUs that plans for TensorRT-RTX are built for: builder, doctor and documentation go by it."""

from __future__ import annotations

from types import ModuleType

ON_THE_JETSON = "build with --backend tensorrt on the Jetson itself"
ON_THAT_MACHINE = "build with --backend tensorrt on that machine"
RTX_TARGETS = {  # compute capability -> why it is refused; empty: built for
    "sm75": f"TensorRT-RTX cannot compile FP32 matrix products for Turing, and Turing in the list fails the whole build; {ON_THAT_MACHINE}",
    "sm80": "",
    "sm86": "",
    "sm87": f"TensorRT-RTX does not run on Jetson Orin; {ON_THE_JETSON}",
    "sm89": "",
    "sm90": f"TensorRT-RTX does not list data-centre Hopper; {ON_THAT_MACHINE}",
    "sm100": f"TensorRT-RTX does not list data-centre Blackwell; {ON_THAT_MACHINE}",
    "sm110": f"TensorRT-RTX does not run on Jetson Thor; {ON_THE_JETSON}",
    "sm120": "",
    "sm121": "",
}
BUILT_FOR = tuple(target for target, refused in RTX_TARGETS.items() if not refused)


FP8_FROM = 89  # compute capability of Ada, whose tensor cores are the first with FP8


def why_no_fp8(target: str) -> str:
    """Why a compute capability (``sm86``) computes nothing in FP8; empty if it does."""
    number = target[2:] if target.startswith("sm") else target
    return "" if number.isdigit() and int(number) >= FP8_FROM else f"{target} has no FP8 tensor cores, which begin with sm{FP8_FROM}"


def why_refused(target: str) -> str:
    """Why no plan for TensorRT-RTX is built for a compute capability (``sm75``); empty if one is."""
    return RTX_TARGETS.get(target, f"it is not among the targets TensorRT-RTX compiles for; {ON_THAT_MACHINE}")


def why_not_here(trt: ModuleType, target: str) -> str:
    """Why the installed package runs no plan on a GPU: ours are not built for it, or this release does not list it. Empty if it does, and
    always for packages of plain TensorRT, which have no list."""
    if not hasattr(trt, "ComputeCapability"):
        return ""
    if not hasattr(trt.ComputeCapability, target.upper()):
        return f"{trt.__version__} does not list {target}"
    return why_refused(target)
