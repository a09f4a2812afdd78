"""What a failed CUDA call means for the user: no memory, a lost device, a machine that does not fit, or an error of our own."""

from __future__ import annotations

from ..errors import DeviceLostError, EnvironmentMismatchError, FathomError, OutOfMemoryError

NO_MEMORY = {"CUDA_ERROR_OUT_OF_MEMORY"}
LOST = {  # after any of these every further call in the process fails as well
    "CUDA_ERROR_ILLEGAL_ADDRESS",
    "CUDA_ERROR_LAUNCH_FAILED",
    "CUDA_ERROR_LAUNCH_TIMEOUT",
    "CUDA_ERROR_HARDWARE_STACK_ERROR",
    "CUDA_ERROR_ILLEGAL_INSTRUCTION",
    "CUDA_ERROR_MISALIGNED_ADDRESS",
    "CUDA_ERROR_INVALID_ADDRESS_SPACE",
    "CUDA_ERROR_INVALID_PC",
    "CUDA_ERROR_ASSERT",
    "CUDA_ERROR_ECC_UNCORRECTABLE",
    "CUDA_ERROR_NVLINK_UNCORRECTABLE",
    "CUDA_ERROR_CONTAINED",
    "CUDA_ERROR_TENSOR_MEMORY_LEAK",
    "CUDA_ERROR_EXTERNAL_DEVICE",
    "CUDA_ERROR_CONTEXT_IS_DESTROYED",
    "CUDA_ERROR_DEVICE_UNAVAILABLE",
    "CUDA_ERROR_DEINITIALIZED",
}
MACHINE = {
    "CUDA_ERROR_NO_DEVICE": "check the card with nvidia-smi, and CUDA_VISIBLE_DEVICES",
    "CUDA_ERROR_INVALID_DEVICE": "choose a device that nvidia-smi -L lists",
    "CUDA_ERROR_INSUFFICIENT_DRIVER": "update the NVIDIA driver",
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": "restart the machine: kernel module and driver library are of different versions",
    "CUDA_ERROR_SYSTEM_NOT_READY": "start the NVIDIA services (nvidia-fabricmanager on NVSwitch machines)",
    "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE": "remove the CUDA forward-compatibility package or update the NVIDIA driver",
    "CUDA_ERROR_STUB_LIBRARY": "install the NVIDIA driver: the libcuda that was found is a link-time stub",
    "CUDA_ERROR_DEVICE_NOT_LICENSED": "give this virtual GPU its licence",
    "CUDA_ERROR_MPS_SERVER_NOT_READY": "start the MPS server again",
    "CUDA_ERROR_NOT_SUPPORTED": "update the NVIDIA driver, or leave out what this device cannot do",
    "CUDA_ERROR_NO_BINARY_FOR_GPU": "python -m fathom.trt_plugins.build_kernels on this machine",
    "CUDA_ERROR_INVALID_IMAGE": "python -m fathom.trt_plugins.build_kernels on this machine",
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION": "update the NVIDIA driver, or run python -m fathom.trt_plugins.build_kernels on this machine",
    "CUDA_ERROR_INVALID_PTX": "python -m fathom.trt_plugins.build_kernels on this machine",
}
WORDS = {  # pycuda reports only the driver's description
    "out of memory": "CUDA_ERROR_OUT_OF_MEMORY",
    "an illegal memory access was encountered": "CUDA_ERROR_ILLEGAL_ADDRESS",
    "unspecified launch failure": "CUDA_ERROR_LAUNCH_FAILED",
    "the launch timed out and was terminated": "CUDA_ERROR_LAUNCH_TIMEOUT",
    "uncorrectable ECC error encountered": "CUDA_ERROR_ECC_UNCORRECTABLE",
    "an illegal instruction was encountered": "CUDA_ERROR_ILLEGAL_INSTRUCTION",
    "misaligned address": "CUDA_ERROR_MISALIGNED_ADDRESS",
    "context is destroyed": "CUDA_ERROR_CONTEXT_IS_DESTROYED",
    "no CUDA-capable device is detected": "CUDA_ERROR_NO_DEVICE",
    "invalid device ordinal": "CUDA_ERROR_INVALID_DEVICE",
    "CUDA driver version is insufficient for CUDA runtime version": "CUDA_ERROR_INSUFFICIENT_DRIVER",
    "no kernel image is available for execution on the device": "CUDA_ERROR_NO_BINARY_FOR_GPU",
    "device kernel image is invalid": "CUDA_ERROR_INVALID_IMAGE",
    "the provided PTX was compiled with an unsupported toolchain.": "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
}


def cuda_error(name: str, call: str, detail: str = "") -> FathomError:
    """The error for a failed call.

    Args:
        name: of the result, ``CUDA_ERROR_…``, or the driver's description of it.
        call: which function failed.
        detail: numbers that help, such as the memory that was asked for and the memory that is free.
    """
    name = WORDS.get(name, name)
    was = f"{call} failed with {name}" + (f" ({detail})" if detail else "")
    if name in NO_MEMORY:
        return OutOfMemoryError(was, fix="close other programs on this GPU, use a smaller --batch or fewer --streams, or a plan in fp16")
    if name in LOST:
        return DeviceLostError(was, wanted="a working GPU", fix="start the program again; if it happens again, look at dmesg for Xid messages")
    if name in MACHINE:
        return EnvironmentMismatchError(was, fix=MACHINE[name])
    return FathomError(was, fix="report this, together with the output of depth-doctor --json")
