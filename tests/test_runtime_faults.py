"""Every call of the device and of TensorRT fails once, in turn: nothing hangs, nothing leaks, the next photo comes out right."""

import contextlib
import errno
import functools
import gc
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import fake_cuda
import fake_plans
import fake_tensorrt
import numpy as np
import pytest

from fathom.runtime.errors import DeviceLostError, FathomError, OutOfMemoryError
from fathom.runtime.kernels.records import POSTPROCESS
from fathom.runtime.pipeline import Pipeline
from fathom.runtime.tensorrt.gpu_worker import GpuWorker

PHOTO = np.arange(12 * 16 * 3, dtype=np.uint8).reshape(12, 16, 3)
HANGS_S = 20
CUDA, BINDING = "CUDA_ERROR_INVALID_VALUE", [ValueError("a binding's own words"), RuntimeError("so are these")]
RELEASES = {  # where these fail, what they were to release is left: nobody else can
    *("cuMemFreeAsync", "cuMemFreeHost", "cuStreamDestroy", "cuEventDestroy", "cuModuleUnload", "cuGraphExecDestroy", "cuGraphDestroy"),
    *("cuDevicePrimaryCtxRelease", "cuCtxPopCurrent"),
}


def launch(name, grid, block, parameters):
    """Kernels that leave everything as it is, and maps that are 2 m everywhere."""
    if name == "fathom_postprocess":
        record = np.frombuffer(parameters.tobytes(), POSTPROCESS)[0]
        pixels = int(record["photo_height"]) * int(record["photo_width"])
        for where, dtype, value in (("values", np.float32, 2), ("valid", np.uint8, 1)):
            MACHINE.view(int(record[where]), pixels * np.dtype(dtype).itemsize).view(dtype)[:] = value


MACHINE = None


def machine_with(monkeypatch, tmp_path, backend):
    """A machine whose engines do nothing, so that a whole life takes milliseconds, and whose TensorRT counts its calls."""
    global MACHINE
    MACHINE = machine = fake_cuda.Machine(host=SimpleNamespace(launch=launch))
    machine.execute = lambda context: None
    fake_cuda.install(monkeypatch, machine)
    monkeypatch.setenv("FATHOM_CACHE_DIR", str(tmp_path / "cache"))
    machine.trt = fake_tensorrt.install(monkeypatch, machine, rtx=backend == "tensorrt-rtx")

    def counted(kind, name, function):
        @functools.wraps(function)
        def call(*arguments):
            machine.enter(f"{kind.__name__}.{name}", context=False)
            return function(*arguments)

        return call

    machine.late = []  # contexts that outlived their device
    forget = machine.trt.kinds[0].__del__
    machine.trt.kinds[0].__del__ = lambda self: (None if machine.retained else machine.late.append(self.engine.facts), forget(self))
    for kind in machine.trt.kinds:
        for name, function in list(vars(kind).items()):
            if callable(function) and not name.startswith("_"):
                setattr(kind, name, counted(kind, name, function))
    return machine


def life(plan, told):
    """Open, predict in three ways, close; errors are collected, and after one the next photo has to come out right."""
    try:
        pipeline = Pipeline.open(plan, verify=False)
    except Exception as error:
        told.append(error)
        return
    try:
        inputs = {"image": np.zeros((2, 3, 48, 64), np.float32)}
        futures = []
        for ask in (
            lambda: futures.extend([pipeline.submit(PHOTO), pipeline.submit(PHOTO)]),
            lambda: pipeline.backend.run(inputs, frozenset({"features"})),
            lambda: pipeline.backend.device_times_ms(inputs, 2),
            lambda: [future.result() for future in futures],
        ):
            try:
                ask()
            except Exception as error:
                told.append(error)
        assert (pipeline.predict(PHOTO).depth_m == 2).all() or told
    except Exception as error:
        if any(isinstance(one, AssertionError) for one in [*told, error]):
            raise
        told.append(error)
        if not isinstance(error, DeviceLostError):
            assert (pipeline.predict(PHOTO).depth_m == 2).all()
    finally:
        pipeline.close()


def outcome(plan, told):
    """``life`` in a thread, so that it may hang."""
    problems = []

    def run():
        try:
            life(plan, told)
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(HANGS_S)
    assert not thread.is_alive(), "it hangs"
    if problems:
        raise problems[0]


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize(
    "faults",
    [
        pytest.param([CUDA, BINDING[0], CUDA, BINDING[1]], id="in turn"),
        pytest.param([CUDA], id="cuda", marks=pytest.mark.slow),
        pytest.param(BINDING, id="binding", marks=pytest.mark.slow),
    ],
)
def test_every_call_fails_once(monkeypatch, tiny, tmp_path, backend, faults):
    plan = fake_plans.gpu_plan(tiny, tmp_path / "x.plan", backend, batch=(2, 2, 2))
    number, calls = 0, {}
    while True:
        number += 1
        with monkeypatch.context() as patch, contextlib.ExitStack() as where:
            machine = machine_with(patch, tmp_path / str(number), backend)
            fault = faults[number % len(faults)]
            machine.fail_at = (number, fault)
            told = []
            where.callback(lambda number=number, machine=machine: calls.setdefault(machine.failed_call, number))
            try:
                outcome(plan, told)
                if any(machine.trt.counts.values()):
                    gc.collect()
                left = machine.leaks()
                if machine.failed_call in RELEASES:
                    left = {kind: count for kind, count in left.items() if count > 1}
                assert left == {} or machine.failed_call == "cuCtxPushCurrent", left
                assert not machine.late or machine.failed_call in RELEASES
                held = machine.failed_call in ("cuGraphDestroy", "cuGraphExecDestroy")  # a graph that is left holds what it recorded
                assert held or machine.trt.counts == {"engine": 0, "context": 0}
                assert all(isinstance(error, FathomError) or error is fault or isinstance(error, fake_cuda.Failure) for error in told), told
            except AssertionError as error:
                raise AssertionError(f"call {number}, {machine.failed_call}: {error}; {told}") from error
        if not machine.failed_call:
            break
    assert {"cuCtxPushCurrent", "cuMemAllocAsync", "cuEventSynchronize", "cuStreamWaitEvent", "Context.execute_async_v3", "cuLaunchKernel"} <= calls.keys()
    assert number > 200


