"""The tables of docs/reliability.md, drawn from ``benchmarks/results/hardening.json``: ``python -m hardening.table`` writes them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from fathom.benchmarks.record.record import read_study

ROOT = Path(__file__).parents[2]
RECORD, PAGE = ROOT / "benchmarks" / "results" / "hardening.json", ROOT / "docs" / "reliability.md"
NO_EFFECT = 5e-7  # of the root mean square of a stage's output: what FP32 rounds
BEGIN, END = "<!-- made by hardening.table -->", "<!-- end of hardening.table -->"


def tables(record: dict[str, Any]) -> str:
    """All of them, as Markdown."""
    parts = [_fuzz(record["fuzz"])] if "fuzz" in record else []
    parts += [_faults(record["faults"])] if "faults" in record else []
    parts += [_soak(record["soak"])] if "soak" in record else []
    parts += [_weights(record["weights"])] if "weights" in record else []
    return "\n\n".join(parts)


def _fuzz(found: dict[str, Any]) -> str:
    lines = [f"**Damaged files**: {found['cases']:,} cases, seed {found['seed']}, {found['seconds']:,.0f} s, {found['faults']} faults.", ""]
    lines += ["| kind | cases | taken | refused, code 3 | code 10 | more memory, MB | faults |", "|---|---|---|---|---|---|---|"]
    for kind, one in found["kinds"].items():
        cells = (kind, f"{one['cases']:,}", f"{one['accepted']:,}", f"{one['exit_3']:,}", f"{one['exit_10']:,}", f"{one['memory_mb']:.0f}", one["faults"])
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _faults(found: dict[str, Any]) -> str:
    lines = [f"**Faults done to the commands**: seed {found['seed']}, {found['seconds']:,.0f} s, {found['faults']} faults.", ""]
    lines += ["| trial | what was done | faults |", "|---|---|---|"]
    lines += [f"| {name.replace('_', ' ')} | {_words(name, one)} | {one['faults']} |" for name, one in found["trials"].items()]
    return "\n".join(lines)


def _words(name: str, one: dict[str, Any]) -> str:
    rest = {key: value for key, value in one.items() if key not in ("faults", "seconds")}
    if "skipped" in rest:
        return f"not run: {rest['skipped']}"
    if name == "kills":
        return "SIGKILL before its end: " + ", ".join(f"{work} {facts['kills']}" for work, facts in rest.items())
    if name == "full_disks":
        return "refused at this many sizes: " + ", ".join(f"{work} {count}" for work, count in rest.items())
    if name == "two_writers":
        return f"{sum(map(len, rest.values()))} pairs, each free to replace the other's output"
    if name == "terminations":
        ended: dict[str, int] = {}
        for codes in rest.values():
            for code, count in codes.items():
                ended[code] = ended.get(code, 0) + count
        return "SIGTERM, SIGINT, SIGHUP; exit codes " + ", ".join(f"{code} ({count} times)" for code, count in sorted(ended.items()))
    if name == "little_memory":
        least = {work: next(limit for limit, code in limits.items() if code == 0) for work, limits in rest.items()}
        return "`ulimit -v` from 192 MB up; exit code 7 until " + ", ".join(f"{work} {limit}" for work, limit in least.items())
    return "; ".join(", ".join(value) if isinstance(value, list) else str(value) for value in rest.values())


def _soak(found: dict[str, Any]) -> str:
    lines = ["**Long runs**: medians of the second and the last fifth.", ""]
    lines += ["| run | done | wrong | resident memory, MB | change | open files | threads | s |", "|---|---|---|---|---|---|---|---|"]
    names = {"video": "frames of one video", "photos": "photos of 97 sizes", "threads": "photos by eight threads", "device": "photos on the stand-in device"}
    for name, one in found["parts"].items():
        pairs = (" to ".join(f"{value:g}" for value in one[key]) for key in ("resident_mb", "descriptors", "threads"))
        memory, files, threads = pairs
        cells = (names[name], f"{one['done']:,}", one["wrong"], memory, f"{one['growth']:+.1%}", files, threads, f"{one['seconds']:.0f}")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _weights(found: dict[str, Any]) -> str:
    kinds = [one for network in found["networks"].values() for one in network.values() if isinstance(one, dict)]
    right, refused = sum(one["right"] for one in kinds), sum(len(one["right_refused"]) for one in kinds)
    seconds = sum(network["cpu_seconds"] for network in found["networks"].values())
    lines = [
        f"**One wrong weight**: each weight tensor 1 % off, one at a time; {right} right engines that round otherwise, {refused} refused; {seconds:,.0f} s.",
        "",
        "| network | precision | stages 1 % off caught | single weights caught | of the others without effect | they move their stage by at most "
        "| the depth by at most, mean | all rounding moves the depth, mean |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, network in found["networks"].items():
        for precision, one in network.items():
            if not isinstance(one, dict):
                continue
            caught, missed = one["by_size"] + one["by_line"], one["missed"]
            stages = f"{one['stages'] - len(one['whole_missed'])} of {one['stages']}"
            share = f"{caught} of {one['weights']} ({caught / one['weights']:.0%})"
            without = sum(moved < NO_EFFECT for _, _, moved, _, _ in missed)
            moved, mean = (max((row[place] for row in missed), default=0.0) for place in (2, 3))
            lines.append(
                f"| {name} | {precision} | {stages} | {share} | {without} of {len(missed)} | {moved:.0e} | {_metres(mean)} | {_metres(one['rounding'][0])} |"
            )
    return "\n".join(lines)


def _metres(mean: float) -> str:
    return f"{mean * 1e3:.2g} mm"


def page_with(text: str, made: str) -> str:
    """The page with its tables replaced."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{made}\n{END}{after}"


def main() -> int:
    """Write the page."""
    PAGE.write_text(page_with(PAGE.read_text(), tables(read_study(RECORD))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
