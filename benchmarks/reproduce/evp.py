"""EVP's tables (arXiv 2312.08548)."""

from __future__ import annotations

from .row import Paper, Row, Table, Training

NYU = ("rmse", "delta1", "delta2", "delta3", "abs_rel", "log10")
KITTI = ("abs_rel", "sq_rel", "rmse", "rmse_log", "delta1", "delta2", "delta3")
VPD_SCENE = "each picture's own scene, as the published code reads it from the folder's name"
AGGREGATED = "the published weights carry one aggregated text, the setting of row 11; row 12 wants a caption for every picture"


def _numbers(metrics: tuple[str, ...], text: str) -> dict[str, str]:
    return dict(zip(metrics, text.split(), strict=True))


def _ablation(number: int, numbers: str, **facts) -> Row:
    facts = {"network": "evp", "label": f"row {number}", **facts}
    return Row(str(number), published=_numbers(("rmse", "abs_rel"), numbers), **facts)


def _trained(number: int, numbers: str, note: str, told: str = "", learn: str = "", **settings: int) -> Row:
    training = Training(flags={"learn": learn} if learn else {})
    return _ablation(number, numbers, training=training, settings=settings, captions=told, start=DIFFUSION, note=f"{note}; {LEARNED}")


REFER = "split val of division unc, every sentence; compared at the network's window as published (evaluation refer-window)"
DIFFUSION = "v1-5-pruned-emaonly.safetensors of Stable Diffusion 1.5"
ROOMS = "each picture's own scene: the mean of CLIP's vectors of ImageNet's 80 templates, as the published code of VPD has it"
ONE_ROOM = "one vector: the mean over all kinds of room of CLIP's vectors of ImageNet's 80 templates"
CAPTIONS = "wants the captions that BLIP-2 wrote, which were not published: --captions FILE, a JSON object from picture to caption, of training and test"
LEARNED = "the paper learns from 24,231 pictures (--train-data nyu-folder:DIR:LIST.txt), without them this row from the 795 of the .mat file"
MEAN = f"one vector, the mean over all captions; {CAPTIONS}"
REFER_START = "VPD's RefCOCO weights in the layout of MykolaL/evp_refer, as safetensors with CLIP ViT-L/14's text tower in it (VPD publishes them without)"
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
                    settings={"imafr": 0, "std": 0},
                    start=REFER_START,
                    note=f"{REFER}; EVP's network without IMAFR and without the latent's divisor",
                ),
                Row(
                    "evp",
                    "evp-refer",
                    {"oiou": "76.35"},
                    "EVP",
                    data="refcoco",
                    evaluation="",
                    protocol="",
                    note=REFER,
                ),
            ),
        ),
        Table(
            "4",
            "design choices on NYU Depth v2",
            (
                _ablation(1, "0.254 0.069", **VPD),
                _trained(2, "0.243 0.066", ROOMS, metric_bins=0, std=0, pooled=1, scenes=1),
                _trained(3, "0.242 0.066", ROOMS, std=0, pooled=1, scenes=1),
                _trained(4, "0.238 0.065", ROOMS, pooled=1, scenes=1),
                _trained(5, "0.263 0.073", CAPTIONS, "each", captions=1, pooled=1),
                _trained(6, "0.229 0.062", CAPTIONS, "each", "clip", captions=1, pooled=1),
                _trained(7, "0.228 0.063", ONE_ROOM, pooled=1),
                _trained(8, "0.234 0.064", MEAN, "mean", imafr=0, pooled=1),
                _trained(9, "0.228 0.063", MEAN, "mean", metric_bins=0, pooled=1),
                _trained(10, "0.227 0.062", MEAN, "mean", pooled=1),
                _ablation(11, "0.226 0.062", note="what the published weights on the hub are"),
                _trained(12, "0.224 0.061", CAPTIONS, "each", captions=1),
            ),
        ),
    ),
)
