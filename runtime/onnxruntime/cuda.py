"""ONNX Runtime's CUDA provider, opened so that a fall-back to the CPU is an error."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from typing import Any

from ..errors import EnvironmentMismatchError
from ..jetson import read_jetson

PROVIDER = "CUDAExecutionProvider"
RECORD = "session.record_ep_graph_assignment_info"  # of release 1.24 and later: which provider computes which node
HEAVY = {  # kinds of nodes that take time; sizes and indices belong on the CPU
    *("Conv", "ConvTranspose", "FusedConv", "MatMul", "FusedMatMul", "Gemm", "FusedGemm", "Einsum", "Softmax", "Attention", "MultiHeadAttention"),
    *("LayerNormalization", "SkipLayerNormalization", "InstanceNormalization", "GroupNormalization", "BatchNormalization", "RMSNormalization"),
    *("Resize", "GridSample", "Erf", "Gelu", "BiasGelu"),
}


def gpu_package() -> str:
    """How to install a build of ONNX Runtime for CUDA."""
    if read_jetson():
        return "the onnxruntime-gpu that jetson-ai-lab builds for this JetPack (PyPI has none for Jetson)"
    return "pip uninstall -y onnxruntime && pip install --force-reinstall 'onnxruntime-gpu[cuda,cudnn]'"


def load_cuda(ort: Any) -> str:
    """Load CUDA and cuDNN from their pip packages, before the first session; returns ONNX Runtime's messages about it.

    Without this the provider finds only system-wide libraries, and ONNX Runtime goes on with the CPU. The call exists since release 1.21.

    Raises:
        EnvironmentMismatchError: if this ONNX Runtime has no CUDA provider.
    """
    providers = ort.get_available_providers()
    if PROVIDER not in providers:
        raise EnvironmentMismatchError(
            f"ONNX Runtime {ort.__version__} here has no CUDA provider (it has {', '.join(providers)})",
            wanted="a build of ONNX Runtime for CUDA",
            fix=f"{gpu_package()}; or --device cpu",
        )
    if not hasattr(ort, "preload_dlls"):
        return ""
    said = io.StringIO()
    with redirect_stdout(said):  # stdout is for results only
        ort.preload_dlls()
    return " ".join(said.getvalue().split())


def cuda_provider(index: int) -> tuple[str, dict[str, str]]:
    """The provider with its options: this GPU, and FP32 that is FP32 (TF32 keeps 10 bits of the mantissa)."""
    return PROVIDER, {"device_id": str(index), "use_tf32": "0"}


def require_cuda(session: Any, said: str) -> None:
    """Refuse a session that came without its CUDA provider.

    Args:
        session: just opened.
        said: what ``load_cuda`` returned.

    Raises:
        EnvironmentMismatchError: with what ONNX Runtime said.
    """
    if PROVIDER not in session.get_providers():
        raise EnvironmentMismatchError(
            "ONNX Runtime could not start its CUDA provider and fell back to the CPU" + (f" ({said[:400]})" if said else ""),
            wanted="the CUDA and cuDNN that this release is built for",
            fix="pip install 'onnxruntime-gpu[cuda,cudnn]', and a driver for its CUDA; or --device cpu",
        )


def left_on_cpu(session: Any) -> list[str]:
    """Kinds of heavy nodes that CUDA does not compute, each with its count; empty before release 1.24, which does not report it."""
    ask = getattr(session, "get_provider_graph_assignment_info", None)
    if ask is None:
        return []
    nodes = [node.op_type for part in ask() if part.ep_name != PROVIDER for node in part.get_nodes()]
    return [f"{nodes.count(kind)} {kind}" for kind in sorted(set(nodes) & HEAVY)]
