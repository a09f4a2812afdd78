"""From a row and the user's files to the commands that make its numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...runtime.errors import InputError, UsageError
from .row import Row

STARTS = {  # network -> the file a row of it begins with; depth-export --list says where it is
    "evp": "model.safetensors of MykolaL/evp_depth",
    "evp-refer": "model.safetensors of MykolaL/evp_refer",
    "vpd": "the authors' NYU checkpoint (wl-zhao/VPD)",
    "depthclip": "OpenAI's RN50.pt",
    "moa-depthclip": "OpenAI's ViT-B-32.pt",
    "depthblip2": "LAVIS' blip2_pretrained_vitL.pth",
    "llm-mde": "model.safetensors of bert-base-uncased",
}
VISUAL = {"depthblip2": "LAVIS' clip_vit_L.pth", "llm-mde": "model.safetensors of timm's vit_base_patch16_224"}  # those that begin with two files
DOWNLOADED = ("evp", "evp-refer")  # whose file depth-export fetches from the hub
DATA_FILES = {
    "nyu": ("nyu_depth_v2_labeled.mat of NYU Depth v2, with splits.mat beside it", "--data nyu:FILE.mat", ("nyu", "nyu-folder")),
    "kitti": ("KITTI's raw pictures with the annotated depth maps, and the Eigen list", "--data kitti:DIR:LIST.txt", ("kitti",)),
    "refcoco": ("refs(unc).p and instances.json of RefCOCO, with train2014", "--data refer:DIR:refcoco", ("refer",)),
}


@dataclass(frozen=True)
class Files:
    """What the user gives.

    Args:
        data: of the test, as ``--data`` names it.
        train_data: where the data has no training part of its own.
        weights, visual_weights: published files that the row starts from.
        captions: of the test's pictures, for rows that take one for every picture.
    """

    data: str | None = None
    train_data: str | None = None
    weights: str | None = None
    visual_weights: str | None = None
    captions: str | None = None


@dataclass(frozen=True)
class Step:
    """One command: its program and its arguments."""

    program: str
    arguments: tuple[str, ...]


def check_files(row: Row, files: Files, tiny: bool, device: str | None = None) -> None:
    """Stop at the first thing that is missing. A file that ``depth-export`` downloads is not, unless PyTorch on a ``device`` wants it too.

    Raises:
        UsageError: if the data is of another kind.
        InputError: naming the one file that is missing.
    """
    what, flag, kinds = DATA_FILES[row.data]
    if files.data is None:
        raise InputError(f"the data of this row is missing: {what}", fix=f"give it with {flag}")
    words = files.data.split(":")
    if words[0] not in kinds:
        raise UsageError(f"--data {files.data} is not what this row is measured on", wanted=what, fix=f"give {flag}")
    if row.training and files.train_data is None and (words[0] != "nyu" or words[-1] in ("train", "test", "all")):
        raise InputError("the training data of this row is missing", wanted=f"{what}: its training part", fix="give it with --train-data")
    if row.captions and files.captions is None:
        fix = "give a JSON object from picture to caption with --captions FILE"
        raise InputError("a file that this row reads is missing: a caption for every picture", fix=fix)
    if tiny and files.weights is None and files.visual_weights is None:
        return
    if files.weights is None and row.network in DOWNLOADED and not (row.start or row.training or row.variant or device):
        return
    if files.weights is None:
        raise InputError(f"a file that this row starts from is missing: {_start(row)}", fix="give it with --weights FILE, or try the row with --tiny")
    if row.network in VISUAL and files.visual_weights is None:
        raise InputError(f"a file that this row starts from is missing: {VISUAL[row.network]}", fix="give it with --visual-weights FILE")
    for path in (files.weights, files.visual_weights):
        if path is not None and not Path(path).is_file():
            raise InputError(f"{path} does not exist", wanted=_start(row))


def _start(row: Row) -> str:
    return row.start or STARTS[row.network]


def steps_of(
    row: Row, files: Files, folder: Path, tiny: bool = False, steps: int | None = None, limit: int | None = None, device: str | None = None
) -> tuple[Step, ...]:
    """Train where the row trains, export, measure; the record is ``folder/accuracy.json``.

    Args:
        folder: holds everything that is made. A training that was interrupted in it is resumed.
        tiny: the small network of the same architecture, to try the way; weights of its size, if there are some, in the published form.
        steps: of the training instead of the recipe's.
        limit: measure only that many pictures.
        device: of PyTorch, which trains and measures there; None: it trains on the CPU, and ONNX Runtime measures the exported network.
    """
    name = f"{row.network}-tiny" if tiny else row.network
    model = ["--model", name, *(["--variant", row.variant] if row.variant else [])]
    model += [word for setting, number in row.settings.items() for word in ("--set", f"{setting}={number}")]
    start = [word for flag, path in (("--weights", files.weights), ("--visual-weights", files.visual_weights)) if path for word in (flag, path)]
    found: list[Step] = []
    if row.training:
        output = folder / "trained.safetensors"
        arguments = [*model, *start, "--data", _part(files.train_data or files.data, row.training.part), "--seed", str(row.training.seed)]
        arguments += ["--shots", str(row.training.shots)] if row.training.shots else []
        arguments += [word for flag, value in row.training.flags.items() for word in (f"--{flag}", value)]
        arguments += {"each": ["--captions", files.captions], "mean": ["--texts", files.captions] if files.weights else []}.get(row.captions, [])
        arguments += ["--steps", str(steps)] if steps else []
        arguments += ["--device", device] if device else []
        arguments += ["--resume"] if output.with_name(f"{output.stem}.state.safetensors").is_file() else []
        found.append(Step("depth-train", (*arguments, "-o", str(output))))
        if "hold-back" in row.training.flags:
            output = folder / "trained.best.safetensors"
        only_bins = name == "depthblip2" and not row.training.flags  # its recipe writes the seven depths alone
        start = [*start, "--bins", str(output)] if only_bins else ["--weights", str(output)]
    options = [word for flag, value in row.options.items() for word in (f"--{flag}", value)]
    found.append(Step("depth-export", (*model, *start, *options, "-o", str(folder / "bundle"))))
    arguments = ["accuracy", "--engine", str(folder / "bundle")]
    if device:
        flags, values = (*start, *options)[::2], (*start, *options)[1::2]
        told = [word for flag, value in zip(flags, values, strict=True) for word in (f"--reference-{flag.removeprefix('--')}", value)]
        arguments = ["accuracy", "--reference", str(folder / "bundle"), *told, "--device", device]
    arguments += ["--data", _part(files.data, row.part)]
    arguments += ["--captions", files.captions] if row.captions == "each" else []
    arguments += ["--protocol", row.protocol] if row.protocol else []
    arguments += ["--evaluation", row.evaluation] if row.evaluation else []
    arguments += ["--limit", str(limit)] if limit else []
    found.append(Step("depth-bench", (*arguments, "-o", str(folder / "accuracy.json"))))
    return tuple(found)


def _part(data: str, part: str) -> str:
    return f"{data}:{part}" if part else data
