"""``make faults``: processes killed at random moments, full and read-only disks, two writers, poor environments, little memory.

After each: nothing half-written under a final name, an exit code that says what happened, and a second run that finishes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hardening.record import add_to_record
from hardening.work import WORKS, Work, environment, find_problem, left_over, make_sources, names

from fathom.benchmarks.record.record import read_study

DAYS_OLD_S = 2 * 86_400
PATIENCE_S = 300


class Trials:
    """The good files, what an undisturbed run leaves and how long it takes, and the faults found so far."""

    def __init__(self, folder: Path, only: list[str]):
        self.folder, self.source, self.works = folder, folder / "in", {name: WORKS[name] for name in only}
        make_sources(self.source)
        self.usual: dict[str, set[str]] = {}
        self.allowed: dict[str, set[str]] = {}
        self.seconds: dict[str, float] = {}
        self.nbytes: dict[str, int] = {}
        self.faults: list[dict[str, Any]] = []
        for name, work in self.works.items():
            out, begun = self.fresh(name), time.monotonic()
            code, words = self.run(work, out)
            if code:
                raise RuntimeError(f"{name} fails undisturbed: {code} {words}")
            self.seconds[name], self.usual[name] = time.monotonic() - begun, names(out)
            self.allowed[name] = self.usual[name] | work.resumes
            self.nbytes[name] = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())

    def fresh(self, name: str, out: Path | None = None) -> Path:
        """An empty folder to write to, prepared for a work."""
        out = out or Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))
        self.works[name].prepare(self.source, out)
        return out

    def run(self, work: Work, out: Path, more: tuple[str, ...] = (), **how: Any) -> tuple[int, str]:
        """Exit code and stderr of a run to its end."""
        how = {"env": environment(), **how}
        done = subprocess.run(work.command(self.source, out, more), stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE_S, **how)
        return done.returncode, done.stderr.decode("utf-8", "replace")

    def fault(self, trial: str, name: str, words: str) -> None:
        """Note a fault, and say it at once."""
        self.faults.append({"trial": trial, "work": name, "fault": words[-500:]})
        print(f"FAULT {trial}, {name}: {words[-500:]}", flush=True)

    def must_be_refused(self, trial: str, name: str, out: Path, result: tuple[int, str], codes: tuple[int, ...], words: str = "") -> None:
        """A run that could not succeed: one of the codes, the words in its message, nothing half-written, nothing left."""
        code, said = result
        if code not in codes or words not in said or "internal error" in said or "Traceback" in said:
            self.fault(trial, name, f"exit code {code}, wanted {codes} and {words!r}: {said}")
        if problem := find_problem(out, self.allowed[name]):
            self.fault(trial, name, problem)
        if left := left_over(out):
            self.fault(trial, name, f"left {left[0].name}")


def kills(trials: Trials, count: int, seed: int) -> dict[str, Any]:
    """SIGKILL at random moments; then nothing is half-written, no process goes on, the next run finishes and sweeps what is old.

    Counted are kills that came before the command's end. How long it takes changes with what else the machine does: the span of moments follows.
    """
    draw, total, done = random.Random(seed), sum(work.kills for work in trials.works.values()), {}
    for name, work in trials.works.items():
        here, span = -(-count * work.kills // total), trials.seconds[name]
        hits = late = left = 0
        while hits < here:
            out = trials.fresh(name)
            child = subprocess.Popen(
                work.command(trials.source, out), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
            )
            time.sleep(draw.uniform(0.2, 1.0) * span)
            child.kill()
            if child.wait() != -signal.SIGKILL:
                late, span = late + 1, span * 0.9
                shutil.rmtree(out)
                continue
            hits, span = hits + 1, span * 1.03
            if problem := find_problem(out, trials.allowed[name]):
                trials.fault("kill", name, problem)
            if orphans := _orphans(out):
                trials.fault("kill", name, f"a process goes on: {orphans}")
            leavings = left_over(out)
            left += len(leavings)
            for path in leavings:
                os.utime(path, (time.time() - DAYS_OLD_S,) * 2)
            code, said = trials.run(work, out, work.words_again(out))
            if code or (problem := find_problem(out, trials.allowed[name])):
                trials.fault("kill, second run", name, f"{code} {said} {problem if not code else ''}")
            elif trials.usual[name] - names(out):
                trials.fault("kill, second run", name, f"lacks {sorted(trials.usual[name] - names(out))[:3]}")
            elif left_over(out):
                trials.fault("kill, sweep", name, f"{left_over(out)[0]} is still there")
            shutil.rmtree(out)
        done[name] = {"kills": hits, "too_late": late, "temporary_files_left": left}
        print(f"kill, {name}: {done[name]}", flush=True)
    return done


def _orphans(out: Path) -> str:
    """A process that still works for a killed one, given time to notice: its command line or working folder names ``out``."""
    deadline = time.monotonic() + 5
    while True:
        found = ""
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "cmdline").read_bytes()
                opened = [os.readlink(link) for link in (entry / "fd").iterdir()]
            except OSError:
                continue
            if str(out).encode() in words or any(path.startswith(str(out)) for path in opened):
                found = words.replace(b"\0", b" ").decode("utf-8", "replace")[:200]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def full_disks(trials: Trials, points: int) -> dict[str, Any]:
    """A file system with room for a part of the output: each work at several sizes."""
    place, tried = trials.folder / "small", {}
    place.mkdir(exist_ok=True)
    for name, work in trials.works.items():
        tried[name] = 0
        before = _prepared_nbytes(trials, name)
        for point in range(points):
            room = before + 8192 + int((trials.nbytes[name] - before) * point / points)
            if not _mount(place, f"size={-(-room // 4096) * 4}k"):
                return {"skipped": "needs the right to mount"}
            try:
                trials.fresh(name, place)
                result = trials.run(work, place)
                if result[0]:  # pages are whole: the last point may have room enough
                    trials.must_be_refused("full disk", name, place, result, (3,), "disk is full")
                elif problem := find_problem(place, trials.allowed[name]):
                    trials.fault("full disk", name, problem)
                tried[name] += bool(result[0])
            except OSError as error:
                if point:
                    raise RuntimeError(f"{name} could not be prepared") from error
            finally:
                _unmount(place)
    return tried


def _prepared_nbytes(trials: Trials, name: str) -> int:
    out = trials.fresh(name)
    total = sum(-(-path.stat().st_size // 4096) * 4096 if path.is_file() else 4096 for path in out.rglob("*"))
    shutil.rmtree(out)
    return total


def read_only(trials: Trials) -> dict[str, Any]:
    """A file system that takes nothing."""
    place, tried = trials.folder / "fixed", []
    place.mkdir(exist_ok=True)
    for name, work in trials.works.items():
        if not _mount(place, "size=64m"):
            return {"skipped": "needs the right to mount"}
        try:
            trials.fresh(name, place)
            subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
            trials.must_be_refused("read-only", name, place, trials.run(work, place), (3,))
            tried.append(name)
        finally:
            _unmount(place)
    return {"works": tried}


def _mount(place: Path, options: str) -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0 and not subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]).returncode


def _unmount(place: Path) -> None:
    subprocess.run(["umount", "-l", str(place)], check=True)


def two_writers(trials: Trials, rounds: int) -> dict[str, Any]:
    """The same output from two processes at once, both allowed to replace it."""
    ended: dict[str, list[list[int]]] = {}
    for name, work in trials.works.items():
        for _ in range(rounds):
            out = trials.fresh(name)
            words = work.command(trials.source, out, ("--force",))
            pair = [subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment()) for _ in range(2)]
            said = [child.communicate(timeout=PATIENCE_S)[1].decode("utf-8", "replace") for child in pair]
            codes = sorted(child.returncode for child in pair)
            ended.setdefault(name, []).append(codes)
            if codes[0] or codes[1] not in (0, 3) or any("internal error" in words for words in said):
                trials.fault("two writers", name, f"exit codes {codes}: {said}")
            if problem := find_problem(out, trials.allowed[name]):
                trials.fault("two writers", name, problem)
            shutil.rmtree(out)
    return ended


POOR = {
    "no HOME": {"HOME": None, "XDG_CACHE_HOME": None},
    "HOME that is not there": {"HOME": "/nonexistent/home", "XDG_CACHE_HOME": None},
    "TMPDIR that is not there": {"TMPDIR": "/nonexistent/tmp"},
    "ASCII locale": {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "Latin-1 terminal": {"PYTHONIOENCODING": "latin-1"},
}


def poor_environments(trials: Trials) -> dict[str, Any]:
    """Variables missing or pointing nowhere: every work succeeds all the same."""
    for kind, change in POOR.items():
        for name, work in trials.works.items():
            out = trials.fresh(name)
            code, said = trials.run(work, out, env=environment(change))
            problem = find_problem(out, trials.allowed[name])
            if code or problem or trials.usual[name] - names(out):
                trials.fault(kind, name, f"{code} {said} {problem}")
            shutil.rmtree(out)
    return {"environments": list(POOR), "works": list(trials.works)}


def terminations(trials: Trials, count: int, seed: int) -> dict[str, Any]:
    """SIGTERM, SIGINT and SIGHUP at random moments: exit code 130, and nothing is left behind."""
    draw, ended = random.Random(seed), {}
    for name, work in trials.works.items():
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            for _ in range(count):
                out = trials.fresh(name)
                child = subprocess.Popen(
                    work.command(trials.source, out), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment()
                )
                time.sleep(draw.uniform(0.3, 0.9) * trials.seconds[name])
                child.send_signal(number)
                said = child.communicate(timeout=PATIENCE_S)[1].decode("utf-8", "replace")
                # Before Python has read a command's first lines a signal ends it as it ends any program.
                ended.setdefault(name, {}).setdefault(str(child.returncode), 0)
                ended[name][str(child.returncode)] += 1
                if child.returncode not in (0, 130, -number) and not ("KeyboardInterrupt" in said and child.returncode in (1, 130)):
                    trials.fault(signal.Signals(number).name, name, f"exit code {child.returncode}: {said}")
                if problem := find_problem(out, trials.allowed[name]):
                    trials.fault(signal.Signals(number).name, name, problem)
                if child.returncode == 130 and (left := left_over(out)):
                    trials.fault(signal.Signals(number).name, name, f"left {left[0].name}")
                shutil.rmtree(out)
    return ended


def little_memory(trials: Trials) -> dict[str, Any]:
    """``ulimit -v`` in steps from far too little to enough: exit code 0 or 7, never a crash or an internal error."""
    ended: dict[str, dict[str, int]] = {}
    for name, work in trials.works.items():
        limit_mb, enough = 192, 0
        while enough < 2 and limit_mb < 16_384:
            out = trials.fresh(name)
            code, said = trials.run(work, out, preexec_fn=_limited(limit_mb << 20))
            ended.setdefault(name, {})[f"{limit_mb} MB"] = code
            if code not in (0, 7):
                trials.fault("little memory", name, f"{limit_mb} MB: exit code {code}: {said}")
            if problem := find_problem(out, trials.allowed[name]):
                trials.fault("little memory", name, problem)
            enough += code == 0
            limit_mb = limit_mb * 5 // 4
            shutil.rmtree(out)
    return ended


def _limited(nbytes: int) -> Callable[[], None]:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (nbytes, nbytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    return limit


def _add_trial(arguments: argparse.Namespace, name: str, facts: dict[str, Any], trials: Trials) -> None:
    """Put one trial's result beside those of the others; what a repeated one found before goes."""
    old = read_study(arguments.record).get("faults", {})
    kept = old.get("trials", {}) | {name: facts}
    again = {name: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())} if name in old.get("trials", {}) else {}
    sums = {key: round(sum(trial[key] for trial in kept.values()), 1) for key in ("seconds", "faults")}
    told = {"told": trials.faults, "repeated": old.get("repeated", {}) | again}
    add_to_record(arguments.record, "faults", {"seed": arguments.seed, **sums, **told, "trials": kept})


def main() -> int:
    """Returns 1 if there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=20261127)
    parser.add_argument("--only", choices=WORKS, action="append", help="a work; may be given again")
    parser.add_argument("--trial", action="append", help="kills, full_disks, read_only, two_writers, poor_environments, terminations, little_memory")
    parser.add_argument("--record", type=Path, help="JSON file that the result is added to")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fathom-faults-"))
    try:
        trials = Trials(folder, arguments.only or list(WORKS))
        every = {
            "kills": lambda: kills(trials, arguments.kills, arguments.seed),
            "full_disks": lambda: full_disks(trials, 6),
            "read_only": lambda: read_only(trials),
            "two_writers": lambda: two_writers(trials, 2),
            "poor_environments": lambda: poor_environments(trials),
            "terminations": lambda: terminations(trials, 2, arguments.seed),
            "little_memory": lambda: little_memory(trials),
        }
        for name in arguments.trial or every:
            before, since = len(trials.faults), time.monotonic()
            found = {**every[name](), "faults": len(trials.faults) - before, "seconds": round(time.monotonic() - since, 1)}
            print(f"{name}: {json.dumps(found)}", flush=True)
            if arguments.record:
                _add_trial(arguments, name, found, trials)
        return int(bool(trials.faults))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
