"""What a process holds, as Linux tells it."""

from __future__ import annotations

from pathlib import Path


def process_nbytes(pid: int | str = "self") -> dict[str, int]:
    """Bytes by Linux' names (``VmSize``, ``VmRSS``, ``VmHWM``, ``RssAnon`` ...); empty for a process that ended, and on other systems."""
    try:
        lines = [line.split() for line in Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()]
    except OSError:
        return {}
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) == 3 and words[1].isdigit() and words[2] == "kB"}
