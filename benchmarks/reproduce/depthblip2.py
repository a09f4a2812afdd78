"""DepthBLIP-2's tables."""

from __future__ import annotations

from .row import Paper, Row, Table, Training

METRICS = ("delta1", "delta2", "delta3", "abs_rel", "log10", "rmse")
FEW_SHOT = Training(shots=16)
Q_FORMER = Training(shots=16, flags={"learn": "qformer"})
NOTE = "the paper does not say which 16 training pictures it took; here seed 0 draws them"
DEPTHS = (
    "1.00,1.75,2.25,2.50,2.75,3.00,3.50",
    "1.00,1.50,2.00,2.25,2.50,2.75,3.00",
    "1.00,1.25,1.50,1.75,2.00,2.25,2.50",
    "2.00,2.50,3.00,3.25,3.50,3.75,4.00",
)
SCENES = {
    "bedroom": (
        "0.435 0.762 0.927 0.301 0.131 0.903",
        "0.392 0.710 0.906 0.299 0.143 0.967",
        "0.272 0.550 0.793 0.342 0.188 1.165",
        "0.415 0.713 0.876 0.443 0.147 1.003",
        "0.444 0.782 0.932 0.309 0.128 0.877",
    ),
    "kitchen": (
        "0.339 0.607 0.801 0.474 0.177 1.179",
        "0.330 0.622 0.808 0.425 0.175 1.186",
        "0.300 0.581 0.784 0.382 0.190 1.286",
        "0.264 0.504 0.687 0.750 0.221 1.405",
        "0.355 0.638 0.818 0.439 0.171 1.153",
    ),
    "bathroom": (
        "0.404 0.704 0.858 0.453 0.152 0.793",
        "0.440 0.743 0.889 0.381 0.138 0.721",
        "0.430 0.728 0.914 0.312 0.136 0.717",
        "0.204 0.433 0.673 0.834 0.236 1.308",
        "0.441 0.750 0.898 0.361 0.135 0.704",
    ),
}


def _row(name: str, label: str, numbers: str, **facts) -> Row:
    facts = {"network": "depthblip2", "evaluation": "depthblip2-nyu", **facts}
    return Row(name, label=label, published=dict(zip(METRICS, numbers.split(), strict=True)), **facts)


def _adaptive(name: str, label: str, numbers: str, **facts) -> Row:
    return _row(name, label, numbers, training=FEW_SHOT, note=NOTE, **facts)


def _depthclip() -> Row:
    return _row("depthclip", "DepthCLIP", "0.394 0.683 0.851 0.388 0.156 1.167", network="depthclip", evaluation="depthclip-nyu")


OURS = "0.401 0.707 0.898 0.363 0.153 1.132"
PART = "the paper does not say with which pictures and bins; here as the adaptive bins, 16 drawn with seed 0, and the prefix bins"
PAPER = Paper(
    "depthblip2",
    "DepthBLIP-2: Leveraging Language to Guide BLIP-2 in Understanding Depth Information",
    (
        ("C numbers are split to H times W", "a 16x16 map after the largest of three"),
        ("the bins adapt to the scene", "they are constants once trained"),
        ("BLIP-2", "the newest code takes InstructBLIP's Q-Former; its first version (v1) BLIP-2's with ViT-L, which the tables match"),
        ("means over pictures", "means over batches of 32, so that a short last batch weighs more"),
    ),
    (
        Table("1", "NYU Depth v2", (_depthclip(), _adaptive("depthblip2", "DepthBLIP-2", OURS))),
        Table(
            "2",
            "semantic distance classes",
            (
                _adaptive("original", "Original class", OURS),
                _adaptive("class-1", "Class 1", "0.389 0.693 0.896 0.368 0.155 1.144", settings={"wording": 1}),
                _adaptive("class-2", "Class 2", "0.395 0.690 0.894 0.361 0.153 1.154", settings={"wording": 2}),
                _adaptive("class-3", "Class 3", "0.392 0.692 0.887 0.359 0.156 1.148", settings={"wording": 3}),
            ),
        ),
        Table(
            "3",
            "fine-tuning strategies",
            (
                _depthclip(),
                _row("zero-shot", "DepthBLIP-2, 0-shot, prefix", "0.384 0.683 0.856 0.368 0.156 1.172"),
                _row("q-former", "DepthBLIP-2, Q-Former, prefix", "0.388 0.687 0.857 0.377 0.158 1.162", training=Q_FORMER, note=PART),
                _adaptive("mlp", "DepthBLIP-2, MLP, auto", OURS),
            ),
        ),
        Table(
            "4",
            "depth bins by scene",
            tuple(
                _row(f"{scene}-{bin_}", f"{scene}, depth bin {bin_}", numbers, part=f"scene={scene}", options={"bins": DEPTHS[bin_ - 1]})
                if bin_ < 5
                else _adaptive(f"{scene}-5", f"{scene}, adaptive depth bin", numbers, part=f"scene={scene}")
                for scene, rows in SCENES.items()
                for bin_, numbers in enumerate(rows, 1)
            ),
        ),
    ),
)
