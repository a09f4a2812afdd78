"""EVP's tables (arXiv 2312.08548)."""

from __future__ import annotations

from .row import Paper, Row, Table

NYU = ("rmse", "delta1", "delta2", "delta3", "abs_rel", "log10")
KITTI = ("abs_rel", "sq_rel", "rmse", "rmse_log", "delta1", "delta2", "delta3")
VPD_SCENE = "each picture's own scene, as the published code reads it from the folder's name"
AGGREGATED = "the published weights carry one aggregated text, the setting of row 11; row 12 wants a caption for every picture"


def _numbers(metrics: tuple[str, ...], text: str) -> dict[str, str]:
    return dict(zip(metrics, text.split(), strict=True))


def _ablation(number: int, numbers: str, lacking: str = "", **facts) -> Row:
    facts = {"network": "evp", "label": f"row {number}", **facts}
    return Row(str(number), published=_numbers(("rmse", "abs_rel"), numbers), lacking=lacking, **facts)


NO_BINS = "EVP without its metric bins"
NO_IMAFR = "EVP without IMAFR"
CLASS_TEXT = "EVP with a class description instead of captions"
CAPTIONED = "wants weights that carry CLIP, and the captions that BLIP-2 wrote: --captions FILE, a JSON object from picture to caption"
OWN_TOKEN = "EVP with one text token for every picture"
VPD = {"network": "vpd", "note": VPD_SCENE}
PAPER = Paper(
    "evp",
    "EVP: Enhanced Visual Perception using Inverse Multi-Attentive Feature Refinement and Regularized Image-Text Alignment",
    (
        ("the latent is divided by its component-wise standard deviation", "one number for each data set divides it; the mean stays"),
        ("CLIP is frozen in the best row", "CLIP and the VAE's encoder learn at a hundredth of the rate"),
        ("1x1 convolutions in IMAFR", "3x3 convolutions of stride 2 and a shared GroupNorm"),
        ("50,000 NYU and 26,000 KITTI pictures for training, 697 of KITTI for testing", "lists of 24,231, 23,158 and 652"),
        ("depth ends at 10 m and 80 m", "the output has no upper bound"),
        ("one forward per picture is implied", "the NYU script takes several windows, each also mirrored"),
    ),
    (
        Table(
            "1",
            "NYU Depth v2",
            (
                Row("vpd", published=_numbers(NYU, "0.254 0.964 0.995 0.999 0.069 0.030"), label="VPD", **VPD),
                Row("evp", "evp", _numbers(NYU, "0.224 0.976 0.997 0.999 0.061 0.027"), "EVP", note=AGGREGATED),
            ),
        ),
        Table(
            "2",
            "KITTI",
            (
                Row(
                    "evp",
                    "evp",
                    _numbers(KITTI, "0.048 0.136 2.015 0.073 0.980 0.998 1.000"),
                    "EVP",
                    variant="kitti",
                    data="kitti",
                    protocol="kitti-benchmark",
                    evaluation="kitti-garg",
                    note="no KITTI weights are published: give your own",
                ),
            ),
        ),
        Table(
            "3",
            "RefCOCO, overall IoU in per cent",
            (
                Row(
                    "vpd",
                    "evp-refer",
                    {"oiou": "73.25"},
                    "VPD",
                    data="refcoco",
                    evaluation="",
                    protocol="",
                    lacking="VPD for referring segmentation (EVP's without IMAFR)",
                ),
                Row(
                    "evp",
                    "evp-refer",
                    {"oiou": "76.35"},
                    "EVP",
                    data="refcoco",
                    evaluation="",
                    protocol="",
                    note="split val of division unc, every sentence; compared at the network's window as published (evaluation refer-window)",
                ),
            ),
        ),
        Table(
            "4",
            "design choices on NYU Depth v2",
            (
                _ablation(1, "0.254 0.069", **VPD),
                _ablation(2, "0.243 0.066", f"{NO_BINS} and {CLASS_TEXT}"),
                _ablation(3, "0.242 0.066", CLASS_TEXT),
                _ablation(4, "0.238 0.065", CLASS_TEXT),
                _ablation(5, "0.263 0.073", OWN_TOKEN),
                _ablation(6, "0.229 0.062", OWN_TOKEN),
                _ablation(7, "0.228 0.063", CLASS_TEXT),
                _ablation(8, "0.234 0.064", NO_IMAFR),
                _ablation(9, "0.228 0.063", NO_BINS),
                _ablation(10, "0.227 0.062", "EVP with one text token for the data set"),
                _ablation(11, "0.226 0.062", note="what the published weights on the hub are"),
                _ablation(12, "0.224 0.061", settings={"captions": 1}, note=CAPTIONED),
            ),
        ),
    ),
)
