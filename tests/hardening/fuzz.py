"""``make fuzz``: damaged files of every kind, each read as the commands read it.

A case is a kind, a seed and a number, and can be run again alone: ``python -m hardening.fuzz --only plan --seed 1 --first 4711 --cases 1``.
A fault is: an exit code that is neither 0, 3 nor 10; a crash; more than 2 s of one case; more than 500 MB more memory than before the first
case; a file written, removed or run anywhere outside the case's own folder.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import json
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from hardening.readers import READERS, Reader
from hardening.record import add_to_record

TOTAL = 1_000_000
LIMIT_S, LIMIT_NBYTES = 2.0, 500 << 20
WAIT_S = 20.0  # a case that uses no processor time may wait as long: the machine has other work
STATE = struct.Struct("<qdqqqq")  # case, begun at, accepted, refused with 3, with 10, greatest memory so far
WRITES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod", "shutil.rmtree", "shutil.move"}
RUNS = {"os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "socket.bind", "os.fork", "webbrowser.open"}


class TrespassError(BaseException):
    """Something outside the case's folder was touched. Not an Exception: no reader may swallow it."""


def guard(folder: Path) -> None:
    """From now on this process may write below ``folder`` and nowhere else, and start nothing."""
    inside = str(folder.resolve()) + os.sep

    def look(event: str, arguments: tuple) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = (isinstance(mode, str) and set(mode) & set("wax+")) or (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            if writes and isinstance(path, (str, bytes, os.PathLike)) and not os.path.abspath(os.fsdecode(path)).startswith(inside):
                raise TrespassError(f"open({path!r}, {mode!r})")
        elif event in RUNS or (event in WRITES and not os.path.abspath(os.fsdecode(arguments[0])).startswith(inside)):
            raise TrespassError(f"{event}{arguments!r}"[:200])

    sys.addaudithook(look)


def case_bytes(kind: str, reader: Reader, seeds: list[bytes], seed: int, number: int) -> bytes:
    """The damaged file of one case."""
    draw = random.Random(f"{seed}:{kind}:{number}")
    return reader.damage(draw, draw.choice(seeds))


def memory_nbytes() -> int:
    """The address space of this process."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE


def work(kind: str, seeds: list[bytes], folder: Path, seed: int, first: int, last: int, state: mmap.mmap, report: int) -> None:
    """In the child: cases ``first`` to ``last``; faults go to ``report``, a line each."""
    from fathom.runtime.errors import FathomError

    reader = READERS[kind]
    for name in reader.imports:
        importlib.import_module(name)
    path = folder / reader.name
    path.write_bytes(seeds[0])
    try:
        reader.read(path)  # loads what is loaded late
    except FathomError as error:
        raise RuntimeError(f"{kind}: the good file is refused: {error}") from error
    _, _, accepted, threes, tens, peak = STATE.unpack_from(state)
    resource.setrlimit(resource.RLIMIT_AS, (memory_nbytes() + LIMIT_NBYTES, -1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    faulthandler.disable()  # pytest's, which keeps a stderr of its own
    guard(folder)
    begun_nbytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    for number in range(first, last):
        data = case_bytes(kind, reader, seeds, seed, number)
        with open(path, "wb") as file:
            file.write(data)
        STATE.pack_into(state, 0, number, time.monotonic(), accepted, threes, tens, peak)
        fault = ""
        try:
            reader.read(path)
            accepted += 1
        except FathomError as error:
            threes, tens = threes + (error.exit_code == 3), tens + (error.exit_code == 10)
            if error.exit_code not in (3, 10):
                fault = f"exit code {error.exit_code} ({type(error).__name__}: {error})"
        except BaseException as error:
            fault = f"{type(error).__name__}: {error}"
            where = [frame for frame in traceback.extract_tb(error.__traceback__) if "fathom" in frame.filename or "/wt/" in frame.filename]
            fault = f"{where[-1].filename.rsplit('/', 1)[-1]}:{where[-1].lineno} {fault}" if where else fault
        if fault:
            os.write(report, (json.dumps({"kind": kind, "case": number, "fault": fault[:300]}) + "\n").encode())
        if number % 64 == 0:
            peak = max(peak, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - begun_nbytes)
    STATE.pack_into(state, 0, last, time.monotonic(), accepted, threes, tens, peak)


def processor_s(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run_kind(kind: str, seed: int, first: int, cases: int, keep: Path | None) -> dict[str, Any]:
    """All cases of one kind, in children that are replaced when one dies."""
    begun, faults, slowest_s = time.monotonic(), [], 0.0
    scratch = Path(tempfile.mkdtemp(prefix="fathom-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    state = mmap.mmap(-1, STATE.size)
    STATE.pack_into(state, 0, first, time.monotonic(), 0, 0, 0, 0)
    try:
        seeds = made_elsewhere(kind, scratch)
        (scratch / READERS[kind].name).parent.mkdir(parents=True, exist_ok=True)
        at, last = first, first + cases
        while at < last:
            report_read, report_write = os.pipe()
            os.set_blocking(report_read, False)
            pid = os.fork()
            if not pid:
                code = 1
                try:
                    os.close(report_read)
                    sys.dont_write_bytecode = True
                    _compute_alone()
                    work(kind, seeds, scratch, seed, at, last, state, report_write)
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            os.close(report_write)
            lines, status, seen, spent_s = b"", None, (-1, 0.0), 0.0
            while status is None:
                time.sleep(0.05)
                ended, code = os.waitpid(pid, os.WNOHANG)
                status = code if ended else None
                while piece := _read(report_read):
                    lines += piece
                now, since = STATE.unpack_from(state)[:2]
                if status is None and now != seen[0]:
                    seen, spent_s = (now, since), processor_s(pid)
                elif status is None and now > at:  # the first case waits for imports
                    used = processor_s(pid) - spent_s
                    slowest_s = max(slowest_s, used)
                    if used > LIMIT_S or time.monotonic() - since > WAIT_S:
                        os.kill(pid, signal.SIGKILL)
                        os.waitpid(pid, 0)
                        status = -1
                        faults.append({"kind": kind, "case": now, "fault": f"hangs: more than {LIMIT_S:g} s"})
            os.close(report_read)
            faults += [json.loads(line) for line in lines.splitlines()]
            now = STATE.unpack_from(state)[0]
            if os.WIFSIGNALED(status) and status != -1:
                faults.append({"kind": kind, "case": now, "fault": f"crash: signal {os.WTERMSIG(status)}"})
            elif status not in (0, -1):
                raise RuntimeError(f"{kind}: the child ended with {os.waitstatus_to_exitcode(status)} at case {now}")
            at = now + 1 if status else last
        if keep is not None:
            for fault in faults[:200]:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{kind.replace(' ', '-')}-{fault['case']}").write_bytes(case_bytes(kind, READERS[kind], seeds, seed, fault["case"]))
        _, _, accepted, threes, tens, peak = STATE.unpack_from(state)
        facts = {"cases": cases, "accepted": accepted, "exit_3": threes, "exit_10": tens, "faults": len(faults), "memory_mb": round(peak / 1e6, 1)}
        return {**facts, "seconds": round(time.monotonic() - begun, 1), "told": _by_place(faults)}
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _by_place(faults: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each fault once, with how often it came."""
    found: dict[str, dict[str, Any]] = {}
    for fault in faults:
        words = fault["fault"]
        place = words.split(" ")[0] if ".py:" in words else words[:40]
        entry = found.setdefault(place, {**fault, "times": 0})
        entry["times"] += 1
    return list(found.values())


def _read(handle: int) -> bytes:
    try:
        return os.read(handle, 65536)
    except BlockingIOError:
        return b""


def _compute_alone() -> None:
    """The threads with which the parent computed do not live in a child that it forked, and OpenMP would wait for them for ever."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def made_elsewhere(kind: str, folder: Path) -> list[bytes]:
    """The good files, made in a child: whoever loads PyTorch before it forks makes every child large."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            _compute_alone()
            for number, data in enumerate(READERS[kind].seeds(folder)):
                (folder / f"seed-{number}").write_bytes(data)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError(f"no good file of the kind {kind} could be made")
    files = sorted(folder.glob("seed-*"))
    seeds = [file.read_bytes() for file in files]
    for file in files:
        file.unlink()
    return seeds


def main() -> int:
    """Returns 1 if there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=TOTAL, help="of all kinds together, or of the one of --only (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=20261127)
    parser.add_argument("--first", type=int, default=0, help="number of the first case of each kind")
    parser.add_argument("--only", choices=READERS, action="append", help="a kind; may be given again")
    parser.add_argument("--keep", type=Path, help="folder for the files that made faults")
    parser.add_argument("--record", type=Path, help="JSON file that the result is added to")
    arguments = parser.parse_args()
    kinds = arguments.only or list(READERS)
    shares, begun, found = sum(READERS[kind].share for kind in kinds), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), {}
    for kind in kinds:
        cases = -(-arguments.cases * READERS[kind].share // shares)
        found[kind] = run_kind(kind, arguments.seed, arguments.first, cases, arguments.keep)
        print(f"{kind}: {json.dumps(found[kind])}", flush=True)
        if arguments.record:
            facts = {"begun": begun, "seed": arguments.seed, "cases": sum(kind["cases"] for kind in found.values())}
            seconds = round(sum(kind["seconds"] for kind in found.values()), 1)
            faults = sum(kind["faults"] for kind in found.values())
            add_to_record(arguments.record, "fuzz", {**facts, "seconds": seconds, "faults": faults, "kinds": found})
    return int(any(kind["faults"] for kind in found.values()))


if __name__ == "__main__":
    sys.exit(main())
