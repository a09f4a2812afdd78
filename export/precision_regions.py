"""Which nodes stay FP32: the rules live in ``calibration``, whose search must know them too."""

from ..calibration.precision_regions import FLOAT32_ONLY, fp32_nodes, module_path

__all__ = ["FLOAT32_ONLY", "fp32_nodes", "module_path"]
