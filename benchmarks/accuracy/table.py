"""An accuracy record as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...datasets.depth_metrics import LARGER_IS_BETTER, UNITS


def table(record: dict[str, Any], metrics: Sequence[str], colour: bool = False) -> str:
    """The rows, each followed by its differences to the first, and below it what the numbers are of.

    Args:
        record: from ``accuracy.to_json``.
        metrics: the columns.
        colour: mark rows that failed in red.
    """
    evaluation, data = record["evaluation"], record["data"]
    heads = ["", *(f"{name} [{UNITS[name]}]" if name in UNITS and not evaluation["min_max"] else name for name in metrics), "images", "coverage"]
    lines: list[list[str]] = [heads]
    for row in record["rows"]:
        if row["means"] is None:
            lines.append([row["name"], *["FAILED" if row["failed"] else "-"] * len(metrics), str(row["images"]), f"{row['coverage']:.2%}"])
            continue
        lines.append([row["name"], *(f"{row['means'][name]:.4f}" for name in metrics), str(row["images"]), f"{row['coverage']:.2%}"])
        if row["difference"] and "relative" in row["difference"]:
            shares = (row["difference"]["relative"][name] for name in metrics)
            lines.append(["  difference", *("-" if share is None else f"{share:+.3%}" for share in shares), "", ""])
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    text = []
    for line in lines:
        words = [line[0].ljust(widths[0]), *(word.rjust(width) for word, width in zip(line[1:], widths[1:], strict=True))]
        text.append("  ".join(words).rstrip())
        if colour and "FAILED" in line:
            text[-1] = f"\x1b[31m{text[-1]}\x1b[0m"
    text += ["", *_notes(record, evaluation, data, metrics)]
    return "\n".join(text)


def _notes(record: dict[str, Any], evaluation: dict[str, Any], data: dict[str, Any], metrics: Sequence[str]) -> list[str]:
    far = "any distance" if evaluation["far_m"] is None else f"{evaluation['far_m']:g} m"
    notes = [
        f"evaluation {evaluation['name']}: {evaluation['source']}",
        f"alignment {evaluation['alignment']}; truth from {evaluation['near_m']:g} m to {far}; mean over images"
        + (f" in batches of {evaluation['group']} ({evaluation['pooling']})" if evaluation["group"] > 1 else ""),
        f"data {data['kind']}: {data['name']}, {data['measured']} of {data['count']}"
        + (f", seed {data['seed']}" if data["seed"] is not None else "")
        + "".join(f", {count} left out ({reason})" for reason, count in data["skipped"].items() if count),
    ]
    if evaluation["min_max"]:
        notes.append("NOT METRIC: prediction and truth are each stretched to [0, 1] per image")
    for row in record["rows"]:
        flip = ", each mirrored too" if row["flip"] else ""
        more = f", {row['empty']} images without a counted pixel" if row["empty"] else ""
        notes.append(
            f"{row['name']}: {row['backend']} {row['precision']}, protocol {row['protocol']} ({row['windows']} windows{flip}){more}"
            + (", UNTRAINED WEIGHTS" if row["untrained"] else "")
        )
        notes += _scale_notes(row.get("scale"))
        if row["skipped"]:
            notes.append(f"  {len(row['skipped'])} of {data['measured']} images left out")
            notes += [f"  left out: {skipped['id']}: {skipped['reason']}" for skipped in row["skipped"][:5]]
            notes += [f"  and {len(row['skipped']) - 5} more"] if len(row["skipped"]) > 5 else []
        if row["difference"] and "reason" in row["difference"]:
            notes.append(f"  not compared with {row['difference']['to']}: {row['difference']['reason']}")
        notes += [f"  failed: {failure['id']}: {failure['reason']}" for failure in row["failures"][:5]]
    better = [name for name in metrics if name in LARGER_IS_BETTER]
    notes.append(f"larger is better for {', '.join(better)}; smaller for the others")
    return notes


def _scale_notes(scale: dict[str, Any] | None) -> list[str]:
    """How much of a row's error is scale; nothing where maps were fitted."""
    if scale is None:
        return []
    ends = f"{scale['low']:.2f} to {scale['high']:.2f} times the truth (80 % of {scale['images']} images, median {scale['median']:.2f})"
    notes = [f"  whole maps are {ends}; at the truth's median abs_rel {scale['abs_rel']:.4f}, delta1 {scale['delta1']:.4f}"]
    camera = scale["with_focal"]
    if camera and camera["interval"] and camera["interval"][0] * camera["interval"][1] > 0:
        low, high = camera["interval"]
        notes.append(f"  that scale goes with the camera's focal length: rank correlation {camera['rank_correlation']:.2f} ({low:.2f} to {high:.2f})")
        notes.append("  depth-calibrate-scale mends it for one camera")
    return notes