def first_words(pipeline, start):
    return next(remark for remark in pipeline.remarks if remark.startswith(start))


def test_a_full_disk_is_a_remark(monkeypatch, tiny, tmp_path):
    machine_with(monkeypatch, tmp_path, "tensorrt-rtx")
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(Path, "write_bytes", lambda *_: (_ for _ in ()).throw(full))
    with Pipeline.open(fake_plans.gpu_plan(tiny, tmp_path / "x.plan", "tensorrt-rtx"), verify=False) as pipeline:
        assert "the disk is full" in first_words(pipeline, "kernel cache: not written")
        assert (pipeline.predict(PHOTO).depth_m == 2).all()
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_an_engine_that_does_not_take_the_kernel_cache(monkeypatch, tiny, tmp_path):
    machine = machine_with(monkeypatch, tmp_path, "tensorrt-rtx")
    machine.trt.kinds[2].set_runtime_cache = lambda self, cache: False
    with Pipeline.open(fake_plans.gpu_plan(tiny, tmp_path / "x.plan", "tensorrt-rtx"), verify=False) as pipeline:
        assert "stage head does not take it" in first_words(pipeline, "kernel cache")
        assert (pipeline.predict(PHOTO).depth_m == 2).all()


def test_old_errors_are_not_blamed_on_later_failures(monkeypatch, tiny, tmp_path):
    machine = machine_with(monkeypatch, tmp_path, "tensorrt")
    context, loggers = machine.trt.kinds[0], []
    fine = context.execute_async_v3
    context.execute_async_v3 = lambda self, stream: loggers.append(self.engine.logger) or fine(self, stream)
    with Pipeline.open(fake_plans.gpu_plan(tiny, tmp_path / "x.plan"), verify=False) as pipeline:
        loggers[0].log(1, "Out of memory, an hour ago")
        context.execute_async_v3 = lambda self, stream: False
        with pytest.raises(FathomError, match=r"stage encoder failed \(it gave no reason\)") as caught:
            pipeline.predict(PHOTO)
        assert not isinstance(caught.value, OutOfMemoryError)


class Job:
    """A job of a session that is not there."""

    def __init__(self, fails_in=""):
        self.fails_in, self.go = fails_in, threading.Event()

    def wait(self):
        if self.fails_in == "wait":
            raise ValueError("wait")
        self.go.wait()

    def finish(self):
        self.go.wait()
        if self.fails_in == "finish":
            raise ValueError("finish")
        return "done"


def worker(any_thread, broken=False):
    """A worker whose session takes one job at a time."""
    session = SimpleNamespace(any_thread=any_thread, jobs=[], closed=False)

    def begin(job):
        session.jobs.append(job)
        return job

    def idle():
        if broken and session.jobs:
            raise RuntimeError("the session is broken")
        return all(job.go.is_set() for job in session.jobs)

    def close():
        session.closed = True
        raise ValueError("closing fails too")

    session.begin, session.has_idle_slot, session.close = begin, idle, close
    return GpuWorker(lambda: session), session


@pytest.mark.parametrize("any_thread", [True, False])
def test_what_fails_in_the_thread_reaches_its_caller_and_no_other(any_thread):
    made, session = worker(any_thread)
    jobs = [Job(), Job("wait"), Job("finish"), Job()]
    futures = [made.submit(job) for job in jobs]
    [job.go.set() for job in jobs]
    assert [futures[k].result(5) for k in (0, 1, 3)] == ["done"] * 3
    with pytest.raises(ValueError, match="finish"):
        futures[2].result(5)
    made.close()
    made.close()
    assert session.closed
    with pytest.raises(ValueError, match="closed"):
        made.submit(Job())


@pytest.mark.parametrize("any_thread", [True, False])
def test_a_broken_session_strands_nobody(any_thread):
    made, session = worker(any_thread, broken=True)
    jobs = [Job() for _ in range(5)]
    futures = [made.submit(jobs[0])]
    with contextlib.suppress(FathomError):
        futures += [made.submit(job) for job in jobs[1:]]
    [job.go.set() for job in jobs]
    assert futures[0].exception(5) is None or "broken" in str(futures[0].exception(5))
    assert all("broken" in str(future.exception(5)) for future in futures[1:])
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            assert "broken" in str(made.submit(Job()).exception(5))
        except FathomError as error:
            assert "the GPU's thread ended (RuntimeError: the session is broken)" in str(error)
            break
    else:
        raise AssertionError("it still takes jobs")
    made.close()
    assert session.closed


def test_interrupting_fails_what_waits_at_once():
    made, session = worker(True)
    running, waiting = Job(), Job()
    first, second = made.submit(running), made.submit(waiting)
    while not session.jobs:
        time.sleep(0.001)
    made.interrupt()
    with pytest.raises(FathomError, match="interrupted"):
        second.result(5)
    with pytest.raises(FathomError, match="interrupted"):
        made.submit(Job())
    running.go.set()
    assert first.result(5) == "done"
    made.close()
