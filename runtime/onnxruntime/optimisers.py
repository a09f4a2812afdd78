"""Optimisations of ONNX Runtime that may not touch our graphs, one that has to, and what its CPU kernels do with FP16."""

import platform

# The first two take the zero point of FP8, which is 0, for its least number: one leaves out a Relu before QuantizeLinear, and negative numbers pass;
# the other refuses the graph (seen in 1.32). With the symmetric INT8 of our graphs neither has anything to do. The third gives several nodes one zero
# point, and such graphs are refused with the entry below.
DISABLED = ["ReluQuantRewrite", "ClipQuantRewrite", "ConstantSharing"]

# Where x86 has no VNNI, ONNX Runtime's INT8 kernels add pairs of products in 16 bits, which overflow: sums were wrong by a fifth. With this entry of a
# session they take UINT8 weights there, which does not; on other processors it changes nothing.
EXACT_INT8 = ("session.x64quantprecision", "1")

# On 64-bit ARM it has FP16 kernels for its CPU, and they add up in FP16; on x86 it computes such nodes in FP32. Of a ViT-B/32 in FP16 (random weights) the
# depth's worst pixel was 1.0 % off there, and 0.04 % on x86.
SUMS_IN_FP16 = platform.machine().lower() in ("aarch64", "arm64")
