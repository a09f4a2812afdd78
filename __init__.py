"""Fathom: vision-language depth networks, from a trained PyTorch checkpoint to ONNX, TensorRT and metric depth on a device."""

__version__ = "0.1.0"
