"""A fake GPU and a TensorRT that builds for it, in every process that a shell script starts: what ``benchmarks/gpu_session.sh`` is tried on."""

import sys
from pathlib import Path


def environment(folder, kernels, version):
    """What the processes are given: a ``sitecustomize`` in ``folder`` that calls ``install``. ``kernels`` is the library of ``kernel_host``."""
    tests = Path(__file__).parent
    lines = f"import sys\nsys.path.append({str(tests)!r})\nimport stand_in_card\nstand_in_card.install({str(kernels)!r}, {version!r})\n"
    (folder / "sitecustomize.py").write_text(lines)
    return {"PYTHONPATH": str(folder)}


def install(kernels, version):
    """Let ``import tensorrt`` and ``from cuda.bindings import driver`` give the fakes until the process ends."""
    if "pip" in sys.orig_argv:
        return
    import fake_cuda
    import fake_tensorrt
    import fake_tensorrt10_builder
    import kernel_host
    import pytest

    machine, patch = fake_cuda.Machine(host=kernel_host.HostKernels(kernels)), pytest.MonkeyPatch()
    enter = machine.enter
    machine.enter = lambda call, context=True: enter(call, context and call != "tensorrt")  # the real one makes itself a context where there is none
    fake_cuda.install(patch, machine)
    machine.trt = fake_tensorrt10_builder.add_builder(fake_tensorrt.install(patch, machine, version=version), version)
