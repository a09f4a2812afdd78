"""How published depth numbers were obtained, as data."""

from __future__ import annotations

import math
from dataclasses import replace

from ...runtime.artefact.contract import Crop, Require, Resize
from .evaluation import BenchmarkCrop, Evaluation, Fractions, Rectangle

GARG = Fractions(0.40810811, 0.99189189, 0.03594771, 0.96405229)
EIGEN_KITTI = Fractions(0.3324324, 0.91351351, 0.0359477, 0.96405229)
NYU_SIZE = Require(480, 640)
EIGEN_NYU = Rectangle(45, 471, 41, 601)
PASTED_NYU = (Rectangle(45, 471, 46, 601), Rectangle(56, 472, 60, 604))
DEPTHCLIP_NYU = Evaluation(
    "depthclip-nyu",
    "DepthCLIP on NYU: columns 46:601, only where its 416x544 map was pasted (rows 56:472, columns 60:604), prediction and truth clamped",
    1e-3,
    10,
    PASTED_NYU,
    (NYU_SIZE,),
    prediction_above_m=1e-3,
    clamp_m=(1e-3, 10),
    clamp_truth=True,
)
EVALUATIONS: dict[str, Evaluation] = {
    evaluation.name: evaluation
    for evaluation in (
        Evaluation("full", "every pixel with a truth, nothing clamped; for data without a published protocol", 1e-3, math.inf),
        Evaluation("nyu-eigen", "EVP and VPD on NYU: Eigen crop rows 45:471, columns 41:601; nothing clamped", 1e-3, 10, (EIGEN_NYU,), (NYU_SIZE,)),
        DEPTHCLIP_NYU,
        replace(
            DEPTHCLIP_NYU,
            name="depthblip2-nyu",
            source="DepthBLIP-2 on NYU: DepthCLIP's pasted crop, through a float16 canvas; means over batches of 32, so a short last batch weighs more",
            half_canvas=True,
            group=32,
        ),
        Evaluation(
            "llm-mde-min-max",
            "LLM-MDE as coded: prediction and truth each stretched to [0, 1] per image and floored at 0.001; not metric, compares with nothing else. "
            "The pixels are those of its training mask (truth above 0.1 m, rows 45:472, columns 43:608); the published code names no others",
            0.1,
            10,
            (Rectangle(45, 472, 43, 608),),
            (NYU_SIZE,),
            min_max=True,
        ),
        Evaluation(
            "adadepthclip-nyu",
            "the precursor of MoA-DepthCLIP: photo and truth stretched to 224x224, KITTI's Garg fractions on NYU, predictions scaled by the "
            "median of 8 images together, pixels of the 8 pooled. Its published numbers may have come from this",
            1e-3,
            10,
            (GARG,),
            (Resize(224, 224, "bilinear-antialias"),),
            alignment="median",
            group=8,
            pooling="pixels",
        ),
        Evaluation(
            "fastdepth-nyu",
            "FastDepth on NYU: 250 rows, centre 228x304, 224x224; truth above 0.1 m and below the sensor's clip at 9.99 m",
            0.1,
            9.99,
            (),
            (Resize(250, 0, "bilinear", 304), Crop(228, 304, "center"), Resize(224, 224, "bilinear")),
        ),
        Evaluation(
            "kitti-garg",
            "EVP on KITTI: the Garg fractions are taken on the 352x1216 crop",
            1e-3,
            80,
            (GARG,),
            (Crop(352, 1216, "bottom-center"),),
        ),
        Evaluation(
            "kitti-garg-full",
            "BTS and AdaBins on KITTI: the Garg fractions are taken on the full picture; the prediction may cover its 352x1216 crop",
            1e-3,
            80,
            (GARG,),
        ),
        Evaluation("kitti-eigen", "Eigen's own fractions on the full KITTI picture", 1e-3, 80, (EIGEN_KITTI,)),
        Evaluation(
            "depthblip2-kitti",
            "DepthBLIP-2 (second code) on KITTI: its map pasted at the 352x1216 crop of the full picture, Garg fractions. The published code also "
            "resizes the sparse truth, mixing depths with zeros; that is not done here",
            1e-3,
            80,
            (GARG, BenchmarkCrop()),
            clamp_m=(1e-3, 80),
            clamp_truth=True,
            half_canvas=True,
            group=32,
        ),
    )
}
