"""Optimisations of ONNX Runtime that may not touch our graphs."""

# Both take the zero point of FP8, which is 0, for its least number: the first leaves out a Relu before QuantizeLinear, and negative numbers pass;
# the second refuses the graph (seen in 1.32). With the symmetric INT8 of our graphs neither has anything to do.
WRONG_FOR_FP8 = ["ReluQuantRewrite", "ClipQuantRewrite"]
