"""The constants of the papers and of their published code. A key is a network's name, with a variant behind it where that has its own, or the
part that ``--learn`` names."""

from __future__ import annotations

from dataclasses import replace

from ..data.augmentation import Augmentation
from .recipe import Recipe

LIGHT = Augmentation(cut_depth=0.0)
VPD_LEARNS = (r"unet\.", r"text\.", r"aggregation\.", r"decoder\.", r"depth_head\.")
NEW_PARTS = (r"prototypes\.", r"reprogramming\.", r"l2d\.", r"head\.")
EVP = Recipe(
    source="EVP (arXiv 2312.08548), published NYU settings: the backbone learns at a hundredth of the rate",
    loss="silog",
    rate=2e-4,
    least_rate=3e-5,
    schedule="cosine",
    warmup=1 / 15,
    decay=0.1,
    batch=2,
    epochs=15,
    trained=(r"(?!text\.clip\.)",),
    slow=(r"unet\.", r"vae\."),
)
MOA = Recipe(
    source="MoA-DepthCLIP (arXiv 2604.01118), section 4: CLIP frozen but for its last four blocks, constant rate",
    loss="moa",
    rate=1e-5,
    least_rate=1e-5,
    schedule="constant",
    warmup=0.0,
    decay=1e-4,
    batch=8,
    epochs=30,
    trained=(r"adapters\.", r"classification\.", r"regression\.", r"visual\.transformer\.resblocks\.(8|9|10|11)\."),
    geometry="protocol",
    augmentation=LIGHT,
)
LLM_MDE = Recipe(
    source="LLM-MDE (arXiv 2409.01133), published arguments: low-rank adapters on the frozen ViT, BERT frozen but for queries, keys and values",
    loss="ssi",
    rate=1e-4,
    least_rate=1e-5,
    schedule="poly",
    warmup=0.0,
    decay=0.01,
    batch=32,
    epochs=50,
    trained=(
        *NEW_PARTS,
        r"vit\.blocks\.\d+\.attn\.qkv\.linear_",
        r"llm\.encoder\.layer\.\d+\.attention\.self\.",
    ),
    geometry="protocol",
    augmentation=Augmentation(turn=2.5),
)
LLM_MDE_PAPER = replace(
    LLM_MDE,
    source="LLM-MDE (arXiv 2409.01133), section III and table V, scheme 3: equation 3, low-rank adapters alone on both frozen transformers",
    loss="log_variance",
    rate=2e-5,
    least_rate=0.0,
    schedule="cosine",
    trained=(*NEW_PARTS, r"vit\.blocks\.\d+\.attn\.qkv\.linear_", r"llm\.encoder\.layer\.\d+\.attention\.self\.(query|key|value)\.lora_"),
    patience=5,
)
BINS = Recipe(
    source="DepthBLIP-2, few-shot adaptive bins: only the seven depths learn (published: 16 pictures, see --shots)",
    trained=(),
    loss="l1_and_rmse",
    rate=1e-3,
    least_rate=0.0,
    schedule="steps",
    warmup=0.0,
    decay=0.01,
    batch=16,
    epochs=50,
    geometry="protocol",
    augmentation=LIGHT,
)

UNREAD = r"former\.encoder\.layer\.{last}\.(intermediate|output)\."  # what the last layer makes of the words nobody looks at
QFORMER = replace(
    BINS,
    source="DepthBLIP-2, table 3: the Q-Former learns, the bins stay (published: nothing but that; rates and pictures are those of the bins)",
    trained=(rf"qformer\.(?!{UNREAD.format(last=11)})",),
)

PAPERS: dict[str, Recipe] = {
    "evp": EVP,
    "evp clip": replace(
        EVP,
        source="EVP (arXiv 2312.08548), published code, table 4 row 6: the text tower learns too, at a hundredth of the rate like the backbone",
        trained=(".",),
        slow=(*EVP.slow, r"text\.clip\."),
    ),
    "evp kitti": replace(
        EVP,
        source="EVP (arXiv 2312.08548), published KITTI settings: random windows of the 352x1216 benchmark crop",
        rate=3e-4,
        least_rate=1e-7,
        batch=3,
        geometry="kitti",
    ),
    "evp-refer": Recipe(
        source="EVP for referring segmentation (arXiv 2312.08548), published RefCOCO settings: backbone and text learn at a hundredth of the rate",
        loss="cross_entropy",
        rate=8e-5,
        least_rate=1e-7,
        schedule="cosine",
        warmup=1 / 20,
        decay=0.01,
        batch=3,
        epochs=20,
        slow=(r"unet\.", r"vae\.", r"text\.clip\."),
        geometry="protocol",
        augmentation=Augmentation(flip=0.0, colour=0.0, cut_depth=0.0),
    ),
    "vpd": Recipe(
        source="VPD (arXiv 2303.02153), published NYU settings: the U-Net learns at a hundredth of the rate, the VAE not at all",
        loss="silog",
        rate=5e-4,
        least_rate=3e-5,
        schedule="ramp",
        warmup=0.0,
        decay=0.1,
        batch=3,
        epochs=25,
        trained=VPD_LEARNS,
        slow=(r"unet\.",),
    ),
    "moa-depthclip": MOA,
    "llm-mde": LLM_MDE,
    "llm-mde paper": LLM_MDE_PAPER,
    "llm-mde paper-metric": LLM_MDE_PAPER,
    "depthblip2": BINS,
    "depthblip2 qformer": QFORMER,
}
