"""The model card of weights made by ``depth-train``: written from the run, never by hand."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

from .learners import mask_validation, validation


@dataclass(frozen=True)
class Table:
    """How results are reported.

    Args:
        metrics: names, in the order of the columns.
        blind: key and title of each baseline.
        about: how they were measured; lines of Markdown.
        reading: which way is better.
    """

    metrics: tuple[str, ...]
    blind: tuple[tuple[str, str], ...]
    about: tuple[str, ...]
    reading: str


TABLES = {
    "depth": Table(
        validation.METRICS,
        (("mean_map", "mean depth map"), ("constant", "constant depth")),
        (
            "Measured on the stored file, one look per photo (single-image protocol), at the network's own resolution; per",
            "image, then the mean. Both baselines are blind: the median depth of the *other* pictures of the same data set, and their mean depth map.",
        ),
        "abs_rel and rmse (metres): lower is better; delta1: higher is better.",
    ),
    "masks": Table(
        mask_validation.METRICS,
        (("mean_mask", "mean mask of the same words"), ("everything", "the whole picture")),
        (
            "Measured on the stored file at the network's own window, over all pairs of a room and words that mean at least 1 % of its pixels. Both",
            "baselines are blind: the whole picture, and the mean mask of the same words in the *other* rooms, cut to the size that they have there.",
        ),
        "mIoU is the mean over the pairs, oIoU all intersections over all unions, P@0.5 the share of pairs with an IoU of one half: higher is better.",
    ),
}


def card_path(output: Path) -> Path:
    """Where the card of the weights in ``output`` lies: beside them."""
    return output.with_suffix(".md")


def card(facts: dict) -> str:
    """Markdown.

    Args:
        facts: ``model``, ``variant``, ``licence``, ``file``, ``nbytes``, ``sha256``, ``command``, ``recipe``, ``seed``, ``steps``,
            ``batch``, ``processes``, ``wall_s``, ``device``, ``store``, ``data`` (provenances), ``parameters``, ``measures`` (a key of ``TABLES``),
            ``results`` (one per validation set: ``data``, ``network`` and the baselines, each with the table's metrics).
    """
    table = TABLES[facts["measures"]]
    several = f"in each of {facts['processes']} processes " if facts["processes"] > 1 else ""
    lines = [
        f"# {facts['model']}: weights trained with `depth-train`",
        "",
        f"`{facts['file']}`, {facts['nbytes']:,} bytes, {facts['parameters'] / 1e6:.2f} M parameters stored as {facts['store']}, "
        f"SHA-256 `{facts['sha256']}`. Licence of the weights: {facts['licence']}.",
        "",
        "They show the way through this tool on real pictures. They are small, saw little, and are no substitute for the published network.",
        "",
        "## Training",
        "",
        f"    {facts['command']}",
        "",
        f"- recipe: {facts['recipe']}",
        f"- start: {facts['start']}; seed {facts['seed']}",
        f"- {facts['steps']} steps of {facts['batch']} pictures {several}in {facts['wall_s'] / 60:.0f} minutes on {facts['device']} "
        f"({platform.machine()}, {facts['threads']} thread{'s' if facts['threads'] > 1 else ''})",
        *(f"- learned from: {data['name']}{_seed(data)} (`{data['kind']}`, fingerprint `{data['sha256'][:12]}`)" for data in facts["data"]),
        "",
        "## Results on pictures it never saw",
        "",
        *table.about,
        "",
        "| data | images | who | " + " | ".join(table.metrics) + " |",
        "|---|---|---|" + "---|" * len(table.metrics),
    ]
    for result in facts["results"]:
        data = result["data"]
        for who, title in (("network", f"**{facts['model']}**"), *table.blind):
            if who in result:
                numbers = " | ".join(f"{result[who][name]:.3f}" for name in table.metrics)
                lines.append(f"| {data['name']}{_seed(data)}, at the network's size | {data['count']} | {title} | {numbers} |")
    lines += ["", table.reading, *(f"\n{note}" for note in facts["notes"])]
    return "\n".join(lines) + "\n"


def _seed(data: dict) -> str:
    return "" if data["seed"] is None else f", seed {data['seed']}"
