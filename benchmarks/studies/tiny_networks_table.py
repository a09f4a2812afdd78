"""The table of ``tiny_networks.json`` in the README.

python -m fathom.benchmarks.studies.tiny_networks_table README.md    writes it between its two marks
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ...runtime.commands.command import run_command
from ...runtime.errors import InputError
from ...runtime.files import whole_file
from ..model_cards import WEIGHTS, CardResult, read_card
from ..record.record import read_study
from .tiny_networks import NETWORKS

RESULT = Path(__file__).parents[1] / "results" / "tiny_networks.json"
BEGIN, END = "<!-- {}: made by benchmarks.tiny_networks_table -->", "<!-- end of {} -->"
NAMES = ("tiny networks", "demo weights")
MOST_PATHS = 3  # of one stage that are named
HEAD = ("network", "pictures", "abs_rel", "delta1", "FP32", "FP16", "INT8", "INT8 stages; what stays higher")


def table(record: dict[str, Any]) -> str:
    """Markdown: PyTorch's metrics, by how much abs_rel of each plan is off them, and on which processors that was measured.

    Args:
        record: of ``tiny_networks``.
    """
    lines = [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
    for name, facts in record["networks"].items():
        if "failed" in facts:
            lines.append(f"| {name} | | | | failed: {facts['failed']} | | | |")
            continue
        for place, (title, found) in enumerate(facts["sets"].items()):
            rows, masks = found["rows"], "asked" in found["rows"]["pytorch"]
            title = "indoor pairs" if title == "pairs" and ", indoor" in facts["data"]["pairs"]["name"] else title
            base = ("overlap", "") if masks else tuple(f"{rows['pytorch'][metric]:.3f}" for metric in ("abs_rel", "delta1"))
            fit = "" if found.get("alignment", "none") == "none" else f", {found['alignment']}"
            pictures = f"{rows['pytorch']['asked']} questions, {title}" if masks else f"{found['images']} {title}, at the photos' size{fit}"
            changes = [_share(rows[p]["oIoU"] - 1, 3) if masks else _share(rows[p]["relative"]["abs_rel"], 3) for p in ("fp32", "fp16", "int8")]
            changes = [change if facts["within"][p] else f"**{change}**" for p, change in zip(("fp32", "fp16", "int8"), changes, strict=True)]
            lines.append("| " + " | ".join((name if place == 0 else "", pictures, *base, *changes, kept(facts) if place == 0 else "")) + " |")
    processors: dict[str, list[str]] = {}
    for name, facts in record["networks"].items():
        if "failed" not in facts:
            processors.setdefault(facts["system"]["host_processor_model_name"], []).append(name)
    machines = "; on ".join(f"{processor}: {', '.join(names)}" for processor, names in processors.items())
    return "\n".join([*lines, "", f"Measured on {machines}."])


def kept(facts: dict[str, Any]) -> str:
    """Stages in INT8, and those that are not."""
    stages = facts["int8"]["stages"]
    low = [stage for stage, precision in stages.items() if precision == "int8"]
    words = [", ".join(low) or "none"]
    for title, sign in (("too little gain", "because it saves"), ("over the budget", "breaks the budget"), ("no INT8 layer", "not possible")):
        held = [text.partition(":")[0] for text in facts["int8"]["verdicts"] if sign in text and text.partition(":")[0] not in low]
        words += [f"{', '.join(held)} ({title})"] if held else []
    higher: dict[str, set[str]] = {}
    for entry in facts["fp16"].get("kept", []):
        higher.setdefault(entry["stage"], set()).add(entry["path"])
    paths = [f"{stage}:{path}" for stage in sorted(higher) for path in sorted(higher[stage]) if len(higher[stage]) <= MOST_PATHS]
    paths += [f"{len(found)} regions of {stage}" for stage, found in higher.items() if len(found) > MOST_PATHS]
    words += [f"FP32 in FP16 plans: {', '.join(paths)}"] if paths else []
    return "; ".join(words)


def _share(value: float, digits: int, sign: str = "+") -> str:
    return f"{100 * value:{sign}.{digits}f} %"


def cards_table(folder: Path = WEIGHTS) -> str:
    """Markdown: what each network reached by its card (at its own resolution), beside the best blind guess, on rooms and on real pairs."""
    lines = [
        "| network | file | rooms it never saw, at the network's size | best blind guess | real pairs, at the network's size | best blind guess |",
        "|---|---|---|---|---|---|",
    ]
    for name in NETWORKS:
        file, results = folder / f"{name}.safetensors", read_card(name, folder)
        if file.is_file() and results:
            cells = [cell for result in (*results, None)[:2] for cell in _reached(result)]  # outdoor pairs, where they are told apart, stand in the card
            lines.append(f"| {name} | {file.stat().st_size / 1e6:.1f} MB | {' | '.join(cells)} |")
    return "\n".join(lines)


def _reached(result: CardResult | None) -> tuple[str, str]:
    if not result:
        return "", ""
    return result.words() + (f" ({result.images} indoor)" if result.indoor else ""), result.blind_words()


def tables() -> dict[str, str]:
    """Name of each table that can be made here -> Markdown."""
    tiny, cards = NAMES
    made = {cards: cards_table()}
    if RESULT.is_file():
        made[tiny] = table(read_study(RESULT))
    return made


def replace(text: str, name: str, made: str) -> str:
    """The text with a table between its marks; the text itself if it has no such marks."""
    before, begin, rest = text.partition(BEGIN.format(name))
    _, end, after = rest.partition(END.format(name))
    return f"{before}{begin}\n{made}\n{end}{after}" if begin and end else text


def main(argv: list[str] | None = None) -> int:
    """Write the tables into Markdown files; returns the exit code."""
    parser = argparse.ArgumentParser("tiny_networks_table", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", type=Path, nargs="+", help="Markdown files with marks")
    arguments = parser.parse_args(argv)
    return run_command(lambda: _run(arguments.pages))


def _run(pages: list[Path]) -> int:
    for page in pages:
        old = new = page.read_text("utf-8")
        for name, made in tables().items():
            new = replace(new, name, made)
        if not any(BEGIN.format(name) in old for name in NAMES):
            raise InputError(f"{page} has no place for a table", wanted=" or ".join(map(BEGIN.format, NAMES)))
        with whole_file(page, force=True) as part:
            part.write_text(new, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
