"""MoA-DepthCLIP's tables (arXiv 2604.01118)."""

from __future__ import annotations

from .row import Paper, Row, Table, Training

FULL = ("delta1", "delta2", "delta3", "abs_rel", "log10", "rmse")
SHORT = ("abs_rel", "rmse", "delta1")
NOTE = "the paper publishes neither code nor evaluation details; DepthCLIP's crop is not used here, the Eigen crop is"
AGAIN = f"{NOTE}; the paper prints 10 bins and 4 experts twice, with other numbers: '+ MoA' of table 1 and K = 4 of table 2"
BASELINE = "nor how its baseline learns; here cross-entropy over the bins alone, without adapters and regression head"
EXPERTS = {1: "0.394 0.560 0.660", 2: "0.396 0.559 0.661", 4: "0.396 0.561 0.661", 8: "0.395 0.557 0.665", 16: "0.395 0.558 0.661"}
BINS = {40: "0.327 0.522 0.737", 64: "0.329 0.534 0.730", 128: "0.321 0.521 0.745", 180: "0.323 0.532 0.735", 200: "0.329 0.541 0.717"}


def _numbers(metrics: tuple[str, ...], text: str) -> dict[str, str]:
    return dict(zip(metrics, text.split(), strict=True))


def _trained(name: str, label: str, metrics: tuple[str, ...], numbers: str, experts: int = 4, bins: int = 128, regression: int = 1, note: str = NOTE) -> Row:
    settings = {"experts": experts, "bins": bins, **({} if regression else {"regression": 0})}
    return Row(name, "moa-depthclip", _numbers(metrics, numbers), label, training=Training(), settings=settings, note=note)


PAPER = Paper(
    "moa-depthclip",
    "Lightweight Prompt-Guided CLIP Adaptation for Monocular Depth Estimation (MoA-DepthCLIP)",
    (
        ("the gate has a temperature of 2", "the code of the precursor has none; that of the paper is unpublished"),
        ("the usual NYU evaluation is implied", "the precursor crops as on KITTI and scales by the median (evaluation adadepthclip-nyu)"),
    ),
    (
        Table(
            "1",
            "NYU Depth v2",
            (
                Row(
                    "depthclip",
                    "depthclip",
                    _numbers(FULL, "0.390 0.680 0.848 0.393 0.158 1.176"),
                    "DepthCLIP",
                    evaluation="depthclip-nyu",
                    note="the paper's own reproduction of DepthCLIP",
                ),
                _trained("baseline", "Our Baseline", FULL, "0.417 0.701 0.890 0.377 0.147 1.096", 0, 10, 0, f"{NOTE}; {BASELINE}"),
                _trained("composite-loss", "+ Composite Loss", FULL, "0.503 0.791 0.925 0.310 0.121 0.843", 0, 10),
                _trained("moa", "+ MoA", FULL, "0.508 0.797 0.931 0.308 0.120 0.821", bins=10, note=AGAIN),
                _trained("moa-depthclip", "MoA-DepthCLIP", FULL, "0.745 0.841 0.895 0.321 0.098 0.520"),
            ),
        ),
        Table(
            "2",
            "number of experts, 10 bins",
            tuple(_trained(str(k), f"K = {k}", SHORT, numbers, k, 10, note=AGAIN if k == 4 else NOTE) for k, numbers in EXPERTS.items()),
        ),
        Table("3", "number of bins, 4 experts", tuple(_trained(str(n), f"N = {n}", SHORT, numbers, bins=n) for n, numbers in BINS.items())),
    ),
)
