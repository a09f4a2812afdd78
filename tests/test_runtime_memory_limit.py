"""Too little memory is told before native code meets it; a full disk, wherever it is met, is told as one."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest

from fathom.runtime import memory_limit
from fathom.runtime.artefact.spec import TensorSpec, largest_tensor
from fathom.runtime.commands.command import run_command
from fathom.runtime.errors import EnvironmentMismatchError, OutOfMemoryError, missing_package
from fathom.runtime.pipeline import Pipeline


def test_a_limit_that_is_too_small_is_refused_with_the_largest_tensor(tiny, monkeypatch):
    features = "features [2, 8, 24, 32] with 0.0469 MiB"  # 2 * 8 * 24 * 32 * 4 bytes; the image has 2 * 3 * 48 * 64 * 4, which is more
    image = "image [2, 3, 48, 64] with 0.0703 MiB"
    for name, words in (("_address_space_nbytes", "ulimit -v"), ("_cgroup_nbytes", "its cgroup")):
        with monkeypatch.context() as patch:
            patch.setattr(memory_limit, "_one_heap", lambda: None)
            patch.setattr(memory_limit, name, lambda: 64 << 20)
            with pytest.raises(OutOfMemoryError) as caught:
                Pipeline.open(tiny.plan)
            assert words in str(caught.value) and "64 MiB" in str(caught.value) and image in str(caught.value) and features not in str(caught.value)
            patch.setattr(memory_limit, name, lambda: 1 << 45)
            Pipeline.open(tiny.plan).close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ulimit -v")
@pytest.mark.parametrize("mib", [160, 220])
def test_depth_run_under_ulimit_ends_with_7(tiny, tmp_path, mib):
    import resource

    photo = tmp_path / "p.png"
    from PIL import Image

    Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(photo)
    words = [sys.executable, "-m", "fathom.runtime.commands.run", "--engine", str(tiny.plan), str(photo), "-o", str(tmp_path / "o"), "-q"]
    limit = lambda: resource.setrlimit(resource.RLIMIT_AS, (mib << 20,) * 2)  # noqa: E731
    done = subprocess.run(words, capture_output=True, text=True, preexec_fn=limit, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert (done.returncode == 7 and "memory" in done.stderr) or "MiB" in done.stderr, done.stderr
    assert not list(tmp_path.glob("o/*"))


def test_the_largest_tensor_counts_bytes_not_elements():
    tensors = (TensorSpec("small", "uint8", ("batch", 1000)), TensorSpec("large", "int64", ("batch", 200)))
    assert largest_tensor(tensors, {"batch": 4}) == "large [4, 200] with 0.0061 MiB"


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"), 7, "99 bytes"),
        (RuntimeError("can't start new thread"), 7, "no memory is left"),
        (OSError(errno.ENOSPC, "No space left on device", "journal"), 3, "the disk is full: journal"),
        (ValueError("bad allocation of seats"), 1, "internal error"),
    ],
)
def test_errors_of_libraries_get_their_exit_code(capsys, error, code, words):
    def body():
        raise error

    assert run_command(body) == code and words in capsys.readouterr().err


def test_an_extension_without_memory_for_its_own_error(capsys, monkeypatch):
    """Under ``ulimit -v`` Python's words for it mean memory; without a limit they are a fault."""
    resource = pytest.importorskip("resource")

    def body():
        raise SystemError("error return without exception set")

    for limit, code in ((resource.RLIM_INFINITY, 1), (1 << 29, 7)):
        monkeypatch.setattr(resource, "getrlimit", lambda kind, limit=limit: (limit, limit))
        assert run_command(body) == code


def test_a_package_that_is_there_and_cannot_be_loaded_is_not_called_missing():
    for error, kind, words in (
        (ImportError("x.so: failed to map segment from shared object"), OutOfMemoryError, "no memory is left"),
        (ImportError("libcudart.so.12: cannot open shared object file"), EnvironmentMismatchError, "cannot be loaded"),
        (ModuleNotFoundError("No module named 'x'"), EnvironmentMismatchError, "is not installed"),
    ):
        try:
            raise error
        except ImportError:
            found = missing_package("x", "", "it")
        assert isinstance(found, kind) and words in str(found)
