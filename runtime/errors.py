"""One base error and one child per exit code; every message says what was, what was wanted, and how to fix it."""

import sys


class FathomError(Exception):
    """Base of all errors that are reported to the user with an exit code.

    Args:
        was: what was found, as a full clause without a final stop.
        wanted: what would have been right.
        fix: what the user can do about it, usually a command.
    """

    exit_code = 1

    def __init__(self, was: str, *, wanted: str = "", fix: str = ""):
        self.was, self.wanted, self.fix = was, wanted, fix
        parts = [was, f"wanted: {wanted}" if wanted else "", f"fix: {fix}" if fix else ""]
        super().__init__("; ".join(part for part in parts if part))


class UsageError(FathomError):
    """The command line asks for something that does not exist or contradicts itself."""

    exit_code = 2


class InputError(FathomError):
    """A file from outside is missing, broken, unsafe, or not what it claims to be."""

    exit_code = 3


class DiskFullError(InputError):
    """The disk of the output is full: nothing that follows can be written either."""


class AccuracyError(FathomError):
    """A result left its tolerance, or is NaN, Inf or constant."""

    exit_code = 4


class PrecisionError(FathomError):
    """What was built does not hold the precision that was asked for."""

    exit_code = 5


class EnvironmentMismatchError(FathomError):
    """This machine, driver, package set or version cannot do what was asked."""

    exit_code = 6


class DeviceLostError(EnvironmentMismatchError):
    """The GPU stopped answering or its context is broken; nothing in this process can use it any more."""


class OutOfMemoryError(FathomError):
    """Host or device memory ran out, or the limit that was set was reached."""

    exit_code = 7


class BuildFailedError(FathomError):
    """An engine could not be compiled."""

    exit_code = 8


class PerformanceError(FathomError):
    """A performance gate failed."""

    exit_code = 9


class ChecksumError(FathomError):
    """Bytes differ from the SHA-256 that was recorded for them."""

    exit_code = 10


INTERRUPTED = 130
NO_MEMORY = (  # how libraries, loaders and threads say it
    *("memory allocation", "failed to allocate", "bad_alloc", "bad allocation", "out of memory", "can't allocate", "cannot allocate", "unable to allocate"),
    *("failed to map segment", "can't start new thread", "resource temporarily unavailable"),
)


def tells_of_no_memory(error: BaseException) -> bool:
    """Whether an error of a library means that memory ran out: most have no kind of their own for that."""
    if isinstance(error, (FathomError, ValueError, KeyError)):
        return False
    if isinstance(error, SystemError) and _is_limited():  # an extension could not even make its exception
        return True
    return isinstance(error, MemoryError) or words_of_no_memory(str(error))


def _is_limited() -> bool:
    """Whether ``ulimit -v`` bounds this process."""
    try:
        import resource
    except ImportError:  # Windows
        return False
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def words_of_no_memory(words: str) -> bool:
    """The same of what a process said before it died."""
    return any(text in words.lower() for text in NO_MEMORY)


def missing_package(module: str, extra: str, why: str) -> FathomError:
    """The error for a package that is not installed: names the ``pip install`` that mends it. Called while the ImportError is handled, it
    tells apart a package that is there and cannot be loaded."""
    error = sys.exc_info()[1]
    if isinstance(error, ImportError) and tells_of_no_memory(error):
        return OutOfMemoryError(f"no memory is left to load the package '{module}' ({error})", fix="raise the limit, or free memory")
    if isinstance(error, ImportError) and not isinstance(error, ModuleNotFoundError):
        return EnvironmentMismatchError(f"the package '{module}' cannot be loaded ({error})", wanted=why, fix=f"pip install --force-reinstall {module}")
    return EnvironmentMismatchError(
        f"the package '{module}' is not installed", wanted=why, fix=f"pip install 'fathom-depth[{extra}]'" if extra else f"pip install {module}"
    )
