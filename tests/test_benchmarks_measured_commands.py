"""Seconds and memory of our commands: what a process holds is seen, what fails is said, and INT8 is set against FP16 stage by stage."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fathom
from fathom.benchmarks.machine.tree_memory import TreeMemory
from fathom.benchmarks.our_commands import MODULES
from fathom.benchmarks.studies.int8_fullsize import ratios
from fathom.benchmarks.studies.int8_search import GreatestSize
from fathom.benchmarks.studies.measured_commands import measured, system
from fathom.runtime.errors import FathomError
from fathom.runtime.process_memory import process_nbytes

MIB = 1 << 20
CHILD = f"import time; held = bytearray({200 * MIB}); held[::4096] = held[1::4096]; time.sleep(1)"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}])"


def test_the_memory_of_descendants_counts():
    process = subprocess.Popen([sys.executable, "-c", PARENT])
    memory = TreeMemory(process.pid)
    process.wait()
    memory.stop()
    assert 200 * MIB < memory.peak_anonymous_nbytes <= memory.peak_nbytes < 400 * MIB


def test_what_a_process_holds_grows_with_what_it_takes():
    before, held = process_nbytes(), bytearray(64 * MIB)
    held[::4096] = held[1::4096]
    after = process_nbytes()
    for name in ("VmRSS", "RssAnon"):
        assert 60 * MIB < after[name] - before[name] < 80 * MIB, name
    assert after["VmHWM"] >= after["VmRSS"] and process_nbytes(2**22 + 1) == {}


def test_programs_are_started_as_an_installed_command_starts_them():
    """Else what is measured or reproduced is another program than the one that people run."""
    installed = dict(re.findall(r'"(depth-[a-z-]+) = fathom\.([\w.]+):main"', (Path(fathom.__file__).parent / "setup.py").read_text()))
    assert len(installed) > len(MODULES) > 4
    assert {program: installed[program] for program in MODULES} == MODULES


def test_a_command_that_fails_is_named(tmp_path):
    with pytest.raises(FathomError, match="depth-build ended with exit code 3"):
        measured("depth-build", str(tmp_path / "nothing"), "-o", str(tmp_path / "x.plan"), threads=1)


def test_the_result_of_a_command_and_what_it_took(tiny, tmp_path):
    found = measured("depth-build", str(tiny.bundle), "-o", str(tmp_path / "x.plan"), threads=1)
    assert found["command"] == f"depth-build {tiny.bundle.name} -o x.plan"
    assert found["result"]["plan"] == "x.plan" and found["result"]["stages"]
    assert 0.05 < found["peak_gib"] < 4 and found["seconds"] > 0
    assert system()["host_processor_core_count"] >= 1


def test_int8_engines_are_set_against_fp16_engines():
    def stage(name, engine, weights, **layers):
        return {"name": name, "engine_nbytes": engine, "weights_nbytes": weights, "layers": layers}

    high = [stage("unet", 1000, 900, half=9), stage("bins", 50, 40, half=3)]
    low = [stage("unet", 520, 450, half=1, int8=8), stage("bins", 50, 40, half=3)]
    assert ratios(low, high) == {"unet": {"engine": 0.52, "weights": 0.5}}


def test_the_greatest_size_of_a_journal_that_is_removed(tmp_path):
    folder = tmp_path / "journal"
    watched = GreatestSize(folder, every_s=0.01)
    (folder / "below").mkdir(parents=True)
    for size in (1000, 70_000, 20_000):
        (folder / "below" / "one.bin").write_bytes(bytes(size))
        (folder / "two.bin").write_bytes(bytes(500))
        time.sleep(0.3)
    (folder / "two.bin").unlink()
    (folder / "below" / "one.bin").unlink()
    watched.stop()
    assert watched.greatest_nbytes == 70_500
