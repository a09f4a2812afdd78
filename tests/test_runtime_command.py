"""Exit codes, messages and interruption of every command, through real processes."""

import os
import signal
import subprocess
import sys
import time

import pytest

PRELUDE = "import sys\nfrom fathom.runtime.commands.command import run_command\nfrom fathom.runtime import errors\n"


def run(code, *, env=None, **how):
    return subprocess.run([sys.executable, "-c", PRELUDE + code], capture_output=True, text=True, env={**os.environ, **(env or {})}, timeout=60, **how)


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ("return None", 0, ""),
        ("return 3", 3, ""),
        ("raise errors.UsageError('a', wanted='b', fix='c')", 2, "error: a; wanted: b; fix: c\n"),
        ("raise errors.InputError('a')", 3, "error: a\n"),
        ("raise errors.AccuracyError('a')", 4, "error: a\n"),
        ("raise errors.PrecisionError('a')", 5, "error: a\n"),
        ("raise errors.missing_package('onnx', 'export', 'x')", 6, "pip install 'fathom-depth[export]'"),
        ("raise errors.OutOfMemoryError('a')", 7, "error: a\n"),
        ("raise errors.BuildFailedError('a')", 8, "error: a\n"),
        ("raise errors.PerformanceError('a')", 9, "error: a\n"),
        ("raise errors.ChecksumError('a')", 10, "error: a\n"),
        ("open('/gone/x')", 3, "error: /gone/x cannot be used (No such file or directory); fix: check the name\n"),
        ("import os; os.stat('a' * 300)", 3, "(File name too long); fix: a shorter name\n"),
        ("raise PermissionError(13, 'Permission denied', b'/locked/x')", 3, "error: /locked/x cannot be used (Permission denied); fix: change its permissions"),
        ("raise OSError(28, 'No space left on device', 'x')", 3, "error: the disk is full: x cannot be written"),
        ("raise OSError('boom')", 1, "internal error"),
        ("raise OSError(9, 'Bad file descriptor', 7)", 1, "internal error"),
        (r"raise errors.InputError('a\x1b[2K\x9b\rb\nc')", 3, r"error: a\x1b[2K\x9b\x0db" + "\nc\n"),
        ("raise MemoryError", 7, "no memory is left"),
        ("raise KeyboardInterrupt", 130, "interrupted; nothing half-written was left"),
        ("raise RuntimeError('boom')", 1, "internal error, please report it (RuntimeError: boom); to see where, run it again with FATHOM_TRACEBACK=1"),
    ],
)
def test_exit_codes_and_messages(body, code, words):
    done = run(f"def body():\n    {body}\nsys.exit(run_command(body))")
    assert done.returncode == code and words in done.stderr and "Traceback" not in done.stderr
    assert not done.stdout


def test_the_traceback_is_there_for_who_asks():
    done = run("def body(): raise errors.InputError('a')\nsys.exit(run_command(body))", env={"FATHOM_TRACEBACK": "1"})
    assert done.returncode == 3 and "Traceback" in done.stderr and done.stderr.endswith("error: a\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_interrupt_cleanly(tmp_path, number):
    code = f"""
import time
from fathom.runtime.files import whole_file
def body():
    with whole_file({str(tmp_path / "out")!r}) as part:
        part.write_text("half")
        print("ready", flush=True)
        time.sleep(30)
sys.exit(run_command(body))
"""
    process = subprocess.Popen([sys.executable, "-c", PRELUDE + code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    start = time.monotonic()
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130 and "interrupted" in err and "Traceback" not in err
    assert time.monotonic() - start < 5 and not list(tmp_path.iterdir())


def test_a_closed_stdout_ends_quietly():
    code = "def body():\n    for k in range(200000): print(k)\nsys.exit(run_command(body))"
    process = subprocess.Popen([sys.executable, "-c", PRELUDE + code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "0\n"
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait(20) == 1
    process.stderr.close()


def test_handlers_are_given_back():
    done = run(
        "before = signal.getsignal(signal.SIGTERM)\nrun_command(lambda: 0)\nassert signal.getsignal(signal.SIGTERM) == before".replace(
            "before =", "import signal\nbefore ="
        )
    )
    assert done.returncode == 0, done.stderr


def test_commands_start_without_the_heavy_world():
    code = "import fathom.runtime.commands.run as r; r.build_parser(); print(sorted({'numpy', 'PIL', 'onnxruntime', 'torch', 'tqdm'} & set(sys.modules)))"
    assert run(code).stdout == "[]\n"


def test_help_and_version_are_light():
    """Processor time, not wall time: the latter is measured in benchmarks/studies/startup.py."""
    for words in (["-m", "fathom.runtime.commands.run", "--help"], ["-m", "fathom.runtime.commands.run", "--version"], ["-c", "import fathom.runtime"]):
        before = os.times()
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
        after = os.times()
        assert done.returncode == 0 and not done.stderr and ("depth-run" in done.stdout or "import" in words[1])
        assert after.children_user + after.children_system - before.children_user - before.children_system < 1.0  # 0.05 s on a quiet machine
