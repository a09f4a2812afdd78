"""What all commands share: common flags, exit codes, one clear error message, clean interruption."""

from __future__ import annotations

import argparse
import errno
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

from ..errors import INTERRUPTED, FathomError, InputError, tells_of_no_memory
from ..files import FULL

TRACEBACK_VARIABLE = "FATHOM_TRACEBACK"
INTERNAL, OUT_OF_MEMORY = 1, 7
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
FILE_FIXES = {
    **dict.fromkeys((errno.EACCES, errno.EPERM), "change its permissions or those of its folder"),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP), "check the name"),
    errno.ENAMETOOLONG: "a shorter name",
    errno.EROFS: "another place",
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit of open files (ulimit -n)"),
}


class _Version(argparse.Action):
    def __call__(self, parser, *_):
        print(f"{parser.prog} {sys.modules[__name__.partition('.')[0]].__version__}")
        parser.exit()


def common_flags(parser: argparse.ArgumentParser, force: bool = True, json: bool = True) -> None:
    """Add ``--quiet``, ``--json``, ``--force`` and ``--version``.

    Args:
        force: False for a command that writes no artefact.
        json: False for a command that has no result to print.
    """
    tolerant_streams()
    if force:
        parser.add_argument("--force", action="store_true", help="replace outputs that exist already")
    if json:
        parser.add_argument("--json", action="store_true", help="print results as JSON, one object per line")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress and no remarks on stderr, only warnings and errors")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and leave")


def run_command(body: Callable[[], int | None]) -> int:
    """Run the work of a command and turn whatever happens into an exit code and one message on stderr.

    ``FathomError`` gives its own code; a file that the system refuses 3; Ctrl-C and SIGTERM give 130; a closed stdout (``| head``) gives 1
    without a word; anything else is a fault of Fathom and gives 1 (set ``FATHOM_TRACEBACK=1`` to see where it happened).

    Args:
        body: does the work; returns the exit code, None for 0.
    """
    tolerant_streams()
    try:
        with _TerminationAsInterrupt():
            code = body() or 0
            sys.stdout.flush()
            return code
    except BrokenPipeError:
        _silence_stdout()
        return INTERNAL
    except KeyboardInterrupt:
        say("interrupted; nothing half-written was left")
        return INTERRUPTED
    except FathomError as error:
        _show_traceback()
        say(f"error: {error}")
        return error.exit_code
    except Exception as error:
        _show_traceback()
        if isinstance(error, OSError) and error.errno in FULL:  # a scratch file or a journal, whose output nobody names
            where = f": {error.filename} cannot be written" if error.filename else ""
            say(f"error: the disk is full{where}; wanted: room on the disk; fix: free some, or choose an --output elsewhere")
            return InputError.exit_code
        if tells_of_no_memory(error):  # NumPy and PyTorch say which array had no room
            words = f" ({str(error).splitlines()[0]})" if str(error) else ""
            say(f"error: no memory is left{words}; fix: use a smaller picture or batch, or free memory")
            return OUT_OF_MEMORY
        if isinstance(error, OSError) and isinstance(error.filename, (str, bytes)):  # a file that the system refuses is no fault of Fathom
            was = f"{os.fsdecode(error.filename)} cannot be used ({error.strerror or error})"
            say(f"error: {was}; fix: {FILE_FIXES.get(error.errno, 'check the file and its disk')}")
            return InputError.exit_code
        fix = "" if _wants_traceback() else f"; to see where, run it again with {TRACEBACK_VARIABLE}=1"
        say(f"error: internal error, please report it ({type(error).__name__}: {error}){fix}")
        return INTERNAL


def tolerant_streams() -> None:
    """Let stdout and stderr take any character: help and file names need not be text that the terminal can show.

    One that was closed before the start (``>&-``) is opened on nothing, so that no output file gets its place.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115 (open until the end)
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):  # a test's stand-in need not be a text file
            stream.reconfigure(errors="backslashreplace")


def warn(text: str) -> None:
    """One warning on stderr; ``--quiet`` does not silence it."""
    say(f"warning: {text}")


class _TerminationAsInterrupt:
    """While it is entered, SIGTERM and SIGHUP (the terminal went away) do what Ctrl-C does. Only the main thread
    may set handlers; elsewhere nothing changes."""

    def __enter__(self) -> None:
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGTERM", "SIGHUP"):
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # nohup has asked for that
                    self._before[number] = signal.signal(number, self._interrupt)

    @staticmethod
    def _interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def printable(text: str) -> str:
    """The text with its control characters written out: names of files and of a graph's nodes are not to steer the terminal."""
    return CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def say(text: str) -> None:
    """One line for people on stderr."""
    with suppress(OSError, ValueError):  # stderr may be closed too: then the exit code has to do
        print(printable(text), file=sys.stderr, flush=True)


def _wants_traceback() -> bool:
    return os.environ.get(TRACEBACK_VARIABLE, "") not in ("", "0")


def _show_traceback() -> None:
    if _wants_traceback():
        import traceback

        traceback.print_exc()


def _silence_stdout() -> None:
    """Python flushes stdout once more when it leaves, and would complain again."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
